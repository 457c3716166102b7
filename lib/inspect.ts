// What a checkpoint holds, read from its headers; with `check`, the values too.
import { checkBoolean, checkOptions, checkSignal } from './errors.ts';
import type { ModelConfig } from './models/architectures.ts';
import { resolveModel } from './shipped.ts';
import { openCheckpoint } from './weights/checkpoint-files.ts';
import type { NameDialect } from './weights/names.ts';
import { elementCount, type StoredDType, type StoredTensor, tensorChunks } from './weights/stored-tensor.ts';

export interface InspectOptions {
  /** Read every value and count those that are NaN or infinite; default false. */
  check?: boolean;
  signal?: AbortSignal;
  /** With `check`: called with the fraction of bytes read, 0 to 1. */
  onProgress?: (fraction: number) => void;
}

/** One tensor of a checkpoint, under its canonical name. */
export interface InspectedTensor {
  name: string;
  /** As stored. */
  dtype: StoredDType;
  shape: number[];
  /** Size of its elements. */
  bytes: number;
  /** With `check`: how many of its values are NaN or infinite. */
  nonFinite?: number;
}

export interface Inspection {
  /** The file of weights, or the index of a sharded checkpoint. */
  file: string;
  /** Whose tensor names the file uses. */
  dialect: NameDialect;
  config: ModelConfig;
  /** Of the tokenizer.json beside the weights: how many ids it has; null: there is none. */
  tokenizer: { vocab: number } | null;
  /** Values in all tensors, the scales of int8 weights left out. */
  parameters: number;
  /** Bytes of all tensors. */
  bytes: number;
  tensors: InspectedTensor[];
  metadata: Record<string, string>;
  /** What is odd about the file, one sentence each. */
  warnings: string[];
}

/**
 * Describes a checkpoint without loading it.
 *
 * @param path the name of a shipped model, a folder, a .safetensors file, or a PyTorch .bin/.pt
 * @throws ModelFormatError if the file is malformed or contradicts itself
 */
export async function inspectModel(path: string, options: InspectOptions = {}): Promise<Inspection> {
  checkOptions('inspectModel', options, ['check', 'signal', 'onProgress']);
  checkSignal('inspectModel', options.signal);
  const check = checkBoolean('inspectModel', 'check', options.check ?? false);
  const file = await openCheckpoint(resolveModel(path));
  const stored = [...file.tensors.values()];
  const total = stored.reduce((sum, t) => sum + t.bytes, 0);
  const warnings = [...file.warnings];
  const tensors: InspectedTensor[] = [];
  let read = 0;
  for (const tensor of stored) {
    const { name, dtype, shape, bytes } = tensor;
    if (!check) {
      tensors.push({ name, dtype, shape, bytes });
      continue;
    }
    const nonFinite = await countNonFinite(tensor, (chunk) => {
      options.signal?.throwIfAborted();
      read += chunk;
      options.onProgress?.(read / total);
    });
    tensors.push({ name, dtype, shape, bytes, nonFinite });
    if (nonFinite > 0) warnings.push(`${name} holds ${nonFinite} values that are NaN or infinite.`);
  }
  const values = stored.filter((t) => !t.name.endsWith('.scale')).map((t) => elementCount(t.shape) ?? 0);
  return {
    file: file.file,
    dialect: file.dialect,
    config: file.config,
    tokenizer: file.tokenizer ? { vocab: file.tokenizer.vocab } : null,
    parameters: values.reduce((a, b) => a + b, 0),
    bytes: total,
    tensors,
    metadata: file.metadata,
    warnings,
  };
}

/** The exponent of each floating-point format: all ones mean NaN or infinity. */
const EXPONENT: Partial<Record<StoredDType, number>> = { F16: 0x7c00, BF16: 0x7f80, F32: 0x7f800000 };

async function countNonFinite(tensor: StoredTensor, onChunk: (bytes: number) => void): Promise<number> {
  let found = 0;
  for await (const chunk of tensorChunks(tensor)) {
    found += nonFiniteIn(chunk, tensor.dtype);
    onChunk(chunk.length);
  }
  return found;
}

function nonFiniteIn(chunk: Uint8Array, dtype: StoredDType): number {
  const bytes = new Uint8Array(chunk).buffer; // a copy: a chunk may lie at any address of a pooled buffer
  if (dtype === 'F64') return new Float64Array(bytes).filter((x) => !Number.isFinite(x)).length;
  const exponent = EXPONENT[dtype];
  if (exponent === undefined) return 0;
  const words = dtype === 'F32' ? new Uint32Array(bytes) : new Uint16Array(bytes);
  let found = 0;
  for (const word of words) if ((word & exponent) === exponent) found++;
  return found;
}
