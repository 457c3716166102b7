// The Mamba block without selection: a diagonal state space model that does not depend on time, S4D (Gu et al. 2022), in
// a gate (Mehta et al. 2022), as a byte-level baseline. Equations: docs/baselines.md, docs/math/diagonal-ssm.md.
import { checkBoolean, checkInteger, checkNumber, checkOptions, expected } from '../errors.ts';
import type { Graph } from '../graph.ts';
import { type RecurrentLayers, RecurrentMemory, RecurrentTrail, recurrentFloats } from '../memory/recurrent.ts';
import { type Discretised, diagonalSsm, diagonalSsmConvolution, zeroOrderHold } from '../ops/diagonal-ssm.ts';
import { silu, swiglu } from '../ops/elementwise.ts';
import { embedding } from '../ops/embedding.ts';
import { linear } from '../ops/linear.ts';
import { rmsNorm } from '../ops/norm.ts';
import { split } from '../ops/shape.ts';
import type { Tensor } from '../tensor.ts';
import { gatedS4dToJson, inferGatedS4d } from '../weights/gated-s4d-json.ts';
import {
  type Architecture,
  type BaseConfig,
  type ForwardOptions,
  recomputing,
  type Weights,
  weightOf,
} from './architecture.ts';
import type { Init, ParamSpec } from './params.ts';

/** Shape of a gated S4D language model. */
export interface GatedS4dConfig extends BaseConfig {
  readonly architecture: 'gated-s4d';
  /** Inner channels (E); default 2 D. */
  readonly dInner: number;
  /** Real numbers of state per channel (N), even: half as many complex ones; default 64. */
  readonly dState: number;
}

/** A configuration with everything that follows from the width left out. */
export type PartialGatedS4dConfig = Partial<GatedS4dConfig> &
  Pick<GatedS4dConfig, 'architecture' | 'layers' | 'dModel'>;

/** What a sequence carries from id to id in one layer: complex states as pairs, f32. */
interface LayerState {
  /** (B, E, N / 2, 2) */
  h: Tensor;
  /** Where the state after the last step goes; left out: to where it came from. */
  next?: Tensor;
  /** (T, B, E * N): the states after every step of a verify pass. */
  kept?: Tensor;
}

type S4dOptions = ForwardOptions<readonly LayerState[]>;

const EMBEDDING = 'backbone.embedding.weight';

/** @throws TypeError or RangeError naming the field */
export function completeGatedS4d(config: Partial<GatedS4dConfig>): GatedS4dConfig {
  const where = 'config';
  const own = ['architecture', 'layers', 'dModel', 'dInner', 'dState', 'vocab', 'tied', 'normEps'];
  checkOptions(where, config, own);
  const size = (name: string, value: unknown, max: number) => checkInteger(where, name, value, { min: 1, max });
  const dModel = size('dModel', config.dModel, 65536);
  const dState = checkInteger(where, 'dState', config.dState ?? 64, { min: 2, max: 256 });
  if (dState % 2 !== 0) throw new RangeError(expected(where, 'dState', 'be even', `${dState}`));
  return {
    architecture: 'gated-s4d',
    layers: size('layers', config.layers, 1024),
    dModel,
    dInner: size('dInner', config.dInner ?? 2 * dModel, 1 << 20),
    dState,
    vocab: checkInteger(where, 'vocab', config.vocab ?? 256, { min: 2, max: 1 << 20 }),
    tied: checkBoolean(where, 'tied', config.tied ?? false),
    normEps: checkNumber(where, 'normEps', config.normEps ?? 1e-5, { min: 0, max: 1 }),
  };
}

/** Parameters in the order of the file: projections start as Mamba's, the SSM as S4D-Lin. */
export function gatedS4dParams(c: GatedS4dConfig): ParamSpec[] {
  const { dModel: D, dInner: E, vocab: V } = c;
  const M = c.dState / 2;
  const constant = (value: number): Init => ({ kind: 'constant', value });
  const fanIn = (n: number): Init => ({ kind: 'uniform', bound: 1 / Math.sqrt(n) });
  const layer = (l: number): ParamSpec[] => {
    const p = `backbone.layers.${l}.mixer`;
    return [
      { name: `backbone.layers.${l}.norm.weight`, shape: [D], init: constant(1) },
      { name: `${p}.in_proj.weight`, shape: [2 * E, D], init: fanIn(D) },
      { name: `${p}.log_dt`, shape: [E], init: { kind: 'log-uniform', min: 1e-3, max: 1e-1 } },
      { name: `${p}.log_A_real`, shape: [E, M], init: constant(Math.log(0.5)) },
      { name: `${p}.A_imag`, shape: [E, M], init: { kind: 'ramp', slope: Math.PI } },
      { name: `${p}.C`, shape: [E, M, 2], init: { kind: 'normal', std: Math.SQRT1_2 } },
      { name: `${p}.D`, shape: [E], init: constant(1) },
      { name: `${p}.out_proj.weight`, shape: [D, E], init: fanIn(E * c.layers) },
    ];
  };
  return [
    { name: EMBEDDING, shape: [V, D], init: { kind: 'normal', std: 0.02 } },
    ...Array.from({ length: c.layers }, (_, l) => layer(l)).flat(),
    { name: 'backbone.norm_f.weight', shape: [D], init: constant(1) },
    ...(c.tied ? [] : [{ name: 'lm_head.weight', shape: [V, D], init: fanIn(D) }]),
  ];
}

const headOf = ({ tied }: GatedS4dConfig) => (tied ? EMBEDDING : 'lm_head.weight');

const carried = (c: GatedS4dConfig): RecurrentLayers<LayerState> => ({
  layers: c.layers,
  shapes: [[c.dInner, c.dState / 2, 2]],
  layer: ([h], { next: [next] = [], kept: [kept] = [] }) => ({
    h: h as Tensor,
    ...(next && { next }),
    ...(kept && { kept }),
  }),
});

/**
 * The residual stream before the final norm: from states as a recurrence; without them, from nothing, as a convolution by
 * FFT, which has gradients.
 * @param ids (B, T) bytes or token ids
 * @returns (B, T, D)
 */
export function gatedS4dBackbone(
  g: Graph,
  c: GatedS4dConfig,
  w: Weights,
  ids: Tensor,
  options: S4dOptions = {},
): Tensor {
  let x = g.scope('embedding', () => embedding(g, ids, weightOf(w, EMBEDDING)));
  for (let l = 0; l < c.layers; l++) {
    x = g.scope(`layers.${l}`, () => block(g, c, w, l, x, options.state?.[l], options));
  }
  return x;
}

/** x + out_proj(ssm(silu(u)) * silu(z)), u and z from in_proj(norm(x)). */
function block(
  g: Graph,
  c: GatedS4dConfig,
  w: Weights,
  l: number,
  x: Tensor,
  state: LayerState | undefined,
  { activations, recompute = 'none' }: S4dOptions,
): Tensor {
  const p = (name: string) => weightOf(w, `backbone.layers.${l}.mixer.${name}`);
  const project = (h: Tensor, name: string, add?: Tensor) => {
    const scale = w.get(`backbone.layers.${l}.mixer.${name}.weight.scale`);
    return g.scope(name, () => linear(g, h, p(`${name}.weight`), { scale, add }));
  };
  const { costly, cheap } = recomputing(g, recompute);
  const h = cheap(() => rmsNorm(g, x, weightOf(w, `backbone.layers.${l}.norm.weight`), c.normEps, activations));
  const [u, z] = split(
    costly(() => project(h, 'in_proj')),
    c.dInner,
    c.dInner,
  ) as [Tensor, Tensor];
  const gated = cheap(() => {
    const inputs = { ...discretised(g, w, l), u: silu(g, u), C: p('C'), D: p('D') };
    const y = state
      ? diagonalSsm(g, inputs, { state: state.h, stateOut: state.next ?? state.h, kept: state.kept })
      : diagonalSsmConvolution(g, inputs);
    return swiglu(g, z, y);
  });
  return project(gated, 'out_proj', x); // the next layer's input: always kept
}

/** Names under which weights that do not change may hold what `zeroOrderHold` makes of them. */
const discretisedNames = (l: number) => [`backbone.layers.${l}.mixer.Ab`, `backbone.layers.${l}.mixer.Bb`] as const;

/** The SSM of layer l in discrete time. */
function discretised(g: Graph, w: Weights, l: number): Discretised {
  const [Ab, Bb] = discretisedNames(l).map((name) => w.get(name));
  if (Ab && Bb) return { Ab, Bb };
  const p = (name: string) => weightOf(w, `backbone.layers.${l}.mixer.${name}`);
  return zeroOrderHold(g, p('log_dt'), p('log_A_real'), p('A_imag'));
}

function derived(g: Graph, c: GatedS4dConfig, w: Weights): Map<string, Tensor> {
  const layer = (l: number) => {
    const { Ab, Bb } = discretised(g, w, l);
    const [nameOfAb, nameOfBb] = discretisedNames(l);
    return [
      [nameOfAb, Ab],
      [nameOfBb, Bb],
    ] as const;
  };
  return new Map(Array.from({ length: c.layers }, (_, l) => layer(l)).flat());
}

/** Final norm and head: (..., D) to logits (..., V) of x's dtype. */
export function gatedS4dHead(
  g: Graph,
  c: GatedS4dConfig,
  w: Weights,
  x: Tensor,
  { activations }: Pick<S4dOptions, 'activations'> = {},
): Tensor {
  const name = headOf(c);
  const h = g.scope('norm_f', () => rmsNorm(g, x, weightOf(w, 'backbone.norm_f.weight'), c.normEps, activations));
  return g.scope('lm_head', () => linear(g, h, weightOf(w, name), { scale: w.get(`${name}.scale`), dtype: x.dtype }));
}

function matrices(c: GatedS4dConfig): string[] {
  const layer = (l: number) => ['in_proj', 'out_proj'].map((name) => `backbone.layers.${l}.mixer.${name}.weight`);
  return [...Array.from({ length: c.layers }, (_, l) => layer(l)).flat(), headOf(c)];
}

/** FLOPs of the SSM of a layer for one id as a recurrence, D and the gate included; the rest are matrix products. */
export function gatedS4dScanFlops({ dInner: E, dState: N }: GatedS4dConfig): number {
  return E * (7 * N + 3);
}

/** A diagonal state space model in a gate: Mamba without selection. */
export const gatedS4d: Architecture<GatedS4dConfig> = {
  name: 'gated-s4d',
  complete: completeGatedS4d,
  subword: { tied: true },
  params: gatedS4dParams,
  matrices,
  narrowable: /(^backbone\.embedding|^lm_head|\.(in|out)_proj)\.weight$/,
  int8: /\.(in|out)_proj\.weight$/,
  derived,
  backbone: gatedS4dBackbone,
  head: gatedS4dHead,
  memory: (device, c, { batch, mostVerified }) => new RecurrentMemory(device, carried(c), batch, mostVerified),
  trail: (device, c, slots, memory) => new RecurrentTrail(device, carried(c), slots, memory),
  state: {
    magic: 'MBG1',
    names: '(layers, inner channels, states, width, vocab)',
    signature: (c) => [c.layers, c.dInner, c.dState, c.dModel, c.vocab],
    floats: (c) => recurrentFloats(carried(c)),
  },
  flops: (c) => c.layers * (6 * c.dModel * c.dInner + gatedS4dScanFlops(c)) + 2 * c.dModel * c.vocab,
  words: ({ layers, dModel, dState }) => `a gated S4D with ${layers} layers of ${dModel} and ${dState} states`,
  infer: inferGatedS4d,
  toJson: gatedS4dToJson,
};
