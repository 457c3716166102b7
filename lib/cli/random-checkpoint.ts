// Checkpoints with random weights of any size, to measure speed with: made in seconds where the official initialisation of
// a billion weights takes minutes.
import type { MambaConfig } from '../models/config.ts';
import { mambaParams } from '../models/mamba.ts';
import { initialValues } from '../models/params.ts';
import { Philox } from '../rng.ts';
import { saveCheckpoint } from '../weights/checkpoint-files.ts';
import { fromFloat32 } from '../weights/dtypes.ts';
import type { TensorSource } from '../weights/safetensors.ts';

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

/** Writes a bf16 checkpoint: matrices uniform within 1 / sqrt(fan in), everything else as initialised. */
export async function writeRandomCheckpoint(folder: string, config: MambaConfig): Promise<void> {
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
}
