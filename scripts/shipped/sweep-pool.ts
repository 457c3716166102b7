// Runs of a sweep on several devices at once: a process for each device, which takes the next run whenever it is free.
import { type ChildProcess, fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { SweepRun } from './sweep-list.ts';
import type { SweepRow, SweepSetup } from './sweep-train.ts';
import type { SweepJob, SweepReply } from './sweep-worker.ts';

const WORKER = fileURLToPath(new URL('./sweep-worker.ts', import.meta.url));

/**
 * Trains all runs. A process that fails takes no more of them; the other devices finish what is left.
 * @param setups one for each device
 * @param valid paths of the held-out text
 * @param onRow called as runs end, in any order
 * @throws Error with the words of the first process that failed, when the others are done
 */
export async function runPool(
  runs: readonly SweepRun[],
  setups: readonly Omit<SweepSetup, 'valid'>[],
  valid: string,
  onRow: (index: number, row: SweepRow) => void,
): Promise<void> {
  let next = 0;
  const work = async (setup: Omit<SweepSetup, 'valid'>): Promise<void> => {
    const worker = fork(WORKER, { execArgv: process.execArgv });
    try {
      for (let run = runs[next]; run !== undefined; run = runs[next]) {
        const index = next++;
        onRow(index, await answer(worker, { run, index, setup, valid }));
      }
    } finally {
      worker.disconnect();
    }
  };
  const ended = await Promise.allSettled(setups.map(work));
  const failed = ended.find((end) => end.status === 'rejected');
  if (failed) throw failed.reason;
}

function answer(worker: ChildProcess, job: SweepJob): Promise<SweepRow> {
  return new Promise((resolve, reject) => {
    const fail = (why: string) => reject(new Error(`sweep: run ${job.index + 1} on ${job.setup.device}: ${why}`));
    const closed = (code: number | null, signal: NodeJS.Signals | null) =>
      fail(signal === null ? `its process ended with exit code ${code}.` : `its process was ended by ${signal}.`);
    worker.once('close', closed);
    worker.once('message', (reply: SweepReply) => {
      worker.off('close', closed);
      if ('row' in reply) resolve(reply.row);
      else fail(reply.error);
    });
    worker.send(job);
  });
}
