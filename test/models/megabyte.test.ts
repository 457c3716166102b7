// MegaByte against its PyTorch oracle, and against itself: through its caches in any pieces, wherever they begin in a patch,
// on every instruction set and with every weight type.
import { copyFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { convertModel } from '../../lib/convert.ts';
import { Graph } from '../../lib/graph.ts';
import { createModel, loadModel, ModelFormatError, presetConfig } from '../../lib/index.ts';
import type { Memory } from '../../lib/memory/memory.ts';
import type { CacheDType } from '../../lib/memory/region.ts';
import { architectureOf } from '../../lib/models/architectures.ts';
import { completeMegabyte } from '../../lib/models/megabyte.ts';
import { initialValues } from '../../lib/models/params.ts';
import { evaluate as run } from '../../lib/plan.ts';
import { nodeCost } from '../../lib/profile.ts';
import { decayOf } from '../../lib/train/options.ts';
import {
  decodingOfOracle,
  draftsAsDecoding,
  type fixtureOf,
  gradientsOfOracle,
  greedy,
  learnsByHeart,
  logitsOfOracle,
  savesAndLoads,
  verifiesAsDecoding,
} from '../support/baselines.ts';
import { compare, errors } from '../support/close.ts';
import { withDevice } from '../support/devices.ts';
import { FIXTURES, readFixture, readJson } from '../support/fixtures.ts';
import { folder } from '../support/folder.ts';
import { fresh, load, SAME_F32, sameAs, sameInPieces, targets } from '../support/language-models.ts';
import { Random } from '../support/random.ts';

const NAME = 'megabyte-tiny';
/** Patches that divide no chunk of a prompt. */
const SMALL = {
  architecture: 'megabyte',
  patchSize: 6,
  layers: 2,
  dModel: 32,
  heads: 4,
  keyHeads: 2,
  globalLayers: 2,
  globalDModel: 96,
  globalHeads: 4,
} as const;

/** What decoding keeps after the prompt of the fixture, as `State.data`. */
function stateOfOracle(get: ReturnType<typeof fixtureOf>['get']): number[] {
  const prompt = get('generate.prompt').values;
  const place = prompt.length % 4;
  const table = readFixture(join(NAME, 'model.safetensors')).get('global.embed_tokens.weight');
  const [, d = 0] = table?.shape ?? [];
  const kept = (model: string) =>
    [0, 1].flatMap((l) =>
      ['k', 'v'].flatMap((kind) => [...get(`generate.state.${model}.layers.${l}.self_attn.${kind}`).values]),
    );
  const ids = [...prompt.subarray(prompt.length - place)].flatMap((id) => [
    ...(table?.values.subarray(id * d, (id + 1) * d) ?? []),
  ]);
  return [place, ...kept('global'), ...kept('local'), ...get('generate.state.g').values, ...ids];
}

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

  test.serial(`decoding through both caches equals PyTorch · ${where}`, async (t) => {
    using model = await load(NAME, target);
    await decodingOfOracle(t, model, NAME, stateOfOracle);
  });

  for (const dtype of ['f32', 'bf16', 'int8'] as const) {
    test.serial(`step by step = prefill = chunked prefill · ${dtype} · ${where}`, async (t) => {
      const path = folder();
      {
        using made = await createModel(SMALL, { seed: 3, device: 'ref' });
        await made.save(path);
      }
      using model = await load(path, target, { dtype, threads: 1 });
      await sameInPieces(t, model, sameAs(dtype, target));
    });
  }

  if (target[0] !== 'ref') {
    const what = target[0] === 'cpu' ? 'bits' : 'results';
    test.serial(`verifying gives the ${what} of decoding · ${where}`, (t) => verifiesAsDecoding(t, SMALL, target));
  }
}

test.serial('the fixture in any pieces, with and without caches, is one function of its ids', async (t) => {
  // Rounding grows in this model until some rows err by 20 times the others, so it is held to this bar in double alone.
  using model = await load(NAME, ['ref', undefined]);
  await sameInPieces(t, model, SAME_F32);
  const { runtime, config, weights, architecture } = model;
  for (const T of [1, 3, 4, 5, 64, 103]) {
    const ids = Int32Array.from(new Random(6).integers(2 * T, 0, 256));
    const g = new Graph();
    const x = architecture.backbone(g, config, weights, runtime.tensorFrom(ids, [2, T], 'i32', 'ids'));
    const [whole = []] = await run(runtime, g, [architecture.head(g, config, weights, x)]);
    const rows = [await model.logits(ids.subarray(0, T)), await model.logits(ids.subarray(T))];
    t.is(compare(whole, Float32Array.from(rows.flatMap((row) => [...row])), SAME_F32), undefined, `${T} ids`);
  }
});

test.serial('any prefix of a verify pass can be accepted, more than once, across patches', async (t) => {
  using model = await createModel(SMALL, { seed: 3, device: 'cpu', threads: 2 });
  const ids = [...new Random(5).integers(90, 0, 256)];
  for (const from of [0, 1, 5, 6, 40]) {
    await fresh(model, async (session) => {
      const want = await session.logits(ids);
      await session.clear();
      await session.consume(ids.slice(0, from));
      const states: Float32Array[] = [];
      for (const id of ids.slice(from, from + 25)) {
        await session.consume([id]);
        states.push(session.readState());
      }
      await session.clear();
      await session.consume(ids.slice(0, from));
      await session.verify([...ids.slice(from, from + 25), 1, 2, 3]);
      for (const steps of [20, 3, 14, 1, 25, 7]) {
        await session.accept(steps);
        t.is(compare(session.readState(), states[steps - 1] ?? [], SAME_F32), undefined, `${steps} from ${from}`);
      }
      const got = await session.logits(ids.slice(from + 7));
      t.is(compare(got, want.subarray((from + 7) * 256), SAME_F32), undefined, `on from ${from}`);
    });
  }
});

test('caches of 16 bits are near those of f32, grow without the loss of a bit, and their states move', (t) =>
  withDevice('ref', { threads: 1 }, async (device) => {
    const config = completeMegabyte(SMALL);
    const { params, backbone, head, memory } = architectureOf(config);
    const weights = new Map(
      params(config).map((spec, i) => [
        spec.name,
        device.tensorFrom(
          initialValues({ ...spec, init: { kind: 'normal', std: 0.3 } }, 1, i),
          spec.shape,
          'f32',
          spec.name,
        ),
      ]),
    );
    const ids = Int32Array.from(new Random(2).integers(90, 0, 256));
    const made = (dtype: CacheDType) => memory(device, config, { batch: 1, mostVerified: 8, dtype });
    const read = async (from: Memory, at: number, count: number) => {
      await from.reserve(count);
      const g = new Graph();
      const part = device.tensorFrom(ids.subarray(at, at + count), [1, count], 'i32', 'ids');
      const x = backbone(g, config, weights, part, { state: from.reading(count).state() });
      const [logits] = await run(device, g, [head(g, config, weights, x)]);
      from.advanced(count);
      return logits as Float32Array;
    };
    const begin = async (from: Memory) => {
      await read(from, 0, 60);
      for (let at = 60; at < 63; at++) await read(from, at, 1);
    };
    const exact = made('f32');
    await begin(exact);
    const want = await read(exact, 63, 1);
    for (const [kept, least, most] of [
      ['bf16', 1e-5, 2e-2],
      ['f16', 1e-6, 2e-3],
    ] as const) {
      const rounded = made(kept);
      await begin(rounded);
      const state = rounded.read(0);
      t.is(rounded.stepsIn(state), 63);
      await rounded.reserve(1000);
      t.deepEqual(rounded.read(0), state);
      const other = made(kept);
      await other.reserve(63);
      other.write(0, state);
      t.deepEqual(other.read(0), state);
      const [near, moved] = [await read(rounded, 63, 1), await read(other, 63, 1)];
      t.deepEqual(moved, near);
      const e = errors(near, want);
      t.true(e.rms > least && e.rms < most, `${kept}: relative RMS ${e.rms}`);
    }
  }));

test.serial('states are saved, restored and forked wherever they are in a patch', async (t) => {
  using model = await createModel(SMALL, { seed: 4, device: 'cpu', threads: 2 });
  const [columns, wide] = [16, 96];
  const whole = await greedy(model, 'Once upon a time', { maxBytes: 60 });
  for (const made of [5, 6, 7, 8, 9, 10, 11]) {
    const state = model.createState();
    t.is(state.data.length, 0);
    const first = await greedy(model, 'Once upon a time', { state, maxBytes: made });
    const read = 15 + made;
    const [patches, place] = [Math.floor(read / 6) + 1, read % 6];
    const floats = 1 + 2 * 2 * wide * patches + 2 * 2 * columns * (place + 1) + 6 * 32 + place * 16;
    t.is(model.stateBytesAt(read), 4 * floats);
    t.is(state.toBytes().length, 32 + 4 * floats);
    const fork = state.clone();
    t.deepEqual([...first, ...(await greedy(model, '', { state: fork, maxBytes: 60 - made }))], whole);
    const restored = model.stateFromBytes(state.toBytes());
    t.deepEqual([...first, ...(await greedy(model, '', { state: restored, maxBytes: 60 - made }))], whole);
    t.deepEqual(restored.toBytes(), fork.toBytes());
    const wrong = state.toBytes();
    new DataView(wrong.buffer).setFloat32(32, 6, true);
    await t.throwsAsync(model.generate('', { state: model.stateFromBytes(wrong), maxBytes: 1 }).then(), {
      instanceOf: ModelFormatError,
      message: /be of patches of 6 ids/,
    });
  }
});

test.serial(
  'a batch of prompts that stand at different places of their patches is what each of them is alone',
  async (t) => {
    using model = await createModel(SMALL, { seed: 5, device: 'cpu', threads: 2 });
    // More than a batch has room for, ending after 0 to 60 bytes: others take their places, and the last move to a smaller one.
    const random = new Random(4);
    const prompts = Array.from({ length: 36 }, (_, i) => Uint8Array.from(random.integers(1 + ((i * 7) % 30), 0, 256)));
    const stop = Array.from({ length: 12 }, (_, i) => Uint8Array.of(20 * i));
    const options = { temperature: 1, maxBytes: 60, stop };
    const together = await model.generateBatch(prompts, { ...options, seed: 5 });
    for (const [i, prompt] of prompts.entries()) {
      const alone = await model.generate(prompt, { ...options, seed: 5 + i });
      t.deepEqual([...(together[i]?.bytes ?? [])], [...alone.bytes], `prompt ${i}`);
    }
  },
);

test.serial('it verifies and drafts without changing a byte', async (t) => {
  using large = await createModel(SMALL, { seed: 6, device: 'cpu', threads: 2 });
  using small = await createModel(
    { ...SMALL, patchSize: 4, layers: 1, globalLayers: 1 },
    { seed: 7, device: 'cpu', threads: 1 },
  );
  using mamba = await createModel({ layers: 2, dModel: 32 }, { seed: 8, device: 'cpu', threads: 1 });
  const pairs = [
    [large, small],
    [large, large],
    [large, mamba],
    [mamba, small],
    [large, 'lookup'],
  ] as const;
  await draftsAsDecoding(t, pairs, 'I');
});

test.serial('a small one learns 4 KiB by heart, and keeps it in int8', async (t) => {
  using model = await createModel(
    { ...SMALL, patchSize: 4, layers: 1, dModel: 64, globalLayers: 1, globalDModel: 128 },
    { seed: 2, device: 'cpu', threads: 2 },
  );
  await learnsByHeart(t, model, 300, 14, 3e-3);
});

test.serial('what is saved loads again, tied or not, and is no model of transformers', async (t) => {
  for (const tied of [true, false]) {
    using model = await createModel({ ...SMALL, tied, ropeTheta: 5000 }, { seed: 9, device: 'cpu', threads: 2 });
    await savesAndLoads(t, model);
    const path = folder();
    await model.save(path);
    await t.throwsAsync(convertModel(path, folder(), { to: 'hf' }), {
      instanceOf: ModelFormatError,
      message: /be one that transformers has, got a MegaByte/,
    });
  }
});

test('parameters and FLOPs follow the formulas of docs/baselines.md, and FLOPs what is recorded', (t) => {
  const config = completeMegabyte({
    ...SMALL,
    patchSize: 8,
    keyHeads: 2,
    dInner: 40,
    globalKeyHeads: 2,
    globalDInner: 144,
    tied: false,
  });
  const { params, flops, backbone, head } = architectureOf(config);
  const [M, V, D, C, F, n] = [8, 256, 32, 16, 40, 2];
  const [Dg, Cg, Fg, ng, d] = [96, 48, 144, 2, 12];
  const parameters = (D: number, C: number, F: number) => 2 * D * D + 2 * D * C + 3 * D * F + 2 * D;
  const count = params(config).reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
  const stacks = ng * parameters(Dg, Cg, Fg) + n * parameters(D, C, F);
  t.is(count, V * d + Dg + Dg + D * d + 2 * V * D + D + D + stacks);
  const [T, K] = [64, 8];
  const step = (D: number, C: number, F: number, keys: number) => 4 * D * D + 4 * D * C + 6 * D * F + 4 * D * keys;
  const want = (ng * step(Dg, Cg, Fg, (K + 1) / 2)) / M + n * step(D, C, F, (M + 1) / 2) + 2 * d * D + 2 * D * V;
  t.is(flops(config, T), want);
  // The ids of a window but its last, whose patches are those of the window; nothing predicts its first.
  const g = new Graph();
  const weights = new Map(params(config).map(({ name, shape }) => [name, g.value(shape)]));
  head(g, config, weights, backbone(g, config, weights, g.value([3, T - 1], 'i32')));
  const recorded = g.nodes.reduce((sum, node) => sum + nodeCost(node).flops, 0);
  t.is(recorded, 3 * (T * want - 2 * D * V));
});

test('the fixture is the model of its config, with the FLOPs that the oracle counted', async (t) => {
  using model = await loadModel(join(FIXTURES, NAME), { device: 'cpu', threads: 1 });
  t.like(model.config, {
    patchSize: 4,
    layers: 2,
    dModel: 16,
    keyHeads: 1,
    globalDModel: 32,
    globalKeyHeads: 4,
    tied: true,
  });
  t.is(model.parameters, 28576);
  t.is(model.flops(64), 27232);
  const { config } = model;
  const decayed = architectureOf(config)
    .params(config)
    .filter(({ name }) => decayOf(name, 1) === 1);
  t.true(decayed.every(({ shape }) => shape.length === 2));
  t.is(decayed.length, 3 + 4 * 7);
});

test('a shape is completed, a wrong one refused by field, and presets are near the size of their names', (t) => {
  const least = { layers: 2, dModel: 320, globalLayers: 3, globalDModel: 512 };
  t.deepEqual(completeMegabyte(least), {
    architecture: 'megabyte',
    patchSize: 8,
    globalLayers: 3,
    globalDModel: 512,
    globalHeads: 8,
    globalKeyHeads: 8,
    globalDInner: 1408,
    layers: 2,
    dModel: 320,
    heads: 5,
    keyHeads: 5,
    dInner: 896,
    vocab: 256,
    tied: true,
    normEps: 1e-5,
    ropeTheta: 10000,
  });
  for (const [config, message] of [
    [{ patchSize: 7 }, /globalDModel to be a multiple of the 7 bytes of a patch, got 512/],
    [{ patchSize: 1 }, /patchSize/],
    [{ globalLayers: undefined }, /globalLayers/],
    [{ globalHeads: 3 }, /globalHeads to split a width of 512/],
    [{ heads: 3 }, /heads to split a width of 320/],
    [{ dState: 16 }, /dState/],
    [{ tied: 1 }, /tied/],
  ] as const) {
    t.throws(() => completeMegabyte({ ...least, ...(config as object) }), { message });
  }
  for (const [name, millions] of [
    ['megabyte-5m', 5.3],
    ['megabyte-27m', 27],
    ['megabyte-758m+262m', 937],
  ] as const) {
    const config = presetConfig(name);
    const specs = architectureOf(config).params(config);
    const count = specs.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
    t.true(Math.abs(count / 1e6 / millions - 1) < 0.06, `${name} ${count}`);
  }
});

const JSON_OF = readJson<{ global: object; local: object }>(join(NAME, 'config.json'));
for (const [title, change, message] of [
  ['other sizes', { patch_size: 8 }, /patch_size 8 but 4 in the tensors/],
  ['other sizes of a part', { local: { ...JSON_OF.local, hidden_size: 32 } }, /hidden_size 32 but 16 in the tensors/],
  ['no part', { global: undefined }, /config\.json: expected global to be an object, got undefined/],
  ['no number of heads', { local: {} }, /config\.json: local: expected num_attention_heads to be there, got none/],
] as const) {
  test(`a checkpoint is refused: ${title}`, async (t) => {
    const path = folder();
    copyFileSync(join(FIXTURES, NAME, 'model.safetensors'), join(path, 'model.safetensors'));
    writeFileSync(join(path, 'config.json'), JSON.stringify({ ...JSON_OF, ...change }));
    await t.throwsAsync(loadModel(path, { device: 'cpu', threads: 1 }), { instanceOf: ModelFormatError, message });
  });
}
