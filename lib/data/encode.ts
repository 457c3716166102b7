// Documents as tokens, piece by piece: what is in memory does not grow with the document.
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import type { Dataset } from './dataset.ts';

const PIECE_BYTES = 1 << 20;

/** Where a text is read: bytes [from, to) of a document; default: all of it. */
export interface ByteRange {
  from: number;
  to: number;
}

/**
 * The ids of a document's bytes, as tokenizer.encode() gives them for the whole, in pieces. A piece ends where nothing that
 * follows can change its tokens; a text without such a place is read to its end.
 */
export function* encodedPieces(
  tokenizer: Tokenizer,
  data: Dataset,
  document: number,
  { from, to }: ByteRange = { from: 0, to: data.length(document) },
  pieceBytes = PIECE_BYTES,
): Generator<{ ids: Int32Array; bytes: number }> {
  for (let at = from, wanted = pieceBytes; at < to; ) {
    const bytes = data.slice(document, at, Math.min(wanted, to - at));
    const end = at + bytes.length === to ? bytes.length : tokenizer.stableEnd(bytes);
    if (end === 0) {
      wanted *= 2;
      continue;
    }
    yield { ids: tokenizer.encode(bytes.subarray(0, end)), bytes: end };
    at += end;
    wanted = pieceBytes;
  }
}
