// A corpus as tokens: encoded once into a file of ids, which windows are then read from.
//
// The file: the ids of all documents, u16 or u32 little-endian; then f64 per document, its number of ids; then 16 bytes:
// "MBT1", u32 bytes per id, f64 number of documents.
import { createHash } from 'node:crypto';
import { closeSync, existsSync, openSync, readSync } from 'node:fs';
import { mkdir, open, stat } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { CheckpointError, DataError, expected } from '../errors.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import { writeFileAtomically } from '../weights/atomic-file.ts';
import type { Dataset } from './dataset.ts';
import { encodedPieces } from './encode.ts';
import { openEncoder } from './encoder.ts';
import { reading, unreadable } from './files.ts';
import type { Documents } from './windows.ts';

export interface EncodeProgress {
  /** Bytes encoded so far, of `total`. */
  bytes: number;
  total: number;
  bytesPerSecond: number;
}

export interface TokenDatasetOptions {
  /** Folder of the file of ids; made if it is not there. */
  folder: string;
  /** Wait until another process has written the file, rather than encode. */
  wait?: boolean;
  /** Most processors to use; default: all. */
  threads?: number | undefined;
  signal?: AbortSignal | undefined;
  onProgress?: ((progress: EncodeProgress) => void) | undefined;
}

const MAGIC = 'MBT1';
const FOOTER_BYTES = 16;
const POLL_MS = 200;
const MOST_PROCESSES = 16;
/** A process takes as long to start as it takes to encode about this much. */
const BYTES_PER_PROCESS = 4 << 20;

/**
 * The tokens of a data set. They are encoded unless the folder holds them already, which the name of the file tells: it
 * follows from the tokenizer and from sizes, times of change and documents of the data.
 * @throws DataError when the data cannot be read, or no document has two tokens; CheckpointError when the folder cannot be
 * written
 */
export async function openTokens(
  data: Dataset,
  tokenizer: Tokenizer,
  options: TokenDatasetOptions,
): Promise<TokenDataset> {
  const { folder, wait, signal } = options;
  const path = join(folder, `tokens-${await keyOf(data, tokenizer)}.bin`);
  while (wait && !existsSync(path)) {
    await sleep(POLL_MS);
    signal?.throwIfAborted();
  }
  const found = await readCounts(path, data.documents);
  if (found) return new TokenDataset(path, data, found);
  const width = tokenizer.vocab <= 1 << 16 ? 2 : 4;
  await makeFolder(folder);
  const counts = await writeTokens(path, data, tokenizer, width, options);
  return new TokenDataset(path, data, { width, counts });
}

async function makeFolder(folder: string): Promise<void> {
  try {
    await mkdir(folder, { recursive: true });
  } catch (cause) {
    const why = (cause as NodeJS.ErrnoException).code ?? 'an error';
    throw new CheckpointError(expected(folder, 'the folder for tokens', 'be writable', why), { cause });
  }
}

async function keyOf(data: Dataset, tokenizer: Tokenizer): Promise<string> {
  const hash = createHash('sha256').update(tokenizer.json).update(data.fingerprint());
  for (const { path, bytes } of data.files) {
    const { mtimeMs } = await reading(path, () => stat(path));
    hash.update(`${bytes} ${mtimeMs}\n`);
  }
  return hash.digest('hex').slice(0, 16);
}

interface Counts {
  /** Bytes per id. */
  width: 2 | 4;
  /** Ids of each document. */
  counts: Float64Array;
}

/** What the end of a file of ids says, or undefined if there is no such file or it is not whole. */
async function readCounts(path: string, documents: number): Promise<Counts | undefined> {
  if (!existsSync(path)) return undefined;
  return reading(path, async () => {
    const handle = await open(path, 'r');
    try {
      const { size } = await handle.stat();
      const tail = Buffer.alloc(documents * 8 + FOOTER_BYTES);
      const { bytesRead } = await handle.read(tail, 0, tail.length, Math.max(0, size - tail.length));
      const footer = tail.subarray(-FOOTER_BYTES);
      const width = footer.readUInt32LE(4);
      const known = footer.toString('latin1', 0, 4) === MAGIC && footer.readDoubleLE(8) === documents;
      if (bytesRead < tail.length || !known || (width !== 2 && width !== 4)) return undefined;
      const counts = Float64Array.from({ length: documents }, (_, i) => tail.readDoubleLE(i * 8));
      const whole = counts.reduce((a, b) => a + b, 0) * width + tail.length === size;
      return whole ? { width, counts } : undefined;
    } finally {
      await handle.close();
    }
  });
}

async function writeTokens(
  path: string,
  data: Dataset,
  tokenizer: Tokenizer,
  width: 2 | 4,
  { threads = availableParallelism(), signal, onProgress }: TokenDatasetOptions,
): Promise<Float64Array> {
  const counts = new Float64Array(data.documents);
  const started = performance.now();
  let bytes = 0;
  const processes = Math.min(threads, MOST_PROCESSES, Math.floor(data.bytes / BYTES_PER_PROCESS));
  const encoder = openEncoder(tokenizer, processes);
  try {
    await writeFileAtomically(path, async (append) => {
      for await (const piece of encodedPieces(tokenizer, data, encoder)) {
        signal?.throwIfAborted();
        const ids = width === 2 ? Uint16Array.from(piece.ids) : piece.ids;
        await append(new Uint8Array(ids.buffer, ids.byteOffset, ids.byteLength));
        counts[piece.document] = (counts[piece.document] ?? 0) + ids.length;
        bytes += piece.bytes;
        onProgress?.({ bytes, total: data.bytes, bytesPerSecond: bytes / ((performance.now() - started) / 1000) });
      }
      const footer = Buffer.alloc(FOOTER_BYTES);
      footer.write(MAGIC, 'latin1');
      footer.writeUInt32LE(width, 4);
      footer.writeDoubleLE(data.documents, 8);
      await append(new Uint8Array(counts.buffer));
      await append(footer);
    });
  } finally {
    encoder.close();
  }
  return counts;
}

/** An opened file of ids. Documents of a single token predict nothing and are passed over. */
export class TokenDataset implements Documents {
  readonly unit = 'token';
  readonly documents: number;
  /** Tokens in all documents. */
  readonly units: number;
  readonly bytesPerToken: number;
  readonly #path: string;
  readonly #width: 2 | 4;
  readonly #descriptor: number;
  /** Where documents start in the file, in ids. */
  readonly #start: Float64Array;
  readonly #length: Float64Array;

  /** @internal use openTokens */
  constructor(path: string, data: Dataset, { width, counts }: Counts) {
    const kept = [...counts.keys()].filter((i) => (counts[i] ?? 0) >= 2);
    if (kept.length === 0) {
      throw new DataError(expected('data', 'the data set', 'hold a document of two tokens or more', 'none'));
    }
    let end = 0;
    const starts = counts.map((count) => {
      end += count;
      return end - count;
    });
    this.#path = path;
    this.#width = width;
    this.#start = Float64Array.from(kept, (i) => starts[i] ?? 0);
    this.#length = Float64Array.from(kept, (i) => counts[i] ?? 0);
    this.documents = kept.length;
    this.units = this.#length.reduce((a, b) => a + b, 0);
    this.bytesPerToken = data.bytes / end;
    this.#descriptor = openSync(path, 'r');
  }

  /** Tokens of document `i`. */
  length(i: number): number {
    return this.#length[i] ?? 0;
  }
  slice(i: number, start: number, length: number): Int32Array {
    const bytes = new Uint8Array(length * this.#width);
    const from = ((this.#start[i] ?? 0) + start) * this.#width;
    for (let done = 0; done < bytes.length; ) {
      const count = this.readAt(bytes, done, from + done);
      if (count === 0)
        throw new DataError(expected(this.#path, 'the file', 'be whole', `its end at byte ${from + done}`));
      done += count;
    }
    return this.#width === 2 ? Int32Array.from(new Uint16Array(bytes.buffer)) : new Int32Array(bytes.buffer);
  }
  close(): void {
    closeSync(this.#descriptor);
  }

  private readAt(target: Uint8Array, from: number, position: number): number {
    try {
      return readSync(this.#descriptor, target, from, target.length - from, position);
    } catch (cause) {
      throw unreadable(this.#path, cause);
    }
  }
}
