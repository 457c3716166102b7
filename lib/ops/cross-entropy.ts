import type { Graph } from '../graph.ts';
import { accumulatorDType, type Tensor } from '../tensor.ts';
import { checkDType, checkShape } from './check.ts';

export interface CrossEntropy {
  /** (1): mean over the counted rows, in nats. */
  loss: Tensor;
  /** (rows): -log softmax(logits)[target], 0 where ignored. */
  nll: Tensor;
}

/**
 * Softmax cross-entropy of integer targets.
 * @param logits (..., V) f32
 * @param targets (...) u8 or i32
 * @param ignore a target that is not counted; -1: all are
 */
export function crossEntropy(g: Graph, logits: Tensor, targets: Tensor, ignore = -1): CrossEntropy {
  checkShape(g, 'cross_entropy', 'targets', targets, ...logits.shape.slice(0, -1));
  checkDType(g, 'cross_entropy', 'targets', targets, 'u8', 'i32');
  const dtype = accumulatorDType(logits.dtype);
  const loss = g.value([1], dtype);
  const nll = g.value([logits.rows], dtype);
  const lse = g.value([logits.rows], dtype);
  g.op('cross_entropy', { loss, nll, lse }, { logits, targets }, { ignore }, (d, into) => {
    const dlogits = into('logits');
    if (dlogits) g.op('cross_entropy_grad', { dlogits }, { dloss: d.loss, logits, targets, lse }, { ignore });
  });
  return { loss, nll };
}
