// Which parts of any bytes are text: the valid UTF-8 sequences of RFC 3629, section 4.
import { isUtf8 } from 'node:buffer';

export interface TextRuns {
  /** Maximal valid runs [from, to), in order; bytes between them are no text. */
  runs: [from: number, to: number][];
  /** Where a sequence begins that the end of the bytes cuts off and more bytes could complete; else their length. */
  tail: number;
}

export function textRuns(bytes: Uint8Array): TextRuns {
  const end = bytes.length;
  if (isUtf8(bytes)) return { runs: end === 0 ? [] : [[0, end]], tail: end };
  const runs: [number, number][] = [];
  let from = 0;
  let at = 0;
  while (at < end) {
    const length = sequenceLength(bytes, at);
    if (length > 0) {
      at += length;
      continue;
    }
    if (at > from) runs.push([from, at]);
    if (length === CUT) return { runs, tail: at };
    from = ++at;
  }
  if (at > from) runs.push([from, at]);
  return { runs, tail: end };
}

const INVALID = 0;
const CUT = -1;

/** Bytes of the sequence at `at`; INVALID if there is none; CUT if the end of the bytes hides whether there is one. */
function sequenceLength(bytes: Uint8Array, at: number): number {
  const first = bytes[at] ?? 0;
  if (first < 0x80) return 1;
  if (first < 0xc2 || first > 0xf4) return INVALID;
  const length = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
  // The second byte's range excludes overlong forms, surrogates and code points beyond U+10FFFF.
  let low = first === 0xe0 ? 0xa0 : first === 0xf0 ? 0x90 : 0x80;
  let high = first === 0xed ? 0x9f : first === 0xf4 ? 0x8f : 0xbf;
  for (let i = 1; i < length; i++) {
    const next = bytes[at + i];
    if (next === undefined) return CUT;
    if (next < low || next > high) return INVALID;
    low = 0x80;
    high = 0xbf;
  }
  return length;
}
