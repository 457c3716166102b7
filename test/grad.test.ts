// How gradients are put together: repeated uses, column views, accumulation over micro-batches. That their numbers are
// right is test/ops/gradient.test.ts.
import test from 'ava';
import { Device } from '../lib/device.ts';
import { grad } from '../lib/grad.ts';
import { Graph } from '../lib/graph.ts';
import { add, mul, scale, silu } from '../lib/ops/elementwise.ts';
import { linear } from '../lib/ops/linear.ts';
import { layerNorm } from '../lib/ops/norm.ts';
import { split } from '../lib/ops/shape.ts';
import { compile } from '../lib/plan.ts';
import type { Tensor } from '../lib/tensor.ts';

/** Runs the gradient of sum(build(x)) and returns dx. */
async function gradientOf(
  device: Device,
  x: Float64Array,
  build: (g: Graph, x: Tensor) => Tensor,
  before?: Float64Array,
) {
  const n = x.length;
  const t = device.tensorFrom(x, [1, n], 'f64', 'x');
  const dt = device.tensorFrom(before ?? new Float64Array(n).fill(Number.NaN), [1, n], 'f64', 'dx');
  const dloss = device.tensorFrom(Float64Array.of(1), [1], 'f64', 'dloss');
  const g = new Graph();
  const y = build(g, t);
  const ones = device.tensorFrom(new Float64Array(y.elems).fill(1), [1, y.elems], 'f64', 'ones');
  const loss = linear(g, y.reshape(1, y.elems), ones).reshape(1);
  grad(g, loss, dloss, new Map([[t, dt]]), before !== undefined);
  using plan = await compile(device, g);
  await plan.run();
  return [...device.read(dt)];
}

test('a parameter used n times gets the sum of n gradients', async (t) => {
  using device = Device.open('ref');
  const x = Float64Array.of(1, 2, 3);
  t.deepEqual(await gradientOf(device, x, (g, p) => add(g, p, p)), [2, 2, 2]);
  t.deepEqual(await gradientOf(device, x, (g, p) => mul(g, mul(g, p, p), p)), [3, 12, 27]);
  t.deepEqual(await gradientOf(device, x, (g, p) => add(g, scale(g, p, 2), add(g, scale(g, p, 3), p))), [6, 6, 6]);
});

test('a value used n times gets the sum of n gradients', async (t) => {
  using device = Device.open('ref');
  const build = (g: Graph, p: Tensor) => {
    const v = scale(g, p, 2);
    return add(g, mul(g, v, v), add(g, v, scale(g, v, 5)));
  };
  t.deepEqual(await gradientOf(device, Float64Array.of(1, -1), build), [20, 4]);
});

test('where a kernel can add what other uses contributed, no add is recorded', async (t) => {
  using device = Device.open('ref');
  const weight = device.tensorFrom(Float64Array.of(2, 0, 0, 3), [2, 2], 'f64', 'weight');
  const build = (g: Graph, p: Tensor) => {
    const v = scale(g, p, 1);
    return linear(g, linear(g, v, weight, { add: v }), weight); // a residual connection, then another product
  };
  // y = D (x + D x) with D = diag(2, 3)
  t.deepEqual(await gradientOf(device, Float64Array.of(1, 1), build), [6, 12]);
  const g = new Graph();
  const x = device.tensor([1, 2], 'f64', 'x');
  const dx = device.tensor([1, 2], 'f64', 'dx');
  const loss = linear(g, build(g, x), device.tensor([1, 2], 'f64', 'ones')).reshape(1);
  const forward = g.nodes.length;
  grad(g, loss, device.tensor([1], 'f64', 'dloss'), new Map([[x, dx]]));
  const backward = g.nodes.slice(forward);
  t.false(backward.some((node) => node.op.name === 'add'));
  t.is(backward.filter((node) => node.op.name === 'linear_grad_input' && node.ins[2]).length, 1);
});

test('a value used whole and by columns gets both, and its neighbours keep theirs', async (t) => {
  using device = Device.open('ref');
  // z = (2x + 3x) + pad(columns of 2x squared): add hands one gradient to both of its operands.
  const build = (g: Graph, p: Tensor) => {
    const v = scale(g, p, 2);
    const w = scale(g, p, 3);
    const [a, b] = split(v, 1, 1) as [Tensor, Tensor];
    const whole = add(g, v, w);
    const [c, d] = split(whole, 1, 1) as [Tensor, Tensor];
    return add(g, add(g, mul(g, a, b), c), d);
  };
  // y = 4 x0 x1 + 5 x0 + 5 x1
  t.deepEqual(await gradientOf(device, Float64Array.of(3, 7), build), [33, 17]);
});

test('gradients are added to what is there when accumulating', async (t) => {
  using device = Device.open('ref');
  const before = Float64Array.of(10, 20, 30);
  t.deepEqual(await gradientOf(device, Float64Array.of(1, 2, 3), (g, p) => mul(g, p, p), before), [12, 24, 36]);
});

test('gradients of kernels that accumulate are added too', async (t) => {
  using device = Device.open('ref');
  const dim = 3;
  const weight = device.tensorFrom(Float64Array.of(1, 2, 3), [dim], 'f64', 'weight');
  const bias = device.tensorFrom(Float64Array.of(0, 0, 0), [dim], 'f64', 'bias');
  const x = device.tensorFrom(Float64Array.of(1, 2, 4), [1, dim], 'f64', 'x');
  const dloss = device.tensorFrom(Float64Array.of(1), [1], 'f64', 'dloss');
  const ones = device.tensorFrom(Float64Array.of(1, 1, 1), [1, dim], 'f64', 'ones');
  const run = async (accumulate: boolean, before: number) => {
    const fill = (name: string) => device.tensorFrom(new Float64Array(dim).fill(before), [dim], 'f64', name);
    const gradients = new Map([
      [weight, fill('dw')],
      [bias, fill('db')],
    ]);
    const g = new Graph();
    // Used twice: the second use must add to the first within one step as well.
    const y = layerNorm(g, layerNorm(g, x, weight, bias), weight, bias);
    grad(g, linear(g, y, ones).reshape(1), dloss, gradients, accumulate);
    using plan = await compile(device, g);
    await plan.run();
    return [...gradients.values()].map((d) => [...device.read(d)]);
  };
  const fresh = await run(false, Number.NaN);
  const added = await run(true, 100);
  t.true(fresh.flat().every(Number.isFinite));
  t.true(added.flat().every((v, i) => Math.abs(v - 100 - (fresh.flat()[i] ?? 0)) < 1e-9));
});

test('an op without a rule is named', (t) => {
  using device = Device.open('ref');
  const x = device.tensorFrom(Float64Array.of(1), [1, 1], 'f64', 'x');
  const dx = device.tensor([1, 1], 'f64', 'dx');
  const g = new Graph();
  const y = g.value([1, 2], 'f64');
  g.scope('layers.0', () => g.op('concat', { y }, { parts_: [silu(g, x), silu(g, x)] }));
  const dloss = device.tensor([1], 'f64', 'dloss');
  t.notThrows(() => grad(g, scale(g, silu(g, x), 1).reshape(1), dloss, new Map([[x, dx]])));
  const ones = device.tensor([1, 2], 'f64', 'ones');
  t.throws(() => grad(g, linear(g, y, ones).reshape(1), dloss, new Map([[x, dx]])), { message: /layers\.0\.concat/ });
});
