// Documents as tokens, piece by piece: what is in memory does not grow with the document.
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import type { Dataset } from './dataset.ts';
import type { Encoder } from './encoder.ts';

const PIECE_BYTES = 1 << 20;

/** Where a text is read: bytes [from, to) of a document; default: all of it. */
export interface ByteRange {
  from: number;
  to: number;
}

/**
 * The bytes of a document in pieces whose ids, one after another, are those of the whole. A piece ends where nothing that
 * follows can change its tokens; a text without such a place is read to its end.
 */
export function* stablePieces(
  tokenizer: Tokenizer,
  data: Dataset,
  document: number,
  { from, to }: ByteRange = { from: 0, to: data.length(document) },
  pieceBytes = PIECE_BYTES,
): Generator<Uint8Array> {
  for (let at = from, wanted = pieceBytes; at < to; ) {
    const bytes = data.slice(document, at, Math.min(wanted, to - at));
    const end = at + bytes.length === to ? bytes.length : tokenizer.stableEnd(bytes);
    if (end === 0) {
      wanted *= 2;
      continue;
    }
    yield bytes.subarray(0, end);
    at += end;
    wanted = pieceBytes;
  }
}

/** A piece of a document as ids. */
export interface EncodedPiece {
  document: number;
  bytes: number;
  ids: Int32Array;
}

/** All documents as ids, in order, while the encoder works at what follows. */
export async function* encodedPieces(
  tokenizer: Tokenizer,
  data: Dataset,
  encoder: Encoder,
  pieceBytes?: number,
): AsyncGenerator<EncodedPiece> {
  const underWay: Promise<EncodedPiece>[] = [];
  for (let document = 0; document < data.documents; document++) {
    for (const piece of stablePieces(tokenizer, data, document, undefined, pieceBytes)) {
      const ids = encoder.encode(piece);
      const encoded = ids.then((ids) => ({ document, bytes: piece.length, ids }));
      encoded.catch(() => undefined); // thrown where it is waited for, if it still is
      underWay.push(encoded);
      if (underWay.length >= 4 * encoder.width) yield (await underWay.shift()) as EncodedPiece;
    }
  }
  for (const encoded of underWay) yield await encoded;
}
