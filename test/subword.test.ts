// Models that read tokens: their tokenizer travels with them, and figures are per byte.
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { convertModel } from '../lib/convert.ts';
import { ModelFormatError } from '../lib/errors.ts';
import { inspectModel } from '../lib/inspect.ts';
import { createModel, loadModel } from '../lib/model.ts';
import { Tokenizer } from '../lib/tokenizer/tokenizer.ts';
import { folder } from './support/folder.ts';
import { prose } from './support/prose.ts';
import { tokenizerJson } from './support/tokenizer.ts';

const text = prose(3000, 1);
const json = tokenizerJson();
const tokenizer = Tokenizer.fromJson(json);
const config = { layers: 2, dModel: 16 };

async function saved(): Promise<string> {
  using model = await createModel(config, { seed: 1, threads: 1, tokenizer });
  const path = folder();
  await model.save(path);
  return path;
}

test('a new subword model has the shape that its tokenizer implies', async (t) => {
  using model = await createModel(config, { tokenizer, threads: 1 });
  t.like(model.config, { vocab: tokenizer.vocab, norm: 'rms', tied: true });
  using padded = await createModel({ ...config, vocab: 512, norm: 'layer', tied: false }, { tokenizer, threads: 1 });
  t.like(padded.config, { vocab: 512, norm: 'layer', tied: false });
  const small = createModel({ ...config, vocab: 256 }, { tokenizer });
  await t.throwsAsync(small, { instanceOf: RangeError, message: /vocab to be an integer at least \d+, got 256/ });
  await t.throwsAsync(createModel(config, { tokenizer: json as never }), { instanceOf: TypeError, message: /open/ });
});

test('the tokenizer is saved, loaded, converted and inspected with the model', async (t) => {
  const path = await saved();
  t.is(readFileSync(join(path, 'tokenizer.json'), 'utf8'), json);
  const converted = folder();
  await convertModel(path, converted, { dtype: 'bf16' });
  for (const where of [path, join(path, 'model.safetensors'), converted]) {
    using model = await loadModel(where, { threads: 1 });
    t.is(model.tokenizer?.json, json);
  }
  t.deepEqual((await inspectModel(path)).tokenizer, { vocab: tokenizer.vocab });
  using bytes = await createModel(config, { threads: 1 });
  t.is(bytes.tokenizer, undefined);
  const refused = { instanceOf: ModelFormatError, message: /hold no tokenizer.json, got one/ };
  await t.throwsAsync(bytes.save(path), refused);
  const plain = folder();
  await bytes.save(plain);
  t.false(existsSync(join(plain, 'tokenizer.json')));
  t.is((await inspectModel(plain)).tokenizer, null);
});

test('a tokenizer.json that is none, or has more ids than the model, is refused', async (t) => {
  const path = await saved();
  const refuse = async (content: string, message: RegExp) => {
    writeFileSync(join(path, 'tokenizer.json'), content);
    await t.throwsAsync(loadModel(path), { instanceOf: ModelFormatError, message });
  };
  await refuse('{', /tokenizer\.json/);
  const fewer = tokenizerJson(['the', 'tokenizer', 'another']);
  await refuse(
    tokenizerJson(Array.from({ length: 40 }, (_, i) => `word${i}xyz`)),
    /at most \d+ ids, as the model, got \d+/,
  );
  writeFileSync(join(path, 'tokenizer.json'), fewer);
  using model = await loadModel(path);
  t.is(model.tokenizer?.json, fewer);
});

test('text, bytes and ids score and give logits alike; figures are per byte', async (t) => {
  using model = await createModel(config, { seed: 1, threads: 1, tokenizer });
  const ids = tokenizer.encode(text);
  const byIds = await model.score(ids);
  for (const input of [text, text.toString('latin1')]) {
    t.deepEqual(await model.score(input), byIds);
    t.deepEqual(await model.logits(input.slice(0, 50)), await model.logits(tokenizer.encode(text.subarray(0, 50))));
  }
  t.is(byIds.nll.length, ids.length - 1);
  t.is(byIds.bytes, text.length - tokenizer.bytesOf(ids[0] ?? 0).length);
  t.true(Math.abs(byIds.bitsPerByte - byIds.nats / Math.LN2 / byIds.bytes) < 1e-12);
  const state = model.createState();
  const first = await model.score(ids.subarray(0, 100), { state });
  const second = await model.score(ids.subarray(100), { state });
  t.is(first.bytes + second.bytes, byIds.bytes);
  t.true(Math.abs(first.nats + second.nats - byIds.nats) < 1e-3);
});

test('a subword model without a tokenizer takes ids only', async (t) => {
  using model = await createModel({ ...config, vocab: 300 }, { threads: 1 });
  await t.throwsAsync(model.score('text'), { instanceOf: TypeError, message: /tokenizer\.json.*Int32Array/ });
  const { nats, bytes, bitsPerByte } = await model.score(Int32Array.of(1, 299, 3));
  t.true(Number.isFinite(nats) && Number.isNaN(bytes) && Number.isNaN(bitsPerByte));
});
