import type { Graph } from '../graph.ts';
import type { Tensor } from '../tensor.ts';
import { checkShape } from './check.ts';

/** (1), written to `norm`: `scale` times the Euclidean norm of all gradients taken together. */
export function globalNorm(g: Graph, grads: readonly Tensor[], norm: Tensor, scale = 1): Tensor {
  g.op('global_norm', { norm }, { grads_: grads }, { scale });
  return norm;
}

export interface AdamWOptions {
  beta1: number;
  beta2: number;
  eps: number;
  weightDecay: number;
  /** Largest allowed norm; 0: no clipping. */
  clip: number;
  /** Factor on the gradient, before clipping: 1 / micro-batches. */
  scale: number;
}

/**
 * One AdamW step (Loshchilov & Hutter 2019), in place, as torch.optim.AdamW.
 * @param scalars (2) f32: learning rate, step counted from 1
 * @param norm (1): the global norm that clipping compares with
 */
export function adamw(
  g: Graph,
  tensors: { param: Tensor; m: Tensor; v: Tensor; grad: Tensor; scalars: Tensor; norm: Tensor },
  options: AdamWOptions,
): void {
  const { param, m, v, grad, scalars, norm } = tensors;
  checkShape(g, 'adamw', 'grad', grad, ...param.shape);
  g.op(
    'adamw',
    { param, m, v },
    { grad, scalars, norm },
    {
      beta1: options.beta1,
      beta2: options.beta2,
      eps: options.eps,
      weight_decay: options.weightDecay,
      clip: options.clip,
      scale: options.scale,
    },
  );
}
