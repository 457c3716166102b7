// The text of a data set in parts of bounded size, for work on its pieces.
import { setImmediate } from 'node:timers/promises';
import type { Dataset } from '../data/dataset.ts';
import type { Tokenizer } from './tokenizer.ts';

const READ_BYTES = 4 << 20;

export interface PartOptions {
  /** Read about this much: the middle of every document, in proportion to its length. */
  maxBytes: number;
  signal: AbortSignal | undefined;
  onBytes: (bytes: number, total: number) => void;
}

/**
 * Yields every document in parts that end where a piece ends, or after 4 MiB without such a place. A part is valid until
 * the next one is asked for.
 */
export async function* documentParts(
  data: Dataset,
  tokenizer: Tokenizer,
  options: PartOptions,
): AsyncGenerator<Buffer> {
  const share = Math.min(1, options.maxBytes / data.bytes);
  const lengths = Array.from({ length: data.documents }, (_, i) => Math.floor(data.length(i) * share));
  const total = lengths.reduce((a, b) => a + b, 0);
  const buffer = Buffer.allocUnsafe(READ_BYTES);
  let done = 0;
  for (const [document, length] of lengths.entries()) {
    const start = Math.floor((data.length(document) - length) / 2);
    for (let at = 0; at < length; ) {
      options.signal?.throwIfAborted();
      const read = buffer.subarray(0, Math.min(READ_BYTES, length - at));
      data.read(document, start + at, read);
      const isLast = at + read.length === length;
      const end = isLast ? read.length : tokenizer.stableEnd(read) || read.length;
      yield read.subarray(0, end);
      at += end;
      done += end;
      options.onBytes(done, total);
      await setImmediate();
    }
  }
}
