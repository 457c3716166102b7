import type { Graph } from '../graph.ts';
import type { DType, Tensor } from '../tensor.ts';
import { checkShape, sizes } from './check.ts';
import { cast } from './shape.ts';

export interface LinearOptions {
  /** (M) */
  bias?: Tensor | undefined;
  /** (M) f32: int8 weights are `scale[m] * weight[m]`. */
  scale?: Tensor | undefined;
  /** (..., M): added to the result. */
  add?: Tensor | undefined;
  /** Of the result; default: add's, else x's. */
  dtype?: DType | undefined;
}

/**
 * y = x weightᵀ + bias + add.
 * @param x (..., K)
 * @param weight (M, K) f32, bf16, or i8 with options.scale
 * @returns (..., M)
 */
export function linear(g: Graph, x: Tensor, weight: Tensor, options: LinearOptions = {}): Tensor {
  const { bias, scale, add, dtype = add?.dtype ?? x.dtype } = options;
  const [M = 0] = sizes(g, 'linear', 'weight', weight, 'M K');
  checkShape(g, 'linear', 'weight', weight, M, x.cols);
  checkShape(g, 'linear', 'bias', bias, M);
  checkShape(g, 'linear', 'scale', scale, M);
  if (weight.dtype === 'i8' && !scale) throw new TypeError('linear: expected scale to be given with int8 weights.');
  const y = g.value([...x.shape.slice(0, -1), M], dtype);
  checkShape(g, 'linear', 'add', add, ...y.shape);
  g.op('linear', { y }, { x, weight, bias, scale, add }, {}, (d, into) => {
    if (!d.y) return;
    if (add) into.same('add', d.y);
    // Both products below take factors of one dtype: rounded once here, not by each of them.
    const dy = d.y.dtype === x.dtype ? d.y : cast(g, d.y, x.dtype);
    const dx = into.adding('x');
    if (dx) g.op('linear_grad_input', { dx: dx.tensor }, { dy, weight, add: dx.add });
    const dw = into.accumulating('weight');
    if (dw) g.op('linear_grad_weight', { dweight: dw.tensors[0] }, { dy, x }, { accumulate: Number(dw.accumulate) });
    const db = into.accumulating('bias');
    if (db) g.op('column_sum', { y: db.tensors[0] }, { x: d.y }, { accumulate: Number(db.accumulate) });
  });
  return y;
}
