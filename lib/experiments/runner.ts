// Runs experiments unit by unit; what is finished is kept, so that the same call again goes on where the last one ended.
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { CheckpointError, expected } from '../errors.ts';
import { type Environment, environment } from './environment.ts';
import type { Experiment } from './experiment.ts';
import type { Lab } from './lab.ts';
import { type ExperimentRecord, readRecord, sameInputs, type UnitRecord, writeRecord } from './records.ts';

/**
 * Computes the units of an experiment that its record in `lab.out` does not hold yet. Results of other models, corpora or
 * seeds stay in the record.
 * @returns the record's path, or undefined where none of its models is wanted
 * @throws the signal's reason when aborted; all units that were finished are in the record
 */
export async function runExperiment(experiment: Experiment, lab: Lab, command: string): Promise<string | undefined> {
  const path = join(lab.options.out, `${experiment.name}.json`);
  const record = (await readRecord(path)) ?? newRecord(experiment, lab);
  if (record.scale !== lab.scale) {
    const hint = 'Choose another --out.';
    throw new CheckpointError(expected(path, 'the record', `be of scale ${lab.scale}`, record.scale, hint));
  }
  const { name, title, question } = experiment;
  Object.assign(record, { experiment: name, title, question });
  const units = await experiment.units(lab);
  if (units.length === 0) return undefined;
  await mkdir(lab.options.out, { recursive: true }); // where it cannot be, better known before hours of work
  let run: Environment | undefined;
  for (const [i, unit] of units.entries()) {
    lab.signal.throwIfAborted();
    const at = record.units.findIndex(({ key }) => key === unit.key);
    if (at >= 0 && sameInputs(record.units[at]?.inputs ?? {}, unit.inputs)) continue;
    if (!run) {
      run = environment(command, lab.placed);
      record.runs.push(run);
    }
    const began = performance.now();
    const result = await unit.run();
    const seconds = (performance.now() - began) / 1000;
    const done: UnitRecord = { key: unit.key, inputs: unit.inputs, run: record.runs.length - 1, seconds, result };
    if (at >= 0) record.units[at] = done;
    else record.units.push(done);
    await writeRecord(path, record);
    lab.note(`${name} ${i + 1}/${units.length} · ${unit.key} · ${seconds.toFixed(1)} s`);
  }
  return path;
}

function newRecord({ name, title, question }: Experiment, lab: Lab): ExperimentRecord {
  return { format: 1, experiment: name, title, question, scale: lab.scale, runs: [], units: [] };
}
