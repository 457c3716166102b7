// Data sets against a plain split of the whole text; windows against their definition; every fault by its words.
import { chmodSync, mkdirSync, rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { type Dataset, openDataset } from '../lib/data/dataset.ts';
import { type Sampling, WindowSampler } from '../lib/data/windows.ts';
import { WordCounter } from '../lib/data/words.ts';
import { DataError } from '../lib/errors.ts';
import { Philox } from '../lib/rng.ts';
import { fileOf, folder } from './support/folder.ts';

function documentsOf(data: Dataset): string[] {
  return Array.from({ length: data.documents }, (_, i) => {
    const bytes = new Uint8Array(data.length(i));
    data.read(i, 0, bytes);
    return Buffer.from(bytes).toString('latin1');
  });
}

function randomBytes(n: number, seed: number): Buffer {
  const rng = new Philox(seed);
  return Buffer.from(Array.from({ length: n }, () => rng.next() & 255));
}

test('documents are what a split by the separator gives', async (t) => {
  const text = 'one\n\f\ntwo two\n\f\n\n\f\nx\n\f\n\f\nlast';
  using data = await openDataset(fileOf('a.txt', text));
  t.deepEqual(
    documentsOf(data),
    text.split('\n\f\n').filter((d) => d.length > 1),
  );
  t.is(
    data.bytes,
    documentsOf(data).reduce((sum, d) => sum + d.length, 0),
  );
});

test('a separator across two reads of the scan is found', async (t) => {
  const chunk = 4 << 20;
  for (const shift of [-4, -3, -2, -1, 0, 1]) {
    const bytes = Buffer.alloc(2 * chunk + 100, 'a');
    bytes.write('\n\f\n', chunk + shift);
    bytes.write('\n\f\n', 2 * chunk + shift);
    using data = await openDataset(fileOf('a.bin', bytes));
    t.deepEqual(
      [0, 1, 2].map((i) => data.span(i).offset),
      [0, chunk + shift + 3, 2 * chunk + shift + 3],
    );
    t.is(data.documents, 3);
  }
});

test('any separator, none, and bytes of any kind', async (t) => {
  const bytes = randomBytes(5000, 1);
  const path = fileOf('a.bin', bytes);
  using whole = await openDataset(path, { separator: null });
  t.deepEqual(documentsOf(whole), [bytes.toString('latin1')]);
  using split = await openDataset(path, { separator: Uint8Array.of(0) });
  t.deepEqual(
    documentsOf(split),
    bytes
      .toString('latin1')
      .split('\0')
      .filter((d) => d.length > 1),
  );
  await t.throwsAsync(openDataset(path, { separator: '' }), { instanceOf: TypeError, message: /separator/ });
  await t.throwsAsync(openDataset(path, { seperator: 'x' } as never), { message: /Did you mean "separator"/ });
});

test('folders are walked in order; dot files, empty files and circles of links are passed over', async (t) => {
  const root = folder();
  mkdirSync(join(root, 'b/c'), { recursive: true });
  writeFileSync(join(root, 'b/c/2.txt'), 'second');
  writeFileSync(join(root, 'a.txt'), 'first');
  writeFileSync(join(root, 'z.txt'), 'third');
  writeFileSync(join(root, 'empty'), '');
  writeFileSync(join(root, '.hidden'), 'hidden');
  symlinkSync(root, join(root, 'b/circle'));
  using data = await openDataset([root, join(root, 'a.txt')]);
  t.deepEqual(documentsOf(data), ['first', 'second', 'third', 'first']);
});

test('more files than may be open at once', async (t) => {
  const root = folder();
  for (let i = 0; i < 150; i++) writeFileSync(join(root, String(i).padStart(3, '0')), `document ${i}`);
  using data = await openDataset(root);
  for (let round = 0; round < 2; round++) t.deepEqual(documentsOf(data)[149], 'document 149');
  data.close();
  t.throws(() => data.read(0, 0, new Uint8Array(1)), { instanceOf: DataError, message: /closed/ });
});

test('missing, empty, unreadable, vanished and shortened data is a DataError that says so', async (t) => {
  const root = folder();
  await t.throwsAsync(openDataset(join(root, 'none')), { instanceOf: DataError, message: /ENOENT/ });
  await t.throwsAsync(openDataset(fileOf('e', '')), { instanceOf: DataError, message: /empty file/ });
  await t.throwsAsync(openDataset(root), { instanceOf: DataError, message: /none in the folder/ });
  await t.throwsAsync(openDataset(fileOf('s', '\n\f\n')), { instanceOf: DataError, message: /two bytes or more/ });
  await t.throwsAsync(openDataset('/dev/null'), { instanceOf: DataError, message: /device/ });
  if (process.getuid?.() !== 0) {
    const secret = fileOf('secret', 'text');
    chmodSync(secret, 0);
    await t.throwsAsync(openDataset(secret), { instanceOf: DataError, message: /EACCES/ });
  }
  const path = fileOf('gone', 'some text');
  using data = await openDataset(path);
  rmSync(path);
  t.throws(() => data.read(0, 0, new Uint8Array(4)), { instanceOf: DataError, message: /ENOENT/ });
  const short = fileOf('short', 'some text');
  using shrunk = await openDataset(short);
  truncateSync(short, 3);
  t.throws(() => shrunk.read(0, 0, new Uint8Array(9)), { instanceOf: DataError, message: /9 bytes.*byte 3/ });
});

test('a data set smaller than one window names both sizes', async (t) => {
  using data = await openDataset(fileOf('a', '0123456789'));
  const make = (context: number) => new WindowSampler(data, { context, sampling: 'document', seed: 0 });
  t.throws(() => make(10), { instanceOf: DataError, message: /window of 11 bytes, got 10 bytes/ });
  t.deepEqual(make(9).next(), { document: 0, start: 0, length: 10 });
});

async function corpus(lengths: number[]): Promise<Dataset> {
  return openDataset(fileOf('corpus', lengths.map((n, i) => String.fromCharCode(97 + i).repeat(n)).join('\n\f\n')));
}

test('document sampling draws one window of every document in an epoch, in another order each time', async (t) => {
  using data = await corpus([1000, 50, 20, 300, 7]);
  const sampler = new WindowSampler(data, { context: 19, sampling: 'document', seed: 3 });
  const orders = new Set<string>();
  const starts = new Set<number>();
  for (let epoch = 0; epoch < 20; epoch++) {
    const windows = Array.from({ length: 5 }, () => sampler.next());
    t.deepEqual(windows.map((w) => w.document).sort(), [0, 1, 2, 3, 4]);
    orders.add(windows.map((w) => w.document).join());
    for (const w of windows) {
      t.is(w.length, Math.min(20, data.length(w.document)));
      t.true(w.start >= 0 && w.start + w.length <= data.length(w.document));
      if (w.document === 0) starts.add(w.start);
    }
  }
  t.true(orders.size > 10);
  t.true(starts.size > 15);
});

test('uniform sampling makes every byte a target in every epoch, and long ones hardly more than once', async (t) => {
  using data = await corpus([1000, 50, 21, 20, 301, 7]);
  const sampler = new WindowSampler(data, { context: 20, sampling: 'uniform', seed: 3 });
  for (let epoch = 0; epoch < 3; epoch++) {
    const seen = Array.from({ length: data.documents }, (_, i) => new Uint8Array(data.length(i)));
    for (let i = 0; i < sampler.windows; i++) {
      const w = sampler.next();
      seen[w.document]?.subarray(w.start + 1, w.start + w.length).forEach((_, k, part) => {
        part[k] = (part[k] ?? 0) + 1;
      });
    }
    for (const counts of seen) t.true(counts.subarray(1).every((n) => n >= 1));
    t.true(Buffer.from(seen[0] ?? []).reduce((a, b) => a + b, 0) <= 1060);
  }
  t.deepEqual(sampler.position, { epoch: 2, index: sampler.windows });
});

test('a position resumes the same windows, at every point of an epoch', async (t) => {
  using data = await corpus([400, 90, 30]);
  for (const sampling of ['document', 'uniform'] satisfies Sampling[]) {
    const make = () => new WindowSampler(data, { context: 16, sampling, seed: 9 });
    const straight = make();
    for (let i = 0; i < 80; i++) {
      const resumed = make();
      resumed.position = JSON.parse(JSON.stringify(straight.position));
      t.deepEqual(resumed.next(), straight.next());
    }
    const other = new WindowSampler(data, { context: 16, sampling, seed: 10 });
    const list = (s: WindowSampler) => JSON.stringify(Array.from({ length: 20 }, () => s.next()));
    t.not(list(make()), list(other));
  }
});

test('a batch holds the windows row by row; only documents that are too short are padded', async (t) => {
  using data = await corpus([400, 6]);
  const sampler = new WindowSampler(data, { context: 9, sampling: 'document', seed: 0 });
  const { bytes, batch } = sampler.batch(2);
  t.is(batch, 2);
  t.true(bytes instanceof Int32Array);
  const rows = [bytes.subarray(0, 10), bytes.subarray(10)].map((row) => [...row].join()).sort();
  t.deepEqual(rows, [Array(10).fill(97).join(), [...Array(6).fill(98), ...Array(4).fill(-1)].join()].sort());
  t.throws(() => new WindowSampler(data, { context: 9, sampling: 'document', seed: 0, whole: true }), {
    instanceOf: DataError,
    message: /document 1 to hold a window of 10 bytes, got 6 bytes\. Only the end/,
  });
  using long = await corpus([400, 60]);
  t.true(new WindowSampler(long, { context: 9, sampling: 'document', seed: 0 }).batch(2).bytes instanceof Uint8Array);
});

test('words are counted as wc -w counts them, whatever the pieces', (t) => {
  const text = Buffer.from(' one two\tthree\n\n  four\v\ffive\r\nsix');
  for (const size of [1, 2, 5, text.length]) {
    const counter = new WordCounter();
    for (let at = 0; at < text.length; at += size) counter.add(text.subarray(at, at + size));
    t.is(counter.words, 6);
  }
});

test.serial('a large file is indexed without being held in memory', async (t) => {
  const size = 64 << 20;
  const bytes = Buffer.alloc(size, 'word ');
  for (let at = 1 << 20; at < size; at += 1 << 20) bytes.write('\n\f\n', at);
  const path = fileOf('large', bytes);
  const before = process.memoryUsage().arrayBuffers;
  using data = await openDataset(path);
  t.is(data.documents, 64);
  const sampler = new WindowSampler(data, { context: 512, sampling: 'uniform', seed: 0 });
  for (let i = 0; i < 1000; i++) sampler.batch(1);
  t.true(process.memoryUsage().arrayBuffers - before < 16 << 20);
});
