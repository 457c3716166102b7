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
  type Model,
  ModelFormatError,
  OutOfMemoryError,
  train,
} from '../../lib/index.ts';
import { architectureOf } from '../../lib/models/architectures.ts';
import { completePerceiverAr } from '../../lib/models/perceiver-ar.ts';
import { evaluate as run } from '../../lib/plan.ts';
import { nodeCost } from '../../lib/profile.ts';
import { compare, errors, GRADIENTS, LOGITS } from '../support/close.ts';
import { FIXTURES, readFixture } from '../support/fixtures.ts';
import { fileOf, folder } from '../support/folder.ts';
import {
  corpus,
  fresh,
  load,
  overfit,
  SAME_BF16,
  SAME_F32,
  sameInPieces,
  targets,
} from '../support/language-models.ts';
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

const tensors = readFixture(join(NAME, 'fixture.safetensors'));
const get = (key: string) => {
  const found = tensors.get(key);
  if (!found) throw new Error(`${NAME}: no ${key}`);
  return found;
};
const ids = (key: string) => Int32Array.from(get(key).values);

for (const target of targets) {
  const where = target[1] ? `cpu ${target[1]}` : target[0];
  const rounds = target[1] === 'avx512' || target[1] === 'amx' || target[0] === 'cuda';

  test.serial(`logits equal PyTorch in float64 · ${where}`, async (t) => {
    using model = await load(NAME, target);
    for (const [key, { shape, values }] of tensors) {
      if (!key.startsWith('ids.')) continue;
      const [rows = 0, T = 0] = shape;
      const got: number[] = [];
      for (let r = 0; r < rows; r++)
        got.push(...(await model.logits(Int32Array.from(values.subarray(r * T, (r + 1) * T)))));
      t.is(compare(got, get(`logits.${T}`).values, LOGITS), undefined, `${T} ids`);
    }
  });

  test.serial(`loss and gradients equal PyTorch in float64 · ${where}`, async (t) => {
    using model = await load(NAME, target, { trainable: true });
    // With beta1 = 0 AdamW's first moment is the gradient itself.
    const trainer = await createTrainer(model, { lr: 0, betas: [0, 0.95], clip: 0, precision: 'f32' });
    const { loss } = await trainer.step({ bytes: ids('train.rows'), batch: 2 });
    t.is(compare([loss], get('train.loss').values, { rms: 1e-6, worst: 1e-6 }), undefined);
    const { m } = trainer.optimizerState();
    t.is(m.size, model.weights.size);
    for (const [parameter, gradient] of m) {
      t.is(compare(gradient, get(`train.grad.${parameter}`).values, GRADIENTS), undefined, parameter);
    }
  });

  test.serial(`decoding through the caches equals PyTorch · ${where}`, async (t) => {
    using model = await load(NAME, target);
    const [prompt, continuation] = [ids('generate.prompt'), ids('generate.continuation')];
    await fresh(model, async (session) => {
      const logits = [(await session.logits(prompt)).subarray(-256)];
      const state = (name: string) => [...get(`generate.state.${name}`).values];
      const attention = (prefix: string) => ['k', 'v'].flatMap((kind) => state(`${prefix}.${kind}`));
      const layers = [0, 1].flatMap((l) => attention(`model.layers.${l}.self_attn`));
      const want = [6, ...attention('model.cross.cross_attn'), ...state('y'), ...layers];
      const got = session.readState();
      t.is(compare(got.subarray(0, want.length), want, LOGITS), undefined, 'what is kept after the prompt');
      t.deepEqual(got.length, model.architecture.state.floats(model.config, prompt.length));
      for (const id of continuation.subarray(0, -1)) logits.push(await session.logits([id]));
      const all = Float32Array.from(logits.flatMap((row) => [...row]));
      t.is(compare(all, get('generate.logits').values, LOGITS), undefined);
      await session.clear();
      await session.consume(prompt.subarray(0, -1));
      const settings = { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed: 0 };
      const loop = await session.startDecoding([{ settings, pending: prompt.at(-1) ?? 0 }]);
      const made: number[] = [];
      while (made.length < continuation.length) {
        made.push(...(await loop.run({ steps: continuation.length - made.length })).watched);
      }
      t.deepEqual(made, [...continuation]);
    });
  });

  for (const dtype of ['f32', 'bf16', 'int8'] as const) {
    test.serial(`step by step = prefill = chunked prefill · ${dtype} · ${where}`, async (t) => {
      using model = await load(NAME, target, { threads: 1, ...(dtype === 'f32' ? {} : { dtype }) });
      await sameInPieces(t, model, rounds && dtype !== 'f32' ? SAME_BF16 : SAME_F32);
    });
  }

  if (target[0] !== 'ref') {
    const bits = target[0] === 'cpu';
    test.serial(`verifying gives the ${bits ? 'bits' : 'results'} of decoding · ${where}`, async (t) => {
      const path = folder();
      {
        using made = await createModel(SMALL, { seed: 3, device: 'ref' });
        await made.save(path);
      }
      const before = [...new Random(9).integers(105, 0, 256)];
      const drafted = [...new Random(8).integers(13, 0, 256)];
      for (const dtype of ['f32', 'bf16', 'int8'] as const) {
        using model = await load(path, target, { dtype });
        await fresh(model, async (session) => {
          // 105 = 40 + 5 x 13: a block is full.
          await session.consume(before);
          const start = session.readState();
          t.is(session.verifiable, 13);
          const logits: Float32Array[] = [];
          for (const id of drafted) logits.push((await session.verify([id])).logits());
          const state = session.readState();
          for (const K of [2, 3, 8, 9, 13]) {
            await session.writeState(start);
            for (let at = 0; at < 13; at += K) {
              const got = (await session.verify(drafted.slice(at, at + K))).logits();
              const want = Float32Array.from(logits.slice(at, at + K).flatMap((row) => [...row]));
              if (bits) t.deepEqual(got, want, `${dtype}, by ${K} at ${at}`);
              else t.is(compare(got, want, SAME_BF16), undefined, `${dtype}, by ${K} at ${at}`);
            }
            if (bits) t.deepEqual(session.readState(), state, `${dtype}, state by ${K}`);
          }
          await session.writeState(start);
          await session.consume(drafted.slice(0, 3));
          await t.throwsAsync(session.verify(drafted.slice(0, 11)), { instanceOf: RangeError, message: /10, got 11/ });
        });
      }
    });
  }
}

const greedy = (model: Model, prompt: string, options: object = {}) =>
  model.generate(prompt, { temperature: 0, maxBytes: 40, ...options }).then(({ bytes }) => [...bytes]);

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
  const ids = [...new Random(5).integers(120, 0, 256)];
  await fresh(model, async (session) => {
    const want = await session.logits(ids);
    await session.clear();
    await session.consume(ids.slice(0, 66));
    await session.verify([...ids.slice(66, 71), 1, 2, 3]);
    await session.accept(7);
    await session.accept(2);
    await session.accept(5);
    t.is(compare(await session.logits(ids.slice(71)), want.subarray(71 * 256), SAME_F32), undefined);
  });
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

test.serial('a state goes on on another device', async (t) => {
  using one = await createModel(SMALL, { seed: 4, device: 'ref', threads: 1 });
  using other = await createModel(SMALL, { seed: 4, device: 'cpu', threads: 1 });
  const whole = await greedy(one, 'Once upon a time', { maxBytes: 60 });
  const state = one.createState();
  const first = await greedy(one, 'Once upon a time', { state, maxBytes: 33 });
  const moved = other.stateFromBytes(state.toBytes());
  t.deepEqual([...first, ...(await greedy(other, '', { state: moved, maxBytes: 27 }))], whole);
});

test.serial('a batch of prompts in different phases is what each of them is alone', async (t) => {
  using model = await createModel(SMALL, { seed: 5, device: 'cpu', threads: 2 });
  const prompts = ['a', 'It was a dark and stormy night; ', 'x'.repeat(130), 'Call me', 'The'];
  const maxBytes = 70;
  const together = await model.generateBatch(prompts, { temperature: 0, maxBytes });
  for (const [i, prompt] of prompts.entries()) {
    t.deepEqual([...(together[i]?.bytes ?? [])], await greedy(model, prompt, { maxBytes }), `prompt ${i}`);
  }
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
  for (const [verifier, draft] of [
    [model, mamba],
    [model, model],
    [model, 'lookup'],
    [mamba, model],
  ] as const) {
    for (const options of [{ temperature: 0 }, { temperature: 0.9, seed: 3 }]) {
      const state = [verifier.createState(), verifier.createState()] as const;
      const plain = await greedy(verifier, 'It was a dark', { ...options, maxBytes: 100, state: state[0] });
      const drafted = { ...options, maxBytes: 100, state: state[1], draft, draftLength: 9 };
      t.deepEqual(await greedy(verifier, 'It was a dark', drafted), plain);
      t.is(state[1].position, state[0].position);
      t.is(compare(state[1].data, state[0].data, SAME_F32), undefined);
    }
  }
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
  const ids = [...new Random(5).integers(90, 0, 256)];
  await fresh(model, async (session) => {
    const want = await session.logits(ids);
    await model.withSession(async (other) => {
      await other.logits(ids.slice(0, 60));
      // Keys and values of 128 steps and one layer, but not of two.
      most = 2 * 4 * 32 * 128;
      await t.throwsAsync(other.logits(ids.slice(60)), {
        instanceOf: OutOfMemoryError,
        message: /a cache of 128 steps/,
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
  const text = corpus(4096);
  const losses = await overfit(model, text, 420);
  const last = losses.slice(-8).reduce((a, b) => a + b, 0) / 8;
  t.log(`loss ${losses[0]?.toFixed(3)} → ${last.toFixed(3)} nats per byte`);
  t.true(last < 0.3, `${last}`);
  const [path, converted] = [folder(), folder()];
  await model.save(path);
  await convertModel(path, converted, { dtype: 'int8' });
  using exact = await loadModel(path, { device: 'cpu', threads: 2 });
  using narrow = await loadModel(converted, { device: 'cpu', threads: 2 });
  t.is([...narrow.weights.values()].filter((w) => w.dtype === 'i8').length, 14);
  const data = fileOf('text', text);
  const windows = { context: 64, stride: 64 };
  const [a, b] = [await evaluate(exact, data, windows), await evaluate(narrow, data, windows)];
  // Of the windows' first halves nothing was learned, and evaluation scores them too.
  t.log(`f32 ${a.bitsPerByte}, int8 ${b.bitsPerByte} bits per byte`);
  t.true(Math.abs(b.bitsPerByte - a.bitsPerByte) < 0.05);
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
