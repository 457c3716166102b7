/**
 * Writes Mamba models with random weights as GGUF files, so that llama.cpp can be timed on exactly our shapes.
 *
 *   tsx bench/peers/write-gguf.ts <folder> [shape ...] [bf16 | q8_0 | f32 ...]
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { type GgmlType, type GgufTensor, ggmlType, type MetaValue, writeGguf } from './gguf.ts';

export interface MambaShape {
  layers: number;
  width: number;
}

/** The shapes of the speed bars, by parameter count. */
export const shapes: Record<string, MambaShape> = {
  '5.3M': { layers: 12, width: 256 },
  '20.5M': { layers: 12, width: 512 },
  '353M': { layers: 53, width: 1024 },
};

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

function metadataOf({ layers, width }: MambaShape, name: string, type: GgmlType): Record<string, MetaValue> {
  const fileType = { f32: 0, q8_0: 7, bf16: 32 }[type];
  return {
    'general.architecture': 'mamba',
    'general.name': name,
    'general.file_type': { u32: fileType },
    'mamba.context_length': { u32: 1 << 20 },
    'mamba.embedding_length': { u32: width },
    'mamba.feed_forward_length': { u32: 0 },
    'mamba.attention.head_count': { u32: 0 },
    'mamba.block_count': { u32: layers },
    'mamba.ssm.conv_kernel': { u32: convKernel },
    'mamba.ssm.inner_size': { u32: 2 * width },
    'mamba.ssm.state_size': { u32: stateSize },
    'mamba.ssm.time_step_rank': { u32: width / 16 },
    'mamba.ssm.dt_b_c_rms': false,
    'mamba.attention.layer_norm_rms_epsilon': { f32: 1e-5 },
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': 'gpt-2',
    'tokenizer.ggml.tokens': byteAlphabet(),
    'tokenizer.ggml.merges': [],
    'tokenizer.ggml.bos_token_id': { u32: 0 },
    'tokenizer.ggml.eos_token_id': { u32: 0 },
    'tokenizer.ggml.add_bos_token': false,
  };
}

function tensorsOf({ layers, width }: MambaShape, type: GgmlType, seed: number): GgufTensor[] {
  const uniform = uniformSource(seed);
  const inner = 2 * width;
  const rank = width / 16;
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
  // The inverse softplus of a step drawn log-uniformly from [0.001, 0.1], Mamba's own initialisation.
  const stepBias = () => Math.log(Math.expm1(0.01 * 10 ** uniform()));
  const layer = (i: number): GgufTensor[] => [
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
  ];
  return [
    matrix('token_embd.weight', width, vocabulary),
    ...Array.from({ length: layers }, (_, i) => layer(i)).flat(),
    plain('output_norm.weight', [width], () => 1),
    matrix('output.weight', width, vocabulary),
  ];
}

/**
 * Writes one model with an untied head and RMSNorm (llama.cpp's `mamba` has no norm bias).
 * @returns bytes written
 */
export function writeMambaGguf(path: string, shape: MambaShape, type: GgmlType, seed = 1): number {
  return writeGguf(
    path,
    metadataOf(shape, `mamba ${shape.layers} x ${shape.width}`, type),
    tensorsOf(shape, type, seed),
  );
}

/** The name `write-gguf.ts` gives a model. */
export const ggufName = (shape: string, type: GgmlType): string => `mamba-${shape}-${type}.gguf`;

function main(args: string[]): void {
  const [folder, ...wanted] = args;
  const unknown = wanted.find((word) => !(word in shapes) && !(word in ggmlType));
  if (!folder || unknown !== undefined) {
    const known = [...Object.keys(shapes), ...Object.keys(ggmlType)].join(', ');
    throw new Error(`write-gguf: expected a folder, then any of ${known}, got ${unknown ?? 'nothing'}.`);
  }
  const some = <T extends string>(all: T[], fallback: T[]): T[] => {
    const chosen = all.filter((word) => wanted.includes(word));
    return chosen.length > 0 ? chosen : fallback;
  };
  mkdirSync(folder, { recursive: true });
  for (const name of some(Object.keys(shapes), Object.keys(shapes))) {
    for (const type of some(Object.keys(ggmlType) as GgmlType[], ['bf16', 'q8_0'])) {
      const shape = shapes[name];
      if (!shape) continue;
      const path = join(folder, ggufName(name, type));
      process.stderr.write(`${path}: ${(writeMambaGguf(path, shape, type) / 1e6).toFixed(1)} MB\n`);
    }
  }
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) main(process.argv.slice(2));
