// What a verify pass costs, by the bytes it reads.
import { performance } from 'node:perf_hooks';
import { type DraftSetup, GREEDY, plain, sum } from './draft-setup.ts';
import { median, round } from './measure.ts';

const LENGTHS = [1, 2, 4, 8, 16, 24, 32] as const;
const ROUNDS = 5;
/** Passes of each length per round. */
const PASSES = 20;

/** Milliseconds of verify passes, and of the step back after half of them was accepted, beside a step of plain decoding. */
export async function passCosts(setup: DraftSetup): Promise<Record<string, unknown>[]> {
  const steps: number[] = [];
  const times = LENGTHS.map((length) => ({ length, verify: [] as number[], accept: [] as number[] }));
  for (let r = 0; r < ROUNDS; r++) {
    for (const time of times) {
      for (let i = 0; i < PASSES; i++) await pass(setup, time);
      const { stats } = await plain({ ...setup, bytes: 100 }, GREEDY, 0);
      steps.push(stats.decodeMs / stats.bytes);
    }
  }
  const step = median(steps);
  return times.map(({ length, verify, accept }) => ({
    K: length,
    'verify ms': round(median(verify)),
    'accept ms': accept.length > 0 ? round(median(accept)) : '',
    'plain step ms': round(step),
    'in plain steps': round(sum([median(verify), accept.length > 0 ? median(accept) : 0]) / step),
  }));
}

async function pass(
  { verifier, prompts }: DraftSetup,
  { length, verify, accept }: { length: number; verify: number[]; accept: number[] },
): Promise<void> {
  const ids = (prompts[0] ?? new Uint8Array(length)).subarray(0, length);
  await verifier.withSession(async (session) => {
    const start = performance.now();
    await session.verify(ids);
    const verified = performance.now();
    verify.push(verified - start);
    if (length === 1) return;
    await session.accept(length / 2);
    accept.push(performance.now() - verified);
  });
}
