import { BusyError, describe, expected, ModelFormatError } from './errors.ts';
import { architectureOf, type ModelConfig } from './models/architectures.ts';

const HEADER_BYTES = 32;

/** What states must agree on to move between models. */
function signature(config: ModelConfig): string {
  const { magic, signature } = architectureOf(config).state;
  return [magic, ...signature(config)].join();
}

/**
 * What a model remembers of a text. Save it, copy it, go on from it later. Of a Mamba it is constant in size, whatever the
 * length of the text, and so of a gated S4D; of a Transformer or a PerceiverAR it is its caches, which grow, and of a
 * MegaByte one that grows with every patch.
 */
export class State {
  /** Bytes read so far. */
  position: number;
  /** The last byte: known, but not yet part of `data`, since reading it also predicts the next one. */
  pending: number | undefined;
  /**
   * What was read, but for `pending`. Per layer, of a Mamba: the last K-1 convolution inputs (K-1, E), oldest first, then
   * the SSM state (E, N); of a gated S4D its state (E, N / 2, 2); of a Transformer with n bytes read: keys (n, key heads x
   * width), then values alike. Of a MegaByte with patches of M bytes: n mod M; then per layer keys and values of n / M + 1
   * patches; per local layer those of n mod M + 1 places; what the patch is told (M, width); its n mod M embeddings. Of a
   * PerceiverAR: how many latents its block holds, keys and values of the whole text, the latents, their keys and values.
   */
  data: Float32Array;
  readonly #config: ModelConfig;
  #busy = false;

  constructor(config: ModelConfig, data?: Float32Array, position = 0, pending?: number) {
    this.#config = config;
    this.data = data ?? new Float32Array(architectureOf(config).state.floats(config, 0));
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
    const { magic, signature } = architectureOf(this.#config).state;
    out.set(Buffer.from(magic));
    signature(this.#config).forEach((n, i) => {
      view.setUint32(4 + i * 4, n, true);
    });
    view.setInt32(24, this.pending ?? -1, true);
    view.setUint32(28, Math.min(this.position, 0xffffffff), true);
    out.set(new Uint8Array(this.data.buffer, this.data.byteOffset, this.data.byteLength), HEADER_BYTES);
    return out;
  }

  /** @throws ModelFormatError when the bytes are not a state of a model of this shape */
  static fromBytes(config: ModelConfig, bytes: Uint8Array): State {
    const where = 'state';
    const { magic, names, signature, floats } = architectureOf(config).state;
    if (!(bytes instanceof Uint8Array))
      throw new TypeError(expected(where, 'bytes', 'be a Uint8Array', describe(bytes)));
    if (bytes.length < HEADER_BYTES || Buffer.from(bytes.subarray(0, 4)).toString('latin1') !== magic) {
      throw new ModelFormatError(expected(where, 'bytes', `start with ${magic}`, describe(bytes)));
    }
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const want = signature(config).join(', ');
    const got = signature(config)
      .map((_, i) => view.getUint32(4 + i * 4, true))
      .join(', ');
    const [pending, position] = [view.getInt32(24, true), view.getUint32(28, true)];
    const length = HEADER_BYTES + 4 * floats(config, position - (pending < 0 ? 0 : 1));
    if (got !== want || bytes.length !== length) {
      const hint = got === want ? `The state takes ${length} bytes: some are missing or too many.` : undefined;
      throw new ModelFormatError(expected(where, names, `be (${want})`, `(${got}) in ${bytes.length} bytes`, hint));
    }
    if (pending >= config.vocab)
      throw new ModelFormatError(expected(where, 'the pending byte', 'be a class', `${pending}`));
    const data = new Float32Array(new Uint8Array(bytes.subarray(HEADER_BYTES)).buffer); // Buffer.slice would not copy
    return new State(config, data, position, pending < 0 ? undefined : pending);
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
  fits(config: ModelConfig): boolean {
    return signature(this.#config) === signature(config);
  }

  private assertIdle(where: string): void {
    if (!this.#busy) return;
    throw new BusyError(
      expected(where, 'the state', 'be free', 'one that another generation is using', 'Wait for it, or use a clone().'),
    );
  }
}
