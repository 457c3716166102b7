// The model a set of tensors is, read from their names and shapes alone, then held against config.json if there is one.
//
// config.json is the less trusted of the two. The published byte models have LayerNorm with bias and a head of their
// own, while config files in circulation say rms_norm: true, and current state-spaces code ties embeddings by default:
// so the norm kind and an untied head follow the tensors, with a warning; any other contradiction is an error.
import { describe, expected, listNames, ModelFormatError } from '../errors.ts';
import { completeConfig, type MambaConfig } from '../models/config.ts';
import { mambaParams } from '../models/mamba.ts';
import { DEFAULT_NORM_EPS, mamba2, readConfigJson, type StatedConfig } from './config-json.ts';
import { type StoredTensor, sameContents } from './stored-tensor.ts';

export interface Inferred {
  config: MambaConfig;
  warnings: string[];
}

const EMBEDDING = 'backbone.embedding.weight';
const HEAD = 'lm_head.weight';
const MAX_LAYERS = 10_000;
/** The matrices that may be int8, with one float32 scale per row under <name>.scale. */
const QUANTIZABLE = /(^backbone\.embedding|^lm_head|\.(in|x|dt|out)_proj)\.weight$/;
const FLOATS = ['F64', 'F32', 'F16', 'BF16'];

/**
 * Infers the configuration of the model that `tensors` (canonical names) hold.
 *
 * @param where names the checkpoint in messages.
 * @param configJson the parsed config.json, if there is one; a file of neither dialect is ignored with a warning.
 * @throws ModelFormatError listing missing, extra, misshaped and wrongly typed tensors by name, naming both values of
 * any contradiction with the config, or saying that the model is Mamba-2.
 */
export async function inferConfig(
  where: string,
  tensors: ReadonlyMap<string, StoredTensor>,
  configJson?: Record<string, unknown>,
): Promise<Inferred> {
  refuseMamba2(where, tensors);
  const warnings: string[] = [];
  const stated = configJson && readConfigJson(`${where}: config.json`, configJson);
  if (configJson && !stated) {
    warnings.push(`${where}: config.json has neither d_model nor hidden_size and was ignored`);
  }
  const shapes = inferShapes(where, tensors);
  if (stated) checkStated(where, shapes, stated);
  const norm = inferNorm(where, tensors, stated, warnings);
  const tied = await inferTied(where, tensors, stated, warnings);
  const normEps = stated?.normEps?.value ?? DEFAULT_NORM_EPS;
  const config = withinLimits(where, { ...shapes, norm, tied, normEps });
  checkTensors(where, tensors, config);
  return { config, warnings };
}

/** Sizes that no op supports are a fault of the file here, not of the call. */
function withinLimits(where: string, config: MambaConfig): MambaConfig {
  try {
    return completeConfig(config);
  } catch (cause) {
    throw new ModelFormatError(expected(where, 'the model', 'have supported sizes', (cause as Error).message), {
      cause,
    });
  }
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
  let last = -1;
  for (const name of tensors.keys()) last = Math.max(last, layerIndex(name) ?? -1);
  if (last < 0) throw missing(where, ['backbone.layers.0.mixer.in_proj.weight']);
  if (last >= MAX_LAYERS) {
    throw new ModelFormatError(expected(where, 'layer numbers', `be under ${MAX_LAYERS}`, `${last}`));
  }
  const [vocab, dModel] = dims(where, tensors, [EMBEDDING], 2);
  const anyLayer = (suffix: string) =>
    Array.from({ length: last + 1 }, (_, n) => `backbone.layers.${n}.mixer.${suffix}`);
  const [dInner, dState] = dims(where, tensors, anyLayer('A_log'), 2);
  const [, , dConv] = dims(where, tensors, anyLayer('conv1d.weight'), 3);
  const [, dtRank] = dims(where, tensors, anyLayer('dt_proj.weight'), 2);
  return {
    layers: last + 1,
    dModel: dModel as number,
    dInner: dInner as number,
    dState: dState as number,
    dConv: dConv as number,
    dtRank: dtRank as number,
    vocab: vocab as number,
  };
}

function layerIndex(name: string): number | undefined {
  const digits = /^backbone\.layers\.(0|[1-9]\d*)\./.exec(name)?.[1];
  return digits === undefined ? undefined : Number(digits);
}

/** The shape of the first of `names` that is there; the others are held against it later. */
function dims(
  where: string,
  tensors: ReadonlyMap<string, StoredTensor>,
  names: readonly string[],
  rank: number,
): number[] {
  const found = names.find((name) => tensors.has(name));
  const tensor = found === undefined ? undefined : tensors.get(found);
  if (!tensor) throw missing(where, names);
  if (tensor.shape.length !== rank || tensor.shape.includes(0)) {
    const got = describe(tensor.shape);
    throw new ModelFormatError(expected(where, tensor.name, `have ${rank} dimensions, none of them 0`, got));
  }
  return tensor.shape;
}

function missing(where: string, names: readonly string[]): ModelFormatError {
  return new ModelFormatError(expected(where, 'all tensors', 'be there', `none named ${listNames(names)}`));
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

async function inferTied(
  where: string,
  tensors: ReadonlyMap<string, StoredTensor>,
  { tied }: StatedConfig = {},
  warnings: string[],
): Promise<boolean> {
  const head = tensors.get(HEAD);
  const embedding = tensors.get(EMBEDDING) as StoredTensor;
  if (!head) {
    if (tied?.value !== false) return true;
    const got = `${tied.key}: false in config.json and no ${HEAD} in the tensors`;
    throw new ModelFormatError(expected(where, 'an untied model', `have ${HEAD}`, got));
  }
  if (tied?.value === false) return false;
  if ((await sameContents(head, embedding)) && (await sameScales(tensors))) return true;
  if (tied) {
    warnings.push(
      `${where}: config.json says ${tied.key}: true, but ${HEAD} differs from the embedding; both are kept`,
    );
  }
  return false;
}

async function sameScales(tensors: ReadonlyMap<string, StoredTensor>): Promise<boolean> {
  const a = tensors.get(`${EMBEDDING}.scale`);
  const b = tensors.get(`${HEAD}.scale`);
  return a === undefined || b === undefined ? a === b : await sameContents(a, b);
}

/** Every tensor the model has, and no other, in its shape and in a dtype that weights can have. */
function checkTensors(where: string, tensors: ReadonlyMap<string, StoredTensor>, config: MambaConfig): void {
  const shapes = new Map(mambaParams(config).map(({ name, shape }) => [name, shape]));
  if (config.tied && tensors.has(HEAD)) shapes.set(HEAD, [config.vocab, config.dModel]);
  for (const [name, [rows]] of [...shapes]) {
    if (tensors.get(name)?.dtype === 'I8') shapes.set(`${name}.scale`, [rows as number]);
  }
  const absent = [...shapes.keys()].filter((name) => !tensors.has(name));
  const extra = [...tensors.keys()].filter((name) => !shapes.has(name));
  const faults = [...shapes].flatMap(([name, shape]) => {
    const tensor = tensors.get(name);
    return tensor ? faultOf(tensor, shape) : [];
  });
  const words: string[] = [];
  if (absent.length > 0) words.push(`missing ${listNames(absent)}`);
  if (extra.length > 0) words.push(`unknown ${listNames(extra)}`);
  if (faults.length > 0) words.push(listNames(faults));
  if (words.length === 0) return;
  const { layers, dModel, norm } = config;
  const should = `be those of a Mamba with ${layers} layers of ${dModel}, ${norm === 'rms' ? 'RMSNorm' : 'LayerNorm'}`;
  throw new ModelFormatError(expected(where, 'the tensors', should, words.join('; ')));
}

function faultOf({ name, dtype, shape }: StoredTensor, should: readonly number[]): string[] {
  if (shape.join() !== should.join()) return [`${name} ${describe(shape)} instead of ${describe(should)}`];
  if (dtype === 'I8' && QUANTIZABLE.test(name)) return [];
  if (name.endsWith('.scale') ? dtype === 'F32' : FLOATS.includes(dtype)) return [];
  return [`${name} of dtype ${dtype}`];
}
