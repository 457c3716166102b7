// PerceiverAR (Hawthorne et al. 2022): the last positions of a text are latents, which attend once to all of it and then to
// each other. Equations and names: docs/baselines.md. N latents in a block; blocks start at multiples of S.
import { checkInteger, checkOptions } from '../errors.ts';
import type { Graph } from '../graph.ts';
import type { CacheState } from '../memory/cache.ts';
import {
  type BlockState,
  LatentMemory,
  type LatentShape,
  type LatentState,
  LatentTrail,
  latentFloats,
} from '../memory/latents.ts';
import { advance, cacheWrite } from '../ops/attention.ts';
import { embedding } from '../ops/embedding.ts';
import { cast, concat } from '../ops/shape.ts';
import type { Tensor } from '../tensor.ts';
import { inferPerceiverAr, perceiverArToJson } from '../weights/perceiver-ar-json.ts';
import { type Architecture, type ForwardOptions, type Weights, weightOf } from './architecture.ts';
import type { ParamSpec } from './params.ts';
import { completeTransformer, EMBEDDING, headOf, type TransformerConfig, transformerHead } from './transformer.ts';
import {
  block,
  blockFlops,
  blockParams,
  crossBlock,
  crossParams,
  keyColumns,
  NORMAL,
  ONES,
  type Place,
} from './transformer-block.ts';

/** Shape of a PerceiverAR: `layers` counts the layers of self-attention, beside which there is one of cross-attention. */
export interface PerceiverArConfig extends Omit<TransformerConfig, 'architecture'> {
  readonly architecture: 'perceiver-ar';
  /** Most latents (N), which are also the positions of a training window that are learned from; default 1024. */
  readonly latents: number;
  /** Positions from the start of one block of latents to the next (S), at most N; default half of them. */
  readonly latentStride: number;
}

/** A configuration with everything that follows from the width left out. */
export type PartialPerceiverArConfig = Partial<PerceiverArConfig> &
  Pick<PerceiverArConfig, 'architecture' | 'layers' | 'dModel'>;

type PerceiverArOptions = ForwardOptions<LatentState>;

const PREFIX = 'model.';
const CROSS = 'model.cross';
/** So that a state names it in 16 bits. */
const MOST_LATENTS = 32768;

/** @throws TypeError or RangeError naming the field */
export function completePerceiverAr(config: Partial<PerceiverArConfig>): PerceiverArConfig {
  const where = 'config';
  const own = [
    'architecture',
    'layers',
    'dModel',
    'heads',
    'keyHeads',
    'dInner',
    'vocab',
    'tied',
    'normEps',
    'ropeTheta',
  ];
  checkOptions(where, config, [...own, 'latents', 'latentStride']);
  const { latents: most, latentStride: stride, ...others } = config;
  const blocks = completeTransformer({ ...others, architecture: 'transformer' });
  const latents = checkInteger(where, 'latents', most ?? 1024, { min: 1, max: MOST_LATENTS });
  const half = Math.ceil(latents / 2);
  const latentStride = checkInteger(where, 'latentStride', stride ?? half, { min: 1, max: latents });
  return { ...blocks, architecture: 'perceiver-ar', latents, latentStride };
}

export function perceiverArParams(c: PerceiverArConfig): ParamSpec[] {
  const { dModel: D, vocab: V } = c;
  const depth = c.layers + 1;
  return [
    { name: EMBEDDING, shape: [V, D], init: NORMAL },
    ...crossParams(c, CROSS, depth),
    ...blockParams(c, PREFIX, depth),
    { name: `${PREFIX}norm.weight`, shape: [D], init: ONES },
    ...(c.tied ? [] : [{ name: 'lm_head.weight', shape: [V, D], init: NORMAL }]),
  ];
}

/**
 * The residual stream before the final norm.
 * @param ids (B, T) bytes or token ids
 * @param options.state one that can read T more ids before a block of latents is full
 * @returns (B, T, D); without a state (B, min(N, T), D), of the last positions
 */
export function perceiverArBackbone(
  g: Graph,
  c: PerceiverArConfig,
  w: Weights,
  ids: Tensor,
  options: PerceiverArOptions = {},
): Tensor {
  const x = g.scope('embedding', () => embedding(g, ids, weightOf(w, EMBEDDING)));
  const { state } = options;
  if (!state) return lastLatents(g, c, w, x, options);
  const { full } = state;
  return full === undefined ? readOn(g, c, w, x, state, options) : readBlocks(g, c, w, x, { ...state, full }, options);
}

/** A whole text, whose last positions are latents. */
function lastLatents(g: Graph, c: PerceiverArConfig, w: Weights, x: Tensor, options: PerceiverArOptions): Tensor {
  const [B = 0, T = 0, D = 0] = x.shape;
  const steps = Math.min(c.latents, T);
  // Before anything else reads x: so its gradient is there as a whole when that of these steps is added to it.
  const last = x.reshape(B, T * D).columns((T - steps) * D, steps * D);
  const z = steps === T ? x : cast(g, last, x.dtype).reshape(B, steps, D);
  const y = g.scope('cross', () => crossBlock(g, c, w, CROSS, { x: z, context: x }, undefined, options));
  return selfLayers(g, c, w, y, undefined, { first: T - steps }, options);
}

/** The next steps of a block of latents, which go on from the caches and are written to them. */
function readOn(
  g: Graph,
  c: PerceiverArConfig,
  w: Weights,
  x: Tensor,
  { context, latents, y: entered, rows }: LatentState,
  options: PerceiverArOptions,
): Tensor {
  const steps = x.shape[1] ?? 0;
  const cache = { ...context, ...layerOf(context, 0) };
  const y = g.scope('cross', () => crossBlock(g, c, w, CROSS, { x, context: x }, cache, options));
  if (latents === undefined) {
    advance(g, context.length, steps);
    return y;
  }
  cacheWrite(g, entered, y, rows);
  const h = selfLayers(g, c, w, y, latents, context, options);
  advance(g, context.length, steps);
  advance(g, latents.length, steps);
  advance(g, rows, steps);
  return h;
}

/** Whole blocks behind a full one, each from nothing: B K rows for K blocks, of which the last S steps of each are new. */
function readBlocks(
  g: Graph,
  c: PerceiverArConfig,
  w: Weights,
  x: Tensor,
  { context, y: entered, full }: LatentState & { full: number },
  options: PerceiverArOptions,
): Tensor {
  const { latents: N, latentStride: S } = c;
  const [B = 0, T = 0, D = 0] = x.shape;
  const K = T / S;
  const cache = { ...context, ...layerOf(context, 0) };
  const y = g.scope('cross', () => crossBlock(g, c, w, CROSS, { x, context: x }, cache, options)).reshape(B, T * D);
  const last = entered.reshape(B, entered.elems / B);
  const known = last.columns((full + S) * D, (N - S) * D);
  const all = S === N ? y : concat(g, [known, y]);
  const rows = all.cols / D;
  // Positions are those in the block: a product of a query and a key depends on their distance alone.
  const at = Int32Array.from({ length: B * K * N }, (_, i) => {
    const [block, step] = [Math.floor(i / N), i % N];
    return Math.floor(block / K) * rows + (block % K) * S + step;
  });
  const blocks = embedding(g, g.constant(at, [B * K, N]), all.reshape(B * rows, D));
  const h = selfLayers(g, c, w, blocks, undefined, {}, options);
  g.op('copy', { y: last.columns(0, N * D) }, { x: all.columns((rows - N) * D, N * D) });
  advance(g, context.length, T);
  return cast(g, h.reshape(B * K, N * D).columns((N - S) * D, S * D), h.dtype).reshape(B, T, D);
}

/** The layers of self-attention. @param latents their caches, and how many steps these hold */
function selfLayers(
  g: Graph,
  c: PerceiverArConfig,
  w: Weights,
  y: Tensor,
  latents: CacheState | undefined,
  place: Place,
  options: Pick<ForwardOptions, 'activations' | 'recompute'>,
): Tensor {
  let h = y;
  for (let l = 0; l < c.layers; l++) {
    const cache = latents && { ...latents, ...layerOf(latents, l) };
    h = g.scope(`layers.${l}`, () => block(g, c, w, PREFIX, l, h, cache, { ...options, place }));
  }
  return h;
}

function layerOf({ layers }: CacheState, l: number): { keys: Tensor; values: Tensor } {
  const layer = layers[l];
  if (!layer) throw new Error(`perceiver-ar: no cache of layer ${l}`);
  return layer;
}

/**
 * Fills the caches of the self layers, which are empty.
 * @param state with `latents.length` 0
 * @param y (B, L, D) f32, the last L latents of the text
 */
export function rereadLatents(
  g: Graph,
  c: PerceiverArConfig,
  w: Weights,
  { context, latents }: BlockState,
  y: Tensor,
  options: Pick<ForwardOptions, 'activations'>,
): void {
  selfLayers(g, c, w, y, latents, { length: context.length, first: -(y.shape[1] ?? 0) }, options);
}

/** Forward FLOPs of a window of `window` ids, whose last min(N, window) are latents. */
function windowFlops(c: PerceiverArConfig, window: number): { latents: number; flops: number } {
  const { dModel: D, vocab: V } = c;
  const latents = Math.min(c.latents, window);
  const context = 4 * D * keyColumns(c) * window;
  const keys = window - (latents - 1) / 2;
  const cross = 4 * D * D + 6 * D * c.dInner + 4 * D * keys;
  const each = cross + c.layers * blockFlops(c, (latents + 1) / 2) + 2 * D * V;
  return { latents, flops: context + latents * each };
}

const shapeOf = (c: PerceiverArConfig): LatentShape => ({
  layers: c.layers,
  columns: keyColumns(c),
  width: c.dModel,
  latents: c.latents,
  stride: c.latentStride,
});

const pair = (high: number, low: number) => high * 65536 + low;

export const perceiverAr: Architecture<PerceiverArConfig> = {
  name: 'perceiver-ar',
  complete: completePerceiverAr,
  subword: { tied: true },
  params: perceiverArParams,
  matrices: (c) => {
    const products = perceiverArParams(c).flatMap(({ name }) => (name.endsWith('_proj.weight') ? [name] : []));
    return [...products, headOf(c)];
  },
  narrowable: /(^model\.embed_tokens|^lm_head|_proj)\.weight$/,
  int8: /_proj\.weight$/,
  backbone: perceiverArBackbone,
  trainedRows: (c, window) => Math.min(c.latents, window),
  head: transformerHead,
  memory: (device, c, options) =>
    new LatentMemory(device, shapeOf(c), options, (g, w, state, y, forward) =>
      rereadLatents(g, c, w, state, y, forward),
    ),
  trail: (_device, _c, _slots, memory) => new LatentTrail(memory as LatentMemory),
  state: {
    magic: 'MBP1',
    names: '(layers, width, heads and key heads, latents and stride, vocab)',
    signature: (c) => [c.layers, c.dModel, pair(c.heads, c.keyHeads), pair(c.latents, c.latentStride), c.vocab],
    floats: (c, read) => latentFloats(shapeOf(c), read),
  },
  flops: (c, window) => {
    const { latents, flops } = windowFlops(c, window);
    return flops / latents;
  },
  words: ({ layers, dModel, heads, keyHeads, latents }) =>
    `a PerceiverAR with ${layers} layers of ${dModel}, ${heads} heads, ${keyHeads} key heads and ${latents} latents`,
  infer: inferPerceiverAr,
  toJson: perceiverArToJson,
};
