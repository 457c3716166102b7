// Training in bf16 and with recomputed activations: what is rounded, what must not change by a bit, what memory it saves.
import test from 'ava';
import { Device } from '../lib/device.ts';
import { Graph } from '../lib/graph.ts';
import { createModel, createTrainer, type Model, type TrainerOptions } from '../lib/index.ts';
import type { MambaConfig } from '../lib/models/config.ts';
import { matrixNames } from '../lib/models/mamba.ts';
import { arenaBytes, evaluate } from '../lib/plan.ts';
import { recompute } from '../lib/recompute.ts';
import { Tensor } from '../lib/tensor.ts';
import type { Trainer } from '../lib/trainer.ts';
import { errors } from './support/close.ts';
import { prose } from './support/prose.ts';

const text = prose(4000, 3);
const SHAPES = [
  { layers: 2, dModel: 24, dState: 4 },
  { layers: 2, dModel: 24, dState: 4, tied: true, norm: 'rms' },
  { architecture: 'transformer', layers: 2, dModel: 24, heads: 6, keyHeads: 2, dInner: 40 },
  { architecture: 'perceiver-ar', layers: 2, dModel: 24, heads: 6, keyHeads: 2, dInner: 40, latents: 20 },
  { architecture: 'gated-s4d', layers: 2, dModel: 24, dState: 4 },
  { architecture: 'megabyte', layers: 2, dModel: 24, heads: 6, globalLayers: 2, globalDModel: 48, globalHeads: 6 },
] as const;

const batchAt = (step: number, rows = 2, T = 70) => ({
  bytes: Uint8Array.from(text.subarray(step * 200, step * 200 + rows * (T + 1))),
  batch: rows,
});

/** Losses, gradient norms and the weights after three steps, the last of two micro-batches. */
async function train(device: 'ref' | 'cpu', shape: (typeof SHAPES)[number], options: TrainerOptions) {
  using model = await createModel(shape, { seed: 4, device, threads: 2 });
  const trainer = await createTrainer(model, { lr: 3e-3, ...options });
  const steps = [
    await trainer.step(batchAt(0)),
    await trainer.step(batchAt(1)),
    await trainer.step([batchAt(2), batchAt(3)]),
  ];
  return { losses: steps.map((s) => s.loss), norms: steps.map((s) => s.gradNorm), weights: weightsOf(model) };
}

const weightsOf = (model: Model) => new Map([...model.weights].map(([name, t]) => [name, model.runtime.read(t)]));

for (const [i, shape] of SHAPES.entries()) {
  test(`bf16 activations and weights stay near f32 · shape ${i}`, async (t) => {
    using model = await createModel(shape, { seed: 4, device: 'ref' });
    const ids = model.runtime.tensorFrom(Int32Array.from(text.subarray(0, 60)), [1, 60], 'i32', 'ids');
    const logits = async (activations: 'f32' | 'bf16') => {
      const g = new Graph();
      const { architecture, config, weights } = model;
      const x = architecture.backbone(g, config, weights, ids, { activations });
      const y = architecture.head(g, config, weights, x, { activations });
      t.deepEqual([x.dtype, y.dtype], ['f32', 'f32']);
      const dtypes = new Set(g.nodes.flatMap((node) => node.outs.map((out) => out?.dtype)));
      t.is(dtypes.has('bf16'), activations === 'bf16');
      return (await evaluate(model.runtime, g, [y]))[0] as Float32Array;
    };
    const e = errors(await logits('bf16'), await logits('f32'));
    t.true(e.rms > 1e-5 && e.rms < 1e-2, `relative RMS ${e.rms}`);
  });

  test(`training in bf16 follows f32 and keeps f32 weights · shape ${i}`, async (t) => {
    const exact = await train('ref', shape, { precision: 'f32' });
    const rounded = await train('ref', shape, { precision: 'bf16' });
    for (const [s, loss] of rounded.losses.entries()) {
      t.true(Math.abs(loss / (exact.losses[s] ?? 0) - 1) < 1e-3, `loss ${loss}, in f32 ${exact.losses[s]}`);
      t.true(Math.abs((rounded.norms[s] ?? 0) / (exact.norms[s] ?? 0) - 1) < 2e-2);
    }
    t.notDeepEqual(rounded.losses, exact.losses);
    t.true([...rounded.weights.values()].every((w) => w instanceof Float32Array));
  });
}

test('gradients in bf16 are near those in f32', async (t) => {
  const gradients = async (precision: 'f32' | 'bf16') => {
    using model = await createModel(SHAPES[0], { seed: 4, device: 'ref' });
    const trainer = await createTrainer(model, { lr: 0, betas: [0, 0.95], clip: 0, precision });
    await trainer.step(batchAt(5));
    return trainer.optimizerState().m; // with beta1 = 0 the gradient itself
  };
  const [exact, rounded] = [await gradients('f32'), await gradients('bf16')];
  for (const [name, want] of exact) {
    const e = errors(rounded.get(name) ?? [], want);
    t.true(e.rms < 3e-2, `${name}: relative RMS ${e.rms}`);
  }
});

test('weights written between two steps are heard in bf16 too', async (t) => {
  using model = await createModel(SHAPES[0], { seed: 4, device: 'ref' });
  const trainer = await createTrainer(model, { lr: 0, precision: 'bf16' });
  const before = await trainer.loss(batchAt(0));
  const head = model.weights.get('lm_head.weight') as Tensor;
  model.runtime.write(head, new Float32Array(head.elems));
  t.true(Math.abs((await trainer.loss(batchAt(0))) - Math.log(256)) < 1e-5);
  t.true(Math.abs(before - Math.log(256)) > 1e-3);
});

test('the CPU refuses bf16, and unknown choices are named', async (t) => {
  using model = await createModel(SHAPES[0], { device: 'cpu', threads: 1 });
  const refuse = (options: object, message: RegExp) => t.throwsAsync(createTrainer(model, options), { message });
  await refuse({ precision: 'bf16' }, /expected precision to be 'f32' on the CPU, got 'bf16'/);
  await refuse({ precision: 'fp8' }, /precision .*f32.*bf16/);
  await refuse({ recompute: 'all' }, /recompute .*none.*cheap.*layer/);
  const trainer = await createTrainer(model);
  t.deepEqual([trainer.precision, trainer.recompute], ['f32', 'auto']);
});

for (const [device, precision] of [
  ['cpu', 'f32'],
  ['ref', 'bf16'],
] as const) {
  for (const [i, shape] of SHAPES.entries()) {
    test(`recomputing activations changes no bit · ${precision} on ${device} · shape ${i}`, async (t) => {
      const kept = await train(device, shape, { precision, recompute: 'none' });
      for (const again of ['cheap', 'layer'] as const) {
        t.deepEqual(await train(device, shape, { precision, recompute: again }), kept, again);
      }
    });
  }
}

/** Bytes of the arena of a step, without running it. */
function stepBytes(trainer: Trainer, pass: 'first' | 'loss'): number {
  const ids = new Tensor([2, 4, 256], 'i32', 'ids', { storage: { buffer: 0, offset: 0 } });
  return arenaBytes(trainer.graph(pass, ids));
}

test('recomputing saves memory, bf16 halves it, and a loss alone needs little', async (t) => {
  using model = await createModel({ layers: 12, dModel: 64 }, { device: 'ref' });
  const bytes = async (precision: 'f32' | 'bf16', again: 'none' | 'cheap' | 'layer') =>
    stepBytes(await createTrainer(model, { precision, recompute: again }), 'first');
  const none = await bytes('f32', 'none');
  t.true((await bytes('f32', 'cheap')) < 0.55 * none);
  t.true((await bytes('f32', 'layer')) < 0.25 * none);
  t.true((await bytes('bf16', 'none')) < 0.62 * none);
  t.true(stepBytes(await createTrainer(model), 'loss') < 0.15 * none);
});

test('a loss alone is that of the step, and changes nothing', async (t) => {
  using model = await createModel(SHAPES[0], { seed: 4, threads: 2, device: 'cpu' });
  const trainer = await createTrainer(model, { lr: 1e-3 });
  const before = weightsOf(model);
  const loss = await trainer.loss(batchAt(0));
  t.deepEqual(weightsOf(model), before);
  t.is((await trainer.step(batchAt(0))).loss, loss);
  t.true((await trainer.loss(batchAt(0))) < loss);
  const pending = trainer.loss(batchAt(1));
  await t.throwsAsync(trainer.step(batchAt(1)), { message: /free, got one that is still stepping/ });
  await pending;
});

test('batches of another shape share the memory of the largest', async (t) => {
  using model = await createModel(SHAPES[0], { seed: 4, threads: 2, device: 'cpu' });
  const trainer = await createTrainer(model, { lr: 0 });
  const first = await trainer.step(batchAt(0));
  await trainer.step(batchAt(0, 3, 100));
  await trainer.step([batchAt(0, 1, 10), batchAt(0, 1, 10)]);
  const again = await trainer.step(batchAt(0));
  t.deepEqual([again.loss, again.gradNorm], [first.loss, first.gradNorm]);
});

test('a node that writes to storage cannot be run again', (t) => {
  using device = Device.open('ref');
  const x = device.tensor([2], 'f32', 'x');
  const g = new Graph();
  g.recomputed(() => g.scope('layers.0', () => g.op('copy', { y: x }, { x })));
  t.throws(() => recompute(g, 1), { message: /layers\.0\.copy to write values alone, it writes x/ });
});

test('the matrices of products are those with a bf16 copy', (t) => {
  using device = Device.open('ref');
  t.is(device.info.backend, 'ref');
  const names = matrixNames({ layers: 1, tied: true } as MambaConfig);
  t.deepEqual(names, [
    ...['in_proj', 'x_proj', 'dt_proj', 'out_proj'].map((name) => `backbone.layers.0.mixer.${name}.weight`),
    'backbone.embedding.weight',
  ]);
});
