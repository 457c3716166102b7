import type { Graph } from '../graph.ts';
import { accumulatorDType, type Tensor } from '../tensor.ts';
import { checkDType, checkShape, sizes } from './check.ts';

/** Steps between the states that a training forward pass keeps for its gradient. */
export const SCAN_CHUNK = 64;

export interface SelectiveScanInputs {
  /** (B, T, E) */
  u: Tensor;
  /** (B, T, E): step sizes, before bias and softplus. */
  delta: Tensor;
  /** (E, N), negative */
  A: Tensor;
  /** (B, T, N) */
  B: Tensor;
  /** (B, T, N) */
  C: Tensor;
  /** (E): skip connection. */
  D?: Tensor | undefined;
  /** (B, T, E): gate; the result is multiplied by silu(z). */
  z?: Tensor | undefined;
  /** (E) */
  deltaBias?: Tensor | undefined;
  /** (B, E, N): the state before the first step; zeros when left out. */
  state?: Tensor | undefined;
  /** (B) i32: steps of each sequence that count, the first ones; from there on its state stays. All when left out. */
  lengths?: Tensor | undefined;
}

export interface SelectiveScanOptions {
  /** Apply softplus to delta + deltaBias. */
  softplus?: boolean;
  /** (B, E, N): receives the state after the last step; may be `state` itself. */
  stateOut?: Tensor | undefined;
  /** (T, B, E*N): receives the state after every step, so that any prefix can be accepted later. */
  kept?: Tensor | undefined;
  /** Keep what the gradient needs. */
  differentiable?: boolean;
}

/**
 * Selective scan (Gu & Dao 2023, algorithm 2):
 * h[t] = exp(dt A) h[t-1] + dt B[t] u[t],  y[t] = (C[t] · h[t] + D u[t]) silu(z[t]).
 * @returns (B, T, E)
 */
export function selectiveScan(g: Graph, inputs: SelectiveScanInputs, options: SelectiveScanOptions = {}): Tensor {
  const { u, delta, A, B, C, D, z, deltaBias, state, lengths } = inputs;
  const { softplus = false, stateOut, kept, differentiable = false } = options;
  const op = 'selective_scan';
  const [nb = 0, T = 0, E = 0] = sizes(g, op, 'u', u, 'B T E');
  const [, N = 0] = sizes(g, op, 'A', A, 'E N');
  checkShape(g, op, 'delta', delta, nb, T, E);
  checkShape(g, op, 'A', A, E, N);
  checkShape(g, op, 'B', B, nb, T, N);
  checkShape(g, op, 'C', C, nb, T, N);
  checkShape(g, op, 'D', D, E);
  checkShape(g, op, 'z', z, nb, T, E);
  checkShape(g, op, 'delta_bias', deltaBias, E);
  checkShape(g, op, 'state', state, nb, E, N);
  checkShape(g, op, 'lengths', lengths, nb);
  checkDType(g, op, 'lengths', lengths, 'i32');
  checkShape(g, op, 'state_out', stateOut, nb, E, N);
  checkShape(g, op, 'kept', kept, T, nb, E * N);
  const attrs = { softplus: Number(softplus), chunk: SCAN_CHUNK };
  const y = g.value(u.shape, u.dtype);
  const chunks = differentiable
    ? g.value([nb, Math.ceil(T / SCAN_CHUNK), E * N], accumulatorDType(u.dtype))
    : undefined;
  const ins = { u, delta, A, B, C, D, z, delta_bias: deltaBias };
  g.op(op, { y, state_out: stateOut, chunks, kept }, { ...ins, state, lengths }, attrs, (d, into) => {
    if (lengths) throw new Error('selective_scan: expected no lengths where a gradient is asked for, got some.');
    if (!chunks) throw new Error('selective_scan: expected differentiable to be set on the forward pass.');
    const sink = into.accumulating('A', 'D', 'delta_bias');
    const [dA = g.like(A), dD = D && g.like(D), dBias = deltaBias && g.like(deltaBias)] = sink?.tensors ?? [];
    const outs = {
      du: into('u') ?? g.value(u.shape, u.dtype),
      ddelta: into('delta') ?? g.value(u.shape, delta.dtype),
      dA,
      dB: into('B') ?? g.value(B.shape, B.dtype),
      dC: into('C') ?? g.value(C.shape, C.dtype),
      dD,
      dz: z && (into('z') ?? g.value(u.shape, z.dtype)),
      ddelta_bias: dBias,
      dstate: state && into('state'),
    };
    g.op(
      'selective_scan_grad',
      outs,
      { dy: d.y, ...ins, chunks, dstate_out: d.state_out },
      { ...attrs, accumulate: Number(sink?.accumulate ?? false) },
    );
  });
  return y;
}
