// Checkpoints of torch.save (zip format, PyTorch 1.6 and later): <archive>/data.pkl describes tensors whose bytes lie,
// uncompressed, in <archive>/data/<key>. The pickle is read by a machine that executes nothing.
// Source: torch/serialization.py.
import type { FileHandle } from 'node:fs/promises';
import { describe, expected, listNames, ModelFormatError } from '../errors.ts';
import type { WeightFile } from './safetensors.ts';
import { elementBytes, elementCount, openForReading, readExactly, type StoredTensor } from './stored-tensor.ts';
import { kindOf, type Pickled, type PickledDict, PickledTensor, unpickle } from './unpickler.ts';
import { openZip, type ZipArchive, type ZipEntry } from './zip.ts';

export interface TorchFile extends WeightFile {
  warnings: string[];
}

const MAX_PICKLE_BYTES = 64 << 20;
const MAX_WRAPPERS = 4;
/** Where training scripts put the state dict inside a larger checkpoint, in the order they are tried. */
const WRAPPERS = ['model', 'state_dict', 'model_state_dict', 'module'];

/**
 * Reads the tensors of a .bin or .pt file; a checkpoint that keeps the state dict under `model`, `state_dict`,
 * `model_state_dict` or `module` is unwrapped.
 *
 * @throws ModelFormatError naming the fault: a legacy or TorchScript file, a compressed or missing entry, an opcode or
 * a global that a state dict does not need, big-endian data, or a tensor that reaches outside its storage.
 */
export async function readTorchFile(path: string): Promise<TorchFile> {
  const handle = await openForReading(path);
  try {
    await refuseLegacy(path, handle);
    const zip = await openZip(path, handle);
    const prefix = findArchive(path, zip);
    await checkByteOrder(path, handle, zip, prefix);
    const pickle = (await zip.find(`${prefix}data.pkl`)) as ZipEntry;
    if (pickle.bytes > MAX_PICKLE_BYTES) {
      throw bad(path, 'data.pkl', `be at most ${MAX_PICKLE_BYTES} bytes`, `${pickle.bytes}`);
    }
    const value = unpickle(path, await readExactly(handle, path, pickle.offset, pickle.bytes));
    return await locate(path, zip, prefix, findStateDict(path, value));
  } finally {
    await handle.close();
  }
}

function bad(path: string, what: string, shouldBe: string, got: string, hint?: string): ModelFormatError {
  return new ModelFormatError(expected(path, what, shouldBe, got, hint));
}

async function refuseLegacy(path: string, handle: FileHandle): Promise<void> {
  const { size } = await handle.stat();
  const start = await readExactly(handle, path, 0, Math.min(4, size));
  if (start.toString('latin1') === 'PK\x03\x04') return;
  // A bare pickle starts with PROTO; torch.save wrote such files before 1.6.
  const legacy = start[0] === 0x80;
  const got = legacy ? 'the legacy format' : describe(start.toString('latin1'));
  const hint = legacy ? 'Load it in PyTorch 1.6 or later and torch.save it again.' : undefined;
  throw bad(path, 'the file', 'be a zip archive of torch.save', got, hint);
}

/** The folder inside the archive, with its slash: named after the file it was first saved to. */
function findArchive(path: string, zip: ZipArchive): string {
  const pickles = zip.names.filter((name) => name === 'data.pkl' || /^[^/]+\/data\.pkl$/.test(name));
  const [found] = pickles;
  if (found === undefined || pickles.length > 1) {
    throw bad(path, 'the archive', 'hold one data.pkl', pickles.length === 0 ? 'none' : listNames(pickles));
  }
  const prefix = found.slice(0, -'data.pkl'.length);
  if (zip.names.includes(`${prefix}constants.pkl`)) {
    throw bad(path, 'the archive', 'hold a state dict', 'TorchScript', 'Save model.state_dict() instead.');
  }
  return prefix;
}

async function checkByteOrder(path: string, handle: FileHandle, zip: ZipArchive, prefix: string): Promise<void> {
  const entry = await zip.find(`${prefix}byteorder`);
  if (!entry) return; // before PyTorch 2.1; little-endian on every machine that mattered
  const order = (await readExactly(handle, path, entry.offset, Math.min(entry.bytes, 16))).toString('latin1');
  if (order !== 'little') throw bad(path, 'the byte order', 'be little', describe(order));
}

function findStateDict(path: string, value: Pickled): PickledDict {
  let dict = value;
  for (let depth = 0; depth <= MAX_WRAPPERS; depth++) {
    if (!(dict instanceof Map)) throw bad(path, 'the checkpoint', 'be a dict of tensors', kindOf(dict));
    if ([...dict.values()].some((item) => item instanceof PickledTensor)) return dict;
    const outer: PickledDict = dict;
    const key = WRAPPERS.find((name) => outer.get(name) instanceof Map);
    if (key === undefined) break;
    dict = outer.get(key) as PickledDict;
  }
  const keys = dict instanceof Map ? [...dict.keys()].map(String) : [];
  throw bad(
    path,
    'the checkpoint',
    `hold tensors, or a dict of them under ${WRAPPERS.join(', ')}`,
    listNames(keys) || 'an empty dict',
  );
}

async function locate(path: string, zip: ZipArchive, prefix: string, dict: PickledDict): Promise<TorchFile> {
  const tensors = new Map<string, StoredTensor>();
  const others: string[] = [];
  const entries = new Map<string, ZipEntry>();
  for (const [key, value] of dict) {
    const name = String(key);
    if (typeof key !== 'string' || !(value instanceof PickledTensor)) {
      others.push(name);
      continue;
    }
    const entry = entries.get(value.storage.key) ?? (await zip.find(`${prefix}data/${value.storage.key}`));
    if (!entry)
      throw bad(path, `tensor ${describe(name)}`, `have its data in data/${value.storage.key}`, 'no such entry');
    entries.set(value.storage.key, entry);
    tensors.set(name, place(path, name, value, entry));
  }
  refuseOverlaps(path, [...entries.values()]);
  const warnings = others.length === 0 ? [] : [`${path}: ignored what is not a tensor: ${listNames(others)}`];
  return { tensors, metadata: {}, warnings };
}

function place(path: string, name: string, { storage, offset, shape, strides }: PickledTensor, entry: ZipEntry) {
  const what = `tensor ${describe(name)}`;
  const size = elementBytes(storage.dtype);
  if (storage.count * size > entry.bytes) {
    const got = `${entry.bytes} bytes`;
    throw bad(
      path,
      what,
      `have ${storage.count} ${storage.dtype} elements in ${entry.name}`,
      got,
      'The file is truncated.',
    );
  }
  const count = elementCount(shape);
  if (count === undefined) throw bad(path, what, 'have fewer than 2^53 elements', describe(shape));
  const span = spanOf(shape, strides);
  if (BigInt(offset) + span > BigInt(storage.count)) {
    const got = `shape ${describe(shape)}, strides ${describe(strides)} from element ${offset}`;
    throw bad(path, what, `lie inside its storage of ${storage.count} elements`, got);
  }
  const bytes = Number(span) * size;
  const place = { name, dtype: storage.dtype, shape, file: path, offset: entry.offset + offset * size, bytes };
  return isContiguous(shape, strides) ? place : { ...place, strides };
}

/** Elements from the first to the last one inclusive. */
function spanOf(shape: readonly number[], strides: readonly number[]): bigint {
  let last = 0n;
  for (const [axis, dim] of shape.entries()) {
    if (dim === 0) return 0n;
    last += BigInt(dim - 1) * BigInt(strides[axis] as number);
  }
  return last + 1n;
}

function isContiguous(shape: readonly number[], strides: readonly number[]): boolean {
  if (shape.includes(0)) return true;
  let step = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    const dim = shape[axis] as number;
    if (dim !== 1 && strides[axis] !== step) return false;
    step *= dim;
  }
  return true;
}

function refuseOverlaps(path: string, entries: ZipEntry[]): void {
  entries.sort((a, b) => a.offset - b.offset);
  for (const [i, entry] of entries.entries()) {
    const before = entries[i - 1];
    if (before && before.offset + before.bytes > entry.offset) {
      throw bad(
        path,
        `zip entry ${describe(entry.name)}`,
        'have bytes of its own',
        `an overlap with ${describe(before.name)}`,
      );
    }
  }
}
