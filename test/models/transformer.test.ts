// The Transformer against transformers' LlamaForCausalLM, and against itself: through its cache in any pieces it is what it
// is in one, on every instruction set and with every weight type.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { convertModel } from '../../lib/convert.ts';
import { Graph } from '../../lib/graph.ts';
import { createModel, inspectModel, loadModel, ModelFormatError, OutOfMemoryError } from '../../lib/index.ts';
import { CacheMemory } from '../../lib/memory/cache.ts';
import { architectureOf } from '../../lib/models/architectures.ts';
import { initialValues } from '../../lib/models/params.ts';
import {
  completeTransformer,
  transformerBackbone,
  transformerHead,
  transformerParams,
} from '../../lib/models/transformer.ts';
import { evaluate as run } from '../../lib/plan.ts';
import { collectPlans, nodeCost } from '../../lib/profile.ts';
import { Tokenizer } from '../../lib/tokenizer/tokenizer.ts';
import { openCheckpoint } from '../../lib/weights/checkpoint-files.ts';
import { writeSafetensors } from '../../lib/weights/safetensors.ts';
import { readTensorBytes } from '../../lib/weights/stored-tensor.ts';
import {
  acceptsAnyPrefix,
  batchesAsAlone,
  decodingOfOracle,
  draftsAsDecoding,
  goesOnElsewhere,
  gradientsOfOracle,
  greedy,
  learnsByHeart,
  logitsOfOracle,
  verifiesAsDecoding,
} from '../support/baselines.ts';
import { compare, errors } from '../support/close.ts';
import { withDevice } from '../support/devices.ts';
import { FIXTURES } from '../support/fixtures.ts';
import { folder } from '../support/folder.ts';
import { fresh, load, SAME_F32, sameAs, sameInPieces, targets } from '../support/language-models.ts';
import { Random } from '../support/random.ts';
import { tokenizerJson } from '../support/tokenizer.ts';

const NAMES = ['transformer-tiny', 'transformer-tiny-48'] as const;

/** A byte model whose heads are whole vectors, with fewer heads of keys. */
const SMALL = { architecture: 'transformer', layers: 2, dModel: 64, heads: 4, keyHeads: 2 } as const;

for (const target of targets) {
  const where = target[1] ? `cpu ${target[1]}` : target[0];

  for (const name of NAMES) {
    test.serial(`logits equal transformers in float64 · ${name} · ${where}`, async (t) => {
      using model = await load(name, target);
      await logitsOfOracle(t, model, name);
    });

    test.serial(`loss and gradients equal transformers in float64 · ${name} · ${where}`, async (t) => {
      using model = await load(name, target, { trainable: true });
      await gradientsOfOracle(t, model, name);
    });

    test.serial(`decoding through the cache equals transformers · ${name} · ${where}`, async (t) => {
      using model = await load(name, target);
      await decodingOfOracle(t, model, name, (get) =>
        [0, 1].flatMap((l) =>
          ['k', 'v'].flatMap((kind) => [...get(`generate.state.model.layers.${l}.self_attn.${kind}`).values]),
        ),
      );
    });
  }

  for (const dtype of ['f32', 'bf16', 'int8'] as const) {
    test.serial(`step by step = prefill = chunked prefill · ${dtype} · ${where}`, async (t) => {
      using model = await load(NAMES[0], target, dtype === 'f32' ? {} : { dtype });
      await sameInPieces(t, model, sameAs(dtype, target));
    });
  }

  if (target[0] !== 'ref') {
    const what = target[0] === 'cpu' ? 'bits' : 'results';
    test.serial(`verifying gives the ${what} of decoding · ${where}`, (t) => verifiesAsDecoding(t, SMALL, target));
  }
}

for (const dtype of ['f32', 'bf16', 'int8'] as const) {
  test.serial(`matrices that lie together in a file are read by one product · ${dtype}`, async (t) => {
    using made = await createModel(SMALL, { seed: 3, device: 'cpu', threads: 2 });
    const [exact, path] = [folder(), folder()];
    await made.save(exact);
    await convertModel(exact, path, { dtype });
    const ids = new Int32Array(new Random(2).integers(90, 0, 256));
    const logitsOf = async (from: string) => {
      using model = await loadModel(from, { device: 'cpu', threads: 2, dtype });
      const plans = collectPlans(model.runtime);
      const logits = await fresh(model, (session) => session.logits(ids));
      const linear = [...plans].map((plan) => plan.nodes.filter((node) => node.op.name === 'linear').length);
      return { logits, linear: Math.max(...linear) };
    };
    const [together, apart] = [await logitsOf(path), await logitsOf(exact)];
    t.deepEqual([together.linear, apart.linear], [2 * 4 + 1, dtype === 'f32' ? 2 * 4 + 1 : 2 * 7 + 1]);
    t.is(compare(together.logits, apart.logits, SAME_F32), undefined);
    if (dtype === 'f32') t.is(compare(together.logits, await made.logits(ids), SAME_F32), undefined);
  });
}

test.serial('any prefix of a verify pass can be accepted, more than once', async (t) => {
  using model = await createModel(SMALL, { seed: 3, device: 'cpu', threads: 2 });
  await acceptsAnyPrefix(t, model, 90, 60);
});

test.serial('states are saved, restored and forked, and grow with the text', async (t) => {
  using model = await createModel(SMALL, { seed: 4, device: 'cpu', threads: 2 });
  const whole = await greedy(model, 'Once upon a time', { maxBytes: 90 });
  const state = model.createState();
  t.is(state.data.length, 0);
  const first = await greedy(model, 'Once upon a time', { state, maxBytes: 37 });
  const bytes = state.toBytes();
  t.is(state.position, 53);
  t.is(bytes.length, 32 + model.stateBytesAt(52));
  t.is(model.stateBytesAt(52), 4 * 2 * 2 * 32 * 52);
  const fork = state.clone();
  t.deepEqual([...first, ...(await greedy(model, '', { state: fork, maxBytes: 53 }))], whole);
  t.deepEqual(state.toBytes(), bytes);
  const restored = model.stateFromBytes(bytes);
  t.deepEqual([...first, ...(await greedy(model, '', { state: restored, maxBytes: 53 }))], whole);
  t.deepEqual(restored.toBytes(), fork.toBytes());
  using mamba = await createModel({ layers: 2, dModel: 64 }, { threads: 1 });
  t.throws(() => mamba.stateFromBytes(bytes), { instanceOf: ModelFormatError, message: /start with MBS1/ });
  t.throws(() => model.stateFromBytes(bytes.subarray(0, -4)), { instanceOf: ModelFormatError, message: /key heads/ });
  t.throws(() => mamba.generate('x', { state }), { instanceOf: TypeError, message: /shape/ });
  const scored = model.createState();
  const text = 'The lamp on the harbour wall had burned';
  const [a, b] = [
    await model.score(text.slice(0, 15), { state: scored }),
    await model.score(text.slice(15), { state: scored }),
  ];
  t.true(Math.abs(a.nats + b.nats - (await model.score(text)).nats) < 1e-3);
});

test('a cache of 16 bits is near one of f32, grows without the loss of a bit, and its states move', (t) =>
  withDevice('ref', { threads: 1 }, async (device) => {
    const config = completeTransformer(SMALL);
    const weights = new Map(
      transformerParams(config).map((spec, i) => [
        spec.name,
        device.tensorFrom(initialValues(spec, 1, i), spec.shape, 'f32', spec.name),
      ]),
    );
    const ids = new Random(2).integers(40, 0, 256);
    const read = async (memory: CacheMemory, from: number, to: number) => {
      await memory.reserve(to - from);
      const g = new Graph();
      const part = device.tensorFrom(Int32Array.from(ids.slice(from, to)), [1, to - from], 'i32', 'ids');
      const x = transformerBackbone(g, config, weights, part, { state: memory.state });
      const [logits] = await run(device, g, [transformerHead(g, config, weights, x)]);
      memory.advanced(to - from);
      return logits as Float32Array;
    };
    const shape = { layers: 2, columns: 32 };
    const exact = new CacheMemory(device, shape, 1, 'f32', 32);
    const want = [await read(exact, 0, 30), await read(exact, 30, 40)];
    for (const [kept, least, most] of [
      ['bf16', 1e-5, 1e-2],
      ['f16', 1e-6, 1e-3],
    ] as const) {
      const rounded = new CacheMemory(device, shape, 1, kept, 32);
      const first = await read(rounded, 0, 30);
      const state = rounded.read(0);
      await rounded.reserve(500);
      t.deepEqual(rounded.read(0), state);
      for (const dtype of ['f32', kept] as const) {
        const other = new CacheMemory(device, shape, 1, dtype, 32);
        await other.reserve(30);
        other.write(0, state);
        t.deepEqual(other.read(0), state);
      }
      for (const [i, logits] of [first, await read(rounded, 30, 40)].entries()) {
        const e = errors(logits, want[i] ?? []);
        t.true(e.rms > least && e.rms < most, `${kept}: relative RMS ${e.rms}`);
      }
    }
  }));

test.serial('a state goes on on another device', (t) => goesOnElsewhere(t, SMALL, 40, 13));

test.serial('a batch of prompts of many lengths is what each of them is alone', async (t) => {
  using model = await createModel(SMALL, { seed: 5, device: 'cpu', threads: 2 });
  const prompts = ['a', 'It was a dark and stormy night; ', 'x'.repeat(130), 'Call me', 'The'];
  await batchesAsAlone(t, model, prompts, 70);
});

test.serial('a Transformer verifies and drafts without changing a byte', async (t) => {
  using large = await createModel(SMALL, { seed: 6, device: 'cpu', threads: 2 });
  using small = await createModel(
    { ...SMALL, layers: 1, dModel: 32, heads: 2 },
    { seed: 7, device: 'cpu', threads: 1 },
  );
  using mamba = await createModel({ layers: 2, dModel: 32 }, { seed: 8, device: 'cpu', threads: 1 });
  const pairs = [
    [large, small],
    [large, large],
    [large, mamba],
    [mamba, small],
  ] as const;
  await draftsAsDecoding(t, pairs, 'It was a dark');
});

test.serial('a small Transformer learns 4 KiB by heart, and keeps it in int8', async (t) => {
  using model = await createModel(
    { architecture: 'transformer', layers: 1, dModel: 64, heads: 4 },
    { seed: 2, device: 'cpu', threads: 2 },
  );
  const [exact, narrow] = await learnsByHeart(t, model, 420, 7);
  t.true(narrow < 0.4 * exact);
});

test.serial('what is saved loads again and is a Llama for transformers', async (t) => {
  using model = await createModel({ ...SMALL, ropeTheta: 5000 }, { seed: 9, device: 'cpu', threads: 2 });
  const [own, hf] = [folder(), folder()];
  await model.save(own);
  await convertModel(own, hf, { to: 'hf', dtype: 'bf16' });
  const logits = await model.logits('The same');
  for (const path of [own, hf]) {
    using loaded = await loadModel(path, { device: 'cpu', threads: 2 });
    t.deepEqual(loaded.config, model.config);
    t.deepEqual(loaded.warnings, []);
    const e = errors(await loaded.logits('The same'), logits);
    t.true(path === own ? e.rms === 0 : e.rms < 1e-2, `${e.rms}`);
    t.like(JSON.parse(readFileSync(join(path, 'config.json'), 'utf8')), {
      architecture: 'transformer',
      architectures: ['LlamaForCausalLM'],
      model_type: 'llama',
      hidden_size: 64,
      num_key_value_heads: 2,
      rope_parameters: { rope_theta: 5000, rope_type: 'default' },
    });
  }
  t.like(await inspectModel(hf), { dialect: 'hf', config: model.config, parameters: model.parameters });
});

test.serial('wrappers in names, and buffers that older files hold, do not matter', async (t) => {
  using model = await createModel(SMALL, { seed: 9, device: 'cpu', threads: 1 });
  const path = folder();
  await model.save(path);
  const { tensors } = await openCheckpoint(path);
  const sources = await Promise.all(
    [...tensors.values()].map(async (tensor) => ({
      ...{ name: `module.${tensor.name}`, dtype: tensor.dtype, shape: tensor.shape },
      data: await readTensorBytes(tensor),
    })),
  );
  const buffer = { name: 'model.layers.0.self_attn.rotary_emb.inv_freq', dtype: 'F32', shape: [8] } as const;
  await writeSafetensors(join(path, 'model.safetensors'), [...sources, { ...buffer, data: new Uint8Array(32) }]);
  using loaded = await loadModel(path, { device: 'cpu', threads: 1 });
  t.deepEqual(loaded.config, model.config);
  t.deepEqual(await loaded.logits('The same'), await model.logits('The same'));
});

test.serial('a subword Transformer takes its tokenizer, scores per byte and generates', async (t) => {
  const tokenizer = Tokenizer.fromJson(tokenizerJson());
  using model = await createModel({ ...SMALL, layers: 1 }, { seed: 1, device: 'cpu', threads: 1, tokenizer });
  t.like(model.config, { architecture: 'transformer', vocab: tokenizer.vocab, tied: true });
  const text = 'the tokenizer of the model';
  const { bytes, nll } = await model.score(text);
  t.is(nll.length, tokenizer.encode(text).length - 1);
  t.is(bytes, text.length - tokenizer.bytesOf(tokenizer.encode(text)[0] ?? 0).length);
  const plain = await greedy(model, 'the ');
  const path = folder();
  await model.save(path);
  using loaded = await loadModel(path, { device: 'cpu', threads: 1 });
  t.deepEqual(await greedy(loaded, 'the '), plain);
  using verifier = await createModel({ layers: 1, dModel: 32 }, { seed: 1, device: 'cpu', threads: 1 });
  t.deepEqual(await greedy(verifier, 'the ', { draft: loaded }), await greedy(verifier, 'the '));
});

test('parameters, FLOPs and state follow the formulas of docs/baselines.md, and FLOPs what is recorded', (t) => {
  const config = completeTransformer({ layers: 3, dModel: 96, heads: 6, keyHeads: 2, dInner: 160 });
  const { params, flops, state, backbone, head } = architectureOf(config);
  const [D, C, F, V, n, T] = [96, 32, 160, 256, 3, 64];
  const block = 2 * D * D + 2 * D * C + 3 * D * F + 2 * D;
  const count = params(config).reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
  t.is(count, 2 * V * D + n * block + D);
  const step = 4 * D * D + 4 * D * C + 6 * D * F + 4 * D * ((T + 1) / 2);
  t.is(flops(config, T), n * step + 2 * D * V);
  t.is(state.floats(config, 10), 2 * n * C * 10);
  const g = new Graph();
  const weights = new Map(params(config).map(({ name, shape }) => [name, g.value(shape)]));
  head(g, config, weights, backbone(g, config, weights, g.value([3, T], 'i32')));
  t.is(
    g.nodes.reduce((sum, node) => sum + nodeCost(node).flops, 0),
    3 * T * flops(config, T),
  );
});

test('a shape is completed, and a wrong one refused by field', (t) => {
  t.deepEqual(completeTransformer({ layers: 2, dModel: 320 }), {
    architecture: 'transformer',
    layers: 2,
    dModel: 320,
    heads: 5,
    keyHeads: 5,
    dInner: 896,
    vocab: 256,
    tied: false,
    normEps: 1e-5,
    ropeTheta: 10000,
  });
  t.is(completeTransformer({ layers: 1, dModel: 24 }).heads, 1);
  for (const [config, message] of [
    [{ heads: 3 }, /heads to split a width of 64 into heads of even width, got 3/],
    [{ heads: 64 }, /heads to split/],
    [{ heads: 4, keyHeads: 3 }, /keyHeads to divide 4 heads, got 3/],
    [{ dState: 16 }, /dState/],
    [{ ropeTheta: 0 }, /ropeTheta/],
    [{ tied: 1 }, /tied/],
  ] as const) {
    t.throws(() => completeTransformer({ layers: 1, dModel: 64, ...(config as object) }), { message });
  }
  t.throws(() => architectureOf({ architecture: 'rnn' } as never), {
    instanceOf: TypeError,
    message: /architecture to be one of mamba, transformer.*, got "rnn"/,
  });
});

const LLAMA = JSON.parse(readFileSync(join(FIXTURES, NAMES[0], 'config.json'), 'utf8'));
for (const [title, change, message] of [
  ['another model type', { model_type: 'qwen2', architecture: undefined }, /model_type to be llama, got "qwen2"/],
  ['an unknown architecture', { architecture: 'rnn' }, /architecture to be one of mamba, transformer.*, got "rnn"/],
  ['biases', { attention_bias: true }, /attention_bias to be false, got true/],
  ['another activation', { hidden_act: 'gelu' }, /hidden_act to be silu, got "gelu"/],
  ['scaled positions', { rope_scaling: { rope_type: 'llama3', factor: 8 } }, /rope_type to be default, got "llama3"/],
  ['heads of another width', { head_dim: 16 }, /head_dim 16 but 8 in the tensors/],
  ['other sizes', { hidden_size: 48, num_hidden_layers: 3 }, /num_hidden_layers 3 but 2, hidden_size 48 but 32/],
  ['no number of heads', { num_attention_heads: undefined }, /num_attention_heads to be there, got none/],
  ['heads that do not split the width', { num_attention_heads: 5 }, /num_key_value_heads 2 but 2\.5/],
] as const) {
  test(`a checkpoint is refused: ${title}`, async (t) => {
    const path = folder();
    const { copyFileSync, writeFileSync } = await import('node:fs');
    copyFileSync(join(FIXTURES, NAMES[0], 'model.safetensors'), join(path, 'model.safetensors'));
    writeFileSync(join(path, 'config.json'), JSON.stringify({ ...LLAMA, ...change }));
    await t.throwsAsync(loadModel(path, { device: 'cpu', threads: 1 }), { instanceOf: ModelFormatError, message });
  });
}

test.serial(
  'sequences of a batch take the states of a session on the device, and no more room than they need',
  async (t) => {
    using model = await createModel(SMALL, { seed: 1, device: 'cpu', threads: 2 });
    const [long, short] = [300, 20].map((n) => [...new Random(n).integers(n, 0, 256)]) as [number[], number[]];
    await model.withSession(async (one) => {
      await model.withSession(async (batch) => {
        const states: Float32Array[] = [];
        for (const [b, ids] of [long, short, [], long].entries()) {
          await one.clear();
          await one.consume(ids);
          states.push(one.readState());
          await batch.takeSequence(b, one);
        }
        t.deepEqual(batch.readSequences(), states);
        model.runtime.alloc = (bytes) => t.fail(`${bytes} bytes more`) as never;
        await batch.writeSequence(1, states[0] as Float32Array);
        t.deepEqual(batch.readSequences()[1], states[0]);
      }, 4);
    });
  },
);

test.serial(
  'where memory is short, a cache grows by what is needed, idle sessions go, or an error says its size',
  async (t) => {
    using model = await createModel(SMALL, { seed: 1, device: 'cpu', threads: 1 });
    const { runtime } = model;
    const alloc = runtime.alloc.bind(runtime);
    /** Refuses pieces of more than this, as a full device does. */
    let most = Infinity;
    runtime.alloc = (bytes) => {
      if (bytes > most) throw new OutOfMemoryError(`no ${bytes} bytes`);
      return alloc(bytes);
    };
    const bytesOf = (steps: number) => 4 * 2 * 2 * 32 * steps;
    const ids = [...new Random(5).integers(200, 0, 256)];
    await fresh(model, async (session) => {
      const want = await session.logits(ids);
      await model.withSession(async (other) => {
        await other.consume(ids.slice(0, 70));
        most = bytesOf(192);
        await other.consume(ids.slice(70, 140));
        t.is(
          compare(await other.logits(ids.slice(140, 190)), want.subarray(140 * 256, 190 * 256), SAME_F32),
          undefined,
        );
        const before = other.readState();
        await t.throwsAsync(other.consume(ids), {
          instanceOf: OutOfMemoryError,
          message: 'cache: expected a cache of 448 steps for 1 sequence to fit in memory, got 229376 bytes.',
        });
        t.deepEqual(other.readState(), before);
        t.is(compare(await other.logits([ids[190] ?? 0]), want.subarray(190 * 256, 191 * 256), SAME_F32), undefined);
      });
    });
    // Two sessions lie idle now: their memory is enough for the next one.
    const free = runtime.free.bind(runtime);
    runtime.free = (buffer) => {
      most = Infinity;
      free(buffer);
    };
    most = bytesOf(64);
    const [made] = await model.generateBatch(['a'.repeat(100), 'b'], { temperature: 0, maxBytes: 3 });
    t.is(most, Infinity);
    t.is(made?.bytes.length, 3);
  },
);
