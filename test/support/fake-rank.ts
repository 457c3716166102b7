// A rank without a GPU: fake-rank.ts '<behaviour of rank 0>' '<of rank 1>' ... [folder], see BEHAVIOURS. Joining means to
// read the group's id; each writes its process id into the folder.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type RankProcess, startedAsRank } from '../../lib/cli/rank.ts';
import type { Device } from '../../lib/device.ts';

const rank = startedAsRank() as RankProcess;
const folder = process.argv.at(-1) ?? '';
const behaviour = process.argv[2 + rank.rank] ?? '';
const note = (name: string, text: string) => writeFileSync(join(folder, `${name}-${rank.rank}`), text);
const device = {
  newGroupId: () => new Uint8Array(128).fill(7),
  joinGroup: (id: Uint8Array, r: number, world: number) => note('joined', `${id.length} ${id[0]} ${r}/${world}`),
} as unknown as Device;

/** Blocks the thread, as waiting in NCCL may do: no message is heard. */
function block(): never {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
  throw new Error('not reached');
}

async function idle(signal: AbortSignal): Promise<void> {
  while (!signal.aborted) await sleep(5);
}

const BEHAVIOURS: Record<string, (signal: AbortSignal) => Promise<void> | void> = {
  done: () => undefined,
  idle,
  'early failure': () => {
    throw new Error('no GPU of that number');
  },
  'wrong usage': () => {
    throw new TypeError('train: expected batch to be a multiple of 2, got 3.');
  },
  'same failure': () => {
    throw new Error('train: expected the folder to hold no checkpoint, got one.');
  },
  failure: () => {
    throw new Error(`words of rank ${rank.rank}`);
  },
  'killed by -9': () => {
    process.kill(process.pid, 'SIGKILL');
    return sleep(1000);
  },
  terminated: (signal) => {
    process.kill(process.pid, 'SIGTERM');
    return idle(signal);
  },
  exit: () => {
    process.stderr.write('the driver is gone\n');
    process.exit(3);
  },
  'late failure': async () => {
    await sleep(200);
    throw new Error('the other rank has gone');
  },
  stuck: () => block(),
  saving: (signal) =>
    rank
      .saving(async () => {
        note('saving', '');
        await sleep(500);
        note('saved', '');
      })
      .then(() => idle(signal)),
};

note('pid', `${process.pid}`);
void rank.run(async (signal) => {
  if (!behaviour.startsWith('early') && behaviour !== 'wrong usage') await rank.join(device);
  await BEHAVIOURS[behaviour]?.(signal);
});
