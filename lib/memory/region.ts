import type { Device } from '../device.ts';
import { dtypeBytes, Tensor } from '../tensor.ts';
import { narrowed, widened } from '../weights/dtypes.ts';

/** What caches are kept as. */
export type CacheDType = 'f32' | 'bf16' | 'f16';

/** A region of a stored, contiguous tensor, `at` elements into it. */
export function region(of: Tensor, name: string, shape: readonly number[], at: number): Tensor {
  const { buffer = 0, offset = 0 } = of.storage ?? {};
  const { dtype } = of;
  return new Tensor(shape, dtype, name, { storage: { buffer, offset: offset + at * dtypeBytes(dtype) } });
}

/** A cache, or another tensor of such a dtype, as f32, which states on the host are. */
export function readFloats(device: Device, t: Tensor): Float32Array {
  const data = device.read(t);
  return data instanceof Uint16Array ? widened(data, t.dtype as 'bf16' | 'f16') : (data as Float32Array);
}

/** Writes f32 into such a tensor. */
export function writeFloats(device: Device, t: Tensor, values: Float32Array): void {
  device.write(t, t.dtype === 'bf16' || t.dtype === 'f16' ? narrowed(values, t.dtype) : values);
}
