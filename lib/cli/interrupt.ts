// Ctrl-C, SIGTERM and a stdout that takes no more all end work through one AbortSignal, so that what was made is kept.
import { expected } from '../errors.ts';

/** Work was ended from outside; nothing more is to be said. */
export class Interrupted extends Error {
  readonly exitCode: number;

  constructor(exitCode: number) {
    super('interrupted');
    this.exitCode = exitCode;
  }
}

const EXIT_CODES = { SIGINT: 130, SIGTERM: 143 } as const;
const running = new Set<AbortController>();

/**
 * Runs `work` with a signal that Ctrl-C, SIGTERM or a failing stdout aborts. Work that then returns has saved what it
 * wanted to; the exit code says that it was interrupted all the same. A second Ctrl-C ends the process at once.
 *
 * @throws Interrupted after an interruption; Error after stdout failed
 */
export async function interruptible<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  const stop = (name: keyof typeof EXIT_CODES) => {
    if (controller.signal.aborted) process.exit(EXIT_CODES[name]);
    controller.abort(new Interrupted(EXIT_CODES[name]));
  };
  process.on('SIGINT', stop).on('SIGTERM', stop);
  try {
    const result = await endedByPipe(controller, work);
    controller.signal.throwIfAborted();
    return result;
  } finally {
    process.off('SIGINT', stop).off('SIGTERM', stop);
  }
}

/** Runs `work` with the controller's signal, which a failing stdout aborts. */
export async function endedByPipe<T>(
  controller: AbortController,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  running.add(controller);
  try {
    return await work(controller.signal);
  } finally {
    running.delete(controller);
  }
}

/** True once the reader of stdout has gone: there is nobody to report to. */
export function readerHasGone(signal: AbortSignal): boolean {
  return signal.reason instanceof Interrupted && signal.reason.exitCode === 0;
}

/**
 * Ends work when stdout takes no more: quietly where its reader has gone (`| head`), which is no failure, else, as on a
 * full disk, with an error. Errors after the first only follow from it.
 */
export function watchPipes(): void {
  process.stdout.once('error', ({ code = 'an error', message }: NodeJS.ErrnoException) => {
    process.stdout.on('error', () => undefined);
    const gone = code === 'EPIPE';
    const hint = code === 'ENOSPC' ? 'The disk is full.' : message;
    const reason = gone ? new Interrupted(0) : new Error(expected('stdout', 'the output', 'be written', code, hint));
    for (const controller of running) controller.abort(reason);
    if (running.size > 0) return;
    if (!gone) process.stderr.write(`mambabyte: ${reason.message}\n`);
    process.exit(gone ? 0 : 1);
  });
  process.stderr.on('error', () => undefined); // nowhere left to say so
}
