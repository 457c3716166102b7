import { performance } from 'node:perf_hooks';
import { createModel, createTrainer, presetConfig } from '../lib/index.ts';
import { bounds, readCeiling } from './ceiling.ts';
import { median, round } from './measure.ts';

const BATCH = 4;
const CONTEXT = 512;

/** Bytes/s of whole optimiser steps (forward, backward, clip, AdamW), 4 x 512 bytes each, f32. */
export async function trainBench(
  presets: readonly string[],
  threads: number,
  reps: number,
): Promise<Record<string, unknown>[]> {
  const rows = [];
  const ceiling = await readCeiling();
  for (const preset of presets) {
    const model = await createModel(presetConfig(preset), { threads });
    const trainer = await createTrainer(model, { lr: 1e-4 });
    const bytes = Uint8Array.from({ length: BATCH * (CONTEXT + 1) }, (_, i) => (i * 31 + (i >> 5)) & 255);
    const samples: number[] = [];
    for (let i = 0; i <= reps; i++) {
      const start = performance.now();
      await trainer.step({ bytes, batch: BATCH });
      if (i > 0) samples.push((BATCH * CONTEXT * 1000) / (performance.now() - start));
    }
    const speed = median(samples);
    const bound = bounds(model, 'f32', threads, ceiling).train;
    rows.push({ preset, threads, 'bytes/s': round(speed), bound: round(bound), fraction: round(speed / bound) });
    model.dispose();
  }
  return rows;
}
