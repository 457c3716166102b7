import type { Model } from '../model.ts';
import { RING_SLOTS, type StateRing } from '../state-ring.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import { ByteMarginals, ByteTrie } from './byte-marginals.ts';
import type { Draft, Drafter, DraftRequest } from './drafter.ts';
import { draw } from './draw.ts';

/** Tokens after the last word boundary that are kept open; a longer word is settled as it was cut. */
const OPEN_TOKENS = 6;
/** A chance that does not pay for a step of the model: of a token to end where it may, or not to. */
const UNLIKELY = 0.3;
/**
 * A beginning of a token is often a token itself, which only rare words are made of. So tokens that begin with all that is
 * known are the likelier ones even where they weigh less, up to this factor, than a token that is known to its end.
 */
const BEGINNING = 0.02;
const NOTHING = new Uint8Array(0);

/**
 * Drafts bytes with a subword model (Wang et al. 2024, section 3.3). Tokens are only its means: it proposes byte by byte,
 * each the most probable one (or the draw) over all tokens that agree with the bytes before it, and over the next ones where
 * a token may end.
 *
 * What is known of the text is cut into tokens anew from the last word boundary, since a corrected byte may change them.
 * What follows there is not read but taken as the beginning of a token ("token healing"): "wo" may be all of one, or become
 * "word". Where no likely token begins so, it is cut, and only the last token is a beginning. States of tokens that stay are
 * still in the ring, so nothing is read twice.
 */
export class SubwordDrafter implements Drafter {
  readonly #tokenizer: Tokenizer;
  readonly #model: Model;
  readonly #ring: StateRing;
  /** The token that has begun, and the one after it if it ends. */
  #token: ByteMarginals;
  #next: ByteMarginals;
  readonly #weights = new Float64Array(256);
  /** Position in the ring up to which the tokens are settled: a word begins here. */
  #anchor = 0;
  /** Bytes of the text after it. */
  #open = new Uint8Array(0);
  /** Tokens read after it: those up to the ring's newest position. */
  #read: number[] = [];

  constructor(model: Model, tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer;
    this.#model = model;
    this.#ring = model.borrowRing();
    const trie = ByteTrie.of(tokenizer);
    this.#token = new ByteMarginals(trie);
    this.#next = new ByteMarginals(trie);
  }

  async reset(ids: ArrayLike<number>, signal?: AbortSignal): Promise<void> {
    const tokenizer = this.#tokenizer;
    const bytes = Uint8Array.from(ids);
    const stable = tokenizer.stableEnd(bytes);
    const settled = [
      ...tokenizer.encode(bytes.subarray(0, stable)),
      ...oldOf(tokenizer.encode(bytes.subarray(stable))),
    ];
    // A model without a token for the beginning of a text takes a line's end for it.
    await this.#ring.reset(settled.length > 0 ? settled : tokenizer.encode('\n').slice(-1), signal);
    this.#anchor = this.#ring.position;
    this.#open = bytes.slice(tokenizer.decode(settled).length);
    this.#read = [];
  }

  push(ids: ArrayLike<number>): void {
    const open = new Uint8Array(this.#open.length + ids.length);
    open.set(this.#open);
    open.set(ids, this.#open.length);
    this.#open = open;
  }

  async propose(request: DraftRequest): Promise<Draft> {
    const prefix = await this.#catchUp();
    return this.#draft(prefix, request);
  }

  dispose(): void {
    this.#model.returnRing(this.#ring);
  }

  /** Brings the ring to where the text's last token begins; returns its bytes, which may go on. */
  async #catchUp(): Promise<Uint8Array> {
    const tokenizer = this.#tokenizer;
    this.#ring.position = this.#anchor;
    await this.#settle(tokenizer.encode(this.#open.subarray(0, tokenizer.stableEnd(this.#open))));
    if (this.#beginsOne(this.#open)) return this.#open;
    const tokens = tokenizer.encode(this.#open);
    const old = oldOf(tokens);
    await this.#settle(old);
    let rest = this.#open;
    for (const id of tokens.subarray(old.length, -1)) {
      await this.#advance(id);
      rest = rest.subarray(tokenizer.bytesOf(id).length);
      if (this.#beginsOne(rest)) break;
    }
    return rest;
  }

  /** Reads the first tokens of what is open, which are not cut anew. */
  async #settle(tokens: Int32Array): Promise<void> {
    for (const id of tokens) await this.#advance(id);
    this.#anchor += tokens.length;
    this.#read.splice(0, tokens.length);
    this.#open = this.#open.slice(this.#tokenizer.decode(tokens).length);
  }

  /** Whether what comes next is rather a token that begins with all of `bytes` than one that they begin with. */
  #beginsOne(bytes: Uint8Array): boolean {
    if (bytes.length < 2) return true; // every byte is a token
    const { logits } = this.#ring;
    const { sorted } = this.#tokenizer;
    let shorter = Number.NEGATIVE_INFINITY;
    for (let length = 1; length < bytes.length; length++) {
      const [from, to] = this.#tokenizer.range(bytes.subarray(0, length));
      if (from === to) return false;
      const id = sorted[from] ?? 0;
      if (this.#tokenizer.bytesOf(id).length === length) shorter = Math.max(shorter, logits[id] ?? 0);
    }
    const [from, to] = this.#tokenizer.range(bytes);
    let weight = 0;
    for (let at = from; at < to && weight <= BEGINNING; at++)
      weight += Math.exp((logits[sorted[at] ?? 0] ?? 0) - shorter);
    return weight > BEGINNING;
  }

  async #draft(prefix: Uint8Array, { most, least, settings, drawn }: DraftRequest): Promise<Draft> {
    const ids: number[] = [];
    const confidence: number[] = [];
    this.#token.start(this.#ring.logits, prefix);
    for (let sure = 1; sure >= (least[ids.length] ?? 0) && ids.length < most; ) {
      const ends = this.#token.endingShare;
      if (ends > UNLIKELY) {
        if (this.#ring.position - this.#anchor >= RING_SLOTS - 2) break;
        await this.#advance(this.#token.id);
        this.#next.start(this.#ring.logits, NOTHING);
      }
      if (ends > 1 - UNLIKELY) {
        this.#takeNext();
        continue;
      }
      const weights = this.#mixed(ends > UNLIKELY);
      const { index: byte, confidence: sureness } = draw(weights, 256, settings, drawn + ids.length);
      if (!((weights[byte] ?? 0) > 0)) break;
      ids.push(byte);
      confidence.push(sureness);
      sure *= sureness;
      if (ends > UNLIKELY) {
        if (this.#token.weightOf(byte) < (weights[byte] ?? 0) / 2) this.#takeNext();
        else this.#ring.position--; // the token goes on
      }
      this.#token.take(byte);
    }
    return { ids, confidence };
  }

  /** Weights of the 256 bytes that may come next, if the token may end here those of the next token's among them. */
  #mixed(mayEnd: boolean): Float64Array {
    const weights = this.#weights.fill(0);
    this.#token.addTo(weights, 1);
    if (mayEnd) this.#next.addTo(weights, this.#token.ending / this.#next.total);
    return weights;
  }

  #takeNext(): void {
    [this.#token, this.#next] = [this.#next, this.#token];
  }

  /** Reads a token, unless it was read here before. */
  async #advance(id: number): Promise<void> {
    const ring = this.#ring;
    const at = ring.position - this.#anchor;
    if (ring.position < ring.newest && this.#read[at] === id) {
      ring.position++;
      return;
    }
    this.#read.length = at;
    this.#read.push(id);
    await ring.step(id);
  }
}

/** Of the tokens behind the last word boundary those that are not cut anew. */
function oldOf(tokens: Int32Array): Int32Array {
  return tokens.subarray(0, Math.max(0, tokens.length - 1 - OPEN_TOKENS));
}
