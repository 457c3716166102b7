// Experiments: noise, samples of corpora, going on after an interruption, and the command line.
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { decodingTimes } from '../lib/decoding-times.ts';
import { Corpora, characters, type SampleOptions, type Split } from '../lib/experiments/corpora.ts';
import { type Experiment, SCALES } from '../lib/experiments/experiment.ts';
import { Lab, type Training } from '../lib/experiments/lab.ts';
import { LINEUP } from '../lib/experiments/lineup.ts';
import { NOISES, withNoise } from '../lib/experiments/noise-functions.ts';
import type { ExperimentRecord } from '../lib/experiments/records.ts';
import { runExperiment } from '../lib/experiments/runner.ts';
import { configFor, createModel } from '../lib/model.ts';
import { ARCHITECTURES, architectureOf } from '../lib/models/architectures.ts';
import { Session } from '../lib/session.ts';
import { PROGRAM } from './support/bundle.ts';
import { folder } from './support/folder.ts';
import { prose } from './support/prose.ts';

const TEXT = 'The quick brown fox jumps over the lazy dog. Naïve cafés serve it. '.repeat(300);
const near = (rate: number, wanted: number) => Math.abs(rate - wanted) < 0.02;
const length = (text: string) => Array.from(text).length;

test('every architecture is compared at every scale, with about as many parameters', (t) => {
  for (const scale of SCALES) {
    const sizes = LINEUP[scale].flatMap(({ config, vocab }) => {
      const full = configFor(config, undefined);
      const { name, params } = architectureOf(full);
      const count = params(full).reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
      return vocab === undefined ? [{ name, count }] : [];
    });
    t.deepEqual(new Set(sizes.map(({ name }) => name)), new Set(Object.keys(ARCHITECTURES)), scale);
    const counts = sizes.map(({ count }) => count);
    t.true(Math.max(...counts) < 1.3 * Math.min(...counts), `${scale}: ${counts}`);
  }
});

test('noise does what it says, at its rate', (t) => {
  const n = length(TEXT);
  t.true(near(1 - length(withNoise(TEXT, 'drop', 0.3, 1)) / n, 0.3));
  t.true(near(length(withNoise(TEXT, 'repeat', 0.3, 1)) / n - 1, 0.3 * 2));
  const clean = Array.from(TEXT);
  const swapped = withNoise(TEXT, 'swap', 0.3, 1);
  t.deepEqual(Array.from(swapped).sort(), [...clean].sort());
  const moved = Array.from(swapped).filter((c, i) => c !== clean[i]).length / n;
  t.true(moved > 0.35 && moved < 2 * (0.3 / 1.3) + 0.02, `${moved}`); // a swap takes two places and the next starts behind it
  const upper = withNoise('a'.repeat(5000), 'uppercase', 0.3, 1);
  t.true(near(upper.replaceAll('a', '').length / 5000, 0.3));
  t.true(near(withNoise('a'.repeat(5000), 'random case', 1, 1).replaceAll('a', '').length / 5000, 0.5));
  t.is(withNoise('an owl', 'antspeak', 1, 1), ' A N O W L ');
});

for (const noise of NOISES) {
  test(`the same seed gives the same noise, and noise of rate 0 is none · ${noise}`, (t) => {
    t.is(withNoise(TEXT, noise, 0.3, 5), withNoise(TEXT, noise, 0.3, 5));
    if (noise !== 'antspeak') t.not(withNoise(TEXT, noise, 0.3, 5), withNoise(TEXT, noise, 0.3, 6));
    if (noise !== 'antspeak' && noise !== 'random case') t.is(withNoise(TEXT, noise, 0, 5), TEXT);
  });
}

test('a text is cut between characters', (t) => {
  const bytes = Buffer.from('é€😀é');
  for (let from = 0; from < bytes.length; from++) {
    for (let to = from; to <= bytes.length; to++) {
      const text = characters(bytes.subarray(from, to)).toString();
      t.false(text.includes('\ufffd'), `${from} to ${to}: ${text}`);
    }
  }
  t.is(characters(bytes).length, bytes.length);
});

/** A folder of corpora: books in three files, and one that is not divided. */
function corpora(): string {
  const root = folder();
  const write = (corpus: string, name: string, bytes: number, seed: number) => {
    mkdirSync(join(root, corpus), { recursive: true });
    const documents = [0, 1, 2, 3].map((i) => prose(bytes / 4, 10 * seed + i).toString());
    writeFileSync(join(root, corpus, name), documents.join('\n\f\n'));
  };
  write('books', 'train-00.txt', 40_000, 1);
  write('books', 'valid.txt', 8000, 2);
  write('books', 'test.txt', 80_000, 3);
  write('udhr', 'all.txt', 40_000, 4);
  return root;
}

test('samples are even, repeatable, and of the split that they are named after', async (t) => {
  const [root, out] = [corpora(), folder()];
  const found = new Corpora(root);
  const limits = { maxBytes: 4000, maxDocument: 1000 };
  const sample = await found.sample('books', 'test', limits, out);
  t.is(sample.documents, 4);
  t.true(sample.bytes > 3900 && sample.bytes <= 4012);
  t.deepEqual(await found.sample('books', 'test', limits, out), sample);
  const whole = readFileSync(join(root, 'books', 'test.txt'), 'utf8');
  for (const piece of readFileSync(sample.path, 'utf8').split('\n\f\n')) t.true(whole.includes(piece));
  const all = { maxBytes: 1e9, maxDocument: 1e9 };
  const parts = await Promise.all((['train', 'valid', 'test'] as const).map((s) => found.sample('udhr', s, all, out)));
  const sizes = parts.map(({ bytes }) => Math.round(bytes / 1000));
  t.deepEqual(sizes, [36, 2, 2]);
  const few = await found
    .sample('books', 'test', { maxBytes: 1e9, maxDocument: 1e9, minDocument: 1e5 }, out)
    .catch(String);
  t.regex(`${few}`, /expected the test data to hold a document of 100000 bytes, got none in 4/);
});

test('data that is not there is an error that says what is needed', async (t) => {
  const cases: [() => unknown, RegExp][] = [
    [
      () => new Corpora('/no/such'),
      /expected --data to be a folder, got nothing of that name .* books\/ with train\.txt/,
    ],
    [() => new Corpora(undefined).present('experiment x', ['books']), /hold one of books, got no --data/],
    [
      () => new Corpora(folder()).present('experiment x', ['books', 'code']),
      /hold one of books, code, got none of them/,
    ],
  ];
  for (const [call, message] of cases) t.throws(call, { code: 'ERR_DATA', message });
  const packed = folder();
  mkdirSync(join(packed, 'books'));
  writeFileSync(join(packed, 'books', 'train.txt.zst'), 'x');
  const sampling = new Corpora(packed).sample('books', 'train', { maxBytes: 9, maxDocument: 9 }, packed);
  await t.throwsAsync(sampling, { code: 'ERR_DATA', message: /Unpack its \.zst files first/ });
});

function labIn(out: string, signal = new AbortController().signal, scale: 'quick' | 'default' = 'quick'): Lab {
  const placed = { device: 'cpu', threads: 1 };
  return new Lab({ out, scale, corpora: new Corpora(corpora()), ...placed, only: {}, signal, note: () => undefined });
}

test.serial('decoding is timed without the memory of any sequence leaving the device', async (t) => {
  using model = await createModel({ architecture: 'transformer', layers: 1, dModel: 32, heads: 2 }, { seed: 1 });
  const prompt = Buffer.from('It was a dark and stormy night.');
  const { readState } = Session.prototype;
  let read = 0;
  Session.prototype.readState = function () {
    read++;
    return readState.call(this);
  };
  try {
    for (const batch of [1, 3]) {
      read = 0;
      const { prefillSeconds, seconds } = await decodingTimes(model, prompt, { batch, made: 70, stretches: 3 });
      t.true(prefillSeconds > 0);
      t.is(seconds.length, 3);
      t.true(seconds.every((s) => s > 0));
      t.is(read, 0, `${batch} together`);
      const held = await model.withSession(
        async (session) => session.readSequences().map((each) => each.length),
        batch,
      );
      const steps = prompt.length - 1 + 3 * 70;
      t.deepEqual(held, new Array(batch).fill(2 * 32 * steps), 'every byte was made once');
    }
    await t.throwsAsync(decodingTimes(model, prompt, { made: 9, stretches: 1, signal: AbortSignal.abort() }), {
      any: true,
      name: 'AbortError',
    });
  } finally {
    Session.prototype.readState = readState;
  }
});

/** Three units; `ran` gets the keys of those that are computed. */
function counting(
  ran: string[],
  inputs: Record<string, number> = {},
  during?: (key: string) => void,
): Experiment<number> {
  return {
    ...{ name: 'counting', title: 'Counting', question: 'How many?', corpora: [] },
    units: async () =>
      ['a', 'b', 'c'].map((key, i) => ({
        key,
        inputs: { version: inputs[key] ?? 0 },
        run: async () => {
          ran.push(key);
          during?.(key);
          return i;
        },
      })),
  };
}

test('an interrupted experiment goes on with what is missing, and computes again what has changed', async (t) => {
  const out = folder();
  const ran: string[] = [];
  const stop = new AbortController();
  const interrupted = counting(ran, {}, (key) => key === 'b' && stop.abort(new Error('stopped')));
  await t.throwsAsync(runExperiment(interrupted, labIn(out, stop.signal), 'first'), { message: 'stopped' });
  const path = (await runExperiment(counting(ran), labIn(out), 'second')) ?? '';
  t.deepEqual(ran, ['a', 'b', 'c']);
  await runExperiment(counting(ran, { b: 1 }), labIn(out), 'third');
  t.deepEqual(ran, ['a', 'b', 'c', 'b']);
  await runExperiment(counting(ran, { b: 1 }), labIn(out), 'fourth');
  t.deepEqual(ran, ['a', 'b', 'c', 'b']);
  const record = JSON.parse(readFileSync(path, 'utf8')) as ExperimentRecord<number>;
  t.deepEqual(
    record.units.map(({ key, run, result }) => [key, run, result]),
    [
      ['a', 0, 0],
      ['b', 2, 1],
      ['c', 1, 2],
    ],
  );
  t.deepEqual(
    record.runs.map(({ command }) => command),
    ['first', 'second', 'third'],
  );
  const other = labIn(out, undefined, 'default');
  await t.throwsAsync(runExperiment(counting(ran), other, ''), {
    code: 'ERR_CHECKPOINT',
    message: /be of scale default/,
  });
});

const PART: SampleOptions = { maxBytes: 2000, maxDocument: 1000 };
const TRAINING: Training = {
  ...{ corpus: 'books', model: { name: 'tiny', config: { layers: 1, dModel: 16 } }, context: 64, batch: 4, lr: 3e-3 },
  samples: { train: { maxBytes: 1e6, maxDocument: 1e6, joined: true }, valid: PART, test: PART } satisfies Record<
    Split,
    SampleOptions
  >,
  ...{ seed: 0, budget: { bytes: 12_800 } },
};

test('a training is done once, and again where anything that decides it differs', async (t) => {
  const lab = labIn(folder());
  const model = await lab.trained(TRAINING);
  const { figures: first } = model;
  t.is(first.bytes, 12_800);
  t.is(first.steps, 50);
  t.true((first.curve.at(-1)?.bitsPerByte ?? 9) < (first.curve[0]?.bitsPerByte ?? 0));
  t.is(first.flops, first.flopsPerByte * first.bytes);
  t.deepEqual(await lab.trained(TRAINING), model);
  const other = await lab.trained({ ...TRAINING, seed: 1 });
  t.not(other.folder, model.folder);
  t.not(other.figures.test.bitsPerByte, first.test.bitsPerByte);
});

test('a subword model gets the bytes, the window and the compute that it was given, in tokens', async (t) => {
  const lab = labIn(folder());
  const budget = { flops: lab.flopsOf({ layers: 1, dModel: 16 }, 64, 12_800) };
  const { figures } = await lab.trained({
    ...{ ...TRAINING, budget, model: { name: 'subword', config: { layers: 1, dModel: 16 }, vocab: 320 } },
  });
  const { bytesPerUnit, context, flops } = figures;
  t.true(bytesPerUnit > 1.5);
  t.is(context, Math.round(64 / bytesPerUnit));
  t.true(Math.abs(flops / budget.flops - 1) < 0.1, `${flops} of ${budget.flops}`);
});

function start(args: readonly string[]): ChildProcess {
  const env = { ...process.env, MAMBABYTE_THREADS: '1', MAMBABYTE_DEVICE: 'cpu' };
  return spawn(process.execPath, [PROGRAM, ...args], { env, stdio: ['ignore', 'pipe', 'pipe'] });
}

async function finished(child: ChildProcess): Promise<{ code: number | null; out: string; err: string }> {
  let [out, err] = ['', ''];
  child.stdout?.on('data', (chunk: Buffer) => (out += chunk));
  child.stderr?.on('data', (chunk: Buffer) => (err += chunk));
  const code = await new Promise<number | null>((resolve) => child.on('close', resolve));
  return { code, out, err };
}

/** What a command that is refused must not make. */
const unmade = join(folder(), 'out');
const WRONG: [title: string, args: string[], code: number, message: RegExp][] = [
  [
    'an unknown name',
    ['experiment', 'sped'],
    2,
    /expected <name> to be one of .*, got "sped"\. Did you mean "speed"\?/,
  ],
  ['two scales', ['experiment', 'speed', '--quick', '--full'], 2, /give one/],
  ['an unknown model', ['experiment', 'speed', '--model', 'Mambabite'], 2, /Did you mean "MambaByte"\?/],
  ['an unknown corpus', ['experiment', 'noise', '--corpus', 'book'], 2, /Did you mean "books"\?/],
  [
    'a corpus of other experiments',
    ['experiment', 'noise', '--corpus', 'genome'],
    2,
    /name one of books, .* got genome/,
  ],
  ['no data', ['experiment', 'noise', '--quick', '--out', unmade], 1, /hold one of books, code, latex, got no --data/],
  ['no results', ['report', folder()], 1, /expected .* to hold results of experiments, got none there/],
];
for (const [title, args, code, message] of WRONG) {
  test.serial(`the command line explains what is wrong · ${title}`, async (t) => {
    const ran = await finished(start(args));
    t.is(ran.code, code, ran.err);
    t.regex(ran.err, message);
    t.is(ran.out, '');
    t.false(existsSync(unmade));
  });
}

test.serial('Ctrl-C saves and exits 130; the same call again finishes the training', async (t) => {
  const [data, out] = [corpora(), folder()];
  const only = ['--model', 'MambaByte', '--seeds', '1', '--quick'];
  const args = ['experiment', 'compute', '--data', data, '--out', out, ...only];
  const child = start(args);
  const models = join(out, 'models');
  const begun = () =>
    existsSync(models) && readdirSync(models).some((name) => existsSync(join(models, name, 'log.jsonl')));
  while (!begun() && child.exitCode === null) await sleep(50);
  await sleep(300);
  child.kill('SIGINT');
  t.is((await finished(child)).code, 130);
  const stepsIn = () => {
    const [name = ''] = readdirSync(models);
    return readFileSync(join(models, name, 'log.jsonl'), 'utf8').split('\n').length - 1;
  };
  const before = stepsIn();
  const { code, out: printed, err } = await finished(start(args));
  t.is(code, 0, err);
  t.is(printed, `${join(out, 'compute.json')}\n`);
  const record = JSON.parse(readFileSync(join(out, 'compute.json'), 'utf8')) as ExperimentRecord;
  t.is(record.units.length, 2); // equal compute and equal bytes are one training of the model that sets the measure
  t.is(readdirSync(models).length, 1);
  t.true(stepsIn() > before);
});
