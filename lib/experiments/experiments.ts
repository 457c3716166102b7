// The experiments there are, in the order in which `all` runs them.
import { checkChoice } from '../errors.ts';
import { bytes } from './bytes.ts';
import { compute } from './compute.ts';
import { draft } from './draft.ts';
import type { Experiment } from './experiment.ts';
import { length } from './length.ts';
import { noise } from './noise.ts';
import { scaling } from './scaling.ts';
import { speed } from './speed.ts';

export const EXPERIMENTS = { compute, scaling, length, noise, speed, draft, bytes } as const satisfies Record<
  string,
  Experiment<never> | Experiment
>;
export type ExperimentName = keyof typeof EXPERIMENTS;
export const EXPERIMENT_NAMES = Object.keys(EXPERIMENTS) as ExperimentName[];

/** @throws RangeError naming the nearest one for an unknown name */
export function experimentsOf(name: string): Experiment[] {
  const found = checkChoice('experiment', '<name>', name, [...EXPERIMENT_NAMES, 'all'] as const);
  return found === 'all' ? Object.values(EXPERIMENTS) : [EXPERIMENTS[found]];
}
