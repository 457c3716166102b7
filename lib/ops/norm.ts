import type { Graph } from '../graph.ts';
import { accumulatorDType, type DType, type Tensor } from '../tensor.ts';
import { checkShape } from './check.ts';

/**
 * RMSNorm (Zhang & Sennrich 2019): y = x / sqrt(mean(x²) + eps) * weight.
 * @param x (..., D)
 * @param weight (D)
 * @param dtype of y; default: x's
 */
export function rmsNorm(g: Graph, x: Tensor, weight: Tensor, eps = 1e-5, dtype: DType = x.dtype): Tensor {
  checkShape(g, 'rms_norm', 'weight', weight, x.cols);
  const y = g.value(x.shape, dtype);
  const rstd = g.value([x.rows], accumulatorDType(x.dtype));
  g.op('rms_norm', { y, rstd }, { x, weight }, { eps }, (d, into) => {
    const dx = into.adding('x');
    const sink = into.accumulating('weight');
    g.op(
      'rms_norm_grad',
      { dx: dx?.tensor ?? g.like(x), dweight: sink?.tensors[0] ?? g.like(weight) },
      { dy: d.y, x, weight, rstd, add: dx?.add },
      { accumulate: Number(sink?.accumulate ?? false) },
    );
  });
  return y;
}

/**
 * LayerNorm (Ba et al. 2016): y = (x - mean) / sqrt(var + eps) * weight + bias, biased variance.
 * @param x (..., D)
 * @param weight (D)
 * @param bias (D)
 * @param dtype of y; default: x's
 */
export function layerNorm(
  g: Graph,
  x: Tensor,
  weight: Tensor,
  bias?: Tensor,
  eps = 1e-5,
  dtype: DType = x.dtype,
): Tensor {
  checkShape(g, 'layer_norm', 'weight', weight, x.cols);
  checkShape(g, 'layer_norm', 'bias', bias, x.cols);
  const y = g.value(x.shape, dtype);
  const mean = g.value([x.rows], accumulatorDType(x.dtype));
  const rstd = g.value([x.rows], accumulatorDType(x.dtype));
  g.op('layer_norm', { y, mean, rstd }, { x, weight, bias }, { eps }, (d, into) => {
    const dx = into.adding('x');
    const sink = into.accumulating('weight', 'bias');
    const [dweight = g.like(weight), dbias = bias && g.like(bias)] = sink?.tensors ?? [];
    g.op(
      'layer_norm_grad',
      { dx: dx?.tensor ?? g.like(x), dweight, dbias },
      { dy: d.y, x, weight, mean, rstd, add: dx?.add },
      { accumulate: Number(sink?.accumulate ?? false) },
    );
  });
  return y;
}
