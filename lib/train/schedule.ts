import { describe, expected } from '../errors.ts';

/** How the learning rate goes on after warm-up: a name, or a factor by step (from 1) that replaces warm-up too. */
export type Schedule = 'cosine' | 'constant' | ((step: number) => number);

/**
 * Factor on the peak learning rate at `step` (counted from 1): linear warm-up, then constant, or half a cosine down to
 * `minLr` at `steps` (Loshchilov & Hutter 2017).
 * @throws TypeError when the schedule is unknown, or is 'cosine' without `steps`
 */
export function scheduleFactor(
  where: string,
  options: { schedule: Schedule; warmup: number; steps?: number | undefined; minLr: number },
  step: number,
): number {
  const { schedule, warmup, steps, minLr } = options;
  if (typeof schedule === 'function') {
    const factor = schedule(step);
    if (typeof factor === 'number' && Number.isFinite(factor)) return factor;
    throw new TypeError(expected(where, `schedule(${step})`, 'be a finite number', describe(factor)));
  }
  if (schedule !== 'constant' && schedule !== 'cosine') {
    throw new TypeError(expected(where, 'schedule', "be 'cosine', 'constant' or a function", describe(schedule)));
  }
  if (step <= warmup) return step / warmup;
  if (schedule === 'constant') return 1;
  if (steps === undefined) {
    throw new TypeError(expected(where, 'steps', "be given with schedule 'cosine'", 'undefined'));
  }
  const progress = Math.min(1, (step - warmup) / Math.max(1, steps - warmup));
  return minLr + (1 - minLr) * 0.5 * (1 + Math.cos(Math.PI * progress));
}
