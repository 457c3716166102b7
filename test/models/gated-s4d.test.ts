// Gated S4D against its PyTorch oracle, and against itself: as a convolution and as a recurrence, in any pieces, on every
// instruction set and with every weight type.
import { copyFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { convertModel } from '../../lib/convert.ts';
import { Graph } from '../../lib/graph.ts';
import { createModel, loadModel, ModelFormatError, presetConfig } from '../../lib/index.ts';
import { architectureOf } from '../../lib/models/architectures.ts';
import { completeGatedS4d, gatedS4dScanFlops } from '../../lib/models/gated-s4d.ts';
import { initialValues } from '../../lib/models/params.ts';
import { evaluate as run } from '../../lib/plan.ts';
import { nodeCost } from '../../lib/profile.ts';
import { decayOf } from '../../lib/train/options.ts';
import {
  batchesAsAlone,
  decodingOfOracle,
  draftsAsDecoding,
  gradientsOfOracle,
  greedy,
  learnsByHeart,
  logitsOfOracle,
  savesAndLoads,
  verifiesAsDecoding,
} from '../support/baselines.ts';
import { compare, TOLERANCES } from '../support/close.ts';
import { FIXTURES, readJson } from '../support/fixtures.ts';
import { folder } from '../support/folder.ts';
import { load, sameAs, sameInPieces, targets } from '../support/language-models.ts';
import { Random } from '../support/random.ts';

const NAME = 'gated-s4d-tiny';
const SMALL = { architecture: 'gated-s4d', layers: 2, dModel: 48, dState: 6 } as const;

for (const target of targets) {
  const where = target[1] ? `cpu ${target[1]}` : target[0];

  test.serial(`logits equal PyTorch in float64 · ${where}`, async (t) => {
    using model = await load(NAME, target);
    await logitsOfOracle(t, model, NAME);
  });

  test.serial(`loss and gradients equal PyTorch in float64 · ${where}`, async (t) => {
    using model = await load(NAME, target, { trainable: true });
    await gradientsOfOracle(t, model, NAME);
  });

  test.serial(`decoding from states equals PyTorch · ${where}`, async (t) => {
    using model = await load(NAME, target);
    await decodingOfOracle(t, model, NAME, (get) => [0, 1].flatMap((l) => [...get(`generate.state.${l}.h`).values]));
  });

  test.serial(`a convolution of whole sequences is the recurrence of their ids · ${where}`, async (t) => {
    using model = await load(NAME, target);
    const { runtime, config, weights, architecture } = model;
    const T = 700;
    const ids = Int32Array.from(new Random(6).integers(2 * T, 0, 256));
    const g = new Graph();
    const x = architecture.backbone(g, config, weights, runtime.tensorFrom(ids, [2, T], 'i32', 'ids'));
    const [convolved = []] = await run(runtime, g, [architecture.head(g, config, weights, x)]);
    const rows = [await model.logits(ids.subarray(0, T)), await model.logits(ids.subarray(T))];
    t.is(compare(convolved, Float32Array.from(rows.flatMap((row) => [...row])), TOLERANCES.long), undefined);
  });

  for (const dtype of ['f32', 'bf16', 'int8'] as const) {
    test.serial(`step by step = prefill = chunked prefill · ${dtype} · ${where}`, async (t) => {
      using model = await load(NAME, target, dtype === 'f32' ? {} : { dtype });
      await sameInPieces(t, model, sameAs(dtype, target));
    });
  }

  if (target[0] !== 'ref') {
    const what = target[0] === 'cpu' ? 'bits' : 'results';
    test.serial(`verifying gives the ${what} of decoding · ${where}`, (t) => verifiesAsDecoding(t, SMALL, target));
  }
}

test.serial('states are constant in size, saved, restored and forked', async (t) => {
  using model = await createModel(SMALL, { seed: 4, device: 'cpu', threads: 2 });
  t.is(model.stateBytesAt(1), 4 * 2 * 96 * 6);
  t.is(model.stateBytesAt(1000), model.stateBytesAt(1));
  const whole = await greedy(model, 'Once upon a time');
  const state = model.createState();
  const first = await greedy(model, 'Once upon a time', { state, maxBytes: 17 });
  const restored = model.stateFromBytes(state.toBytes());
  t.deepEqual([...first, ...(await greedy(model, '', { state: state.clone(), maxBytes: 23 }))], whole);
  t.deepEqual([...first, ...(await greedy(model, '', { state: restored, maxBytes: 23 }))], whole);
  using mamba = await createModel({ layers: 2, dModel: 48 }, { threads: 1 });
  t.throws(() => mamba.stateFromBytes(state.toBytes()), { instanceOf: ModelFormatError, message: /start with MBS1/ });
});

test.serial('a batch of prompts is what each of them is alone', async (t) => {
  using model = await createModel(SMALL, { seed: 5, device: 'cpu', threads: 2 });
  const prompts = ['a', 'It was a dark and stormy night; ', 'x'.repeat(130), 'The'];
  await batchesAsAlone(t, model, prompts, 50);
});

test.serial('it verifies and drafts without changing a byte', async (t) => {
  using large = await createModel(SMALL, { seed: 6, device: 'cpu', threads: 2 });
  using small = await createModel({ ...SMALL, layers: 1, dModel: 32 }, { seed: 7, device: 'cpu', threads: 1 });
  const drafters = [small, large, 'lookup'] as const;
  await draftsAsDecoding(
    t,
    drafters.map((draft) => [large, draft]),
    'It was a dark',
  );
});

test.serial('a small one learns 4 KiB by heart, and keeps it in int8', async (t) => {
  using model = await createModel({ ...SMALL, layers: 1, dModel: 64, dState: 16 }, { seed: 2, threads: 2 });
  await learnsByHeart(t, model, 420, 2);
});

test.serial('what is saved loads again, and is no model of transformers', async (t) => {
  using model = await createModel({ ...SMALL, tied: true }, { seed: 9, device: 'cpu', threads: 2 });
  await savesAndLoads(t, model);
  const path = folder();
  await model.save(path);
  await t.throwsAsync(convertModel(path, folder(), { to: 'hf' }), {
    instanceOf: ModelFormatError,
    message: /be one that transformers has, got a gated S4D/,
  });
});

test('parameters, FLOPs and state follow the formulas of docs/baselines.md, and FLOPs what is recorded', (t) => {
  const config = completeGatedS4d({ layers: 3, dModel: 96, dInner: 160, dState: 10 });
  const { params, flops, state, backbone, head } = architectureOf(config);
  const [D, E, N, V, n, T] = [96, 160, 10, 256, 3, 64];
  const count = params(config).reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
  t.is(count, 2 * V * D + n * (3 * D * E + 2 * E + 2 * E * N + D) + D);
  t.is(flops(config, T), n * (6 * D * E + E * (7 * N + 3)) + 2 * D * V);
  t.is(state.floats(config, 10), n * E * N);
  const g = new Graph();
  const weights = new Map(params(config).map(({ name, shape }) => [name, g.value(shape)]));
  head(g, config, weights, backbone(g, config, weights, g.value([3, T], 'i32')));
  const products = g.nodes.reduce((sum, node) => sum + nodeCost(node).flops, 0);
  t.is(products, 3 * T * (flops(config, T) - n * gatedS4dScanFlops(config)));
});

test('a shape is completed, a wrong one refused by field, and presets are near the size of their names', (t) => {
  t.deepEqual(completeGatedS4d({ layers: 2, dModel: 320 }), {
    architecture: 'gated-s4d',
    layers: 2,
    dModel: 320,
    dInner: 640,
    dState: 64,
    vocab: 256,
    tied: false,
    normEps: 1e-5,
  });
  for (const [config, message] of [
    [{ dState: 7 }, /dState to be even, got 7/],
    [{ dState: 0 }, /dState/],
    [{ heads: 4 }, /heads/],
    [{ tied: 1 }, /tied/],
  ] as const) {
    t.throws(() => completeGatedS4d({ layers: 1, dModel: 64, ...(config as object) }), { message });
  }
  for (const millions of [5, 20, 27, 353]) {
    const config = presetConfig(`gated-s4d-${millions}m`);
    const specs = architectureOf(config).params(config);
    const count = specs.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
    t.true(Math.abs(count / 1e6 / millions - 1) < 0.06, `${count}`);
  }
});

test('initial values and weight decay are those of docs/baselines.md', (t) => {
  const config = completeGatedS4d({ layers: 2, dModel: 64, dState: 8 });
  const specs = architectureOf(config).params(config);
  const start = (name: string) => {
    const i = specs.findIndex((spec) => spec.name === `backbone.layers.1.mixer.${name}`);
    return specs[i] ? initialValues(specs[i], 5, i) : new Float32Array();
  };
  const steps = [...start('log_dt')];
  t.true(steps.every((x) => x >= Math.fround(Math.log(1e-3)) && x <= Math.log(0.1)));
  t.true(Math.abs(steps.reduce((a, b) => a + b) / 128 - Math.log(0.01)) < 0.4);
  t.deepEqual(
    [...start('A_imag').subarray(4, 8)],
    [0, 1, 2, 3].map((m) => Math.fround(m * Math.PI)),
  );
  t.true(start('log_A_real').every((x) => x === Math.fround(Math.log(0.5))));
  const C = start('C');
  t.true(Math.abs(Math.hypot(...C) / Math.sqrt(C.length) - Math.SQRT1_2) < 0.05);
  const decayed = specs
    .filter(({ name }) => decayOf(name, 1) === 1)
    .map(({ name }) => name.split('.').slice(-2).join('.'));
  t.deepEqual([...new Set(decayed)].sort(), [
    'embedding.weight',
    'in_proj.weight',
    'lm_head.weight',
    'mixer.C',
    'out_proj.weight',
  ]);
});

test('the fixture is the model of its config, with the FLOPs that the oracle counted', async (t) => {
  using model = await loadModel(join(FIXTURES, NAME), { device: 'cpu', threads: 1 });
  t.like(model.config, { architecture: 'gated-s4d', layers: 2, dModel: 32, dInner: 64, dState: 8, tied: false });
  t.is(model.parameters, 31072);
  t.is(model.flops(64), 48512);
});

const JSON_OF = readJson<Record<string, unknown>>(join(NAME, 'config.json'));
for (const [title, change, message] of [
  ['other sizes', { d_model: 48, d_state: 16 }, /d_model 48 but 32, d_state 16 but 8 in the tensors/],
  ['another architecture', { architecture: 'transformer' }, /none named model\.embed_tokens\.weight/],
  ['a wrong type', { n_layer: 'two' }, /n_layer to be a positive integer, got "two"/],
] as const) {
  test(`a checkpoint is refused: ${title}`, async (t) => {
    const path = folder();
    copyFileSync(join(FIXTURES, NAME, 'model.safetensors'), join(path, 'model.safetensors'));
    writeFileSync(join(path, 'config.json'), JSON.stringify({ ...JSON_OF, ...change }));
    await t.throwsAsync(loadModel(path, { device: 'cpu', threads: 1 }), { instanceOf: ModelFormatError, message });
  });
}
