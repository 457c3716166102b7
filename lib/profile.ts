// Where a device's time goes: seconds of each kind of kernel beside the bytes it must move and the products it must do,
// and what the device could do at most, measured on the spot.
import type { Device } from './device.ts';
import { Graph, type GraphNode } from './graph.ts';
import { linear } from './ops/linear.ts';
import { compile, type Plan } from './plan.ts';
import { type DType, dtypeBytes, newArray, rootOf, Tensor, type TypedArray } from './tensor.ts';

/** What one node must do at the least. */
export interface NodeCost {
  /** Bytes read plus bytes written, each operand once. */
  bytes: number;
  /** Floating-point operations of its matrix products; 0 for other ops. */
  flops: number;
}

/** What a device reaches on large operands. */
export interface DeviceLimits {
  /** Bytes per second of a copy, read plus written. */
  bytesPerSecond: number;
  /** Of a bf16 matrix product. */
  flopsPerSecond: number;
}

/** Kernels of one kind in a plan: an op on one set of shapes. */
export interface KernelProfile extends NodeCost {
  op: string;
  /** Shapes and types of the first inputs: "bf16 (8192, 1024) · bf16 (4096, 1024)". */
  shapes: string;
  /** Nodes of this kind in a step. */
  nodes: number;
  /** Of all these nodes together, a step. */
  seconds: number;
  /** Of the least time that the limits allow, over the time taken. */
  fractionOfLimit: number;
}

export interface PlanProfile {
  /** Seconds of a step, all nodes together; where one kernel does them all, from the call to the end of the run. */
  seconds: number;
  /** Steps that were measured. */
  steps: number;
  /** Most time first. */
  kernels: KernelProfile[];
  /** Every node of a step, in order. */
  trace: { scope: string; op: string; shapes: string; seconds: number }[];
}

/** The cost of a node by its operands: bytes whatever the op, products for those ops that are made of them. */
export function nodeCost(node: GraphNode): NodeCost {
  const size = (t: Tensor | undefined) => (t ? t.elems * dtypeBytes(t.dtype) : 0);
  const { ins, outs, op } = node;
  let bytes = [...ins, ...outs].reduce((sum, t) => sum + size(t), 0);
  // Of a table only the rows that are asked for are read.
  if (op.name === 'embedding') bytes += size(outs[0]) - size(ins[0]);
  return { bytes, flops: flopsOf(node) };
}

function flopsOf(node: GraphNode): number {
  const { op, ins, outs } = node;
  const elems = (i: number) => ins[i]?.elems ?? 0;
  switch (op.name) {
    case 'linear':
      return 2 * (ins[0]?.rows ?? 0) * elems(1);
    case 'linear_grad_input':
      return 2 * (ins[0]?.rows ?? 0) * elems(1);
    case 'linear_grad_weight':
      return 2 * elems(0) * (outs[0]?.cols ?? 0);
    case 'mamba_block': {
      const matrices = op.ins.flatMap((name, i) => (name.endsWith('_proj') ? [elems(i)] : []));
      return 2 * (ins[0]?.rows ?? 0) * matrices.reduce((a, b) => a + b, 0);
    }
    case 'attention':
      return node.ins[3] ? 0 : 2 * attentionProduct(ins[0], ins[1]); // of a cache, only the device knows how much it holds
    case 'attention_grad':
      return 5 * attentionProduct(ins[1], ins[2]);
    default:
      return 0;
  }
}

/** FLOPs of one product of queries (B, T, D) and the keys that each of them sees: of (B, S, ...), the last query all S. */
function attentionProduct(q: Tensor | undefined, k: Tensor | undefined): number {
  const [B = 0, T = 0, D = 0] = q?.shape ?? [];
  const S = k?.shape[1] ?? 0;
  return 2 * B * D * T * (S - (T - 1) / 2);
}

/** Measures the copy bandwidth and the speed of a large bf16 matrix product; takes well under a second on a GPU. */
export async function measureLimits(device: Device): Promise<DeviceLimits> {
  const gpu = device.info.backend === 'cuda';
  const [rows, size] = gpu ? [1 << 19, 8192] : [1 << 14, 1024];
  const copySeconds = await timed(device, (g, make) => {
    g.op('copy', { y: make([rows, 256]) }, { x: make([rows, 256]) });
    return [];
  });
  const seconds = await timed(device, (g, make) => [
    linear(g, make([size, size], gpu ? 'bf16' : 'f32'), make([size, size], 'bf16')),
  ]);
  return { bytesPerSecond: (2 * rows * 256 * 4) / copySeconds, flopsPerSecond: (2 * size ** 3) / seconds };
}

/** Seconds of a step of a graph: the best of some runs of many steps, after one to warm up. */
async function timed(
  device: Device,
  record: (g: Graph, make: (shape: number[], dtype?: DType) => Tensor) => Tensor[],
): Promise<number> {
  const g = new Graph();
  const owned: Tensor[] = [];
  const make = (shape: number[], dtype: DType = 'f32') => {
    const t = device.tensor(shape, dtype, 'probe');
    owned.push(t);
    fillWithNoise(device, t);
    return t;
  };
  const plan = await compile(device, g, record(g, make));
  try {
    const first = await seconds(plan, 1);
    const steps = Math.max(2, Math.min(200, Math.ceil(0.03 / Math.max(first, 1e-6))));
    const samples: number[] = [];
    for (let i = 0; i < 5; i++) samples.push((await seconds(plan, steps)) / steps);
    return Math.min(...samples);
  } finally {
    plan.dispose();
    for (const t of owned) device.release(t);
  }
}

async function seconds(plan: Plan, steps: number): Promise<number> {
  const start = performance.now();
  await plan.run({ steps });
  return (performance.now() - start) / 1000;
}

/**
 * Fills a stored tensor with uniform noise, a million numbers repeated: in (-0.5, 0.5), over the range of 8-bit integers. Zeros
 * would be multiplied faster.
 */
export function fillWithNoise(device: Device, t: Tensor): void {
  const size = dtypeBytes(t.dtype);
  const block = noise(t.dtype);
  const { buffer = 0, offset = 0 } = rootOf(t).storage ?? {};
  for (let at = 0; at < t.elems; at += block.length) {
    const elems = Math.min(block.length, t.elems - at);
    const part = new Tensor([elems], t.dtype, t.name, { storage: { buffer, offset: offset + at * size } });
    device.write(part, block.subarray(0, elems));
  }
}

const NOISE = 1 << 20;
const blocks = new Map<DType, TypedArray>();

function noise(dtype: DType): TypedArray {
  let block = blocks.get(dtype);
  if (!block) {
    block = newNoise(dtype);
    blocks.set(dtype, block);
  }
  return block;
}

function newNoise(dtype: DType): TypedArray {
  let word = 1;
  const values = new Float32Array(NOISE);
  for (let i = 0; i < NOISE; i++) {
    word = (Math.imul(word, 1664525) + 1013904223) >>> 0;
    values[i] = word / 2 ** 32 - 0.5;
  }
  if (dtype === 'f32') return values;
  const out = newArray(dtype, NOISE);
  const bits = new Uint32Array(values.buffer);
  for (let i = 0; i < NOISE; i++) {
    const v = values[i] ?? 0;
    if (dtype === 'bf16') out[i] = (bits[i] ?? 0) >>> 16;
    else out[i] = dtype === 'f64' ? v : Math.round((v + (dtype === 'i8' ? 0 : 0.5)) * 254);
  }
  return out;
}

/**
 * Profiles those of `plans` that run during `work`. Kernels run one by one while they are measured, so the sum of their times
 * may be more than the step otherwise takes. `work` runs twice: at first it compiles plans and makes the room it needs,
 * which disposes of plans over less room.
 */
export async function profile(
  limits: DeviceLimits,
  plans: Iterable<Plan>,
  work: () => PromiseLike<unknown>,
): Promise<PlanProfile[]> {
  await work();
  const open = [...plans].filter((plan) => !plan.disposed);
  const watched = open.map((plan) => ({ plan, before: plan.steps, spent: plan.seconds }));
  for (const { plan } of watched) plan.profile();
  await work();
  const profiles = watched.flatMap(({ plan, before, spent }) => {
    const steps = plan.steps - before;
    return steps === 0 ? [] : [summary(plan, plan.profile(), plan.seconds - spent, steps, limits)];
  });
  return profiles.sort((a, b) => b.seconds * b.steps - a.seconds * a.steps);
}

/** Collects the plans that a device compiles from now on. */
export function collectPlans(device: Device): Set<Plan> {
  const plans = new Set<Plan>();
  device.onPlan = (plan) => plans.add(plan);
  return plans;
}

function summary(plan: Plan, total: Float64Array, spent: number, steps: number, limits: DeviceLimits): PlanProfile {
  // A device that runs all nodes as one kernel measures none of them.
  if (plan.nodes.length > 0 && total.every((s) => s === 0)) return whole(plan, spent / steps, steps, limits);
  const kernels = new Map<string, KernelProfile>();
  const trace = plan.nodes.map((node, i) => {
    const seconds = (total[i] ?? 0) / steps;
    const shapes = shapesOf(node);
    const { bytes, flops } = nodeCost(node);
    const key = `${node.op.name} ${shapes}`;
    const known = kernels.get(key) ?? {
      op: node.op.name,
      shapes,
      nodes: 0,
      seconds: 0,
      bytes: 0,
      flops: 0,
      fractionOfLimit: 0,
    };
    known.nodes++;
    known.seconds += seconds;
    known.bytes += bytes;
    known.flops += flops;
    kernels.set(key, known);
    return { scope: node.scope, op: node.op.name, shapes, seconds };
  });
  for (const k of kernels.values()) k.fractionOfLimit = leastSeconds(k, limits) / k.seconds;
  const all = [...kernels.values()].sort((a, b) => b.seconds - a.seconds);
  return { seconds: all.reduce((sum, k) => sum + k.seconds, 0), steps, kernels: all, trace };
}

function whole(plan: Plan, seconds: number, steps: number, limits: DeviceLimits): PlanProfile {
  const costs = plan.nodes.map(nodeCost);
  const add = (of: 'bytes' | 'flops') => costs.reduce((sum, cost) => sum + cost[of], 0);
  const cost = { bytes: add('bytes'), flops: add('flops') };
  const [op, shapes] = ['whole step', `${costs.length} nodes in one kernel`];
  const kernel = {
    op,
    shapes,
    nodes: costs.length,
    seconds,
    ...cost,
    fractionOfLimit: leastSeconds(cost, limits) / seconds,
  };
  return { seconds, steps, kernels: [kernel], trace: [{ scope: '', op, shapes, seconds }] };
}

/** The least time that the limits allow for some work. */
export function leastSeconds(cost: NodeCost, limits: DeviceLimits): number {
  return Math.max(cost.bytes / limits.bytesPerSecond, cost.flops / limits.flopsPerSecond);
}

function shapesOf({ ins, outs }: GraphNode): string {
  const words = (t: Tensor | undefined) => (t ? `${t.dtype} (${t.shape.join(', ')})` : '');
  const first = [ins[0], ins[1]].map(words).filter(Boolean).join(' · ');
  return `${first} → ${words(outs.find((t) => t))}`;
}

/** A step as a Chrome trace (chrome://tracing, https://ui.perfetto.dev): nodes end to end, mean times. */
export function chromeTrace(profiles: readonly PlanProfile[]): string {
  const events: object[] = [];
  profiles.forEach(({ trace }, pid) => {
    let at = 0;
    for (const { scope, op, shapes, seconds } of trace) {
      events.push({
        name: op,
        cat: scope,
        ph: 'X',
        ts: at * 1e6,
        dur: seconds * 1e6,
        pid,
        tid: 0,
        args: { scope, shapes },
      });
      at += seconds;
    }
  });
  return JSON.stringify({ traceEvents: events, displayTimeUnit: 'ns' });
}
