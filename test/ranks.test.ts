// The processes of `train --devices`: how they find each other, and that none outlives a failure of another.
import { spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { Interrupted } from '../lib/cli/interrupt.ts';
import { runRanks } from '../lib/cli/ranks.ts';
import { parseDevices } from '../lib/cli/train.ts';
import { UsageError } from '../lib/cli/usage.ts';
import { PROGRAM } from './support/bundle.ts';
import { fileOf, folder } from './support/folder.ts';

const pathOf = (name: string) => fileURLToPath(new URL(name, import.meta.url));
const script = pathOf('./support/fake-rank.ts');
const never = new AbortController().signal;

/** Runs fake ranks, one per behaviour. */
function run(behaviours: readonly string[], out: string, signal = never, graceMs = 5000) {
  const devices = behaviours.map((_, i) => i + 4);
  return runRanks(devices, signal, { script, argv: [...behaviours, out], graceMs });
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
function pidsIn(out: string, ranks: number): number[] {
  return Array.from({ length: ranks }, (_, i) => Number(readFileSync(join(out, `pid-${i}`), 'utf8')));
}
async function until(condition: () => boolean): Promise<void> {
  for (let i = 0; !condition(); i++) {
    if (i > 2000) throw new Error('waited too long');
    await sleep(10);
  }
}

test.serial('ranks join with the id that the first one makes, and all must be done', async (t) => {
  const out = folder();
  await run(['done', 'done', 'done'], out);
  for (const rank of [0, 1, 2]) t.is(readFileSync(join(out, `joined-${rank}`), 'utf8'), `128 7 ${rank}/3`);
});

for (const [behaviours, message] of [
  [['idle', 'killed by -9'], /^train: rank 1 \(cuda:5\) was ended by SIGKILL\.$/],
  [['killed by -9', 'idle', 'idle'], /^train: rank 0 \(cuda:4\) was ended by SIGKILL\.$/],
  [['idle', 'exit'], /^train: rank 1 \(cuda:5\) ended with exit code 3: the driver is gone$/],
  [['idle', 'early failure'], /^train: rank 1 \(cuda:5\) failed: no GPU of that number$/],
  [['failure', 'failure'], /^train: rank 0 \(cuda:4\) failed: words of rank 0$/],
  [['late failure', 'killed by -9'], /^train: rank 1 \(cuda:5\) was ended by SIGKILL\.$/],
  [['same failure', 'same failure'], /^train: expected the folder to hold no checkpoint, got one\.$/],
  [['done', 'failure'], /^train: rank 1 \(cuda:5\) failed: words of rank 1$/],
] as const) {
  test.serial(`one fails, all end: ${behaviours.join(', ')}`, async (t) => {
    const out = folder();
    await t.throwsAsync(run(behaviours, out), { message });
    for (const pid of pidsIn(out, behaviours.length)) t.false(isAlive(pid));
  });
}

test.serial('a rank that hears nothing any more is killed after the grace period', async (t) => {
  const out = folder();
  const started = performance.now();
  await t.throwsAsync(run(['stuck', 'killed by -9'], out, never, 300), { message: /rank 1 .*SIGKILL/ });
  t.true(performance.now() - started < 10_000);
  for (const pid of pidsIn(out, 2)) t.false(isAlive(pid));
});

test.serial('a checkpoint that is being written when another rank dies is finished', async (t) => {
  const out = folder();
  await t.throwsAsync(run(['saving', 'killed by -9'], out), { message: /rank 1 .*SIGKILL/ });
  t.true(existsSync(join(out, 'saving-0')));
  t.true(existsSync(join(out, 'saved-0')));
});

test.serial('a wrong option is a wrong option, whichever rank finds it', async (t) => {
  const error = await t.throwsAsync(run(['wrong usage', 'wrong usage'], folder()), { instanceOf: UsageError });
  t.is(error.message, 'train: expected batch to be a multiple of 2, got 3.');
});

test.serial('an interruption lets all ranks end by themselves', async (t) => {
  const out = folder();
  const controller = new AbortController();
  const running = run(['idle', 'idle'], out, controller.signal);
  await until(() => [0, 1].every((rank) => existsSync(join(out, `joined-${rank}`))));
  controller.abort(new Interrupted(130));
  const error = await t.throwsAsync(running, { instanceOf: Interrupted });
  t.is(error.exitCode, 130);
});

test.serial('SIGTERM to the ranks themselves is heard as an interruption', async (t) => {
  const error = await t.throwsAsync(run(['terminated', 'terminated'], folder()), { instanceOf: Interrupted });
  t.is(error.exitCode, 143);
});

test.serial('before all have joined an interruption just ends them', async (t) => {
  const out = folder();
  const controller = new AbortController();
  const running = run(['idle', 'idle'], out, controller.signal);
  controller.abort(new Interrupted(143));
  const error = await t.throwsAsync(running, { instanceOf: Interrupted });
  t.is(error.exitCode, 143);
});

test.serial('ranks whose parent is killed end themselves', async (t) => {
  const out = folder();
  const args = ['--import=tsx', pathOf('./support/launch.ts'), script, 'idle', 'idle', out];
  const parent = spawn(process.execPath, args, { stdio: 'ignore' });
  await until(() => [0, 1].every((rank) => existsSync(join(out, `joined-${rank}`))));
  parent.kill('SIGKILL');
  await until(() => pidsIn(out, 2).every((pid) => !isAlive(pid)));
  t.pass();
});

test.serial('--devices takes numbers of GPUs, each once', (t) => {
  t.deepEqual(parseDevices('0,1'), [0, 1]);
  t.deepEqual(parseDevices('3'), [3]);
  for (const text of ['', 'cuda', '0,', '0,-1', '1.5', 'cuda:0,cuda:1']) {
    t.throws(() => parseDevices(text), { message: /numbers of GPUs/ }, text);
  }
  t.throws(() => parseDevices('1,0,1'), { message: /got 1 twice/ });
});

async function cli(...args: string[]): Promise<{ code: number | null; err: string }> {
  const child = spawn(process.execPath, [PROGRAM, 'train', ...args]);
  let err = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    err += text;
  });
  return new Promise((resolve) => child.on('close', (code) => resolve({ code, err })));
}

test.serial('--devices is refused where it cannot be had, in one line', async (t) => {
  const data = fileOf('data.txt', 'abc '.repeat(100));
  const run = ['--preset', 'mambabyte-5m', '--data', data, '--steps', '1', '--context', '16'];
  const out = join(folder(), 'run');
  const onCpu = await cli(...run, '--out', out, '--device', 'cpu', '--devices', '0,1');
  t.deepEqual(onCpu, {
    code: 2,
    err: "mambabyte: train: expected --device to be 'cuda' where --devices is given, got 'cpu'.\n",
  });
  const twice = await cli(...run, '--out', out, '--devices', '0,0');
  t.is(twice.code, 2);
  t.regex(twice.err, /--devices .*got 0 twice/);
  const absent = await cli(...run, '--out', out, '--devices', '98,99');
  t.is(absent.code, 1);
  t.regex(absent.err, /^mambabyte: (train: rank 0 \(cuda:98\) failed: )?device: .*\n$/);
  t.false(existsSync(out));
});
