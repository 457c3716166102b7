// Whole models against PyTorch, and against themselves: step by step = prefill = chunked prefill, on every instruction
// set, on a GPU where there is one, and with every weight type.

import { join } from 'node:path';
import test from 'ava';
import { Graph } from '../../lib/graph.ts';
import { createModel, createTrainer, loadModel, type Model } from '../../lib/index.ts';
import type { MambaConfig } from '../../lib/models/config.ts';
import { mambaBackbone } from '../../lib/models/mamba.ts';
import { compile } from '../../lib/plan.ts';
import { compare, errors, GRADIENTS, LOGITS } from '../support/close.ts';
import { readFixture, readJson } from '../support/fixtures.ts';
import { corpus, fresh, load, overfit, SAME_F32, sameAs, sameInPieces, targets } from '../support/language-models.ts';
import { Random } from '../support/random.ts';

const BF16_RMS = 1e-2;

async function rowLogits(model: Model, name: string): Promise<{ got: Float64Array; want: Float64Array }> {
  const expected = readFixture(`${name.replace(/-(bin|module)$/, '')}.expected.safetensors`);
  const ids = expected.get('ids') ?? expected.get('bytes');
  const want = expected.get('logits64');
  if (!ids || !want) throw new Error(`${name}: no ids or logits64`);
  const [rows = 0, T = 0, V = 0] = want.shape;
  const stride = ids.shape[1] ?? 0;
  const got = new Float64Array(want.values.length);
  for (let r = 0; r < rows; r++) {
    got.set(await model.logits(Int32Array.from(ids.values.subarray(r * stride, r * stride + T))), r * T * V);
  }
  return { got, want: want.values };
}

for (const target of targets) {
  const where = target[1] ? `cpu ${target[1]}` : target[0];

  for (const name of ['hf-tiny', 'hf-tiny-48', 'byte-tiny', 'byte-tiny-bin', 'byte-tiny-module']) {
    test.serial(`logits equal PyTorch in float64 · ${name} · ${where}`, async (t) => {
      using model = await load(name, target);
      const { got, want } = await rowLogits(model, name);
      t.is(compare(got, want, LOGITS), undefined);
    });
  }

  for (const name of ['hf-tiny', 'byte-tiny']) {
    test.serial(`bf16 logits are near PyTorch in float64 · ${name} · ${where}`, async (t) => {
      using model = await load(name, target, { dtype: 'bf16' });
      const { got, want } = await rowLogits(model, name);
      const e = errors(got, want);
      t.log(`relative RMS ${e.rms.toExponential(2)}`);
      t.true(e.rms < BF16_RMS, `${e.rms}`);
    });

    test.serial(`greedy bytes equal PyTorch · ${name} · ${where}`, async (t) => {
      using model = await load(name, target);
      const expected = readFixture(`${name}.expected.safetensors`);
      const prompt = Uint8Array.from(expected.get('generate.prompt')?.values ?? []);
      const { bytes } = await model.generate(prompt, { temperature: 0, maxBytes: 64 });
      t.deepEqual([...bytes], [...(expected.get('generate.continuation')?.values ?? [])]);
    });
  }

  test.serial(`ids that do not count leave no trace · ${where}`, async (t) => {
    using model = await load('byte-tiny', target);
    const { runtime: device, config, weights } = model;
    const c = config as MambaConfig;
    const ids = new Random(8).integers(3 * 70, 0, c.vocab);
    /** The states that sequences of `T` ids end in, layer by layer. */
    const statesAfter = async (rows: Float64Array[], counted?: number[]) => {
      const [B, T] = [rows.length, rows[0]?.length ?? 0];
      const state = Array.from({ length: c.layers }, (_, l) => ({
        conv: device.tensor([B, c.dConv - 1, c.dInner], 'f32', `conv ${l}`),
        ssm: device.tensor([B, c.dInner, c.dState], 'f32', `ssm ${l}`),
      }));
      const all = Int32Array.from(rows.flatMap((row) => [...row]));
      const lengths = counted && device.tensorFrom(Int32Array.from(counted), [B], 'i32', 'lengths');
      const g = new Graph();
      const x = mambaBackbone(g, c, weights, device.tensorFrom(all, [B, T], 'i32', 'ids'), { state, lengths });
      using plan = await compile(device, g, [x]);
      await plan.run();
      return state.map(({ conv, ssm }) => [conv, ssm].map((s) => rows.map((_, b) => device.read(s.slice(b)))));
    };
    // Many rows, and so few that without lengths a fused block would take them.
    for (const lengths of [
      [70, 41, 0],
      [9, 4, 0],
    ]) {
      const T = Math.max(...lengths);
      const rows = lengths.map((_, b) => ids.subarray(b * T, (b + 1) * T));
      const together = await statesAfter(rows, lengths);
      for (const [b, length] of lengths.entries()) {
        const alone = length > 0 ? await statesAfter([(rows[b] as Float64Array).subarray(0, length)]) : undefined;
        for (const [l, kinds] of together.entries()) {
          for (const [kind, got] of kinds.entries()) {
            const want = alone?.[l]?.[kind]?.[0] ?? new Float32Array(got[b]?.length ?? 0);
            const same = compare(got[b] as Float32Array, want as Float32Array, SAME_F32);
            t.is(same, undefined, `${length} of ${T} ids, layer ${l}`);
          }
        }
      }
    }
  });

  test.serial(`states after a prompt equal PyTorch · ${where}`, async (t) => {
    using model = await load('byte-tiny', target);
    const expected = readFixture('byte-tiny.expected.safetensors');
    for (const label of ['state', 'state_short']) {
      const prompt = expected.get(`${label}.prompt`)?.values ?? [];
      const want = [0, 1].flatMap((l) =>
        ['conv', 'ssm'].flatMap((s) => [...(expected.get(`${label}.${l}.${s}`)?.values ?? [])]),
      );
      await fresh(model, async (session) => {
        const logits = await session.logits(prompt);
        t.is(compare(session.readState(), want, LOGITS), undefined, label);
        t.is(compare(logits.subarray(-256), expected.get(`${label}.logits`)?.values ?? [], LOGITS), undefined, label);
      });
    }
  });

  test.serial(`gradients equal PyTorch in float64 · ${where}`, async (t) => {
    using model = await load('byte-tiny', target, { trainable: true });
    const expected = readFixture('byte-tiny.expected.safetensors');
    // With beta1 = 0 AdamW's first moment is the gradient itself.
    const trainer = await createTrainer(model, { lr: 0, betas: [0, 0.95], clip: 0, precision: 'f32' });
    const { loss } = await trainer.step({ bytes: Uint8Array.from(expected.get('bytes')?.values ?? []), batch: 2 });
    const want = expected.get('loss64')?.values[0] ?? Number.NaN;
    t.true(Math.abs(loss - want) < 1e-6 * want, `loss ${loss}, expected ${want}`);
    const { m } = trainer.optimizerState();
    t.is(m.size, model.weights.size);
    for (const [name, gradient] of m) {
      t.is(compare(gradient, expected.get(`grad.${name}`)?.values ?? [], GRADIENTS), undefined, name);
    }
  });

  test.serial(`ten golden losses equal PyTorch · ${where}`, async (t) => {
    const golden = readJson<{
      lr: number;
      betas: [number, number];
      eps: number;
      weightDecay: number;
      clip: number;
      decayed: string[];
      loss64: number[];
      gradNorm64: number[];
      finalWeightNorm64: Record<string, number>;
    }>('training.json');
    const { lr, betas, eps, clip, weightDecay, decayed } = golden;
    const bytes = Uint8Array.from(readFixture('training.safetensors').get('bytes')?.values ?? []);
    using model = await load('byte-tiny', target, { trainable: true });
    const decay = (name: string) => (decayed.includes(name) ? weightDecay : 0);
    const trainer = await createTrainer(model, { lr, betas, eps, clip, weightDecay: decay, precision: 'f32' });
    for (let s = 0; s < 10; s++) {
      const { loss, gradNorm } = await trainer.step({ bytes: bytes.subarray(s * 132, (s + 1) * 132), batch: 4 });
      t.is(compare([loss], [golden.loss64[s] ?? 0], { rms: 1e-5, worst: 1e-5 }), undefined, `loss of step ${s + 1}`);
      t.is(compare([gradNorm], [golden.gradNorm64[s] ?? 0], GRADIENTS), undefined, `gradient norm of step ${s + 1}`);
    }
    for (const [name, tensor] of model.weights) {
      const norm = Math.hypot(...(model.runtime.read(tensor) as Float32Array));
      t.is(compare([norm], [golden.finalWeightNorm64[name] ?? 0], { rms: 1e-5, worst: 1e-5 }), undefined, name);
    }
  });

  for (const dtype of ['f32', 'bf16', 'int8'] as const) {
    test.serial(`step by step = prefill = chunked prefill · ${dtype} · ${where}`, async (t) => {
      using model = await load('byte-tiny', target, dtype === 'f32' ? {} : { dtype });
      await sameInPieces(t, model, sameAs(dtype, target));
    });
  }
}

test.serial('score adds up what logits say', async (t) => {
  using model = await load('byte-tiny', ['ref', undefined]);
  const ids = Int32Array.from(new Random(4).integers(90, 0, 256));
  const logits = await model.logits(ids);
  const { nats, bytes, nll, bitsPerByte } = await model.score(Uint8Array.from(ids));
  const want = Array.from({ length: 89 }, (_, i) => {
    const row = logits.subarray(i * 256, (i + 1) * 256);
    return Math.log(row.reduce((sum, x) => sum + Math.exp(x), 0)) - (row[ids[i + 1] ?? 0] ?? 0);
  });
  t.is(bytes, 89);
  t.is(compare(nll, want, SAME_F32), undefined);
  t.true(Math.abs(nats - want.reduce((a, b) => a + b)) < 1e-3);
  t.true(Math.abs(bitsPerByte - nats / 89 / Math.LN2) < 1e-9);
});

test.serial('int8 costs less than 0.02 bits per byte on a trained text', async (t) => {
  using model = await createModel({ layers: 2, dModel: 32 }, { seed: 1, threads: 2 });
  const text = corpus(2048);
  await overfit(model, text, 60);
  const { mkdtempSync, rmSync } = await import('node:fs');
  const dir = mkdtempSync(join((await import('node:os')).tmpdir(), 'mambabyte-'));
  try {
    await model.save(dir);
    using exact = await loadModel(dir, { threads: 2 });
    using small = await loadModel(dir, { dtype: 'int8', threads: 2 });
    const [a, b] = [await exact.score(text), await small.score(text)];
    t.is([...small.weights.values()].filter((w) => w.dtype === 'i8').length, 6);
    t.log(`f32 ${a.bitsPerByte}, int8 ${b.bitsPerByte} bits per byte`);
    t.not(a.bitsPerByte, b.bitsPerByte);
    t.true(Math.abs(b.bitsPerByte - a.bitsPerByte) < 0.02);
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test.serial('a small model learns 4 KiB by heart', async (t) => {
  using model = await createModel({ layers: 1, dModel: 64 }, { seed: 2, threads: 2 });
  const losses = await overfit(model, corpus(4096), 420);
  const last = losses.slice(-8).reduce((a, b) => a + b, 0) / 8;
  t.log(`loss ${losses[0]?.toFixed(3)} → ${last.toFixed(3)} nats per byte`);
  // The order of the words is random: 0.46 nats per byte that cannot be learned but by heart.
  t.true(last < 0.3, `${last}`);
});

test.serial('training goes on bit for bit from saved moments', async (t) => {
  const text = corpus(1024);
  const options = { lr: 2e-3, clip: 1, weightDecay: 0.1 };
  const batches = Array.from({ length: 6 }, (_, i) => ({ bytes: text.subarray(i * 100, i * 100 + 132), batch: 4 }));
  const weightsOf = (model: Model) => new Map([...model.weights].map(([n, w]) => [n, model.runtime.read(w)]));

  using whole = await createModel({ layers: 1, dModel: 16 }, { seed: 3, threads: 2 });
  const trainer = await createTrainer(whole, options);
  for (const batch of batches) await trainer.step(batch);

  using first = await createModel({ layers: 1, dModel: 16 }, { seed: 3, threads: 1 });
  const before = await createTrainer(first, options);
  for (const batch of batches.slice(0, 3)) await before.step(batch);
  using second = await createModel({ layers: 1, dModel: 16 }, { seed: 9, threads: 2 });
  for (const [name, values] of weightsOf(first)) second.runtime.write(second.weights.get(name) as never, values);
  const after = await createTrainer(second, options);
  after.restore(before.optimizerState());
  for (const batch of batches.slice(3)) await after.step(batch);

  t.is(after.steps, trainer.steps);
  t.deepEqual(weightsOf(second), weightsOf(whole));
  t.deepEqual(after.optimizerState(), trainer.optimizerState());
});

test.serial('micro-batches give the gradient of the whole batch', async (t) => {
  const text = corpus(1024);
  const once = { lr: 0, betas: [0, 0.95], clip: 0 } as const;
  using model = await createModel({ layers: 2, dModel: 16 }, { seed: 5, threads: 1 });
  const together = await createTrainer(model, once);
  await together.step({ bytes: text.subarray(0, 4 * 33), batch: 4 });
  const apart = await createTrainer(model, once);
  await apart.step([0, 1].map((i) => ({ bytes: text.subarray(i * 66, (i + 1) * 66), batch: 2 })));
  // The summed gradient is scaled when AdamW reads it, so the moments compare.
  const want = together.optimizerState().m;
  for (const [name, got] of apart.optimizerState().m) {
    t.is(compare(got, want.get(name) ?? [], { rms: 1e-5, worst: 1e-4 }), undefined, name);
  }
});
