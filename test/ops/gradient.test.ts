// The reference's backward in float64 equals central differences of its forward in float64, for every differentiable op
// and for a whole tiny model of either kind.
import test, { type ExecutionContext } from 'ava';
import type { Device } from '../../lib/device.ts';
import { grad } from '../../lib/grad.ts';
import { Graph } from '../../lib/graph.ts';
import { architectureOf, type PartialModelConfig } from '../../lib/models/architectures.ts';
import { attention } from '../../lib/ops/attention.ts';
import { causalConv1d } from '../../lib/ops/causal-conv.ts';
import { crossEntropy } from '../../lib/ops/cross-entropy.ts';
import { diagonalSsmConvolution, longConv, zeroOrderHold } from '../../lib/ops/diagonal-ssm.ts';
import { add, mul, negExp, scale, silu, softplus, swiglu } from '../../lib/ops/elementwise.ts';
import { embedding } from '../../lib/ops/embedding.ts';
import { linear } from '../../lib/ops/linear.ts';
import { layerNorm, rmsNorm } from '../../lib/ops/norm.ts';
import { rope } from '../../lib/ops/rope.ts';
import { selectiveScan } from '../../lib/ops/selective-scan.ts';
import { cast, concat, split } from '../../lib/ops/shape.ts';
import { compile, type Plan } from '../../lib/plan.ts';
import type { Tensor } from '../../lib/tensor.ts';
import { compare } from '../support/close.ts';
import { withDevice } from '../support/devices.ts';
import { hash, Random } from '../support/random.ts';

/** Differences of step 1e-5 in float64 are exact to about 3e-11; gradients here go down to 1e-5 (docs/numerics.md). */
const CLOSE = { rms: 1e-6, worst: 1e-5 };
const STEP = 1e-5;

/** An input by name. */
type Inputs = (name: string) => Tensor;

/** Builds the loss (1) of a graph from its inputs. */
type Build = (g: Graph, inputs: Inputs, device: Device) => Tensor;

/** Gradients by grad.ts against differences, for every element of every input. */
async function check(device: Device, values: Record<string, { shape: number[]; values: Float64Array }>, build: Build) {
  const tensors = new Map<string, Tensor>();
  const inputs: Inputs = (name) => tensors.get(name) as Tensor;
  const gradients = new Map<Tensor, Tensor>();
  for (const [name, { shape, values: v }] of Object.entries(values)) {
    const t = device.tensorFrom(v, shape, 'f64', name);
    tensors.set(name, t);
    gradients.set(t, device.tensor(shape, 'f64', `d ${name}`));
  }
  const forward = new Graph();
  const loss = device.tensor([1], 'f64', 'loss');
  forward.op('copy', { y: loss }, { x: build(forward, inputs, device) });
  const backward = new Graph();
  const dloss = device.tensorFrom(Float64Array.of(1), [1], 'f64', 'dloss');
  grad(backward, build(backward, inputs, device), dloss, gradients);

  using forwardPlan = await compile(device, forward);
  using backwardPlan = await compile(device, backward);
  await backwardPlan.run();
  const wrong: string[] = [];
  for (const [name, t] of tensors) {
    const slopes = await differences(device, forwardPlan, loss, t);
    const found = compare(device.read(gradients.get(t) as Tensor), slopes, CLOSE);
    if (found) wrong.push(`d ${name}: ${found}`);
  }
  return wrong;
}

async function differences(device: Device, plan: Plan, loss: Tensor, t: Tensor): Promise<Float64Array> {
  const values = device.read(t) as Float64Array;
  const at = async (i: number, v: number) => {
    const moved = values.slice();
    moved[i] = v;
    device.write(t, moved);
    await plan.run();
    return device.read(loss)[0] ?? Number.NaN;
  };
  const slopes = new Float64Array(values.length);
  for (const [i, v] of values.entries()) slopes[i] = ((await at(i, v + STEP)) - (await at(i, v - STEP))) / (2 * STEP);
  device.write(t, values);
  return slopes;
}

/** sum(y * w) with fixed random w: a loss through which every element of y has its own gradient. */
function weighted(g: Graph, device: Device, ...ys: Tensor[]): Tensor {
  const sums = ys.map((y, i) => {
    const flat = y.contiguous ? y : cast(g, y, 'f64');
    const w = device.tensorFrom(new Random(77, i).normal(y.elems), [1, y.elems], 'f64', `w${i}`);
    return linear(g, flat.reshape(1, y.elems), w).reshape(1);
  });
  return sums.reduce((a, b) => add(g, a, b));
}

type Shapes = Record<string, number[]>;
type Draw = (random: Random, n: number) => Float64Array;

/** Registers one test: shapes of the inputs, the op, and ranges for inputs that are not standard normal. */
function gradientTest(title: string, shapes: Shapes, build: Build, draws: Record<string, Draw> = {}): void {
  test(`gradient of ${title} equals central differences`, (t) =>
    withDevice('ref', { threads: 1 }, async (device) => {
      const random = new Random(hash(title));
      const values = Object.fromEntries(
        Object.entries(shapes).map(([name, shape]) => {
          const n = shape.reduce((a, b) => a * b, 1);
          return [name, { shape, values: draws[name]?.(random, n) ?? random.normal(n) }];
        }),
      );
      t.deepEqual(await check(device, values, build), []);
    }));
}

/** Away from softplus's border at 20, where the reference, like PyTorch, is not quite smooth. */
const bothSides: Draw = (random, n) => random.uniform(n, -5, 5).map((v, i) => (i % 4 ? v : v + 30));
const negative: Draw = (random, n) => random.uniform(n, -2, -0.1);
const steps: Draw = (random, n) => random.uniform(n, 0.01, 0.5);

const x = [3, 5];
gradientTest('add', { a: x, b: x }, (g, i, d) => weighted(g, d, add(g, i('a'), i('b'))));
gradientTest('add of a value to itself', { a: x }, (g, i, d) => weighted(g, d, add(g, i('a'), i('a'))));
gradientTest('mul', { a: x, b: x }, (g, i, d) => weighted(g, d, mul(g, i('a'), i('b'))));
gradientTest('mul of a value by itself', { a: x }, (g, i, d) => weighted(g, d, mul(g, i('a'), i('a'))));
gradientTest('scale', { x }, (g, i, d) => weighted(g, d, scale(g, i('x'), -1.7)));
gradientTest('silu', { x }, (g, i, d) => weighted(g, d, silu(g, i('x'))));
gradientTest('swiglu', { gate: x, up: x }, (g, i, d) => weighted(g, d, swiglu(g, i('gate'), i('up'))));
gradientTest('swiglu of a value by itself', { x }, (g, i, d) => weighted(g, d, swiglu(g, i('x'), i('x'))));
gradientTest('swiglu of halves side by side', { x: [4, 6] }, (g, i, d) => {
  const [gate, up] = split(silu(g, i('x')), 3, 3) as [Tensor, Tensor];
  return weighted(g, d, swiglu(g, gate, up));
});
gradientTest('softplus', { x }, (g, i, d) => weighted(g, d, softplus(g, i('x'))), { x: bothSides });
gradientTest('negExp', { x }, (g, i, d) => weighted(g, d, negExp(g, i('x'))));
gradientTest('copy', { x }, (g, i, d) => weighted(g, d, cast(g, silu(g, i('x')), 'f64')));
gradientTest('column views', { x: [4, 7] }, (g, i, d) => {
  const [a, b, c] = split(silu(g, i('x')), 2, 2, 3) as [Tensor, Tensor, Tensor];
  return weighted(g, d, mul(g, a, b), silu(g, c));
});
gradientTest('column views used twice', { x: [4, 4] }, (g, i, d) => {
  const [a, b] = split(silu(g, i('x')), 2, 2) as [Tensor, Tensor];
  return weighted(g, d, mul(g, a, b), silu(g, a), silu(g, b));
});
gradientTest('linear', { x: [2, 3, 4], w: [5, 4], b: [5], r: [2, 3, 5] }, (g, i, d) =>
  weighted(g, d, linear(g, i('x'), i('w'), { bias: i('b'), add: i('r') })),
);
gradientTest('two linears of one weight', { x: [3, 4], w: [4, 4] }, (g, i, d) =>
  weighted(g, d, linear(g, silu(g, linear(g, i('x'), i('w'))), i('w'))),
);
gradientTest('embedding', { table: [5, 3] }, (g, i, d) => {
  const ids = d.tensorFrom(Int32Array.of(0, 4, 4, 2), [2, 2], 'i32', 'ids');
  return weighted(g, d, embedding(g, ids, i('table')));
});
gradientTest('embedding of rows of a value, some taken twice and one from nowhere', { x: [5, 3] }, (g, i, d) =>
  weighted(g, d, embedding(g, g.constant(Int32Array.of(4, 0, 4, -1), [2, 2]), silu(g, i('x')))),
);
gradientTest('concat', { x: [2, 3], w: [2, 2] }, (g, i, d) => {
  const y = silu(g, i('x'));
  return weighted(g, d, concat(g, [y, i('w'), y.columns(1, 2), mul(g, y, y)]));
});
gradientTest('concat of rows, read as rows', { a: [1, 6], b: [4, 3] }, (g, i, d) => {
  const rows = concat(g, [i('a'), silu(g, i('b')).reshape(1, 12)]).reshape(6, 3);
  return weighted(g, d, mul(g, rows, rows));
});
gradientTest('rmsNorm', { x: [2, 2, 6], w: [6] }, (g, i, d) => weighted(g, d, rmsNorm(g, i('x'), i('w'))));
gradientTest('layerNorm', { x: [2, 2, 6], w: [6], b: [6] }, (g, i, d) =>
  weighted(g, d, layerNorm(g, i('x'), i('w'), i('b'))),
);
gradientTest('layerNorm without bias', { x: [4, 6], w: [6] }, (g, i, d) =>
  weighted(g, d, layerNorm(g, i('x'), i('w'))),
);

for (const T of [1, 2, 7]) {
  for (const act of [true, false]) {
    const conv = { x: [2, T, 3], w: [3, 4], b: [3], state: [2, 3, 3] };
    gradientTest(`causalConv1d · T${T}${act ? ' silu' : ''} with state`, conv, (g, i, d) => {
      const y = causalConv1d(g, i('x'), i('w'), { bias: i('b'), state: i('state'), silu: act });
      return weighted(g, d, y);
    });
    gradientTest(`causalConv1d · T${T}${act ? ' silu' : ''} into the next chunk`, conv, (g, i, d) => {
      const next = g.value([2, 3, 3], 'f64');
      const y = causalConv1d(g, i('x'), i('w'), { bias: i('b'), state: i('state'), stateOut: next, silu: act });
      return weighted(g, d, y, next);
    });
  }
}
gradientTest('causalConv1d without bias and state', { x: [2, 5, 3], w: [3, 3] }, (g, i, d) =>
  weighted(g, d, causalConv1d(g, i('x'), i('w'))),
);

const scan = (T: number) => ({
  u: [2, T, 3],
  delta: [2, T, 3],
  A: [3, 4],
  B: [2, T, 4],
  C: [2, T, 4],
  D: [3],
  z: [2, T, 3],
  deltaBias: [3],
  state: [2, 3, 4],
});
// 64 steps lie between kept states; 130 need three of them.
for (const T of [1, 5, 64, 65, 130]) {
  gradientTest(
    `selectiveScan · T${T} with everything`,
    scan(T),
    (g, i, d) => {
      const stateOut = g.value([2, 3, 4], 'f64');
      const optional = { D: i('D'), z: i('z'), deltaBias: i('deltaBias'), state: i('state') };
      const inputs = { u: i('u'), delta: i('delta'), A: i('A'), B: i('B'), C: i('C'), ...optional };
      return weighted(g, d, selectiveScan(g, inputs, { softplus: true, stateOut, differentiable: true }), stateOut);
    },
    { A: negative, delta: bothSides },
  );
}
gradientTest(
  'selectiveScan · bare',
  { u: [2, 7, 3], delta: [2, 7, 3], A: [3, 4], B: [2, 7, 4], C: [2, 7, 4] },
  (g, i, d) => {
    const inputs = { u: i('u'), delta: i('delta'), A: i('A'), B: i('B'), C: i('C') };
    return weighted(g, d, selectiveScan(g, inputs, { differentiable: true }));
  },
  { A: negative, delta: steps },
);
for (const T of [1, 5, 33]) {
  const shapes = { u: [3, T, 2], logDt: [2], logAReal: [2, 3], AImag: [2, 3], C: [2, 3, 2], D: [2] };
  gradientTest(
    `diagonalSsmConvolution · T${T} of continuous parameters`,
    shapes,
    (g, i, d) => {
      const { Ab, Bb } = zeroOrderHold(g, i('logDt'), i('logAReal'), i('AImag'));
      return weighted(g, d, diagonalSsmConvolution(g, { u: i('u'), Ab, Bb, C: i('C'), D: i('D') }));
    },
    { logDt: (random, n) => random.uniform(n, Math.log(0.01), Math.log(0.5)) },
  );
}
gradientTest('longConv of a kernel used twice', { u: [2, 5, 3], k: [3, 5] }, (g, i, d) =>
  weighted(g, d, longConv(g, longConv(g, i('u'), i('k')), i('k'))),
);
for (const first of [3, 1000]) {
  gradientTest(`rope from ${first} on`, { x: [2, 5, 12] }, (g, i, d) =>
    weighted(g, d, rope(g, i('x'), { heads: 2, first })),
  );
}
for (const [T, S, heads, keyHeads] of [
  [1, 1, 1, 1],
  [1, 5, 2, 2],
  [6, 6, 4, 2],
  [4, 7, 3, 1],
] as const) {
  const P = 3;
  const shapes = { q: [2, T, heads * P], k: [2, S, keyHeads * P], v: [2, S, keyHeads * P] };
  gradientTest(`attention · T${T} S${S} heads ${heads}/${keyHeads}`, shapes, (g, i, d) =>
    weighted(g, d, attention(g, { q: i('q'), k: i('k'), v: i('v') }, { heads })),
  );
}
gradientTest('attention to itself, of columns of one projection', { x: [2, 5, 12] }, (g, i, d) => {
  const [q, k, v] = split(silu(g, i('x')), 4, 4, 4) as [Tensor, Tensor, Tensor];
  return weighted(g, d, attention(g, { q: rope(g, q, { heads: 2 }), k: rope(g, k, { heads: 2 }), v }, { heads: 2 }));
});
for (const ignore of [-1, 2]) {
  gradientTest(`crossEntropy · ignore ${ignore}`, { logits: [4, 5] }, (g, i, d) => {
    const targets = d.tensorFrom(Int32Array.of(0, 2, 4, 1), [4], 'i32', 'targets');
    return crossEntropy(g, i('logits'), targets, ignore).loss;
  });
}

const BYTES = 11;

async function modelCheck(t: ExecutionContext, partial: PartialModelConfig, T: number) {
  await withDevice('ref', { threads: 1 }, async (device) => {
    const architecture = architectureOf(partial);
    const config = architecture.complete(partial);
    const random = new Random(5);
    const specs = architecture.params(config);
    const values = Object.fromEntries(
      specs.map(({ name, shape }) => {
        const n = shape.reduce((a, b) => a * b, 1);
        return [name, { shape: [...shape], values: random.normal(n, name.endsWith('A_log') ? 0.5 : 0.7) }];
      }),
    );
    const ids = device.tensorFrom(Int32Array.from(random.integers(2 * T, 0, BYTES)), [2, T], 'i32', 'ids');
    const targets = device.tensorFrom(Int32Array.from(random.integers(2 * T, 0, BYTES)), [2, T], 'i32', 'targets');
    const wrong = await check(device, values, (g, inputs) => {
      const weights = new Map(specs.map(({ name }) => [name, inputs(name)]));
      const x = architecture.backbone(g, config, weights, ids, { differentiable: true });
      return crossEntropy(g, architecture.head(g, config, weights, x), targets).loss;
    });
    t.deepEqual(wrong, []);
  });
}

const tiny = { layers: 2, dModel: 4, dInner: 6, dState: 3, dConv: 3, dtRank: 2, vocab: BYTES };
test('gradient of a whole model equals central differences · LayerNorm, untied', (t) => modelCheck(t, tiny, 5));
test('gradient of a whole model equals central differences · RMSNorm, tied', (t) =>
  modelCheck(t, { ...tiny, norm: 'rms', tied: true }, 5));
const transformer = { architecture: 'transformer', layers: 2, dModel: 8, heads: 4, keyHeads: 2, dInner: 6 } as const;
test('gradient of a whole model equals central differences · Transformer, untied', (t) =>
  modelCheck(t, { ...transformer, vocab: BYTES }, 5));
test('gradient of a whole model equals central differences · Transformer, tied', (t) =>
  modelCheck(t, { ...transformer, keyHeads: 4, vocab: BYTES, tied: true }, 5));
test('gradient of a whole model equals central differences · gated S4D', (t) =>
  modelCheck(t, { architecture: 'gated-s4d', layers: 2, dModel: 4, dInner: 6, dState: 4, vocab: BYTES }, 5));
const megabyte = {
  architecture: 'megabyte',
  patchSize: 2,
  layers: 1,
  dModel: 4,
  heads: 2,
  dInner: 6,
  globalLayers: 1,
  globalDModel: 8,
  globalHeads: 2,
  globalKeyHeads: 1,
  globalDInner: 6,
  vocab: BYTES,
} as const;
for (const T of [4, 5]) {
  test(`gradient of a whole model equals central differences · MegaByte, ${T} ids in patches of 2`, (t) =>
    modelCheck(t, { ...megabyte, tied: T === 4 }, T));
}
