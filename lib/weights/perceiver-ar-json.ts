// config.json and tensors of a PerceiverAR, whose names are those of a Transformer where they mean the same
// (docs/baselines.md).
import { expected, ModelFormatError } from '../errors.ts';
import type { Inferred } from '../models/architecture.ts';
import type { PerceiverArConfig } from '../models/perceiver-ar.ts';
import { type ConfigDialect, count } from './config-json.ts';
import type { StoredTensor } from './stored-tensor.ts';
import { inferTransformer } from './transformer-json.ts';

/**
 * Infers the configuration of the PerceiverAR that `tensors` hold. The numbers of heads and latents are not to be seen in
 * them.
 *
 * @param where names the checkpoint in messages.
 * @throws ModelFormatError if config.json does not state num_attention_heads and num_latents, or contradicts the tensors.
 */
export async function inferPerceiverAr(
  where: string,
  tensors: ReadonlyMap<string, StoredTensor>,
  configJson: Record<string, unknown> = {},
): Promise<Inferred<PerceiverArConfig>> {
  const file = `${where}: config.json`;
  const { config, warnings } = await inferTransformer(where, tensors, configJson);
  const latents = count(file, configJson, 'num_latents')?.value;
  if (latents === undefined) {
    const hint = 'The tensors do not tell.';
    throw new ModelFormatError(expected(file, 'num_latents', 'be there', 'none', hint));
  }
  const latentStride = count(file, configJson, 'latent_stride')?.value ?? Math.ceil(latents / 2);
  return { config: { ...config, architecture: 'perceiver-ar', latents, latentStride }, warnings };
}

/** @throws ModelFormatError for the dialect of transformers, which has no such model */
export function perceiverArToJson(config: PerceiverArConfig, dialect: ConfigDialect): Record<string, unknown> {
  if (dialect === 'hf') {
    const hint = 'Write the "mambabyte" dialect instead.';
    throw new ModelFormatError(expected('hf config', 'the model', 'be one of transformers', 'a PerceiverAR', hint));
  }
  return {
    architecture: config.architecture,
    vocab_size: config.vocab,
    hidden_size: config.dModel,
    num_hidden_layers: config.layers,
    num_attention_heads: config.heads,
    num_key_value_heads: config.keyHeads,
    intermediate_size: config.dInner,
    num_latents: config.latents,
    latent_stride: config.latentStride,
    rms_norm_eps: config.normEps,
    rope_theta: config.ropeTheta,
    tie_word_embeddings: config.tied,
  };
}
