// Training checkpoints: out/step-00000500/ appears whole or not at all, and out/latest then points to it.
import { mkdir, open, readdir, readFile, readlink, rename, rm, symlink } from 'node:fs/promises';
import { join } from 'node:path';
import type { DataPosition } from '../data/windows.ts';
import { CheckpointError, describe, expected, listNames } from '../errors.ts';
import type { Model } from '../model.ts';
import type { ModelConfig } from '../models/architectures.ts';
import type { Trainer } from '../trainer.ts';
import { writeFileAtomically } from '../weights/atomic-file.ts';
import { readSafetensors, type TensorSource, writeSafetensors } from '../weights/safetensors.ts';
import { readTensorBytes } from '../weights/stored-tensor.ts';
import { isObject } from '../weights/strict-json.ts';
import type { TrainCadence, TrainSettings } from './options.ts';

/** trainer.json: all that a run needs to go on bit for bit, beside the weights and the optimiser's moments. */
export interface RunState {
  format: 1;
  /** Of this package. */
  version: string;
  step: number;
  /** With the seed in `settings`, the state of every random stream. */
  position: DataPosition;
  settings: TrainSettings;
  cadence: TrainCadence;
  config: ModelConfig;
  data: { paths: string[]; bytes: number; documents: number; fingerprint: string };
  /** Of a subword model: mean bytes per token of the data, and where its tokens lie. */
  tokens?: { bytesPerToken: number; cache: string };
  valid: string[] | null;
  best: { step: number; bitsPerByte: number } | null;
}

const FILES = { state: 'trainer.json', optimizer: 'optimizer.safetensors' } as const;
const NAME = /^step-(\d{8,})$/;

function nameOf(step: number): string {
  return `step-${String(step).padStart(8, '0')}`;
}

/**
 * Writes a checkpoint, points `latest` (and `best`) to it, and removes those that are neither among the newest
 * nor the best. At every moment `latest` points to a whole checkpoint.
 * @returns its folder
 * @throws CheckpointError when the file system refuses; the one before is intact
 */
export async function writeCheckpoint(out: string, model: Model, trainer: Trainer, state: RunState): Promise<string> {
  const name = nameOf(state.step);
  const temporary = join(out, `.${name}.${process.pid}.tmp`);
  try {
    await rm(temporary, { recursive: true, force: true });
    await mkdir(temporary);
    await model.save(temporary);
    await writeSafetensors(join(temporary, FILES.optimizer), momentSources(model, trainer));
    const text = Buffer.from(`${JSON.stringify(state, null, 2)}\n`);
    await writeFileAtomically(join(temporary, FILES.state), (append) => append(text));
    await putFolder(temporary, out, name);
    await point(out, 'latest', name);
    if (state.best) await point(out, 'best', nameOf(state.best.step));
  } catch (cause) {
    await rm(temporary, { recursive: true, force: true }).catch(() => {}); // the first failure is the one to report
    throw cause instanceof CheckpointError ? cause : refused(out, cause);
  }
  await prune(out, state);
  return join(out, name);
}

function refused(path: string, cause: unknown): CheckpointError {
  const { code, message } = cause as NodeJS.ErrnoException;
  const hint = 'Checkpoints written before are intact.';
  return new CheckpointError(expected(path, 'the checkpoint', 'be written', code ?? describe(message), hint), {
    cause,
  });
}

function* momentSources(model: Model, trainer: Trainer): Generator<TensorSource> {
  for (const [name, tensor] of trainer.moments()) {
    const data = (function* () {
      const { buffer, byteOffset, byteLength } = model.runtime.read(tensor);
      yield new Uint8Array(buffer, byteOffset, byteLength);
    })();
    yield { name, dtype: 'F32', shape: tensor.shape, data };
  }
}

/** Renames a finished folder into place; one of that name is left over from a run that went on elsewhere. */
async function putFolder(temporary: string, out: string, name: string): Promise<void> {
  const old = `${temporary.slice(0, -'.tmp'.length)}-old.tmp`;
  const target = join(out, name);
  const replaced = await rename(target, old).then(
    () => true,
    (error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT') throw error;
      return false;
    },
  );
  await rename(temporary, target);
  await syncFolder(out);
  if (replaced) await rm(old, { recursive: true, force: true });
}

/** Lets a link point to a checkpoint, in one step. */
async function point(out: string, link: string, target: string): Promise<void> {
  const temporary = join(out, `.${link}.${process.pid}.tmp`);
  await rm(temporary, { force: true });
  await symlink(target, temporary);
  await rename(temporary, join(out, link));
  await syncFolder(out);
}

async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** Removes old checkpoints; one that cannot be removed takes space, but is no reason to end a run. */
async function prune(out: string, { step, best, cadence }: RunState): Promise<void> {
  const steps = (await checkpointSteps(out)).filter((s) => s <= step);
  for (const old of steps.slice(0, -cadence.keep)) {
    if (old === best?.step) continue;
    const doomed = join(out, `.${nameOf(old)}.${process.pid}-old.tmp`);
    await rename(join(out, nameOf(old)), doomed)
      .then(() => rm(doomed, { recursive: true, force: true }))
      .catch(() => {});
  }
}

/** Steps of the checkpoints in a folder, ascending; none if there is no folder. */
async function checkpointSteps(out: string): Promise<number[]> {
  const names = await readdir(out).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return [];
    throw refused(out, error);
  });
  return names
    .map((name) => Number(NAME.exec(name)?.[1] ?? -1))
    .filter((step) => step >= 0)
    .sort((a, b) => a - b);
}

/** Makes the output folder, and removes what a killed process left half-written there. @throws CheckpointError */
export async function prepareFolder(out: string): Promise<void> {
  try {
    await mkdir(out, { recursive: true });
    for (const name of await readdir(out)) {
      const half = /^\.(step-\d+|latest|best)\.\d+(-old)?\.tmp$/.test(name);
      if (half) await rm(join(out, name), { recursive: true, force: true });
    }
  } catch (cause) {
    throw refused(out, cause);
  }
}

/** The folder to go on from: `latest`, or the newest if there is no such link; undefined if there is none at all. */
export async function latestCheckpoint(out: string): Promise<string | undefined> {
  const target = await readlink(join(out, 'latest')).catch(() => undefined);
  if (target !== undefined) return join(out, target);
  const newest = (await checkpointSteps(out)).at(-1);
  return newest === undefined ? undefined : join(out, nameOf(newest));
}

/** @throws CheckpointError when trainer.json is missing or not one of this format */
export async function readRunState(folder: string): Promise<RunState> {
  const path = join(folder, FILES.state);
  let value: unknown;
  try {
    value = JSON.parse(await readFile(path, 'utf8'));
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    throw new CheckpointError(expected(path, 'the file', 'be readable JSON', code ?? describe(message)), { cause });
  }
  if (!isObject(value) || value.format !== 1) {
    const got = isObject(value) ? `format ${describe(value.format)}` : describe(value);
    throw new CheckpointError(expected(path, 'the file', 'be a training state of format 1', got));
  }
  const { step, position, settings, config, data } = value;
  if (!Number.isSafeInteger(step) || ![position, settings, config, data].every(isObject)) {
    throw new CheckpointError(expected(path, 'step, position, settings, config and data', 'be there', describe(value)));
  }
  return value as unknown as RunState;
}

/** Puts the moments of a checkpoint into a trainer. @throws CheckpointError when they are another model's */
export async function restoreTrainer(folder: string, trainer: Trainer, step: number): Promise<void> {
  const path = join(folder, FILES.optimizer);
  const { tensors } = await readSafetensors(path);
  const moments = trainer.moments();
  const missing = [...moments.keys()].filter((name) => !tensors.has(name));
  if (missing.length > 0 || tensors.size !== moments.size) {
    const got = missing.length > 0 ? `no ${listNames(missing)}` : `${tensors.size} tensors`;
    throw new CheckpointError(expected(path, 'the file', `hold ${moments.size} moments`, got));
  }
  for (const [name, tensor] of moments) {
    const stored = tensors.get(name);
    if (stored?.dtype !== 'F32' || stored.shape.join() !== tensor.shape.join()) {
      const got = `${stored?.dtype} [${stored?.shape}]`;
      throw new CheckpointError(expected(path, name, `be F32 [${tensor.shape}]`, got));
    }
    trainer.model.runtime.write(tensor, await readTensorBytes(stored));
  }
  trainer.countFrom(step);
}
