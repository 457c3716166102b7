import type { Graph } from '../graph.ts';
import type { Tensor } from '../tensor.ts';
import { checkDType, checkShape, sizes } from './check.ts';

export interface CausalConvOptions {
  /** (E) */
  bias?: Tensor | undefined;
  /** (B, K-1, E): the inputs before x, oldest first; zeros when left out. */
  state?: Tensor | undefined;
  /** (B, K-1, E): receives the last K-1 inputs; may be `state` itself. */
  stateOut?: Tensor | undefined;
  /** (B) i32: `stateOut` is the state after the first lengths[b] steps, at least 0 and at most T; after all when left out. */
  lengths?: Tensor | undefined;
  /** Apply SiLU to the result. */
  silu?: boolean;
}

/**
 * Depthwise causal convolution: y[t] = bias + sum_k weight[k] x[t - (K-1) + k].
 * @param x (B, T, E)
 * @param weight (E, K)
 * @returns (B, T, E)
 */
export function causalConv1d(g: Graph, x: Tensor, weight: Tensor, options: CausalConvOptions = {}): Tensor {
  const { bias, state, stateOut, lengths, silu = false } = options;
  const [B = 0, , E = 0] = sizes(g, 'causal_conv1d', 'x', x, 'B T E');
  const [, K = 0] = sizes(g, 'causal_conv1d', 'weight', weight, 'E K');
  checkShape(g, 'causal_conv1d', 'weight', weight, E, K);
  checkShape(g, 'causal_conv1d', 'bias', bias, E);
  checkShape(g, 'causal_conv1d', 'state', state, B, K - 1, E);
  checkShape(g, 'causal_conv1d', 'state_out', stateOut, B, K - 1, E);
  checkShape(g, 'causal_conv1d', 'lengths', lengths, B);
  checkDType(g, 'causal_conv1d', 'lengths', lengths, 'i32');
  const y = g.value(x.shape, x.dtype);
  const ins = { x, weight, bias, state, lengths };
  g.op('causal_conv1d', { y, state_out: stateOut }, ins, { silu: Number(silu) }, (d, into) => {
    if (lengths) throw new Error('causal_conv1d: expected no lengths where a gradient is asked for, got some.');
    const sink = into.accumulating('weight', 'bias');
    const [dweight = g.like(weight), dbias = bias && g.like(bias)] = sink?.tensors ?? [];
    g.op(
      'causal_conv1d_grad',
      { dx: into('x') ?? g.value(x.shape, x.dtype), dweight, dbias, dstate: state && into('state') },
      { dy: d.y, x, weight, bias, state, dstate_out: d.state_out },
      { silu: Number(silu), accumulate: Number(sink?.accumulate ?? false) },
    );
  });
  return y;
}
