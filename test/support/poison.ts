import type { Device } from '../../lib/device.ts';
import { type DType, dtypeBytes, newArray, Tensor } from '../../lib/tensor.ts';
import { f16ToF32, f32ToF16 } from '../../lib/weights/dtypes.ts';

/** Bytes before and after every operand that nothing may write. */
const GUARD = 256;
/** All ones: a NaN in every float format that no arithmetic produces, and -1 in the integers. */
const POISON = 0xff;

/** An operand of a case. */
export interface Operand {
  shape: readonly number[];
  dtype: DType;
  /** Contents; left out: poisoned, so that every element must be written. */
  values?: ArrayLike<number>;
  /** Elements between the end of a row and the next. */
  pad?: number;
  /** The input whose memory this output shares. */
  same?: string;
}

/** An operand on a device, in the middle of a poisoned buffer. */
export class Fenced {
  readonly tensor: Tensor;
  readonly #device: Device;
  readonly #raw: Tensor;
  readonly #poisoned: boolean;

  /** @param shift elements by which the operand is moved off its natural alignment */
  constructor(device: Device, name: string, operand: Operand, shift: number) {
    const { shape, dtype, values, pad = 0 } = operand;
    const size = dtypeBytes(dtype);
    const cols = shape.at(-1) ?? 1;
    const rowStride = cols + pad;
    const offset = GUARD + shift * size;
    const rows = shape.slice(0, -1).reduce((a, b) => a * b, 1);
    const total = offset + Math.max(0, (rows - 1) * rowStride + cols) * size + GUARD;
    const storage = { buffer: device.alloc(total), offset };
    this.#device = device;
    this.#poisoned = values === undefined;
    this.#raw = new Tensor([total], 'u8', `${name} (raw)`, { storage: { ...storage, offset: 0 } });
    this.tensor = new Tensor(shape, dtype, name, { storage, rowStride });
    const bytes = new Uint8Array(total).fill(POISON);
    if (values) {
      const packed = encode(dtype, values);
      const from = new Uint8Array(packed.buffer, packed.byteOffset, packed.byteLength);
      for (let r = 0; r < rows; r++) {
        bytes.set(from.subarray(r * cols * size, (r + 1) * cols * size), offset + r * rowStride * size);
      }
    }
    device.write(this.#raw, bytes);
  }

  /** The elements after a run, and what is wrong with the bytes around or between them, if anything. */
  collect(): { values: Float64Array; fault: string | undefined } {
    const bytes = this.#device.read(this.#raw) as Uint8Array;
    const { tensor } = this;
    const size = dtypeBytes(tensor.dtype);
    const offset = tensor.storage?.offset ?? 0;
    const rowBytes = tensor.cols * size;
    const packed = new Uint8Array(tensor.rows * rowBytes);
    for (let r = 0; r < tensor.rows; r++) {
      const at = offset + r * tensor.rowStride * size;
      packed.set(bytes.subarray(at, at + rowBytes), r * rowBytes);
      bytes.fill(POISON, at, at + rowBytes);
    }
    const torn = poisoned(bytes, 0, bytes.length);
    let fault = torn < bytes.length ? `byte ${torn - offset} outside of it was written` : undefined;
    if (this.#poisoned && !fault && 'f32 f64 bf16 f16'.includes(tensor.dtype)) {
      for (let at = 0; at < packed.length && !fault; at += size) {
        if (poisoned(packed, at, at + size) === at + size) fault = `element ${at / size} was not written`;
      }
    }
    return { values: decode(tensor.dtype, packed), fault };
  }

  free(): void {
    this.#device.release(this.tensor);
  }
}

// Tests of ops spend most of their time below: whole arrays are converted at once, and loops call nothing per element.

/** The first of bytes [from, to) that is not poison, or `to`. */
function poisoned(bytes: Uint8Array, from: number, to: number): number {
  let at = from;
  while (at < to && bytes[at] === POISON) at++;
  return at;
}

/** How numbers become the bits that a typed array of some dtypes holds, and back. */
const CODES: {
  readonly [D in DType]?: readonly [toBits: (value: number) => number, toValue: (bits: number) => number];
} = {
  bf16: [toBf16, fromBf16],
  f16: [f32ToF16, f16ToF32],
};

/** Numbers as a typed array of a dtype. */
export function encode(dtype: DType, values: ArrayLike<number>) {
  const out = newArray(dtype, values.length);
  const [toBits] = CODES[dtype] ?? [];
  if (!toBits) out.set(values);
  else for (let i = 0; i < values.length; i++) out[i] = toBits(values[i] ?? 0);
  return out;
}

/** Bytes of a dtype as numbers. */
export function decode(dtype: DType, bytes: Uint8Array): Float64Array {
  const bits = newArray(dtype, bytes.length / dtypeBytes(dtype));
  new Uint8Array(bits.buffer).set(bytes);
  const values = new Float64Array(bits);
  const [, toValue] = CODES[dtype] ?? [];
  if (toValue) for (let i = 0; i < values.length; i++) values[i] = toValue(values[i] ?? 0);
  return values;
}

const word = new DataView(new ArrayBuffer(4));

/** Bits of the nearest bf16, ties to even. */
export function toBf16(value: number): number {
  word.setFloat32(0, value);
  if (Number.isNaN(value)) return 0x7fc0;
  const bits = word.getUint32(0);
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}
export function fromBf16(bits: number): number {
  word.setUint32(0, (bits << 16) >>> 0);
  return word.getFloat32(0);
}
