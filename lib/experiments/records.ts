// What an experiment found: one JSON file, replaced whole after every unit, from which an interrupted experiment goes on.
import { readFile } from 'node:fs/promises';
import { isDeepStrictEqual } from 'node:util';
import { CheckpointError, describe, expected } from '../errors.ts';
import { writeFileAtomically } from '../weights/atomic-file.ts';
import { isObject } from '../weights/strict-json.ts';
import type { Environment } from './environment.ts';
import type { Scale } from './experiment.ts';

export interface UnitRecord<R = unknown> {
  key: string;
  inputs: object;
  /** Which of `runs` computed it. */
  run: number;
  seconds: number;
  result: R;
}

export interface ExperimentRecord<R = unknown> {
  format: 1;
  experiment: string;
  title: string;
  question: string;
  scale: Scale;
  /** Every call that computed some of the units. */
  runs: Environment[];
  units: UnitRecord<R>[];
}

/** A record that was written, or undefined where there is none. @throws CheckpointError when it is no record */
export async function readRecord<R>(path: string): Promise<ExperimentRecord<R> | undefined> {
  let value: unknown;
  try {
    value = JSON.parse(await readFile(path, 'utf8'));
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code === 'ENOENT') return undefined;
    throw new CheckpointError(expected(path, 'the record', 'be readable JSON', code ?? describe(message)), { cause });
  }
  if (!isObject(value) || value.format !== 1 || !Array.isArray(value.units) || !Array.isArray(value.runs)) {
    const got = isObject(value) ? `format ${describe(value.format)}` : describe(value);
    throw new CheckpointError(expected(path, 'the file', 'be the record of an experiment, format 1', got));
  }
  return value as unknown as ExperimentRecord<R>;
}

/** @throws CheckpointError when the file system refuses; what was there is intact */
export async function writeRecord(path: string, record: ExperimentRecord): Promise<void> {
  const text = Buffer.from(`${JSON.stringify(record, null, 1)}\n`);
  await writeFileAtomically(path, (append) => append(text));
}

/** Whether a result was computed from these inputs; both as JSON has them. */
export function sameInputs(a: object, b: object): boolean {
  return isDeepStrictEqual(asJson(a), asJson(b));
}

function asJson(value: object): unknown {
  return JSON.parse(JSON.stringify(value));
}
