// From any checkpoint that loads to a folder with config.json, model.safetensors and its tokenizer.json, if it has one, in
// another dtype or dialect.
import { checkChoice, checkOptions, checkSignal } from './errors.ts';
import { loadModel, type Model } from './model.ts';
import { resolveModel } from './shipped.ts';
import type { Tensor } from './tensor.ts';
import { openCheckpoint, saveCheckpoint } from './weights/checkpoint-files.ts';
import type { ConfigDialect } from './weights/config-json.ts';
import type { WeightDType } from './weights/load.ts';
import type { TensorSource } from './weights/safetensors.ts';

export interface ConvertOptions {
  /** Storage of the large matrices; left out: as stored (f16 and f64 become f32). Everything else is f32. */
  dtype?: WeightDType;
  /** Names and config.json: 'mambabyte' (state-spaces/mamba, default) or 'hf' (transformers' MambaForCausalLM). */
  to?: ConfigDialect;
  signal?: AbortSignal;
  /** Called with the fraction loaded, 0 to 1. */
  onProgress?: (fraction: number) => void;
}

/**
 * Converts a checkpoint. Weights are converted by the device and written one tensor at a time, so the JavaScript heap
 * never holds more than the largest of them.
 *
 * @param input the name of a shipped model, a folder, a .safetensors file, or a PyTorch .bin/.pt
 * @param folder made if it is not there; its files are replaced in one step each
 * @throws ModelFormatError if the input is malformed, or the dialect cannot express the model
 * @throws CheckpointError if the file system refuses; what was there before is intact
 */
export async function convertModel(input: string, folder: string, options: ConvertOptions = {}): Promise<void> {
  const where = 'convertModel';
  checkOptions(where, options, ['dtype', 'to', 'signal', 'onProgress']);
  checkSignal(where, options.signal);
  const dialect = checkChoice(where, 'to', options.to ?? 'mambabyte', ['mambabyte', 'hf'] as const);
  const path = resolveModel(input);
  const { metadata } = await openCheckpoint(path);
  const { dtype, signal, onProgress } = options;
  using model = await loadModel(path, {
    device: 'cpu',
    ...(dtype && { dtype }),
    ...(signal && { signal }),
    ...(onProgress && { onProgress }),
  });
  const tensors = [...model.weights].map(([name, tensor]) => source(model, name, tensor, signal));
  await saveCheckpoint(folder, model.config, tensors, { dialect, metadata, tokenizer: model.tokenizer });
}

const STORED = { f32: 'F32', bf16: 'BF16', i8: 'I8' } as const;

function source(model: Model, name: string, tensor: Tensor, signal: AbortSignal | undefined): TensorSource {
  const dtype = STORED[tensor.dtype as keyof typeof STORED];
  return { name, dtype, shape: tensor.shape, data: lazily(model, tensor, signal) };
}

/** Reads the tensor only when it is its turn to be written. */
function* lazily(model: Model, tensor: Tensor, signal: AbortSignal | undefined): Generator<Uint8Array> {
  signal?.throwIfAborted();
  const { buffer, byteOffset, byteLength } = model.runtime.read(tensor);
  yield new Uint8Array(buffer, byteOffset, byteLength);
}
