// This process as one rank of `mambabyte train --devices`: it joins the others, and ends when they or the parent do.
import type { Device } from '../device.ts';
import type { Rank } from '../train/data-parallel.ts';
import { endedByPipe, Interrupted } from './interrupt.ts';
import { isUsageError } from './usage.ts';

/** "rank/world", set by the parent. */
export const RANK_VARIABLE = 'MAMBABYTE_RANK';

/** What a rank tells its parent. */
export type FromRank =
  /** It waits to join; rank 0 has made the group's id (base64). */
  | { kind: 'ready'; id?: string }
  /** Its work is done; with an exit code where it was interrupted. */
  | { kind: 'done'; exitCode?: number }
  | { kind: 'failed'; message: string; usage: boolean };

/** What the parent tells a rank: all are there; end after a step, as all do; another rank has failed. */
export type ToRank = { kind: 'join'; id: string } | { kind: 'stop'; exitCode: number } | { kind: 'abandon' };

/** The rank that this process was started as, if it was. */
export function startedAsRank(): RankProcess | undefined {
  const [rank, world] = (process.env[RANK_VARIABLE] ?? '').split('/').map(Number);
  if (!process.send || rank === undefined || world === undefined) return undefined;
  return new RankProcess(rank, world);
}

export class RankProcess implements Rank {
  readonly rank: number;
  readonly world: number;
  wantsEnd = false;
  ending = false;
  readonly #controller = new AbortController();
  readonly #id: Promise<string>;
  /** Writes under way. */
  #writes = 0;
  #abandoned = false;

  constructor(rank: number, world: number) {
    this.rank = rank;
    this.world = world;
    this.#id = new Promise((resolve) => {
      process.on('message', (message: ToRank) => {
        if (message.kind === 'join') resolve(message.id);
        else if (message.kind === 'stop') this.#controller.abort(new Interrupted(message.exitCode));
        else this.abandon();
      });
    });
    this.#controller.signal.addEventListener('abort', () => {
      this.wantsEnd = true;
    });
  }

  /** Runs this rank's work, tells the parent how it went, and lets the process end. */
  async run(work: (signal: AbortSignal) => Promise<void>): Promise<void> {
    const { signal } = this.#controller;
    // Ctrl-C reaches the parent too, which tells all ranks; SIGTERM may be sent to one process alone.
    process.on('SIGINT', () => undefined);
    process.on('SIGTERM', () => this.#controller.abort(new Interrupted(143)));
    const orphaned = () => this.abandon();
    process.on('disconnect', orphaned);
    let outcome: FromRank;
    try {
      await endedByPipe(this.#controller, work);
      const exitCode = signal.reason instanceof Interrupted ? signal.reason.exitCode : undefined;
      outcome = { kind: 'done', ...(exitCode !== undefined && { exitCode }) };
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      const debug = process.env.MAMBABYTE_DEBUG === '1' && error instanceof Error && error.stack;
      outcome = { kind: 'failed', message: debug || message, usage: isUsageError(error) };
      process.exitCode = 1;
    }
    await this.send(outcome);
    process.off('disconnect', orphaned);
    if (process.connected) process.disconnect();
  }

  async join(device: Device): Promise<void> {
    const made = this.rank === 0 ? { id: Buffer.from(device.newGroupId()).toString('base64') } : {};
    await this.send({ kind: 'ready', ...made });
    device.joinGroup(Buffer.from(await this.#id, 'base64'), this.rank, this.world);
  }

  async saving<T>(write: () => Promise<T>): Promise<T> {
    this.#writes++;
    try {
      return await write();
    } finally {
      this.#writes--;
      if (this.#abandoned) this.abandon();
    }
  }

  /**
   * Ends this process at once, or as soon as a checkpoint that is being written is whole. Not by process.exit(): that
   * waits for work on the GPU, which never ends when another rank has gone.
   */
  private abandon(): void {
    this.#abandoned = true;
    if (this.#writes === 0) process.kill(process.pid, 'SIGKILL');
  }

  private send(message: FromRank): Promise<void> {
    return new Promise((resolve) => {
      if (!process.connected || !process.send) return resolve();
      process.send(message, undefined, {}, () => resolve()); // where the parent has gone, `disconnect` follows
    });
  }
}
