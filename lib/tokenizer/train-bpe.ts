// Trains a byte-level BPE tokenizer: pieces are counted, then pairs of neighbours are merged by their counts.
import { setImmediate } from 'node:timers/promises';
import { openDataset } from '../data/dataset.ts';
import { checkFunction, checkInteger, checkOptions, checkSignal, DataError, expected } from '../errors.ts';
import { nameOfBytes } from './byte-alphabet.ts';
import { documentParts } from './document-parts.ts';
import { type Merge, PairMerger } from './pair-merger.ts';
import { compilePattern, TRAINING_PATTERN } from './pieces.ts';
import { Tokenizer } from './tokenizer.ts';
import { WordCounts } from './word-counts.ts';

export interface TrainTokenizerOptions {
  /** Number of tokens, 256 to 65536: the bytes and the merges. */
  vocab: number;
  /** Between documents of one file, as for a data set; default "\n\f\n". */
  separator?: string | Uint8Array | null;
  /** Learn from about this much: the middle of every document, in proportion to its length; default: everything. */
  maxBytes?: number;
  signal?: AbortSignal;
  onProgress?: (progress: TrainTokenizerProgress) => void;
}

export interface TrainTokenizerProgress {
  /** Bytes read so far, of those to read. */
  bytes: number;
  totalBytes: number;
  /** Tokens so far; 256 until all is read. */
  tokens: number;
  vocab: number;
}

const KEYS = ['vocab', 'separator', 'maxBytes', 'signal', 'onProgress'];
const MERGES_AT_ONCE = 32;

/**
 * Trains byte-level BPE on the words of files and folders. The first 256 ids are the bytes, in order; the merges follow in
 * the order in which they were made. The same bytes give the same tokenizer.
 * @throws DataError when the data cannot be read or holds too few pairs for so many tokens; TypeError or RangeError
 *   naming a wrong option
 */
export async function trainTokenizer(
  paths: string | readonly string[],
  options: TrainTokenizerOptions,
): Promise<Tokenizer> {
  const where = 'trainTokenizer';
  checkOptions(where, options, KEYS);
  const vocab = checkInteger(where, 'vocab', options?.vocab, { min: 256, max: 65536 });
  const { signal, separator, onProgress } = options;
  checkSignal(where, signal);
  if (onProgress !== undefined) checkFunction(where, 'onProgress', onProgress);
  const maxBytes = checkInteger(where, 'maxBytes', options.maxBytes ?? Number.MAX_SAFE_INTEGER, { min: 2 });
  using data = await openDataset(paths, { ...(separator !== undefined && { separator }), ...(signal && { signal }) });
  const progress = { bytes: 0, totalBytes: 0, tokens: 256, vocab };
  const onlyBytes = Tokenizer.fromJson(tokenizerJson([], (byte) => Uint8Array.of(byte), 256));
  const onBytes = (bytes: number, totalBytes: number) => onProgress?.(Object.assign(progress, { bytes, totalBytes }));
  const words = new WordCounts(compilePattern({ Regex: TRAINING_PATTERN }));
  for await (const part of documentParts(data, onlyBytes, { maxBytes, signal, onBytes })) words.add(part);
  const merger = new PairMerger(words.counts);
  const merges: Merge[] = [];
  while (merger.size < vocab) {
    const merge = merger.next();
    if (!merge) throw tooSmall(data.files.map((file) => file.path).join(', '), vocab, merger.size);
    merges.push(merge);
    if (merges.length % MERGES_AT_ONCE !== 0) continue;
    onProgress?.(Object.assign(progress, { tokens: merger.size }));
    await setImmediate();
    signal?.throwIfAborted();
  }
  return Tokenizer.fromJson(tokenizerJson(merges, (symbol) => merger.bytesOf(symbol), vocab));
}

function tooSmall(paths: string, vocab: number, found: number): DataError {
  const got = `pairs that occur twice for ${found} only`;
  return new DataError(expected(paths, 'the data', `yield ${vocab} tokens`, got, 'Give more data or a smaller vocab.'));
}

/** A tokenizer.json that Hugging Face's libraries read; symbols are ids. */
function tokenizerJson(merges: readonly Merge[], bytesOf: (symbol: number) => Uint8Array, size: number): string {
  const name = (symbol: number) => nameOfBytes(bytesOf(symbol));
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false };
  const split = { type: 'Split', pattern: { Regex: TRAINING_PATTERN }, behavior: 'Isolated', invert: false };
  const file = {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: { type: 'Sequence', pretokenizers: [split, byteLevel] },
    post_processor: null,
    decoder: byteLevel,
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries(Array.from({ length: size }, (_, symbol) => [name(symbol), symbol])),
      merges: merges.map(({ left, right }) => [name(left), name(right)]),
    },
  };
  return `${JSON.stringify(file, null, 1)}\n`;
}
