// The diagonal SSM in its two forms: the recurrence is the same however it is cut, the convolution equals it, and the block of
// gated S4D (docs/baselines.md) recorded from either equals PyTorch in float64, gradients included.
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import type { Device } from '../../lib/device.ts';
import { ShapeError } from '../../lib/errors.ts';
import { grad } from '../../lib/grad.ts';
import { Graph } from '../../lib/graph.ts';
import { crossEntropy } from '../../lib/ops/cross-entropy.ts';
import {
  type DiagonalSsmInputs,
  diagonalSsm,
  diagonalSsmConvolution,
  zeroOrderHold,
} from '../../lib/ops/diagonal-ssm.ts';
import { mul, silu } from '../../lib/ops/elementwise.ts';
import { embedding } from '../../lib/ops/embedding.ts';
import { linear } from '../../lib/ops/linear.ts';
import { rmsNorm } from '../../lib/ops/norm.ts';
import { split } from '../../lib/ops/shape.ts';
import { compile, evaluate } from '../../lib/plan.ts';
import type { Tensor, TypedArray } from '../../lib/tensor.ts';
import { compare, GRADIENTS, LOGITS, TOLERANCES } from '../support/close.ts';
import { cpuTargets, cuda, withDevice } from '../support/devices.ts';
import { readFixture, readJson } from '../support/fixtures.ts';
import { Random } from '../support/random.ts';

const devices = [
  ['ref', undefined] as const,
  ...cpuTargets().supported.map((target) => ['cpu', target] as const),
  ...(cuda().info ? [['cuda', undefined] as const] : []),
];

/** Registers a test for ref, for every instruction set, and for a GPU where there is one. */
function everywhere(title: string, run: (t: ExecutionContext, device: Device) => Promise<void>): void {
  for (const [backend, target] of devices) {
    test.serial(`${title} · ${target ?? backend}`, (t) =>
      withDevice(backend, { threads: 2, ...(target ? { target } : {}) }, (device) => run(t, device)),
    );
  }
}

/** Values of a model as it is initialised, some of whose states last for thousands of steps. */
function modelOf(device: Device, random: Random, B: number, T: number, E: number, M: number) {
  const put = (name: string, shape: number[], values: ArrayLike<number>) =>
    device.tensorFrom(Float32Array.from(values), shape, 'f32', name);
  const n = E * M;
  return {
    u: put('u', [B, T, E], random.normal(B * T * E)),
    logDt: put('log_dt', [E], random.uniform(E, Math.log(0.001), Math.log(0.1))),
    logAReal: put('log_A_real', [E, M], new Float32Array(n).fill(Math.log(0.5))),
    AImag: put(
      'A_imag',
      [E, M],
      Float32Array.from({ length: n }, (_, i) => Math.PI * (i % M)),
    ),
    C: put('C', [E, M, 2], random.normal(2 * n, Math.SQRT1_2)),
    D: put('D', [E], random.normal(E)),
    state: put('state', [B, E, M, 2], random.normal(2 * B * n)),
  };
}

/** Steps [from, to) of a tensor (B, T, ...). */
function steps(device: Device, t: Tensor, from: number, to: number): Tensor {
  const [B = 0, T = 0, E = 0] = t.shape;
  const values = device.read(t) as Float32Array;
  const parts = Array.from({ length: B }, (_, b) => [...values.subarray((b * T + from) * E, (b * T + to) * E)]);
  return device.tensorFrom(Float32Array.from(parts.flat()), [B, to - from, E], 'f32', 'u');
}

everywhere(
  'a cut recurrence has the bits of a whole one, and kept states are states of prefixes',
  async (t, device) => {
    const [B, T, E, M] = [2, 131, 17, 5];
    const model = modelOf(device, new Random(41), B, T, E, M);
    const size = B * E * M * 2;
    const run = async (from: number, to: number, start: ArrayLike<number>, keep = false) => {
      const g = new Graph();
      const state = device.tensorFrom(Float32Array.from(start), [B, E, M, 2], 'f32', 'state');
      const kept = keep ? device.tensor([to - from, B, E * M * 2], 'f32', 'kept') : undefined;
      const held = zeroOrderHold(g, model.logDt, model.logAReal, model.AImag);
      const inputs = { ...held, u: steps(device, model.u, from, to), C: model.C, D: model.D };
      const y = diagonalSsm(g, inputs, { state, stateOut: state, kept });
      const [values] = await evaluate(device, g, [y]);
      const read = (x: Tensor | undefined) => (x ? (device.read(x) as Float32Array) : new Float32Array());
      return { y: values as Float32Array, state: read(state), kept: read(kept) };
    };
    const start = device.read(model.state) as Float32Array;
    const whole = await run(0, T, start, true);
    t.deepEqual(whole.kept.subarray(-size), whole.state);
    // The reference goes on in double inside of a run alone.
    const close = device.info.backend === 'ref' ? TOLERANCES.f32 : TOLERANCES.exact;
    for (const cut of [1, 7, 31, 32, 33, 128]) {
      const first = await run(0, cut, start);
      t.is(
        compare(first.state, whole.kept.subarray((cut - 1) * size, cut * size), close),
        undefined,
        `state after ${cut}`,
      );
      const second = await run(cut, T, first.state);
      const joined = [0, 1].flatMap((b) => [
        ...first.y.subarray(b * cut * E, (b + 1) * cut * E),
        ...second.y.subarray(b * (T - cut) * E, (b + 1) * (T - cut) * E),
      ]);
      t.is(compare(joined, whole.y, close), undefined, `cut at ${cut}`);
      t.is(compare(second.state, whole.state, close), undefined, `cut at ${cut}`);
    }
  },
);

everywhere('the convolution equals the recurrence from a state of zeros', async (t, device) => {
  for (const [B, T, E, M] of [
    [1, 1, 3, 2],
    [3, 2, 16, 1],
    [2, 63, 17, 4],
    [1, 1500, 5, 32],
  ] as const) {
    const { u, logDt, logAReal, AImag, C, D } = modelOf(device, new Random(42, T), B, T, E, M);
    const g = new Graph();
    const inputs = { ...zeroOrderHold(g, logDt, logAReal, AImag), u, C, D };
    const [one = [], other = []] = await evaluate(device, g, [
      diagonalSsmConvolution(g, inputs),
      diagonalSsm(g, inputs),
    ]);
    t.is(compare(one, other, TOLERANCES.long), undefined, `B${B} T${T} E${E} M${M}`);
  }
});

test('operands of other shapes are refused where they are recorded', (t) =>
  withDevice('ref', { threads: 1 }, (device) => {
    const { u, logDt, logAReal, AImag, C, D, state } = modelOf(device, new Random(43), 2, 5, 3, 4);
    const g = new Graph();
    const inputs = { ...zeroOrderHold(g, logDt, logAReal, AImag), u, C, D };
    const wrong: [() => unknown, string][] = [
      [() => zeroOrderHold(g, D, logAReal, C), 'zero_order_hold: expected A_imag to have shape (3, 4), got (3, 4, 2).'],
      [() => diagonalSsm(g, { ...inputs, D: u }), 'diagonal_ssm: expected D to have shape (3), got (2, 5, 3).'],
      [
        () => diagonalSsm(g, inputs, { state, stateOut: C }),
        'diagonal_ssm: expected state_out to have shape (2, 3, 4, 2), got (3, 4, 2).',
      ],
      [() => diagonalSsmConvolution(g, { ...inputs, u: C }), 'long_conv: expected k to have shape (2, 4), got (3, 4).'],
    ];
    for (const [record, message] of wrong) t.throws(record, { instanceOf: ShapeError, message });
  }));

const NAME = 'gated-s4d-tiny';

const config = readJson<{ n_layer: number; d_inner: number; d_state: number; rms_norm_eps: number }>(
  join(NAME, 'config.json'),
);
const stored = readFixture(join(NAME, 'model.safetensors'));
const fixture = readFixture(join(NAME, 'fixture.safetensors'));

function fixtureOf(name: string) {
  const found = fixture.get(name);
  if (!found) throw new Error(`${NAME}: no ${name}`);
  return found;
}

function weightsOn(device: Device): Map<string, Tensor> {
  return new Map(
    [...stored].map(([name, { shape, values }]) => [
      name,
      device.tensorFrom(Float32Array.from(values), shape, 'f32', name),
    ]),
  );
}

/** (B, T, V) by `ssm`, which is given what the layer's SSM reads. */
function logitsOf(
  g: Graph,
  w: Map<string, Tensor>,
  ids: Tensor,
  ssm: (inputs: DiagonalSsmInputs, l: number) => Tensor,
) {
  const { n_layer, d_inner, rms_norm_eps } = config;
  const p = (name: string) => w.get(name) as Tensor;
  let x = embedding(g, ids, p('backbone.embedding.weight'));
  for (let l = 0; l < n_layer; l++) {
    const own = (name: string) => p(`backbone.layers.${l}.${name}`);
    const normed = rmsNorm(g, x, own('norm.weight'), rms_norm_eps);
    const [u, z] = split(linear(g, normed, own('mixer.in_proj.weight')), d_inner, d_inner) as [Tensor, Tensor];
    const held = zeroOrderHold(g, own('mixer.log_dt'), own('mixer.log_A_real'), own('mixer.A_imag'));
    const y = ssm({ ...held, u: silu(g, u), C: own('mixer.C'), D: own('mixer.D') }, l);
    x = linear(g, mul(g, y, silu(g, z)), own('mixer.out_proj.weight'), { add: x });
  }
  return linear(g, rmsNorm(g, x, p('backbone.norm_f.weight'), rms_norm_eps), p('lm_head.weight'));
}

function idsOn(device: Device, values: ArrayLike<number>, B: number): Tensor {
  return device.tensorFrom(Uint8Array.from(values), [B, values.length / B], 'u8', 'ids');
}

everywhere('gated S4D in both forms equals PyTorch', async (t, device) => {
  const weights = weightsOn(device);
  for (const T of [1, 8, 21]) {
    const { shape, values } = fixtureOf(`ids.${T}`);
    const ids = idsOn(device, values, shape[0] ?? 0);
    const g = new Graph();
    const forms = [diagonalSsmConvolution, diagonalSsm].map((form) => logitsOf(g, weights, ids, (i) => form(g, i)));
    for (const logits of await evaluate(device, g, forms)) {
      t.is(compare(logits, fixtureOf(`logits.${T}`).values, LOGITS), undefined, `${T} ids`);
    }
  }
});

everywhere('loss and gradients of gated S4D equal PyTorch', async (t, device) => {
  const weights = weightsOn(device);
  const { shape, values } = fixtureOf('train.rows');
  const [B = 0, width = 0] = shape;
  const T = width - 1;
  const columns = (from: number) =>
    idsOn(
      device,
      values.filter((_, i) => i % width >= from && i % width < from + T),
      B,
    );
  const gradients = new Map([...weights.values()].map((w) => [w, device.tensor(w.shape, 'f32', `d ${w.name}`)]));
  const g = new Graph();
  const logits = logitsOf(g, weights, columns(0), (inputs) => diagonalSsmConvolution(g, inputs));
  const { loss } = crossEntropy(g, logits, columns(1));
  grad(g, loss, device.tensorFrom(Float32Array.of(1), [1], 'f32', 'dloss'), gradients);
  using plan = await compile(device, g, [loss]);
  await plan.run();
  t.is(compare(plan.read(loss) as Float32Array, fixtureOf('train.loss').values, { rms: 1e-6, worst: 1e-6 }), undefined);
  for (const [{ name }, d] of gradients) {
    const want = fixtureOf(`train.grad.${name}`).values;
    t.is(compare(device.read(d) as Float32Array, want, GRADIENTS), undefined, name);
  }
});

everywhere('gated S4D from its states, id by id after a prompt, equals PyTorch', async (t, device) => {
  const weights = weightsOn(device);
  const { n_layer, d_inner: E, d_state: N } = config;
  const states = Array.from({ length: n_layer }, (_, l) => device.tensor([1, E, N / 2, 2], 'f32', `state ${l}`));
  const read = async (values: ArrayLike<number>): Promise<TypedArray> => {
    const g = new Graph();
    const logits = logitsOf(g, weights, idsOn(device, values, 1), (inputs, l) =>
      diagonalSsm(g, inputs, { state: states[l], stateOut: states[l] }),
    );
    const [all = new Float32Array()] = await evaluate(device, g, [logits]);
    return all.slice(-256);
  };
  const rows = [await read(fixtureOf('generate.prompt').values)];
  for (const [l, state] of states.entries()) {
    const want = fixtureOf(`generate.state.${l}.h`).values;
    t.is(compare(device.read(state) as Float32Array, want, LOGITS), undefined, `state of layer ${l}`);
  }
  for (const id of fixtureOf('generate.continuation').values.slice(0, -1)) rows.push(await read([id]));
  const got = rows.flatMap((row) => [...row]);
  t.is(compare(got, fixtureOf('generate.logits').values, LOGITS), undefined);
});
