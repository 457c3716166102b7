import { existsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { presetConfig } from '../lib/models/config.ts';
import { mambaParams } from '../lib/models/mamba.ts';
import { initialValues } from '../lib/models/params.ts';
import { Philox } from '../lib/rng.ts';
import { saveCheckpoint } from '../lib/weights/checkpoint-files.ts';
import { fromFloat32 } from '../lib/weights/dtypes.ts';
import type { TensorSource } from '../lib/weights/safetensors.ts';

const MATRIX = /_proj\.weight$|embedding\.weight$|lm_head\.weight$/;

/** One megabyte of uniform bf16 in (-bound, bound), repeated: speed does not depend on the values beyond their range. */
function* uniformBf16(elems: number, bound: number, seed: number): Generator<Uint8Array> {
  const rng = new Philox(seed);
  const block = fromFloat32(
    Float32Array.from({ length: 1 << 19 }, () => (2 * rng.uniform() - 1) * bound),
    'BF16',
  );
  for (let left = elems * 2; left > 0; left -= block.length)
    yield left >= block.length ? block : block.subarray(0, left);
}

/** A folder with a random bf16 checkpoint of a preset's shape, made on first use and kept in the temporary folder. */
export async function randomModel(preset: string): Promise<string> {
  const folder = join(tmpdir(), 'mambabyte-bench', preset);
  if (existsSync(join(folder, 'config.json'))) return folder;
  const config = presetConfig(preset);
  const sources = mambaParams(config).map((spec, i): TensorSource => {
    const { name, shape } = spec;
    if (!MATRIX.test(name)) {
      const values = initialValues(spec, 1, i);
      return { name, shape, dtype: 'F32', data: new Uint8Array(values.buffer) };
    }
    const elems = shape.reduce((a, b) => a * b, 1);
    return { name, shape, dtype: 'BF16', data: uniformBf16(elems, 1 / Math.sqrt(shape.at(-1) ?? 1), i) };
  });
  await saveCheckpoint(folder, config, sources);
  return folder;
}
