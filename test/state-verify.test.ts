// Reading several bytes in one pass and keeping any prefix of them: what speculative decoding stands on.
import { join } from 'node:path';
import test from 'ava';
import { createModel, type Model } from '../lib/index.ts';
import { Session, VERIFY_STEPS } from '../lib/session.ts';
import { resolveModel } from '../lib/shipped.ts';
import { openCheckpoint } from '../lib/weights/checkpoint-files.ts';
import { loadWeights } from '../lib/weights/load.ts';
import { compare, type Tolerance } from './support/close.ts';
import { cpuTargets, withDevice } from './support/devices.ts';
import { FIXTURES } from './support/fixtures.ts';
import { Random } from './support/random.ts';

const SAME: Tolerance = { rms: 2e-6, worst: 2e-5 };
const shape = { layers: 3, dModel: 24, dState: 5 };
const ids = [...new Random(8).integers(80, 0, 256)];
const [before, drafted] = [ids.slice(0, 40), ids.slice(40, 40 + VERIFY_STEPS)];

for (const device of ['ref', 'cpu'] as const) {
  test(`a verify pass gives the logits of its bytes, and any prefix can be accepted · ${device}`, async (t) => {
    using model = await createModel(shape, { seed: 2, device, threads: 2 });
    await model.withSession(async (session) => {
      for (const K of [1, 2, VERIFY_STEPS, 7, 12, 7]) {
        const input = drafted.slice(0, K);
        const want = await stepByStep(model, input);
        await session.clear();
        await session.consume(before);
        t.is(compare((await session.verify(input)).logits(), want.logits, SAME), undefined, `logits of ${K} bytes`);
        t.is(compare(session.readState(), want.states.at(-1) ?? [], SAME), undefined, 'all of them, unless told else');
        for (const k of new Set([1, Math.ceil(K / 2), K, 1])) {
          await session.accept(k);
          t.is(compare(session.readState(), want.states[k - 1] ?? [], SAME), undefined, `${k} of ${K}`);
        }
      }
    });
  });
}

const { supported, reasons } = cpuTargets();
for (const target of supported) {
  for (const dtype of ['f32', 'bf16', 'int8'] as const) {
    test(`verifying gives the bits of decoding · ${target} · ${dtype}`, async (t) => {
      for (const reason of reasons) t.log(reason);
      for (const path of [resolveModel('books-tiny'), join(FIXTURES, 'byte-tiny')]) {
        await withDevice('cpu', { target, threads: 2 }, async (device) => {
          const { tensors, config } = await openCheckpoint(path);
          const session = new Session(device, config, await loadWeights(device, tensors, { dtype }), 1);
          await session.consume(before);
          const start = session.readState();
          const logits: Float32Array[] = [];
          for (const id of drafted) logits.push((await session.verify([id])).logits());
          const states = session.readState();
          for (const K of [2, 3, 5, 8, 17, VERIFY_STEPS]) {
            await session.writeState(start);
            for (let at = 0; at < VERIFY_STEPS; at += K) {
              const got = (await session.verify(drafted.slice(at, at + K))).logits();
              t.deepEqual(
                got,
                Float32Array.from(logits.slice(at, at + K).flatMap((row) => [...row])),
                `by ${K} at ${at}`,
              );
            }
            t.deepEqual(session.readState(), states, `state after ${VERIFY_STEPS} by ${K}`);
          }
        });
      }
    });
  }
}

/** Logits after, and states after, each of `input` when read one by one. */
function stepByStep(model: Model, input: readonly number[]) {
  return model.withSession(async (session) => {
    await session.clear();
    await session.consume(before);
    const logits = new Float32Array(input.length * 256);
    const states: Float32Array[] = [];
    for (const [k, id] of input.entries()) {
      logits.set(await session.logits([id]), k * 256);
      states.push(session.readState());
    }
    return { logits, states };
  });
}

test('after an acceptance reading goes on as if nothing else had been read', async (t) => {
  using model = await createModel(shape, { seed: 2, device: 'cpu', threads: 2 });
  const wrong = drafted.map((id, i) => (i < 5 ? id : 255 - id));
  const [straight, detour] = await Promise.all([
    model.withSession(async (s: Session) => {
      await s.clear();
      return s.logits(ids);
    }),
    model.withSession(async (s: Session) => {
      await s.clear();
      await s.consume(before);
      await s.verify(wrong);
      await s.accept(5);
      return s.logits(ids.slice(45));
    }),
  ]);
  t.is(compare(detour, straight.subarray(45 * 256), SAME), undefined);
});

test('what cannot be verified or accepted is refused', async (t) => {
  using model = await createModel(shape, { seed: 2, device: 'cpu', threads: 1 });
  await model.withSession(async (session) => {
    await session.clear();
    await t.throwsAsync(session.accept(1), { message: /verify pass to come before/ });
    await t.throwsAsync(session.verify([]), { instanceOf: RangeError, message: /number of ids/ });
    await t.throwsAsync(session.verify(new Array(33).fill(1)), { instanceOf: RangeError, message: /number of ids/ });
    await session.verify([1, 2, 3]);
    await t.throwsAsync(session.accept(4), { instanceOf: RangeError, message: /steps/ });
    await t.throwsAsync(session.accept(0), { instanceOf: RangeError, message: /steps/ });
    await session.consume([1]);
    await t.throwsAsync(session.accept(1), { message: /verify pass to come before/ });
  });
  await model.withSession(async (session) => {
    await t.throwsAsync(session.verify([1]), { instanceOf: TypeError, message: /of one sequence, got 2/ });
  }, 2);
});
