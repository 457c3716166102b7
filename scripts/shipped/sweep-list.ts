// A list of training configurations: a base, and runs that each say what they change of it.
import { readFileSync } from 'node:fs';
import { checkChoice, checkInteger, checkNumber, checkOptions, describe, expected } from '../../lib/errors.ts';

const COUNTS = ['layers', 'dModel', 'batch', 'context', 'vocab'] as const;

/** One configuration. */
export interface SweepRun {
  layers: number;
  dModel: number;
  /** Windows per step. */
  batch: number;
  /** Bytes, or tokens of a subword model, per window. */
  context: number;
  /** Peak learning rate. */
  lr: number;
  /** Tokens of a subword model; left out: a byte model. */
  vocab?: number;
}

export interface SweepList {
  unit: 'byte' | 'token';
  base: SweepRun;
  runs: SweepRun[];
}

/** @throws TypeError or RangeError naming the field that is wrong */
export function readSweepList(path: string): SweepList {
  const list = JSON.parse(readFileSync(path, 'utf8')) as { unit: unknown; base: SweepRun; runs: Partial<SweepRun>[] };
  checkOptions(path, list, ['unit', 'base', 'runs']);
  const unit = checkChoice(path, 'unit', list.unit, ['byte', 'token'] as const);
  if (!Array.isArray(list.runs) || list.runs.length === 0) {
    throw new TypeError(expected(path, 'runs', 'be a list of what each run changes', describe(list.runs)));
  }
  const complete = (changes: Partial<SweepRun>) => checked(path, unit, { ...list.base, ...changes });
  return { unit, base: complete({}), runs: list.runs.map(complete) };
}

function checked(path: string, unit: SweepList['unit'], run: SweepRun): SweepRun {
  checkOptions(path, run, [...COUNTS, 'lr']);
  for (const key of COUNTS) {
    if (key !== 'vocab' || unit === 'token') checkInteger(path, key, run[key], { min: 1 });
  }
  checkNumber(path, 'lr', run.lr, { above: 0 });
  if (unit === 'byte' && run.vocab !== undefined) {
    throw new TypeError(expected(path, 'vocab', 'be left out of a list of byte models', describe(run.vocab)));
  }
  return run;
}

/** What decides the initial weights and the size of a run's model, as a name for a folder. */
export function shapeName({ layers, dModel, vocab = 256 }: SweepRun): string {
  return `${layers}x${dModel}-${vocab}`;
}

/** In words, for a row of a table. */
export function runName(run: SweepRun): string {
  const tokens = run.vocab === undefined ? '' : `${run.vocab} tokens, `;
  return `${tokens}${run.layers} x ${run.dModel}, ${run.batch} x ${run.context}, lr ${run.lr}`;
}
