/** Element types. The order is the contract with native/tensor.h. */
export const DTYPES = ['f32', 'f64', 'bf16', 'i8', 'u8', 'i32', 'f16'] as const;
export type DType = (typeof DTYPES)[number];

const DTYPE_BYTES: Record<DType, number> = { f32: 4, f64: 8, bf16: 2, i8: 1, u8: 1, i32: 4, f16: 2 };

/** Bytes of one element. */
export function dtypeBytes(dtype: DType): number {
  return DTYPE_BYTES[dtype];
}

/** What sums, statistics and states of values of this dtype are kept in. */
export function accumulatorDType(dtype: DType): DType {
  return dtype === 'f64' ? 'f64' : 'f32';
}

/** Typed arrays that carry a dtype to and from native memory; bf16 and f16 travel as their bits. */
export type TypedArray = Float32Array | Float64Array | Uint16Array | Int8Array | Uint8Array | Int32Array;

const ARRAYS = {
  f32: Float32Array,
  f64: Float64Array,
  bf16: Uint16Array,
  i8: Int8Array,
  u8: Uint8Array,
  i32: Int32Array,
  f16: Uint16Array,
};

/** How many elements a shape has. */
export function elements(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}

/** A zero-filled typed array of `length` elements of `dtype`. */
export function newArray(dtype: DType, length: number): TypedArray {
  return new ARRAYS[dtype](length);
}

/** Where a tensor's bytes lie on a device: a buffer id and an offset into it, in bytes. */
export interface Storage {
  readonly buffer: number;
  readonly offset: number;
}

/**
 * A typed, shaped region that ops read and write; no arithmetic of its own. Row-major, channel last, rank at most 4, one
 * row stride. `value` tensors get memory from the plan they are compiled into; all others own storage on a device.
 */
export class Tensor {
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly name: string;
  /** Elements between consecutive rows of the last axis. */
  readonly rowStride: number;
  /** Memory outside the plan; undefined for values, which the plan places. */
  readonly storage: Storage | undefined;
  /** Set on a view: the tensor whose memory it shares, and how many elements into it. */
  readonly base: Tensor | undefined;
  readonly baseOffset: number;
  /** True when the contents never change, so that what depends only on such tensors is computed once. */
  readonly frozen: boolean;

  constructor(
    shape: readonly number[],
    dtype: DType,
    name: string,
    options: { storage?: Storage; base?: Tensor; baseOffset?: number; rowStride?: number; frozen?: boolean } = {},
  ) {
    this.shape = shape;
    this.dtype = dtype;
    this.name = name;
    this.rowStride = options.rowStride ?? shape.at(-1) ?? 1;
    this.storage = options.storage;
    this.base = options.base;
    this.baseOffset = options.baseOffset ?? 0;
    this.frozen = options.frozen ?? false;
  }

  get elems(): number {
    return elements(this.shape);
  }
  /** Size of the last axis. */
  get cols(): number {
    return this.shape.at(-1) ?? 1;
  }
  /** Product of all axes but the last. */
  get rows(): number {
    return elements(this.shape.slice(0, -1));
  }
  get contiguous(): boolean {
    return this.rowStride === this.cols || this.rows <= 1;
  }
  /** Bytes from the first to past the last element. */
  get bytes(): number {
    return this.elems === 0 ? 0 : ((this.rows - 1) * this.rowStride + this.cols) * dtypeBytes(this.dtype);
  }

  /** The same memory under another shape. @throws TypeError when sizes differ or rows are strided. */
  reshape(...shape: number[]): Tensor {
    if (elements(shape) !== this.elems) {
      throw new TypeError(`reshape: expected a shape of ${this.elems} elements, got (${shape.join(', ')}).`);
    }
    const keepsRows = shape.at(-1) === this.cols;
    if (!this.contiguous && !keepsRows) {
      throw new TypeError(`reshape: expected a contiguous tensor, got rows ${this.rowStride} apart.`);
    }
    return this.view(shape, 0, keepsRows ? this.rowStride : (shape.at(-1) ?? 1));
  }

  /** Columns [start, start + size) of every row, sharing memory. */
  columns(start: number, size: number): Tensor {
    return this.view([...this.shape.slice(0, -1), size], start, this.rowStride);
  }

  /** Slices [start, start + size) of the first axis, sharing memory. */
  slice(start: number, size = 1): Tensor {
    const [first = 1, ...rest] = this.shape;
    const perSlice = this.rows > 0 && rest.length > 0 ? (this.rows / first) * this.rowStride : 1;
    return this.view([size, ...rest], start * perSlice, this.rowStride);
  }

  /** Of a (B, T, D) tensor: step `t` of every sequence, (B, D), sharing memory. */
  step(t: number): Tensor {
    const [B = 0, T = 0, D = 0] = this.shape;
    return this.view([B, D], t * this.rowStride, T * this.rowStride);
  }

  private view(shape: readonly number[], offset: number, rowStride: number): Tensor {
    const root = this.base ?? this;
    return new Tensor(shape, this.dtype, this.name, {
      base: root,
      baseOffset: this.baseOffset + offset,
      rowStride,
      frozen: this.frozen,
    });
  }
}

/** The tensor that owns the memory of `t`. */
export function rootOf(t: Tensor): Tensor {
  return t.base ?? t;
}
