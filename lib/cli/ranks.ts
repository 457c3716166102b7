// `mambabyte train --devices`: one process a GPU. The parent starts them, lets them find each other, passes Ctrl-C on, and
// ends all of them as soon as one fails.
import { type ChildProcess, fork } from 'node:child_process';
import { Interrupted } from './interrupt.ts';
import { type FromRank, RANK_VARIABLE, type ToRank } from './rank.ts';
import { UsageError } from './usage.ts';

export interface LaunchOptions {
  /** What a rank runs; default: this program with its own arguments. */
  script?: string;
  argv?: readonly string[];
  /** Milliseconds after a failure in which the other ranks can finish a checkpoint that is being written. */
  graceMs?: number;
}

const GRACE_MS = 30_000;
/** A fault that ranks share is reported by all of them within this time; the words of the first one are then shown. */
const SHARED_FAULT_MS = 1000;
const STDERR_CHARACTERS = 2000;

/**
 * Runs this program once per device and waits for all of them. `signal` asks them to end after the same step, with a
 * checkpoint.
 * @throws Error naming the rank that failed and why; UsageError; Interrupted
 */
export async function runRanks(
  devices: readonly number[],
  signal: AbortSignal,
  options: LaunchOptions = {},
): Promise<void> {
  const ranks = devices.map((device, rank) => new Child(rank, devices.length, device, options));
  const killAll = () => {
    for (const rank of ranks) rank.kill();
  };
  const tellAll = (message: ToRank) => {
    for (const rank of ranks) rank.send(message);
  };
  let joined = false;
  const stop = () => {
    if (!joined) return killAll(); // nothing is learned yet that could be saved
    tellAll({ kind: 'stop', exitCode: signal.reason instanceof Interrupted ? signal.reason.exitCode : 1 });
  };
  process.on('exit', killAll);
  signal.addEventListener('abort', stop);
  if (signal.aborted) stop();
  void Promise.all(ranks.map((rank) => rank.ready.promise)).then(([id = '']) => {
    if (signal.aborted) return;
    joined = true;
    tellAll({ kind: 'join', id });
  });
  try {
    const allDone = Promise.all(ranks.map((rank) => rank.done.promise));
    const failed = await Promise.race([allDone.then(() => undefined), ...ranks.map((rank) => rank.failed.promise)]);
    const cause = failed && (await causeOf(ranks, failed));
    await untilGone(ranks, cause !== undefined, options.graceMs ?? GRACE_MS);
    if (!joined) signal.throwIfAborted();
    if (cause) throw errorOf(cause);
    const interrupted = (await allDone).find((exitCode) => exitCode !== undefined);
    if (interrupted !== undefined) throw new Interrupted(interrupted);
  } finally {
    process.off('exit', killAll);
    signal.removeEventListener('abort', stop);
  }
}

/** A rank that went without a word explains what the others report; of several reports the first rank's is shown. */
async function causeOf(ranks: readonly Child[], first: Failure): Promise<Failure> {
  if (!first.reported) return first;
  await within(
    SHARED_FAULT_MS,
    Promise.all(ranks.map((rank) => Promise.race([rank.failed.promise, rank.gone.promise]))),
  );
  const failures = ranks.flatMap((rank) => rank.failure ?? []);
  const silent = failures.find((failure) => !failure.reported);
  const shared = failures.length === ranks.length && failures.every(({ cause }) => cause === first.cause);
  return silent ?? { ...(failures[0] ?? first), shared };
}

/** Waits until all processes are gone; after a failure sees to it that they go. */
async function untilGone(ranks: readonly Child[], failed: boolean, graceMs: number): Promise<void> {
  const gone = Promise.all(ranks.map((rank) => rank.gone.promise));
  if (failed) for (const rank of ranks) rank.send({ kind: 'abandon' });
  if (await within(graceMs, gone)) return;
  // One that waits in native code for a rank that has gone hears nothing.
  for (const rank of ranks) rank.kill();
  await gone;
}

/** Whether `event` comes to pass in time. */
async function within(milliseconds: number, event: Promise<unknown>): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<boolean>((resolve) => {
    timer = setTimeout(() => resolve(false), milliseconds);
  });
  const came = await Promise.race([event.then(() => true), late]);
  clearTimeout(timer);
  return came;
}

function errorOf({ rank, cause, reported, shared, usage }: Failure): Error {
  if (usage) return new UsageError(cause);
  if (shared) return new Error(cause);
  return new Error(`train: ${rank} ${reported ? 'failed: ' : ''}${cause}`);
}

/** Why a rank ended too early. */
interface Failure {
  rank: string;
  cause: string;
  /** The rank said so itself, rather than just being gone. */
  reported: boolean;
  /** All ranks said the same. */
  shared?: boolean;
  usage: boolean;
}

interface Deferred<T> {
  promise: Promise<T>;
  resolve: (value: T) => void;
}

function deferred<T>(): Deferred<T> {
  let resolve: (value: T) => void = () => undefined;
  const promise = new Promise<T>((fulfil) => {
    resolve = fulfil;
  });
  return { promise, resolve };
}

/** One rank, seen from the parent. */
class Child {
  /** Once it waits to join: the group's id, from rank 0. */
  readonly ready = deferred<string | undefined>();
  /** Once its work is done: its exit code, if it was interrupted. */
  readonly done = deferred<number | undefined>();
  readonly failed = deferred<Failure>();
  /** Once the process has ended. */
  readonly gone = deferred<void>();
  failure: Failure | undefined;
  /** "rank 1 (cuda:1)" */
  readonly #name: string;
  readonly #process: ChildProcess;
  #isDone = false;
  #stderr = '';

  constructor(rank: number, world: number, device: number, { script, argv }: LaunchOptions) {
    this.#name = `rank ${rank} (cuda:${device})`;
    // The first rank speaks for all; what another one prints is shown when it is gone without a word.
    const [out, err] = rank === 0 ? (['inherit', 'inherit'] as const) : (['ignore', 'pipe'] as const);
    this.#process = fork(script ?? process.argv[1] ?? '', argv ?? process.argv.slice(2), {
      env: { ...process.env, [RANK_VARIABLE]: `${rank}/${world}` },
      stdio: ['ignore', out, err, 'ipc'],
    });
    this.#process.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr = (this.#stderr + text).slice(-STDERR_CHARACTERS);
    });
    this.#process.on('message', (message: FromRank) => this.receive(message));
    this.#process.on('error', (error) => this.fail(error.message, false));
    this.#process.on('close', (code, signal) => this.closed(code, signal));
  }

  send(message: ToRank): void {
    if (this.#process.connected) this.#process.send(message, () => undefined); // one that has just gone: `close` follows
  }
  kill(): void {
    this.#process.kill('SIGKILL');
  }

  private receive(message: FromRank): void {
    if (message.kind === 'ready') this.ready.resolve(message.id);
    else if (message.kind === 'failed') this.fail(message.message, true, message.usage);
    else {
      this.#isDone = true;
      this.done.resolve(message.exitCode);
    }
  }

  private closed(code: number | null, signal: NodeJS.Signals | null): void {
    const words = signal === null ? `ended with exit code ${code}` : `was ended by ${signal}`;
    const said = this.#stderr.trim();
    if (!this.#isDone) this.fail(said === '' ? `${words}.` : `${words}: ${said}`, false);
    this.gone.resolve();
  }

  private fail(cause: string, reported: boolean, usage = false): void {
    this.failure ??= { rank: this.#name, cause, reported, usage };
    this.failed.resolve(this.failure);
  }
}
