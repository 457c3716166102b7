import type { Graph } from '../graph.ts';
import { type RecurrentLayers, RecurrentMemory, RecurrentTrail, recurrentFloats } from '../memory/recurrent.ts';
import { causalConv1d } from '../ops/causal-conv.ts';
import { negExp } from '../ops/elementwise.ts';
import { embedding } from '../ops/embedding.ts';
import { linear } from '../ops/linear.ts';
import { BLOCK_ROWS, mambaBlock } from '../ops/mamba-block.ts';
import { layerNorm, rmsNorm } from '../ops/norm.ts';
import { selectiveScan } from '../ops/selective-scan.ts';
import { split } from '../ops/shape.ts';
import type { DType, Tensor } from '../tensor.ts';
import { mambaToJson } from '../weights/config-json.ts';
import { inferMamba } from '../weights/infer-mamba.ts';
import { type Architecture, type ForwardOptions, recomputing, type Weights, weightOf } from './architecture.ts';
import { completeConfig, type MambaConfig } from './config.ts';
import type { Init, ParamSpec } from './params.ts';

/** What a sequence carries from byte to byte: per layer the last K-1 convolution inputs and the SSM state, both f32. */
export interface LayerState {
  /** (B, K-1, E), oldest first */
  conv: Tensor;
  /** (B, E, N) */
  ssm: Tensor;
  /** Where the state after the last step goes; left out: to where it came from. */
  next?: { conv: Tensor; ssm: Tensor };
  /** (T, B, (K-1)*E) and (T, B, E*N): the states after every step of a verify pass. */
  keptConv?: Tensor;
  keptSsm?: Tensor;
}

type MambaOptions = ForwardOptions<readonly LayerState[]>;

/** Parameters of a Mamba language model in the order of the file, with the official initialisation. */
export function mambaParams(c: MambaConfig): ParamSpec[] {
  const { dModel: D, dInner: E, dState: N, dConv: K, dtRank: R, vocab: V } = c;
  const ones: Init = { kind: 'constant', value: 1 };
  const zeros: Init = { kind: 'constant', value: 0 };
  const norm = (name: string): ParamSpec[] => [
    { name: `${name}.weight`, shape: [D], init: ones },
    ...(c.norm === 'layer' ? [{ name: `${name}.bias`, shape: [D], init: zeros }] : []),
  ];
  /** torch.nn.Linear's default: uniform within 1 / sqrt(fan in). */
  const fanIn = (n: number, scale = 1): Init => ({ kind: 'uniform', bound: scale / Math.sqrt(n) });
  const layer = (l: number): ParamSpec[] => {
    const p = `backbone.layers.${l}.mixer`;
    return [
      ...norm(`backbone.layers.${l}.norm`),
      { name: `${p}.in_proj.weight`, shape: [2 * E, D], init: fanIn(D) },
      { name: `${p}.conv1d.weight`, shape: [E, 1, K], init: fanIn(K) },
      { name: `${p}.conv1d.bias`, shape: [E], init: fanIn(K) },
      { name: `${p}.x_proj.weight`, shape: [R + 2 * N, E], init: fanIn(E) },
      { name: `${p}.dt_proj.weight`, shape: [E, R], init: { kind: 'uniform', bound: R ** -0.5 } },
      { name: `${p}.dt_proj.bias`, shape: [E], init: { kind: 'dt-bias', min: 1e-3, max: 1e-1, floor: 1e-4 } },
      { name: `${p}.A_log`, shape: [E, N], init: { kind: 's4d-real' } },
      { name: `${p}.D`, shape: [E], init: ones },
      { name: `${p}.out_proj.weight`, shape: [D, E], init: fanIn(E, 1 / Math.sqrt(c.layers)) },
    ];
  };
  return [
    { name: 'backbone.embedding.weight', shape: [V, D], init: { kind: 'normal', std: 0.02 } },
    ...Array.from({ length: c.layers }, (_, l) => layer(l)).flat(),
    ...norm('backbone.norm_f'),
    ...(c.tied ? [] : [{ name: 'lm_head.weight', shape: [V, D], init: fanIn(D) }]),
  ];
}

const carried = (c: MambaConfig): RecurrentLayers<LayerState> => ({
  layers: c.layers,
  shapes: [
    [c.dConv - 1, c.dInner],
    [c.dInner, c.dState],
  ],
  layer([conv, ssm], { next, kept }) {
    const state = { conv: conv as Tensor, ssm: ssm as Tensor };
    const [keptConv, keptSsm] = kept ?? [];
    return {
      ...state,
      ...(next && { next: { conv: next[0] as Tensor, ssm: next[1] as Tensor } }),
      ...(keptConv && keptSsm && { keptConv, keptSsm }),
    };
  },
});

/**
 * The residual stream of a Mamba language model (Gu & Dao 2023, figure 3; MambaByte: Wang et al. 2024) before its final
 * norm. B batch, T time, D width, E inner channels, N states, R rank of delta, K convolution width.
 * @param ids (B, T) bytes or token ids
 * @returns (B, T, D)
 */
export function mambaBackbone(g: Graph, c: MambaConfig, w: Weights, ids: Tensor, options: MambaOptions = {}): Tensor {
  const [B = 0, T = 0] = ids.shape;
  const { state, lengths, blockRows = BLOCK_ROWS, batchRows = blockRows } = options;
  const fused = !lengths && B * T <= (T === 1 ? batchRows : blockRows);
  let x = g.scope('embedding', () => embedding(g, ids, weightOf(w, 'backbone.embedding.weight'))); // (B, T, D)
  for (let l = 0; l < c.layers; l++) {
    x = g.scope(`layers.${l}`, () => {
      const carried = state?.[l];
      return fused && carried ? fusedBlock(g, c, w, l, x, carried) : block(g, c, w, l, x, carried, options);
    });
  }
  return x;
}

/**
 * Final norm and head.
 * @param x (..., D)
 * @param activations of the norm's result; default: x's dtype
 * @returns logits (..., V) of x's dtype
 */
export function mambaHead(
  g: Graph,
  c: MambaConfig,
  w: Weights,
  x: Tensor,
  { activations }: Pick<MambaOptions, 'activations'> = {},
): Tensor {
  const name = headOf(c);
  const h = g.scope('norm_f', () => norm(g, c, w, 'backbone.norm_f', x, activations));
  const scale = w.get(`${name}.scale`);
  return g.scope('lm_head', () => linear(g, h, weightOf(w, name), { scale, dtype: x.dtype }));
}

function headOf(c: MambaConfig): string {
  return c.tied ? 'backbone.embedding.weight' : 'lm_head.weight';
}

/** Names of the weights that matrix products read: what a lower precision makes smaller and faster. */
export function matrixNames(c: MambaConfig): string[] {
  const projections = ['in_proj', 'x_proj', 'dt_proj', 'out_proj'];
  const layer = (l: number) => projections.map((name) => `backbone.layers.${l}.mixer.${name}.weight`);
  return [...Array.from({ length: c.layers }, (_, l) => layer(l)).flat(), headOf(c)];
}

/** x + mixer(norm(x)), op by op. */
function block(
  g: Graph,
  c: MambaConfig,
  w: Weights,
  l: number,
  x: Tensor,
  state: LayerState | undefined,
  { activations, differentiable = false, recompute = 'none', lengths }: MambaOptions,
): Tensor {
  const { dInner: E, dState: N, dtRank: R } = c;
  const p = (name: string) => weightOf(w, `backbone.layers.${l}.mixer.${name}`);
  const proj = (h: Tensor, name: string, add?: Tensor) =>
    g.scope(name, () => linear(g, h, p(`${name}.weight`), { scale: scaleOf(w, l, name), add }));

  const { costly, cheap } = recomputing(g, recompute);

  const h = cheap(() => norm(g, c, w, `backbone.layers.${l}.norm`, x, activations));
  const [xs, z] = split(
    costly(() => proj(h, 'in_proj')),
    E,
    E,
  ) as [Tensor, Tensor]; // (B, T, E) each
  const u = cheap(() =>
    causalConv1d(g, xs, p('conv1d.weight').reshape(E, c.dConv), {
      bias: w.get(`backbone.layers.${l}.mixer.conv1d.bias`),
      state: state?.conv,
      stateOut: (state?.next ?? state)?.conv,
      lengths,
      silu: true,
    }),
  );
  const [r, B, C] = split(
    costly(() => proj(u, 'x_proj')),
    R,
    N,
    N,
  ) as [Tensor, Tensor, Tensor];
  const delta = cheap(() => proj(r, 'dt_proj')); // bias and softplus happen inside the scan
  const A = decayRates(g, w, l);
  const y = cheap(() =>
    selectiveScan(
      g,
      { u, delta, A, B, C, D: p('D'), z, deltaBias: p('dt_proj.bias'), state: state?.ssm, lengths },
      { softplus: true, stateOut: (state?.next ?? state)?.ssm, differentiable, kept: state?.keptSsm },
    ),
  );
  return proj(y, 'out_proj', x); // the next layer's input: always kept
}

/** The same as one op, for decoding. */
function fusedBlock(g: Graph, c: MambaConfig, w: Weights, l: number, x: Tensor, state: LayerState): Tensor {
  const p = (name: string) => weightOf(w, `backbone.layers.${l}.mixer.${name}`);
  const normName = `backbone.layers.${l}.norm`;
  return mambaBlock(
    g,
    {
      x,
      normWeight: weightOf(w, `${normName}.weight`),
      normBias: c.norm === 'layer' ? weightOf(w, `${normName}.bias`) : undefined,
      inProj: p('in_proj.weight'),
      inScale: scaleOf(w, l, 'in_proj'),
      convWeight: p('conv1d.weight').reshape(c.dInner, c.dConv),
      convBias: w.get(`backbone.layers.${l}.mixer.conv1d.bias`),
      xProj: p('x_proj.weight'),
      xScale: scaleOf(w, l, 'x_proj'),
      dtProj: p('dt_proj.weight'),
      dtScale: scaleOf(w, l, 'dt_proj'),
      dtBias: p('dt_proj.bias'),
      A: decayRates(g, w, l),
      D: p('D'),
      outProj: p('out_proj.weight'),
      outScale: scaleOf(w, l, 'out_proj'),
      convState: state.conv,
      ssmState: state.ssm,
      convStateOut: state.next?.conv,
      ssmStateOut: state.next?.ssm,
    },
    { eps: c.normEps, keptConv: state.keptConv, keptSsm: state.keptSsm },
  );
}

/** Name under which weights that do not change may hold A = -exp(A_log), so that not every plan computes its own. */
export function decayRatesName(l: number): string {
  return `backbone.layers.${l}.mixer.A`;
}

/** A (E, N) of layer l. */
export function decayRates(g: Graph, w: Weights, l: number): Tensor {
  return w.get(decayRatesName(l)) ?? negExp(g, weightOf(w, `backbone.layers.${l}.mixer.A_log`));
}

function norm(g: Graph, c: MambaConfig, w: Weights, name: string, x: Tensor, dtype?: DType): Tensor {
  const weight = weightOf(w, `${name}.weight`);
  return c.norm === 'layer'
    ? layerNorm(g, x, weight, weightOf(w, `${name}.bias`), c.normEps, dtype)
    : rmsNorm(g, x, weight, c.normEps, dtype);
}

function scaleOf(w: Weights, l: number, name: string): Tensor | undefined {
  return w.get(`backbone.layers.${l}.mixer.${name}.weight.scale`);
}

/** Of one byte, with a multiplication and an addition as two (Wang et al. 2024, appendix). */
function flops(c: MambaConfig): number {
  const { dModel: D, dInner: E, dState: N, dConv: K, dtRank: R, vocab: V } = c;
  const products = 2 * (3 * E * D + E * (R + 2 * N) + R * E);
  const convolution = 2 * K * E;
  const scan = 3 * E * N + E * N + 2 * E * N + E; // discretisation, recurrence, readout and D
  const gate = E;
  return c.layers * (products + convolution + scan + gate) + 2 * V * D;
}

/** Mamba (Gu & Dao 2023), and MambaByte, which is one of bytes. */
export const mamba: Architecture<MambaConfig> = {
  name: 'mamba',
  complete: completeConfig,
  subword: { norm: 'rms', tied: true },
  params: mambaParams,
  matrices: matrixNames,
  narrowable: /(^backbone\.embedding|^lm_head|\.(in|x|dt|out)_proj)\.weight$/,
  // dt_proj is tiny, and the embedding is read one row a byte.
  int8: /\.(in|x|out)_proj\.weight$/,
  derived: (g, c, w) =>
    new Map(Array.from({ length: c.layers }, (_, l) => [decayRatesName(l), decayRates(g, w, l)] as const)),
  fuses: true,
  pads: true,
  backbone: mambaBackbone,
  head: mambaHead,
  memory: (device, c, { batch, mostVerified }) => new RecurrentMemory(device, carried(c), batch, mostVerified),
  trail: (device, c, slots, memory) => new RecurrentTrail(device, carried(c), slots, memory),
  state: {
    magic: 'MBS1',
    names: '(layers, inner channels, states, conv width, vocab)',
    signature: (c) => [c.layers, c.dInner, c.dState, c.dConv, c.vocab],
    floats: (c) => recurrentFloats(carried(c)),
  },
  flops,
  words: ({ layers, dModel, norm }) =>
    `a Mamba with ${layers} layers of ${dModel}, ${norm === 'rms' ? 'RMSNorm' : 'LayerNorm'}`,
  infer: inferMamba,
  toJson: mambaToJson,
};
