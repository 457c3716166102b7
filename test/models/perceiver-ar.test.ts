// PerceiverAR against its own oracle in PyTorch (scripts/oracle/perceiver_ar.py), and against itself: read in any pieces, and
// through any number of blocks of latents, it is what it is in one.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { convertModel } from '../../lib/convert.ts';
import { Graph } from '../../lib/graph.ts';
import {
  createModel,
  createTrainer,
  DataError,
  evaluate,
  inspectModel,
  loadModel,
  ModelFormatError,
  OutOfMemoryError,
  train,
} from '../../lib/index.ts';
import { architectureOf } from '../../lib/models/architectures.ts';
import { completePerceiverAr } from '../../lib/models/perceiver-ar.ts';
import { type Plan, evaluate as run } from '../../lib/plan.ts';
import { nodeCost } from '../../lib/profile.ts';
import {
  acceptsAnyPrefix,
  batchesAsAlone,
  decodingOfOracle,
  draftsAsDecoding,
  type fixtureOf,
  goesOnElsewhere,
  gradientsOfOracle,
  greedy,
  learnsByHeart,
  logitsOfOracle,
  verifiesAsDecoding,
} from '../support/baselines.ts';
import { compare, errors } from '../support/close.ts';
import { FIXTURES } from '../support/fixtures.ts';
import { fileOf, folder } from '../support/folder.ts';
import { corpus, fresh, load, SAME_F32, sameAs, sameInPieces, targets } from '../support/language-models.ts';
import { Random } from '../support/random.ts';

const NAME = 'perceiver-ar-tiny';

/** A byte model whose heads are whole vectors, with fewer heads of keys, and blocks that overlap by more than half. */
const SMALL = {
  architecture: 'perceiver-ar',
  layers: 2,
  dModel: 64,
  heads: 4,
  keyHeads: 2,
  latents: 40,
  latentStride: 13,
} as const;

/** The oracle's caches: the latents of the block, what they read, their inputs, and their own keys and values. */
function stateOfOracle(get: ReturnType<typeof fixtureOf>['get']): number[] {
  const state = (name: string) => [...get(`generate.state.${name}`).values];
  const attention = (prefix: string) => ['k', 'v'].flatMap((kind) => state(`${prefix}.${kind}`));
  const layers = [0, 1].flatMap((l) => attention(`model.layers.${l}.self_attn`));
  return [6, ...attention('model.cross.cross_attn'), ...state('y'), ...layers];
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

  test.serial(`decoding through the caches equals PyTorch · ${where}`, async (t) => {
    using model = await load(NAME, target);
    await decodingOfOracle(t, model, NAME, stateOfOracle);
  });

  for (const dtype of ['f32', 'bf16', 'int8'] as const) {
    test.serial(`step by step = prefill = chunked prefill · ${dtype} · ${where}`, async (t) => {
      using model = await load(NAME, target, { threads: 1, ...(dtype === 'f32' ? {} : { dtype }) });
      await sameInPieces(t, model, sameAs(dtype, target));
    });
  }

  if (target[0] !== 'ref') {
    const what = target[0] === 'cpu' ? 'bits' : 'results';
    test.serial(`verifying gives the ${what} of decoding · ${where}`, (t) => {
      // 105 = 40 + 5 x 13: a block is full.
      const drafts = { read: 105, drafted: 13, pieces: [2, 3, 8, 9, 13] };
      return verifiesAsDecoding(t, SMALL, target, drafts, async (session, drafted) => {
        t.is(session.verifiable, 13);
        await session.consume(drafted.slice(0, 3));
        await t.throwsAsync(session.verify(drafted.slice(0, 11)), { instanceOf: RangeError, message: /10, got 11/ });
      });
    });
  }
}

for (const [latents, latentStride] of [
  [40, 40],
  [40, 1],
  [1, 1],
  [300, 150],
] as const) {
  test.serial(`blocks of ${latents} at every ${latentStride}: in pieces as in one`, async (t) => {
    const shape = { ...SMALL, latents, latentStride };
    using model = await createModel(shape, { seed: 3, device: 'cpu', threads: 1 });
    await sameInPieces(t, model, SAME_F32);
  });
}

test.serial('training on N + j S ids computes the last S rows as scoring does', async (t) => {
  using model = await createModel(SMALL, { seed: 3, device: 'cpu', threads: 2 });
  const { architecture, config, weights, runtime } = model;
  const [T, N, S, V] = [40 + 2 * 13, 40, 13, 256];
  const ids = Int32Array.from(new Random(6).integers(2 * T, 0, 256));
  const g = new Graph();
  const x = architecture.backbone(g, config, weights, runtime.tensorFrom(ids, [2, T], 'i32', 'ids'));
  t.deepEqual(x.shape, [2, N, 64]);
  const [trained = []] = await run(runtime, g, [architecture.head(g, config, weights, x)]);
  for (const b of [0, 1]) {
    const scored = await model.logits(ids.subarray(b * T, (b + 1) * T));
    const got = trained.slice((b * N + N - S) * V, (b + 1) * N * V);
    t.is(compare(got, scored.subarray((T - S) * V), SAME_F32), undefined, `row ${b}`);
  }
});

test.serial('any prefix of a verify pass can be accepted, more than once', async (t) => {
  using model = await createModel(SMALL, { seed: 3, device: 'cpu', threads: 2 });
  await acceptsAnyPrefix(t, model, 120, 66);
});

test.serial('states are saved, restored and forked on both sides of the edge of a block', async (t) => {
  using model = await createModel(SMALL, { seed: 4, device: 'cpu', threads: 2 });
  const whole = await greedy(model, 'Once upon a time', { maxBytes: 90 });
  for (const cut of [23, 24, 25, 26, 37, 38]) {
    const state = model.createState();
    t.is(state.data.length, 0);
    const first = await greedy(model, 'Once upon a time', { state, maxBytes: cut });
    const bytes = state.toBytes();
    t.is(bytes.length, 32 + model.stateBytesAt(15 + cut));
    const fork = state.clone();
    t.deepEqual([...first, ...(await greedy(model, '', { state: fork, maxBytes: 90 - cut }))], whole);
    t.deepEqual(state.toBytes(), bytes);
    const restored = model.stateFromBytes(bytes);
    t.deepEqual([...first, ...(await greedy(model, '', { state: restored, maxBytes: 90 - cut }))], whole);
    t.deepEqual(restored.toBytes(), fork.toBytes());
  }
  const state = model.createState();
  await greedy(model, 'Once upon a time', { state, maxBytes: 60 });
  const bytes = state.toBytes();
  new DataView(bytes.buffer).setFloat32(32, 7, true);
  const wrong = model.stateFromBytes(bytes);
  await t.throwsAsync(greedy(model, '', { state: wrong }), {
    instanceOf: ModelFormatError,
    message: /latents of its block to be 36 after 75 ids, got 7/,
  });
  using other = await createModel({ ...SMALL, latentStride: 12 }, { seed: 4, device: 'cpu', threads: 1 });
  t.throws(() => other.stateFromBytes(state.toBytes()), { instanceOf: ModelFormatError, message: /stride/ });
  t.throws(() => other.generate('x', { state }), { instanceOf: TypeError, message: /shape/ });
  const scored = model.createState();
  const text = 'The lamp on the harbour wall had burned since before the town was built';
  const [a, b] = [
    await model.score(text.slice(0, 45), { state: scored }),
    await model.score(text.slice(45), { state: scored }),
  ];
  t.true(Math.abs(a.nats + b.nats - (await model.score(text)).nats) < 1e-3);
});

test.serial('a state goes on on another device', (t) => goesOnElsewhere(t, SMALL, 60, 33));

test.serial('a batch of prompts in different phases is what each of them is alone', async (t) => {
  using model = await createModel(SMALL, { seed: 5, device: 'cpu', threads: 2 });
  const prompts = ['a', 'It was a dark and stormy night; ', 'x'.repeat(130), 'Call me', 'The'];
  await batchesAsAlone(t, model, prompts, 70);
});

test.serial('texts that are read together are what each of them is alone', async (t) => {
  using model = await createModel(SMALL, { seed: 5, device: 'cpu', threads: 2 });
  const texts = [150, 60, 97].map((length, i) => new Random(i).integers(length, 0, 256));
  const together = await model.withSession(async (session) => {
    await session.clear();
    return session.nllOfAll(texts, 45);
  }, 3);
  for (const [i, text] of texts.entries()) {
    const { nll } = await model.score(Int32Array.from(text));
    t.is(compare(together[i] ?? [], nll.subarray(45), SAME_F32), undefined, `text ${i}`);
  }
});

test.serial('of a long text many blocks are scored at once', async (t) => {
  using model = await createModel(SMALL, { seed: 5, device: 'cpu', threads: 2 });
  const plans: Plan[] = [];
  model.runtime.onPlan = (plan) => plans.push(plan);
  const runs = () => plans.reduce((sum, { steps }) => sum + steps, 0);
  const text = Int32Array.from(new Random(7).integers(40 + 42 * 13 + 7, 0, 256));
  const { nll } = await model.score(text);
  // 32 + 8 ids, then 5 x 8 blocks and 2, each through at most 512 rows, then a block that is begun, and 4 + 2 ids.
  t.is(runs(), 2 + 5 + 1 + 1 + 2);
  const each = await fresh(model, async (session) => {
    const out: number[] = [];
    for (let i = 0; i + 1 < text.length; i++) out.push(...(await session.nll(text.subarray(i, i + 2))));
    return out;
  });
  t.true(runs() > text.length);
  t.is(compare(nll, Float32Array.from(each), SAME_F32), undefined);
});

test.serial('evaluation scores the end of windows, which training learns from', async (t) => {
  using model = await createModel(SMALL, { seed: 5, device: 'cpu', threads: 2 });
  const data = fileOf('text', corpus(900));
  const nats = async (options: object) => (await evaluate(model, data, options)).nats;
  t.is(await nats({ context: 100 }), await nats({ context: 100, stride: 40 }));
  t.not(await nats({ context: 100 }), await nats({ context: 100, stride: 50 }));
  t.is(await nats({ context: 50 }), await nats({ context: 50, stride: 25 }));
});

test.serial('it verifies and drafts without changing a byte', async (t) => {
  using model = await createModel(SMALL, { seed: 6, device: 'cpu', threads: 2 });
  using mamba = await createModel({ layers: 2, dModel: 32 }, { seed: 8, device: 'cpu', threads: 1 });
  const pairs = [
    [model, mamba],
    [model, model],
    [model, 'lookup'],
    [mamba, model],
  ] as const;
  await draftsAsDecoding(t, pairs, 'It was a dark');
});

for (const latentStride of [1, 3, 12, 20]) {
  test.serial(`going back over the edges of blocks at every ${latentStride}`, async (t) => {
    using model = await createModel({ ...SMALL, latents: 20, latentStride }, { seed: 6, device: 'cpu', threads: 2 });
    const random = new Random(12);
    const ring = model.borrowRing();
    const text = random.integers(31, 0, 256);
    const whole = [...text];
    await ring.reset(text);
    const start = text.length - 1;
    for (let turn = 0; turn < 12; turn++) {
      const [back, on] = random.integers(2, 0, 13) as unknown as [number, number];
      ring.position = Math.max(ring.oldest, ring.position - back);
      whole.length = start + ring.position;
      for (const id of random.integers(1 + on, 0, 256)) {
        await ring.step(id);
        whole.push(id);
      }
      const want = (await model.logits(Int32Array.from(whole))).subarray(-256);
      t.is(compare(ring.logits, want, SAME_F32), undefined, `turn ${turn}, ${whole.length} ids`);
    }
    ring.dispose();
  });
}

test.serial('where reading a prompt is ended midway, nothing is left of it', async (t) => {
  using model = await createModel(SMALL, { seed: 6, device: 'cpu', threads: 2 });
  const ids = [...new Random(5).integers(700, 0, 256)];
  const ending = { aborted: 0 };
  const signal = {
    throwIfAborted: () => {
      if (ending.aborted++ > 0) throw new Error('ended');
    },
  } as unknown as AbortSignal;
  await fresh(model, async (session) => {
    const want = await session.logits(ids.slice(0, 50));
    await session.clear();
    await t.throwsAsync(session.consume(ids, signal), { message: 'ended' });
    t.is(session.readState().length, 0);
    t.is(compare(await session.logits(ids.slice(0, 50)), want, SAME_F32), undefined);
  });
});

test.serial('where memory is short for one of its caches, the other may have moved', async (t) => {
  using model = await createModel({ ...SMALL, latents: 300 }, { seed: 1, device: 'cpu', threads: 1 });
  const { runtime } = model;
  const alloc = runtime.alloc.bind(runtime);
  let most = Infinity;
  runtime.alloc = (bytes) => {
    if (bytes > most) throw new OutOfMemoryError(`no ${bytes} bytes`);
    return alloc(bytes);
  };
  const ids = [...new Random(5).integers(140, 0, 256)];
  await fresh(model, async (session) => {
    const want = await session.logits(ids);
    await model.withSession(async (other) => {
      await other.logits(ids.slice(0, 60));
      // Keys and values of 192 steps and one layer, but not of two.
      most = 2 * 4 * 32 * 192;
      await t.throwsAsync(other.logits(ids.slice(60)), {
        instanceOf: OutOfMemoryError,
        message: /a cache of 192 steps/,
      });
      most = Infinity;
      t.is(compare(await other.logits(ids.slice(60, 63)), want.subarray(60 * 256, 63 * 256), SAME_F32), undefined);
      t.is(compare(await other.logits(ids.slice(63)), want.subarray(63 * 256), SAME_F32), undefined);
    });
  });
});

test.serial('a small PerceiverAR learns 4 KiB by heart, and keeps it in int8', async (t) => {
  const shape = {
    architecture: 'perceiver-ar',
    layers: 1,
    dModel: 64,
    heads: 4,
    latents: 32,
    latentStride: 8,
  } as const;
  using model = await createModel(shape, { seed: 2, device: 'cpu', threads: 2 });
  // Of the windows' first halves nothing is learned, and evaluation scores them too.
  await learnsByHeart(t, model, 420, 14);
});

test.serial('windows must be whole where only their end is learned from', async (t) => {
  using model = await createModel(SMALL, { seed: 1, device: 'cpu', threads: 1 });
  const trainer = await createTrainer(model);
  const padded = (T: number) => Int32Array.from({ length: T + 1 }, (_, i) => (i < T - 3 ? 1 : -1));
  await t.throwsAsync(trainer.step({ bytes: padded(60), batch: 1 }), {
    instanceOf: RangeError,
    message: /hold no padding, for perceiver-ar learns from the last 40 of 60 ids, got one that is shorter/,
  });
  t.true((await trainer.step({ bytes: padded(40), batch: 1 })).loss > 0);
  const data = fileOf('text', Buffer.from(`${'word '.repeat(40)}\n\f\nshort`));
  const config = { ...SMALL, layers: 1 };
  const trained = (context: number) =>
    train({ config, data, out: join(folder(), 'run'), steps: 2, batch: 2, context, device: 'cpu', threads: 1 });
  await t.throwsAsync(trained(60), {
    instanceOf: DataError,
    message: /document 1 to hold a window of 61 bytes, got 5 bytes/,
  });
  t.is((await trained(40)).stopped, 'done');
});

test.serial('what is saved loads again, and transformers has no such model', async (t) => {
  using model = await createModel({ ...SMALL, ropeTheta: 5000, tied: true }, { seed: 9, device: 'cpu', threads: 2 });
  const [own, narrow] = [folder(), folder()];
  await model.save(own);
  await convertModel(own, narrow, { dtype: 'bf16' });
  const logits = await model.logits('The same');
  for (const path of [own, narrow]) {
    using loaded = await loadModel(path, { device: 'cpu', threads: 2 });
    t.deepEqual(loaded.config, model.config);
    t.deepEqual(loaded.warnings, []);
    const e = errors(await loaded.logits('The same'), logits);
    t.true(path === own ? e.rms === 0 : e.rms < 1e-2, `${e.rms}`);
  }
  t.like(JSON.parse(readFileSync(join(own, 'config.json'), 'utf8')), {
    architecture: 'perceiver-ar',
    num_latents: 40,
    latent_stride: 13,
    rope_theta: 5000,
    tie_word_embeddings: true,
  });
  t.like(await inspectModel(own), { config: model.config, parameters: model.parameters });
  await t.throwsAsync(convertModel(own, folder(), { to: 'hf' }), {
    instanceOf: ModelFormatError,
    message: /one of transformers, got a PerceiverAR/,
  });
});

test('parameters, FLOPs and state follow the formulas of docs/baselines.md, and FLOPs what is recorded', (t) => {
  const shape = { layers: 3, dModel: 96, heads: 6, keyHeads: 2, dInner: 160, latents: 24, latentStride: 9 };
  const config = completePerceiverAr(shape);
  const { params, flops, state, backbone, head } = architectureOf(config);
  const [D, C, F, V, n, N] = [96, 32, 160, 256, 3, 24];
  const block = 2 * D * D + 2 * D * C + 3 * D * F + 2 * D;
  const count = params(config).reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
  t.is(count, 2 * V * D + block + D + n * block + D);
  const step = (keys: number) => 4 * D * D + 4 * D * C + 6 * D * F + 4 * D * keys;
  const cross = (T: number) => 4 * D * C * T + N * (4 * D * D + 6 * D * F + 4 * D * (T - (N - 1) / 2));
  t.is(flops(config, 64), (cross(64) + N * n * step((N + 1) / 2) + 2 * N * D * V) / N);
  t.is(state.floats(config, 0), 0);
  t.is(state.floats(config, 10), 1 + 2 * C * 10 + (2 * n * C + D) * 10);
  t.is(state.floats(config, 100), 1 + 2 * C * 100 + (2 * n * C + D) * N);
  const weightsIn = (g: Graph) => new Map(params(config).map(({ name, shape }) => [name, g.value(shape)]));
  for (const T of [5, 24, 64]) {
    const g = new Graph();
    const weights = weightsIn(g);
    head(g, config, weights, backbone(g, config, weights, g.value([3, T], 'i32')));
    const recorded = g.nodes.reduce((sum, node) => sum + nodeCost(node).flops, 0);
    t.true(Math.abs(recorded / (3 * Math.min(N, T) * flops(config, T)) - 1) < 1e-12, `${T}`);
  }
});

test('a shape is completed, and a wrong one refused by field', (t) => {
  t.deepEqual(completePerceiverAr({ layers: 2, dModel: 320, latents: 7 }), {
    architecture: 'perceiver-ar',
    layers: 2,
    dModel: 320,
    heads: 5,
    keyHeads: 5,
    dInner: 896,
    vocab: 256,
    tied: false,
    normEps: 1e-5,
    ropeTheta: 10000,
    latents: 7,
    latentStride: 4,
  });
  t.like(completePerceiverAr({ layers: 2, dModel: 320 }), { latents: 1024, latentStride: 512 });
  for (const [config, message] of [
    [{ heads: 3 }, /heads to split a width of 64 into heads of even width, got 3/],
    [{ latents: 0 }, /latents to be/],
    [{ latents: 4, latentStride: 5 }, /latentStride to be/],
    [{ dState: 16 }, /dState/],
  ] as const) {
    t.throws(() => completePerceiverAr({ layers: 1, dModel: 64, ...(config as object) }), { message });
  }
});

for (const [title, change, message] of [
  ['no number of latents', { num_latents: undefined }, /num_latents to be there, got none/],
  ['a stride above it', { latent_stride: 9 }, /latentStride to be/],
  ['no cross layer', { architecture: 'transformer' }, /unknown model\.cross/],
  ['other sizes', { hidden_size: 48 }, /hidden_size 48 but 32/],
] as const) {
  test(`a checkpoint is refused: ${title}`, async (t) => {
    const path = folder();
    const { copyFileSync, writeFileSync } = await import('node:fs');
    copyFileSync(join(FIXTURES, NAME, 'model.safetensors'), join(path, 'model.safetensors'));
    const json = JSON.parse(readFileSync(join(FIXTURES, NAME, 'config.json'), 'utf8'));
    writeFileSync(join(path, 'config.json'), JSON.stringify({ ...json, ...change }));
    await t.throwsAsync(loadModel(path, { device: 'cpu', threads: 1 }), { instanceOf: ModelFormatError, message });
  });
}
