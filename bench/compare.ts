import { join } from 'node:path';
import type { WeightDType } from '../lib/weights/load.ts';
import { bounds, type Ceiling, readCeiling } from './ceiling.ts';
import { median, round } from './measure.ts';
import { runLlamaBench } from './peers/llama-bench.ts';
import { ggufName } from './peers/write-gguf.ts';
import { decodeSpeed, openModel, prefillSpeed } from './speed.ts';

export interface CompareOptions {
  /** Folder that write-gguf.ts filled. */
  gguf: string;
  presets: readonly string[];
  dtypes: readonly WeightDType[];
  threads: number;
  prompt: number;
  /** Bytes of context that decoding starts after. */
  contexts: readonly number[];
  reps: number;
  genFor: (preset: string) => number;
}

/**
 * Decode and prefill beside llama.cpp's llama-bench, turn by turn in one run: medians, the ratio, and each as a fraction
 * of the machine's own bound.
 */
export async function compare(options: CompareOptions): Promise<Record<string, unknown>[]> {
  const { presets, dtypes } = options;
  const ceiling = await readCeiling();
  const rows: Record<string, unknown>[] = [];
  for (const preset of presets)
    for (const dtype of dtypes) rows.push(...(await beside(options, preset, dtype, ceiling)));
  return rows;
}

interface Work {
  work: 'decode' | 'prefill';
  /** Bytes of context before it. */
  after: number;
  ours: () => Promise<number>;
  theirs: { prompt: number; gen: number };
  rates: { ours: number[]; theirs: number[][] };
}

async function beside(
  { gguf, threads, prompt, contexts, reps, genFor }: CompareOptions,
  preset: string,
  dtype: WeightDType,
  ceiling: Ceiling,
): Promise<Record<string, unknown>[]> {
  const file = join(gguf, ggufName(preset, dtype === 'int8' ? 'q8_0' : 'bf16'));
  using model = await openModel({ preset, dtype, threads });
  const theirGen = Math.min(genFor(preset), 128);
  const grows = model.stateBytesAt(1) !== model.stateBytesAt(2);
  // Where a byte costs more the more come before it, both make as many, and the peer has the better of its two ways.
  const gen = grows ? theirGen : genFor(preset);
  const ways = grows ? (['flash', 'plain'] as const) : [undefined];
  const all: Work[] = [
    ...contexts.map((after) => ({
      work: 'decode' as const,
      after,
      ours: () => decodeSpeed(model, gen, 1, Math.max(1, after)),
      theirs: { prompt: 0, gen: theirGen },
      rates: { ours: [], theirs: ways.map(() => []) },
    })),
    {
      work: 'prefill',
      after: 0,
      ours: () => prefillSpeed(model, prompt, 1),
      theirs: { prompt, gen: 0 },
      rates: { ours: [], theirs: ways.map(() => []) },
    },
  ];
  for (let rep = 0; rep < reps; rep++) {
    for (const { work, after, ours, theirs, rates } of all) {
      rates.ours.push(await ours());
      for (const [i, attention] of ways.entries()) {
        const peer = { model: file, ...theirs, depth: after, threads, reps: 1, ...(attention && { attention }) };
        rates.theirs[i]?.push((await runLlamaBench(peer))[work] ?? Number.NaN);
      }
    }
  }
  const bound = bounds(model, dtype, threads, ceiling);
  return all.map(({ work, after, rates }) => {
    const [a, b] = [median(rates.ours), Math.max(...rates.theirs.map(median))];
    return {
      preset,
      dtype,
      work,
      ...(contexts.length > 1 && { after }),
      threads,
      'mambabyte B/s': round(a),
      'llama.cpp B/s': round(b),
      ratio: round(a / b),
      // The bound of decoding knows the weights alone.
      ...(after === 0 && { 'of bound': round(a / bound[work]) }),
    };
  });
}
