// Batches: every sequence gets the bytes that it would get alone, whoever joins, leaves or moves beside it.
import test from 'ava';
import { createModel, type GenerateOptions, type Model } from '../lib/index.ts';
import { compare } from './support/close.ts';
import { SAME_F32 } from './support/language-models.ts';
import { prose } from './support/prose.ts';

let model: Model;
test.before(async () => {
  model = await createModel({ layers: 2, dModel: 16 }, { seed: 7, threads: 2, device: 'cpu' });
});
test.after.always(() => model.dispose());

const text = prose(4000, 5);
/** Prompts of 1 to 300 bytes. */
const prompts = (n: number) =>
  Array.from({ length: n }, (_, i) => text.subarray(i * 17, i * 17 + 1 + ((i * 53) % 300)));

/** Prompts of 41 to 49 bytes: reading them together reads little in vain. */
const alike = (n: number) => Array.from({ length: n }, (_, i) => text.subarray(i * 19, i * 19 + 41 + ((i * 5) % 9)));

type Options = Omit<GenerateOptions, 'state' | 'logprobs' | 'onText' | 'seed'> & { seed: number };

async function alone(list: readonly Uint8Array[], options: Options) {
  const results = [];
  for (const [b, prompt] of list.entries()) {
    results.push(await model.generate(prompt, { ...options, seed: options.seed + b }));
  }
  return results;
}

const summary = (
  results: readonly { bytes: Uint8Array; text: string; stopReason: string; stats: { bytes: number } }[],
) =>
  results.map(({ bytes, text: t, stopReason, stats }) => ({
    bytes: [...bytes],
    text: t,
    stopReason,
    made: stats.bytes,
  }));

const cases: [title: string, count: number, options: Options, make?: typeof prompts][] = [
  ['a few', 5, { seed: 1, maxBytes: 60 }],
  ['as many as slots', 32, { seed: 2, maxBytes: 20 }],
  ['more than slots, with stops that let others join', 75, { seed: 3, maxBytes: 200, stop: ['e', '\u0007', 'qu'] }],
  ['stops that leave few', 9, { seed: 4, maxBytes: 400, stop: ['ab', 'z'] }],
  ['overlapping stops', 6, { seed: 9, maxBytes: 300, stop: ['abc', 'b', 'bc'], temperature: 0.7 }],
  ['a penalty and a bias', 35, { seed: 5, maxBytes: 120, repetitionPenalty: 1.3, logitBias: { 101: 2 }, stop: 'x' }],
  ['greedy', 4, { seed: 6, maxBytes: 80, temperature: 0 }],
  ['nothing to make', 3, { seed: 7, maxBytes: 0 }],
  ['read together', 7, { seed: 8, maxBytes: 30 }, alike],
  ['read together, more than slots, that end together', 70, { seed: 10, maxBytes: 20 }, alike],
  ['read together, more than slots, with stops', 70, { seed: 11, maxBytes: 100, stop: 'e' }, alike],
  ['read together, nothing to make', 3, { seed: 12, maxBytes: 0 }, alike],
];
for (const [title, count, options, make = prompts] of cases) {
  test(`a batch gives what its sequences give alone · ${title}`, async (t) => {
    const list = make(count);
    const got = await model.generateBatch(list, options);
    t.deepEqual(summary(got), summary(await alone(list, options)));
    for (const [b, { stats }] of got.entries()) {
      t.is(stats.seed, options.seed + b);
      t.is(stats.promptBytes, list[b]?.length ?? 0);
    }
  });
}

test('a session reads fewer sequences than it has, each to its own end', async (t) => {
  const [first, second] = [text.subarray(0, 90), text.subarray(200, 263)];
  const together = await model.withSession(async (session) => {
    await session.clear();
    await session.consumeAll([first, second]);
    return session.readSequences();
  }, 3);
  const stateAfter = (ids: Uint8Array) =>
    model.withSession(async (session) => {
      await session.clear();
      await session.consume(ids);
      return session.readState();
    });
  for (const [b, ids] of [first, second, new Uint8Array(0)].entries())
    t.is(compare(together[b] ?? [], await stateAfter(ids), SAME_F32), undefined, `sequence ${b}`);
});

test('more sequences than a fused block takes run op by op, to the same bytes', async (t) => {
  const B = 40;
  const firsts = Array.from({ length: B }, (_, b) => (b * 37) % 256);
  const plain = { temperature: 1, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1 };
  const steps = 25;
  const { watched } = await model.withSession(async (session) => {
    await session.clear();
    const rows = firsts.map((pending, seed) => ({ settings: { ...plain, seed }, pending }));
    return (await session.startDecoding(rows)).run({ steps });
  }, B);
  const want = await Promise.all(
    firsts.map((first, seed) => model.generate(Uint8Array.of(first), { seed, maxBytes: steps })),
  );
  for (const [b, { bytes }] of want.entries()) {
    t.deepEqual(
      Array.from({ length: steps }, (_, i) => watched[i * B + b]),
      [...bytes],
    );
  }
});

test('samples of one prompt differ by their seeds alone, and read it once', async (t) => {
  const prompt = text.subarray(0, 3000);
  const list = [prompt, ...new Array(5).fill(prompt), text.subarray(7, 40), prompt];
  const options = { seed: 21, maxBytes: 30, stop: 'e' };
  const got = await model.generateBatch(list, options);
  t.deepEqual(summary(got), summary(await alone(list, options)));
  const [first = 0, ...others] = got.filter((_, i) => i !== 6).map((r) => r.stats.prefillMs);
  t.true(
    others.every((ms) => ms < first),
    `${first} ms, then ${others} ms`,
  );
});

test.serial('an abort ends a batch with what there is, or with its reason', async (t) => {
  const list = prompts(4);
  for (const onAbort of ['return', 'throw'] as const) {
    const controller = new AbortController();
    const run = model.generateBatch(list, { maxBytes: 1e6, seed: 1, signal: controller.signal, onAbort });
    setTimeout(() => controller.abort(new Error('enough')), 1500);
    if (onAbort === 'throw') await t.throwsAsync(run, { message: 'enough' });
    else {
      const results = await run;
      t.true(results.every((r) => r.stopReason === 'abort'));
      t.true(results.some((r) => r.bytes.length > 0));
    }
  }
});
