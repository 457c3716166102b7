// How long a model takes to go on with a text: what the experiment on speed and the benches measure alike.
import { performance } from 'node:perf_hooks';
import { resolveOptions } from './generate/options.ts';
import { CHUNK_MS, CHUNK_STEPS } from './generate/steps.ts';
import type { Model } from './model.ts';
import type { Session } from './session.ts';

export interface DecodingTimes {
  /** Of reading the prompt, one sequence. */
  prefillSeconds: number;
  /** Of decoding, one value for each stretch of `made` bytes. */
  seconds: number[];
}

export interface DecodingOptions {
  /** Sequences that go on from the prompt together; default 1. */
  batch?: number;
  /** Bytes of each sequence in a stretch. */
  made: number;
  /** Stretches, each of them behind the one before. The first makes plans, if nothing before did. */
  stretches: number;
  signal?: AbortSignal | undefined;
}

/**
 * Reads a prompt once and lets sequences go on from it, in runs as long as those of `model.generate`. One sequence stays
 * where it is from the prompt to the last byte, since a cache after a long text is gigabytes; several get a copy each of
 * what is read once.
 */
export async function decodingTimes(
  model: Model,
  prompt: Uint8Array,
  options: DecodingOptions,
): Promise<DecodingTimes> {
  const { batch = 1, signal } = options;
  const read = async (session: Session) => {
    const start = performance.now();
    await session.clear();
    await session.consume(prompt.subarray(0, -1), signal);
    return (performance.now() - start) / 1000;
  };
  const last = prompt.at(-1) ?? 0;
  return model.withSession(async (one) => {
    const prefillSeconds = await read(one);
    if (batch === 1) return { prefillSeconds, seconds: await decoded(one, last, options) };
    const seconds = await model.withSession(async (session) => {
      await session.clear();
      for (let b = 0; b < batch; b++) await session.takeSequence(b, one);
      return decoded(session, last, options);
    }, batch);
    return { prefillSeconds, seconds };
  });
}

async function decoded(session: Session, pending: number, options: DecodingOptions): Promise<number[]> {
  const { made, stretches, signal } = options;
  const rows = Array.from({ length: session.batch }, (_, seed) => ({
    settings: resolveOptions({ seed }, session.vocab).settings,
    pending,
  }));
  const loop = await session.startDecoding(rows);
  const seconds: number[] = [];
  for (let i = 0; i < stretches; i++) {
    const start = performance.now();
    for (let n = 0; n < made; ) {
      signal?.throwIfAborted();
      n += (await loop.run({ steps: Math.min(CHUNK_STEPS, made - n), maxMs: CHUNK_MS })).steps;
    }
    seconds.push((performance.now() - start) / 1000);
  }
  return seconds;
}
