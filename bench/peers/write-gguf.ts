/**
 * Writes models with random weights as GGUF files, so that llama.cpp can be timed on exactly our shapes.
 *
 *   tsx bench/peers/write-gguf.ts <folder> [preset ...] [bf16 | q8_0 | f32 ...]
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { presetConfig } from '../../lib/models/presets.ts';
import type { TransformerConfig } from '../../lib/models/transformer.ts';
import { type GgmlType, type GgufTensor, ggmlType, type MetaValue, writeGguf } from './gguf.ts';

/** The presets of the speed bars that llama.cpp has an architecture for. */
const PEERED = ['mambabyte-5m', 'mambabyte-20m', 'mambabyte-353m', 'transformer-5m', 'transformer-353m'];

interface MambaShape {
  layers: number;
  dModel: number;
}

const vocabulary = 256;
const stateSize = 16;
const convKernel = 4;

/** Xorshift32 as uniform numbers in [-1, 1): fast, and the same file for the same seed. */
function uniformSource(seed: number): () => number {
  let x = seed | 0 || 1;
  return () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return x / 0x80000000;
  };
}

/**
 * The byte-level BPE alphabet of GPT-2 with no merges: token i is byte i. Printable Latin-1 bytes stand for themselves,
 * the other 68 for the characters from U+0100 on.
 */
function byteAlphabet(): string[] {
  let next = 0x100;
  return Array.from({ length: vocabulary }, (_, byte) => {
    const printable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
    return String.fromCodePoint(printable ? byte : next++);
  });
}

function metadataOf(name: string, type: GgmlType, shape: Record<string, MetaValue>): Record<string, MetaValue> {
  const fileType = { f32: 0, q8_0: 7, bf16: 32 }[type];
  return {
    ...shape,
    'general.name': name,
    'general.file_type': { u32: fileType },
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': 'gpt-2',
    'tokenizer.ggml.tokens': byteAlphabet(),
    'tokenizer.ggml.merges': [],
    'tokenizer.ggml.bos_token_id': { u32: 0 },
    'tokenizer.ggml.eos_token_id': { u32: 0 },
    'tokenizer.ggml.add_bos_token': false,
  };
}

function mambaMetadata({ layers, dModel }: MambaShape): Record<string, MetaValue> {
  return {
    'general.architecture': 'mamba',
    'mamba.context_length': { u32: 1 << 20 },
    'mamba.embedding_length': { u32: dModel },
    'mamba.feed_forward_length': { u32: 0 },
    'mamba.attention.head_count': { u32: 0 },
    'mamba.block_count': { u32: layers },
    'mamba.ssm.conv_kernel': { u32: convKernel },
    'mamba.ssm.inner_size': { u32: 2 * dModel },
    'mamba.ssm.state_size': { u32: stateSize },
    'mamba.ssm.time_step_rank': { u32: dModel / 16 },
    'mamba.ssm.dt_b_c_rms': false,
    'mamba.attention.layer_norm_rms_epsilon': { f32: 1e-5 },
  };
}

function transformerMetadata(c: TransformerConfig): Record<string, MetaValue> {
  return {
    'general.architecture': 'llama',
    'llama.context_length': { u32: 1 << 20 },
    'llama.embedding_length': { u32: c.dModel },
    'llama.feed_forward_length': { u32: c.dInner },
    'llama.block_count': { u32: c.layers },
    'llama.attention.head_count': { u32: c.heads },
    'llama.attention.head_count_kv': { u32: c.keyHeads },
    'llama.attention.layer_norm_rms_epsilon': { f32: c.normEps },
    'llama.rope.dimension_count': { u32: c.dModel / c.heads },
    'llama.rope.freq_base': { f32: c.ropeTheta },
    'llama.vocab_size': { u32: vocabulary },
  };
}

/** Makes tensors whose values follow from one seed. */
function tensorMaker(type: GgmlType, seed: number) {
  const uniform = uniformSource(seed);
  // Rows shorter than a q8_0 block stay at two bytes a weight, as llama.cpp's own converter leaves them.
  const matrix = (name: string, columns: number, rows: number): GgufTensor => ({
    name,
    shape: [columns, rows],
    type: type === 'q8_0' && columns % 32 !== 0 ? 'bf16' : type,
    fill: (out) => {
      const bound = 1 / Math.sqrt(columns);
      for (let i = 0; i < out.length; i++) out[i] = bound * uniform();
    },
  });
  const plain = (name: string, shape: number[], value: (index: number) => number): GgufTensor => ({
    name,
    shape,
    type: 'f32',
    fill: (out) => {
      for (let i = 0; i < out.length; i++) out[i] = value(i);
    },
  });
  /** Layers between the embedding and an untied head. */
  const whole = (layers: number, width: number, layer: (i: number) => GgufTensor[]): GgufTensor[] => [
    matrix('token_embd.weight', width, vocabulary),
    ...Array.from({ length: layers }, (_, i) => layer(i)).flat(),
    plain('output_norm.weight', [width], () => 1),
    matrix('output.weight', width, vocabulary),
  ];
  return { uniform, matrix, plain, whole };
}

function mambaTensors({ layers, dModel: width }: MambaShape, type: GgmlType, seed: number): GgufTensor[] {
  const { uniform, matrix, plain, whole } = tensorMaker(type, seed);
  const inner = 2 * width;
  const rank = width / 16;
  // The inverse softplus of a step drawn log-uniformly from [0.001, 0.1], Mamba's own initialisation.
  const stepBias = () => Math.log(Math.expm1(0.01 * 10 ** uniform()));
  return whole(layers, width, (i) => [
    plain(`blk.${i}.attn_norm.weight`, [width], () => 1),
    matrix(`blk.${i}.ssm_in.weight`, width, 2 * inner),
    plain(`blk.${i}.ssm_conv1d.weight`, [convKernel, inner], () => uniform() / Math.sqrt(convKernel)),
    plain(`blk.${i}.ssm_conv1d.bias`, [inner], () => uniform() / Math.sqrt(convKernel)),
    matrix(`blk.${i}.ssm_x.weight`, inner, rank + 2 * stateSize),
    matrix(`blk.${i}.ssm_dt.weight`, rank, inner),
    plain(`blk.${i}.ssm_dt.bias`, [inner], stepBias),
    plain(`blk.${i}.ssm_a`, [stateSize, inner], (index) => -1 - (index % stateSize)),
    plain(`blk.${i}.ssm_d`, [inner], () => 1),
    matrix(`blk.${i}.ssm_out.weight`, inner, width),
  ]);
}

function transformerTensors(c: TransformerConfig, type: GgmlType, seed: number): GgufTensor[] {
  const { layers, dModel: width, heads, keyHeads, dInner } = c;
  const { matrix, plain, whole } = tensorMaker(type, seed);
  const keys = (width / heads) * keyHeads;
  return whole(layers, width, (i) => [
    plain(`blk.${i}.attn_norm.weight`, [width], () => 1),
    matrix(`blk.${i}.attn_q.weight`, width, width),
    matrix(`blk.${i}.attn_k.weight`, width, keys),
    matrix(`blk.${i}.attn_v.weight`, width, keys),
    matrix(`blk.${i}.attn_output.weight`, width, width),
    plain(`blk.${i}.ffn_norm.weight`, [width], () => 1),
    matrix(`blk.${i}.ffn_gate.weight`, width, dInner),
    matrix(`blk.${i}.ffn_up.weight`, width, dInner),
    matrix(`blk.${i}.ffn_down.weight`, dInner, width),
  ]);
}

/**
 * Writes a model of a preset's shape, with an untied head and RMSNorm (llama.cpp's `mamba` has no norm bias).
 * @returns bytes written
 */
function writePeer(path: string, preset: string, type: GgmlType, seed = 1): number {
  const config = presetConfig(preset);
  if (config.architecture === 'transformer') {
    const c = config as TransformerConfig;
    return writeGguf(path, metadataOf(preset, type, transformerMetadata(c)), transformerTensors(c, type, seed));
  }
  const c = config as MambaShape;
  return writeGguf(path, metadataOf(preset, type, mambaMetadata(c)), mambaTensors(c, type, seed));
}

/** The name that `write-gguf.ts` gives a model of a preset's shape. */
export const ggufName = (preset: string, type: GgmlType): string => `${preset}-${type}.gguf`;

function main(args: string[]): void {
  const [folder, ...wanted] = args;
  const types = Object.keys(ggmlType) as GgmlType[];
  const unknown = wanted.find((word) => ![...PEERED, ...types].includes(word));
  if (!folder || unknown !== undefined) {
    const known = [...PEERED, ...types].join(', ');
    throw new Error(`write-gguf: expected a folder, then any of ${known}, got ${unknown ?? 'nothing'}.`);
  }
  const some = <T extends string>(all: readonly T[], fallback: readonly T[]): readonly T[] => {
    const chosen = all.filter((word) => wanted.includes(word));
    return chosen.length > 0 ? chosen : fallback;
  };
  mkdirSync(folder, { recursive: true });
  for (const preset of some(PEERED, PEERED)) {
    for (const type of some(types, ['bf16', 'q8_0'])) {
      const path = join(folder, ggufName(preset, type));
      process.stderr.write(`${path}: ${(writePeer(path, preset, type) / 1e6).toFixed(1)} MB\n`);
    }
  }
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) main(process.argv.slice(2));
