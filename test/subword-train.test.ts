// Training and evaluation of models that read tokens: the same promises as for bytes, with figures per byte.
import { execFile } from 'node:child_process';
import { readdirSync, readFileSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import test from 'ava';
import { openDataset } from '../lib/data/dataset.ts';
import { encodedPieces } from '../lib/data/encode.ts';
import { openEncoder } from '../lib/data/encoder.ts';
import { openTokens } from '../lib/data/token-dataset.ts';
import { WindowSampler } from '../lib/data/windows.ts';
import { CheckpointError, DataError } from '../lib/errors.ts';
import { createModel, loadModel } from '../lib/model.ts';
import { Tokenizer } from '../lib/tokenizer/tokenizer.ts';
import type { Rank } from '../lib/train/data-parallel.ts';
import { evaluate, sliding } from '../lib/train/evaluate.ts';
import { train, trainAsRank } from '../lib/train/loop.ts';
import type { TrainOptions } from '../lib/train/options.ts';
import { fileOf, folder } from './support/folder.ts';
import { tokenizerJson } from './support/tokenizer.ts';
import { CORPUS, DOCUMENTS, filesOf, logOf, TEXT, VALID } from './support/training.ts';

const execute = promisify(execFile);
const data = fileOf('corpus.txt', CORPUS);
const valid = fileOf('valid.txt', VALID);
const json = tokenizerJson();
const tokenizer = Tokenizer.fromJson(json);
const file = fileOf('tokenizer.json', json);
const config = { layers: 2, dModel: 16 };

function options(more: Partial<TrainOptions> = {}): TrainOptions & { out: string } {
  const out = join(folder(), 'run');
  return { config, data, out, tokenizer: file, steps: 6, batch: 2, context: 32, lr: 1e-3, threads: 1, ...more };
}

const files = (checkpoint: string) => filesOf(checkpoint, 'tokenizer.json');

function tokenFiles(where: string): string[] {
  return readdirSync(where).filter((name) => name.startsWith('tokens-'));
}

test('six steps are three, a resume, and three more, bit for bit', async (t) => {
  for (const more of [
    { valid, evalEvery: 2, sampling: 'uniform' as const },
    { accumulate: 2, context: 600, batch: 3 }, // longer than a document: padding
  ]) {
    const straight = options({ seed: 5, ...more });
    const done = await train(straight);
    const broken = { ...straight, out: join(folder(), 'run') };
    const controller = new AbortController();
    const onProgress = ({ step }: { step: number }) => step >= 3 && controller.abort();
    t.like(await train({ ...broken, onProgress, signal: controller.signal }), { step: 3, stopped: 'aborted' });
    const [cached = ''] = tokenFiles(broken.out);
    const { mtimeMs } = statSync(join(broken.out, cached));
    const resumed = await train({ out: broken.out, resume: true });
    t.like(resumed, { step: 6, stopped: 'done', loss: done.loss, best: done.best, bytes: done.bytes });
    t.deepEqual(files(resumed.checkpoint), files(done.checkpoint));
    t.deepEqual(logOf(broken.out), logOf(straight.out));
    t.is(statSync(join(broken.out, cached)).mtimeMs, mtimeMs, 'tokens are encoded once');
  }
});

test('a run counts bytes, and its checkpoint is a subword model', async (t) => {
  const encoded: number[] = [];
  const given = options({ steps: 30, lr: 1e-2, valid, evalEvery: 10 });
  const result = await train({ ...given, onEncode: ({ bytes, total }) => encoded.push(bytes / total) });
  t.is(encoded.at(-1), 1);
  const tokens = DOCUMENTS.reduce((sum, d) => sum + tokenizer.encode(d).length, 0);
  const perToken = 10_000 / tokens;
  t.is(result.bytes, Math.round(30 * 2 * 32 * perToken));
  const lines = logOf(given.out);
  for (const { loss = 0, bitsPerByte = 0 } of lines) {
    t.true(Math.abs(bitsPerByte - loss / Math.LN2 / perToken) < 1e-9);
  }
  t.true((lines.at(-1)?.loss ?? 9) < 0.75 * (lines[0]?.loss ?? 0));
  using model = await loadModel(join(given.out, 'latest'));
  t.like(model.config, { vocab: tokenizer.vocab, norm: 'rms', tied: true });
  const { bitsPerByte } = await evaluate(model, valid, { context: 32 });
  t.is(lines.at(-1)?.validBitsPerByte, bitsPerByte);
  const { config: _, tokenizer: __, ...rest } = options({ steps: 1, lr: 0, init: result.checkpoint });
  const next = await train(rest);
  t.deepEqual(files(next.checkpoint)['tokenizer.json'], files(result.checkpoint)['tokenizer.json']);
});

test('a budget in bytes is met with tokens', async (t) => {
  const { steps: _, ...rest } = options({ bytes: 3000, schedule: 'constant', warmup: 1 });
  const { bytes, steps } = await train(rest);
  t.true(bytes >= 3000 && (bytes * (steps - 1)) / steps < 3000, `${bytes} in ${steps}`);
  const more = await train({ out: rest.out, resume: true, bytes: 4000 });
  t.true(more.bytes >= 4000 && more.step > steps);
});

test('contradictions and wrong files are refused by their names', async (t) => {
  const given = options({ steps: 1 });
  await train(given);
  const other = fileOf('tokenizer.json', tokenizerJson(['the']));
  await t.throwsAsync(train({ out: given.out, resume: true, tokenizer: other }), {
    instanceOf: CheckpointError,
    message: /the tokenizer to be that of/,
  });
  await t.throwsAsync(train(options({ tokenizer: '/nowhere.json' })), { code: 'ERR_MODEL_FORMAT' });
  await t.throwsAsync(train(options({ preset: 'mambabyte-tiny', config: undefined as never })), { message: /vocab/ });
  const { config: _, ...rest } = options({ init: given.out });
  await t.throwsAsync(train(rest), { instanceOf: TypeError, message: /tokenizer to be left out with init/ });
  const { tokenizer: __, ...bytes } = options({ config: { ...config, vocab: 300 } });
  await t.throwsAsync(train(bytes), { instanceOf: TypeError, message: /or have a tokenizer, got 300/ });
  await t.throwsAsync(train(options({ tokenCache: join(file, 'sub') })), {
    instanceOf: CheckpointError,
    message: /ENOTDIR/,
  });
  const controller = new AbortController();
  controller.abort(new Error('enough'));
  await t.throwsAsync(train(options({ signal: controller.signal })), { message: 'enough' });
});

test('token documents are the encoded documents, in pieces of any size, by any number of processes', async (t) => {
  using set = await openDataset(data);
  const ids = DOCUMENTS.map((d) => [...tokenizer.encode(d)]);
  for (const [size, processes] of [
    [1, 1],
    [7, 2],
    [100, 3],
    [5000, 1],
  ] as const) {
    const encoder = openEncoder(tokenizer, processes);
    const got = ids.map((): number[] => []);
    let bytes = 0;
    for await (const piece of encodedPieces(tokenizer, set, encoder, size)) {
      got[piece.document]?.push(...piece.ids);
      bytes += piece.bytes;
    }
    encoder.close();
    t.deepEqual(got, ids);
    t.is(bytes, 10_000);
  }
  const lost = openEncoder(tokenizer, 2);
  const answer = lost.encode(TEXT);
  lost.close();
  await t.throwsAsync(answer, { message: /encoder: expected its process to run, got .*SIGKILL/ });
  const where = folder();
  const tokens = await openTokens(set, tokenizer, { folder: where });
  t.is(tokens.documents, 10);
  t.deepEqual(
    ids.map((_, i) => [...tokens.slice(i, 0, tokens.length(i))]),
    ids,
  );
  t.deepEqual([...tokens.slice(3, 5, 9)], ids[3]?.slice(5, 14));
  const batch = new WindowSampler(tokens, { context: 16, sampling: 'uniform', seed: 1 }).batch(4);
  t.true(batch.bytes instanceof Int32Array && batch.bytes.every((id) => id >= 0 && id < tokenizer.vocab));
  tokens.close();
});

test('tokens are encoded anew when data or tokenizer changed, or the file is cut short', async (t) => {
  const path = fileOf('a.txt', 'of the and of the\n\f\nx\n\f\n the');
  const where = folder();
  const opens = async (with_: Tokenizer) => {
    using set = await openDataset(path);
    let encoded = false;
    const tokens = await openTokens(set, with_, { folder: where, onProgress: () => (encoded = true) });
    tokens.close();
    t.is(tokens.documents, 1, 'a document of a single token is passed over');
    return encoded;
  };
  t.true(await opens(tokenizer));
  t.false(await opens(tokenizer));
  utimesSync(path, 1, 1);
  t.true(await opens(tokenizer));
  t.true(await opens(Tokenizer.fromJson(tokenizerJson(['the', 'and']))));
  for (const name of tokenFiles(where)) writeFileSync(join(where, name), readFileSync(join(where, name)).subarray(1));
  t.true(await opens(tokenizer));
  using set = await openDataset(path);
  const waiting = openTokens(set, tokenizer, { folder: join(where, 'sub'), wait: true });
  const written = await openTokens(set, tokenizer, { folder: join(where, 'sub') });
  const waited = await waiting;
  t.deepEqual(waited.slice(0, 0, 3), written.slice(0, 0, 3));
  for (const tokens of [waited, written]) tokens.close();
  rmSync(where, { recursive: true });
  const short = fileOf('b.txt', ' the');
  using one = await openDataset(short);
  await t.throwsAsync(openTokens(one, tokenizer, { folder: where }), { instanceOf: DataError, message: /two tokens/ });
});

test('windows over tokens are scored as defined, by hand and with the state carried', async (t) => {
  using model = await createModel(config, { seed: 3, threads: 1, tokenizer });
  const [context, stride] = [16, 5];
  const some = DOCUMENTS.slice(0, 3);
  const path = fileOf('d.txt', some.join('\n\f\n'));
  let nats = 0;
  let bytes = 0;
  for (const document of some) {
    const ids = tokenizer.encode(document);
    for (const { from, scored, to } of sliding(ids.length, context, stride)) {
      const { nll } = await model.score(ids.subarray(from, to));
      nats += nll.subarray(scored - from - 1).reduce((a, b) => a + b, 0);
    }
    bytes += document.length - tokenizer.bytesOf(ids[0] ?? 0).length;
  }
  const got = await evaluate(model, path, { context, stride });
  t.true(Math.abs(got.nats - nats) < 1e-4 * nats, `${got.nats} ${nats}`);
  t.is(got.bytes, bytes);
  t.true(Math.abs(got.bitsPerByte - nats / Math.LN2 / bytes) < 1e-4);
  const words = some.map((d) => d.split(/\s+/).filter(Boolean).length).reduce((a, b) => a + b);
  t.is(got.words, words);
  t.true(Math.abs(got.wordPerplexity - Math.exp(nats / words)) < 1e-3 * got.wordPerplexity);
  const whole = fileOf('e.txt', Buffer.alloc(150_000, TEXT)); // more tokens than one piece
  const carried = await evaluate(model, whole, { mode: 'stateful' });
  const score = await model.score(readFileSync(whole));
  t.is(carried.bytes, score.bytes);
  t.true(Math.abs(carried.nats - score.nats) < 1e-5 * score.nats);
});

test('a limited evaluation scores the middle from character to character', async (t) => {
  using model = await createModel(config, { seed: 3, threads: 1, tokenizer });
  const path = fileOf('f.txt', 'é—🙂'.repeat(200));
  for (const maxBytes of [100, 101, 102, 103, 104]) {
    const seen: number[] = [];
    const onProgress = ({ bytes, total }: { bytes: number; total: number }) => seen.push(bytes / total);
    const got = await evaluate(model, path, { context: 128, maxBytes, onProgress });
    t.true(Math.abs(got.bytes - maxBytes) < 9, `${got.bytes}`);
    t.is(seen.at(-1), 1);
    const from = Math.floor((1800 - maxBytes) / 2);
    const start =
      readFileSync(path)
        .subarray(from)
        .findIndex((byte) => (byte & 0xc0) !== 0x80) + from;
    const rest = readFileSync(path).subarray(from + maxBytes);
    const end = from + maxBytes + rest.findIndex((byte) => (byte & 0xc0) !== 0x80);
    const { nats } = await model.score(readFileSync(path).subarray(start, end));
    t.true(Math.abs(got.nats - nats) < 1e-3);
  }
});

test('of several ranks one encodes, and the others read its tokens', async (t) => {
  const given = options();
  const encoded: number[] = [];
  const ranks = [1, 0].map((rank) => {
    const sums: Rank = {
      rank,
      world: 2,
      wantsEnd: false,
      ending: false,
      join: async () => {},
      saving: (write) => write(),
    };
    return trainAsRank({ ...given, onEncode: () => encoded.push(rank) }, sums);
  });
  for (const { step, bytes } of await Promise.all(ranks)) t.true(step === 6 && bytes > 6 * 2 * 32);
  t.deepEqual([...new Set(encoded)], [0]);
  t.is(tokenFiles(given.out).length, 1);
});

test('the command line trains, evaluates and converts a subword model', async (t) => {
  const main = fileURLToPath(new URL('../lib/cli/main.ts', import.meta.url));
  const run = (...args: string[]) => execute(process.execPath, ['--import=tsx', main, ...args]);
  const out = join(folder(), 'run');
  const shape = ['--layers', '1', '--d-model', '16', '--tokenizer', file, '--context', '32', '--threads', '1'];
  const { stderr } = await run('train', '--data', data, '--out', out, '--steps', '2', ...shape);
  t.regex(stderr, /^encoded 10,000 of 10,000 bytes .* bytes\/s\n.*bits\/byte/);
  const { stdout } = await run('eval', join(out, 'latest'), valid, '--json', '--threads', '1');
  using model = await loadModel(join(out, 'latest'), { threads: 1 });
  const { seconds: _, ...wanted } = await evaluate(model, valid);
  t.like(JSON.parse(stdout), wanted);
  const small = folder();
  const cost = await run('convert', join(out, 'latest'), small, '--dtype', 'int8', '--eval', valid);
  t.regex(cost.stdout, /before +\d\.\d+ bits per byte on 800 bytes/);
  t.is(readFileSync(join(small, 'tokenizer.json'), 'utf8'), json);
});
