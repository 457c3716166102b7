// config.json and tensors of a gated S4D: a format of this package (docs/baselines.md).
import type { Inferred } from '../models/architecture.ts';
import type { GatedS4dConfig } from '../models/gated-s4d.ts';
import { type ConfigDialect, DEFAULT_NORM_EPS, flag, positive, refuseHf } from './config-json.ts';
import type { StoredTensor } from './stored-tensor.ts';
import { checkSizes, dims, inferTied, layersIn } from './tensor-checks.ts';

const EMBEDDING = 'backbone.embedding.weight';

/**
 * Infers the configuration of the gated S4D that `tensors` hold.
 * @param where names the checkpoint in messages.
 * @throws ModelFormatError if config.json contradicts the tensors
 */
export async function inferGatedS4d(
  where: string,
  tensors: ReadonlyMap<string, StoredTensor>,
  configJson: Record<string, unknown> = {},
): Promise<Inferred<GatedS4dConfig>> {
  const file = `${where}: config.json`;
  const warnings: string[] = [];
  const layers = layersIn(where, tensors, 'backbone.layers.', 'backbone.layers.0.mixer.log_A_real');
  const [vocab = 0, dModel = 0] = dims(where, tensors, [EMBEDDING], 2);
  const [dInner = 0, pairs = 0] = dims(where, tensors, ['backbone.layers.0.mixer.log_A_real'], 2);
  const dState = 2 * pairs;
  const stated = { d_model: dModel, n_layer: layers, d_inner: dInner, d_state: dState, vocab_size: vocab };
  checkSizes(where, file, configJson, stated);
  const tied = await inferTied(where, tensors, EMBEDDING, flag(file, configJson, 'tie_embeddings'), warnings);
  const normEps = positive(file, configJson, 'rms_norm_eps')?.value ?? DEFAULT_NORM_EPS;
  return { config: { architecture: 'gated-s4d', layers, dModel, dInner, dState, vocab, tied, normEps }, warnings };
}

/** The config.json of a gated S4D. @throws ModelFormatError for transformers, which has no such model */
export function gatedS4dToJson(c: GatedS4dConfig, dialect: ConfigDialect): Record<string, unknown> {
  refuseHf('a gated S4D', dialect);
  return {
    architecture: 'gated-s4d',
    d_model: c.dModel,
    n_layer: c.layers,
    d_inner: c.dInner,
    d_state: c.dState,
    vocab_size: c.vocab,
    rms_norm_eps: c.normEps,
    tie_embeddings: c.tied,
  };
}
