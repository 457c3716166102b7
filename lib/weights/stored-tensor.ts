// Where a tensor lies in a weight file. Parsing yields these; data is mapped or streamed from {file, offset} later.
import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { expected, ModelFormatError } from '../errors.ts';

/** As safetensors names them. BOOL is read so that a file with such a buffer can be told what is wrong with it. */
export type StoredDType = 'F64' | 'F32' | 'F16' | 'BF16' | 'I8' | 'U8' | 'BOOL' | 'I32' | 'I64';

/** One tensor of a weight file, row-major unless `strides` says otherwise. */
export interface StoredTensor {
  name: string;
  dtype: StoredDType;
  shape: number[];
  file: string;
  /** Bytes from the start of the file; aligned to nothing in particular, since old writers did not pad their headers. */
  offset: number;
  /** Bytes from `offset` to the end of the last element; for a contiguous tensor, its size. */
  bytes: number;
  /** In elements, one per dimension; present only when the elements are not contiguous (pickled views). */
  strides?: number[];
}

const ELEMENT_BYTES: Record<StoredDType, number> = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  I8: 1,
  U8: 1,
  BOOL: 1,
  I32: 4,
  I64: 8,
};

export const STORED_DTYPES = Object.keys(ELEMENT_BYTES) as StoredDType[];

export function isStoredDType(value: unknown): value is StoredDType {
  return typeof value === 'string' && Object.hasOwn(ELEMENT_BYTES, value);
}

export function elementBytes(dtype: StoredDType): number {
  return ELEMENT_BYTES[dtype];
}

/** The product of the dimensions, or undefined if one is not a non-negative integer or the product passes 2^53. */
export function elementCount(shape: readonly unknown[]): number | undefined {
  let count = 1n;
  for (const dim of shape) {
    if (typeof dim !== 'number' || !Number.isSafeInteger(dim) || dim < 0) return undefined;
    count *= BigInt(dim);
    if (count > BigInt(Number.MAX_SAFE_INTEGER)) return undefined;
  }
  return Number(count);
}

/** The size of the tensor's elements when stored without gaps. */
export function packedBytes(tensor: Pick<StoredTensor, 'dtype' | 'shape'>): number {
  return (elementCount(tensor.shape) ?? 0) * elementBytes(tensor.dtype);
}

export const CHUNK_BYTES = 4 << 20;

/** Reads exactly `length` bytes at `position`; a file that ends sooner is a ModelFormatError. */
export async function readExactly(handle: FileHandle, file: string, position: number, length: number) {
  const buffer = Buffer.allocUnsafe(length);
  for (let done = 0; done < length; ) {
    const { bytesRead } = await handle.read(buffer, done, length - done, position + done);
    if (bytesRead === 0) {
      const got = `the end of the file at byte ${position + done}`;
      throw new ModelFormatError(expected(file, `${length} bytes at offset ${position}`, 'be there', got));
    }
    done += bytesRead;
  }
  return buffer;
}

/** Opens a weight file for reading, with the failure in the words of the package. */
export async function openForReading(file: string): Promise<FileHandle> {
  let handle: FileHandle;
  try {
    handle = await open(file, constants.O_RDONLY | constants.O_NONBLOCK); // a named pipe must not hold us up
  } catch (cause) {
    const why = (cause as NodeJS.ErrnoException).code ?? 'an error';
    throw new ModelFormatError(expected(file, 'the file', 'be readable', why), { cause });
  }
  const stats = await handle.stat();
  if (stats.isFile()) return handle;
  await handle.close();
  throw new ModelFormatError(
    expected(file, 'the path', 'be a file', stats.isDirectory() ? 'a folder' : 'a device or a pipe'),
  );
}

/** The elements in row-major order without gaps, in pieces of at most `chunkBytes`, each a fresh buffer. */
export async function* tensorChunks(tensor: StoredTensor, chunkBytes = CHUNK_BYTES): AsyncGenerator<Uint8Array> {
  const handle = await openForReading(tensor.file);
  try {
    if (tensor.strides) {
      yield gather(await readExactly(handle, tensor.file, tensor.offset, tensor.bytes), tensor, tensor.strides);
      return;
    }
    for (let done = 0; done < tensor.bytes; done += chunkBytes) {
      const length = Math.min(chunkBytes, tensor.bytes - done);
      yield await readExactly(handle, tensor.file, tensor.offset + done, length);
    }
  } finally {
    await handle.close();
  }
}

/** The whole tensor in row-major order, aligned for any typed array. */
export async function readTensorBytes(tensor: StoredTensor): Promise<Uint8Array> {
  const whole = new Uint8Array(packedBytes(tensor));
  let done = 0;
  for await (const chunk of tensorChunks(tensor)) {
    whole.set(chunk, done);
    done += chunk.length;
  }
  return whole;
}

function gather(span: Uint8Array, { dtype, shape }: StoredTensor, strides: readonly number[]): Uint8Array {
  const size = elementBytes(dtype);
  const out = new Uint8Array((elementCount(shape) ?? 0) * size);
  const index = shape.map(() => 0);
  let from = 0;
  for (let to = 0; to < out.length; to += size) {
    for (let byte = 0; byte < size; byte++) out[to + byte] = span[from * size + byte] as number;
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      const stride = strides[axis] as number;
      index[axis] = (index[axis] as number) + 1;
      from += stride;
      if ((index[axis] as number) < (shape[axis] as number)) break;
      from -= stride * (shape[axis] as number);
      index[axis] = 0;
    }
  }
  return out;
}

/** True if both tensors hold the same bytes: the same place in the same file, or equal contents. Reads in chunks. */
export async function sameContents(a: StoredTensor, b: StoredTensor): Promise<boolean> {
  if (a.dtype !== b.dtype || a.shape.join() !== b.shape.join()) return false;
  const sameLayout = (a.strides?.join() ?? '') === (b.strides?.join() ?? '');
  if (a.file === b.file && a.offset === b.offset && sameLayout) return true;
  if (a.strides || b.strides) return Buffer.compare(await readTensorBytes(a), await readTensorBytes(b)) === 0;
  const others = tensorChunks(b);
  try {
    for await (const chunk of tensorChunks(a)) {
      const other = await others.next();
      if (other.done || Buffer.compare(chunk, other.value) !== 0) return false;
    }
    return true;
  } finally {
    await others.return(undefined);
  }
}
