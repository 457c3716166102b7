// What the tests of the architectures of docs/baselines.md share: each against its PyTorch oracle, and against itself.
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { convertModel } from '../../lib/convert.ts';
import {
  createModel,
  createTrainer,
  evaluate,
  loadModel,
  type Model,
  type PartialModelConfig,
} from '../../lib/index.ts';
import type { Session } from '../../lib/session.ts';
import { compare, GRADIENTS, LOGITS } from './close.ts';
import { readFixture } from './fixtures.ts';
import { fileOf, folder } from './folder.ts';
import { corpus, fresh, load, overfit, SAME_BF16, SAME_F32, type targets } from './language-models.ts';
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
 * @param state after the prompt, as `State.data` or what it begins with
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
    const [got, want] = [session.readState(), state(get)];
    t.is(compare(got.subarray(0, want.length), want, LOGITS), undefined, 'the state after the prompt');
    t.is(got.length, model.architecture.state.floats(model.config, prompt.length));
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

/** How many ids are read, how many are drafted behind them, and how many of these are verified together. */
interface Drafts {
  read: number;
  drafted: number;
  pieces: readonly number[];
}
const DRAFTS: Drafts = { read: 250, drafted: 32, pieces: [2, 3, 8, 9, 17, 32] };

/**
 * Ids verified together give what they give one by one: to the bit on the CPU.
 * @param also what else holds in the state before the drafted ids
 */
export async function verifiesAsDecoding(
  t: ExecutionContext,
  config: PartialModelConfig,
  target: Target,
  { read, drafted: count, pieces }: Drafts = DRAFTS,
  also?: (session: Session, drafted: readonly number[]) => Promise<void>,
): Promise<void> {
  const bits = target[0] === 'cpu';
  const path = folder();
  {
    using made = await createModel(config, { seed: 3, device: 'ref' });
    await made.save(path);
  }
  const drafted = [...new Random(8).integers(count, 0, 256)];
  const before = [...new Random(9).integers(read, 0, 256)];
  for (const dtype of ['f32', 'bf16', 'int8'] as const) {
    using model = await load(path, target, { dtype });
    await fresh(model, async (session) => {
      await session.consume(before);
      const start = session.readState();
      const logits: Float32Array[] = [];
      for (const id of drafted) logits.push((await session.verify([id])).logits());
      const state = session.readState();
      for (const K of pieces) {
        await session.writeState(start);
        for (let at = 0; at < count; at += K) {
          const got = (await session.verify(drafted.slice(at, at + K))).logits();
          const want = Float32Array.from(logits.slice(at, at + K).flatMap((row) => [...row]));
          if (bits) t.deepEqual(got, want, `${dtype}, by ${K} at ${at}`);
          else t.is(compare(got, want, SAME_BF16), undefined, `${dtype}, by ${K} at ${at}`);
        }
        if (bits) t.deepEqual(session.readState(), state, `${dtype}, state by ${K}`);
      }
      await session.writeState(start);
      await also?.(session, drafted);
    });
  }
}

/** Of eight ids verified after `from`, three of them wrong, five can be accepted, after other numbers were. */
export async function acceptsAnyPrefix(t: ExecutionContext, model: Model, count: number, from: number): Promise<void> {
  const ids = [...new Random(5).integers(count, 0, 256)];
  await fresh(model, async (session) => {
    const want = await session.logits(ids);
    await session.clear();
    await session.consume(ids.slice(0, from));
    await session.verify([...ids.slice(from, from + 5), 1, 2, 3]);
    await session.accept(7);
    await session.accept(2);
    await session.accept(5);
    const got = await session.logits(ids.slice(from + 5));
    t.is(compare(got, want.subarray((from + 5) * 256), SAME_F32), undefined);
  });
}

/** A batch of prompts is what each of them is alone. */
export async function batchesAsAlone(
  t: ExecutionContext,
  model: Model,
  prompts: readonly string[],
  maxBytes: number,
): Promise<void> {
  const together = await model.generateBatch([...prompts], { temperature: 0, maxBytes });
  for (const [i, prompt] of prompts.entries()) {
    t.deepEqual([...(together[i]?.bytes ?? [])], await greedy(model, prompt, { maxBytes }), `prompt ${i}`);
  }
}

/** Drafting changes neither a byte nor the state that is left. */
export async function draftsAsDecoding(
  t: ExecutionContext,
  pairs: readonly (readonly [verifier: Model, draft: Model | 'lookup'])[],
  prompt: string,
): Promise<void> {
  for (const [verifier, draft] of pairs) {
    for (const options of [{ temperature: 0 }, { temperature: 0.9, seed: 3 }]) {
      const state = [verifier.createState(), verifier.createState()] as const;
      const plain = await greedy(verifier, prompt, { ...options, maxBytes: 100, state: state[0] });
      const drafted = { ...options, maxBytes: 100, state: state[1], draft, draftLength: 9 };
      t.deepEqual(await greedy(verifier, prompt, drafted), plain);
      t.is(state[1].position, state[0].position);
      t.is(compare(state[1].data, state[0].data, SAME_F32), undefined);
    }
  }
}

/** A state that `cut` of `made` bytes have left on one device goes on on another. */
export async function goesOnElsewhere(
  t: ExecutionContext,
  config: PartialModelConfig,
  made: number,
  cut: number,
): Promise<void> {
  using one = await createModel(config, { seed: 4, device: 'ref', threads: 1 });
  using other = await createModel(config, { seed: 4, device: 'cpu', threads: 1 });
  const whole = await greedy(one, 'Once upon a time', { maxBytes: made });
  const state = one.createState();
  const first = await greedy(one, 'Once upon a time', { state, maxBytes: cut });
  const moved = other.stateFromBytes(state.toBytes());
  t.deepEqual([...first, ...(await greedy(other, '', { state: moved, maxBytes: made - cut }))], whole);
}

/**
 * 4 KiB are learned by heart, and kept when the weights become int8.
 * @param matrices that become int8
 * @returns the bytes of the weights before and after
 */
export async function learnsByHeart(
  t: ExecutionContext,
  model: Model,
  steps: number,
  matrices: number,
  rate?: number,
): Promise<[exact: number, narrow: number]> {
  const text = corpus(4096);
  const losses = await overfit(model, text, steps, rate);
  const last = losses.slice(-8).reduce((a, b) => a + b, 0) / 8;
  t.log(`loss ${losses[0]?.toFixed(3)} → ${last.toFixed(3)} nats per byte`);
  // The order of the words is random: 0.46 nats per byte that cannot be learned but by heart.
  t.true(last < 0.3, `${last}`);
  const [path, converted] = [folder(), folder()];
  await model.save(path);
  await convertModel(path, converted, { dtype: 'int8' });
  using exact = await loadModel(path, { device: 'cpu', threads: 2 });
  using narrow = await loadModel(converted, { device: 'cpu', threads: 2 });
  t.is([...narrow.weights.values()].filter((w) => w.dtype === 'i8').length, matrices);
  const data = fileOf('text', text);
  const windows = { context: 64, stride: 64 };
  const [a, b] = [await evaluate(exact, data, windows), await evaluate(narrow, data, windows)];
  t.log(`f32 ${a.bitsPerByte}, int8 ${b.bitsPerByte} bits per byte`);
  t.true(Math.abs(b.bitsPerByte - a.bitsPerByte) < 0.05);
  return [exact.bytes, narrow.bytes];
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
