// A process of runPool: trains the runs that its parent sends, one at a time, on one device.
import { mkdirSync } from 'node:fs';
import { openDataset } from '../../lib/index.ts';
import type { SweepRun } from './sweep-list.ts';
import { type SweepRow, type SweepSetup, trainRun } from './sweep-train.ts';

export interface SweepJob {
  run: SweepRun;
  index: number;
  setup: Omit<SweepSetup, 'valid'>;
  /** Path of the held-out text. */
  valid: string;
}

export type SweepReply = { row: SweepRow } | { error: string };

process.on('message', (job: SweepJob) => {
  void work(job).then((reply) => process.send?.(reply));
});
// Not process.exit(), which waits for work on a GPU: the parent is gone, or has no more runs.
process.on('disconnect', () => process.kill(process.pid, 'SIGKILL'));

async function work({ run, index, setup, valid }: SweepJob): Promise<SweepReply> {
  try {
    mkdirSync(setup.out, { recursive: true });
    const dataset = await openDataset(valid);
    try {
      return { row: await trainRun(run, index, { ...setup, valid: dataset }) };
    } finally {
      dataset.close();
    }
  } catch (error) {
    return { error: error instanceof Error ? error.message : String(error) };
  }
}
