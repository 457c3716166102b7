// Text and bytes to tokens and back: byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) for any bytes.
import { readFile } from 'node:fs/promises';
import { checkString, describe, expected, ModelFormatError } from '../errors.ts';
import { toBytes } from '../to-bytes.ts';
import { BPE, type Bpe } from './bpe-library.ts';
import { nameOfBytes } from './byte-alphabet.ts';
import { CLOSED_PIECE, GPT2_PATTERN, splitPieces } from './pieces.ts';
import { parseTokenizerFile, type TokenizerFile } from './tokenizer-file.ts';
import { textRuns } from './utf8.ts';

/** Bytes that are cut into pieces at once, so that neither strings nor lists of pieces grow with the text. */
const TEXT_BYTES = 4 << 20;
const CACHED_PIECES = 1 << 18;
const CACHED_PIECE_LENGTH = 64;

/** A subword vocabulary over bytes: byte-level BPE in Hugging Face's tokenizer.json format. */
export class Tokenizer {
  /** The file's text, to write it beside a model. */
  readonly json: string;
  /** Ids are 0 to vocab - 1. */
  readonly vocab: number;
  /** All ids that have bytes, by their bytes, a prefix before what it begins; equal bytes by id. */
  readonly sorted: Int32Array;
  /** Bytes of the longest token. */
  readonly longest: number;
  readonly #file: TokenizerFile;
  readonly #bpe: Bpe;
  /** Id by byte, for bytes that are no text. */
  readonly #byteIds: Int32Array;
  /** Finds added tokens, the longest first; undefined if there are none. */
  readonly #added: RegExp | undefined;
  readonly #stability: Stability;
  readonly #cache = new Map<string, readonly number[]>();

  private constructor(where: string, text: string) {
    const file = parseTokenizerFile(where, text);
    const { vocab, merges, ignoreMerges, bytes } = file;
    this.json = text;
    this.vocab = bytes.length;
    this.longest = bytes.reduce((most, own) => Math.max(most, own.length), 0);
    this.#file = file;
    this.#bpe = new BPE({ type: 'BPE', vocab, merges, ignore_merges: ignoreMerges });
    this.#byteIds = Int32Array.from({ length: 256 }, (_, b) => vocab[nameOfBytes(Uint8Array.of(b))] ?? 0);
    this.#added = alternatives([...file.added.keys()]);
    this.#stability = stabilityOf(file);
    this.sorted = Int32Array.from(bytes.keys())
      .filter((id) => this.bytesOf(id).length > 0)
      .sort((a, b) => Buffer.compare(this.bytesOf(a), this.bytesOf(b)) || a - b);
  }

  /**
   * Reads a tokenizer.json.
   * @throws ModelFormatError if there is no such file, or it is not one of byte-level BPE
   */
  static async open(path: string): Promise<Tokenizer> {
    checkString('Tokenizer.open', 'path', path);
    let text: string;
    try {
      text = await readFile(path, 'utf8');
    } catch (cause) {
      const { code, message } = cause as NodeJS.ErrnoException;
      const hint = code === 'ENOENT' ? 'There is no such file.' : undefined;
      throw new ModelFormatError(expected(path, 'the tokenizer', 'be readable', code ?? describe(message), hint), {
        cause,
      });
    }
    return new Tokenizer(path, text);
  }

  /**
   * The tokenizer of a tokenizer.json's text.
   * @throws ModelFormatError if it is not one of byte-level BPE
   */
  static fromJson(text: string): Tokenizer {
    return new Tokenizer('Tokenizer.fromJson', checkString('Tokenizer.fromJson', 'text', text));
  }

  /**
   * Ids of any bytes, of which decode gives the same bytes. Special tokens are never added, and never parsed out of the
   * text. Bytes that are no UTF-8 become tokens of one byte.
   * @throws TypeError for lone surrogates, which UTF-8 cannot express
   */
  encode(text: string | Uint8Array): Int32Array {
    const bytes = toBytes('tokenizer.encode', 'text', text);
    const ids = new IdList();
    let done = 0;
    for (const [from, to] of textRuns(bytes).runs) {
      this.#encodeBytes(bytes.subarray(done, from), ids);
      this.#encodeRun(bytes.subarray(from, to), ids);
      done = to;
    }
    this.#encodeBytes(bytes.subarray(done), ids);
    return ids.take();
  }

  /** @throws RangeError for an id that is not in the vocabulary */
  decode(ids: ArrayLike<number>): Uint8Array {
    const parts = Array.from(ids, (id) => this.bytesOf(id));
    return new Uint8Array(Buffer.concat(parts));
  }

  /**
   * Bytes of a token, not to be changed; none for special tokens and ids that only pad the vocabulary.
   * @throws RangeError for an id that is not in the vocabulary
   */
  bytesOf(id: number): Uint8Array {
    const bytes = this.#file.bytes[id];
    if (bytes !== undefined) return bytes;
    throw new RangeError(expected('tokenizer.bytesOf', 'id', `be an integer below ${this.vocab}`, describe(id)));
  }

  /** Positions [from, to) of `sorted` whose ids' bytes begin with `prefix`. */
  range(prefix: Uint8Array): [from: number, to: number] {
    return [this.#firstFrom(prefix, 0), this.#firstFrom(prefix, 1)];
  }

  /** The first position of `sorted` whose id's bytes are, by `orderOfHead`, at least at `order` from a prefix. */
  #firstFrom(prefix: Uint8Array, order: number): number {
    let low = 0;
    let high = this.sorted.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (orderOfHead(this.bytesOf(this.sorted[middle] ?? 0), prefix) >= order) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  /**
   * The last position p such that, whatever bytes follow, the ids of it all are those of bytes [0, p) and then those of
   * the rest: where the last piece begins that more bytes could change. It is exact for tokenizers that trainTokenizer
   * made, earlier for others, down to 0 where nothing is known of their pieces.
   */
  stableEnd(bytes: Uint8Array): number {
    const start = lastSpace(bytes, this.#stability);
    const { runs, tail } = textRuns(bytes.subarray(start));
    const [from, to] = runs.at(-1) ?? [0, 0];
    if (to < tail) return start + tail; // what ends here is no text
    if (this.#stability !== 'exact') return start + from;
    const [pattern] = this.#file.patterns;
    const text = Buffer.from(bytes.subarray(start + from, start + to)).toString();
    const last = (pattern && splitPieces(text, pattern).at(-1)) ?? '';
    return start + to - (CLOSED_PIECE.test(last) ? 0 : Buffer.byteLength(last));
  }

  #encodeBytes(bytes: Uint8Array, ids: IdList): void {
    for (const byte of bytes) ids.push(this.#byteIds[byte] ?? 0);
  }

  /** Valid UTF-8, in parts that end where no later byte matters. */
  #encodeRun(bytes: Uint8Array, ids: IdList): void {
    for (let at = 0; at < bytes.length; ) {
      const rest = bytes.subarray(at);
      const stable = rest.length > TEXT_BYTES ? this.stableEnd(rest.subarray(0, TEXT_BYTES)) : 0;
      const part = stable > 0 ? rest.subarray(0, stable) : rest;
      this.#encodeText(Buffer.from(part.buffer, part.byteOffset, part.length).toString(), ids);
      at += part.length;
    }
  }

  #encodeText(text: string, ids: IdList): void {
    let done = 0;
    for (const match of this.#added ? text.matchAll(this.#added) : []) {
      this.#encodeSection(text.slice(done, match.index), ids);
      ids.push(this.#file.added.get(match[0]) ?? 0);
      done = match.index + match[0].length;
    }
    this.#encodeSection(text.slice(done), ids);
  }

  #encodeSection(text: string, ids: IdList): void {
    const [first, ...others] = this.#file.patterns;
    let pieces = first ? splitPieces(text, first) : [text];
    for (const pattern of others) pieces = pieces.flatMap((piece) => splitPieces(piece, pattern));
    for (const piece of pieces) {
      for (const id of this.#pieceIds(piece)) ids.push(id);
    }
  }

  #pieceIds(piece: string): readonly number[] {
    const known = this.#cache.get(piece);
    if (known) return known;
    const bytes = Buffer.from(piece);
    const ids = this.#bpe.encode([nameOfBytes(bytes)]).map((token) => this.#file.vocab[token] ?? 0);
    if (piece.length <= CACHED_PIECE_LENGTH) {
      if (this.#cache.size >= CACHED_PIECES) this.#cache.clear();
      this.#cache.set(bytes.toString(), ids); // a copy: the piece itself would keep the text it was cut from in memory
    }
    return ids;
  }
}

/** Below 0 where bytes come before all that begin with a prefix, 0 where they begin with it, above 0 behind them. */
function orderOfHead(bytes: Uint8Array, prefix: Uint8Array): number {
  for (let i = 0; i < prefix.length; i++) {
    const order = (bytes[i] ?? -1) - (prefix[i] ?? 0);
    if (order !== 0) return order;
  }
  return 0;
}

/**
 * What is known of the pieces. 'exact': they are those of trainTokenizer. 'spaces': a piece begins wherever white space
 * follows something else, and what lies before does not depend on what comes after. 'unknown': nothing.
 */
type Stability = 'exact' | 'spaces' | 'unknown';

function stabilityOf({ trained, patterns, added }: TokenizerFile): Stability {
  if (trained) return added.size === 0 ? 'exact' : 'unknown';
  const gpt2 = patterns.length === 1 && patterns[0]?.source === GPT2_PATTERN.source;
  const crosses = [...added.keys()].some((content) => /\S\s/u.test(content));
  return gpt2 && !crosses ? 'spaces' : 'unknown';
}

/** The last position of ASCII white space after something else, or 0: what lies before it is settled. */
function lastSpace(bytes: Uint8Array, stability: Stability): number {
  if (stability === 'unknown') return 0;
  for (let at = bytes.length - 1; at > 0; at--) {
    if (!isSpace(bytes[at]) || isSpace(bytes[at - 1])) continue;
    // Bytes beyond ASCII may end a white space character, which joins others in GPT-2's pieces.
    if (stability === 'exact' || (bytes[at - 1] ?? 0) < 0x7f) return at;
  }
  return 0;
}

function isSpace(byte: number | undefined): boolean {
  return byte === 0x20 || (byte !== undefined && byte >= 0x09 && byte <= 0x0d);
}

function alternatives(contents: string[]): RegExp | undefined {
  if (contents.length === 0) return undefined;
  const longestFirst = contents.sort((a, b) => b.length - a.length);
  return new RegExp(longestFirst.map((content) => content.replace(/[.*+?^${}()|[\]\\/]/g, '\\$&')).join('|'), 'gu');
}

/** A growing list of ids. */
class IdList {
  #ids = new Int32Array(64);
  #length = 0;

  push(id: number): void {
    if (this.#length === this.#ids.length) {
      const larger = new Int32Array(2 * this.#length);
      larger.set(this.#ids);
      this.#ids = larger;
    }
    this.#ids[this.#length++] = id;
  }
  take(): Int32Array {
    return this.#ids.slice(0, this.#length);
  }
}
