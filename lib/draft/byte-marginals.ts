// From a distribution over the next token to distributions over its bytes, one after another.
import { native } from '../native.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';

const tries = new WeakMap<Tokenizer, ByteTrie>();

/** A vocabulary in the order of its bytes, in flat arrays. */
export class ByteTrie {
  readonly ids: Int32Array;
  readonly lengths: Int32Array;
  readonly #starts: Int32Array;
  readonly #bytes: Uint8Array;
  readonly tokenizer: Tokenizer;

  /** That of a tokenizer, made once. */
  static of(tokenizer: Tokenizer): ByteTrie {
    const trie = tries.get(tokenizer) ?? new ByteTrie(tokenizer);
    tries.set(tokenizer, trie);
    return trie;
  }

  private constructor(tokenizer: Tokenizer) {
    this.tokenizer = tokenizer;
    this.ids = tokenizer.sorted;
    const parts = Array.from(this.ids, (id) => tokenizer.bytesOf(id));
    this.lengths = Int32Array.from(parts, (part) => part.length);
    this.#bytes = new Uint8Array(Buffer.concat(parts));
    this.#starts = new Int32Array(parts.length);
    for (let i = 1; i < parts.length; i++) this.#starts[i] = (this.#starts[i - 1] ?? 0) + (this.lengths[i - 1] ?? 0);
  }

  byteAt(position: number, depth: number): number {
    return this.#bytes[(this.#starts[position] ?? 0) + depth] ?? 0;
  }
}

/** The next token, byte by byte: which tokens begin with the bytes chosen so far, and how much they weigh. */
export class ByteMarginals {
  readonly #trie: ByteTrie;
  /** Positions in the trie of the tokens that count, ascending, and the sum of the weights of all before each. */
  readonly #positions: Int32Array;
  readonly #sums: Float64Array;
  /** Those that agree, of these. */
  #from = 0;
  #to = 0;
  #depth = 0;
  /** Bytes that may come next, ascending, what the tokens with each weigh together, and where those end. */
  readonly #bytes = new Uint8Array(256);
  readonly #weights = new Float64Array(256);
  readonly #ends = new Int32Array(256);
  #count = 0;
  /** Weight of the token that ends here. */
  ending = 0;

  constructor(trie: ByteTrie) {
    this.#trie = trie;
    this.#positions = new Int32Array(trie.ids.length);
    this.#sums = new Float64Array(trie.ids.length + 1);
  }

  /** Begins a token that is known to begin with `prefix`. */
  start(logits: Float32Array, prefix: Uint8Array): void {
    const { ids, tokenizer } = this.#trie;
    const [from, to] = prefix.length > 0 ? tokenizer.range(prefix) : [0, ids.length];
    const count = native().binding.weighTokens(logits, ids, from, to, this.#positions, this.#sums);
    this.#enter(0, count, prefix.length);
  }

  /** Goes on with a byte that has a weight. */
  take(byte: number): void {
    const choice = this.#choiceOf(byte);
    const from = choice === 0 ? this.#firstLonger() : (this.#ends[choice - 1] ?? 0);
    this.#enter(from, this.#ends[choice] ?? 0, this.#depth + 1);
  }

  /** Weight of all tokens that agree. */
  get total(): number {
    return (this.#sums[this.#to] ?? 0) - (this.#sums[this.#from] ?? 0);
  }
  /** The chance that the token ends here. */
  get endingShare(): number {
    return this.ending > 0 ? this.ending / this.total : 0;
  }
  /** The id of the token that ends here. */
  get id(): number {
    return this.#trie.ids[this.#positions[this.#from] ?? 0] ?? 0;
  }
  /** Weight of the tokens that go on with `byte`. */
  weightOf(byte: number): number {
    const choice = this.#choiceOf(byte);
    return choice < 0 ? 0 : (this.#weights[choice] ?? 0);
  }
  /** Adds the weights of the bytes that may come next to `weights` (256), times `factor`. */
  addTo(weights: Float64Array, factor: number): void {
    for (let i = 0; i < this.#count; i++) {
      const byte = this.#bytes[i] as number;
      weights[byte] = (weights[byte] as number) + factor * (this.#weights[i] as number);
    }
  }

  /** Which of the bytes that may come next `byte` is, or -1. */
  #choiceOf(byte: number): number {
    const choice = this.#bytes.indexOf(byte);
    return choice < this.#count ? choice : -1;
  }

  #firstLonger(): number {
    let at = this.#from;
    while (at < this.#to && this.#trie.lengths[this.#positions[at] as number] === this.#depth) at++;
    return at;
  }

  #byteAt(at: number): number {
    return this.#trie.byteAt(this.#positions[at] as number, this.#depth);
  }

  /** Where the tokens from `from` on that have the same next byte end. */
  #groupEnd(from: number): number {
    const byte = this.#byteAt(from);
    let low = from + 1;
    let stride = 1;
    while (low < this.#to && this.#byteAt(Math.min(this.#to, low + stride) - 1) === byte) {
      low = Math.min(this.#to, low + stride);
      stride *= 2;
    }
    let high = Math.min(this.#to, low + stride);
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#byteAt(middle) === byte) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #enter(from: number, to: number, depth: number): void {
    this.#from = from;
    this.#to = to;
    this.#depth = depth;
    const sums = this.#sums;
    const longer = this.#firstLonger();
    this.ending = (sums[longer] ?? 0) - (sums[from] ?? 0);
    this.#count = 0;
    for (let at = longer; at < to; ) {
      const end = this.#groupEnd(at);
      this.#bytes[this.#count] = this.#byteAt(at);
      this.#weights[this.#count] = (sums[end] ?? 0) - (sums[at] ?? 0);
      this.#ends[this.#count++] = end;
      at = end;
    }
  }
}
