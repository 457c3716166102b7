import type { Graph } from '../graph.ts';
import { causalConv1d } from '../ops/causal-conv.ts';
import { negExp } from '../ops/elementwise.ts';
import { embedding } from '../ops/embedding.ts';
import { linear } from '../ops/linear.ts';
import { BLOCK_ROWS, mambaBlock } from '../ops/mamba-block.ts';
import { layerNorm, rmsNorm } from '../ops/norm.ts';
import { selectiveScan } from '../ops/selective-scan.ts';
import { split } from '../ops/shape.ts';
import type { Tensor } from '../tensor.ts';
import type { MambaConfig } from './config.ts';
import type { Init, ParamSpec } from './params.ts';

/** Weights by canonical name; an int8 weight has its row scales beside it under `<name>.scale`. */
export type Weights = ReadonlyMap<string, Tensor>;

/** What a sequence carries from byte to byte: per layer the last K-1 convolution inputs and the SSM state, both f32. */
export interface LayerState {
  /** (B, K-1, E), oldest first */
  conv: Tensor;
  /** (B, E, N) */
  ssm: Tensor;
  /** (T, B, (K-1)*E) and (T, B, E*N): the states after every step of a verify pass. */
  keptConv?: Tensor;
  keptSsm?: Tensor;
}

export interface ForwardOptions {
  /** Carried and updated in place; left out: every sequence starts from zeros and ends nowhere (training). */
  state?: readonly LayerState[];
  /** Keep what gradients need. */
  differentiable?: boolean;
  /** Run few rows through the fused block; default true where a state is carried. */
  fused?: boolean;
}

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

/** Shapes of one layer's carried state for B sequences. */
export function layerStateShapes(c: MambaConfig, B: number): { conv: number[]; ssm: number[] } {
  return { conv: [B, c.dConv - 1, c.dInner], ssm: [B, c.dInner, c.dState] };
}

/**
 * The residual stream of a Mamba language model (Gu & Dao 2023, figure 3; MambaByte: Wang et al. 2024) before its final
 * norm. B batch, T time, D width, E inner channels, N states, R rank of delta, K convolution width.
 * @param ids (B, T) bytes or token ids
 * @returns (B, T, D)
 */
export function mambaBackbone(g: Graph, c: MambaConfig, w: Weights, ids: Tensor, options: ForwardOptions = {}): Tensor {
  const [B = 0, T = 0] = ids.shape;
  const { state, differentiable = false, fused = state !== undefined && B * T <= BLOCK_ROWS } = options;
  let x = g.scope('embedding', () => embedding(g, ids, get(w, 'backbone.embedding.weight'))); // (B, T, D)
  for (let l = 0; l < c.layers; l++) {
    x = g.scope(`layers.${l}`, () => {
      const carried = state?.[l];
      return fused && carried ? fusedBlock(g, c, w, l, x, carried) : block(g, c, w, l, x, carried, differentiable);
    });
  }
  return x;
}

/**
 * Final norm and head.
 * @param x (..., D)
 * @returns logits (..., V) f32
 */
export function mambaHead(g: Graph, c: MambaConfig, w: Weights, x: Tensor): Tensor {
  const name = c.tied ? 'backbone.embedding' : 'lm_head';
  const h = g.scope('norm_f', () => norm(g, c, w, 'backbone.norm_f', x));
  return g.scope('lm_head', () => linear(g, h, get(w, `${name}.weight`), { scale: w.get(`${name}.weight.scale`) }));
}

/** x + mixer(norm(x)), op by op. */
function block(
  g: Graph,
  c: MambaConfig,
  w: Weights,
  l: number,
  x: Tensor,
  state: LayerState | undefined,
  differentiable: boolean,
): Tensor {
  const { dInner: E, dState: N, dtRank: R } = c;
  const p = (name: string) => get(w, `backbone.layers.${l}.mixer.${name}`);
  const proj = (h: Tensor, name: string, add?: Tensor) =>
    g.scope(name, () => linear(g, h, p(`${name}.weight`), { scale: scaleOf(w, l, name), add }));

  const h = norm(g, c, w, `backbone.layers.${l}.norm`, x);
  const [xs, z] = split(proj(h, 'in_proj'), E, E) as [Tensor, Tensor]; // (B, T, E) each
  const u = causalConv1d(g, xs, p('conv1d.weight').reshape(E, c.dConv), {
    bias: w.get(`backbone.layers.${l}.mixer.conv1d.bias`),
    state: state?.conv,
    stateOut: state?.conv,
    silu: true,
  });
  const [r, B, C] = split(proj(u, 'x_proj'), R, N, N) as [Tensor, Tensor, Tensor];
  const delta = proj(r, 'dt_proj'); // bias and softplus happen inside the scan
  const y = selectiveScan(
    g,
    { u, delta, A: negExp(g, p('A_log')), B, C, D: p('D'), z, deltaBias: p('dt_proj.bias'), state: state?.ssm },
    { softplus: true, stateOut: state?.ssm, differentiable, kept: state?.keptSsm },
  );
  return proj(y, 'out_proj', x);
}

/** The same as one op, for decoding. */
function fusedBlock(g: Graph, c: MambaConfig, w: Weights, l: number, x: Tensor, state: LayerState): Tensor {
  const p = (name: string) => get(w, `backbone.layers.${l}.mixer.${name}`);
  const normName = `backbone.layers.${l}.norm`;
  return mambaBlock(
    g,
    {
      x,
      normWeight: get(w, `${normName}.weight`),
      normBias: c.norm === 'layer' ? get(w, `${normName}.bias`) : undefined,
      inProj: p('in_proj.weight'),
      inScale: scaleOf(w, l, 'in_proj'),
      convWeight: p('conv1d.weight').reshape(c.dInner, c.dConv),
      convBias: w.get(`backbone.layers.${l}.mixer.conv1d.bias`),
      xProj: p('x_proj.weight'),
      xScale: scaleOf(w, l, 'x_proj'),
      dtProj: p('dt_proj.weight'),
      dtScale: scaleOf(w, l, 'dt_proj'),
      dtBias: p('dt_proj.bias'),
      A: negExp(g, p('A_log')),
      D: p('D'),
      outProj: p('out_proj.weight'),
      outScale: scaleOf(w, l, 'out_proj'),
      convState: state.conv,
      ssmState: state.ssm,
    },
    { eps: c.normEps, keptConv: state.keptConv, keptSsm: state.keptSsm },
  );
}

function norm(g: Graph, c: MambaConfig, w: Weights, name: string, x: Tensor): Tensor {
  const weight = get(w, `${name}.weight`);
  return c.norm === 'layer'
    ? layerNorm(g, x, weight, get(w, `${name}.bias`), c.normEps)
    : rmsNorm(g, x, weight, c.normEps);
}

function scaleOf(w: Weights, l: number, name: string): Tensor | undefined {
  return w.get(`backbone.layers.${l}.mixer.${name}.weight.scale`);
}

function get(w: Weights, name: string): Tensor {
  const t = w.get(name);
  if (!t) throw new Error(`mamba: no weight named ${name}`);
  return t;
}
