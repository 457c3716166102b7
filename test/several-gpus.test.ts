// `train --devices 0,1` on a machine with two GPUs and NCCL: the curve of one GPU, the same bits after a resume, no process
// that outlives another.
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { Device } from '../lib/device.ts';
import { fileOf, folder } from './support/folder.ts';
import { prose } from './support/prose.ts';

const main = fileURLToPath(new URL('../lib/cli/main.ts', import.meta.url));
const text = prose(60_000, 1).toString('latin1');
/** Documents of many lengths, some shorter than a window. */
const documents = Array.from({ length: 60 }, (_, i) => text.slice(1000 * i, 1000 * i + 40 + 16 * i));
const data = fileOf('data.txt', documents.join('\n\f\n'));

function missing(): string | undefined {
  try {
    Device.open('cuda', { index: 1, threads: 1 }).dispose();
    return undefined;
  } catch (error) {
    return `not tested here: ${error instanceof Error ? error.message : error}`;
  }
}
const reason = missing();

function start(...args: string[]): ChildProcess {
  return spawn(process.execPath, ['--import=tsx', main, 'train', '--quiet', ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
}

async function ended(child: ChildProcess): Promise<{ code: number | null; err: string }> {
  let err = '';
  child.stdout?.resume();
  child.stderr?.setEncoding('utf8').on('data', (chunk: string) => {
    err += chunk;
  });
  return new Promise((resolve) => child.on('close', (code) => resolve({ code, err })));
}

const run = (out: string, devices: string, ...more: string[]) => [
  ...['--data', data, '--layers', '2', '--d-model', '64', '--batch', '4', '--accumulate', '2', '--context', '256'],
  ...['--steps', '40', '--lr', '1e-3', '--precision', 'f32', '--out', out, '--devices', devices, ...more],
];

function losses(out: string): number[] {
  const path = join(out, 'log.jsonl');
  const lines = existsSync(path) ? readFileSync(path, 'utf8').split('\n').slice(0, -1) : [];
  return lines.map((line) => JSON.parse(line).loss);
}

function weights(out: string): Buffer[] {
  return ['model.safetensors', 'optimizer.safetensors'].map((name) => readFileSync(join(out, 'latest', name)));
}

/** Process ids of the children of a process that run the command line. */
function ranksOf(pid: number): number[] {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ').map(Number);
  return children.filter((child) => readFileSync(`/proc/${child}/cmdline`, 'utf8').includes(main));
}

test.serial('two GPUs train as one does; after the death of a rank a resume gives the same bits', async (t) => {
  if (reason) {
    t.log(reason);
    return t.pass();
  }
  const [one, two, cut] = [1, 2, 3].map(() => join(folder(), 'run')) as [string, string, string];
  t.like(await ended(start(...run(one, '1'))), { code: 0 });
  t.like(await ended(start(...run(two, '0,1'))), { code: 0 });
  const [want, got] = [losses(one), losses(two)];
  t.is(got.length, 40);
  got.forEach((loss, i) => {
    const e = Math.abs(loss / (want[i] ?? 0) - 1);
    t.true(e < (i === 0 ? 1e-5 : 1e-3), `step ${i + 1}: ${loss}, on one GPU ${want[i]}`);
  });
  const child = start(...run(cut, '0,1', '--save-every', '1'));
  const end = ended(child);
  while (losses(cut).length < 5 && child.exitCode === null) await sleep(5);
  const ranks = ranksOf(child.pid ?? 0);
  t.is(ranks.length, 2);
  process.kill(ranks[1] ?? 0, 'SIGKILL');
  const { code, err } = await end;
  t.is(code, 1);
  t.regex(err, /^mambabyte: train: rank 1 \(cuda:1\) was ended by SIGKILL\.$/m);
  for (const pid of ranks) t.false(existsSync(`/proc/${pid}`));
  t.true(losses(cut).length < 40);
  t.like(await ended(start('--resume', '--out', cut, '--devices', '0,1')), { code: 0 });
  t.deepEqual(weights(cut), weights(two));
});

test.serial('Ctrl-C ends both GPUs after the same step, with a checkpoint', async (t) => {
  if (reason) {
    t.log(reason);
    return t.pass();
  }
  const out = join(folder(), 'run');
  const child = start(...run(out, '0,1', '--schedule', 'constant').map((word) => (word === '40' ? '100000' : word)));
  const end = ended(child);
  while (losses(out).length < 3 && child.exitCode === null) await sleep(5);
  child.kill('SIGINT');
  t.is((await end).code, 130);
  const state = JSON.parse(readFileSync(join(out, 'latest', 'trainer.json'), 'utf8'));
  t.is(state.step, losses(out).length);
});
