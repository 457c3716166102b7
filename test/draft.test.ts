// Speculative decoding: whatever the drafter, a lossless run makes the bytes of a plain one.
import { mkdtemp, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { ByteMarginals, ByteTrie } from '../lib/draft/byte-marginals.ts';
import type { Draft, Drafter, DraftRequest } from '../lib/draft/drafter.ts';
import { draw } from '../lib/draft/draw.ts';
import { LookupDrafter } from '../lib/draft/lookup-drafter.ts';
import { BusyError, createModel, type GenerateOptions, loadModel, type Model, type Tokenizer } from '../lib/index.ts';
import { native } from '../lib/native.ts';
import { Philox } from '../lib/rng.ts';
import { RING_SLOTS, StateRing } from '../lib/state-ring.ts';
import { trainTokenizer } from '../lib/tokenizer/train-bpe.ts';
import { prose } from './support/prose.ts';

const tokenizer: Promise<Tokenizer> = (async () => {
  const file = join(await mkdtemp(join(tmpdir(), 'mambabyte-draft-')), 'text');
  await writeFile(file, prose(60_000, 1));
  return trainTokenizer(file, { vocab: 400 });
})();

const tiny = loadModel('books-tiny', { device: 'cpu', threads: 1 });
const bytes = createModel({ layers: 2, dModel: 32 }, { seed: 3, device: 'cpu', threads: 1 });
const subword = tokenizer.then((t) =>
  createModel({ layers: 2, dModel: 32 }, { seed: 4, device: 'cpu', threads: 1, tokenizer: t }),
);
const otherSubword = tokenizer.then((t) =>
  createModel({ layers: 1, dModel: 16 }, { seed: 5, device: 'cpu', threads: 1, tokenizer: t }),
);

/** Knows what comes, but for every n-th id. */
class Oracle implements Drafter {
  readonly #text: Uint8Array;
  readonly #wrong: number;
  #at = 0;

  constructor(text: Uint8Array, wrong: number) {
    this.#text = text;
    this.#wrong = wrong;
  }
  reset(): void {
    this.#at = 0;
  }
  push(ids: ArrayLike<number>): void {
    this.#at += ids.length;
  }
  propose({ most }: DraftRequest): Draft {
    const ids = [...this.#text.subarray(this.#at, this.#at + most)];
    const told = ids.map((id, i) => ((this.#at + i) % this.#wrong === this.#wrong - 1 ? id ^ 1 : id));
    return { ids: told, confidence: told.map(() => 0.9) };
  }
  dispose(): void {}
}

const PROMPTS: [name: string, prompt: string | Uint8Array][] = [
  ['prose', 'It was a dark and'],
  ['a word cut short', 'The gentleman had been wal'],
  ['CRLF', 'CHAPTER I\r\n\r\nThe morning'],
  ['emoji cut in the middle', new TextEncoder().encode('so 😀😀').subarray(0, 9)],
  ['binary', Uint8Array.of(0, 255, 128, 10, 200, 7)],
  ['one byte', 'a'],
  ['a long run of spaces', `x${' '.repeat(90)}`],
  ['repetition', 'one two three, one two three, one two three, one'],
];

const SETTINGS: [name: string, options: GenerateOptions][] = [
  ['greedy', { temperature: 0 }],
  ['temperature 0.8', { temperature: 0.8, seed: 11 }],
  ['top-k and top-p', { temperature: 1.2, topK: 40, topP: 0.9, minP: 0.01, seed: 12 }],
  ['penalty and bias', { temperature: 0.7, repetitionPenalty: 1.2, logitBias: { 101: -2 }, seed: 13 }],
  ['fixed length', { temperature: 0, draftLength: 5 }],
  ['longest', { temperature: 0.9, draftLength: 31, seed: 14 }],
];

const DRAFTERS: [name: string, open: (plain: Uint8Array) => Promise<Model | 'lookup' | Drafter>][] = [
  ['subword model', () => subword],
  ['byte model', () => bytes],
  ['the model itself', () => tiny],
  ['lookup', async () => 'lookup'],
  ['oracle that errs', async (plain) => new Oracle(plain, 7)],
  ['oracle', async (plain) => new Oracle(plain, 1e9)],
];

for (const [drafterName, open] of DRAFTERS) {
  for (const [i, [settingsName, options]] of SETTINGS.entries()) {
    test(`lossless · ${drafterName} · ${settingsName}`, async (t) => {
      const model = await tiny;
      // Every other prompt, all of them over two settings.
      for (const [name, prompt] of PROMPTS.filter((_, p) => p % 2 === i % 2)) {
        const { draftLength: _, ...plainOptions } = options;
        const plain = await model.generate(prompt, { maxBytes: 40, ...plainOptions });
        const draft = await open(plain.bytes);
        const result = await model.generate(prompt, { maxBytes: 40, ...options, draft });
        t.deepEqual(result.bytes, plain.bytes, name);
        const { drafted, accepted, passes, plain: plainly } = result.stats.draft ?? {};
        t.is((accepted ?? 0) + (passes ?? 0) + (plainly ?? 0), 40, `${name}: every byte is counted once`);
        t.true((drafted ?? 0) >= (accepted ?? 0), name);
      }
    });
  }
}

test('a perfect drafter makes long passes, a hopeless one is left alone', async (t) => {
  const model = await tiny;
  const plain = await model.generate('It was', { maxBytes: 400, temperature: 0 });
  const run = (drafter: Drafter) => model.generate('It was', { maxBytes: 400, temperature: 0, draft: drafter });
  const perfect = (await run(new Oracle(plain.bytes, 1e9))).stats.draft;
  t.true((perfect?.meanLength ?? 0) > 20, JSON.stringify(perfect));
  const hopeless = (await run(new Oracle(plain.bytes, 1))).stats.draft;
  t.is(hopeless?.accepted, 0);
  t.true((hopeless?.plain ?? 0) > 300, JSON.stringify(hopeless));
});

test('drafting streams, stops, aborts and leaves the state like plain decoding', async (t) => {
  const model = await tiny;
  const draft = await subword;
  const options = { maxBytes: 120, temperature: 0.9, seed: 3 };
  const whole = await model.generate('The old house', options);
  const stop = whole.bytes.slice(50, 54);
  const state = model.createState();
  for (const drafter of [draft, new Oracle(whole.bytes, 5), 'lookup' as const]) {
    const from = { plain: model.createState(), drafted: model.createState() };
    const plain = await model.generate('The old house', { ...options, stop, state: from.plain });
    const drafted = await model.generate('The old house', { ...options, stop, state: from.drafted, draft: drafter });
    t.deepEqual(drafted.bytes, plain.bytes);
    t.is(drafted.stopReason, plain.stopReason);
    t.deepEqual(from.drafted.toBytes(), from.plain.toBytes(), 'the state, position and pending byte');
  }
  const pieces: Uint8Array[] = [];
  for await (const piece of model.generate('The old house', { ...options, draft })) pieces.push(piece.bytes);
  t.true(pieces.length > 1);
  t.deepEqual(new Uint8Array(Buffer.concat(pieces)), whole.bytes);
  const controller = new AbortController();
  const run = model.generate('The', { maxBytes: 1e6, draft, state, signal: controller.signal, onAbort: 'return' });
  for await (const _ of run) controller.abort();
  const aborted = await run;
  t.is(aborted.stopReason, 'abort');
  t.is(state.position, 3 + aborted.bytes.length);
});

test('log-probabilities of drafted bytes are those of plain decoding', async (t) => {
  const model = await tiny;
  const options = { maxBytes: 60, temperature: 0.8, seed: 9, logprobs: true };
  const plain = await model.generate('He said', options);
  const drafted = await model.generate('He said', { ...options, draft: new Oracle(plain.bytes, 6) });
  t.deepEqual(drafted.logprobs, plain.logprobs);
  const loose = await model.generate('He said', { ...options, draft: await bytes, acceptance: 'top-beta' });
  t.is(loose.logprobs?.length, 60);
  const { nll } = await model.score(new Uint8Array([...Buffer.from('He said'), ...loose.bytes]));
  loose.logprobs?.forEach((lp, i) => {
    t.true(Math.abs(lp + (nll[i + 6] ?? 0)) < 0.05, `byte ${i}: ${lp} and ${nll[i + 6]}`);
  });
});

test('top-beta: every byte is among the beta most probable, beta 1 is greedy decoding', async (t) => {
  const model = await tiny;
  const options = { maxBytes: 80, temperature: 0 };
  const prompt = 'The captain of the';
  const plain = await model.generate(prompt, options);
  const one = await model.generate(prompt, { ...options, draft: await bytes, acceptance: 'top-beta', beta: 1 });
  t.deepEqual(one.bytes, plain.bytes);
  for (const beta of [3, 10]) {
    const loose = await model.generate(prompt, { ...options, draft: await tiny, acceptance: 'top-beta', beta });
    const text = new Uint8Array([...Buffer.from(prompt), ...loose.bytes]);
    const logits = await model.logits(text);
    loose.bytes.forEach((byte, i) => {
      const row = logits.subarray((prompt.length + i - 1) * 256, (prompt.length + i) * 256);
      const above = row.filter((x) => x > (row[byte] ?? 0) + 0.02).length;
      t.true(above < beta, `byte ${i}: rank ${above}`);
    });
  }
});

test('a subword model generates, and a smaller one drafts its tokens', async (t) => {
  const model = await subword;
  for (const options of [
    { temperature: 0, maxBytes: 90 },
    { temperature: 1, seed: 5, maxBytes: 90 },
  ]) {
    const plain = await model.generate('The weather was', options);
    t.is(plain.bytes.length, 90);
    for (const draft of [await otherSubword, model, 'lookup' as const]) {
      const drafted = await model.generate('The weather was', { ...options, draft });
      t.deepEqual(drafted.bytes, plain.bytes);
    }
  }
  const whole = await model.generate('The weather was', { temperature: 0, maxBytes: 90 });
  const stop = whole.bytes.slice(30, 33);
  const cut = await model.generate('The weather was', {
    temperature: 0,
    maxBytes: 90,
    stop,
    draft: await otherSubword,
  });
  t.is(cut.stopReason, 'stop');
  t.deepEqual(cut.bytes, whole.bytes.slice(0, cut.bytes.length));
});

test('a state of a subword model is that after the token with the last byte, with and without a drafter', async (t) => {
  const model = await subword;
  for (const seed of [1, 2, 3, 4, 5]) {
    const options = { seed, maxBytes: 61 };
    const states = [{}, { logprobs: true }, { draft: model }].map((more) => ({ more, state: model.createState() }));
    const runs = [];
    for (const { more, state } of states) {
      runs.push(await model.generate('The weather was', { ...options, ...more, state }));
    }
    t.deepEqual(runs[1]?.bytes, runs[0]?.bytes);
    for (const { more, state } of states.slice(1)) {
      t.deepEqual(state.toBytes(), states[0]?.state.toBytes(), `seed ${seed}, ${Object.keys(more)}`);
    }
  }
});

test('log-probabilities end with the stop sequence', async (t) => {
  const model = await tiny;
  const options = { maxBytes: 60, temperature: 0, logprobs: true };
  const { bytes: whole } = await model.generate('He said', options);
  const stop = whole.slice(20, 24);
  const plain = await model.generate('He said', { ...options, stop });
  const drafted = await model.generate('He said', { ...options, stop, draft: new Oracle(whole, 1e9), draftLength: 31 });
  t.is(drafted.logprobs?.length, drafted.stats.bytes);
  t.deepEqual(drafted.logprobs, plain.logprobs);
});

test('what no draft may be is refused, and leaves the state where the output ends', async (t) => {
  const model = await tiny;
  const { bytes: whole } = await model.generate('He said', { maxBytes: 40, temperature: 0 });
  const options = { maxBytes: 40, temperature: 0 };
  const BAD: [name: string, draft: unknown, message: RegExp][] = [
    ['nothing', undefined, /arrays ids and confidence/],
    ['no confidence', { ids: [1] }, /arrays ids and confidence/],
    ['too little of it', { ids: [1], confidence: [] }, /confidences/],
    ['NaN of it', { ids: [1], confidence: [Number.NaN] }, /a confidence/],
    ['too many ids', { ids: [1, 2, 3, 4, 5], confidence: [1, 1, 1, 1, 1] }, /number of ids.*at most 4/],
    ['no byte', { ids: [256], confidence: [1] }, /an id.*255/],
  ];
  for (const [name, draft, message] of BAD) {
    const drafter = new Oracle(whole, 1e9);
    const { propose } = drafter;
    let drafts = 0;
    drafter.propose = (request) => (drafts++ < 2 ? propose.call(drafter, request) : (draft as Draft));
    const state = model.createState();
    await t.throwsAsync(
      model.generate('He said', { ...options, draft: drafter, draftLength: 4, state }).then(),
      { message },
      name,
    );
    t.is(state.position, 17, 'two passes of five bytes');
    const rest = await model.generate('', { ...options, maxBytes: 30, state });
    t.deepEqual(rest.bytes, whole.slice(10), name);
  }
});

test('a drafter of one’s own that fails leaves the state where the output ends, and can be used again', async (t) => {
  const model = await tiny;
  const { bytes: whole } = await model.generate('He said', { maxBytes: 40, temperature: 0 });
  for (const method of ['push', 'propose'] as const) {
    const drafter = new Oracle(whole, 1e9);
    const works = drafter[method];
    let calls = 0;
    drafter[method] = (...given: unknown[]): never => {
      if (++calls === 3) throw new Error('not today');
      return Reflect.apply(works, drafter, given) as never;
    };
    const state = model.createState();
    const options = { maxBytes: 40, temperature: 0, draftLength: 4, draft: drafter };
    await t.throwsAsync(model.generate('He said', { ...options, state }).then(), { message: 'not today' });
    t.is(state.position, 17);
    const rest = await model.generate('', { maxBytes: 30, temperature: 0, state });
    t.deepEqual(rest.bytes, whole.slice(10), method);
    t.deepEqual((await model.generate('He said', options)).bytes, whole, 'again');
  }
});

test('a drafter follows one text at a time, and a batch takes none', async (t) => {
  const model = await tiny;
  const draft = new Oracle(new Uint8Array(50), 7);
  const first = model.generate('One', { maxBytes: 20, draft });
  await t.throwsAsync(model.generate('Two', { maxBytes: 20, draft }).then(), { instanceOf: BusyError });
  await first;
  await t.notThrowsAsync(model.generate('Three', { maxBytes: 20, draft }).then());
  await t.throwsAsync(model.generateBatch(['a'], { draft } as object), { instanceOf: TypeError, message: /draft/ });
});

test('a ring comes back when a generation cannot begin', async (t) => {
  const drafter = await createModel({ layers: 1, dModel: 16 }, { seed: 1, device: 'cpu', threads: 1 });
  const rings: StateRing[] = [];
  const { borrowRing, returnRing } = drafter;
  drafter.borrowRing = () => rings[rings.push(borrowRing.call(drafter)) - 1] as StateRing;
  drafter.returnRing = (ring) => {
    rings.splice(rings.indexOf(ring), 1);
    returnRing.call(drafter, ring);
  };
  const model = await tiny;
  const state = model.createState();
  state.acquire('test');
  await t.throwsAsync(model.generate('a', { state, draft: drafter }).then(), { instanceOf: BusyError });
  await model.generate('a', { draft: drafter, maxBytes: 12 });
  t.is(rings.length, 0);
  drafter.dispose();
});

test('top-beta draws no byte that a bias forbids', async (t) => {
  const model = await tiny;
  const result = await model.generate('The', {
    maxBytes: 40,
    temperature: 0,
    logitBias: { 32: -Infinity },
    draft: new Oracle(new Uint8Array(40).fill(32), 1e9),
    draftLength: 4,
    acceptance: 'top-beta',
    beta: 256,
  });
  t.false(result.bytes.includes(32));
});

test('a prompt that is one long word is not read token by token', async (t) => {
  const options = { seed: 4, device: 'cpu', threads: 1, tokenizer: await tokenizer };
  const drafter = await createModel({ layers: 1, dModel: 16 }, options);
  const read: number[] = [];
  const { borrowRing } = drafter;
  drafter.borrowRing = () => {
    const ring = borrowRing.call(drafter);
    const step = ring.step.bind(ring);
    ring.step = (id) => {
      read.push(id);
      return step(id);
    };
    return ring;
  };
  const model = await bytes;
  await model.generate('x'.repeat(5000), { maxBytes: 10, temperature: 0, draftLength: 4, draft: drafter });
  drafter.dispose();
  t.true(read.length < 100, `${read.length} steps`);
});

/** Greedy drafts of a drafter, with nothing that depends on time. */
const greedily = (most: number): DraftRequest => ({
  most,
  least: new Float64Array(most + 1),
  settings: { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed: 0 },
  drawn: 0,
});

test('a draft within a word goes on with what the word becomes', async (t) => {
  const model = await loadModel('books-draft', { device: 'cpu', threads: 1 });
  const drafter = model.drafterFor(await tiny);
  for (const [known, more, next] of [
    ['Once upon a ', 'ti', 'me '],
    ['He told me the whole ', 'sto', 'ry '],
    ['the King of ', 'Engl', 'and '],
    ['There was a ', 'litt', 'le '],
    ['in the middle of the ', 'ni', 'ght'],
    ['she sat down ', 'besi', 'de '],
    ['and they lived in a ', 'palac', 'e'], // no token begins so
  ] as const) {
    await drafter.reset(Buffer.from(known));
    drafter.push(Buffer.from(more));
    const { ids } = await drafter.propose(greedily(next.length));
    t.is(Buffer.from(ids).toString(), next, known + more);
  }
  drafter.dispose();
  model.dispose();
});

test('a drafter that followed a text drafts like one that begins there', async (t) => {
  const model = await loadModel('books-draft', { device: 'cpu', threads: 1 });
  const [following, fresh] = [model.drafterFor(await tiny), model.drafterFor(await tiny)];
  const text = Buffer.from(`${prose(600, 3)} Pneumonoultramicroscopic 😀😀 \r\n\r\n ${prose(600, 4)}`);
  const lengths = new Philox(5, 0);
  let at = 20;
  await following.reset(text.subarray(0, at));
  while (at < text.length) {
    const { ids } = await following.propose(greedily(9));
    await fresh.reset(text.subarray(0, at));
    t.deepEqual(
      ids,
      (await fresh.propose(greedily(9))).ids,
      `after ${JSON.stringify(text.toString('latin1', at - 20, at))}`,
    );
    const length = 1 + lengths.integer(12);
    following.push(text.subarray(at, at + length));
    at += length;
  }
  following.dispose();
  fresh.dispose();
  model.dispose();
});

test('sampled bytes follow the model whatever drafts them: chi-square', async (t) => {
  const model = await tiny;
  const prompt = 'The ';
  const logits = (await model.logits(prompt)).subarray(-256);
  const temperature = 1;
  const max = Math.max(...logits);
  const weights = [...logits].map((x) => Math.exp((x - max) / temperature));
  const total = weights.reduce((a, b) => a + b, 0);
  const runs = 300;
  const counts = new Float64Array(256);
  for (let seed = 0; seed < runs; seed++) {
    const { bytes: made } = await model.generate(prompt, {
      maxBytes: 2,
      temperature,
      seed,
      draft: new Oracle(Uint8Array.of(116, 104), 1e9),
      draftLength: 1,
    });
    counts[made[0] ?? 0] = (counts[made[0] ?? 0] ?? 0) + 1;
  }
  // Classes that are expected fewer than five times are one.
  let [statistic, classes, restExpected, restCount] = [0, 0, 0, 0];
  weights.forEach((w, v) => {
    const expectation = (runs * w) / total;
    if (expectation < 5) {
      restExpected += expectation;
      restCount += counts[v] ?? 0;
      return;
    }
    statistic += ((counts[v] ?? 0) - expectation) ** 2 / expectation;
    classes++;
  });
  statistic += (restCount - restExpected) ** 2 / Math.max(restExpected, 1);
  // Mean and deviation of chi-square with `classes` degrees of freedom; seeds are fixed, so this never flickers.
  t.true(statistic < classes + 4 * Math.sqrt(2 * classes), `${statistic} for ${classes} classes`);
});

test('what is no drafter is refused by name', async (t) => {
  const model = await tiny;
  const bad = (options: object) => () => model.generate('a', options as GenerateOptions);
  t.throws(bad({ draft: 7 }), { instanceOf: TypeError, message: /draft.*'lookup'.*got 7/ });
  t.throws(bad({ draft: 'books-draft' }), { instanceOf: TypeError, message: /loadModel/ });
  t.throws(bad({ beta: 3 }), { instanceOf: TypeError, message: /beta.*draft/ });
  t.throws(bad({ draft: 'lookup', beta: 3 }), { instanceOf: TypeError, message: /top-beta/ });
  t.throws(bad({ draft: 'lookup', acceptance: 'top-beta', beta: 0 }), { instanceOf: RangeError, message: /beta/ });
  t.throws(bad({ draft: 'lookup', draftLength: 32 }), { instanceOf: RangeError, message: /draftLength/ });
  const tokens = await createModel({ layers: 1, dModel: 16, vocab: 300 }, { device: 'cpu', threads: 1 });
  await t.throwsAsync(async () => model.generate('a', { draft: tokens }), {
    instanceOf: TypeError,
    message: /share its ids/,
  });
  tokens.dispose();
  await t.throwsAsync(async () => model.generate('a', { draft: tokens }), { message: /disposed/ });
});

test('a ring goes back and forth as if the sequence had been read from the start', async (t) => {
  const model = await bytes;
  const ids = [...Buffer.from('states of a ring are states of prefixes')];
  const logits = await model.logits(Int32Array.from(ids));
  const ring = new StateRing(model.runtime, model.config, model.weights);
  await ring.reset(ids.slice(0, 3));
  const expectAt = (position: number) => {
    const want = logits.subarray((position + 1) * 256, (position + 2) * 256);
    const worst = Math.max(...ring.logits.map((x, i) => Math.abs(x - (want[i] ?? 0))));
    t.true(worst < 1e-4, `position ${position}: ${worst}`);
  };
  expectAt(1);
  for (let at = 3; at < 30; at++) {
    await ring.step(ids[at] ?? 0);
    expectAt(at - 1);
    const back = Math.max(ring.oldest, ring.position - (at % (RING_SLOTS - 1)));
    const now = ring.position;
    ring.position = back;
    expectAt(back);
    ring.position = now;
  }
  t.throws(() => (ring.position = ring.oldest - 1), { instanceOf: RangeError });
  ring.position -= 2;
  await ring.step(ids[29] ?? 0);
  t.throws(() => (ring.position += 1), { instanceOf: RangeError });
  ring.dispose();
});

test('lookup finds the longest context, and goes on with its own draft where the text ends', (t) => {
  const drafter = new LookupDrafter();
  const settings = { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed: 0 };
  const request = { most: 12, least: new Array<number>(13).fill(0.05), settings, drawn: 0 };
  drafter.reset(Buffer.from('one two three; one two'));
  t.is(Buffer.from(drafter.propose(request).ids).toString(), ' three; one');
  drafter.push(Buffer.from(' six'));
  t.deepEqual(drafter.propose(request).ids, []);
  drafter.reset(Buffer.from('abababababababab'));
  t.is(Buffer.from(drafter.propose(request).ids).toString(), 'abababababab');
  drafter.reset([]);
  t.deepEqual(drafter.propose(request).ids, []);
});

test('byte marginals of a token distribution are sums over the tokens that agree', async (t) => {
  const t400 = await tokenizer;
  const marginals = new ByteMarginals(ByteTrie.of(t400));
  const logits = Float32Array.from({ length: t400.vocab }, (_, i) => Math.sin(i * 7.1) * 3);
  const all = Array.from({ length: t400.vocab }, (_, id) => id);
  for (const start of ['', 't', 'th', ' ']) {
    marginals.start(logits, Buffer.from(start));
    const path = [...Buffer.from(start)];
    for (let depth = 0; depth < 3; depth++) {
      const agree = all.filter((id) => path.every((byte, i) => t400.bytesOf(id)[i] === byte));
      if (agree.length === 0) break;
      const sum = (ids: number[]) => ids.reduce((total, id) => total + Math.exp(logits[id] ?? 0), 0);
      const scale = marginals.total / sum(agree);
      const same = (got: number, ids: number[], what: string) =>
        t.true(Math.abs(got - scale * sum(ids)) < 1e-6 * (1 + marginals.total), `${what}: ${got}`);
      same(
        marginals.ending,
        agree.filter((id) => t400.bytesOf(id).length === path.length),
        'ending',
      );
      const weights = new Float64Array(256);
      marginals.addTo(weights, 1);
      weights.forEach((weight, byte) => {
        same(
          weight,
          agree.filter((id) => t400.bytesOf(id)[path.length] === byte),
          `byte ${byte}`,
        );
        t.is(marginals.weightOf(byte), weight);
      });
      const next = weights.findLastIndex((weight) => weight > 0);
      if (next < 0) break;
      path.push(next);
      marginals.take(next);
    }
  }
});

test('the tokens that count are those within nine nats of the best, and weigh exponentials', (t) => {
  const { weighTokens } = native().binding;
  const rng = new Philox(8);
  for (const [vocab, spread] of [
    [1, 1],
    [2, 9],
    [7, 3],
    [300, 0],
    [300, 4],
    [4096, 30],
  ] as const) {
    const logits = Float32Array.from({ length: vocab }, () => rng.normal() * spread - 50);
    const ids = Int32Array.from(logits.keys()).sort((a, b) => ((a * 7919) % 4099) - ((b * 7919) % 4099));
    logits[ids[5] ?? -1] = Number.NEGATIVE_INFINITY;
    logits[ids[6] ?? -1] = Number.NaN;
    for (const [from, to] of [
      [0, vocab],
      [vocab >> 1, vocab],
      [0, 1],
      [vocab, vocab],
    ] as const) {
      const positions = new Int32Array(vocab);
      const sums = new Float64Array(vocab + 1);
      const count = weighTokens(logits, ids, from, to, positions, sums);

      const all = Array.from({ length: to - from }, (_, i) => from + i);
      const at = (position: number) => logits[ids[position] ?? -1] ?? Number.NaN;
      const best = Math.max(...all.map(at).filter((x) => x > Number.NEGATIVE_INFINITY));
      const counting = all.filter((position) => at(position) > best - 9);
      const name = `${vocab} x ${spread}, [${from}, ${to})`;
      t.deepEqual([...positions.subarray(0, count)], counting, name);
      let sum = 0;
      counting.forEach((position, i) => {
        t.true(Math.abs((sums[i] ?? 0) - sum) <= 1e-9 * sum, `${name}: sum before ${position}`);
        sum += Math.exp(at(position) - best);
      });
      t.true(Math.abs((sums[count] ?? 0) - sum) <= 1e-9 * sum, `${name}: sum of all`);
    }
  }
});

test('a drafter draws like the sampler', async (t) => {
  const model = await tiny;
  const prompt = 'The ';
  const logits = (await model.logits(prompt)).subarray(-256);
  const max = Math.max(...logits);
  const weights = Float64Array.from(logits, (x) => Math.exp(x - max));
  for (const options of [
    { temperature: 0 },
    { temperature: 0.7 },
    { temperature: 1, topP: 0.8 },
    { temperature: 1.5, topK: 9 },
    { temperature: 1, minP: 0.1 },
  ]) {
    const settings = { topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed: 0, ...options };
    for (let seed = 0; seed < 40; seed++) {
      const { bytes: made } = await model.generate(prompt, { ...options, seed, maxBytes: 1 });
      t.is(draw(weights, 256, { ...settings, seed }, 0).index, made[0] ?? -1);
    }
  }
});
