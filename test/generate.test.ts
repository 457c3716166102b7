// Generation: seeds, stop sequences, UTF-8 across steps, sampling statistics, cancellation, and every bad option.
import test from 'ava';
import fc from 'fast-check';
import { Device } from '../lib/device.ts';
import { Output } from '../lib/generate/output.ts';
import { BusyError, createModel, type GenerateOptions, type Model } from '../lib/index.ts';
import { blank, given, runCase } from './support/cases.ts';

let model: Model;
test.before(async () => {
  model = await createModel({ layers: 2, dModel: 32 }, { seed: 3, threads: 1 });
});
test.after.always(() => model.dispose());

const bytesOf = async (options: GenerateOptions, prompt = 'It was a dark and') => [
  ...(await model.generate(prompt, { maxBytes: 64, ...options })).bytes,
];

test('a seed gives the same bytes, another seed others', async (t) => {
  const first = await bytesOf({ seed: 5 });
  t.deepEqual(await bytesOf({ seed: 5 }), first);
  t.notDeepEqual(await bytesOf({ seed: 6 }), first);
  t.notDeepEqual(await bytesOf({}), await bytesOf({}), 'without a seed every run draws its own');
});

test('the seed that was drawn is reported and reproduces the run', async (t) => {
  const { bytes, stats } = await model.generate('x', { maxBytes: 32 });
  t.deepEqual(await bytesOf({ seed: stats.seed, maxBytes: 32 }, 'x'), [...bytes]);
});

test('greedy is deterministic and is what topK 1, and the least temperature, choose', async (t) => {
  const greedy = await bytesOf({ temperature: 0 });
  t.deepEqual(await bytesOf({ temperature: 0, seed: 99 }), greedy);
  t.deepEqual(await bytesOf({ topK: 1, seed: 1 }), greedy);
  t.deepEqual(await bytesOf({ temperature: 1e-6, seed: 2 }), greedy);
  t.deepEqual(await bytesOf({ topP: 1e-9, seed: 3 }), greedy);
  t.deepEqual(await bytesOf({ minP: 1, seed: 4 }), greedy);
});

test('pieces and the whole agree, with onText and with logprobs', async (t) => {
  for (const logprobs of [false, true]) {
    let heard = '';
    const run = model.generate('pieces', { seed: 8, maxBytes: 300, logprobs, onText: (text) => (heard += text) });
    let text = '';
    const bytes: number[] = [];
    const lps: number[] = [];
    for await (const chunk of run) {
      text += chunk.text;
      bytes.push(...chunk.bytes);
      lps.push(...(chunk.logprobs ?? []));
    }
    const whole = await run;
    t.is(text, whole.text);
    t.is(heard, whole.text);
    t.deepEqual(bytes, [...whole.bytes]);
    t.is(whole.stopReason, 'length');
    t.is(whole.stats.bytes, 300);
    if (logprobs) {
      t.deepEqual(lps, [...(whole.logprobs ?? [])]);
      t.is(lps.length, 300);
      t.true(lps.every((v) => v < 0));
    }
  }
});

test('logprobs are those of the logits', async (t) => {
  const prompt = new TextEncoder().encode('abc');
  const { bytes, logprobs } = await model.generate(prompt, { seed: 2, maxBytes: 20, logprobs: true, temperature: 0.5 });
  const { nll } = await model.score(Uint8Array.from([...prompt, ...bytes]));
  t.true([...(logprobs ?? [])].every((lp, i) => Math.abs(lp + (nll[i + 2] ?? 0)) < 1e-4));
});

test('maxBytes 0 only reads the prompt', async (t) => {
  const state = model.createState();
  const { text, bytes, stopReason, stats } = await model.generate('prompt', { maxBytes: 0, state });
  t.deepEqual([text, bytes.length, stopReason, stats.bytes, stats.promptBytes], ['', 0, 'length', 0, 6]);
  t.is(state.position, 6);
});

test('a stop sequence ends the text before it, wherever pieces end', async (t) => {
  const { bytes } = await model.generate('stops', { seed: 11, maxBytes: 400 });
  for (const [at, length] of [
    [0, 1],
    [37, 2],
    [90, 5],
    [200, 40],
  ] as const) {
    const stop = bytes.slice(at, at + length);
    const first = Buffer.from(bytes).indexOf(stop);
    const run = await model.generate('stops', {
      seed: 11,
      maxBytes: 400,
      stop: [new Uint8Array([1, 2, 3, 4, 5, 6]), stop],
    });
    t.is(run.stopReason, 'stop');
    t.deepEqual([...run.bytes], [...bytes.slice(0, first)], `stop at ${first}`);
  }
});

/** Cuts bytes at arbitrary places. */
const chunked = (bytes: Uint8Array, cuts: readonly number[]): Uint8Array[] => {
  const at = [...new Set([0, ...cuts.map((c) => c % (bytes.length + 1)), bytes.length])].sort((a, b) => a - b);
  return at.slice(1).map((end, i) => bytes.subarray(at[i], end));
};

/** What Output makes of chunks: all text, all bytes, and whether it stopped. */
function collect(chunks: readonly Uint8Array[], stops: readonly Uint8Array[]) {
  const output = new Output(stops);
  let text = '';
  const pieces: string[] = [];
  for (const chunk of chunks) {
    const piece = output.push(chunk);
    pieces.push(piece.text);
    text += piece.text;
    if (piece.stopped) return { text: text + output.finish().text, bytes: output.bytes(), stopped: true, pieces };
  }
  return { text: text + output.finish().text, bytes: output.bytes(), stopped: false, pieces };
}

const cuts = fc.array(fc.nat(), { maxLength: 12 });

test('any chunking of a text gives the text, and no half character appears', (t) => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary', maxLength: 40 }), cuts, (text, where) => {
      const bytes = new TextEncoder().encode(text);
      const got = collect(chunked(bytes, where), []);
      return (
        got.text === text &&
        Buffer.compare(got.bytes, bytes) === 0 &&
        (text.includes('\ufffd') || !got.pieces.join('').includes('\ufffd'))
      );
    }),
    { seed: 42, numRuns: 500 },
  );
  t.pass();
});

test('any chunking of any bytes gives what a decoder makes of the whole', (t) => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 40 }), cuts, (bytes, where) => {
      const want = new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes);
      return collect(chunked(bytes, where), []).text === want;
    }),
    { seed: 43, numRuns: 500 },
  );
  t.pass();
});

test('any chunking stops where the whole stops', (t) => {
  const small = fc.uint8Array({ maxLength: 60, min: 97, max: 99 });
  const stop = fc.uint8Array({ minLength: 1, maxLength: 5, min: 97, max: 99 });
  fc.assert(
    fc.property(small, fc.array(stop, { maxLength: 3 }), cuts, (bytes, stops, where) => {
      const found = stops.map((s) => Buffer.from(bytes).indexOf(s)).filter((i) => i >= 0);
      const single = collect(
        [...bytes].map((b) => Uint8Array.of(b)),
        stops,
      );
      if (found.length === 0) return !single.stopped && Buffer.compare(single.bytes, bytes) === 0;
      // Byte by byte the first sequence to be complete wins; native code hands over no byte after it.
      const ends = stops
        .map((s) => Buffer.from(bytes).indexOf(s) + s.length)
        .filter((_, i) => Buffer.from(bytes).indexOf(stops[i] ?? '') >= 0);
      const end = Math.min(...ends);
      const pieces = chunked(bytes.subarray(0, end), where);
      const got = collect(pieces, stops);
      return got.stopped && single.stopped && Buffer.compare(got.bytes, single.bytes) === 0 && got.text === single.text;
    }),
    { seed: 44, numRuns: 1000 },
  );
  t.pass();
});

test('draws follow the distribution that was asked for (chi-square)', async (t) => {
  const V = 16;
  const logits = Float64Array.from({ length: V }, (_, i) => 1.5 * Math.sin(3 * i));
  const draws = 20000;
  using device = Device.open('cpu', { threads: 1 });
  const softmax = (x: readonly number[]) => {
    const e = x.map(Math.exp);
    const sum = e.reduce((a, b) => a + b, 0);
    return e.map((v) => v / sum);
  };
  const order = [...logits.keys()].sort((a, b) => (logits[b] ?? 0) - (logits[a] ?? 0));
  const keep = (chosen: readonly number[], p: readonly number[]) => {
    const sum = chosen.reduce((s, i) => s + (p[i] ?? 0), 0);
    return p.map((v, i) => (chosen.includes(i) ? v / sum : 0));
  };
  const p1 = softmax([...logits]);
  const nucleus = order.filter((_, i) => order.slice(0, i).reduce((s, j) => s + (p1[j] ?? 0), 0) < 0.8);
  const cases: [string, number[], number[]][] = [
    ['temperature 1', [1, 0, 1, 0, 1, 0, 0, 0], p1],
    ['temperature 0.5', [0.5, 0, 1, 0, 1, 0, 0, 0], softmax([...logits].map((x) => x / 0.5))],
    ['top-k 5', [1, 5, 1, 0, 1, 0, 0, 0], keep(order.slice(0, 5), p1)],
    ['top-p 0.8', [1, 0, 0.8, 0, 1, 0, 0, 0], keep(nucleus, p1)],
    [
      'min-p 0.2',
      [1, 0, 1, 0.2, 1, 0, 0, 0],
      keep(
        order.filter((i) => (p1[i] ?? 0) >= 0.2 * Math.max(...p1)),
        p1,
      ),
    ],
  ];
  for (const [title, params, want] of cases) {
    const outcome = await runCase(device, {
      title,
      op: 'sample',
      attrs: {},
      close: () => 'exact',
      outs: {
        ids: blank([draws], 0, 'i32'),
        rng: given('i32', [draws, 4], Array.from({ length: draws }, (_, i) => [17, 0, i, 0]).flat()),
      },
      ins: {
        logits: given('f32', [draws, V], Array.from({ length: draws }, () => [...logits]).flat()),
        params: given('f32', [draws, 8], Array.from({ length: draws }, () => params).flat()),
      },
    });
    const counts = new Array<number>(V).fill(0);
    for (const id of outcome.get('ids')?.values ?? []) counts[id] = (counts[id] ?? 0) + 1;
    let chi2 = 0;
    let cells = 0;
    for (const [i, p] of want.entries()) {
      if (p === 0) {
        t.is(counts[i], 0, `${title}: class ${i} is cut off`);
        continue;
      }
      chi2 += ((counts[i] ?? 0) - p * draws) ** 2 / (p * draws);
      cells++;
    }
    // Mean cells - 1, standard deviation sqrt(2 (cells - 1)): five of them above is one in a million.
    const free = cells - 1;
    t.true(
      chi2 < free + 5 * Math.sqrt(2 * free),
      `${title}: chi-square ${chi2.toFixed(1)} with ${free} degrees of freedom`,
    );
  }
});

test('logitBias forces and forbids bytes; repetitionPenalty avoids repeats', async (t) => {
  const forced = await bytesOf({ logitBias: { 65: 1000 }, seed: 1, maxBytes: 10 });
  t.deepEqual(forced, new Array(10).fill(65));
  const forbidden = await bytesOf({
    logitBias: Object.fromEntries(Array.from({ length: 255 }, (_, i) => [i, -Infinity])),
    maxBytes: 5,
  });
  t.deepEqual(forbidden, new Array(5).fill(255));
  const vector = new Float32Array(256).fill(-1e30);
  vector[66] = 0;
  t.deepEqual(await bytesOf({ logitBias: vector, maxBytes: 3 }), [66, 66, 66]);
  const varied = await bytesOf({ temperature: 0, repetitionPenalty: 10000, maxBytes: 40 });
  t.true(
    new Set(varied).size > new Set(await bytesOf({ temperature: 0, maxBytes: 40 })).size || new Set(varied).size > 30,
  );
});

test('an abort rejects with its reason', async (t) => {
  const controller = new AbortController();
  const run = model.generate('abort', { maxBytes: 1e6, signal: controller.signal });
  const reason = new Error('enough');
  setTimeout(() => controller.abort(reason), 50);
  t.is(await t.throwsAsync(async () => run), reason);
});

test('an abort returns what there is when asked to', async (t) => {
  const controller = new AbortController();
  const { signal } = controller;
  const onText = () => controller.abort();
  const run = model.generate('abort', { maxBytes: 1e6, signal, onAbort: 'return', seed: 4, onText });
  const { stopReason, bytes, stats } = await run;
  t.is(stopReason, 'abort');
  t.true(bytes.length > 0 && bytes.length < 1e6);
  t.is(stats.bytes, bytes.length);
  t.deepEqual(await bytesOf({ maxBytes: bytes.length, seed: 4 }, 'abort'), [...bytes]);
});

test('a signal that was aborted before rejects at once', async (t) => {
  const signal = AbortSignal.abort(new Error('early'));
  await t.throwsAsync(async () => model.generate('x', { signal }), { message: 'early' });
});

test.serial('an abort ends the reading of a long prompt', async (t) => {
  const controller = new AbortController();
  const run = model.generate('x'.repeat(200000), { signal: controller.signal, maxBytes: 1 });
  await new Promise((resolve) => setTimeout(resolve, 50));
  const start = performance.now();
  controller.abort(new Error('while reading'));
  await t.throwsAsync(async () => run, { message: 'while reading' });
  t.true(performance.now() - start < 1000, `${performance.now() - start} ms`);
});

test('leaving the loop ends the run', async (t) => {
  const state = model.createState();
  const run = model.generate('break', { maxBytes: 1e6, state, onAbort: 'return' });
  for await (const chunk of run) {
    t.true(chunk.bytes.length > 0);
    break;
  }
  const { stopReason } = await run;
  t.is(stopReason, 'abort');
  t.false(state.busy);
});

test('leaving the loop is no failure, even where an abort is', async (t) => {
  const run = model.generate('break', { maxBytes: 1e6 });
  for await (const _ of run) break;
  t.is((await run).stopReason, 'abort');
});

test('two generations on one state are refused', async (t) => {
  const state = model.createState();
  const first = model.generate('one', { state, maxBytes: 100, seed: 1 });
  await t.throwsAsync(async () => model.generate('two', { state, maxBytes: 1 }), { instanceOf: BusyError });
  t.is((await first).bytes.length, 100);
});

test('generations run side by side without touching each other', async (t) => {
  const want = [await bytesOf({ seed: 1 }), await bytesOf({ seed: 2 }), await bytesOf({ seed: 3 })];
  t.deepEqual(await Promise.all([1, 2, 3].map((seed) => bytesOf({ seed }))), want);
});

const bad: [
  title: string,
  options: unknown,
  error: { instanceOf: new (...args: never[]) => Error; message: RegExp },
][] = [
  ['an unknown option', { top_p: 0.9 }, { instanceOf: TypeError, message: /"top_p".*Did you mean "topP"/ }],
  [
    'negative temperature',
    { temperature: -1 },
    { instanceOf: RangeError, message: /temperature .*at least 0.*got -1/ },
  ],
  ['NaN temperature', { temperature: Number.NaN }, { instanceOf: RangeError, message: /temperature/ }],
  ['infinite temperature', { temperature: Infinity }, { instanceOf: RangeError, message: /temperature/ }],
  ['temperature as text', { temperature: '1' }, { instanceOf: TypeError, message: /temperature/ }],
  ['topK 1.5', { topK: 1.5 }, { instanceOf: RangeError, message: /topK/ }],
  ['topK -1', { topK: -1 }, { instanceOf: RangeError, message: /topK/ }],
  ['topP 0', { topP: 0 }, { instanceOf: RangeError, message: /topP/ }],
  ['topP 1.1', { topP: 1.1 }, { instanceOf: RangeError, message: /topP/ }],
  ['minP -0.1', { minP: -0.1 }, { instanceOf: RangeError, message: /minP/ }],
  ['minP NaN', { minP: Number.NaN }, { instanceOf: RangeError, message: /minP/ }],
  ['repetitionPenalty 0', { repetitionPenalty: 0 }, { instanceOf: RangeError, message: /repetitionPenalty/ }],
  ['maxBytes -1', { maxBytes: -1 }, { instanceOf: RangeError, message: /maxBytes/ }],
  ['maxBytes 1.5', { maxBytes: 1.5 }, { instanceOf: RangeError, message: /maxBytes/ }],
  ['maxBytes as text', { maxBytes: '9' }, { instanceOf: TypeError, message: /maxBytes/ }],
  ['seed -1', { seed: -1 }, { instanceOf: RangeError, message: /seed/ }],
  ['seed 2^60', { seed: 2 ** 60 }, { instanceOf: RangeError, message: /seed/ }],
  ['an empty stop', { stop: '' }, { instanceOf: RangeError, message: /stop/ }],
  ['a stop of numbers', { stop: [1] }, { instanceOf: TypeError, message: /stop/ }],
  ['logitBias of byte 256', { logitBias: { 256: 1 } }, { instanceOf: RangeError, message: /logitBias/ }],
  ['logitBias NaN', { logitBias: { 1: Number.NaN } }, { instanceOf: RangeError, message: /logitBias\[1\]/ }],
  ['a short logitBias', { logitBias: new Float32Array(3) }, { instanceOf: RangeError, message: /256/ }],
  ['logitBias 3', { logitBias: 3 }, { instanceOf: TypeError, message: /logitBias/ }],
  ['logprobs 1', { logprobs: 1 }, { instanceOf: TypeError, message: /logprobs/ }],
  ['signal {}', { signal: {} }, { instanceOf: TypeError, message: /AbortSignal/ }],
  ['state {}', { state: {} }, { instanceOf: TypeError, message: /createState/ }],
  ['onText text', { onText: 'x' }, { instanceOf: TypeError, message: /onText/ }],
  ['onAbort ignore', { onAbort: 'ignore' }, { instanceOf: TypeError, message: /onAbort/ }],
  ['options 3', 3, { instanceOf: TypeError, message: /options/ }],
  ['options null', null, { instanceOf: TypeError, message: /options/ }],
];
for (const [title, options, error] of bad) {
  test(`bad options are refused at once · ${title}`, (t) => {
    t.throws(() => model.generate('x', options as GenerateOptions), error);
  });
}

test('bad prompts are refused at once', (t) => {
  t.throws(() => model.generate(''), { instanceOf: RangeError, message: /at least one byte/ });
  t.throws(() => model.generate(new Uint8Array(0)), { instanceOf: RangeError });
  t.throws(() => model.generate(7 as never), { instanceOf: TypeError, message: /string or a Uint8Array, got 7/ });
  t.throws(() => model.generate('a\ud800b'), { instanceOf: TypeError, message: /lone surrogate/ });
  t.throws(() => model.generate('\udc00'), { instanceOf: TypeError, message: /lone surrogate/ });
  t.notThrows(() => model.generate('\u{1f600}', { maxBytes: 0 }));
});

test('invalid UTF-8 in a prompt is read as bytes', async (t) => {
  t.is((await bytesOf({ maxBytes: 4 }, Uint8Array.of(0xff, 0xfe, 0x80) as never)).length, 4);
});
