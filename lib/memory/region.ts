import type { Device } from '../device.ts';
import { dtypeBytes, Tensor } from '../tensor.ts';
import { narrowed, widened } from '../weights/dtypes.ts';

/** A region of a stored, contiguous tensor, `at` elements into it. */
export function region(of: Tensor, name: string, shape: readonly number[], at: number): Tensor {
  const { buffer = 0, offset = 0 } = of.storage ?? {};
  const { dtype } = of;
  return new Tensor(shape, dtype, name, { storage: { buffer, offset: offset + at * dtypeBytes(dtype) } });
}

/** An f32 or bf16 tensor as f32, which states on the host are. */
export function readFloats(device: Device, t: Tensor): Float32Array {
  const data = device.read(t);
  return data instanceof Uint16Array ? widened(data) : (data as Float32Array);
}

/** Writes f32 into an f32 or bf16 tensor. */
export function writeFloats(device: Device, t: Tensor, values: Float32Array): void {
  device.write(t, t.dtype === 'bf16' ? narrowed(values) : values);
}
