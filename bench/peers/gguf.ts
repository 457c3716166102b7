/** GGUF version 3, the file format of llama.cpp: header, metadata, tensor table, then tensor data, all little-endian. */
import { closeSync, openSync, writeSync } from 'node:fs';

/** Storage of one tensor; the numbers are ggml's own type ids. */
export const ggmlType = { f32: 0, q8_0: 8, bf16: 30 } as const;
export type GgmlType = keyof typeof ggmlType;

export type MetaValue = string | boolean | string[] | { u32: number } | { f32: number };

export interface GgufTensor {
  name: string;
  /** Fastest dimension first, as ggml counts: a matrix of `rows x columns` is `[columns, rows]`. */
  shape: number[];
  type: GgmlType;
  /** Fills `out` with the next values of the tensor in storage order; called until the tensor is complete. */
  fill: (out: Float32Array) => void;
}

const alignment = 32;
/** Values in a block of q8_0: one half-precision scale and 32 signed bytes. */
const blockSize = 32;
const valuesPerWrite = 1 << 18;

const aligned = (n: number): number => Math.ceil(n / alignment) * alignment;

/** Bytes that `count` values take in a file. */
export function storedBytes(type: GgmlType, count: number): number {
  if (type === 'q8_0') return (count / blockSize) * (2 + blockSize);
  return type === 'bf16' ? count * 2 : count * 4;
}

const u32 = (n: number): Buffer => {
  const b = Buffer.alloc(4);
  b.writeUInt32LE(n);
  return b;
};

const u64 = (n: number): Buffer => {
  const b = Buffer.alloc(8);
  b.writeBigUInt64LE(BigInt(n));
  return b;
};

const text = (s: string): Buffer => {
  const utf8 = Buffer.from(s);
  return Buffer.concat([u64(utf8.length), utf8]);
};

function metaValue(value: MetaValue): Buffer {
  if (typeof value === 'string') return Buffer.concat([u32(8), text(value)]);
  if (typeof value === 'boolean') return Buffer.concat([u32(7), Buffer.from([value ? 1 : 0])]);
  if (Array.isArray(value)) return Buffer.concat([u32(9), u32(8), u64(value.length), ...value.map(text)]);
  if ('u32' in value) return Buffer.concat([u32(4), u32(value.u32)]);
  const b = Buffer.alloc(4);
  b.writeFloatLE(value.f32);
  return Buffer.concat([u32(6), b]);
}

/** A positive float32 as IEEE half precision, rounded to nearest; below the smallest normal half it becomes zero. */
function toHalf(value: number): number {
  const exponent = Math.floor(Math.log2(value));
  if (value === 0 || exponent < -14) return 0;
  // A mantissa that rounds up to 1024 carries into the exponent, as it must.
  return ((exponent + 15) << 10) + Math.round((value / 2 ** exponent - 1) * 1024);
}

function encodeBf16(values: Float32Array, out: Buffer): void {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const halves = new Uint16Array(out.buffer, out.byteOffset, values.length);
  for (let i = 0; i < values.length; i++) {
    const b = bits[i] ?? 0;
    // Round to nearest, ties to even.
    halves[i] = (b + 0x7fff + ((b >>> 16) & 1)) >>> 16;
  }
}

function encodeQ8(values: Float32Array, out: Buffer): void {
  let at = 0;
  for (let start = 0; start < values.length; start += blockSize) {
    let largest = 0;
    for (let i = start; i < start + blockSize; i++) largest = Math.max(largest, Math.abs(values[i] ?? 0));
    const scale = largest / 127;
    const inverse = scale > 0 ? 1 / scale : 0;
    at = out.writeUInt16LE(toHalf(scale), at);
    for (let i = start; i < start + blockSize; i++) at = out.writeInt8(Math.round((values[i] ?? 0) * inverse), at);
  }
}

function encode(type: GgmlType, values: Float32Array): Buffer {
  const out = Buffer.from(new ArrayBuffer(storedBytes(type, values.length)));
  if (type === 'bf16') encodeBf16(values, out);
  else if (type === 'q8_0') encodeQ8(values, out);
  else new Float32Array(out.buffer, out.byteOffset, values.length).set(values);
  return out;
}

function header(metadata: Record<string, MetaValue>, tensors: GgufTensor[]): Buffer {
  const entries = Object.entries(metadata);
  const parts = [Buffer.from('GGUF'), u32(3), u64(tensors.length), u64(entries.length)];
  for (const [key, value] of entries) parts.push(text(key), metaValue(value));
  let offset = 0;
  for (const { name, shape, type } of tensors) {
    parts.push(text(name), u32(shape.length), ...shape.map(u64), u32(ggmlType[type]), u64(offset));
    offset += aligned(storedBytes(type, count(shape)));
  }
  const all = Buffer.concat(parts);
  return Buffer.concat([all, Buffer.alloc(aligned(all.length) - all.length)]);
}

const count = (shape: number[]): number => shape.reduce((a, b) => a * b, 1);

/**
 * Writes a GGUF file piece by piece, so that a model larger than memory can be written.
 * @returns bytes written
 * @throws Error when a q8_0 tensor's rows are not a multiple of 32 values
 */
export function writeGguf(path: string, metadata: Record<string, MetaValue>, tensors: GgufTensor[]): number {
  for (const { name, shape, type } of tensors) {
    if (type === 'q8_0' && (shape[0] ?? 0) % blockSize !== 0) {
      throw new Error(`writeGguf: expected rows of '${name}' to be a multiple of ${blockSize}, got ${shape[0]}.`);
    }
  }
  const file = openSync(path, 'w');
  let written = 0;
  const write = (data: Buffer): void => {
    for (let at = 0; at < data.length; ) at += writeSync(file, data, at);
    written += data.length;
  };
  try {
    write(header(metadata, tensors));
    for (const { shape, type, fill } of tensors) {
      for (let left = count(shape); left > 0; left -= valuesPerWrite) {
        const values = new Float32Array(Math.min(left, valuesPerWrite));
        fill(values);
        write(encode(type, values));
      }
      write(Buffer.alloc(aligned(written) - written));
    }
  } finally {
    closeSync(file);
  }
  return written;
}
