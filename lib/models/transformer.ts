// A Transformer like LLaMA (Touvron et al. 2023), under the tensor names of transformers' LlamaForCausalLM, over bytes or
// tokens. Equations: docs/baselines.md.
import { checkBoolean, checkInteger, checkNumber, checkOptions } from '../errors.ts';
import type { Graph } from '../graph.ts';
import { CacheMemory, type CacheState, CacheTrail, cacheFloats } from '../memory/cache.ts';
import { advance } from '../ops/attention.ts';
import { embedding } from '../ops/embedding.ts';
import { linear } from '../ops/linear.ts';
import { rmsNorm } from '../ops/norm.ts';
import type { Tensor } from '../tensor.ts';
import { inferTransformer, transformerToJson } from '../weights/transformer-json.ts';
import { type Architecture, type BaseConfig, type ForwardOptions, type Weights, weightOf } from './architecture.ts';
import type { ParamSpec } from './params.ts';
import {
  type BlockConfig,
  block,
  blockFlops,
  blockMatrices,
  blockParams,
  completeBlocks,
  keyColumns,
  NORMAL,
  ONES,
} from './transformer-block.ts';

/** Shape of a Transformer language model. */
export interface TransformerConfig extends BaseConfig, BlockConfig {
  readonly architecture: 'transformer';
  /** Heads of queries (H), dividing the width. */
  readonly heads: number;
  /** Heads of keys and values (J), dividing the heads; default: as many. */
  readonly keyHeads: number;
  /** Inner width of the MLP (F); default 8 D / 3, rounded up to a multiple of 64. */
  readonly dInner: number;
  /** Default 10000: the wave length of the i-th pair of a head of P dimensions is 2π theta^(2i/P). */
  readonly ropeTheta: number;
}

/** A configuration with everything that follows from the width left out. */
export type PartialTransformerConfig = Partial<TransformerConfig> &
  Pick<TransformerConfig, 'architecture' | 'layers' | 'dModel'>;

type TransformerOptions = ForwardOptions<CacheState>;

export const EMBEDDING = 'model.embed_tokens.weight';
const PREFIX = 'model.';
/** @throws TypeError or RangeError naming the field */
export function completeTransformer(config: Partial<TransformerConfig>): TransformerConfig {
  const where = 'config';
  const own = ['architecture', 'layers', 'dModel', 'heads', 'keyHeads', 'dInner', 'vocab', 'tied'];
  checkOptions(where, config, [...own, 'normEps', 'ropeTheta']);
  return {
    architecture: 'transformer',
    ...completeBlocks(where, config),
    vocab: checkInteger(where, 'vocab', config.vocab ?? 256, { min: 2, max: 1 << 20 }),
    tied: checkBoolean(where, 'tied', config.tied ?? false),
    normEps: checkNumber(where, 'normEps', config.normEps ?? 1e-5, { min: 0, max: 1 }),
    ropeTheta: checkNumber(where, 'ropeTheta', config.ropeTheta ?? 10000, { above: 0 }),
  };
}

export function transformerParams(c: TransformerConfig): ParamSpec[] {
  const { dModel: D, vocab: V } = c;
  return [
    { name: EMBEDDING, shape: [V, D], init: NORMAL },
    ...blockParams(c, PREFIX),
    { name: `${PREFIX}norm.weight`, shape: [D], init: ONES },
    ...(c.tied ? [] : [{ name: 'lm_head.weight', shape: [V, D], init: NORMAL }]),
  ];
}

/** The name of the head's weight. */
export const headOf = ({ tied }: Pick<BaseConfig, 'tied'>): string => (tied ? EMBEDDING : 'lm_head.weight');

/**
 * The residual stream before the final norm.
 * @param ids (B, T) bytes or token ids
 * @returns (B, T, D)
 */
export function transformerBackbone(
  g: Graph,
  c: TransformerConfig,
  w: Weights,
  ids: Tensor,
  options: TransformerOptions = {},
): Tensor {
  const { state } = options;
  let x = g.scope('embedding', () => embedding(g, ids, weightOf(w, EMBEDDING)));
  for (let l = 0; l < c.layers; l++) {
    const own = state?.layers[l];
    const cache = state && own && { ...state, ...own };
    x = g.scope(`layers.${l}`, () => block(g, c, w, PREFIX, l, x, cache, options));
  }
  if (state) advance(g, state.length, ids.shape[1] ?? 0);
  return x;
}

/** Final norm and head: (..., D) to logits (..., V) of x's dtype. */
export function transformerHead(
  g: Graph,
  c: Pick<BaseConfig, 'tied' | 'normEps'>,
  w: Weights,
  x: Tensor,
  { activations }: Pick<TransformerOptions, 'activations'> = {},
): Tensor {
  const name = headOf(c);
  const h = g.scope('norm', () => rmsNorm(g, x, weightOf(w, `${PREFIX}norm.weight`), c.normEps, activations));
  return g.scope('lm_head', () => linear(g, h, weightOf(w, name), { scale: w.get(`${name}.scale`), dtype: x.dtype }));
}

const cacheShape = (c: TransformerConfig) => ({ layers: c.layers, columns: keyColumns(c) });

export const transformer: Architecture<TransformerConfig> = {
  name: 'transformer',
  complete: completeTransformer,
  subword: { tied: true },
  params: transformerParams,
  matrices: (c) => [...blockMatrices(c, PREFIX), headOf(c)],
  narrowable: /(^model\.embed_tokens|^lm_head|_proj)\.weight$/,
  int8: /_proj\.weight$/,
  backbone: transformerBackbone,
  head: transformerHead,
  memory: (device, c, { batch, mostVerified, dtype }) =>
    new CacheMemory(device, cacheShape(c), batch, dtype, mostVerified),
  trail: (_device, _c, _slots, memory) => new CacheTrail(memory as CacheMemory),
  state: {
    magic: 'MBT1',
    names: '(layers, width, heads, key heads, vocab)',
    signature: (c) => [c.layers, c.dModel, c.heads, c.keyHeads, c.vocab],
    floats: (c, read) => cacheFloats(cacheShape(c), read),
  },
  flops: (c, window) => c.layers * blockFlops(c, (window + 1) / 2) + 2 * c.dModel * c.vocab,
  words: ({ layers, dModel, heads, keyHeads }) =>
    `a Transformer with ${layers} layers of ${dModel}, ${heads} heads and ${keyHeads} key heads`,
  infer: inferTransformer,
  toJson: transformerToJson,
};
