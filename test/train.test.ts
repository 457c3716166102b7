// Training runs as a user starts them: bit-equal resume, kill -9, full disks, refusals; and evaluation by definition.
import { spawn } from 'node:child_process';
import { chmodSync, cpSync, existsSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { CheckpointError, DataError } from '../lib/errors.ts';
import { createModel, loadModel, type Model } from '../lib/model.ts';
import { evaluate, sliding } from '../lib/train/evaluate.ts';
import { RunLog } from '../lib/train/log.ts';
import { train } from '../lib/train/loop.ts';
import { decayOf, type TrainOptions } from '../lib/train/options.ts';
import { createTrainer } from '../lib/trainer.ts';
import { fileOf, folder } from './support/folder.ts';
import { CORPUS, filesOf, logOf, TEXT, VALID } from './support/training.ts';

const data = fileOf('corpus.txt', CORPUS);
const valid = fileOf('valid.txt', VALID);
const config = { layers: 2, dModel: 16 };

function options(more: Partial<TrainOptions> = {}): TrainOptions & { out: string } {
  return { config, data, out: join(folder(), 'run'), steps: 6, batch: 2, context: 32, lr: 1e-3, threads: 1, ...more };
}

const files = (checkpoint: string) => filesOf(checkpoint, 'trainer.json');

/** Runs until `step` is done, as Ctrl-C would end it. */
function trainUntil(step: number, given: TrainOptions) {
  const controller = new AbortController();
  const onProgress = (p: { step: number }) => p.step >= step && controller.abort();
  return train({ ...given, onProgress, signal: controller.signal });
}

test('six steps are three, a resume, and three more, bit for bit', async (t) => {
  for (const more of [
    { valid, evalEvery: 2, sampling: 'uniform' as const },
    { accumulate: 2, context: 600, batch: 3 }, // longer than a document: padding
  ]) {
    const straight = options({ seed: 5, ...more });
    const done = await train(straight);
    t.is(done.stopped, 'done');
    const broken = { ...straight, out: join(folder(), 'run') };
    const part = await trainUntil(3, broken);
    t.like(part, { step: 3, stopped: 'aborted' });
    const resumed = await train({ out: broken.out, resume: true });
    t.like(resumed, { step: 6, stopped: 'done', loss: done.loss, best: done.best });
    t.deepEqual(files(resumed.checkpoint), files(done.checkpoint));
    t.deepEqual(logOf(broken.out), logOf(straight.out));
    t.is(logOf(broken.out).length, 6);
  }
});

test('a checkpoint is a model, and the loss falls', async (t) => {
  const given = options({ steps: 40, lr: 1e-2, valid, evalEvery: 10, saveEvery: 5 });
  const { best, checkpoint } = await train(given);
  t.is(readlinkSync(join(given.out, 'latest')), 'step-00000040');
  using model = await loadModel(join(given.out, 'latest'));
  const { bitsPerByte } = await evaluate(model, valid, { context: 32 });
  const lines = logOf(given.out) as { loss: number; validBitsPerByte?: number }[];
  t.is(lines.at(-1)?.validBitsPerByte, bitsPerByte);
  t.true((lines.at(-1)?.loss ?? 9) < 0.75 * (lines[0]?.loss ?? 0));
  t.is(best?.bitsPerByte, Math.min(...lines.map((line) => line.validBitsPerByte ?? Infinity)));
  t.true(existsSync(join(given.out, 'best', 'model.safetensors')));
  const kept = readdirSync(given.out).filter((name) => name.startsWith('step-'));
  t.true(kept.length <= 3, kept.join());
  t.is(checkpoint, join(given.out, 'step-00000040'));
});

test('a run starts from a model that exists', async (t) => {
  const first = options({ steps: 2 });
  const { checkpoint } = await train(first);
  const { config: _, ...rest } = options({ steps: 1, lr: 0, init: checkpoint });
  const second = await train(rest);
  t.is(files(second.checkpoint)['model.safetensors'], files(checkpoint)['model.safetensors']);
});

test('contradictions on resume name both values; agreement and changed limits pass', async (t) => {
  const given = options();
  await trainUntil(1, given);
  const refuse = async (more: Partial<TrainOptions>, message: RegExp) => {
    await t.throwsAsync(train({ out: given.out, resume: true, ...more }), { instanceOf: CheckpointError, message });
  };
  await refuse({ lr: 2e-3 }, /lr to be 0\.001 .* got 0\.002/);
  await refuse({ context: 64 }, /context to be 32 .* got 64/);
  await refuse({ steps: 7 }, /steps to be 6 .* got 7/);
  await refuse({ config: { layers: 2, dModel: 32 } }, /dModel to be 16 as in the checkpoint, got 32/);
  await refuse({ data: valid }, /10,000 bytes in 10 documents .* got 800 bytes/);
  await t.throwsAsync(train(given), { instanceOf: CheckpointError, message: /hold no checkpoint.*resume/ });
  await t.throwsAsync(train(options({ resume: true })), { instanceOf: CheckpointError, message: /got none/ });
  t.is((await train({ ...given, resume: true, threads: 2, saveEvery: 1 })).step, 6);
});

test('the steps of a constant schedule may grow', async (t) => {
  const given = options({ schedule: 'constant', warmup: 1, steps: 2 });
  await train(given);
  t.is((await train({ ...given, resume: true, steps: 4 })).step, 4);
});

test('wrong options are refused before anything is written', async (t) => {
  const wrong: [Partial<TrainOptions> & Record<string, unknown>, RegExp][] = [
    [{ steps: 0 }, /steps/],
    [{ batch: 1.5 }, /batch/],
    [{ lr: Number.NaN }, /lr/],
    [{ preset: 'mambabyte-5m' }, /one of preset, config and init/],
    [{ bytes: 100 }, /one of steps and bytes/],
    [{ stepz: 3 }, /Did you mean "steps"/],
    [{ sampling: 'all' as 'uniform' }, /sampling/],
  ];
  for (const [more, message] of wrong) {
    const given = options(more);
    await t.throwsAsync(train(given), { message });
    t.false(existsSync(given.out));
  }
  await t.throwsAsync(train(options({ context: 20_000 })), {
    instanceOf: DataError,
    message: /20,001 bytes, got 10,000/,
  });
  await t.throwsAsync(train(options({ data: '/nowhere' })), { instanceOf: DataError, message: /ENOENT/ });
});

test('a loss that is no number ends the run; what was saved stays', async (t) => {
  const given = options({ lr: 1e30, clip: 0, warmup: 0, steps: 30 });
  const error = await t.throwsAsync(train(given), { message: /be finite.*last good checkpoint/ });
  t.is((error as { code?: string }).code, 'ERR_DIVERGED');
  using model = await loadModel(join(given.out, 'latest'));
  t.true((await model.logits('a')).every(Number.isFinite));
});

test('data that vanishes ends the run after saving it', async (t) => {
  const path = fileOf('gone.txt', CORPUS);
  const given = options({ data: path, steps: 50 });
  const onProgress = ({ step }: { step: number }) => step === 4 && writeFileSync(path, 'x');
  await t.throwsAsync(train({ ...given, onProgress }), { instanceOf: DataError });
  t.is(readlinkSync(join(given.out, 'latest')), 'step-00000004');
});

test('a folder that cannot be written is found out at once, and later leaves what is there', async (t) => {
  if (process.getuid?.() !== 0) {
    const parent = folder();
    chmodSync(parent, 0o555);
    await t.throwsAsync(train(options({ out: join(parent, 'run') })), {
      instanceOf: CheckpointError,
      message: /EACCES/,
    });
  }
  const file = fileOf('file', 'x');
  await t.throwsAsync(train(options({ out: join(file, 'run') })), { instanceOf: CheckpointError, message: /ENOTDIR/ });
  const given = options({ saveEvery: 2 });
  const onProgress = ({ step }: { step: number }) => {
    if (step === 3) writeFileSync(join(given.out, '.step-00000004.tmp'), '');
    if (step === 3) rmSync(given.out, { recursive: true });
  };
  await t.throwsAsync(train({ ...given, onProgress }), { instanceOf: CheckpointError, message: /ENOENT/ });
});

/** Starts a run in a process of its own; `limit` is the largest file it may write, in KiB. */
function child(given: TrainOptions, limit?: number) {
  const script = fileURLToPath(new URL('./support/train-child.ts', import.meta.url));
  const node = [process.execPath, '--import=tsx', script, JSON.stringify(given)];
  const quoted = node.map((word) => `'${word}'`).join(' ');
  const run = spawn('bash', ['-c', `${limit === undefined ? '' : `ulimit -f ${limit}; `}exec ${quoted}`]);
  let out = '';
  run.stdout.on('data', (chunk) => {
    out += chunk;
  });
  const ended = new Promise<string>((resolve) => run.on('close', () => resolve(out)));
  return { run, ended };
}

test('kill -9 at any moment leaves a run that resumes to the same bits', async (t) => {
  const given = options({ steps: 12, saveEvery: 1, valid, evalEvery: 3 });
  const straight = await train(given);
  const killed = { ...given, out: join(folder(), 'run') };
  let resume = false;
  let kills = 0;
  for (let i = 0; i < 4; i++) {
    const { run, ended } = child({ ...killed, resume });
    const delay = 7 + 23 * i; // after the second step: somewhere within the next steps' saves
    let lines = 0;
    run.stdout.on('data', () => {
      if (++lines === 2) setTimeout(() => run.kill('SIGKILL'), delay);
    });
    const out = await ended;
    if (run.signalCode === 'SIGKILL') kills++;
    resume = existsSync(join(killed.out, 'latest'));
    t.true(resume, out);
    using model = await loadModel(join(killed.out, 'latest'), { threads: 1 });
    t.is(model.config.layers, 2);
  }
  t.true(kills > 0);
  const result = await train({ out: killed.out, resume: true });
  t.deepEqual(files(result.checkpoint), files(straight.checkpoint));
  t.deepEqual(logOf(killed.out), logOf(given.out));
  t.deepEqual(
    readdirSync(killed.out).filter((name) => name.startsWith('.')),
    [],
  );
});

test('a disk that is full while saving leaves the old checkpoint', async (t) => {
  const given = options({ saveEvery: 2 });
  await trainUntil(2, given);
  const before = files(join(given.out, 'latest'));
  const copy = join(folder(), 'copy');
  cpSync(given.out, copy, { recursive: true, verbatimSymlinks: true });
  const { ended } = child({ out: given.out, resume: true, threads: 1 }, 8);
  const last = JSON.parse((await ended).trimEnd().split('\n').at(-1) ?? '{}');
  t.is(last.error?.code, 'ERR_CHECKPOINT', JSON.stringify(last));
  t.regex(last.error.message, /EFBIG|ENOSPC/);
  t.is(readlinkSync(join(given.out, 'latest')), 'step-00000002');
  t.deepEqual(files(join(given.out, 'latest')), before);
  const [result, other] = await Promise.all([given.out, copy].map((out) => train({ out, resume: true })));
  t.deepEqual(files(result?.checkpoint ?? ''), files(other?.checkpoint ?? ''));
});

test('the log keeps the lines up to the resumed step and drops a line cut in two', (t) => {
  const path = fileOf('log.jsonl', '{"step":1}\n{"step":2}\n{"step":3}\n{"st');
  new RunLog(path, 5).close();
  t.is(readFileSync(path, 'utf8'), '{"step":1}\n{"step":2}\n{"step":3}\n');
  const log = new RunLog(path, 2);
  log.append({ step: 3, again: true });
  log.close();
  t.is(readFileSync(path, 'utf8'), '{"step":1}\n{"step":2}\n{"step":3,"again":true}\n');
});

test('weight decay goes to matrices and convolutions', (t) => {
  const p = 'backbone.layers.0.';
  const none = ['norm.weight', 'norm.bias', 'mixer.A_log', 'mixer.D', 'mixer.dt_proj.bias', 'mixer.conv1d.bias'];
  for (const name of none) t.is(decayOf(p + name, 0.1), 0, name);
  t.is(decayOf('backbone.norm_f.weight', 0.1), 0);
  for (const name of ['in_proj', 'out_proj', 'x_proj', 'dt_proj', 'conv1d'])
    t.is(decayOf(`${p}mixer.${name}.weight`, 0.1), 0.1);
  t.is(decayOf('lm_head.weight', 0.1), 0.1);
});

test('4 KiB are learned by heart', async (t) => {
  using model = await createModel({ layers: 2, dModel: 64 }, { seed: 1 });
  const trainer = await createTrainer(model, { lr: 1e-2, warmup: 15, schedule: 'cosine', steps: 110 });
  const [rows, T] = [16, 256];
  const bytes = new Uint8Array(rows * (T + 1));
  for (let r = 0; r < rows; r++) bytes.set(TEXT.subarray(r * T, (r + 1) * T + 1), r * (T + 1));
  let loss = Infinity;
  for (let i = 0; i < 110 && loss > 0.09; i++) ({ loss } = await trainer.step({ bytes, batch: rows }));
  t.true(loss < 0.1, `${loss}`);
});

/** -log p of byte t given those from `from` on. */
async function nllAt(model: Model, bytes: Uint8Array, from: number, t: number): Promise<number> {
  const { nll } = await model.score(bytes.subarray(from, t + 1));
  return nll.at(-1) ?? Number.NaN;
}

test('windows are scored as defined: the first in full, later ones in their last stride', async (t) => {
  using model = await createModel(config, { seed: 3, threads: 1 });
  const documents = [TEXT.subarray(0, 60), TEXT.subarray(100, 109), TEXT.subarray(200, 241)];
  const path = fileOf('d.txt', documents.map((d) => d.toString('latin1')).join('\n\f\n'));
  const [context, stride] = [16, 5];
  let nats = 0;
  for (const d of documents) {
    for (let at = 1; at < d.length; at++) {
      const window = Math.max(0, Math.ceil((at - context) / stride));
      nats += await nllAt(model, d, window * stride, at);
    }
  }
  const got = await evaluate(model, path, { context, stride });
  t.true(Math.abs(got.nats - nats) < 1e-4 * nats, `${got.nats} ${nats}`);
  t.is(got.bytes, 59 + 8 + 40);
  t.is(got.documents, 3);
  const words = documents.map((d) => d.toString('latin1').split(/\s+/).filter(Boolean).length);
  t.is(
    got.words,
    words.reduce((a, b) => a + b),
  );
  t.true(Math.abs(got.wordPerplexity - Math.exp(nats / got.words)) < 1e-3 * got.wordPerplexity);
  t.true(Math.abs(got.bitsPerByte - nats / Math.LN2 / 107) < 1e-4);
});

test('with the state carried, a document scores as one text', async (t) => {
  using model = await createModel(config, { seed: 3, threads: 1 });
  const document = Buffer.alloc(70_000, TEXT); // longer than one piece
  const path = fileOf('d.txt', document);
  const got = await evaluate(model, path, { mode: 'stateful', separator: null });
  const { nats, bytes } = await model.score(document);
  t.is(got.bytes, bytes);
  t.true(Math.abs(got.nats - nats) < 1e-5 * nats);
});

test('windows tile any document: every byte but the first is scored once', (t) => {
  for (const [length, context, stride] of [
    [2, 1, 1],
    [10, 16, 8],
    [17, 16, 8],
    [18, 16, 8],
    [1000, 16, 16],
    [1000, 7, 3],
  ] as const) {
    let next = 1;
    for (const { from, scored, to } of sliding(length, context, stride)) {
      t.is(scored, next);
      t.true(to > scored && to - 1 - from <= context && from < scored);
      next = to;
    }
    t.is(next, length);
  }
});

test('evaluation can be limited, watched and ended', async (t) => {
  using model = await createModel(config, { seed: 3, threads: 1 });
  const seen: number[] = [];
  const limited = await evaluate(model, data, {
    context: 64,
    maxBytes: 1000,
    onProgress: ({ bytes, total }) => seen.push(bytes / total),
  });
  t.is(limited.documents, 10);
  t.true(limited.bytes <= 1000 && limited.bytes > 900);
  t.is(seen.at(-1), 1);
  const signal = AbortSignal.abort(new Error('enough'));
  await t.throwsAsync(evaluate(model, data, { signal }), { message: 'enough' });
  await t.throwsAsync(evaluate(model, data, { stride: 9, context: 8 }), { message: /stride/ });
  await t.throwsAsync(evaluate(model, data, { maxByte: 9 } as never), { message: /Did you mean "maxBytes"/ });
});
