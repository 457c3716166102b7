import { performance } from 'node:perf_hooks';
import { Device } from '../lib/device.ts';
import { Graph } from '../lib/graph.ts';
import { causalConv1d } from '../lib/ops/causal-conv.ts';
import { linear } from '../lib/ops/linear.ts';
import { layerNorm } from '../lib/ops/norm.ts';
import { selectiveScan } from '../lib/ops/selective-scan.ts';
import { compile } from '../lib/plan.ts';
import { Philox } from '../lib/rng.ts';
import type { DType, Tensor } from '../lib/tensor.ts';
import { fromFloat32 } from '../lib/weights/dtypes.ts';
import { readCeiling } from './ceiling.ts';
import { median, round } from './measure.ts';

interface Case {
  name: string;
  /** Floating-point operations, where the limit is arithmetic. */
  flops?: number;
  /** Channel steps of a scan, reported in ns each. */
  channelSteps?: number;
  record: (g: Graph, make: (shape: number[], dtype?: DType) => Tensor) => Tensor;
}

function cases(): Case[] {
  const scan = (B: number, T: number, E: number, N = 16): Case => ({
    name: `selective_scan B${B} T${T} E${E} N${N}`,
    channelSteps: B * T * E,
    record: (g, make) =>
      selectiveScan(
        g,
        {
          u: make([B, T, E]),
          delta: make([B, T, E]),
          A: make([E, N]),
          B: make([B, T, N]),
          C: make([B, T, N]),
          D: make([E]),
          z: make([B, T, E]),
          deltaBias: make([E]),
        },
        { softplus: true },
      ),
  });
  const matmul = (R: number, K: number, M: number, dtype: DType): Case => ({
    name: `linear ${dtype} R${R} K${K} M${M}`,
    flops: 2 * R * K * M,
    record: (g, make) => linear(g, make([R, K]), make([M, K], dtype)),
  });
  /** The two products of linear's gradient. */
  const gradient = (kind: 'input' | 'weight', R: number, K: number, M: number): Case => ({
    name: `linear_grad_${kind} f32 R${R} K${K} M${M}`,
    flops: 2 * R * K * M,
    record: (g, make) => {
      const dy = make([R, M]);
      const out = g.value(kind === 'input' ? [R, K] : [M, K]);
      if (kind === 'input') g.op('linear_grad_input', { dx: out }, { dy, weight: make([M, K]) });
      else g.op('linear_grad_weight', { dweight: out }, { dy, x: make([R, K]) });
      return out;
    },
  });
  return [
    matmul(1, 1024, 4096, 'bf16'),
    matmul(1, 1024, 4096, 'f32'),
    matmul(512, 512, 2048, 'bf16'),
    matmul(512, 1024, 4096, 'bf16'),
    matmul(512, 512, 2048, 'f32'),
    matmul(2048, 1024, 4096, 'f32'),
    // in_proj of the 20.5M model in a training step of 2048 bytes
    matmul(2048, 512, 2048, 'f32'),
    gradient('input', 2048, 512, 2048),
    gradient('weight', 2048, 512, 2048),
    scan(1, 1, 1024),
    scan(1, 512, 1024),
    scan(1, 512, 2048),
    {
      name: 'causal_conv1d + SiLU B1 T512 E1024',
      channelSteps: 512 * 1024,
      record: (g, make) => causalConv1d(g, make([1, 512, 1024]), make([1024, 4]), { bias: make([1024]), silu: true }),
    },
    {
      name: 'layer_norm R512 D1024',
      channelSteps: 512 * 1024,
      record: (g, make) => layerNorm(g, make([512, 1024]), make([1024]), make([1024])),
    },
  ];
}

/** Each op alone, as one plan run many times in a row. */
export async function opsBench(threads: number, reps: number): Promise<Record<string, unknown>[]> {
  const ceiling = await readCeiling();
  const peak = threads === 1 ? ceiling.fp32FmaGflops.one : ceiling.fp32FmaGflops.two;
  const rows = [];
  using device = Device.open('cpu', { threads });
  for (const c of cases()) {
    const rng = new Philox(1);
    const g = new Graph();
    const make = (shape: number[], dtype: DType = 'f32') => {
      const values = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => rng.uniform() - 0.6);
      const data = dtype === 'bf16' ? new Uint16Array(fromFloat32(values, 'BF16').buffer) : values;
      return device.tensorFrom(data, shape, dtype, 'x');
    };
    using plan = await compile(device, g, [c.record(g, make)]);
    await plan.run();
    const start = performance.now();
    await plan.run();
    const steps = Math.max(1, Math.min(10000, Math.floor(100 / (performance.now() - start))));
    const samples: number[] = [];
    for (let i = 0; i < reps; i++) {
      const begin = performance.now();
      await plan.run({ steps });
      samples.push((performance.now() - begin) / steps);
    }
    const ms = median(samples);
    rows.push({
      op: c.name,
      threads,
      us: round(ms * 1000),
      ...(c.flops && { 'GFLOP/s': round(c.flops / ms / 1e6), 'of fp32 FMA': round(c.flops / ms / 1e6 / peak) }),
      ...(c.channelSteps && { 'ns a channel step': round((ms * 1e6) / c.channelSteps) }),
    });
  }
  return rows;
}
