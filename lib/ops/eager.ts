import { type BackendName, Device } from '../device.ts';
import { checkOptions, describe, expected, ShapeError } from '../errors.ts';
import { grad } from '../grad.ts';
import { Graph } from '../graph.ts';
import { compile } from '../plan.ts';
import type { DType, Tensor, TypedArray } from '../tensor.ts';
import { causalConv1d as recordConv } from './causal-conv.ts';
import { crossEntropy as recordCrossEntropy } from './cross-entropy.ts';
import * as elementwise from './elementwise.ts';
import { embedding as recordEmbedding } from './embedding.ts';
import { linear as recordLinear } from './linear.ts';
import * as norms from './norm.ts';
import { selectiveScan as recordScan } from './selective-scan.ts';

/**
 * An array with a shape, row-major. The element type is that of `data`: Float32Array f32, Float64Array f64 (device 'ref'
 * only), Uint16Array the bits of bf16, Int8Array i8, Uint8Array u8, Int32Array i32.
 */
export interface NDArray<A extends TypedArray = TypedArray> {
  readonly data: A;
  readonly shape: readonly number[];
}

/** Options of every op. */
export interface OpOptions {
  /** 'cpu' (default), 'cuda' or 'ref'. */
  device?: BackendName;
  /** Gradient of the result; with it the gradients of all floating inputs are returned too. */
  dy?: NDArray;
}

export interface OpResult {
  y: NDArray;
  /** The state after the last step, for ops that carry one and were given one. */
  state?: NDArray;
  /** Gradients by input name, when `dy` was given. */
  grads?: Record<string, NDArray>;
}

/** Arrays by operand name. */
export type Inputs = { readonly [name: string]: NDArray | undefined };
type Recipe = (
  g: Graph,
  t: Record<string, Tensor>,
  differentiable: boolean,
) => { y: Tensor; state?: Tensor | undefined };

const devices = new Map<string, Device>();

function sharedDevice(name: BackendName): Device {
  let device = devices.get(name);
  if (!device) {
    device = Device.open(name);
    devices.set(name, device);
  }
  return device;
}

function dtypeOf(data: TypedArray): DType {
  if (data instanceof Float32Array) return 'f32';
  if (data instanceof Float64Array) return 'f64';
  if (data instanceof Uint16Array) return 'bf16';
  if (data instanceof Int8Array) return 'i8';
  return data instanceof Int32Array ? 'i32' : 'u8';
}

function checkArray(op: string, name: string, a: NDArray): void {
  if (!ArrayBuffer.isView(a?.data) || !Array.isArray(a.shape)) {
    throw new TypeError(expected(op, name, 'be { data: TypedArray, shape: number[] }', describe(a)));
  }
  const elems = a.shape.reduce((x, y) => x * y, 1);
  if (a.shape.some((n) => !Number.isInteger(n) || n < 1) || a.shape.length > 4 || elems !== a.data.length) {
    throw new ShapeError(expected(op, name, `have ${a.data.length} elements`, `shape (${a.shape.join(', ')})`));
  }
}

/** Records one op on stored inputs, runs it as a plan of its own, and reads what it made. */
async function run(op: string, inputs: Inputs, options: OpOptions, record: Recipe): Promise<OpResult> {
  const device = sharedDevice(options.device ?? 'cpu');
  const tensors: Record<string, Tensor> = {};
  const owned: Tensor[] = [];
  const own = (name: string, a: NDArray): Tensor => {
    checkArray(op, name, a);
    const t = device.tensorFrom(a.data, a.shape, dtypeOf(a.data), name);
    owned.push(t);
    return t;
  };
  try {
    for (const [name, a] of Object.entries(inputs)) if (a !== undefined) tensors[name] = own(name, a);
    const g = new Graph();
    const { y, state } = record(g, tensors, options.dy !== undefined);
    const gradients = new Map<Tensor, Tensor>();
    if (options.dy) {
      for (const t of Object.values(tensors)) {
        if (t.dtype !== 'f32' && t.dtype !== 'f64') continue;
        const d = device.tensor(t.shape, t.dtype, `d ${t.name}`);
        owned.push(d);
        gradients.set(t, d);
      }
      grad(g, y, own('dy', options.dy), gradients);
    }
    using plan = await compile(device, g, state ? [y, state] : [y]);
    await plan.run();
    const read = (t: Tensor): NDArray => ({ data: plan.read(t), shape: t.shape });
    const grads: Record<string, NDArray> = {};
    for (const [t, d] of gradients) grads[t.name] = read(d);
    return { y: read(y), ...(state && { state: read(state) }), ...(options.dy && { grads }) };
  } finally {
    for (const t of owned) device.release(t);
  }
}

const COMMON = ['device', 'dy'];

/** One op of (x) and whatever else, with nothing but the common options. */
function plain(op: string, record: (g: Graph, t: Record<string, Tensor>) => Tensor) {
  return async (inputs: Inputs, options: OpOptions = {}): Promise<OpResult> => {
    checkOptions(op, options, COMMON);
    return run(op, inputs, options, (g, t) => ({ y: record(g, t) }));
  };
}

function need(op: string, t: Record<string, Tensor>, ...names: string[]): Tensor[] {
  return names.map((name) => {
    const found = t[name];
    if (!found) throw new TypeError(expected(op, name, 'be given', 'undefined'));
    return found;
  });
}

/**
 * The kernels one by one, on typed arrays: each call is a plan of one op, off the JS thread. For people who want a
 * selective scan and no model.
 */
export const ops = {
  /** y = silu(x). */
  silu: plain('ops.silu', (g, t) => elementwise.silu(g, ...(need('ops.silu', t, 'x') as [Tensor]))),
  /** y = silu(gate) * up. */
  swiglu: plain('ops.swiglu', (g, t) =>
    elementwise.swiglu(g, ...(need('ops.swiglu', t, 'gate', 'up') as [Tensor, Tensor])),
  ),
  /** y = softplus(x). */
  softplus: plain('ops.softplus', (g, t) => elementwise.softplus(g, ...(need('ops.softplus', t, 'x') as [Tensor]))),
  /** y = a + b. */
  add: plain('ops.add', (g, t) => elementwise.add(g, ...(need('ops.add', t, 'a', 'b') as [Tensor, Tensor]))),
  /** y = a * b. */
  mul: plain('ops.mul', (g, t) => elementwise.mul(g, ...(need('ops.mul', t, 'a', 'b') as [Tensor, Tensor]))),
  /** Rows of `table` (V, D) by `ids` (B, T). */
  embedding: plain('ops.embedding', (g, t) =>
    recordEmbedding(g, ...(need('ops.embedding', t, 'ids', 'table') as [Tensor, Tensor])),
  ),
  /** y = x weightᵀ + bias: x (..., K), weight (M, K), bias (M)?, scale (M)? for int8 weights. */
  linear: plain('ops.linear', (g, t) => {
    const [x, weight] = need('ops.linear', t, 'x', 'weight') as [Tensor, Tensor];
    return recordLinear(g, x, weight, { bias: t.bias, scale: t.scale });
  }),

  /** RMSNorm of x (..., D) with weight (D). */
  async rmsNorm(
    inputs: { x: NDArray; weight: NDArray },
    options: OpOptions & { eps?: number } = {},
  ): Promise<OpResult> {
    checkOptions('ops.rmsNorm', options, [...COMMON, 'eps']);
    return run('ops.rmsNorm', inputs as unknown as Inputs, options, (g, t) => {
      const [x, weight] = need('ops.rmsNorm', t, 'x', 'weight') as [Tensor, Tensor];
      return { y: norms.rmsNorm(g, x, weight, options.eps) };
    });
  },
  /** LayerNorm of x (..., D) with weight (D) and bias (D). */
  async layerNorm(
    inputs: { x: NDArray; weight: NDArray; bias?: NDArray },
    options: OpOptions & { eps?: number } = {},
  ): Promise<OpResult> {
    checkOptions('ops.layerNorm', options, [...COMMON, 'eps']);
    return run('ops.layerNorm', inputs as unknown as Inputs, options, (g, t) => {
      const [x, weight] = need('ops.layerNorm', t, 'x', 'weight') as [Tensor, Tensor];
      return { y: norms.layerNorm(g, x, weight, t.bias, options.eps) };
    });
  },

  /** Depthwise causal convolution of x (B, T, E) with weight (E, K); `state` (B, K-1, E) is carried. */
  async causalConv1d(
    inputs: { x: NDArray; weight: NDArray; bias?: NDArray; state?: NDArray },
    options: OpOptions & { silu?: boolean } = {},
  ): Promise<OpResult> {
    checkOptions('ops.causalConv1d', options, [...COMMON, 'silu']);
    return run('ops.causalConv1d', inputs as unknown as Inputs, options, (g, t) => {
      const [x, weight] = need('ops.causalConv1d', t, 'x', 'weight') as [Tensor, Tensor];
      const { bias, state } = t;
      const stateOut = state && g.like(state);
      return { y: recordConv(g, x, weight, { bias, state, stateOut, silu: options.silu ?? false }), state: stateOut };
    });
  },

  /** Selective scan; see SelectiveScanInputs for the shapes. `state` (B, E, N) is carried. */
  async selectiveScan(
    inputs: {
      u: NDArray;
      delta: NDArray;
      A: NDArray;
      B: NDArray;
      C: NDArray;
      D?: NDArray;
      z?: NDArray;
      deltaBias?: NDArray;
      state?: NDArray;
    },
    options: OpOptions & { softplus?: boolean } = {},
  ): Promise<OpResult> {
    checkOptions('ops.selectiveScan', options, [...COMMON, 'softplus']);
    return run('ops.selectiveScan', inputs as unknown as Inputs, options, (g, t, differentiable) => {
      const [u, delta, A, B, C] = need('ops.selectiveScan', t, 'u', 'delta', 'A', 'B', 'C') as [
        Tensor,
        Tensor,
        Tensor,
        Tensor,
        Tensor,
      ];
      const { D, z, deltaBias, state } = t;
      const stateOut = state && g.like(state);
      const softplus = options.softplus ?? false;
      const y = recordScan(g, { u, delta, A, B, C, D, z, deltaBias, state }, { softplus, stateOut, differentiable });
      return { y, state: stateOut };
    });
  },

  /** Mean cross-entropy, (1), of logits (R, V) against targets (R) u8 or i32. */
  async crossEntropy(
    inputs: { logits: NDArray; targets: NDArray },
    options: OpOptions & { ignore?: number } = {},
  ): Promise<OpResult> {
    checkOptions('ops.crossEntropy', options, [...COMMON, 'ignore']);
    return run('ops.crossEntropy', inputs as unknown as Inputs, options, (g, t) => {
      const [logits, targets] = need('ops.crossEntropy', t, 'logits', 'targets') as [Tensor, Tensor];
      return { y: recordCrossEntropy(g, logits, targets, options.ignore).loss };
    });
  },
};
