import { join } from 'node:path';
import type { WeightDType } from '../lib/weights/load.ts';
import { bounds, readCeiling } from './ceiling.ts';
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
  reps: number;
  genFor: (preset: string) => number;
}

/** Our presets and the names of the peer's files of the same shape. */
const SHAPES: Record<string, string> = {
  'mambabyte-5m': '5.3M',
  'mambabyte-20m': '20.5M',
  'mambabyte-353m': '353M',
};

/**
 * Decode and prefill beside llama.cpp's llama-bench, turn by turn in one run: medians, the ratio, and each as a fraction
 * of the machine's own bound.
 */
export async function compare(options: CompareOptions): Promise<Record<string, unknown>[]> {
  const { gguf, presets, dtypes, threads, prompt, reps, genFor } = options;
  const ceiling = await readCeiling();
  const rows: Record<string, unknown>[] = [];
  for (const preset of presets) {
    for (const dtype of dtypes) {
      const shape = SHAPES[preset];
      if (shape === undefined) throw new Error(`compare: expected a preset with a peer, got ${preset}`);
      const file = join(gguf, ggufName(shape, dtype === 'int8' ? 'q8_0' : 'bf16'));
      const gen = genFor(preset);
      const ours = { decode: [] as number[], prefill: [] as number[] };
      const theirs = { decode: [] as number[], prefill: [] as number[] };
      const model = await openModel({ preset, dtype, threads });
      const bound = bounds(model, dtype, threads, ceiling);
      for (let rep = 0; rep < reps; rep++) {
        ours.decode.push(await decodeSpeed(model, gen, 1));
        ours.prefill.push(await prefillSpeed(model, prompt, 1));
        const peer = await runLlamaBench({ model: file, prompt, gen: Math.min(gen, 128), threads, reps: 1 });
        theirs.decode.push(peer.decode ?? Number.NaN);
        theirs.prefill.push(peer.prefill ?? Number.NaN);
      }
      model.dispose();
      for (const kind of ['decode', 'prefill'] as const) {
        const [a, b] = [median(ours[kind]), median(theirs[kind])];
        rows.push({
          preset,
          dtype,
          work: kind,
          threads,
          'mambabyte B/s': round(a),
          'llama.cpp B/s': round(b),
          ratio: round(a / b),
          'of bound': round(a / bound[kind]),
        });
      }
    }
  }
  return rows;
}
