// The options that every command takes which computes with a model.
import { type Command, Option } from 'commander';
import { type LoadModelOptions, loadModel, type Model } from '../model.ts';
import { resolveModel } from '../shipped.ts';
import type { WeightDType } from '../weights/load.ts';
import { bar, warn } from './output.ts';
import { defined, parsePositive } from './usage.ts';

export interface ModelFlags {
  device?: string;
  dtype?: WeightDType;
  threads?: number;
}

export const dtypeOption = () =>
  new Option('--dtype <type>', 'storage of the large matrices (default: as in the file)').choices([
    'f32',
    'bf16',
    'int8',
  ]);

export function withModelOptions(command: Command): Command {
  return command
    .option('--device <name>', 'auto (a GPU if there is one), cuda, cuda:1, cpu, or ref (slow, obviously right)')
    .addOption(dtypeOption())
    .option('--threads <n>', 'threads (default: one per core)', parsePositive);
}

/** Loads the model of a name or path, with a bar while that takes long, and says what is odd about its file. */
export async function openModel(path: string, flags: ModelFlags, signal: AbortSignal): Promise<Model> {
  const progress = bar('loading');
  try {
    const { device, dtype, threads } = flags;
    const options: LoadModelOptions = defined({ device, dtype, threads, signal, onProgress: progress.update });
    const model = await loadModel(resolveModel(path), options);
    for (const warning of model.warnings) warn(warning);
    return model;
  } finally {
    progress.stop();
  }
}
