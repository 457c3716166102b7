// Each op of a GPU alone, at the sizes that models have: one plan of several nodes on buffers of their own, so that nothing
// is found in the cache again, replayed many times without a pause.
import { performance } from 'node:perf_hooks';
import type { Device } from '../lib/device.ts';
import { Graph } from '../lib/graph.ts';
import { SCAN_CHUNK } from '../lib/ops/selective-scan.ts';
import { compile } from '../lib/plan.ts';
import { type DeviceLimits, fillWithNoise, leastSeconds, nodeCost } from '../lib/profile.ts';
import type { DType, Tensor } from '../lib/tensor.ts';
import { median, round } from './measure.ts';
import { MAMBA_SSM } from './peers/mamba-ssm.ts';

type Make = (shape: number[], dtype?: DType, negative?: boolean) => Tensor;
interface Case {
  name: string;
  record: (g: Graph, make: Make) => void;
}

/** Bytes that a plan should touch before it comes back to the first: several times the largest cache. */
const COLD_BYTES = 400e6;
/** Milliseconds of work in a sample. */
const SAMPLE_MS = 30;

function scanOperands(make: Make, B: number, T: number, E: number, N = 16) {
  const sequence = () => make([B, T, E], 'bf16');
  return {
    u: sequence(),
    delta: sequence(),
    A: make([E, N], 'f32', true), // states that grow would soon be infinite
    B: make([B, T, N], 'bf16'),
    C: make([B, T, N], 'bf16'),
    D: make([E]),
    z: sequence(),
    delta_bias: make([E]),
  };
}

function scanCases(): Case[] {
  const attrs = { softplus: 1, chunk: SCAN_CHUNK };
  const forward = (B: number, T: number, E: number): Case => ({
    name: `scan B${B} L${T} D${E}`,
    record: (g, make) => g.op('selective_scan', { y: make([B, T, E], 'bf16') }, scanOperands(make, B, T, E), attrs),
  });
  const both = (B: number, T: number, E: number, N = 16): Case => ({
    name: `scan forward + backward B${B} L${T} D${E}`,
    record: (g, make) => {
      const ins = scanOperands(make, B, T, E);
      const chunks = make([B, Math.ceil(T / SCAN_CHUNK), E * N]);
      g.op('selective_scan', { y: make([B, T, E], 'bf16'), chunks }, ins, attrs);
      const sequence = () => make([B, T, E], 'bf16');
      g.op(
        'selective_scan_grad',
        {
          du: sequence(),
          ddelta: sequence(),
          dA: make([E, N]),
          dB: make([B, T, N], 'bf16'),
          dC: make([B, T, N], 'bf16'),
          dD: make([E]),
          dz: sequence(),
          ddelta_bias: make([E]),
        },
        { dy: sequence(), ...ins, chunks },
        { ...attrs, accumulate: 0 },
      );
    },
  });
  return [
    forward(1, 8192, 2048),
    forward(8, 8192, 2048),
    forward(1, 65536, 2048),
    forward(1, 8192, 3584),
    both(1, 8192, 2048),
    both(8, 8192, 2048),
  ];
}

function otherCases(): Case[] {
  const conv = (B: number, T: number, E: number): Case => ({
    name: `conv + SiLU B${B} L${T} D${E}`,
    record: (g, make) =>
      g.op(
        'causal_conv1d',
        { y: make([B, T, E], 'bf16') },
        { x: make([B, T, E], 'bf16'), weight: make([E, 4]), bias: make([E]) },
        { silu: 1 },
      ),
  });
  const convGrad = (B: number, T: number, E: number): Case => ({
    name: `conv + SiLU backward B${B} L${T} D${E}`,
    record: (g, make) =>
      g.op(
        'causal_conv1d_grad',
        { dx: make([B, T, E], 'bf16'), dweight: make([E, 4]), dbias: make([E]) },
        { dy: make([B, T, E], 'bf16'), x: make([B, T, E], 'bf16'), weight: make([E, 4]), bias: make([E]) },
        { silu: 1, accumulate: 0 },
      ),
  });
  /** As in training: the residual stream is f32, what goes into the block bf16. */
  const norm = (R: number, D: number): Case => ({
    name: `layer_norm f32 to bf16 R${R} D${D}`,
    record: (g, make) =>
      g.op(
        'layer_norm',
        { y: make([R, D], 'bf16'), mean: make([R]), rstd: make([R]) },
        { x: make([R, D]), weight: make([D]), bias: make([D]) },
        { eps: 1e-5 },
      ),
  });
  const normGrad = (R: number, D: number): Case => ({
    name: `layer_norm backward R${R} D${D}`,
    record: (g, make) =>
      g.op(
        'layer_norm_grad',
        { dx: make([R, D]), dweight: make([D]), dbias: make([D]) },
        { dy: make([R, D], 'bf16'), x: make([R, D]), weight: make([D]), mean: make([R]), rstd: make([R]) },
        { accumulate: 0 },
      ),
  });
  return [
    conv(8, 8192, 2048),
    conv(1, 8192, 2048),
    convGrad(8, 8192, 2048),
    norm(32768, 1024),
    normGrad(32768, 1024),
    {
      name: 'cross_entropy f32 R32768 V256',
      record: (g, make) =>
        g.op(
          'cross_entropy',
          { loss: make([1]), nll: make([32768]), lse: make([32768]) },
          { logits: make([32768, 256]), targets: make([32768], 'u8') },
          { ignore: -1 },
        ),
    },
    {
      name: 'adamw 64M parameters',
      record: (g, make) => {
        const n = 1 << 26;
        g.op(
          'adamw',
          { param: make([n]), m: make([n]), v: make([n]) },
          { grad: make([n]), scalars: make([2]), norm: make([1]) },
          { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, clip: 1, scale: 1 },
        );
      },
    },
    {
      name: 'add f32 R32768 D1024',
      record: (g, make) => g.op('add', { y: make([32768, 1024]) }, { a: make([32768, 1024]), b: make([32768, 1024]) }),
    },
  ];
}

function productCases(): Case[] {
  const product = (R: number, K: number, M: number, residual = false): Case => ({
    name: `linear bf16 R${R} K${K} M${M}${residual ? ' + residual' : ''}`,
    record: (g, make) => {
      const dtype = residual ? 'f32' : 'bf16';
      const ins = { x: make([R, K], 'bf16'), weight: make([M, K], 'bf16') };
      g.op('linear', { y: make([R, M], dtype) }, residual ? { ...ins, add: make([R, M]) } : ins);
    },
  });
  const gradInput = (R: number, K: number, M: number): Case => ({
    name: `linear_grad_input bf16 R${R} K${K} M${M}`,
    record: (g, make) =>
      g.op(
        'linear_grad_input',
        { dx: make([R, K], 'bf16') },
        { dy: make([R, M], 'bf16'), weight: make([M, K], 'bf16') },
      ),
  });
  const gradWeight = (R: number, K: number, M: number): Case => ({
    name: `linear_grad_weight bf16 R${R} K${K} M${M}`,
    record: (g, make) =>
      g.op(
        'linear_grad_weight',
        { dweight: make([M, K]) },
        { dy: make([R, M], 'bf16'), x: make([R, K], 'bf16') },
        { accumulate: 0 },
      ),
  });
  const few = (R: number, K: number, M: number): Case => ({
    name: `linear f32 x bf16 R${R} K${K} M${M}`,
    record: (g, make) => g.op('linear', { y: make([R, M]) }, { x: make([R, K]), weight: make([M, K], 'bf16') }),
  });
  return [
    product(8192, 8192, 8192),
    // in_proj, x_proj, dt_proj and out_proj of the 353M and 972M models over 8192 bytes
    product(8192, 1024, 4096),
    product(8192, 2048, 96),
    product(8192, 64, 2048),
    product(8192, 2048, 1024, true),
    product(8192, 1792, 7168),
    product(8192, 3584, 1792, true),
    product(32768, 1024, 4096),
    gradInput(32768, 1024, 4096),
    gradInput(32768, 2048, 96),
    gradWeight(32768, 1024, 4096),
    gradWeight(32768, 2048, 96),
    gradWeight(32768, 2048, 1024),
    few(1, 1024, 4096),
    few(16, 1024, 4096),
    few(64, 1024, 4096),
  ];
}

/** Every case whose name holds `only`: microseconds, rates, and fractions of the limits of the same run. */
export async function cudaOpsBench(
  device: Device,
  limits: DeviceLimits,
  reps: number,
  only: string,
): Promise<Record<string, unknown>[]> {
  const rows: Record<string, unknown>[] = [];
  const cases = [...scanCases(), ...otherCases(), ...productCases()].filter((c) => c.name.includes(only));
  for (const c of cases) {
    try {
      rows.push(await measure(device, limits, c, reps));
    } catch (error) {
      rows.push({ op: c.name, us: error instanceof Error ? error.message.slice(0, 120) : String(error) });
    }
  }
  return rows;
}

async function measure(device: Device, limits: DeviceLimits, c: Case, reps: number): Promise<Record<string, unknown>> {
  const owned: Tensor[] = [];
  const make: Make = (shape, dtype = 'f32', negative = false) => {
    const t = device.tensor(shape, dtype, 'operand');
    owned.push(t);
    if (negative)
      device.write(
        t,
        Float32Array.from({ length: t.elems }, (_, i) => -0.1 - (i % 16)),
      );
    else fillWithNoise(device, t);
    return t;
  };
  try {
    const g = new Graph();
    c.record(g, make);
    const once = g.nodes.map(nodeCost);
    const cost = { bytes: sum(once.map((n) => n.bytes)), flops: sum(once.map((n) => n.flops)) };
    const sets = Math.max(1, Math.min(16, Math.ceil(COLD_BYTES / cost.bytes)));
    for (let i = 1; i < sets; i++) c.record(g, make);
    using plan = await compile(device, g);
    const seconds = async (steps: number) => {
      const start = performance.now();
      await plan.run({ steps });
      return (performance.now() - start) / 1000 / steps / sets;
    };
    await seconds(1);
    const steps = Math.max(2, Math.min(1000, Math.ceil(SAMPLE_MS / 1000 / sets / (await seconds(2)))));
    const samples: number[] = [];
    for (let i = 0; i < reps; i++) samples.push(await seconds(steps));
    const s = median(samples);
    const peer = MAMBA_SSM.ops[c.name];
    return {
      op: c.name,
      us: round(s * 1e6),
      'TB/s': round(cost.bytes / s / 1e12),
      'TFLOP/s': cost.flops > 0 ? round(cost.flops / s / 1e12) : '',
      'of limit': round(leastSeconds(cost, limits) / s),
      'mamba_ssm us (recorded)': peer === undefined ? '' : peer * 1000,
      ratio: peer === undefined ? '' : round(peer / 1000 / s),
    };
  } finally {
    for (const t of owned) device.release(t);
  }
}

function sum(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0);
}
