import type { Lab } from './lab.ts';

/** How large an experiment is: minutes for all of them, minutes for each of them on a CPU, or hours on a GPU. */
export const SCALES = ['quick', 'default', 'full'] as const;
export type Scale = (typeof SCALES)[number];

/** A part of an experiment that is computed in one go, and kept once it is. */
export interface Unit<R> {
  /** Its name in the record; a result of the same key and other inputs is replaced. */
  key: string;
  /** All that decides the result, as JSON. */
  inputs: object;
  run(): Promise<R>;
}

/** A question, and the measurements that answer it. */
export interface Experiment<R = unknown> {
  readonly name: string;
  readonly title: string;
  readonly question: string;
  /** Names of the corpora that it can use, the preferred ones first; none: it needs no data. */
  readonly corpora: readonly string[];
  units(lab: Lab): Promise<Unit<R>[]>;
}
