// config.json and tensors of a Transformer, as transformers' LlamaForCausalLM has them (configuration_llama.py).
import { describe, expected, ModelFormatError } from '../errors.ts';
import type { Inferred } from '../models/architecture.ts';
import type { TransformerConfig } from '../models/transformer.ts';
import type { BlockSizes } from '../models/transformer-block.ts';
import { count, DEFAULT_NORM_EPS, flag, positive, type Stated } from './config-json.ts';
import type { StoredTensor } from './stored-tensor.ts';
import { isObject } from './strict-json.ts';
import { checkSizes, dims, inferTied, layersIn } from './tensor-checks.ts';

const EMBEDDING = 'model.embed_tokens.weight';
const DEFAULT_ROPE_THETA = 10000;

/**
 * Infers the configuration of the Transformer that `tensors` hold. Only the number of heads is not to be seen in them.
 *
 * @param where names the checkpoint in messages.
 * @throws ModelFormatError if config.json does not state num_attention_heads, contradicts the tensors, or asks for a
 * variant that is not supported.
 */
export async function inferTransformer(
  where: string,
  tensors: ReadonlyMap<string, StoredTensor>,
  configJson: Record<string, unknown> = {},
): Promise<Inferred<TransformerConfig>> {
  const file = `${where}: config.json`;
  refuseVariants(file, configJson);
  const warnings: string[] = [];
  const [vocab = 0] = dims(where, tensors, [EMBEDDING], 2);
  const sizes = inferBlocks(where, file, tensors, 'model.', configJson, { vocab_size: vocab });
  const tied = await inferTied(where, tensors, EMBEDDING, flag(file, configJson, 'tie_word_embeddings'), warnings);
  const normEps = positive(file, configJson, 'rms_norm_eps')?.value ?? DEFAULT_NORM_EPS;
  const ropeTheta = statedTheta(file, configJson)?.value ?? DEFAULT_ROPE_THETA;
  return { config: { architecture: 'transformer', ...sizes, vocab, tied, normEps, ropeTheta }, warnings };
}

/**
 * Sizes of the blocks named `<prefix>layers.<l>`, held against what `json` states, by the keys of LlamaForCausalLM.
 * @param file names the config.json, and the part of it that is `json`, in messages.
 * @param more other sizes to hold against it, by key
 * @throws ModelFormatError if it contradicts the tensors or does not state the number of heads, which they do not tell
 */
export function inferBlocks(
  where: string,
  file: string,
  tensors: ReadonlyMap<string, StoredTensor>,
  prefix: string,
  json: Record<string, unknown>,
  more: Readonly<Record<string, number>> = {},
): BlockSizes {
  const layers = layersIn(where, tensors, `${prefix}layers.`, `${prefix}layers.0.self_attn.q_proj.weight`);
  const first = (name: string) => dims(where, tensors, [`${prefix}layers.0.${name}.weight`], 2);
  const [, dModel = 0] = first('self_attn.q_proj');
  const [keyRows = 0] = first('self_attn.k_proj');
  const [dInner = 0] = first('mlp.gate_proj');
  const heads = count(file, json, 'num_attention_heads')?.value;
  if (heads === undefined) {
    const hint = 'The tensors do not tell.';
    throw new ModelFormatError(expected(file, 'num_attention_heads', 'be there', 'none', hint));
  }
  const keyHeads = (keyRows * heads) / dModel;
  checkSizes(where, file, json, {
    num_hidden_layers: layers,
    hidden_size: dModel,
    intermediate_size: dInner,
    ...more,
    num_key_value_heads: keyHeads,
    head_dim: dModel / heads,
  });
  return { layers, dModel, heads, keyHeads, dInner };
}

/** Everything in which a model may differ from the block of docs/baselines.md. */
function refuseVariants(file: string, json: Record<string, unknown>): void {
  const plain = (key: string, got: unknown, only: string, allowed: readonly unknown[]) => {
    if (got === undefined || got === null || allowed.includes(got)) return;
    throw new ModelFormatError(expected(file, key, `be ${only}`, describe(got), 'Other variants are not supported.'));
  };
  plain('model_type', json.model_type, 'llama', ['llama']);
  plain('hidden_act', json.hidden_act, 'silu', ['silu', 'swish']);
  plain('attention_bias', json.attention_bias, 'false', [false]);
  plain('mlp_bias', json.mlp_bias, 'false', [false]);
  for (const key of ['rope_scaling', 'rope_parameters']) {
    const rope = json[key];
    if (isObject(rope)) plain(`${key}.rope_type`, rope.rope_type ?? rope.type, 'default', ['default']);
    else plain(key, rope, 'an object', []);
  }
}

function statedTheta(file: string, json: Record<string, unknown>): Stated<number> | undefined {
  const { rope_parameters: rope } = json;
  return (isObject(rope) ? positive(file, rope, 'rope_theta') : undefined) ?? positive(file, json, 'rope_theta');
}

/** The config.json of a Transformer: LlamaForCausalLM's in either dialect, which disregards `architecture`. */
export function transformerToJson(config: TransformerConfig): Record<string, unknown> {
  return {
    architecture: 'transformer',
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    vocab_size: config.vocab,
    hidden_size: config.dModel,
    intermediate_size: config.dInner,
    num_hidden_layers: config.layers,
    num_attention_heads: config.heads,
    num_key_value_heads: config.keyHeads,
    head_dim: config.dModel / config.heads,
    hidden_act: 'silu',
    attention_bias: false,
    mlp_bias: false,
    rms_norm_eps: config.normEps,
    rope_theta: config.ropeTheta,
    rope_parameters: { rope_type: 'default', rope_theta: config.ropeTheta },
    tie_word_embeddings: config.tied,
    // Ids are bytes, or those of a tokenizer.json: none of them begins or ends a text.
    bos_token_id: null,
    eos_token_id: null,
  };
}
