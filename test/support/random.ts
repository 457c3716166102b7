import { Philox } from '../../lib/rng.ts';

/** Random operands from a fixed seed; every call draws anew from one stream. */
export class Random {
  readonly #rng: Philox;

  constructor(seed: number, stream = 0) {
    this.#rng = new Philox(seed, stream);
  }

  normal(n: number, scale = 1): Float64Array {
    const values = new Float64Array(n);
    for (let i = 0; i < n; i++) values[i] = scale * this.#rng.normal();
    return values;
  }
  uniform(n: number, low: number, high: number): Float64Array {
    const values = new Float64Array(n);
    for (let i = 0; i < n; i++) values[i] = low + (high - low) * this.#rng.uniform();
    return values;
  }
  /** Integers in [low, high). */
  integers(n: number, low: number, high: number): Float64Array {
    const values = new Float64Array(n);
    for (let i = 0; i < n; i++) values[i] = low + this.#rng.integer(high - low);
    return values;
  }
}

/** A number from a text, to seed by title (FNV-1a). */
export function hash(text: string): number {
  let h = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193);
  return h >>> 0;
}
