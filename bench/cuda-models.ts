// Whole models on a GPU, at the work of the table in the README: decoding, reading, training; random weights, bf16.

import { writeFileSync } from 'node:fs';
import { performance } from 'node:perf_hooks';
import { type CudaInfo, Device, isCuda } from '../lib/device.ts';
import { createTrainer, loadModel, type Model } from '../lib/index.ts';
import {
  chromeTrace,
  collectPlans,
  type DeviceLimits,
  measureLimits,
  type PlanProfile,
  profile,
} from '../lib/profile.ts';
import type { WeightDType } from '../lib/weights/load.ts';
import { median, round } from './measure.ts';
import { MAMBA_SSM } from './peers/mamba-ssm.ts';
import { PYTORCH_TRANSFORMER } from './peers/pytorch-transformer.ts';
import { randomModel } from './random-model.ts';
import { decodeSpeed, prefillSpeed } from './speed.ts';

export interface CudaBench {
  device: string;
  presets: readonly string[];
  dtypes: readonly WeightDType[];
  /** Sequences decoded together, or windows of a training step. */
  batch: number;
  /** Bytes decoded, or bytes of a window. */
  gen: number;
  prompt: number;
  /** Bytes of the prompt that decoding starts from. */
  read: number;
  context: number;
  reps: number;
  precision: 'f32' | 'bf16';
  recompute: 'none' | 'cheap' | 'layer' | undefined;
  /** A file for a Chrome trace. */
  trace: string | undefined;
}

type Rows = Record<string, unknown>[];

/** The GPU's name and what it reaches, for the head of a table. */
export async function gpuLimits(name: string): Promise<{ info: CudaInfo; limits: DeviceLimits }> {
  using device = Device.open('cuda', { index: Number(/:(\d+)/.exec(name)?.[1] ?? 0) });
  if (!isCuda(device.info)) throw new Error('bench: expected a GPU');
  const limits = await measureLimits(device);
  const { bytesPerSecond, flopsPerSecond } = limits;
  console.log(
    `${device.info.name}: a copy ${round(bytesPerSecond / 1e12)} TB/s, a bf16 product ${round(flopsPerSecond / 1e12)} TFLOP/s`,
  );
  return { info: device.info, limits };
}

function beside(work: string, speed: number): Record<string, unknown> {
  const peer = MAMBA_SSM.models[work] ?? PYTORCH_TRANSFORMER[work];
  return { 'peer B/s (recorded)': peer ?? '', ratio: peer === undefined ? '' : round(speed / peer) };
}

/** Opens a model and says how many bytes of the GPU's memory it then takes with what `use` does. */
async function withModel<T>(
  o: CudaBench,
  preset: string,
  dtype: WeightDType | undefined,
  use: (model: Model) => Promise<T>,
): Promise<{ result: T; taken: number; model: Model }> {
  const path = await randomModel(preset);
  using probe = Device.open('cuda', { index: Number(/:(\d+)/.exec(o.device)?.[1] ?? 0) });
  const free = () => (probe.describe() as CudaInfo).freeBytes;
  const before = free();
  using model = await loadModel(path, { device: o.device, ...(dtype ? { dtype } : { trainable: true }) });
  const result = await use(model);
  return { result, taken: before - free(), model };
}

/** Decoding: bytes per second of all sequences together, and what the bandwidth would allow. */
export async function cudaDecode(o: CudaBench, limits: DeviceLimits): Promise<Rows> {
  const rows: Rows = [];
  for (const preset of o.presets) {
    for (const dtype of o.dtypes) {
      const { result, taken, model } = await withModel(o, preset, dtype, (model) =>
        o.batch === 1 ? decodeSpeed(model, o.gen, o.reps, o.read) : batchSpeed(model, o.batch, o.gen, o.reps),
      );
      // A state is read and written, a cache read.
      const constant = model.stateBytesAt(1) === model.stateBytesAt(1 << 20);
      const carried = (constant ? 2 : 1) * model.stateBytesAt(o.read);
      const bound = (o.batch * limits.bytesPerSecond) / (model.bytes + o.batch * carried);
      rows.push({
        preset,
        dtype,
        batch: o.batch,
        ...(o.read > 1 && { read: o.read }),
        'bytes/s': round(result),
        bound: round(bound),
        fraction: round(result / bound),
        'memory / weights': round(taken / model.bytes),
        ...(dtype === 'bf16' &&
          beside(o.read > 1 ? `decode ${preset} at ${o.read}` : `decode ${preset} x${o.batch}`, result)),
      });
    }
  }
  return rows;
}

/** Steps of `batch` sequences that sample at temperature 1, without the reading of their prompts. */
async function batchSpeed(model: Model, batch: number, steps: number, reps: number): Promise<number> {
  const settings = Array.from({ length: batch }, (_, b) => ({
    temperature: 1,
    topK: 0,
    topP: 1,
    minP: 0,
    repetitionPenalty: 1,
    seed: b,
  }));
  return model.withSession(async (session) => {
    const samples: number[] = [];
    for (let i = 0; i <= reps; i++) {
      const loop = await session.startDecoding(settings.map((row, b) => ({ settings: row, pending: b % 256 })));
      const start = performance.now();
      const { steps: done } = await loop.run({ steps: i === 0 ? 32 : steps });
      if (i > 0) samples.push((batch * done * 1000) / (performance.now() - start));
    }
    return median(samples);
  }, batch);
}

/** Reading a prompt from an empty state. */
export async function cudaPrefill(o: CudaBench, limits: DeviceLimits): Promise<Rows> {
  const rows: Rows = [];
  for (const preset of o.presets) {
    for (const dtype of o.dtypes) {
      const { result, taken, model } = await withModel(o, preset, dtype, (m) => prefillSpeed(m, o.prompt, o.reps));
      const bound = limits.flopsPerSecond / (2 * model.parameters);
      rows.push({
        preset,
        dtype,
        bytes: o.prompt,
        'bytes/s': round(result),
        'bound (products)': round(bound),
        fraction: round(result / bound),
        'memory / weights': round(taken / model.bytes),
        ...(dtype === 'bf16' && beside(`prefill ${preset} ${o.prompt}`, result)),
      });
    }
  }
  return rows;
}

/** Whole optimiser steps: forward, backward, clipping, AdamW. */
export async function cudaTrain(o: CudaBench, limits: DeviceLimits): Promise<Rows> {
  const rows: Rows = [];
  const { batch, context, precision, recompute } = o;
  for (const preset of o.presets) {
    const { result, taken, model } = await withModel(o, preset, undefined, async (m) => {
      const trainer = await createTrainer(m, { lr: 1e-4, precision, ...(recompute && { recompute }) });
      const bytes = Uint8Array.from({ length: batch * (context + 1) }, (_, i) => (i * 31 + (i >> 5)) & 255);
      const samples: number[] = [];
      for (let i = 0; i <= o.reps; i++) {
        const start = performance.now();
        const { loss } = await trainer.step({ bytes, batch });
        if (!Number.isFinite(loss)) throw new Error(`train: the loss is ${loss}`);
        if (i > 0) samples.push((batch * context * 1000) / (performance.now() - start));
      }
      return median(samples);
    });
    const bound = limits.flopsPerSecond / (6 * model.parameters);
    rows.push({
      preset,
      precision,
      recompute: recompute ?? 'default',
      batch: `${batch} x ${context}`,
      'bytes/s': round(result),
      'bound (products)': round(bound),
      fraction: round(result / bound),
      GiB: round(taken / 2 ** 30),
      ...(precision === 'bf16' && beside(`train ${preset} ${batch}x${context}`, result)),
    });
  }
  return rows;
}

/** Logits for 1 to 32 drafted bytes in one pass, beside a decode step of the same model. */
export async function cudaVerify(o: CudaBench, limits: DeviceLimits): Promise<Rows> {
  const rows: Rows = [];
  for (const preset of o.presets) {
    for (const dtype of o.dtypes) {
      using model = await loadModel(await randomModel(preset), { device: o.device, dtype });
      const step = 1000 / (await decodeSpeed(model, 1024, o.reps));
      for (const K of [1, 4, 8, 16, 32]) {
        const ms = await model.withSession(async (session) => {
          const ids = Array.from({ length: K }, (_, i) => (i * 37) % 256);
          const samples: number[] = [];
          for (let i = 0; i < 10 * o.reps; i++) {
            const start = performance.now();
            await session.verify(ids);
            await session.accept(Math.ceil(K / 2));
            samples.push(performance.now() - start);
          }
          return median(samples.slice(o.reps));
        });
        const least = (model.bytes / limits.bytesPerSecond) * 1000;
        rows.push({
          preset,
          dtype,
          drafted: K,
          'ms, verify + accept half': round(ms),
          'ms, one decode step': round(step),
          ratio: round(ms / step),
          'of limit': round(least / ms),
        });
      }
    }
  }
  return rows;
}

/** Where the time goes: kernels of a decode step, a chunk of prompt and a training step. */
export async function cudaProfile(o: CudaBench, limits: DeviceLimits, work: string): Promise<Rows> {
  const [preset = ''] = o.presets;
  const [dtype] = work === 'train' ? [] : o.dtypes;
  const path = await randomModel(preset);
  using model = await loadModel(path, { device: o.device, ...(dtype ? { dtype } : { trainable: true }) });
  const plans = collectPlans(model.runtime);
  const { batch, context, precision, recompute } = o;
  const text = Uint8Array.from(
    { length: Math.max(o.prompt, batch * (context + 1)) },
    (_, i) => (i * 31 + (i >> 5)) & 255,
  );
  const run = await (async (): Promise<() => PromiseLike<unknown>> => {
    if (work === 'decode') return () => model.generate('x', { maxBytes: 256, seed: 0 });
    if (work === 'prefill') return () => model.generate(text.subarray(0, o.prompt), { maxBytes: 0, seed: 0 });
    const trainer = await createTrainer(model, { lr: 1e-4, precision, ...(recompute && { recompute }) });
    return () => trainer.step({ bytes: text.subarray(0, batch * (context + 1)), batch });
  })();
  const profiles = await profile(limits, plans, run);
  if (o.trace !== undefined) writeFileSync(o.trace, chromeTrace(profiles));
  return profiles.flatMap(kernelRows);
}

function kernelRows(p: PlanProfile): Rows {
  const head = { kernel: `${p.steps} steps`, us: round(p.seconds * 1e6) };
  return [
    head,
    ...p.kernels.map((k) => ({
      kernel: k.op,
      nodes: k.nodes,
      us: round(k.seconds * 1e6),
      share: round(k.seconds / p.seconds),
      'TB/s': round(k.bytes / k.seconds / 1e12),
      'TFLOP/s': k.flops > 0 ? round(k.flops / k.seconds / 1e12) : '',
      'of limit': round(k.fractionOfLimit),
      operands: k.shapes,
    })),
  ];
}
