import { dtypeBytes, Tensor } from '../tensor.ts';

/** A region of a stored, contiguous tensor, `at` elements into it. */
export function region(of: Tensor, name: string, shape: readonly number[], at: number): Tensor {
  const { buffer = 0, offset = 0 } = of.storage ?? {};
  const { dtype } = of;
  return new Tensor(shape, dtype, name, { storage: { buffer, offset: offset + at * dtypeBytes(dtype) } });
}

/** Elements of a shape. */
export function elements(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}
