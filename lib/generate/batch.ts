// Several prompts at a time: every decode step reads the weights once for all sequences in the batch. A sequence that ends
// leaves its slot to the next prompt that waits; when none waits and half of the slots are empty, the rest moves to a
// smaller batch. Prompts that begin a batch are read together where that reads little in vain.
import { performance } from 'node:perf_hooks';
import type { BackendName } from '../device.ts';
import type { Model } from '../model.ts';
import { architectureOf } from '../models/architectures.ts';
import type { Session } from '../session.ts';
import type { GenerateResult, StopReason } from './generation.ts';
import type { ResolvedOptions } from './options.ts';
import { Output } from './output.ts';
import { CHUNK_MS, CHUNK_STEPS } from './steps.ts';

/** Most sequences that decode together. Beyond the rows of a fused block a CPU gains nothing, a GPU still does. */
const SLOTS: Readonly<Record<BackendName, number>> = { ref: 32, cpu: 32, cuda: 256 };

/** How many times the bytes of the prompts may be read when shorter ones are read on as long as the longest. */
const PADDING: Readonly<Record<BackendName, number>> = { ref: 1.1, cpu: 1.1, cuda: 4 };

/** Steps that must lie ahead for the move to a smaller batch, which copies states, to pay. */
const WORTH_MOVING = 32;

/** One prompt on its way. */
class Row {
  readonly prompt: Uint8Array;
  readonly seed: number;
  readonly output: Output;
  /** Bytes drawn, a stop sequence included. */
  made = 0;
  /** The last byte, not yet read. */
  pending: number;
  /** Bytes of prompt and output, for the repetition penalty. */
  readonly seen: Set<number>;
  /** Everything before it, while the row is in no batch. */
  state: Float32Array | undefined;
  stopReason: StopReason | undefined;
  text = '';
  prefillMs = 0;
  decodeStart = 0;
  decodeMs = 0;

  constructor(prompt: Uint8Array, seed: number, stops: readonly Uint8Array[]) {
    this.prompt = prompt;
    this.seed = seed;
    this.output = new Output(stops);
    this.pending = prompt.at(-1) ?? 0;
    this.seen = new Set(prompt);
  }

  /** Takes what was drawn, as far as its stop sequence or `maxBytes`. */
  push(bytes: Uint8Array, maxBytes: number): void {
    const piece = this.output.push(bytes);
    this.text += piece.text;
    this.made += piece.used;
    this.pending = bytes.at(-1) ?? this.pending;
    for (const byte of bytes) this.seen.add(byte);
    if (piece.stopped) this.end('stop');
    else if (this.made >= maxBytes) this.end('length');
  }

  end(reason: StopReason): void {
    this.stopReason = reason;
    this.decodeMs = this.decodeStart > 0 ? performance.now() - this.decodeStart : 0;
    this.text += this.output.finish().text;
  }
}

/**
 * Continues several prompts of any lengths together. Sequence b draws with seed + b, and gets the same bytes as a
 * generation of its own with that seed would, up to rounding.
 */
export async function generateBatch(
  model: Model,
  prompts: readonly Uint8Array[],
  options: ResolvedOptions,
): Promise<GenerateResult[]> {
  const { signal, settings } = options;
  signal?.throwIfAborted();
  const rows = prompts.map((prompt, b) => new Row(prompt, settings.seed + b, options.stops));
  const batch = new Batch(model, rows, options);
  await batch.run();
  if (signal?.aborted && options.onAbort === 'throw') throw signal.reason;
  return rows.map((row) => ({
    text: row.text,
    bytes: row.output.bytes(),
    stopReason: row.stopReason ?? 'abort',
    stats: {
      promptBytes: row.prompt.length,
      bytes: row.made,
      prefillMs: row.prefillMs,
      decodeMs: row.decodeMs,
      bytesPerSecond: row.made > 0 ? (row.made / row.decodeMs) * 1000 : 0,
      seed: row.seed,
      device: model.device,
    },
  }));
}

function keyOf(row: Row): string {
  return Buffer.from(row.prompt).toString('latin1');
}

class Batch {
  readonly #model: Model;
  readonly #options: ResolvedOptions;
  /** Rows that were not read yet, and rows that are read but in no batch. */
  readonly #waiting: Row[];
  #ready: Row[] = [];
  /** States of prompts that several rows begin with, so that each is read once; and how many rows still wait for it. */
  readonly #shared = new Map<string, { state: Float32Array | undefined; rows: number }>();

  constructor(model: Model, rows: readonly Row[], options: ResolvedOptions) {
    this.#model = model;
    this.#options = options;
    this.#waiting = [...rows];
    for (const row of rows) {
      const shared = this.#shared.get(keyOf(row)) ?? { state: undefined, rows: 0 };
      shared.rows++;
      this.#shared.set(keyOf(row), shared);
    }
  }

  async run(): Promise<void> {
    const limit = SLOTS[this.#model.runtime.info.backend];
    while (!this.aborted && this.#ready.length + this.#waiting.length > 0) {
      if (this.#ready.length === 0 && (await this.begunTogether(limit))) continue;
      while (this.#ready.length < limit) {
        const row = await this.next();
        if (!row) break;
        this.#ready.push(row);
      }
      const rows = this.#ready.splice(0);
      if (rows.length > 0) await this.#model.withSession((session) => this.decode(session, rows), rows.length);
    }
    for (const row of [...this.#ready, ...this.#waiting]) row.end('abort');
  }

  /** Decodes the next waiting rows from prompts read together, where that pays. */
  private async begunTogether(limit: number): Promise<boolean> {
    const rows = this.#waiting.slice(0, limit);
    const lengths = rows.map((row) => row.prompt.length - 1);
    const bytes = lengths.reduce((sum, length) => sum + length, 0);
    const padded = rows.length * Math.max(...lengths);
    const alike = rows.some((row) => (this.#shared.get(keyOf(row))?.rows ?? 0) > 1);
    const { backend } = this.#model.runtime.info;
    if (rows.length < 2 || alike || padded > PADDING[backend] * bytes || this.#options.maxBytes === 0) return false;
    if (!architectureOf(this.#model.config).pads) return false;
    this.#waiting.splice(0, rows.length);
    await this.#model.withSession(async (session) => {
      const read = await this.prefilled(rows, async () => {
        await session.clear();
        const prompts = rows.map((row) => row.prompt.subarray(0, -1));
        await session.consumeAll(prompts, this.#options.signal);
      });
      if (read) await this.decode(session, rows);
    }, rows.length);
    return true;
  }

  /** Times the reading of the rows' prompts; false when that was aborted, which ends them. */
  private async prefilled(rows: readonly Row[], read: () => Promise<void>): Promise<boolean> {
    const start = performance.now();
    try {
      await read();
    } catch (error) {
      for (const row of rows) row.end('abort');
      if (this.aborted) return false;
      throw error;
    }
    for (const row of rows) row.prefillMs = performance.now() - start;
    return true;
  }

  private get aborted(): boolean {
    return this.#options.signal?.aborted === true;
  }

  /** Reads the next waiting prompt; undefined when none is left, or the call is aborted. */
  private async next(): Promise<Row | undefined> {
    for (;;) {
      const row = this.aborted ? undefined : this.#waiting.shift();
      if (!row) return undefined;
      const read = await this.prefilled([row], async () => {
        row.state = await this.stateOf(row);
      });
      if (!read) return undefined;
      if (this.#options.maxBytes > 0) return row;
      row.end('length');
    }
  }

  private async stateOf(row: Row): Promise<Float32Array> {
    const shared = this.#shared.get(keyOf(row));
    const state =
      shared?.state ??
      (await this.#model.withSession(async (session) => {
        await session.clear();
        await session.consume(row.prompt.subarray(0, -1), this.#options.signal);
        return session.readState();
      }));
    if (shared) {
      shared.rows--;
      shared.state = shared.rows > 0 ? state : undefined;
    }
    return state;
  }

  /**
   * Decodes until all rows have ended, or so many that the others go on in a smaller batch.
   * @param rows in the order of the session's sequences, each with its state unless it is there already
   */
  private async decode(session: Session, rows: readonly Row[]): Promise<void> {
    const { signal, settings, maxBytes } = this.#options;
    const slots: (Row | undefined)[] = [...rows];
    const start = (row: Row) => ({
      settings: { ...settings, seed: row.seed },
      pending: row.pending,
      seen: [...row.seen],
      drawn: row.made,
    });
    const place = async (row: Row, b: number) => {
      if (row.state) await session.writeSequence(b, row.state);
      row.state = undefined;
      row.decodeStart ||= performance.now();
    };
    for (const [b, row] of rows.entries()) await place(row, b);
    const loop = await session.startDecoding(rows.map(start));
    const cancel = () => loop.cancel();
    signal?.addEventListener('abort', cancel, { once: true });
    try {
      for (;;) {
        const running = slots.filter((row) => row !== undefined);
        const ahead = running.map((row) => maxBytes - row.made);
        if (running.length === 0) return;
        if (this.aborted) {
          for (const row of running) row.end('abort');
          return;
        }
        const few = this.#waiting.length === 0 && 2 * running.length <= slots.length;
        if (few && Math.max(...ahead) >= WORTH_MOVING) {
          const states = session.readSequences();
          for (const [b, row] of slots.entries()) if (row) row.state = states[b];
          this.#ready.push(...running);
          return;
        }
        const step = await loop.run({ steps: Math.min(CHUNK_STEPS, ...ahead), maxMs: CHUNK_MS });
        for (const [b, row] of slots.entries()) {
          if (!row) continue;
          const drawn = Uint8Array.from({ length: step.steps }, (_, i) => step.watched[i * slots.length + b] ?? 0);
          row.push(drawn, maxBytes);
        }
        if (running.every((row) => row.stopReason !== undefined)) return;
        for (const [b, row] of slots.entries()) {
          if (row?.stopReason === undefined) continue;
          const next = await this.next();
          slots[b] = next;
          if (!next) {
            session.leave(b);
            continue;
          }
          await place(next, b);
          loop.setRow(b, start(next));
        }
      }
    } finally {
      signal?.removeEventListener('abort', cancel);
    }
  }
}
