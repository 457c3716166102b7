// What the tests of the architectures of docs/baselines.md share: each against its PyTorch oracle, and against itself.
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { createModel, createTrainer, loadModel, type Model, type PartialModelConfig } from '../../lib/index.ts';
import { compare, GRADIENTS, LOGITS } from './close.ts';
import { readFixture } from './fixtures.ts';
import { folder } from './folder.ts';
import { fresh, load, SAME_BF16, type targets } from './language-models.ts';
import { Random } from './random.ts';

type Target = (typeof targets)[number];

/** The fixture of a model (docs/baselines.md says what it holds). */
export function fixtureOf(name: string) {
  const tensors = readFixture(join(name, 'fixture.safetensors'));
  const get = (key: string) => {
    const found = tensors.get(key);
    if (!found) throw new Error(`${name}: no ${key}`);
    return found;
  };
  return { tensors, get, ids: (key: string) => Int32Array.from(get(key).values) };
}

/** The logits of whole sequences are the oracle's. */
export async function logitsOfOracle(t: ExecutionContext, model: Model, name: string): Promise<void> {
  const { tensors, get } = fixtureOf(name);
  for (const [key, { shape, values }] of tensors) {
    if (!key.startsWith('ids.')) continue;
    const [rows = 0, T = 0] = shape;
    const got: number[] = [];
    for (let r = 0; r < rows; r++)
      got.push(...(await model.logits(Int32Array.from(values.subarray(r * T, (r + 1) * T)))));
    t.is(compare(got, get(`logits.${T}`).values, LOGITS), undefined, `${T} ids`);
  }
}

/** Loss and gradients of a batch are the oracle's. */
export async function gradientsOfOracle(t: ExecutionContext, model: Model, name: string): Promise<void> {
  const { get, ids } = fixtureOf(name);
  // With beta1 = 0 AdamW's first moment is the gradient itself.
  const trainer = await createTrainer(model, { lr: 0, betas: [0, 0.95], clip: 0, precision: 'f32' });
  const { loss } = await trainer.step({ bytes: ids('train.rows'), batch: 2 });
  t.is(compare([loss], get('train.loss').values, { rms: 1e-6, worst: 1e-6 }), undefined);
  const { m } = trainer.optimizerState();
  t.is(m.size, model.weights.size);
  for (const [parameter, gradient] of m) {
    t.is(compare(gradient, get(`train.grad.${parameter}`).values, GRADIENTS), undefined, parameter);
  }
}

/**
 * Reading a prompt and then its most likely continuation id by id gives the oracle's logits and ids, and leaves its state.
 * @param state after the prompt, as `State.data`
 */
export async function decodingOfOracle(
  t: ExecutionContext,
  model: Model,
  name: string,
  state: (get: ReturnType<typeof fixtureOf>['get']) => ArrayLike<number>,
): Promise<void> {
  const { get, ids } = fixtureOf(name);
  const [prompt, continuation] = [ids('generate.prompt'), ids('generate.continuation')];
  await fresh(model, async (session) => {
    const V = model.config.vocab;
    const logits = [(await session.logits(prompt)).subarray(-V)];
    t.is(compare(session.readState(), state(get), LOGITS), undefined, 'the state after the prompt');
    for (const id of continuation.subarray(0, -1)) logits.push(await session.logits([id]));
    const all = Float32Array.from(logits.flatMap((row) => [...row]));
    t.is(compare(all, get('generate.logits').values, LOGITS), undefined);
    await session.clear();
    await session.consume(prompt.subarray(0, -1));
    const settings = { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed: 0 };
    const loop = await session.startDecoding([{ settings, pending: prompt.at(-1) ?? 0 }]);
    const drawn: number[] = [];
    while (drawn.length < continuation.length) {
      drawn.push(...(await loop.run({ steps: continuation.length - drawn.length })).watched);
    }
    t.deepEqual(drawn, [...continuation]);
  });
}

/** Ids verified together give what they give one by one: to the bit on the CPU. */
export async function verifiesAsDecoding(
  t: ExecutionContext,
  config: PartialModelConfig,
  target: Target,
): Promise<void> {
  const bits = target[0] === 'cpu';
  const path = folder();
  {
    using made = await createModel(config, { seed: 3, device: 'ref' });
    await made.save(path);
  }
  const drafted = [...new Random(8).integers(32, 0, 256)];
  const before = [...new Random(9).integers(250, 0, 256)];
  for (const dtype of ['f32', 'bf16', 'int8'] as const) {
    using model = await load(path, target, { dtype });
    await fresh(model, async (session) => {
      await session.consume(before);
      const start = session.readState();
      const logits: Float32Array[] = [];
      for (const id of drafted) logits.push((await session.verify([id])).logits());
      const state = session.readState();
      for (const K of [2, 3, 8, 9, 17, 32]) {
        await session.writeState(start);
        for (let at = 0; at < 32; at += K) {
          const got = (await session.verify(drafted.slice(at, at + K))).logits();
          const want = Float32Array.from(logits.slice(at, at + K).flatMap((row) => [...row]));
          if (bits) t.deepEqual(got, want, `${dtype}, by ${K} at ${at}`);
          else t.is(compare(got, want, SAME_BF16), undefined, `${dtype}, by ${K} at ${at}`);
        }
        if (bits) t.deepEqual(session.readState(), state, `${dtype}, state by ${K}`);
      }
    });
  }
}

/** Greedy bytes after a prompt. */
export const greedy = (model: Model, prompt: string, options: object = {}) =>
  model.generate(prompt, { temperature: 0, maxBytes: 40, ...options }).then(({ bytes }) => [...bytes]);

/** What is saved loads as the same model; transformers has none of its kind. */
export async function savesAndLoads(t: ExecutionContext, model: Model): Promise<void> {
  const path = folder();
  await model.save(path);
  using loaded = await loadModel(path, { device: 'cpu', threads: 2 });
  t.deepEqual(loaded.config, model.config);
  t.deepEqual(loaded.warnings, []);
  t.deepEqual(await loaded.logits('The same'), await model.logits('The same'));
}
