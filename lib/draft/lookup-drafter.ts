import type { Draft, Drafter, DraftRequest } from './drafter.ts';

/** Lengths of context that are looked up, the longest first, and how often what followed them follows again. */
const CONTEXTS = [
  { length: 24, confidence: 0.97 },
  { length: 12, confidence: 0.9 },
  { length: 7, confidence: 0.75 },
] as const;
const LEAST_SLOTS = 1 << 12;

/**
 * Prompt lookup (Saxena 2023): where the last ids have come before, they may go on as they did then. Needs no model, and
 * pays where a text repeats itself: code, tables, quotations.
 */
export class LookupDrafter implements Drafter {
  #ids = new Int32Array(1024);
  #length = 0;
  /** By context length: where a context last ended, by its hash; 0: nowhere. */
  #tables = CONTEXTS.map(() => new Int32Array(LEAST_SLOTS));
  #indexed = 0;

  reset(ids: ArrayLike<number>): void {
    this.#length = 0;
    this.#indexed = 0;
    for (const table of this.#tables) table.fill(0);
    this.push(ids);
  }

  push(ids: ArrayLike<number>): void {
    const length = this.#length + ids.length;
    if (length > this.#ids.length) {
      const larger = new Int32Array(2 * length);
      larger.set(this.#ids.subarray(0, this.#length));
      this.#ids = larger;
    }
    this.#ids.set(ids, this.#length);
    this.#length = length;
    this.#index();
  }

  propose({ most, least }: DraftRequest): Draft {
    for (const [i, { length, confidence }] of CONTEXTS.entries()) {
      const from = this.#find(i, length);
      if (from === 0) continue;
      // Where the earlier text ends, what it went on with is the draft itself.
      const ids: number[] = [];
      for (let at = from; ids.length < most && confidence ** ids.length >= (least[ids.length] ?? 0); at++)
        ids.push((at < this.#length ? this.#ids[at] : ids[at - this.#length]) ?? 0);
      return { ids, confidence: ids.map(() => confidence) };
    }
    return { ids: [], confidence: [] };
  }

  dispose(): void {
    this.#tables = [];
  }

  /** Where what followed the same context begins, or 0. */
  #find(table: number, length: number): number {
    if (this.#length <= length) return 0;
    const from = this.#tables[table]?.[this.#slot(this.#length, length)] ?? 0;
    for (let back = 1; back <= length; back++) {
      if (from < back || this.#ids[from - back] !== this.#ids[this.#length - back]) return 0;
    }
    return from;
  }

  /** Enters the contexts of all ids but the last: what follows it is not known yet. */
  #index(): void {
    const slots = this.#tables[0]?.length ?? 0;
    if (2 * this.#length > slots) {
      const wanted = 2 ** Math.ceil(Math.log2(4 * this.#length));
      this.#tables = CONTEXTS.map(() => new Int32Array(wanted));
      this.#indexed = 0;
    }
    for (let end = this.#indexed + 1; end < this.#length; end++) {
      for (const [i, { length }] of CONTEXTS.entries()) {
        const table = this.#tables[i];
        if (table && end >= length) table[this.#slot(end, length)] = end;
      }
    }
    this.#indexed = Math.max(0, this.#length - 1);
  }

  /** Slot of the `length` ids before `end`. */
  #slot(end: number, length: number): number {
    let hash = 0;
    for (let at = end - length; at < end; at++)
      hash = Math.imul(hash ^ (this.#ids[at] ?? 0), 0x9e3779b1) ^ (hash >>> 15);
    const slots = this.#tables[0]?.length ?? 1;
    return (hash ^ (hash >>> 16)) & (slots - 1);
  }
}
