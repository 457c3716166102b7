// Conversions between stored number formats and float32, for small tensors; large ones are converted natively.
// Rounding is to nearest, ties to even; subnormals are kept; NaN stays NaN (quiet, sign and top payload bits kept).
import { expected } from '../errors.ts';
import { elementBytes, type StoredDType } from './stored-tensor.ts';

const word = new Float32Array(1);
const bits = new Uint32Array(word.buffer);

/** The float32 value of IEEE binary16 bits. */
export function f16ToF32(half: number): number {
  const sign = (half & 0x8000) << 16;
  const magnitude = half & 0x7fff;
  if (magnitude < 0x400) return (sign ? -1 : 1) * magnitude * 2 ** -24;
  // The exponent's bias grows from 15 to 127; that of infinity and NaN, which becomes quiet, is 31 and becomes 255.
  const rebias = magnitude < 0x7c00 ? 0x38000000 : 0x70000000;
  bits[0] = sign | ((magnitude << 13) + rebias) | (magnitude > 0x7c00 ? 0x400000 : 0);
  return word[0] as number;
}

/** The IEEE binary16 bits nearest to a float32 value; beyond 65519.99 this is infinity. */
export function f32ToF16(value: number): number {
  word[0] = value;
  const all = bits[0] as number;
  const sign = (all >>> 16) & 0x8000;
  const magnitude = all & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00 | ((magnitude >>> 13) & 0x1ff);
  if (magnitude >= 0x477ff000) return sign | 0x7c00;
  if (magnitude < 0x38800000) return sign | halfSubnormal(magnitude);
  // Rebiasing the exponent by 127 - 15 and letting the rounding carry run into it covers every normal value.
  const rebiased = magnitude - 0x38000000;
  return sign | ((rebiased + 0xfff + ((rebiased >>> 13) & 1)) >>> 13);
}

/** Below 2^-14 a half is a multiple of 2^-24, so rounding is that of an integer. */
function halfSubnormal(magnitude: number): number {
  bits[0] = magnitude;
  const scaled = (word[0] as number) * 2 ** 24;
  const floor = Math.floor(scaled);
  const rest = scaled - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}

/** The float32 value of bfloat16 bits, which are its upper half. */
export function bf16ToF32(upper: number): number {
  bits[0] = upper << 16;
  return word[0] as number;
}

/** The bfloat16 bits nearest to a float32 value. */
export function f32ToBf16(value: number): number {
  word[0] = value;
  const all = bits[0] as number;
  if ((all & 0x7fffffff) > 0x7f800000) return (all >>> 16) | 0x40;
  return ((all + 0x7fff + ((all >>> 16) & 1)) >>> 16) & 0xffff;
}

/** The float32 values of many 16-bit numbers at once. */
export function widened(stored: Uint16Array, dtype: 'bf16' | 'f16'): Float32Array {
  const all = new Uint32Array(stored.length);
  const values = new Float32Array(all.buffer);
  if (dtype === 'f16') for (let i = 0; i < all.length; i++) values[i] = f16ToF32(stored[i] as number);
  else for (let i = 0; i < all.length; i++) all[i] = (stored[i] as number) << 16;
  return values;
}

/** The nearest 16-bit numbers to many float32 values at once. */
export function narrowed(values: Float32Array, dtype: 'bf16' | 'f16'): Uint16Array {
  const narrow = dtype === 'f16' ? f32ToF16 : f32ToBf16;
  const out = new Uint16Array(values.length);
  for (let i = 0; i < out.length; i++) out[i] = narrow(values[i] as number);
  return out;
}

/** Little-endian stored elements as float32. Integers beyond 2^24 and F64 are rounded to nearest. */
export function toFloat32(data: Uint8Array, dtype: StoredDType): Float32Array {
  const size = elementBytes(dtype);
  if (data.length % size !== 0) {
    throw new RangeError(expected('toFloat32', 'data', `hold whole ${dtype} elements`, `${data.length} bytes`));
  }
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  const read = READERS[dtype];
  const out = new Float32Array(data.length / size);
  for (let i = 0; i < out.length; i++) out[i] = read(view, i * size);
  return out;
}

/** float32 values as little-endian elements of a floating-point dtype. */
export function fromFloat32(values: Float32Array, dtype: 'F64' | 'F32' | 'F16' | 'BF16'): Uint8Array {
  const size = elementBytes(dtype);
  const out = new Uint8Array(values.length * size);
  const view = new DataView(out.buffer);
  const write = WRITERS[dtype];
  for (let i = 0; i < values.length; i++) write(view, i * size, values[i] as number);
  return out;
}

const READERS: Record<StoredDType, (view: DataView, at: number) => number> = {
  F64: (view, at) => view.getFloat64(at, true),
  F32: (view, at) => view.getFloat32(at, true),
  F16: (view, at) => f16ToF32(view.getUint16(at, true)),
  BF16: (view, at) => bf16ToF32(view.getUint16(at, true)),
  I8: (view, at) => view.getInt8(at),
  U8: (view, at) => view.getUint8(at),
  BOOL: (view, at) => view.getUint8(at),
  I32: (view, at) => view.getInt32(at, true),
  I64: (view, at) => Number(view.getBigInt64(at, true)),
};

const WRITERS: Record<'F64' | 'F32' | 'F16' | 'BF16', (view: DataView, at: number, value: number) => void> = {
  F64: (view, at, value) => view.setFloat64(at, value, true),
  F32: (view, at, value) => view.setFloat32(at, value, true),
  F16: (view, at, value) => view.setUint16(at, f32ToF16(value), true),
  BF16: (view, at, value) => view.setUint16(at, f32ToBf16(value), true),
};
