// Plans: memory reuse changes no result, dead code is dropped, what depends on frozen tensors alone runs once.
import test from 'ava';
import { Device } from '../lib/device.ts';
import { DisposedError, NativeError } from '../lib/errors.ts';
import { grad } from '../lib/grad.ts';
import { Graph } from '../lib/graph.ts';
import { completeConfig } from '../lib/models/config.ts';
import { mambaBackbone, mambaHead, mambaParams } from '../lib/models/mamba.ts';
import { initialValues } from '../lib/models/params.ts';
import { crossEntropy } from '../lib/ops/cross-entropy.ts';
import { add, mul, scale, silu } from '../lib/ops/elementwise.ts';
import { embedding } from '../lib/ops/embedding.ts';
import { linear } from '../lib/ops/linear.ts';
import { rmsNorm } from '../lib/ops/norm.ts';
import { SAMPLE_COLUMNS, sample } from '../lib/ops/sample.ts';
import { Arena, arenaBytes, compile, evaluate } from '../lib/plan.ts';
import { rootOf, type Tensor } from '../lib/tensor.ts';
import { Random } from './support/random.ts';

const open = (backend: 'ref' | 'cpu' = 'cpu') => Device.open(backend, { threads: 2 });

/** A training step of a tiny model: every value's contents, by the order of the nodes that wrote them. */
async function trainingStep(device: Device, keep: (g: Graph) => Tensor[]) {
  const config = completeConfig({ layers: 2, dModel: 16, dState: 4 });
  const weights = new Map<string, Tensor>();
  const gradients = new Map<Tensor, Tensor>();
  mambaParams(config).forEach((spec, i) => {
    const t = device.tensorFrom(initialValues(spec, 1, i), spec.shape, 'f32', spec.name);
    weights.set(spec.name, t);
    gradients.set(t, device.tensor(spec.shape, 'f32', `d ${spec.name}`));
  });
  const random = new Random(6);
  const ids = device.tensorFrom(Int32Array.from(random.integers(2 * 70, 0, 256)), [2, 70], 'i32', 'ids');
  const targets = device.tensorFrom(Int32Array.from(random.integers(2 * 70, 0, 256)), [2, 70], 'i32', 'targets');
  const dloss = device.tensorFrom(Float32Array.of(1), [1], 'f32', 'dloss');
  const g = new Graph();
  const logits = mambaHead(g, config, weights, mambaBackbone(g, config, weights, ids, { differentiable: true }));
  const { loss } = crossEntropy(g, logits, targets);
  grad(g, loss, dloss, gradients);
  const plan = await compile(device, g, [loss, ...keep(g)]);
  await plan.run();
  const results = [plan.read(loss), ...[...gradients.values()].map((t) => device.read(t))];
  return { results, arenaBytes: plan.arenaBytes };
}

test('memory reuse on = off', async (t) => {
  using device = open();
  const reused = await trainingStep(device, () => []);
  // A value that is an output has memory of its own, so naming all of them turns reuse off.
  const apart = await trainingStep(device, (g) => {
    const written = new Set<Tensor>();
    for (const node of g.nodes) for (const out of node.outs) if (out && !rootOf(out).storage) written.add(rootOf(out));
    return [...written];
  });
  t.deepEqual(reused.results, apart.results);
  t.is(apart.arenaBytes, 0);
  t.true(reused.arenaBytes > 0);
});

test('a constant is there in every plan of its graph, and only where it is read', async (t) => {
  using device = open();
  const table = device.tensorFrom(Float32Array.of(1, 2, 3, 4), [4, 1], 'f32', 'table');
  const g = new Graph();
  const picked = embedding(g, g.constant(Int32Array.of(3, 0, 3)), table);
  g.constant(Int32Array.of(7));
  for (let round = 0; round < 2; round++) {
    using plan = await compile(device, g, [picked]);
    for (let again = 0; again < 2; again++) {
      await plan.run();
      t.deepEqual([...plan.read(picked)], [4, 1, 4]);
    }
  }
  t.is(arenaBytes(g, [picked]), 0);
});

test('values share memory when they do not live together', async (t) => {
  using device = open();
  const x = device.tensorFrom(Float32Array.from(new Random(1).normal(1024)), [1, 1024], 'f32', 'x');
  const g = new Graph();
  let y = silu(g, x);
  for (let i = 0; i < 20; i++) y = silu(g, y);
  using plan = await compile(device, g, [y]);
  t.true(plan.arenaBytes <= 2 * 4096, `${plan.arenaBytes} bytes for a chain that needs two values at a time`);
  await plan.run();
  let want = device.read(x) as Float32Array;
  for (let i = 0; i < 21; i++) want = want.map((v) => v / (1 + Math.exp(-v)));
  const got = plan.read(y) as Float32Array;
  t.true(got.every((v, i) => Math.abs(v - (want[i] ?? 0)) <= 1e-5 * Math.abs(want[i] ?? 0) + 1e-12));
});

test('plans that share an arena take turns in it, and a larger one makes it grow', async (t) => {
  using device = open();
  const arena = new Arena(device);
  const build = async (n: number) => {
    const x = device.tensorFrom(Float32Array.from(new Random(n).normal(n)), [1, n], 'f32', 'x');
    const g = new Graph();
    const y = scale(g, silu(g, scale(g, x, 2)), 3);
    const plan = await compile(device, g, [y], arena);
    t.is(plan.arenaBytes, arenaBytes(g, [y]));
    return { plan, y, want: (device.read(x) as Float32Array).map((v) => (6 * v) / (1 + Math.exp(-2 * v))) };
  };
  const large = await build(3000);
  const bytes = arena.bytes;
  const small = await build(100);
  t.is(arena.bytes, bytes, 'the smaller plan found room');
  const larger = await build(9000);
  t.true(arena.bytes > bytes);
  for (const { plan, y, want } of [large, small, larger, small, large]) {
    await plan.run();
    const got = plan.read(y) as Float32Array;
    t.true(got.every((v, i) => Math.abs(v - (want[i] ?? 0)) < 1e-5 * (1 + Math.abs(v))));
  }
  for (const { plan } of [large, small, larger]) plan.dispose();
  arena.dispose();
  t.is(arena.bytes, 0);
});

test('optional outputs that nobody reads are not written', async (t) => {
  using device = open();
  const x = device.tensorFrom(Float32Array.of(3, 4), [1, 2], 'f32', 'x');
  const weight = device.tensorFrom(Float32Array.of(1, 1), [2], 'f32', 'weight');
  const g = new Graph();
  const y = rmsNorm(g, x, weight);
  t.truthy(g.nodes[0]?.outs[1], 'recorded with rstd');
  using plan = await compile(device, g, [y]);
  t.is(plan.arenaBytes, 0, 'rstd has no memory');
  await plan.run();
  const [a = 0, b = 0] = plan.read(y);
  t.true(Math.abs(a / b - 0.75) < 1e-6 && Math.abs(a * a + b * b - 2) < 1e-4);
});

test('what no output needs is dropped', async (t) => {
  using device = open();
  const x = device.tensorFrom(Float32Array.of(1, 2), [1, 2], 'f32', 'x');
  const g = new Graph();
  const wanted = scale(g, x, 3);
  silu(g, mul(g, x, x));
  using plan = await compile(device, g, [wanted]);
  t.deepEqual(plan.scopes, ['scale']);
  await plan.run();
  t.deepEqual([...plan.read(wanted)], [3, 6]);
});

test('writing to stored tensors is never dropped', async (t) => {
  using device = open();
  const x = device.tensorFrom(Float32Array.of(1, 2), [1, 2], 'f32', 'x');
  const out = device.tensor([1, 2], 'f32', 'out');
  const g = new Graph();
  g.op('copy', { y: out }, { x: scale(g, x, 2) });
  using plan = await compile(device, g);
  t.deepEqual(plan.scopes, ['scale', 'copy']);
  await plan.run();
  t.deepEqual([...device.read(out)], [2, 4]);
});

test('what depends on frozen tensors alone runs once', async (t) => {
  using device = open();
  const frozen = device.tensorFrom(Float32Array.of(2, 3), [1, 2], 'f32', 'frozen', true);
  const live = device.tensorFrom(Float32Array.of(1, 1), [1, 2], 'f32', 'live');
  const g = new Graph();
  const squared = mul(g, frozen, frozen);
  const y = add(g, scale(g, squared, 10), live);
  using plan = await compile(device, g, [y]);
  t.deepEqual(plan.scopes, ['add']);
  await plan.run();
  t.deepEqual([...plan.read(y)], [41, 91]);
  device.write(live, Float32Array.of(2, 3));
  await plan.run();
  t.deepEqual([...plan.read(y)], [42, 93]);
});

test('a run repeats its steps and reports a watched tensor after each', async (t) => {
  using device = open();
  const rng = device.tensorFrom(Int32Array.of(7, 0, 0, 0), [1, 4], 'i32', 'rng');
  const ids = device.tensor([1], 'i32', 'ids');
  const logits = device.tensorFrom(new Float32Array(16), [1, 16], 'f32', 'logits');
  const params = device.tensorFrom(Float32Array.of(1, 0, 1, 0, 1, 0, 0, 0), [1, 8], 'f32', 'params');
  const g = new Graph();
  g.op('sample', { ids, rng }, { logits, params });
  using plan = await compile(device, g);
  const { steps, watched, cancelled, stop } = await plan.run({ steps: 50, watch: ids });
  t.deepEqual({ steps, cancelled, stop }, { steps: 50, cancelled: false, stop: -1 });
  t.is(watched.length, 50);
  t.true(new Set(watched).size > 8);
  t.is(device.read(rng)[2], 50);
  device.write(rng, Int32Array.of(7, 0, 0, 0));
  const third = watched.slice(1, 4);
  const again = await plan.run({ steps: 50, watch: ids, stops: [third], history: new Int32Array(0) });
  t.is(again.stop, 0);
  t.is(again.steps, 4);
  device.write(rng, Int32Array.of(7, 0, 4, 0));
  const across = await plan.run({ steps: 50, watch: ids, stops: [watched.slice(2, 6)], history: watched.slice(2, 4) });
  t.deepEqual([across.stop, across.steps], [0, 2]);
  await t.throwsAsync(plan.run({ watch: logits }), { message: /expected watch to name a contiguous int32 tensor/ });
});

test('a node that the device cannot run is refused with its scope and reason', async (t) => {
  using device = open();
  const x = device.tensorFrom(new Float64Array(4), [2, 2], 'f64', 'x');
  const g = new Graph();
  const y = g.scope('layers.3', () => g.scope('mixer', () => silu(g, x)));
  const error = await t.throwsAsync(compile(device, g, [y]), { instanceOf: NativeError });
  t.regex(error?.message ?? '', /plan: 1 node cannot run on cpu: layers\.3\.mixer\.silu: .*f32/);
});

test('reading what was not kept, and running what was disposed, are errors', async (t) => {
  const device = open();
  const x = device.tensorFrom(Float32Array.of(1, 2), [1, 2], 'f32', 'x');
  const g = new Graph();
  const middle = silu(g, x);
  const y = silu(g, middle);
  const plan = await compile(device, g, [y]);
  t.throws(() => plan.read(middle), { instanceOf: TypeError, message: /stored, contiguous/ });
  plan.dispose();
  plan.dispose();
  await t.throwsAsync(plan.run(), { instanceOf: DisposedError });
  device.dispose();
  device.dispose();
  t.throws(() => device.read(x), { instanceOf: DisposedError });
  t.throws(() => device.alloc(4), { instanceOf: DisposedError });
  await t.throwsAsync(compile(device, g, [y]), { instanceOf: DisposedError });
});

test('profile gives seconds by node', async (t) => {
  using device = open();
  const x = device.tensorFrom(new Float32Array(256 * 256), [256, 256], 'f32', 'x');
  const g = new Graph();
  const y = silu(g, linear(g, x, x));
  using plan = await compile(device, g, [y]);
  plan.profile();
  await plan.run({ steps: 3 });
  const [product = 0, activation = 0] = plan.profile();
  t.true(product > 0 && activation > 0);
  t.deepEqual([...plan.profile()], [0, 0]);
});

test('evaluate runs once and reads', async (t) => {
  using device = open('ref');
  const x = device.tensorFrom(Float64Array.of(1, 2, 3), [1, 3], 'f64', 'x');
  const g = new Graph();
  t.deepEqual(await evaluate(device, g, [scale(g, x, 2)]), [Float64Array.of(2, 4, 6)]);
});

test('a plan of no nodes runs', async (t) => {
  using device = open();
  using plan = await compile(device, new Graph());
  t.is((await plan.run({ steps: 2 })).steps, 2);
});

test('a brief run hands over what it watches, and may be started alone', async (t) => {
  using device = open();
  const count = device.tensorFrom(Float32Array.of(0, 0), [2], 'f32', 'count');
  const one = device.tensorFrom(Float32Array.of(1, 2), [2], 'f32', 'one');
  const g = new Graph();
  const sum = add(g, count, one);
  g.op('copy', { y: count }, { x: sum });
  using plan = await compile(device, g, [sum]);
  const out = new Float32Array(2);
  for (let i = 1; i <= 4; i++) {
    await plan.runBrief({ watch: sum, out });
    t.deepEqual(out, Float32Array.of(i, 2 * i));
  }
  for (let i = 0; i < 3; i++) await plan.startBrief();
  t.deepEqual(device.read(count), Float32Array.of(7, 14));
  const wrong = [new Float32Array(3), new Int32Array(2)];
  for (const out of wrong) {
    await t.throwsAsync(() => plan.runBrief({ watch: sum, out }), {
      instanceOf: TypeError,
      message: /expected out to be the array for .*, 2 elements in f32, got [32] in a (Float|Int)32Array/,
    });
  }
  const other = device.tensor([2], 'f32', 'other');
  await t.throwsAsync(() => plan.runBrief({ watch: other, out }), { message: /other is not part/ });
  t.is(plan.steps, 7);
});

test('several brief steps are a run of them, with what it watches and its stops', async (t) => {
  using device = open();
  const ids = device.tensor([1], 'i32', 'ids');
  const draw = {
    ids,
    params: device.tensor([1, SAMPLE_COLUMNS], 'f32', 'params'), // temperature 0
    rng: device.tensor([1, 4], 'i32', 'rng'),
    logprob: device.tensor([1], 'f32', 'logprob'),
  };
  const after = Float32Array.from({ length: 25 }, (_, i) => (((i % 5) - Math.floor(i / 5) - 1) % 5 === 0 ? 1 : 0));
  const g = new Graph();
  sample(g, { ...draw, logits: embedding(g, ids, device.tensorFrom(after, [5, 5], 'f32', 'after')) });
  using plan = await compile(device, g);
  await plan.run({ steps: 5 });
  for (const steps of [1, 3, 5]) {
    device.write(ids, Int32Array.of(0));
    const here = await plan.runStepsBrief({ steps, watch: ids });
    t.deepEqual([...here.watched], [1, 2, 3, 4, 0].slice(0, steps));
  }
  device.write(ids, Int32Array.of(0));
  const stops = [Int32Array.of(2, 3)];
  const { watched, ...rest } = await plan.runStepsBrief({ steps: 5, watch: ids, stops });
  t.deepEqual([...watched], [1, 2, 3]);
  t.deepEqual(rest, { steps: 3, stop: 0, cancelled: false });
  await Promise.all([plan.run({ steps: 1000 }), plan.runStepsBrief({ steps: 10 })]);
  t.is(plan.steps, 5 + 9 + 3 + 1010);
  const other = device.tensor([1], 'i32', 'other');
  await t.throwsAsync(() => plan.runStepsBrief({ watch: other }), { message: /other is not part/ });
});

test('brief runs are runs: in turn with others, and timers go on meanwhile', async (t) => {
  using device = open();
  const count = device.tensorFrom(Float32Array.of(0), [1], 'f32', 'count');
  const one = device.tensorFrom(Float32Array.of(1), [1], 'f32', 'one');
  const g = new Graph();
  g.op('copy', { y: count }, { x: add(g, count, one) });
  const plan = await compile(device, g);
  for (let i = 0; i < 3; i++) await plan.runBrief();
  await Promise.all([plan.run({ steps: 1000 }), plan.runBrief(), plan.runBrief()]);
  t.is(plan.steps, 1005);
  let ticks = 0;
  const timer = setInterval(() => ticks++, 1);
  const start = performance.now();
  while (ticks === 0 && performance.now() - start < 5000) await plan.runBrief();
  clearInterval(timer);
  t.true(ticks > 0);
  t.deepEqual(device.read(count), Float32Array.of(plan.steps));
  plan.dispose();
  await t.throwsAsync(() => plan.runBrief(), { instanceOf: DisposedError });
});
