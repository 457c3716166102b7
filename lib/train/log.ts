// The record of a run: one JSON line a step.
import { closeSync, fsyncSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs';
import { CheckpointError, expected } from '../errors.ts';

const READ_BYTES = 1 << 16;

/** Appends to a file of JSON lines, each with its step. */
export class RunLog {
  readonly #path: string;
  readonly #descriptor: number;

  /**
   * Opens the log and drops what goes beyond `step`: lines of later steps, and a last line that was cut off.
   * @throws CheckpointError when the file system refuses
   */
  constructor(path: string, step: number) {
    this.#path = path;
    this.#descriptor = this.refusing(() => openSync(path, 'a+'));
    this.refusing(() => ftruncateSync(this.#descriptor, this.lengthUpTo(step)));
  }

  /** @throws CheckpointError when the file system refuses */
  append(line: Record<string, unknown>): void {
    const bytes = Buffer.from(`${JSON.stringify(line)}\n`);
    this.refusing(() => {
      for (let done = 0; done < bytes.length; ) done += writeSync(this.#descriptor, bytes, done);
    });
  }

  /** Returns once all lines are on disk. */
  sync(): void {
    this.refusing(() => fsyncSync(this.#descriptor));
  }
  close(): void {
    closeSync(this.#descriptor);
  }

  /** Bytes of the whole lines up to the first one of a later step. */
  private lengthUpTo(step: number): number {
    const buffer = Buffer.alloc(READ_BYTES);
    let rest = '';
    let length = 0;
    for (let at = 0; ; ) {
      const count = readSync(this.#descriptor, buffer, 0, READ_BYTES, at);
      if (count === 0) return length;
      at += count;
      const lines = (rest + buffer.toString('latin1', 0, count)).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) {
        if (!(stepOf(line) <= step)) return length;
        length += line.length + 1;
      }
    }
  }

  private refusing<T>(action: () => T): T {
    try {
      return action();
    } catch (cause) {
      const why = (cause as NodeJS.ErrnoException).code ?? 'an error';
      throw new CheckpointError(expected(this.#path, 'the log', 'be writable', why), { cause });
    }
  }
}

function stepOf(line: string): number {
  try {
    return Number((JSON.parse(line) as { step?: unknown }).step);
  } catch {
    return Number.NaN;
  }
}
