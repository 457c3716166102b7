// The safetensors format: u64 header length, JSON header, then the tensors' bytes without gaps (little-endian).
// Reading touches the header only and believes nothing of it before it is checked against the file.
// Source: github.com/huggingface/safetensors, README "Format".
import { basename, dirname, join } from 'node:path';
import { TextDecoder } from 'node:util';
import { CheckpointError, describe, expected, listNames, ModelFormatError } from '../errors.ts';
import { writeFileAtomically } from './atomic-file.ts';
import {
  elementBytes,
  elementCount,
  isStoredDType,
  openForReading,
  packedBytes,
  readExactly,
  STORED_DTYPES,
  type StoredDType,
  type StoredTensor,
} from './stored-tensor.ts';
import { duplicateKey, isObject } from './strict-json.ts';

export interface WeightFile {
  tensors: Map<string, StoredTensor>;
  metadata: Record<string, string>;
}

const MAX_HEADER_BYTES = 100_000_000; // the reference implementation's limit
const DATA_ALIGNMENT = 64; // a cache line, and enough for every vector load

/**
 * Reads the header of one safetensors file.
 *
 * @throws ModelFormatError naming the fault: a header length that lies, JSON that is none, a tensor with an unknown dtype,
 * an impossible shape, a byte range that is misaligned, overlaps, leaves a hole or does not match dtype and shape, or
 * a file that is truncated or has bytes after the last tensor.
 */
export async function readSafetensors(path: string): Promise<WeightFile> {
  const handle = await openForReading(path);
  try {
    const { size } = await handle.stat();
    if (size < 8) throw bad(path, 'the file', 'hold at least the 8 bytes of a header length', `${size} bytes`);
    const headerBytes = (await readExactly(handle, path, 0, 8)).readBigUInt64LE();
    if (headerBytes > MAX_HEADER_BYTES) {
      throw bad(path, 'the header length', `be at most ${MAX_HEADER_BYTES}`, String(headerBytes));
    }
    const dataStart = 8 + Number(headerBytes);
    if (dataStart > size) {
      const left = `${size - 8} bytes after the length`;
      throw bad(path, 'the header length', 'fit the file', `${headerBytes} with ${left}`, 'The file is truncated.');
    }
    const header = parseHeader(path, await readExactly(handle, path, 8, Number(headerBytes)));
    return readHeader(path, header, dataStart, size);
  } finally {
    await handle.close();
  }
}

function bad(path: string, what: string, shouldBe: string, got: string, hint?: string, cause?: unknown) {
  return new ModelFormatError(expected(path, what, shouldBe, got, hint), cause === undefined ? undefined : { cause });
}

function parseHeader(path: string, bytes: Buffer): Record<string, unknown> {
  if (bytes[0] !== 0x7b) {
    const got = bytes.length === 0 ? 'nothing' : describe(bytes.toString('latin1', 0, 8));
    throw bad(path, 'the header', 'be a JSON object and start with "{"', got);
  }
  let text: string;
  let header: unknown;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    header = JSON.parse(text);
  } catch (cause) {
    throw bad(path, 'the header', 'be JSON in UTF-8', describe((cause as Error).message), undefined, cause);
  }
  if (!isObject(header)) throw bad(path, 'the header', 'be a JSON object', describe(header));
  const twice = duplicateKey(text);
  if (twice !== undefined) throw bad(path, 'the header', 'name everything once', `${describe(twice)} twice`);
  return header;
}

function readHeader(path: string, header: Record<string, unknown>, dataStart: number, fileSize: number): WeightFile {
  const tensors = new Map<string, StoredTensor>();
  let metadata: Record<string, string> = {};
  for (const [name, entry] of Object.entries(header)) {
    if (name === '__metadata__') metadata = readMetadata(path, entry);
    else tensors.set(name, readEntry(path, name, entry, dataStart));
  }
  checkLayout(path, [...tensors.values()], dataStart, fileSize);
  return { tensors, metadata };
}

function readMetadata(path: string, entry: unknown): Record<string, string> {
  if (isObject(entry) && Object.values(entry).every((value) => typeof value === 'string')) {
    return entry as Record<string, string>;
  }
  throw bad(path, '__metadata__', 'map strings to strings', describe(entry));
}

function readEntry(path: string, name: string, entry: unknown, dataStart: number): StoredTensor {
  const what = `tensor ${describe(name)}`;
  if (!isObject(entry)) throw bad(path, what, 'be described by an object', describe(entry));
  const { dtype, shape, data_offsets: range } = entry;
  if (!isStoredDType(dtype)) {
    throw bad(path, what, `have a dtype of ${STORED_DTYPES.join(', ')}`, describe(dtype));
  }
  const count = Array.isArray(shape) ? elementCount(shape) : undefined;
  if (count === undefined) {
    throw bad(path, what, 'have a shape of non-negative integers with a product under 2^53', describe(shape));
  }
  const [begin, end] = Array.isArray(range) && range.length === 2 ? range : [];
  if (!Number.isSafeInteger(begin) || !Number.isSafeInteger(end) || begin < 0 || end < begin) {
    throw bad(path, what, 'have data_offsets [begin, end] with 0 <= begin <= end', describe(range));
  }
  const size = elementBytes(dtype);
  if (BigInt(end - begin) !== BigInt(count) * BigInt(size)) {
    const should = `take ${BigInt(count) * BigInt(size)} bytes for ${dtype} ${describe(shape)}`;
    throw bad(path, what, should, `${end - begin} bytes`);
  }
  if (begin % size !== 0) throw bad(path, what, `start at a multiple of ${size} bytes`, `offset ${begin}: misaligned`);
  return { name, dtype, shape: shape as number[], file: path, offset: dataStart + begin, bytes: end - begin };
}

/** The ranges, in order, must tile the data from its start to the end of the file. */
function checkLayout(path: string, tensors: StoredTensor[], dataStart: number, fileSize: number): void {
  tensors.sort((a, b) => a.offset - b.offset || a.bytes - b.bytes);
  let end = dataStart;
  for (const { name, offset, bytes } of tensors) {
    if (offset !== end) {
      const fault = offset < end ? 'an overlap with the tensor before it' : 'a hole before it';
      const at = `${offset - dataStart}: ${fault}`;
      throw bad(path, `tensor ${describe(name)}`, `start at offset ${end - dataStart}`, at);
    }
    end = offset + bytes;
    if (end > fileSize) {
      const got = `bytes up to ${end} in a file of ${fileSize}`;
      throw bad(path, `tensor ${describe(name)}`, 'lie inside the file', got, 'The file is truncated.');
    }
  }
  if (end < fileSize) throw bad(path, 'the file', `end after its last tensor at byte ${end}`, `${fileSize} bytes`);
}

/**
 * Reads the tensors of a sharded checkpoint through its index.json (weight_map: tensor name → file beside the index).
 *
 * @throws ModelFormatError naming a missing shard, a tensor that its shard lacks, or one that the index does not list.
 */
export async function readSharded(
  indexPath: string,
  index: Record<string, unknown>,
  readShard: (path: string) => Promise<WeightFile>,
): Promise<WeightFile> {
  const map = index.weight_map;
  if (!isObject(map)) throw bad(indexPath, 'weight_map', 'be an object', describe(map));
  const shardOf = new Map<string, string>();
  for (const [name, shard] of Object.entries(map)) {
    if (typeof shard !== 'string' || shard === '' || basename(shard) !== shard || shard.startsWith('.')) {
      throw bad(indexPath, `the shard of ${describe(name)}`, 'be the name of a file beside the index', describe(shard));
    }
    shardOf.set(name, shard);
  }
  const tensors = new Map<string, StoredTensor>();
  let metadata: Record<string, string> = {};
  for (const shard of new Set(shardOf.values())) {
    const path = join(dirname(indexPath), shard);
    const file = await readShard(path);
    metadata = { ...metadata, ...file.metadata };
    for (const [name, tensor] of file.tensors) {
      const home = shardOf.get(name);
      if (home !== shard) {
        const got = home === undefined ? 'a tensor that the index does not list' : `one that the index puts in ${home}`;
        throw bad(path, `tensor ${describe(name)}`, 'be listed for this shard', got);
      }
      tensors.set(name, tensor);
    }
  }
  const absent = [...shardOf.keys()].filter((name) => !tensors.has(name));
  if (absent.length > 0) {
    const got = absent.map((name) => `no ${describe(name)} in ${shardOf.get(name)}`);
    throw bad(indexPath, 'each shard', 'hold the tensors listed for it', listNames(got));
  }
  return { tensors, metadata };
}

/** A tensor to write; `data` is its row-major little-endian bytes, whole or in pieces that are asked for in order. */
export interface TensorSource {
  name: string;
  dtype: StoredDType;
  shape: readonly number[];
  data: Uint8Array | Iterable<Uint8Array> | AsyncIterable<Uint8Array>;
}

/**
 * Writes a safetensors file in one step: at no moment does `path` hold half of it.
 *
 * The data starts at a multiple of 64 bytes and wider dtypes come first, so every tensor is aligned to its elements.
 *
 * @throws CheckpointError if the file system refuses or a source yields too few or too many bytes; an error that a
 * source throws passes unchanged. In every case the file that was there is intact.
 * @throws TypeError if names repeat or a dtype or shape is impossible.
 */
export async function writeSafetensors(
  path: string,
  tensors: Iterable<TensorSource>,
  metadata: Record<string, string> = {},
): Promise<void> {
  const ordered = [...tensors].sort((a, b) => elementBytes(b.dtype) - elementBytes(a.dtype));
  const header = encodeHeader(ordered, metadata);
  await writeFileAtomically(path, async (append) => {
    await append(header);
    for (const tensor of ordered) await appendTensor(path, tensor, append);
  });
}

function encodeHeader(tensors: readonly TensorSource[], metadata: Record<string, string>): Uint8Array {
  const entries = new Map<string, unknown>();
  if (Object.keys(metadata).length > 0) entries.set('__metadata__', metadata);
  let end = 0;
  for (const { name, dtype, shape } of tensors) {
    const what = `tensor ${describe(name)}`;
    if (entries.has(name) || name === '__metadata__') {
      throw new TypeError(expected('writeSafetensors', what, 'have a name of its own', 'one in use'));
    }
    if (!isStoredDType(dtype) || elementCount(shape) === undefined) {
      const got = `${describe(dtype)} ${describe(shape)}`;
      throw new TypeError(expected('writeSafetensors', what, 'have a known dtype and a possible shape', got));
    }
    const begin = end;
    end += packedBytes({ dtype, shape: [...shape] });
    entries.set(name, { dtype, shape, data_offsets: [begin, end] });
  }
  const json = Buffer.from(
    `{${[...entries].map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`)}}`,
  );
  const padded = Math.ceil((8 + json.length) / DATA_ALIGNMENT) * DATA_ALIGNMENT;
  const header = Buffer.alloc(padded, ' ');
  header.writeBigUInt64LE(BigInt(padded - 8));
  json.copy(header, 8);
  return header;
}

async function appendTensor(
  path: string,
  tensor: TensorSource,
  append: (bytes: Uint8Array) => Promise<void>,
): Promise<void> {
  const size = packedBytes({ dtype: tensor.dtype, shape: [...tensor.shape] });
  let done = 0;
  for await (const chunk of tensor.data instanceof Uint8Array ? [tensor.data] : tensor.data) {
    done += chunk.length;
    if (done > size) break;
    await append(chunk);
  }
  if (done === size) return;
  const got = done > size ? `at least ${done}` : `${done}`;
  throw new CheckpointError(expected(path, `tensor ${describe(tensor.name)}`, `yield ${size} bytes`, got));
}
