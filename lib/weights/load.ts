import type { Device } from '../device.ts';
import { Graph } from '../graph.ts';
import type { Architecture } from '../models/architecture.ts';
import { mamba } from '../models/mamba.ts';
import { compile } from '../plan.ts';
import { type DType, dtypeBytes, Tensor } from '../tensor.ts';
import { readTensorBytes, type StoredDType, type StoredTensor } from './stored-tensor.ts';

/** Storage type of the large matrices. Norms, biases, A, D and all states are f32 whatever this is. */
export type WeightDType = 'f32' | 'bf16' | 'int8';

const STORED: Partial<Record<StoredDType, DType>> = { F64: 'f64', F32: 'f32', F16: 'f16', BF16: 'bf16', I8: 'i8' };

export interface LoadOptions {
  /** Left out: as stored (f16 and f64 become f32). */
  dtype?: WeightDType | undefined;
  /** Give every tensor f32 memory of its own, to be updated by training. */
  trainable?: boolean;
  /** Whose weights they are: it says which may be narrowed; default: mamba. */
  architecture?: Pick<Architecture, 'narrowable' | 'int8'>;
  signal?: AbortSignal | undefined;
  onProgress?: ((fraction: number) => void) | undefined;
}

/**
 * Puts stored tensors on a device. What already has the wanted type is mapped from the file, so that loading takes no
 * time and no memory, or copied where the device's memory is its own; the rest is converted by the device.
 */
export async function loadWeights(
  device: Device,
  stored: ReadonlyMap<string, StoredTensor>,
  options: LoadOptions = {},
): Promise<Map<string, Tensor>> {
  const weights = new Map<string, Tensor>();
  const maps = new Map<string, number>();
  const total = [...stored.values()].reduce((sum, t) => sum + t.bytes, 0);
  const { trainable = false } = options;
  let done = 0;
  for (const [name, source] of stored) {
    options.signal?.throwIfAborted();
    const wanted = wantedDType(name, source, options);
    const { tensor, alone } = await asStored(device, name, source, maps);
    if (wanted === 'i8' && tensor.dtype !== 'i8') {
      const { q, scale } = await quantize(device, name, tensor);
      weights.set(name, q).set(`${name}.scale`, scale);
    } else if (trainable || tensor.dtype !== wanted) {
      const scale = stored.get(`${name}.scale`);
      weights.set(name, await convert(device, name, source, tensor, wanted, scale, trainable));
    } else {
      weights.set(name, tensor);
    }
    if (alone && weights.get(name) !== tensor) device.release(tensor);
    done += source.bytes;
    options.onProgress?.(total > 0 ? done / total : 1);
  }
  if (trainable || options.dtype === 'f32') {
    for (const name of [...weights.keys()]) if (name.endsWith('.weight.scale')) weights.delete(name);
  }
  return weights;
}

function wantedDType(name: string, source: StoredTensor, options: LoadOptions): DType {
  const { narrowable, int8 } = options.architecture ?? mamba;
  if (options.trainable || !narrowable.test(name)) return 'f32';
  const as = STORED[source.dtype] ?? 'f32';
  if (options.dtype === undefined) return as === 'f64' || as === 'f16' ? 'f32' : as;
  if (options.dtype === 'int8') return int8.test(name) || as === 'i8' ? 'i8' : 'bf16';
  return options.dtype;
}

/**
 * The tensor as it lies in its file; one mapping per file. Elements that are not contiguous or aligned are copied, and so are
 * all where the device's memory is its own. Then the tensor has its memory alone, to be released once it is converted.
 */
async function asStored(
  device: Device,
  name: string,
  source: StoredTensor,
  maps: Map<string, number>,
): Promise<{ tensor: Tensor; alone: boolean }> {
  const dtype = STORED[source.dtype];
  if (!dtype) throw new TypeError(`load: expected ${name} to be floating-point or int8, got ${source.dtype}.`);
  if (source.strides || source.offset % dtypeBytes(dtype) !== 0 || source.bytes === 0) {
    const copy = device.tensor(source.shape, dtype, name, true);
    device.write(copy, await readTensorBytes(source));
    return { tensor: copy, alone: true };
  }
  const at = (buffer: number, offset: number) =>
    new Tensor(source.shape, dtype, name, { storage: { buffer, offset }, frozen: true });
  if (device.info.hostMemory === false) {
    return { tensor: at(device.map(source.file, source.offset, source.bytes), 0), alone: true };
  }
  let buffer = maps.get(source.file);
  if (buffer === undefined) {
    const { size } = await (await import('node:fs/promises')).stat(source.file);
    buffer = device.map(source.file, 0, size);
    maps.set(source.file, buffer);
  }
  return { tensor: at(buffer, source.offset), alone: false };
}

async function quantize(device: Device, name: string, x: Tensor): Promise<{ q: Tensor; scale: Tensor }> {
  const q = device.tensor(x.shape, 'i8', name, true);
  const scale = device.tensor([x.shape[0] ?? 0], 'f32', `${name}.scale`, true);
  const g = new Graph();
  g.op('quantize_rows', { q, scale }, { x });
  using plan = await compile(device, g);
  await plan.run();
  return { q, scale };
}

async function convert(
  device: Device,
  name: string,
  source: StoredTensor,
  x: Tensor,
  dtype: DType,
  scale: StoredTensor | undefined,
  trainable: boolean,
): Promise<Tensor> {
  let from = x; // mapped from its file, so that a trainable tensor is a copy even of the same type
  if (x.dtype === 'i8') {
    from = device.tensor(x.shape, 'f32', name, !trainable);
    device.write(from, await dequantized(source, scale));
    if (dtype === 'f32') return from;
  }
  const y = device.tensor(x.shape, dtype, name, !trainable);
  const g = new Graph();
  g.op('copy', { y }, { x: from });
  using plan = await compile(device, g);
  await plan.run();
  if (from !== x) device.release(from);
  return y;
}

/** int8 rows times their scales, as f32. */
async function dequantized(source: StoredTensor, scale: StoredTensor | undefined): Promise<Float32Array> {
  if (!scale) throw new TypeError(`load: expected ${source.name} to have scales beside it.`);
  const q = new Int8Array((await readTensorBytes(source)).buffer);
  const s = new Float32Array((await readTensorBytes(scale)).buffer);
  const cols = q.length / s.length;
  return Float32Array.from(q, (v, i) => v * (s[Math.floor(i / cols)] ?? 0));
}
