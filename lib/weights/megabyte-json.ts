// config.json and tensors of a MegaByte: a format of this package (docs/baselines.md).
import { describe, expected, ModelFormatError } from '../errors.ts';
import type { Inferred } from '../models/architecture.ts';
import type { MegabyteConfig } from '../models/megabyte.ts';
import type { BlockSizes } from '../models/transformer-block.ts';
import { type ConfigDialect, DEFAULT_NORM_EPS, flag, positive, refuseHf } from './config-json.ts';
import type { StoredTensor } from './stored-tensor.ts';
import { isObject } from './strict-json.ts';
import { checkSizes, dims, inferTied } from './tensor-checks.ts';
import { inferBlocks } from './transformer-json.ts';

const EMBEDDING = 'local.embed_tokens.weight';
const DEFAULT_ROPE_THETA = 10000;

/**
 * Infers the configuration of the MegaByte that `tensors` hold. Only the numbers of heads are not to be seen in them.
 * @param where names the checkpoint in messages.
 * @throws ModelFormatError if config.json does not state them, or contradicts the tensors
 */
export async function inferMegabyte(
  where: string,
  tensors: ReadonlyMap<string, StoredTensor>,
  configJson: Record<string, unknown> = {},
): Promise<Inferred<MegabyteConfig>> {
  const file = `${where}: config.json`;
  const warnings: string[] = [];
  const [vocab = 0] = dims(where, tensors, [EMBEDDING], 2);
  const [, idWidth = 0] = dims(where, tensors, ['global.embed_tokens.weight'], 2);
  const part = (name: 'global' | 'local'): BlockSizes => {
    const json = configJson[name];
    if (!isObject(json)) throw new ModelFormatError(expected(file, name, 'be an object', describe(json)));
    return inferBlocks(where, `${file}: ${name}`, tensors, `${name}.`, json);
  };
  const [global, local] = [part('global'), part('local')];
  const patchSize = global.dModel / idWidth;
  checkSizes(where, file, configJson, { vocab_size: vocab, patch_size: patchSize });
  const tied = await inferTied(where, tensors, EMBEDDING, flag(file, configJson, 'tie_word_embeddings'), warnings);
  return {
    config: {
      architecture: 'megabyte',
      patchSize,
      globalLayers: global.layers,
      globalDModel: global.dModel,
      globalHeads: global.heads,
      globalKeyHeads: global.keyHeads,
      globalDInner: global.dInner,
      ...local,
      vocab,
      tied,
      normEps: positive(file, configJson, 'rms_norm_eps')?.value ?? DEFAULT_NORM_EPS,
      ropeTheta: positive(file, configJson, 'rope_theta')?.value ?? DEFAULT_ROPE_THETA,
    },
    warnings,
  };
}

/** The config.json of a MegaByte. @throws ModelFormatError for transformers, which has no such model */
export function megabyteToJson(c: MegabyteConfig, dialect: ConfigDialect): Record<string, unknown> {
  refuseHf('a MegaByte', dialect);
  return {
    architecture: 'megabyte',
    vocab_size: c.vocab,
    patch_size: c.patchSize,
    global: {
      hidden_size: c.globalDModel,
      num_hidden_layers: c.globalLayers,
      num_attention_heads: c.globalHeads,
      num_key_value_heads: c.globalKeyHeads,
      intermediate_size: c.globalDInner,
    },
    local: {
      hidden_size: c.dModel,
      num_hidden_layers: c.layers,
      num_attention_heads: c.heads,
      num_key_value_heads: c.keyHeads,
      intermediate_size: c.dInner,
    },
    rms_norm_eps: c.normEps,
    rope_theta: c.ropeTheta,
    tie_word_embeddings: c.tied,
  };
}
