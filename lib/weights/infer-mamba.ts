// The Mamba that a set of tensors is, read from their names and shapes alone, then held against config.json if there is one.
//
// config.json is the less trusted of the two. The published byte models have LayerNorm with bias and a head of their
// own, while config files in circulation say rms_norm: true, and current state-spaces code ties embeddings by default:
// so the norm kind and an untied head follow the tensors, with a warning; any other contradiction is an error.
import { describe, expected, ModelFormatError } from '../errors.ts';
import type { Inferred } from '../models/architecture.ts';
import type { MambaConfig } from '../models/config.ts';
import { DEFAULT_NORM_EPS, mamba2, readConfigJson, type StatedConfig } from './config-json.ts';
import type { StoredTensor } from './stored-tensor.ts';
import { dims, inferTied, layersIn } from './tensor-checks.ts';

const EMBEDDING = 'backbone.embedding.weight';

/**
 * Infers the configuration of the Mamba that `tensors` (canonical names) hold.
 *
 * @param where names the checkpoint in messages.
 * @param configJson the parsed config.json, if there is one; a file of neither dialect is ignored with a warning.
 * @throws ModelFormatError naming both values of any contradiction with the config, or saying that the model is Mamba-2.
 */
export async function inferMamba(
  where: string,
  tensors: ReadonlyMap<string, StoredTensor>,
  configJson?: Record<string, unknown>,
): Promise<Inferred<MambaConfig>> {
  refuseMamba2(where, tensors);
  const warnings: string[] = [];
  const stated = configJson && readConfigJson(`${where}: config.json`, configJson);
  if (configJson && !stated) {
    warnings.push(`${where}: config.json has neither d_model nor hidden_size and was ignored`);
  }
  const shapes = inferShapes(where, tensors);
  if (stated) checkStated(where, shapes, stated);
  const norm = inferNorm(where, tensors, stated, warnings);
  const tied = await inferTied(where, tensors, EMBEDDING, stated?.tied, warnings);
  const normEps = stated?.normEps?.value ?? DEFAULT_NORM_EPS;
  return { config: { ...shapes, norm, tied, normEps }, warnings };
}

function refuseMamba2(where: string, tensors: ReadonlyMap<string, StoredTensor>): void {
  for (const [name, { shape }] of tensors) {
    const only2 = /\.mixer\.(norm\.weight|dt_bias)$/.test(name);
    if (only2 || (name.endsWith('.mixer.A_log') && shape.length === 1)) {
      throw mamba2(where, `${name} ${describe(shape)}, which only Mamba-2 has`);
    }
  }
}

type Shapes = Omit<MambaConfig, 'norm' | 'tied' | 'normEps'>;

function inferShapes(where: string, tensors: ReadonlyMap<string, StoredTensor>): Shapes {
  const layers = layersIn(where, tensors, 'backbone.layers.', 'backbone.layers.0.mixer.in_proj.weight');
  const [vocab, dModel] = dims(where, tensors, [EMBEDDING], 2);
  const anyLayer = (suffix: string) => Array.from({ length: layers }, (_, n) => `backbone.layers.${n}.mixer.${suffix}`);
  const [dInner, dState] = dims(where, tensors, anyLayer('A_log'), 2);
  const [, , dConv] = dims(where, tensors, anyLayer('conv1d.weight'), 3);
  const [, dtRank] = dims(where, tensors, anyLayer('dt_proj.weight'), 2);
  return {
    layers,
    dModel: dModel as number,
    dInner: dInner as number,
    dState: dState as number,
    dConv: dConv as number,
    dtRank: dtRank as number,
    vocab: vocab as number,
  };
}

function checkStated(where: string, shapes: Shapes, stated: StatedConfig): void {
  const faults: string[] = [];
  for (const field of ['layers', 'dModel', 'dInner', 'dState', 'dConv', 'dtRank'] as const) {
    const claim = stated[field];
    if (claim && claim.value !== shapes[field]) faults.push(`${claim.key} ${claim.value} but ${shapes[field]}`);
  }
  const { vocab, paddedVocab } = stated;
  if (vocab && vocab.value !== shapes.vocab && paddedVocab !== shapes.vocab) {
    const padded = paddedVocab === undefined || paddedVocab === vocab.value ? '' : ` (padded ${paddedVocab})`;
    faults.push(`${vocab.key} ${vocab.value}${padded} but ${shapes.vocab}`);
  }
  if (faults.length === 0) return;
  throw new ModelFormatError(
    expected(where, 'config.json', 'agree with the tensors', `${faults.join(', ')} in the tensors`),
  );
}

function inferNorm(
  where: string,
  tensors: ReadonlyMap<string, StoredTensor>,
  { rmsNorm }: StatedConfig = {},
  warnings: string[],
): 'rms' | 'layer' {
  if (tensors.has('backbone.norm_f.bias')) {
    if (rmsNorm?.value) {
      warnings.push(`${where}: config.json says rms_norm: true, but the norms have biases; LayerNorm is used`);
    }
    return 'layer';
  }
  // LayerNorm without its biases would be another function, not a guess to make.
  if (rmsNorm?.value === false) {
    const got = 'rms_norm: false in config.json and no backbone.norm_f.bias in the tensors';
    throw new ModelFormatError(expected(where, 'the norm kind', 'be the same in config and tensors', got));
  }
  return 'rms';
}
