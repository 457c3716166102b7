import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { packageRoot } from '../../lib/native.ts';
import type { DType } from '../../lib/tensor.ts';
import { decode } from './poison.ts';

/** Where the files made by PyTorch lie; its README says what each holds. */
export const FIXTURES = join(packageRoot, 'test', 'fixtures');

export interface FixtureTensor {
  dtype: DType;
  shape: number[];
  values: Float64Array;
}

const DTYPES: Record<string, DType> = { F64: 'f64', F32: 'f32', BF16: 'bf16', I8: 'i8', U8: 'u8', I32: 'i32' };

/** All tensors of a safetensors file. Written apart from lib/weights, so that the two check each other. */
export function readFixture(name: string): Map<string, FixtureTensor> {
  const bytes = readFileSync(join(FIXTURES, name));
  const start = 8 + Number(bytes.readBigUInt64LE());
  const header = JSON.parse(bytes.toString('utf8', 8, start)) as Record<
    string,
    { dtype: string; shape: number[]; data_offsets: [number, number] }
  >;
  const tensors = new Map<string, FixtureTensor>();
  for (const [key, entry] of Object.entries(header)) {
    if (key === '__metadata__') continue;
    const dtype = DTYPES[entry.dtype];
    if (!dtype) throw new Error(`${name}: ${key} has dtype ${entry.dtype}`);
    const [from, to] = entry.data_offsets;
    const values = decode(dtype, Uint8Array.from(bytes.subarray(start + from, start + to)));
    tensors.set(key, { dtype, shape: entry.shape, values });
  }
  return tensors;
}

export function readJson<T>(name: string): T {
  return JSON.parse(readFileSync(join(FIXTURES, name), 'utf8')) as T;
}
