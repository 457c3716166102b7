import type { Model } from '../model.ts';
import { RING_SLOTS, type StateRing } from '../state-ring.ts';
import type { Draft, Drafter, DraftRequest } from './drafter.ts';
import { draw } from './draw.ts';

/** Drafts with a smaller model of the same ids: bytes for bytes, or tokens of one tokenizer. */
export class ModelDrafter implements Drafter {
  readonly #model: Model;
  readonly #ring: StateRing;
  /** Ids read after position 1, as far as the ring goes on from `#from`. */
  readonly #read: number[] = [];
  /** Ids of the text that the ring has yet to read, or to find that it has read them. */
  #ahead: number[] = [];

  constructor(model: Model) {
    this.#model = model;
    this.#ring = model.borrowRing();
  }

  async reset(ids: ArrayLike<number>, signal?: AbortSignal): Promise<void> {
    this.#ahead = [];
    this.#read.length = 0;
    await this.#ring.reset(ids, signal);
  }

  push(ids: ArrayLike<number>): void {
    for (let i = 0; i < ids.length; i++) this.#ahead.push(ids[i] ?? 0);
  }

  async propose({ most, least, settings, drawn }: DraftRequest): Promise<Draft> {
    const ring = this.#ring;
    for (const id of this.#ahead.splice(0)) await this.#advance(id);
    const known = ring.position;
    const ids: number[] = [];
    const confidence: number[] = [];
    for (let sure = 1; sure >= (least[ids.length] ?? 0); ) {
      const weights = softmax(ring.logits);
      const { index, confidence: sureness } = draw(weights, weights.length, settings, drawn + ids.length);
      ids.push(index);
      confidence.push(sureness);
      sure *= sureness;
      if (ids.length >= Math.min(most, RING_SLOTS - 1)) break;
      await this.#advance(index);
    }
    ring.position = known;
    return { ids, confidence };
  }

  dispose(): void {
    this.#model.returnRing(this.#ring);
  }

  /** Reads an id, unless it was read here before. */
  async #advance(id: number): Promise<void> {
    const ring = this.#ring;
    const slot = ring.position % RING_SLOTS;
    if (ring.position < ring.newest && this.#read[slot] === id) {
      ring.position++;
      return;
    }
    this.#read[slot] = id;
    await ring.step(id);
  }
}

/** exp(logits - their maximum). */
function softmax(logits: Float32Array): Float64Array {
  let max = -Infinity;
  for (const x of logits) if (x > max) max = x;
  return Float64Array.from(logits, (x) => Math.exp(x - max));
}
