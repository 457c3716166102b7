import { BusyError, describe, expected, ModelFormatError } from './errors.ts';
import type { MambaConfig } from './models/config.ts';

const MAGIC = 'MBS1';
const HEADER_BYTES = 32;

/** Shape that a state belongs to; states move only between models that agree on it. */
function signature(c: MambaConfig): number[] {
  return [c.layers, c.dInner, c.dState, c.dConv, c.vocab];
}

/**
 * What a model remembers of a text: constant in size, whatever its length. Save it, copy it, go on from it later: the
 * counterpart of a Transformer's cache.
 */
export class State {
  /** Bytes read so far. */
  position: number;
  /** The last byte: known, but not yet part of `data`, since reading it also predicts the next one. */
  pending: number | undefined;
  /** Per layer the last K-1 convolution inputs (K-1, E), oldest first, then the SSM state (E, N); f32. */
  readonly data: Float32Array;
  readonly #config: MambaConfig;
  #busy = false;

  constructor(config: MambaConfig, data?: Float32Array, position = 0, pending?: number) {
    this.#config = config;
    this.data = data ?? new Float32Array(stateLength(config));
    this.position = position;
    this.pending = pending;
  }

  /** An independent copy: fork here. */
  clone(): State {
    this.assertIdle('state.clone');
    return new State(this.#config, this.data.slice(), this.position, this.pending);
  }

  /** Serialised, little-endian, with the model's shape in front. */
  toBytes(): Uint8Array {
    this.assertIdle('state.toBytes');
    const out = new Uint8Array(HEADER_BYTES + this.data.byteLength);
    const view = new DataView(out.buffer);
    out.set(Buffer.from(MAGIC));
    signature(this.#config).forEach((n, i) => {
      view.setUint32(4 + i * 4, n, true);
    });
    view.setInt32(24, this.pending ?? -1, true);
    view.setUint32(28, Math.min(this.position, 0xffffffff), true);
    out.set(new Uint8Array(this.data.buffer, this.data.byteOffset, this.data.byteLength), HEADER_BYTES);
    return out;
  }

  /** @throws ModelFormatError when the bytes are not a state of a model of this shape */
  static fromBytes(config: MambaConfig, bytes: Uint8Array): State {
    const where = 'state';
    const length = stateLength(config) * 4;
    if (!(bytes instanceof Uint8Array))
      throw new TypeError(expected(where, 'bytes', 'be a Uint8Array', describe(bytes)));
    if (bytes.length < HEADER_BYTES || Buffer.from(bytes.subarray(0, 4)).toString('latin1') !== MAGIC) {
      throw new ModelFormatError(expected(where, 'bytes', `start with ${MAGIC}`, describe(bytes)));
    }
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const got = signature(config).map((_, i) => view.getUint32(4 + i * 4, true));
    if (got.join() !== signature(config).join() || bytes.length !== HEADER_BYTES + length) {
      const names = '(layers, inner channels, states, conv width, vocab)';
      throw new ModelFormatError(
        expected(where, names, `be (${signature(config).join(', ')})`, `(${got.join(', ')}) in ${bytes.length} bytes`),
      );
    }
    const pending = view.getInt32(24, true);
    if (pending >= config.vocab)
      throw new ModelFormatError(expected(where, 'the pending byte', 'be a class', `${pending}`));
    const data = new Float32Array(new Uint8Array(bytes.subarray(HEADER_BYTES)).buffer); // Buffer.slice would not copy
    return new State(config, data, view.getUint32(28, true), pending < 0 ? undefined : pending);
  }

  /** True while a generation or a scoring uses it. */
  get busy(): boolean {
    return this.#busy;
  }
  /** @throws BusyError when another call uses this state */
  acquire(where: string): void {
    this.assertIdle(where);
    this.#busy = true;
  }
  release(): void {
    this.#busy = false;
  }
  /** True when this state fits a model of shape `config`. */
  fits(config: MambaConfig): boolean {
    return signature(this.#config).join() === signature(config).join();
  }

  private assertIdle(where: string): void {
    if (!this.#busy) return;
    throw new BusyError(
      expected(where, 'the state', 'be free', 'one that another generation is using', 'Wait for it, or use a clone().'),
    );
  }
}

/** Floats in the state of one sequence. */
export function stateLength(c: MambaConfig): number {
  return c.layers * ((c.dConv - 1) * c.dInner + c.dInner * c.dState);
}
