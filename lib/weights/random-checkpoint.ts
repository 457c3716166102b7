// Checkpoints with random weights of any size, to measure speed with: made in seconds where the official initialisation of
// a billion weights takes minutes.
import { architectureOf, type ModelConfig } from '../models/architectures.ts';
import { initialValues } from '../models/params.ts';
import { Philox } from '../rng.ts';
import { elements } from '../tensor.ts';
import { saveCheckpoint } from './checkpoint-files.ts';
import { fromFloat32 } from './dtypes.ts';
import type { TensorSource } from './safetensors.ts';

/** A block of uniform bf16 in (-bound, bound), repeated: speed does not depend on the values beyond their range. */
function* repeated(block: Uint8Array, elems: number): Generator<Uint8Array> {
  for (let left = elems * 2; left > 0; left -= block.length)
    yield left >= block.length ? block : block.subarray(0, left);
}

function uniformBlock(bound: number): Uint8Array {
  const rng = new Philox(1);
  const values = Float32Array.from({ length: 1 << 18 }, () => (2 * rng.uniform() - 1) * bound);
  const block = fromFloat32(values, 'BF16');
  return Buffer.concat(Array.from({ length: 16 }, () => block)); // few large writes
}

/** Writes a bf16 checkpoint: matrices uniform within 1 / sqrt(fan in), everything else as initialised. */
export async function writeRandomCheckpoint(folder: string, config: ModelConfig): Promise<void> {
  const blocks = new Map<number, Uint8Array>();
  const blockOf = (bound: number) => {
    const block = blocks.get(bound) ?? uniformBlock(bound);
    blocks.set(bound, block);
    return block;
  };
  const { narrowable } = architectureOf(config);
  const sources = architectureOf(config)
    .params(config)
    .map((spec, i): TensorSource => {
      const { name, shape } = spec;
      if (!narrowable.test(name)) {
        const values = initialValues(spec, 1, i);
        return { name, shape, dtype: 'F32', data: new Uint8Array(values.buffer) };
      }
      const elems = elements(shape);
      return { name, shape, dtype: 'BF16', data: repeated(blockOf(1 / Math.sqrt(shape.at(-1) ?? 1)), elems) };
    });
  await saveCheckpoint(folder, config, sources);
}
