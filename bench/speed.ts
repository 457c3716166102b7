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

/** Bytes/s of decoding one sequence, as `stats.bytesPerSecond` has it: from the first decode step to the last. */
export async function decodeSpeed(model: Model, gen: number, reps: number): Promise<number> {
  const samples: number[] = [];
  await model.generate('x', { maxBytes: Math.ceil(gen / 8), seed: 0 });
  for (let i = 0; i < reps; i++) {
    const { stats } = await model.generate('x', { maxBytes: gen, seed: i });
    samples.push(stats.bytesPerSecond);
  }
  return median(samples);
}

/** Bytes/s of reading a prompt. */
export async function prefillSpeed(model: Model, prompt: number, reps: number): Promise<number> {
  const text = Uint8Array.from({ length: prompt + 1 }, (_, i) => (i * 7919 + 13) & 255);
  const samples: number[] = [];
  for (let i = 0; i <= reps; i++) {
    const start = performance.now();
    await model.generate(text, { maxBytes: 0 });
    if (i > 0) samples.push((prompt / (performance.now() - start)) * 1000);
  }
  return median(samples);
}
