// What the readers of all architectures ask of a file's tensors.
import { describe, expected, listNames, ModelFormatError } from '../errors.ts';
import type { Architecture, BaseConfig } from '../models/architecture.ts';
import { count, type Stated } from './config-json.ts';
import { type StoredTensor, sameContents } from './stored-tensor.ts';

/** The head, where it is not the embedding. */
export const HEAD = 'lm_head.weight';
const MAX_LAYERS = 10_000;
const FLOATS = ['F64', 'F32', 'F16', 'BF16'];

/** Layers that the names tell: one more than the largest number behind `prefix`; `example`: a tensor that must be there. */
export function layersIn(
  where: string,
  tensors: ReadonlyMap<string, StoredTensor>,
  prefix: string,
  example: string,
): number {
  let last = -1;
  for (const name of tensors.keys()) {
    const digits = name.startsWith(prefix) ? /^(0|[1-9]\d*)\./.exec(name.slice(prefix.length))?.[1] : undefined;
    if (digits !== undefined) last = Math.max(last, Number(digits));
  }
  if (last < 0) throw missing(where, [example]);
  if (last >= MAX_LAYERS) {
    throw new ModelFormatError(expected(where, 'layer numbers', `be under ${MAX_LAYERS}`, `${last}`));
  }
  return last + 1;
}

/** The shape of the first of `names` that is there; the others are held against it later. */
export function dims(
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

/**
 * Holds the sizes that config.json states, by their keys, against those that the tensors have.
 * @param file names the config.json in messages.
 * @throws ModelFormatError naming both values of each contradiction
 */
export function checkSizes(
  where: string,
  file: string,
  json: Record<string, unknown>,
  seen: Readonly<Record<string, number>>,
): void {
  const faults = Object.entries(seen).flatMap(([key, value]) => {
    const claim = count(file, json, key);
    return claim && claim.value !== value ? [`${key} ${claim.value} but ${value}`] : [];
  });
  if (faults.length === 0) return;
  throw new ModelFormatError(
    expected(where, 'config.json', 'agree with the tensors', `${faults.join(', ')} in the tensors`),
  );
}

/** Whether the head is the embedding, named `embeddingName`; `tied`: what config.json says. */
export async function inferTied(
  where: string,
  tensors: ReadonlyMap<string, StoredTensor>,
  embeddingName: string,
  tied: Stated<boolean> | undefined,
  warnings: string[],
): Promise<boolean> {
  const head = tensors.get(HEAD);
  const embedding = tensors.get(embeddingName) as StoredTensor;
  if (!head) {
    if (tied?.value !== false) return true;
    const got = `${tied.key}: false in config.json and no ${HEAD} in the tensors`;
    throw new ModelFormatError(expected(where, 'an untied model', `have ${HEAD}`, got));
  }
  if (tied?.value === false) return false;
  if ((await sameContents(head, embedding)) && (await sameScales(tensors, embeddingName))) return true;
  if (tied) {
    warnings.push(
      `${where}: config.json says ${tied.key}: true, but ${HEAD} differs from the embedding; both are kept`,
    );
  }
  return false;
}

async function sameScales(tensors: ReadonlyMap<string, StoredTensor>, embedding: string): Promise<boolean> {
  const a = tensors.get(`${embedding}.scale`);
  const b = tensors.get(`${HEAD}.scale`);
  return a === undefined || b === undefined ? a === b : await sameContents(a, b);
}

/**
 * Every tensor the model has, and no other, in its shape and in a dtype that weights can have: int8 matrices have one
 * float32 scale per row under <name>.scale.
 */
export function checkTensors(
  where: string,
  tensors: ReadonlyMap<string, StoredTensor>,
  config: BaseConfig,
  architecture: Architecture,
): void {
  const { narrowable } = architecture;
  const shapes = new Map(architecture.params(config).map(({ name, shape }) => [name, shape]));
  if (config.tied && tensors.has(HEAD)) shapes.set(HEAD, [config.vocab, config.dModel]);
  for (const [name, [rows]] of [...shapes]) {
    if (tensors.get(name)?.dtype === 'I8') shapes.set(`${name}.scale`, [rows as number]);
  }
  const absent = [...shapes.keys()].filter((name) => !tensors.has(name));
  const extra = [...tensors.keys()].filter((name) => !shapes.has(name));
  const faults = [...shapes].flatMap(([name, shape]) => {
    const tensor = tensors.get(name);
    return tensor ? faultOf(tensor, shape, narrowable) : [];
  });
  const words: string[] = [];
  if (absent.length > 0) words.push(`missing ${listNames(absent)}`);
  if (extra.length > 0) words.push(`unknown ${listNames(extra)}`);
  if (faults.length > 0) words.push(listNames(faults));
  if (words.length === 0) return;
  const should = `be those of ${architecture.words(config)}`;
  throw new ModelFormatError(expected(where, 'the tensors', should, words.join('; ')));
}

function faultOf({ name, dtype, shape }: StoredTensor, should: readonly number[], narrowable: RegExp): string[] {
  if (shape.join() !== should.join()) return [`${name} ${describe(shape)} instead of ${describe(should)}`];
  if (dtype === 'I8' && narrowable.test(name)) return [];
  if (name.endsWith('.scale') ? dtype === 'F32' : FLOATS.includes(dtype)) return [];
  return [`${name} of dtype ${dtype}`];
}
