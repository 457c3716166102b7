import { performance } from 'node:perf_hooks';
import { loadModel, type Model } from '../lib/index.ts';
import type { WeightDType } from '../lib/weights/load.ts';
import { median } from './measure.ts';
import { randomModel } from './random-model.ts';

export interface SpeedOptions {
  preset: string;
  dtype: WeightDType;
  threads: number;
  /** Bytes decoded per repetition. */
  gen: number;
  /** Bytes prefilled per repetition. */
  prompt: number;
  reps: number;
}

/** Opens a random model of a preset's shape. */
export async function openModel(options: Pick<SpeedOptions, 'preset' | 'dtype' | 'threads'>): Promise<Model> {
  return loadModel(await randomModel(options.preset), { dtype: options.dtype, threads: options.threads });
}

/**
 * Bytes/s of decoding one sequence, as `stats.bytesPerSecond` has it: from the first decode step to the last.
 * @param read bytes of the prompt
 */
export async function decodeSpeed(model: Model, gen: number, reps: number, read = 1): Promise<number> {
  const state = model.createState();
  await model.generate(promptOf(read), { maxBytes: 0, state });
  const samples: number[] = [];
  for (let i = 0; i <= reps; i++) {
    const options = { maxBytes: i === 0 ? Math.ceil(gen / 8) : gen, seed: i, state: state.clone() };
    const { stats } = await model.generate('', options);
    if (i > 0) samples.push(stats.bytesPerSecond);
  }
  return median(samples);
}

/** So many bytes of a prompt. */
export function promptOf(bytes: number): Uint8Array {
  return Uint8Array.from({ length: bytes }, (_, i) => (i * 7919 + 13) & 255);
}

/** Bytes/s of reading a prompt. */
export async function prefillSpeed(model: Model, prompt: number, reps: number): Promise<number> {
  const text = promptOf(prompt + 1);
  const samples: number[] = [];
  for (let i = 0; i <= reps; i++) {
    const start = performance.now();
    await model.generate(text, { maxBytes: 0 });
    if (i > 0) samples.push((prompt / (performance.now() - start)) * 1000);
  }
  return median(samples);
}
