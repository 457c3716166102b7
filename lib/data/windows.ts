// Which windows of a corpus a training step sees: drawn without memory, so that a position is two integers.
import { checkChoice, checkInteger, DataError, expected } from '../errors.ts';
import { Philox } from '../rng.ts';
import { counted } from '../text.ts';
import type { Batch } from '../trainer.ts';

/** Texts that windows are drawn from: bytes, or the tokens of a subword model. */
export interface Documents {
  /** What a window counts. */
  readonly unit: 'byte' | 'token';
  /** Number of documents. */
  readonly documents: number;
  /** Units in all documents. */
  readonly units: number;
  /** Units of document `i`. */
  length(i: number): number;
  /** Units [start, start + length) of document `i`. @throws DataError when they cannot be read */
  slice(i: number, start: number, length: number): Uint8Array | Int32Array;
}

/**
 * How windows are drawn.
 * - 'document': one window at a random place of every document, documents shuffled each epoch (Wang et al. 2024)
 * - 'uniform': every unit about once an epoch: each document is tiled from a random phase, all tiles are shuffled
 */
export type Sampling = 'document' | 'uniform';

export interface WindowOptions {
  /** Units of input per window (T); a window holds one more, the last target. */
  context: number;
  sampling: Sampling;
  seed: number;
  /** Refuse documents that are shorter than a window; default: they are followed by padding. */
  whole?: boolean;
}

/** Where a sampler is: serialise it, and a sampler that is set to it goes on with the same windows. */
export interface DataPosition {
  /** Passes over the data done. */
  epoch: number;
  /** Windows drawn in this one. */
  index: number;
}

export interface Window {
  document: number;
  start: number;
  /** T + 1, or all of a shorter document. */
  length: number;
}

/** What stands after the end of a short document in a batch: an input that no target depends on, never a target. */
export const PADDING = -1;

/** Random streams of one seed; the model's initialisation uses low numbers. */
const ORDER = 0x80000000;
const PLACE = 0xc0000000;
const EPOCHS = 0x40000000;

/** Tiles of long documents overlap by up to one in this many, so that their phase is free. */
const FREE_PHASE = 8;

/** Draws windows of a data set, the same ones for the same seed. Windows never cross documents. */
export class WindowSampler {
  readonly #data: Documents;
  readonly #options: WindowOptions;
  /** Windows in all documents up to and including this one. */
  readonly #ends: Float64Array;
  /** The current epoch's order of windows. */
  #order: Uint32Array | undefined;
  #epoch = 0;
  #index = 0;

  /** @throws DataError when the documents, or with `whole` one of them, hold less than one window */
  constructor(data: Documents, options: WindowOptions) {
    const where = 'data';
    checkInteger(where, 'context', options.context, { min: 1 });
    checkChoice(where, 'sampling', options.sampling, ['document', 'uniform']);
    checkInteger(where, 'seed', options.seed, { min: 0 });
    const window = options.context + 1;
    if (data.units < window) {
      const got = `${counted(data.units, data.unit)} in ${counted(data.documents, 'document')}`;
      const least = `hold at least one window of ${counted(window, data.unit)}`;
      throw new DataError(expected(where, 'the data set', least, got));
    }
    if (options.whole) checkWhole(data, window);
    this.#data = data;
    this.#options = options;
    this.#ends = new Float64Array(data.documents);
    let end = 0;
    for (let i = 0; i < data.documents; i++) {
      end += options.sampling === 'document' ? 1 : tiles(data.length(i), options.context);
      this.#ends[i] = end;
    }
    if (end >= 2 ** 32) throw new DataError(expected(where, 'windows', 'be fewer than 2^32', `${end}`));
  }

  /** Windows in one epoch. */
  get windows(): number {
    return this.#ends.at(-1) ?? 0;
  }

  get position(): DataPosition {
    return { epoch: this.#epoch, index: this.#index };
  }
  set position({ epoch, index }: DataPosition) {
    checkInteger('data', 'epoch', epoch, { min: 0, max: EPOCHS - 1 });
    checkInteger('data', 'index', index, { min: 0, max: this.windows });
    if (epoch !== this.#epoch) this.#order = undefined;
    this.#epoch = epoch;
    this.#index = index;
  }

  /** The next window. */
  next(): Window {
    if (this.#index >= this.windows) this.position = { epoch: this.#epoch + 1, index: 0 };
    this.#order ??= shuffled(this.windows, new Philox(this.#options.seed, ORDER + this.#epoch));
    const number = this.#order[this.#index++] ?? 0;
    const document = firstAbove(this.#ends, number);
    const length = this.#data.length(document);
    const span = Math.min(this.#options.context + 1, length);
    const draw = new Philox(this.#options.seed, PLACE + this.#epoch);
    if (this.#options.sampling === 'document') {
      draw.counter = number;
      return { document, start: draw.integer(length - span + 1), length: span };
    }
    draw.counter = document; // one phase for all tiles of a document
    const count = tiles(length, this.#options.context);
    const phase = draw.integer(Math.max(0, count * this.#options.context - (length - 1)) + 1);
    const tile = number - (this.#ends[document - 1] ?? 0);
    const start = Math.min(Math.max(0, tile * this.#options.context - phase), length - span);
    return { document, start, length: span };
  }

  /** The next `rows` windows as (rows, T + 1); a document that is too short is followed by PADDING. */
  batch(rows: number): Batch {
    return this.read(this.draw(rows));
  }

  /** The next `rows` windows. */
  draw(rows: number): Window[] {
    return Array.from({ length: rows }, () => this.next());
  }

  /** Windows as a batch (windows, T + 1), padded as by `batch`. */
  read(windows: readonly Window[]): Batch {
    const rows = windows.length;
    const width = this.#options.context + 1;
    const whole = windows.every((w) => w.length === width);
    const bytes =
      whole && this.#data.unit === 'byte' ? new Uint8Array(rows * width) : new Int32Array(rows * width).fill(PADDING);
    for (const [r, w] of windows.entries()) bytes.set(this.#data.slice(w.document, w.start, w.length), r * width);
    return { bytes, batch: rows };
  }
}

function checkWhole(data: Documents, window: number): void {
  for (let i = 0; i < data.documents; i++) {
    const length = data.length(i);
    if (length >= window) continue;
    const hint = 'Only the end of a window is learned from. Take a smaller context, or join the documents.';
    throw new DataError(
      expected('data', `document ${i}`, `hold a window of ${window} ${data.unit}s`, `${length} ${data.unit}s`, hint),
    );
  }
}

/** Windows of `context` inputs that cover a document; the last byte is no input. */
function tiles(length: number, context: number): number {
  const count = Math.ceil((length - 1) / context);
  return count >= FREE_PHASE ? count + 1 : count;
}

/** The first index whose value is above `x`, in ascending values. */
function firstAbove(values: Float64Array, x: number): number {
  let low = 0;
  let high = values.length - 1;
  while (low < high) {
    const mid = (low + high) >> 1;
    if ((values[mid] ?? 0) > x) high = mid;
    else low = mid + 1;
  }
  return low;
}

/** 0..n-1 in random order (Fisher & Yates). */
function shuffled(n: number, rng: Philox): Uint32Array {
  const order = new Uint32Array(n);
  for (let i = 0; i < n; i++) {
    const j = rng.integer(i + 1);
    order[i] = order[j] ?? 0;
    order[j] = i;
  }
  return order;
}
