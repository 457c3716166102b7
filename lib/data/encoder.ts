// A tokenizer at work in several processes. They are processes, not threads, since these load the sources as they are.
import { type ChildProcess, fork } from 'node:child_process';
import { join } from 'node:path';
import { MambaByteError } from '../errors.ts';
import { packageRoot } from '../native.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';

/** Encodes texts, several at a time. */
export interface Encoder {
  /** How many texts it works at. */
  readonly width: number;
  encode(bytes: Uint8Array): Promise<Int32Array>;
  /** Ends it; what is under way is lost. */
  close(): void;
}

/** The program and Node's options for it: not those of this process, which may hold a script of their own (node -e). */
const [SCRIPT, NODE_OPTIONS] = import.meta.url.endsWith('.ts')
  ? (['lib/data/encoder-process.ts', ['--import=tsx']] as const)
  : (['dist/data/encoder-process.js', []] as const);

/** An encoder with so many processes; with one, this one does the work. */
export function openEncoder(tokenizer: Tokenizer, processes: number): Encoder {
  if (processes <= 1) return { width: 1, encode: async (bytes) => tokenizer.encode(bytes), close: () => undefined };
  const workers = Array.from({ length: processes }, () => new EncoderProcess(tokenizer));
  const freest = () => workers.reduce((a, b) => (b.waiting < a.waiting ? b : a));
  return {
    width: processes,
    encode: (bytes) => freest().encode(bytes),
    close: () => {
      for (const worker of workers) worker.close();
    },
  };
}

interface Waiting {
  resolve: (ids: Int32Array) => void;
  reject: (error: Error) => void;
}

class EncoderProcess {
  readonly #process: ChildProcess;
  /** In the order of the texts sent. */
  readonly #waiting: Waiting[] = [];
  #failure: Error | undefined;

  constructor(tokenizer: Tokenizer) {
    this.#process = fork(join(packageRoot, SCRIPT), [], {
      cwd: packageRoot,
      execArgv: [...NODE_OPTIONS],
      serialization: 'advanced',
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    });
    this.#process.on('message', (ids: Int32Array) => this.#waiting.shift()?.resolve(ids));
    this.#process.on('error', (error) => this.#fail(error.message));
    this.#process.on('exit', (code, signal) => this.#fail(signal ?? `exit code ${code}`));
    this.#process.send(tokenizer.json, this.#sent);
  }

  get waiting(): number {
    return this.#waiting.length;
  }
  encode(bytes: Uint8Array): Promise<Int32Array> {
    return new Promise((resolve, reject) => {
      if (this.#failure) return reject(this.#failure);
      this.#waiting.push({ resolve, reject });
      this.#process.send(bytes, this.#sent);
    });
  }
  close(): void {
    this.#process.kill('SIGKILL');
  }

  readonly #sent = (error: Error | null) => {
    if (error) this.#fail(error.message);
  };
  #fail(why: string): void {
    this.#failure ??= new MambaByteError('ERR_ENCODER', `encoder: expected its process to run, got ${why}.`);
    for (const { reject } of this.#waiting.splice(0)) reject(this.#failure);
  }
}
