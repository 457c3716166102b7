// How a record is shown: plots, tables and sentences, all of them computed from its figures.
import type { Environment } from '../experiments/environment.ts';
import type { ExperimentRecord } from '../experiments/records.ts';
import { deviation, mean } from '../experiments/statistics.ts';
import type { Spec } from './plots.ts';

export interface Plot {
  /** Of its file, without the ending. */
  name: string;
  /** What it shows, for those who cannot see it. */
  caption: string;
  spec: Spec;
}

export interface Table {
  caption: string;
  /** The first column is words, the others are figures. */
  head: readonly string[];
  rows: readonly (readonly string[])[];
}

export interface View {
  plots: Plot[];
  tables: Table[];
  /** What the figures say, a sentence each. */
  findings: string[];
}

/** @returns undefined where the record holds no result yet */
export type ViewOf<R> = (record: ExperimentRecord<R>) => View | undefined;

/** A view of results on several corpora: what `one` shows of each, with the corpus in the names of files. */
export function byCorpus<R extends { corpus: string }>(one: (corpus: string, results: R[]) => View): ViewOf<R> {
  return ({ units }) => {
    if (units.length === 0) return undefined;
    const results = units.map(({ result }) => result);
    const views = [...groupsOf(results, ({ corpus }) => corpus)].map(
      ([corpus, of]) => [corpus, one(corpus, of)] as const,
    );
    return {
      plots: views.flatMap(([corpus, { plots }]) => plots.map((plot) => ({ ...plot, name: `${plot.name}-${corpus}` }))),
      tables: views.flatMap(([, { tables }]) => tables),
      findings: views.flatMap(([corpus, { findings }]) => findings.map((finding) => `${corpus}: ${finding}`)),
    };
  };
}

/** Runs of a record that its results still come from. */
export function runsOf(record: ExperimentRecord): Environment[] {
  const used = new Set(record.units.map(({ run }) => run));
  return record.runs.filter((_, i) => used.has(i));
}

/** Values of several seeds. */
export interface Spread {
  mean: number;
  deviation: number;
  n: number;
}

export function spreadOf(values: readonly number[]): Spread {
  return { mean: mean(values), deviation: deviation(values), n: values.length };
}

/** "1.234 ± 0.005 (3)" */
export function spreadWords({ mean, deviation, n }: Spread, digits = 3): string {
  return n === 1 ? `${mean.toFixed(digits)} (1)` : `${mean.toFixed(digits)} ± ${deviation.toFixed(digits)} (${n})`;
}

/** The same for figures of any size: "364 k ± 4.37 k (2)" */
export function shortSpreadWords({ mean, deviation, n }: Spread): string {
  return n === 1 ? `${short(mean)} (1)` : `${short(mean)} ± ${short(deviation)} (${n})`;
}

/** Items by a key, in the order in which the keys first come. */
export function groupsOf<T>(items: readonly T[], keyOf: (item: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const item of items) groups.set(keyOf(item), [...(groups.get(keyOf(item)) ?? []), item]);
  return groups;
}

/** Which of two spreads is lower, in words: "A is ahead of B by 0.123 bits per byte (3.4 %), ...". */
export function comparison(a: string, first: Spread, b: string, second: Spread, verb = 'is ahead of'): string {
  const [lead, low, other, high] = first.mean <= second.mean ? [a, first, b, second] : [b, second, a, first];
  const gap = high.mean - low.mean;
  const noise = Math.hypot(low.deviation, high.deviation);
  const relative = low.mean > 0 ? ` (${((100 * gap) / high.mean).toFixed(1)} %)` : '';
  const repeated = Math.min(low.n, high.n) > 1;
  const trust = !repeated
    ? 'of a single seed each'
    : gap > 2 * noise
      ? 'more than twice the deviation over seeds'
      : 'which the deviation over seeds can explain';
  return `${lead} ${verb} ${other} by ${gap.toFixed(3)} bits per byte${relative}, ${trust}`;
}

/** "+0.12" or "-0.12". */
export function signed(value: number): string {
  return `${value < 0 ? '' : '+'}${value.toFixed(3)}`;
}

/** From the best, the lowest, on: "A 1.234, B 1.300, C 1.500". */
export function ordering(spreads: ReadonlyMap<string, Spread>, digits = 3): string {
  const sorted = [...spreads].sort(([, a], [, b]) => a.mean - b.mean);
  return sorted.map(([name, { mean }]) => `${name} ${mean.toFixed(digits)}`).join(', ');
}

/** 1234567 as "1.23 M": three digits and a letter. */
export function short(value: number): string {
  const steps: [number, string][] = [
    [1e15, ' P'],
    [1e12, ' T'],
    [1e9, ' G'],
    [1e6, ' M'],
    [1e3, ' k'],
  ];
  const [unit, letter] = steps.find(([unit]) => Math.abs(value) >= unit) ?? [1, ''];
  return `${Number((value / unit).toPrecision(3))}${letter}`;
}

/** Bytes in binary units: "1.5 MiB". */
export function binary(bytes: number): string {
  const step = Math.min(4, Math.floor(Math.log2(Math.max(1, bytes)) / 10));
  return `${Number((bytes / 1024 ** step).toPrecision(3))} ${['B', 'KiB', 'MiB', 'GiB', 'TiB'][step]}`;
}
