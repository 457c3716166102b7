// How often each piece occurs, in bounded memory.
import { splitPieces } from './pieces.ts';
import { textRuns } from './utf8.ts';

/** A longer piece is no word; it would only cost time. */
const LONGEST_PIECE = 256;
const MOST_WORDS = 1 << 21;

/**
 * Counts the pieces of text; bytes that are no UTF-8 are passed over. When more than two million pieces are known, the
 * rarest are forgotten.
 */
export class WordCounts {
  readonly counts = new Map<string, number>();
  readonly #pattern: RegExp;

  constructor(pattern: RegExp) {
    this.#pattern = pattern;
  }

  add(bytes: Buffer): void {
    for (const [from, to] of textRuns(bytes).runs) {
      for (const piece of splitPieces(bytes.toString('utf8', from, to), this.#pattern)) this.#addPiece(piece);
    }
    if (this.counts.size > MOST_WORDS) this.#forgetRare();
  }

  #addPiece(piece: string): void {
    const count = this.counts.get(piece);
    if (count !== undefined) this.counts.set(piece, count + 1);
    // A copy: the piece itself would keep the text it was cut from in memory.
    else if (piece.length <= LONGEST_PIECE) this.counts.set(Buffer.from(piece).toString(), 1);
  }

  #forgetRare(): void {
    for (let rare = 1; this.counts.size > MOST_WORDS / 2; rare++) {
      for (const [word, count] of this.counts) if (count <= rare) this.counts.delete(word);
    }
  }
}
