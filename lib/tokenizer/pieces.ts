// How text is cut into pieces (words) before byte-pair encoding: no token crosses the border of two pieces.
import { SplitPreTokenizer } from './bpe-library.ts';

/** GPT-2's pieces (Radford et al. 2019); what a ByteLevel pre-tokenizer cuts by itself. */
export const GPT2_PATTERN = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

/**
 * The pieces that trainTokenizer cuts: a word, a run of signs or one digit, each with the white space character before it,
 * a newline as well as a space, since lines of books are wrapped; and what other white space there is. Where a piece ends
 * follows from the two characters after its start and the run they begin, so a piece that another follows is final.
 */
export const TRAINING_PATTERN =
  "[\\x09-\\x0d\\x20]?[\\p{L}\\p{M}']+|[\\x09-\\x0d\\x20]?\\p{N}|[\\x09-\\x0d\\x20]?[^\\x09-\\x0d\\x20\\p{L}\\p{M}\\p{N}']+|[\\x09-\\x0d\\x20]+(?![^\\x09-\\x0d\\x20])";

/** A piece of TRAINING_PATTERN that nothing can be added to: one digit. */
export const CLOSED_PIECE = /\p{N}$/u;

/** @throws SyntaxError for an expression that cannot be had in JavaScript */
export function compilePattern(pattern: { Regex: string } | { String: string }): RegExp {
  return new SplitPreTokenizer({ pattern }).pattern;
}

/** The matches of `pattern` and what lies between them, in order; joined, they are `text`. */
export function splitPieces(text: string, pattern: RegExp): string[] {
  const matches = text.match(pattern) ?? [];
  let length = 0;
  for (const match of matches) length += match.length;
  return length === text.length ? matches : withGaps(text, pattern);
}

function withGaps(text: string, pattern: RegExp): string[] {
  const pieces: string[] = [];
  let done = 0;
  for (const match of text.matchAll(pattern)) {
    if (done < match.index) pieces.push(text.slice(done, match.index));
    pieces.push(match[0]);
    done = match.index + match[0].length;
  }
  if (done < text.length) pieces.push(text.slice(done));
  return pieces;
}
