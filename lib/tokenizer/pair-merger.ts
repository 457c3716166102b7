// The training of byte-pair encoding (Sennrich et al. 2016): the most frequent pair of neighbours becomes a symbol, again
// and again. Counts of pairs are kept up to date, so that a merge costs only the words that it changes.
import { Heap } from './heap.ts';

interface Pair {
  left: number;
  right: number;
  /** How often the pair occurs now. */
  count: number;
  /** Words that hold it, and some that held it. */
  words: number[];
}

/** A pair with its count when it was queued; the count may have changed since. */
interface Candidate {
  pair: Pair;
  count: number;
}

export interface Merge {
  left: number;
  right: number;
  /** The new symbol, or an older one of the same bytes. */
  symbol: number;
}

/** Symbols 0 to 255 are the bytes; others are numbered as they are made. */
export class PairMerger {
  readonly #symbols: Buffer[] = Array.from({ length: 256 }, (_, byte) => Buffer.of(byte));
  readonly #symbolOf = new Map(this.#symbols.map((bytes, i) => [bytes.toString('latin1'), i]));
  /** Symbols of all words, one word after another; a word shrinks in its place. */
  readonly #text: Uint32Array;
  readonly #start: Uint32Array;
  readonly #length: Uint32Array;
  readonly #count: Float64Array;
  readonly #pairs = new Map<number, Pair>();
  readonly #queue = new Heap<Candidate>((a, b) => this.#isBefore(a, b));

  /** @param counts how often each word occurs */
  constructor(counts: ReadonlyMap<string, number>) {
    const words = [...counts.keys()].map((word) => Buffer.from(word));
    this.#text = new Uint32Array(words.reduce((sum, word) => sum + word.length, 0));
    this.#start = new Uint32Array(words.length);
    this.#length = Uint32Array.from(words, (word) => word.length);
    this.#count = Float64Array.from(counts.values());
    let at = 0;
    for (const [i, word] of words.entries()) {
      this.#start[i] = at;
      this.#text.set(word, at);
      at += word.length;
      this.#addPairs(i, () => true);
    }
    for (const pair of this.#pairs.values()) this.#queue.push({ pair, count: pair.count });
  }

  /** Number of symbols so far. */
  get size(): number {
    return this.#symbols.length;
  }
  bytesOf(symbol: number): Uint8Array {
    return this.#symbols[symbol] as Buffer;
  }

  /** Joins the pair that occurs most, of equals the one whose bytes come first; undefined if none occurs twice. */
  next(): Merge | undefined {
    const pair = this.#takeBest();
    if (!pair) return undefined;
    const { left, right } = pair;
    const symbol = this.#symbolFor(Buffer.concat([this.bytesOf(left), this.bytesOf(right)]));
    const grown = new Set<Pair>();
    for (const word of pair.words) this.#mergeIn(word, pair, symbol, grown);
    this.#pairs.delete(pairKey(left, right));
    for (const other of grown) this.#queue.push({ pair: other, count: other.count });
    return { left, right, symbol };
  }

  #symbolFor(bytes: Buffer): number {
    const name = bytes.toString('latin1');
    const symbol = this.#symbolOf.get(name) ?? this.#symbols.push(bytes) - 1;
    this.#symbolOf.set(name, symbol);
    return symbol;
  }

  /** A pair whose count grew was queued anew, so the first candidate whose count still holds is the best. */
  #takeBest(): Pair | undefined {
    for (;;) {
      const candidate = this.#queue.pop();
      if (!candidate || candidate.count < 2) return undefined;
      const { pair, count } = candidate;
      if (pair.count === count) return pair;
      if (pair.count < count) this.#queue.push({ pair, count: pair.count });
    }
  }

  #isBefore(a: Candidate, b: Candidate): boolean {
    if (a.count !== b.count) return a.count > b.count;
    const order = Buffer.compare(this.bytesOf(a.pair.left), this.bytesOf(b.pair.left));
    return (order || Buffer.compare(this.bytesOf(a.pair.right), this.bytesOf(b.pair.right))) < 0;
  }

  /** Joins `pair` in one word, from its start on, if it is still there. */
  #mergeIn(word: number, { left, right }: Pair, symbol: number, grown: Set<Pair>): void {
    const text = this.#text;
    const start = this.#start[word] ?? 0;
    const end = start + (this.#length[word] ?? 0);
    let from = start;
    while (from + 1 < end && (text[from] !== left || text[from + 1] !== right)) from++;
    if (from + 1 >= end) return;
    this.#removePairs(word);
    let to = from;
    while (from < end) {
      const joins = from + 1 < end && text[from] === left && text[from + 1] === right;
      text[to++] = joins ? symbol : (text[from] ?? 0);
      from += joins ? 2 : 1;
    }
    this.#length[word] = to - start;
    this.#addPairs(word, (a, b) => a === symbol || b === symbol, grown);
  }

  #removePairs(word: number): void {
    const start = this.#start[word] ?? 0;
    const last = start + (this.#length[word] ?? 0) - 1;
    const count = this.#count[word] ?? 0;
    for (let i = start; i < last; i++) this.#pair(this.#text[i] ?? 0, this.#text[i + 1] ?? 0).count -= count;
  }

  /** Counts all pairs of a word; those that `isNew` to the word are put into `grown` and learn where they are. */
  #addPairs(word: number, isNew: (left: number, right: number) => boolean, grown?: Set<Pair>): void {
    const start = this.#start[word] ?? 0;
    const last = start + (this.#length[word] ?? 0) - 1;
    const count = this.#count[word] ?? 0;
    for (let i = start; i < last; i++) {
      const [left, right] = [this.#text[i] ?? 0, this.#text[i + 1] ?? 0];
      const pair = this.#pair(left, right);
      pair.count += count;
      if (!isNew(left, right)) continue;
      if (pair.words.at(-1) !== word) pair.words.push(word);
      grown?.add(pair);
    }
  }

  #pair(left: number, right: number): Pair {
    const key = pairKey(left, right);
    let pair = this.#pairs.get(key);
    if (!pair) {
      pair = { left, right, count: 0, words: [] };
      this.#pairs.set(key, pair);
    }
    return pair;
  }
}

function pairKey(left: number, right: number): number {
  return left * 2 ** 24 + right;
}
