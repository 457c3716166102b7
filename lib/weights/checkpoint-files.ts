// From a path that a user gives to the tensors and the configuration of a model, and back to a folder on disk.
import { existsSync } from 'node:fs';
import { mkdir, readdir, readFile, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { CheckpointError, describe, expected, listNames, ModelFormatError } from '../errors.ts';
import { architectureOf, type ModelConfig } from '../models/architectures.ts';
import { Tokenizer } from '../tokenizer/tokenizer.ts';
import { writeFileAtomically } from './atomic-file.ts';
import type { ConfigDialect } from './config-json.ts';
import { inferConfig } from './infer.ts';
import { canonicalTensors, type NameDialect, nameIn } from './names.ts';
import { readTorchFile } from './pickle.ts';
import { readSafetensors, readSharded, type TensorSource, type WeightFile, writeSafetensors } from './safetensors.ts';
import type { StoredTensor } from './stored-tensor.ts';
import { duplicateKey, isObject } from './strict-json.ts';

export interface OpenedCheckpoint {
  /** By canonical name. A tied model has no lm_head.weight here, whether or not the file stores one. */
  tensors: Map<string, StoredTensor>;
  config: ModelConfig;
  /** The config.json beside the weights, as parsed. */
  configJson?: Record<string, unknown>;
  metadata: Record<string, string>;
  /** One sentence each; nothing here stopped the model from loading. */
  warnings: string[];
  dialect: NameDialect;
  /** The tokenizer.json beside the weights: the model reads its ids, not bytes. */
  tokenizer?: Tokenizer;
  /** The file that was opened: the weights, or the index of a sharded checkpoint. */
  file: string;
}

/** The names of weights in a folder, in the order they are looked for; then any single file of these kinds. */
const USUAL = [
  'model.safetensors',
  'model.safetensors.index.json',
  'pytorch_model.bin',
  'pytorch_model.bin.index.json',
];
const TOKENIZER = 'tokenizer.json';
const WEIGHTS = /\.(safetensors|bin|pt|pth)$/;
const MAX_JSON_BYTES = 100_000_000;

/**
 * Opens a checkpoint: a folder (model.safetensors, its index.json, pytorch_model.bin or a single weight file, with
 * config.json if there is one), a .safetensors file, an .index.json, or a .bin, .pt or .pth file of torch.save. A
 * tokenizer.json beside the weights belongs to the model.
 *
 * Reads headers only; the tensors say where their bytes are.
 *
 * @throws ModelFormatError if there is nothing to open, or any of it is malformed or contradicts the rest.
 */
export async function openCheckpoint(path: string): Promise<OpenedCheckpoint> {
  const file = await findWeights(path);
  const { tensors: stored, metadata, warnings } = await readWeights(file);
  const { tensors, dialect } = canonicalTensors(file, stored);
  const configJson = await readJson(join(dirname(file), 'config.json'));
  const inferred = await inferConfig(file, tensors, configJson);
  if (inferred.config.tied) {
    tensors.delete('lm_head.weight');
    tensors.delete('lm_head.weight.scale');
  }
  const { config } = inferred;
  const tokenizer = await findTokenizer(dirname(file), config);
  const all = [...warnings, ...inferred.warnings];
  return {
    tensors,
    config,
    ...(configJson && { configJson }),
    metadata,
    warnings: all,
    dialect,
    ...(tokenizer && { tokenizer }),
    file,
  };
}

async function findTokenizer(folder: string, { vocab }: ModelConfig): Promise<Tokenizer | undefined> {
  const path = join(folder, TOKENIZER);
  if (!existsSync(path)) return undefined;
  const tokenizer = await Tokenizer.open(path);
  if (tokenizer.vocab <= vocab) return tokenizer;
  throw new ModelFormatError(
    expected(path, 'the tokenizer', `have at most ${vocab} ids, as the model`, `${tokenizer.vocab}`),
  );
}

/** The weight file (or index) that a path stands for. */
async function findWeights(path: string): Promise<string> {
  let isFolder: boolean;
  try {
    isFolder = (await stat(path)).isDirectory();
  } catch (cause) {
    const why = (cause as NodeJS.ErrnoException).code ?? 'an error';
    throw new ModelFormatError(expected(path, 'the checkpoint', 'be readable', why), { cause });
  }
  if (!isFolder) return path;
  const names = (await readdir(path)).sort();
  const usual = USUAL.find((name) => names.includes(name));
  if (usual !== undefined) return join(path, usual);
  const candidates = names.filter((name) => WEIGHTS.test(name) && !name.startsWith('.'));
  const [only] = candidates;
  if (only !== undefined && candidates.length === 1) return join(path, only);
  const got = candidates.length === 0 ? 'none' : listNames(candidates);
  // A training run is a folder of checkpoints.
  const checkpoint = ['best', 'latest'].find((name) => names.includes(name));
  const hint = candidates.length > 0 ? 'Name one of them.' : checkpoint && `Name ${join(path, checkpoint)}.`;
  throw new ModelFormatError(expected(path, 'the folder', 'hold one file of weights', got, hint));
}

async function readWeights(file: string): Promise<WeightFile & { warnings: string[] }> {
  const warnings: string[] = [];
  const readTorch = async (path: string) => {
    const shard = await readTorchFile(path);
    warnings.push(...shard.warnings);
    return shard;
  };
  if (file.endsWith('.safetensors')) return { ...(await readSafetensors(file)), warnings };
  if (/\.(bin|pt|pth)$/.test(file)) return { ...(await readTorch(file)), warnings };
  if (file.endsWith('.index.json')) {
    const index = (await readJson(file)) ?? {};
    const readShard = (path: string) => (path.endsWith('.safetensors') ? readSafetensors(path) : readTorch(path));
    return { ...(await readSharded(file, index, readShard)), warnings };
  }
  const kinds = 'be a folder, .safetensors, .index.json, .bin, .pt or .pth';
  throw new ModelFormatError(expected(file, 'the checkpoint', kinds, describe(basename(file))));
}

/** A JSON object from a file, or undefined if there is no such file. */
async function readJson(path: string): Promise<Record<string, unknown> | undefined> {
  let value: unknown;
  try {
    const { size } = await stat(path);
    if (size > MAX_JSON_BYTES) {
      throw new ModelFormatError(expected(path, 'the file', `be at most ${MAX_JSON_BYTES} bytes`, `${size}`));
    }
    const text = await readFile(path, 'utf8');
    value = JSON.parse(text);
    const twice = duplicateKey(text);
    if (twice !== undefined) {
      throw new ModelFormatError(expected(path, 'the JSON', 'name everything once', `${describe(twice)} twice`));
    }
  } catch (cause) {
    if (cause instanceof ModelFormatError) throw cause;
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code === 'ENOENT') return undefined;
    throw new ModelFormatError(expected(path, 'the file', 'be readable JSON', describe(message)), { cause });
  }
  if (!isObject(value)) throw new ModelFormatError(expected(path, 'the JSON', 'be an object', describe(value)));
  return value;
}

/** The config.json of a model. @throws ModelFormatError if the dialect cannot express it */
export function configToJson(config: ModelConfig, dialect: ConfigDialect): Record<string, unknown> {
  return architectureOf(config).toJson(config, dialect);
}

/**
 * Writes config.json, model.safetensors and, where the model has a tokenizer, tokenizer.json into a folder, which is made
 * if it is not there. Each file is replaced in one step.
 *
 * @param tensors canonical names; they are renamed for the 'hf' dialect.
 * @throws ModelFormatError if the dialect cannot express the model, or the folder holds a tokenizer.json and the model
 * has none, before anything is written.
 * @throws CheckpointError if the file system refuses; what was there before is intact.
 */
export async function saveCheckpoint(
  folder: string,
  config: ModelConfig,
  tensors: Iterable<TensorSource>,
  options: { dialect?: ConfigDialect; metadata?: Record<string, string>; tokenizer?: Tokenizer | undefined } = {},
): Promise<void> {
  const { dialect = 'mambabyte', metadata = {}, tokenizer } = options;
  const json = configToJson(config, dialect);
  if (!tokenizer && existsSync(join(folder, TOKENIZER))) {
    const hint = 'It would be taken for the tokenizer of the model: remove it, or choose another folder.';
    throw new ModelFormatError(
      expected(folder, 'the folder of a model without a tokenizer', `hold no ${TOKENIZER}`, 'one', hint),
    );
  }
  const renamed = dialect === 'hf' ? [...tensors].map(forHf) : tensors;
  try {
    await mkdir(folder, { recursive: true });
  } catch (cause) {
    const why = (cause as NodeJS.ErrnoException).code ?? 'an error';
    const hint =
      why === 'EEXIST' || why === 'ENOTDIR' ? 'There is a file of that name, or of a folder above.' : undefined;
    throw new CheckpointError(expected(folder, 'the folder', 'be writable', why, hint), { cause });
  }
  // transformers refuses a file that does not say whose tensors it holds.
  await writeSafetensors(join(folder, 'model.safetensors'), renamed, { format: 'pt', ...metadata });
  const text = Buffer.from(`${JSON.stringify(json, null, 2)}\n`);
  await writeFileAtomically(join(folder, 'config.json'), (append) => append(text));
  if (tokenizer) await writeFileAtomically(join(folder, TOKENIZER), (append) => append(Buffer.from(tokenizer.json)));
}

function forHf(tensor: TensorSource): TensorSource {
  if (tensor.dtype === 'I8') {
    const hint = 'Write float32 or bfloat16 weights.';
    throw new ModelFormatError(expected('hf checkpoint', tensor.name, 'be floating-point', 'int8 with scales', hint));
  }
  return { ...tensor, name: nameIn('hf', tensor.name) };
}
