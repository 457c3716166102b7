// The pre-norm block that all Transformers here share (docs/baselines.md): attention with rotary positions, then SwiGLU.
// D width, H heads of queries, J of keys and values, P = D / H their width, F inner width of the MLP.
import { checkInteger, expected } from '../errors.ts';
import type { Graph } from '../graph.ts';
import type { CacheState } from '../memory/cache.ts';
import { type AttentionInputs, attention } from '../ops/attention.ts';
import { swiglu } from '../ops/elementwise.ts';
import { linear } from '../ops/linear.ts';
import { rmsNorm } from '../ops/norm.ts';
import { rope, ropeCacheWrite } from '../ops/rope.ts';
import { split } from '../ops/shape.ts';
import { Tensor } from '../tensor.ts';
import { type ForwardOptions, recomputing, type Weights, weightOf } from './architecture.ts';
import type { Init, ParamSpec } from './params.ts';

/** Sizes of a stack of blocks. */
export interface BlockSizes {
  readonly layers: number;
  /** D */
  readonly dModel: number;
  /** H */
  readonly heads: number;
  /** J, dividing H */
  readonly keyHeads: number;
  /** F */
  readonly dInner: number;
}

export interface BlockConfig extends BlockSizes {
  readonly normEps: number;
  readonly ropeTheta: number;
}

/** What a block reads and leaves of its cache. */
export interface BlockCache extends Omit<CacheState, 'layers'> {
  readonly keys: Tensor;
  readonly values: Tensor;
}

/** Where steps stand in the text: step t of a sequence at length + first + t. */
export interface Place {
  /** (B) i32; left out: what the cache holds, 0 without one. */
  readonly length?: Tensor;
  /** Default 0. */
  readonly first?: number;
}

type BlockOptions = Pick<ForwardOptions, 'activations' | 'recompute'>;
type AttentionName = 'self_attn' | 'cross_attn';

/** Of a head whose number is left out: as nearly as its width divides. */
const HEAD_WIDTH = 64;

/**
 * Fills in what was left out of the sizes of a stack: heads of 64 columns, as many of keys, an inner width of 8 D / 3 rounded
 * up to a multiple of 64.
 * @param nameOf what a field is called in messages
 * @throws TypeError or RangeError naming the field
 */
export function completeBlocks(
  where: string,
  sizes: { readonly [K in keyof BlockSizes]?: BlockSizes[K] | undefined },
  nameOf: (field: keyof BlockSizes) => string = (field) => field,
): BlockSizes {
  const size = (field: keyof BlockSizes, value: unknown, max: number) =>
    checkInteger(where, nameOf(field), value, { min: 1, max });
  const dModel = size('dModel', sizes.dModel, 65536);
  const heads = size('heads', sizes.heads ?? defaultHeads(dModel), 1024);
  const keyHeads = size('keyHeads', sizes.keyHeads ?? heads, 1024);
  if (dModel % (2 * heads) !== 0) {
    const shouldBe = `split a width of ${dModel} into heads of even width`;
    throw new RangeError(expected(where, nameOf('heads'), shouldBe, `${heads}`));
  }
  if (heads % keyHeads !== 0) {
    throw new RangeError(expected(where, nameOf('keyHeads'), `divide ${heads} heads`, `${keyHeads}`));
  }
  const dInner = size('dInner', sizes.dInner ?? 64 * Math.ceil((8 * dModel) / 3 / 64), 1 << 20);
  return { layers: size('layers', sizes.layers, 1024), dModel, heads, keyHeads, dInner };
}

/** Heads of 64 columns, or of the next smaller even width that divides `dModel`. */
function defaultHeads(dModel: number): number {
  for (let width = HEAD_WIDTH; width >= 2; width -= 2) if (dModel % width === 0) return dModel / width;
  return 1;
}

/** Numbers that a step leaves in a cache of keys, and in one of values. */
export function keyColumns({ dModel, heads, keyHeads }: BlockConfig): number {
  return (dModel / heads) * keyHeads;
}

export const ONES: Init = { kind: 'constant', value: 1 };
export const NORMAL: Init = { kind: 'normal', std: 0.02 };

/**
 * Parameters of the blocks named `<prefix>layers.<l>`, initialised like GPT-2 (Radford et al. 2019).
 * @param depth layers of the residual stream in all
 */
export function blockParams(c: BlockConfig, prefix: string, depth = c.layers): ParamSpec[] {
  const layer = (l: number) => layerParams(c, `${prefix}layers.${l}`, 'self_attn', depth);
  return Array.from({ length: c.layers }, (_, l) => layer(l)).flat();
}

/** Parameters of a layer in which the residual stream attends to something else: one norm more. */
export function crossParams(c: BlockConfig, p: string, depth: number): ParamSpec[] {
  const [input, ...others] = layerParams(c, p, 'cross_attn', depth) as [ParamSpec, ...ParamSpec[]];
  return [input, { ...input, name: `${p}.context_layernorm.weight` }, ...others];
}

function layerParams(c: BlockConfig, p: string, attention: AttentionName, depth: number): ParamSpec[] {
  const { dModel: D, dInner: F } = c;
  const C = keyColumns(c);
  const out: Init = { kind: 'normal', std: 0.02 / Math.sqrt(2 * depth) };
  return [
    { name: `${p}.input_layernorm.weight`, shape: [D], init: ONES },
    { name: `${p}.${attention}.q_proj.weight`, shape: [D, D], init: NORMAL },
    { name: `${p}.${attention}.k_proj.weight`, shape: [C, D], init: NORMAL },
    { name: `${p}.${attention}.v_proj.weight`, shape: [C, D], init: NORMAL },
    { name: `${p}.${attention}.o_proj.weight`, shape: [D, D], init: out },
    { name: `${p}.post_attention_layernorm.weight`, shape: [D], init: ONES },
    { name: `${p}.mlp.gate_proj.weight`, shape: [F, D], init: NORMAL },
    { name: `${p}.mlp.up_proj.weight`, shape: [F, D], init: NORMAL },
    { name: `${p}.mlp.down_proj.weight`, shape: [D, F], init: out },
  ];
}

/** Names of the weights that products read. */
export function blockMatrices(c: BlockConfig, prefix: string): string[] {
  return blockParams(c, prefix)
    .map(({ name }) => name)
    .filter((name) => name.endsWith('_proj.weight'));
}

/** FLOPs of a step of one block that sees `keys` keys, not counting norms, softmax, rotation and SiLU. */
export function blockFlops(c: BlockConfig, keys: number): number {
  const { dModel: D, dInner: F } = c;
  return 4 * D * D + 4 * D * keyColumns(c) + 6 * D * F + 4 * D * keys;
}

/**
 * Block `l` of those named `<prefix>layers.<l>`.
 * @param x (B, T, D)
 * @param cache of keys and values, which T more are written to; left out: step t sees steps 0 ... t of x
 * @param options.place of the steps of x in the text
 * @returns (B, T, D)
 */
export function block(
  g: Graph,
  c: BlockConfig,
  w: Weights,
  prefix: string,
  l: number,
  x: Tensor,
  cache: BlockCache | undefined,
  options: BlockOptions & { place?: Place },
): Tensor {
  const layer = partsOf(g, c, w, `${prefix}layers.${l}`, options);
  const { dModel: D } = c;
  const C = keyColumns(c);
  const a = layer.norm('input_layernorm', x);
  const qkv = layer.together(a, 'self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj');
  const apart = (name: string) => layer.project(a, `self_attn.${name}_proj`);
  const [q, k, v] = (qkv ? split(qkv, D, C, C) : ['q', 'k', 'v'].map(apart)) as [Tensor, Tensor, Tensor];
  const { place = {} } = options;
  const rotate = () => rotated(g, c, { q, k, v }, qkv, place.first);
  const y = cache ? cached(g, c, { q, k, v }, cache, place) : layer.attend(layer.cheap(rotate));
  return layer.mlp(layer.project(y, 'self_attn.o_proj', x));
}

/**
 * A layer named `p` in which the last steps of a text attend to all of it.
 * @param x (B, T, D): the steps that ask
 * @param context (B, S, D) with S >= T, the text, which ends with the same step; with a cache: the steps of x
 * @param cache of the keys and values of all earlier steps of the text, which T more are written to
 * @returns (B, T, D)
 */
export function crossBlock(
  g: Graph,
  c: BlockConfig,
  w: Weights,
  p: string,
  { x, context }: { x: Tensor; context: Tensor },
  cache: BlockCache | undefined,
  options: BlockOptions,
): Tensor {
  const layer = partsOf(g, c, w, p, options);
  const C = keyColumns(c);
  const q = layer.project(layer.norm('input_layernorm', x), 'cross_attn.q_proj');
  const b = layer.norm('context_layernorm', context);
  const kv = layer.together(b, 'cross_attn.k_proj', 'cross_attn.v_proj');
  const apart = (name: string) => layer.project(b, `cross_attn.${name}_proj`);
  const [k, v] = (kv ? split(kv, C, C) : ['k', 'v'].map(apart)) as [Tensor, Tensor];
  const behind = (context.shape[1] ?? 0) - (x.shape[1] ?? 0);
  const { ropeTheta: base } = c;
  const rotate = () => ({
    q: rope(g, q, { heads: c.heads, base, first: behind }),
    k: rope(g, k, { heads: c.keyHeads, base }),
    v,
  });
  const y = cache ? cached(g, c, { q, k, v }, cache) : layer.attend(layer.cheap(rotate));
  return layer.mlp(layer.project(y, 'cross_attn.o_proj', x));
}

/** What the layer named `p` is made of. */
function partsOf(g: Graph, c: BlockConfig, w: Weights, p: string, options: BlockOptions) {
  const { activations, recompute = 'none' } = options;
  const { costly, cheap } = recomputing(g, recompute);
  const norm = (name: string, h: Tensor) =>
    cheap(() => rmsNorm(g, h, weightOf(w, `${p}.${name}.weight`), c.normEps, activations));
  const project = (h: Tensor, name: string, add?: Tensor) => {
    const weight = `${p}.${name}.weight`;
    return costly(() =>
      g.scope(name, () => linear(g, h, weightOf(w, weight), { scale: w.get(`${weight}.scale`), add })),
    );
  };
  /** One product for several matrices of the same input, where they lie together. */
  const together = (h: Tensor, ...names: string[]) => {
    const weights = names.map((name) => `${p}.${name}.weight`);
    const weight = stacked(weights.map((name) => w.get(name)));
    const scale = stacked(weights.map((name) => w.get(`${name}.scale`)));
    if (!weight || (weight.dtype === 'i8' && !scale)) return undefined;
    return costly(() => g.scope(names.join(' '), () => linear(g, h, weight, { scale })));
  };
  const attend = (turned: AttentionInputs) => costly(() => attention(g, turned, { heads: c.heads }));
  /** h + SwiGLU(norm(h)) */
  const mlp = (h: Tensor) => {
    const m = norm('post_attention_layernorm', h);
    const both = together(m, 'mlp.gate_proj', 'mlp.up_proj');
    const [gate, up] = both
      ? split(both, c.dInner, c.dInner)
      : ['mlp.gate_proj', 'mlp.up_proj'].map((name) => project(m, name));
    const inner = cheap(() => swiglu(g, gate as Tensor, up as Tensor));
    // Not by `project`: the next layer's input is always kept.
    const down = `${p}.mlp.down_proj.weight`;
    return g.scope('mlp.down_proj', () =>
      linear(g, inner, weightOf(w, down), { scale: w.get(`${down}.scale`), add: h }),
    );
  };
  return { cheap, norm, project, together, attend, mlp };
}

/** One tensor of the rows of all `parts`, where these lie one behind the other and never change. Nothing is copied. */
function stacked(parts: readonly (Tensor | undefined)[]): Tensor | undefined {
  const [first] = parts;
  let rows = 0;
  let end = first?.storage?.offset ?? 0;
  for (const t of parts) {
    const { buffer, offset } = t?.storage ?? {};
    const follows = offset === end && buffer === first?.storage?.buffer && t?.dtype === first?.dtype;
    if (!t?.frozen || !follows || !t.contiguous || t.shape.slice(1).join() !== first?.shape.slice(1).join())
      return undefined;
    rows += t.shape[0] ?? 0;
    end += t.bytes;
  }
  if (!first?.storage) return undefined;
  return new Tensor([rows, ...first.shape.slice(1)], first.dtype, first.name, { storage: first.storage, frozen: true });
}

/** Queries and keys turned by their positions, from `first` on: at once, where `together` holds both side by side. */
function rotated(
  g: Graph,
  c: BlockConfig,
  { q, k, v }: AttentionInputs,
  together: Tensor | undefined,
  first?: number,
): AttentionInputs {
  const turned = (x: Tensor, heads: number) => rope(g, x, { heads, base: c.ropeTheta, first });
  if (!together) return { q: turned(q, c.heads), k: turned(k, c.keyHeads), v };
  const both = turned(together.columns(0, q.cols + k.cols), c.heads + c.keyHeads);
  const [turnedQ, turnedK] = split(both, q.cols, k.cols) as [Tensor, Tensor];
  return { q: turnedQ, k: turnedK, v };
}

/** Most steps whose attention has the bits of one step alone: keys are cut into the same pieces for all of them. */
const ALIKE_STEPS = 8;

/** Attention over a cache, and the new steps written to it. */
function cached(g: Graph, c: BlockConfig, inputs: AttentionInputs, cache: BlockCache, place: Place = {}): Tensor {
  const { keys, values, length, positions } = cache;
  const { heads, ropeTheta: base } = c;
  const { length: position, first } = place;
  const q = ropeCacheWrite(g, inputs, { heads, base, keys, values, length, position, first });
  if (!positions) return attention(g, { q, k: keys, v: values }, { heads, length });
  const [, T = 0, D = 0] = q.shape;
  const y = g.like(q);
  for (let t = 0; t < T; t += ALIKE_STEPS) {
    const steps = Math.min(ALIKE_STEPS, T - t);
    const part = (x: Tensor) => x.reshape(T, D).slice(t, steps).reshape(1, steps, D);
    const ins = { q: part(q), k: keys, v: values, length: positions.slice(t) };
    g.op('attention', { y: part(y) }, ins, { heads });
  }
  return y;
}
