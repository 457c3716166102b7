import { expected } from '../errors.ts';
import type { Graph } from '../graph.ts';
import type { Tensor } from '../tensor.ts';
import { checkShape, sizes } from './check.ts';

/** A diagonal state space model in discrete time. Pairs are real and imaginary part of complex numbers. */
export interface Discretised {
  /** (E, M, 2): what a state keeps of itself from step to step. */
  Ab: Tensor;
  /** (E, M, 2): what it takes from the input. */
  Bb: Tensor;
}

/**
 * Zero-order hold (S4D, Gu et al. 2022) with B = 1: A = -exp(logAReal) + i AImag, dt = exp(logDt), Ab = exp(dt A),
 * Bb = (Ab - 1) / A.
 * @param logDt (E)
 * @param logAReal (E, M): M complex states a channel, each standing for itself and its conjugate
 * @param AImag (E, M)
 */
export function zeroOrderHold(g: Graph, logDt: Tensor, logAReal: Tensor, AImag: Tensor): Discretised {
  const op = 'zero_order_hold';
  const [E = 0, M = 0] = sizes(g, op, 'log_A_real', logAReal, 'E M');
  checkShape(g, op, 'log_dt', logDt, E);
  checkShape(g, op, 'A_imag', AImag, E, M);
  const Ab = g.value([E, M, 2], logAReal.dtype);
  const Bb = g.like(Ab);
  const ins = { log_dt: logDt, log_A_real: logAReal, A_imag: AImag };
  g.op(op, { Ab, Bb }, ins, {}, (d, into) => {
    const names = ['log_dt', 'log_A_real', 'A_imag'] as const;
    const sink = into.accumulating(...names);
    const outs = names.map((name, i) => [`d${name}`, sink?.tensors[i] ?? g.like(ins[name])] as const);
    if (!d.Ab || !d.Bb) throw new Error(`${op}: expected Ab and Bb to be used together.`);
    const attrs = { accumulate: Number(sink?.accumulate ?? false) };
    g.op('zero_order_hold_grad', Object.fromEntries(outs), { dAb: d.Ab, dBb: d.Bb, ...ins }, attrs);
  });
  return { Ab, Bb };
}

export interface DiagonalSsmInputs extends Discretised {
  /** (B, T, E) */
  u: Tensor;
  /** (E, M, 2) */
  C: Tensor;
  /** (E): skip connection. */
  D?: Tensor | undefined;
}

export interface DiagonalSsmSteps {
  /** (B, E, M, 2): the state before the first step; zeros when left out. */
  state?: Tensor | undefined;
  /** (B, E, M, 2): receives the state after the last step; may be `state` itself. */
  stateOut?: Tensor | undefined;
  /** (T, B, E*N), N = 2 M: receives the state after every step, so that any prefix can be accepted later. */
  kept?: Tensor | undefined;
}

/** @returns E and M. @throws ShapeError */
function checkModel(g: Graph, op: string, { Ab, Bb, C, D }: Omit<DiagonalSsmInputs, 'u'>): [number, number] {
  const [E = 0, M = 0, parts] = sizes(g, op, 'Ab', Ab, 'E M 2');
  if (parts !== 2) throw new TypeError(expected(op, 'Ab', 'hold pairs', `${parts} numbers a state`));
  checkShape(g, op, 'Bb', Bb, E, M, 2);
  checkShape(g, op, 'C', C, E, M, 2);
  checkShape(g, op, 'D', D, E);
  return [E, M];
}

/**
 * A diagonal state space model step by step, from and to a state:
 * h[t] = Ab h[t-1] + Bb u[t],  y[t] = 2 Re(sum over M of C h[t]) + D u[t]. For decoding and prompts; it has no gradient.
 * A sequence gives the same bits however it is cut.
 * @returns (B, T, E)
 */
export function diagonalSsm(g: Graph, inputs: DiagonalSsmInputs, steps: DiagonalSsmSteps = {}): Tensor {
  const op = 'diagonal_ssm';
  const { u, Ab, Bb, C, D } = inputs;
  const { state, stateOut, kept } = steps;
  const [E, M] = checkModel(g, op, inputs);
  const [nb = 0, T = 0] = sizes(g, op, 'u', u, 'B T E');
  checkShape(g, op, 'u', u, nb, T, E);
  checkShape(g, op, 'state', state, nb, E, M, 2);
  checkShape(g, op, 'state_out', stateOut, nb, E, M, 2);
  checkShape(g, op, 'kept', kept, T, nb, E * M * 2);
  const y = g.value(u.shape, u.dtype);
  g.op(op, { y, state_out: stateOut, kept }, { u, Ab, Bb, C, D, state });
  return y;
}

/**
 * The same from a state of zeros as a convolution by FFT, with gradients: for training.
 * @returns (B, T, E)
 */
export function diagonalSsmConvolution(g: Graph, inputs: DiagonalSsmInputs): Tensor {
  const { u, Ab, Bb, C, D } = inputs;
  checkModel(g, 'ssm_kernel', inputs);
  const [, T = 0] = sizes(g, 'ssm_kernel', 'u', u, 'B T E');
  return longConv(g, u, ssmKernel(g, { Ab, Bb, C }, T), D);
}

/** The first T steps of an SSM's answer to a pulse, k(E, T): k[e, l] = 2 Re(sum over M of C Bb Ab^l). */
function ssmKernel(g: Graph, { Ab, Bb, C }: Discretised & { C: Tensor }, T: number): Tensor {
  const k = g.value([Ab.shape[0] ?? 0, T], Ab.dtype);
  g.op('ssm_kernel', { k }, { Ab, Bb, C }, {}, (d, into) => {
    const sink = into.accumulating('C');
    const outs = { dAb: into('Ab') ?? g.like(Ab), dBb: into('Bb') ?? g.like(Bb), dC: sink?.tensors[0] ?? g.like(C) };
    g.op('ssm_kernel_grad', outs, { dk: d.k, Ab, Bb, C }, { accumulate: Number(sink?.accumulate ?? false) });
  });
  return k;
}

/**
 * Causal convolution as long as the sequence, by FFT: y[t] = sum over l <= t of k[l] u[t-l], + D u[t].
 * @param u (B, T, E)
 * @param k (E, T)
 * @param D (E)
 * @returns (B, T, E)
 */
export function longConv(g: Graph, u: Tensor, k: Tensor, D?: Tensor): Tensor {
  const op = 'long_conv';
  const [, T = 0, E = 0] = sizes(g, op, 'u', u, 'B T E');
  checkShape(g, op, 'k', k, E, T);
  checkShape(g, op, 'D', D, E);
  const y = g.value(u.shape, u.dtype);
  g.op(op, { y }, { u, k, D }, {}, (d, into) => {
    const sink = D && into.accumulating('D');
    const outs = { du: into('u') ?? g.like(u), dk: into('k') ?? g.like(k), dD: D && (sink?.tensors[0] ?? g.like(D)) };
    g.op('long_conv_grad', outs, { dy: d.y, u, k, D }, { accumulate: Number(sink?.accumulate ?? false) });
  });
  return y;
}
