import { openDataset } from '../data/dataset.ts';
import { checkFunction, checkInteger, checkOptions, checkSignal, DataError, expected } from '../errors.ts';
import { documentParts } from './document-parts.ts';
import type { Tokenizer } from './tokenizer.ts';

export interface MeasureTokenizerOptions {
  /** Encode about this much: the middle of every document, in proportion to its length; default: everything. */
  maxBytes?: number;
  /** Between documents of one file, as for a data set; default "\n\f\n". */
  separator?: string | Uint8Array | null;
  signal?: AbortSignal;
  onProgress?: (progress: { bytes: number; totalBytes: number }) => void;
}

export interface TokenizerMeasure {
  bytes: number;
  tokens: number;
  bytesPerToken: number;
  documents: number;
}

const KEYS = ['maxBytes', 'separator', 'signal', 'onProgress'];

/**
 * How many tokens text takes.
 * @throws DataError when the data cannot be read or nothing of it is measured; TypeError or RangeError naming a wrong option
 */
export async function measureTokenizer(
  tokenizer: Tokenizer,
  paths: string | readonly string[],
  options: MeasureTokenizerOptions = {},
): Promise<TokenizerMeasure> {
  const where = 'measureTokenizer';
  checkOptions(where, options, KEYS);
  const { signal, separator, onProgress } = options;
  checkSignal(where, signal);
  if (onProgress !== undefined) checkFunction(where, 'onProgress', onProgress);
  const maxBytes = checkInteger(where, 'maxBytes', options.maxBytes ?? Number.MAX_SAFE_INTEGER, { min: 2 });
  using data = await openDataset(paths, { ...(separator !== undefined && { separator }), ...(signal && { signal }) });
  const onBytes = (bytes: number, totalBytes: number) => onProgress?.({ bytes, totalBytes });
  let [bytes, tokens] = [0, 0];
  for await (const part of documentParts(data, tokenizer, { maxBytes, signal, onBytes })) {
    bytes += part.length;
    tokens += tokenizer.encode(part).length;
  }
  if (tokens === 0) throw new DataError(expected(where, 'the data', 'have text within maxBytes', 'none'));
  return { bytes, tokens, bytesPerToken: bytes / tokens, documents: data.documents };
}
