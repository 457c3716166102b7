// What the tests of whole models of any architecture share.
import { resolve } from 'node:path';
import type { ExecutionContext } from 'ava';
import { createTrainer, loadModel, type Model } from '../../lib/index.ts';
import type { Session } from '../../lib/session.ts';
import { compare, type Tolerance } from './close.ts';
import { cpuTargets, cuda } from './devices.ts';
import { FIXTURES } from './fixtures.ts';
import { Random } from './random.ts';

/** Two ways of one model through f32 kernels, and through kernels that round activations to bf16. */
export const SAME_F32: Tolerance = { rms: 2e-6, worst: 2e-5 };
export const SAME_BF16: Tolerance = { rms: 1e-2, worst: 5e-2 };
const SAME_INT8: Tolerance = { rms: 1e-3, worst: 2e-2 };

/** Every device and instruction set that can be had here. */
export const targets = [
  ['ref', undefined] as const,
  ...cpuTargets().supported.map((target) => ['cpu', target] as const),
  ...(cuda().info ? [['cuda', undefined] as const] : []),
];

/** Loads a model of the fixtures on one instruction set. Serial tests only: the choice is a variable of the process. */
export async function load(
  name: string,
  target: (typeof targets)[number],
  options: { dtype?: 'f32' | 'bf16' | 'int8'; trainable?: boolean; threads?: number } = {},
) {
  const before = process.env.MAMBABYTE_CPU;
  process.env.MAMBABYTE_CPU = target[1] ?? '';
  try {
    const model = await loadModel(resolve(FIXTURES, name), { device: target[0], threads: 2, ...options });
    return model;
  } finally {
    if (before === undefined) delete process.env.MAMBABYTE_CPU;
    else process.env.MAMBABYTE_CPU = before;
  }
}

/** How nearly a text in pieces is what it is in one. */
export function sameAs(dtype: 'f32' | 'bf16' | 'int8', [backend, set]: (typeof targets)[number]): Tolerance {
  const rounds = set === 'avx512' || set === 'amx' || backend === 'cuda';
  if (dtype === 'f32' || !rounds) return SAME_F32;
  return dtype === 'int8' && backend === 'cpu' ? SAME_INT8 : SAME_BF16;
}

/** Runs `fn` on a session that starts from zeros. */
export function fresh<T>(model: Model, fn: (session: Session) => Promise<T>): Promise<T> {
  return model.withSession(async (session) => {
    await session.writeState(new Float32Array(session.stateFloats));
    return fn(session);
  });
}

/**
 * One text in plans of 512 steps, halves of it and 1 step, and in pieces of 1, 8, 13 and 64. These are thousands of short runs, in
 * which two threads of two test files on two cores mostly wait for each other: one will do, since the comparisons with
 * PyTorch and of verifying with decoding are made with two.
 */
export async function sameInPieces(t: ExecutionContext, model: Model, close: Tolerance): Promise<void> {
  const ids = Int32Array.from(new Random(3).integers(150, 0, 256));
  const long = Int32Array.from({ length: 600 }, (_, i) => ids[i % 150] ?? 0);
  for (const [text, sizes] of [
    [ids, [1, 8, 13, 64]],
    [long, [64]],
  ] as const) {
    const whole = await fresh(model, async (s) => ({ logits: await s.logits(text), state: s.readState() }));
    for (const size of sizes) {
      await fresh(model, async (session) => {
        const logits = new Float32Array(whole.logits.length);
        for (let at = 0; at < text.length; at += size) {
          logits.set(await session.logits(text.subarray(at, at + size)), at * 256);
        }
        t.is(compare(logits, whole.logits, close), undefined, `logits in pieces of ${size}`);
        t.is(compare(session.readState(), whole.state, close), undefined, `state in pieces of ${size}`);
      });
      await fresh(model, async (session) => {
        for (let at = 0; at < text.length; at += size) await session.consume(text.subarray(at, at + size));
        t.is(compare(session.readState(), whole.state, close), undefined, `consumed in pieces of ${size}`);
      });
    }
  }
}

/** Text with structure: words drawn from a short list. */
export function corpus(length: number): Uint8Array {
  const words = 'the lamp on harbour wall burned since before town was built and nobody living could say who'.split(
    ' ',
  );
  const random = new Random(11);
  let text = '';
  while (text.length < length) text += `${words[random.integers(1, 0, words.length)[0] ?? 0]} `;
  return new TextEncoder().encode(text.slice(0, length));
}

/** Trains on windows of a text; returns the losses. */
export async function overfit(model: Model, text: Uint8Array, steps: number, lr = 1e-2): Promise<number[]> {
  const trainer = await createTrainer(model, { lr, schedule: 'cosine', warmup: 10, steps });
  const [batch, row] = [8, 65];
  const windows = Math.floor((text.length - 1) / 64);
  const losses: number[] = [];
  for (let s = 0; s < steps; s++) {
    const bytes = new Uint8Array(batch * row);
    for (let b = 0; b < batch; b++) {
      // Every window once before any comes again; 29 has no factor in common with their number.
      const at = 64 * (((s * batch + b) * 29) % windows);
      bytes.set(text.subarray(at, at + row), b * row);
    }
    losses.push((await trainer.step({ bytes, batch })).loss);
  }
  return losses;
}
