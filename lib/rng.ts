const M0 = 0xd2511f53;
const M1 = 0xcd9e8d57;
const W0 = 0x9e3779b9;
const W1 = 0xbb67ae85;

/** High 32 bits of the 64-bit product of two 32-bit unsigned numbers. */
function mulHigh(a: number, b: number): number {
  const ah = a >>> 16;
  const al = a & 0xffff;
  const bh = b >>> 16;
  const bl = b & 0xffff;
  // No sum leaves 32 bits: doubles would take ten times as long.
  const mid = Math.imul(ah, bl) + (Math.imul(al, bl) >>> 16);
  const mid2 = Math.imul(al, bh) + (mid & 0xffff);
  return (Math.imul(ah, bh) + (mid >>> 16) + (mid2 >>> 16)) >>> 0;
}

/**
 * Counter-based random numbers, Philox4x32-10 (Salmon et al. 2011), the same as native/core/philox.h: four 32-bit words
 * for every counter, in any order.
 */
export class Philox {
  readonly #key0: number;
  readonly #key1: number;
  readonly #stream: number;
  #counter = 0;
  readonly #words = new Uint32Array(4);
  #used = 4;
  #spare: number | undefined;

  /** @param seed integer below 2^53 @param stream separates independent uses of one seed */
  constructor(seed: number, stream = 0) {
    this.#key0 = seed >>> 0;
    this.#key1 = Math.floor(seed / 2 ** 32) >>> 0;
    this.#stream = stream >>> 0;
  }

  /** How many blocks of four words were drawn; set it to go on where another left off. */
  get counter(): number {
    return this.#counter;
  }
  set counter(value: number) {
    this.#counter = value;
    this.#used = 4;
    this.#spare = undefined;
  }

  /** The next 32 bits. */
  next(): number {
    if (this.#used === 4) {
      this.block(this.#counter++);
      this.#used = 0;
    }
    return this.#words[this.#used++] ?? 0;
  }
  /** Uniform in [0, 1), 24 bits. */
  uniform(): number {
    return (this.next() >>> 8) / 2 ** 24;
  }
  /** Uniform integer in [0, n), n up to 2^53. */
  integer(n: number): number {
    const high = (this.next() & 0x1fffff) * 2 ** 32;
    return Math.floor(((high + this.next()) / 2 ** 53) * n);
  }
  /** Standard normal (Box & Muller 1958). */
  normal(): number {
    if (this.#spare !== undefined) {
      const spare = this.#spare;
      this.#spare = undefined;
      return spare;
    }
    const r = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    const angle = 2 * Math.PI * this.uniform();
    this.#spare = r * Math.sin(angle);
    return r * Math.cos(angle);
  }

  private block(counter: number): void {
    philox(this.#words, counter, this.#stream, this.#key0, this.#key1);
  }
}

const drawWords = new Uint32Array(4);

/** The random word of class `v` in draw `counter` of `seed`: philox_word of native/core/philox.h. */
export function philoxWord(seed: number, counter: number, v: number): number {
  philox(drawWords, counter, (v >> 2) + 1, seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0);
  return drawWords[v & 3] ?? 0;
}

/** One block: ten rounds over (counter low, counter high, stream, 0). */
function philox(words: Uint32Array, counter: number, stream: number, key0: number, key1: number): void {
  let c0 = counter >>> 0;
  let c1 = Math.floor(counter / 2 ** 32) >>> 0;
  let c2 = stream;
  let c3 = 0;
  let k0 = key0;
  let k1 = key1;
  for (let round = 0; round < 10; round++) {
    const h0 = mulHigh(M0, c0);
    const l0 = Math.imul(M0, c0);
    const h1 = mulHigh(M1, c2);
    const l1 = Math.imul(M1, c2);
    c0 = (h1 ^ c1 ^ k0) >>> 0;
    c1 = l1 >>> 0;
    c2 = (h0 ^ c3 ^ k1) >>> 0;
    c3 = l0 >>> 0;
    k0 = (k0 + W0) >>> 0;
    k1 = (k1 + W1) >>> 0;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}
