// A corpus on disk: documents in files, found by one streaming scan and read by windows on demand.
import { createHash } from 'node:crypto';
import { closeSync, openSync, readSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { checkOptions, checkSignal, DataError, describe, expected } from '../errors.ts';
import { type DataFile, listFiles, reading, unreadable } from './files.ts';
import type { Documents } from './windows.ts';

export interface DatasetOptions {
  /** What lies between two documents of one file; null: every file is one document; default "\n\f\n". */
  separator?: string | Uint8Array | null;
  signal?: AbortSignal;
}

/** Where one document lies. */
export interface DocumentSpan {
  file: string;
  /** Bytes from the start of the file. */
  offset: number;
  length: number;
}

export const DEFAULT_SEPARATOR = '\n\f\n';
const SCAN_BYTES = 4 << 20;
const OPEN_FILES = 64;

/**
 * Opens a corpus: one file, several, or folders (walked in the order of their names). Bytes of any kind; only the
 * positions of the documents are kept in memory.
 * @throws DataError when a path is missing, unreadable or empty; TypeError for wrong options
 */
export async function openDataset(paths: string | readonly string[], options: DatasetOptions = {}): Promise<Dataset> {
  const where = 'openDataset';
  checkOptions(where, options, ['separator', 'signal']);
  checkSignal(where, options.signal);
  const list = typeof paths === 'string' ? [paths] : paths;
  if (!Array.isArray(list) || list.length === 0 || list.some((path) => typeof path !== 'string' || path === '')) {
    throw new TypeError(expected(where, 'paths', 'be a path or a list of paths', describe(paths)));
  }
  const separator = separatorBytes(where, options.separator);
  const files = await listFiles(where, list);
  const spans: Spans = { file: [], offset: [], length: [] };
  for (const [i, file] of files.entries()) await scan(file, i, separator, spans, options.signal);
  if (spans.file.length === 0) {
    const total = files.reduce((sum, f) => sum + f.bytes, 0);
    throw new DataError(expected(where, list.join(', '), 'hold a document of two bytes or more', `${total} bytes`));
  }
  return new Dataset(files, spans);
}

function separatorBytes(where: string, separator: DatasetOptions['separator'] = DEFAULT_SEPARATOR): Buffer | undefined {
  if (separator === null) return undefined;
  if (typeof separator === 'string' || separator instanceof Uint8Array) {
    const bytes = Buffer.from(separator as string);
    if (bytes.length > 0 && bytes.length <= 1024) return bytes;
  }
  throw new TypeError(expected(where, 'separator', 'be 1 to 1024 bytes of text, or null', describe(separator)));
}

/** Columns of the document index. */
interface Spans {
  file: number[];
  offset: number[];
  length: number[];
}

/** Appends the documents of one file; one of fewer than two bytes predicts nothing and is passed over. */
async function scan(
  file: DataFile,
  index: number,
  separator: Buffer | undefined,
  spans: Spans,
  signal?: AbortSignal,
): Promise<void> {
  const add = (start: number, end: number) => {
    if (end - start < 2) return;
    spans.file.push(index);
    spans.offset.push(start);
    spans.length.push(end - start);
  };
  if (!separator) return add(0, file.bytes);
  const handle = await reading(file.path, () => open(file.path, 'r'));
  try {
    let start = 0;
    for await (const at of occurrences(handle, file, separator, signal)) {
      add(start, at);
      start = at + separator.length;
    }
    add(start, file.bytes);
  } finally {
    await handle.close();
  }
}

/** Positions of `separator`, left to right, without overlaps. */
async function* occurrences(
  handle: FileHandle,
  file: DataFile,
  separator: Buffer,
  signal?: AbortSignal,
): AsyncGenerator<number> {
  const keep = separator.length - 1; // an occurrence may lie across two reads
  const buffer = Buffer.allocUnsafe(Math.min(SCAN_BYTES, file.bytes) + keep);
  let held = 0;
  let base = 0; // position of buffer[0] in the file
  while (base + held < file.bytes) {
    signal?.throwIfAborted();
    const wanted = Math.min(buffer.length - held, file.bytes - base - held);
    const { bytesRead } = await reading(file.path, () => handle.read(buffer, held, wanted, base + held));
    if (bytesRead === 0) throw shrunk(file, base + held);
    const end = held + bytesRead;
    let from = 0;
    for (let at = buffer.indexOf(separator); at >= 0 && at + separator.length <= end; ) {
      yield base + at;
      from = at + separator.length;
      at = buffer.indexOf(separator, from);
    }
    const next = Math.max(from, end - keep);
    buffer.copyWithin(0, next, end);
    held = end - next;
    base += next;
  }
}

function shrunk(file: DataFile, at: number): DataError {
  return new DataError(
    expected(file.path, 'the file', `hold ${file.bytes} bytes as when it was opened`, `its end at byte ${at}`),
  );
}

/** An opened corpus. Documents are counted from 0 in the order of their files. */
export class Dataset implements Documents {
  readonly unit = 'byte';
  readonly files: readonly DataFile[];
  /** Bytes in all documents. */
  readonly bytes: number;
  /** Number of documents. */
  readonly documents: number;
  readonly #file: Uint32Array;
  readonly #offset: Float64Array;
  readonly #length: Float64Array;
  /** Open descriptors by file, least recently used first. */
  readonly #descriptors = new Map<number, number>();
  #closed = false;

  /** @internal use openDataset */
  constructor(files: readonly DataFile[], spans: Spans) {
    this.files = files;
    this.#file = Uint32Array.from(spans.file);
    this.#offset = Float64Array.from(spans.offset);
    this.#length = Float64Array.from(spans.length);
    this.documents = this.#length.length;
    this.bytes = this.#length.reduce((a, b) => a + b, 0);
  }

  get units(): number {
    return this.bytes;
  }
  /** Bytes of document `i`. */
  length(i: number): number {
    return this.#length[i] ?? 0;
  }
  span(i: number): DocumentSpan {
    const file = this.files[this.#file[i] ?? -1];
    if (!file) throw new RangeError(expected('dataset.span', 'document', `be below ${this.documents}`, `${i}`));
    return { file: file.path, offset: this.#offset[i] ?? 0, length: this.length(i) };
  }

  /**
   * Copies document bytes [start, start + target.length) into `target`.
   * @throws DataError when the file is gone, unreadable, or shorter than when it was opened
   */
  read(i: number, start: number, target: Uint8Array): void {
    const { offset, length } = this.span(i);
    if (start < 0 || start + target.length > length) {
      const range = `${start}..${start + target.length}`;
      throw new RangeError(expected('dataset.read', 'the range', `lie in 0..${length}`, range));
    }
    const index = this.#file[i] ?? 0;
    const file = this.files[index] as DataFile;
    const descriptor = this.descriptor(index, file.path);
    for (let done = 0; done < target.length; ) {
      const at = offset + start + done;
      const count = readAt(file.path, descriptor, target, done, at);
      if (count === 0) throw shrunk(file, at);
      done += count;
    }
  }

  /** Document bytes [start, start + length). @throws as `read` */
  slice(i: number, start: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.read(i, start, bytes);
    return bytes;
  }

  /** What must agree for the same windows to be drawn: the lengths of all documents, hashed. */
  fingerprint(): string {
    return createHash('sha256').update(new Uint8Array(this.#length.buffer)).digest('hex').slice(0, 16);
  }

  close(): void {
    this.#closed = true;
    for (const descriptor of this.#descriptors.values()) closeSync(descriptor);
    this.#descriptors.clear();
  }
  [Symbol.dispose](): void {
    this.close();
  }

  private descriptor(index: number, path: string): number {
    if (this.#closed) throw new DataError(expected('dataset.read', 'the data set', 'be open', 'a closed one'));
    const known = this.#descriptors.get(index);
    this.#descriptors.delete(index);
    const descriptor = known ?? openForWindows(path);
    this.#descriptors.set(index, descriptor);
    const [oldest] = this.#descriptors;
    if (this.#descriptors.size > OPEN_FILES && oldest) {
      this.#descriptors.delete(oldest[0]);
      closeSync(oldest[1]);
    }
    return descriptor;
  }
}

function openForWindows(path: string): number {
  try {
    return openSync(path, 'r');
  } catch (cause) {
    throw unreadable(path, cause);
  }
}

function readAt(path: string, descriptor: number, target: Uint8Array, from: number, position: number): number {
  try {
    return readSync(descriptor, target, from, target.length - from, position);
  } catch (cause) {
    throw unreadable(path, cause);
  }
}
