import { existsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { presetConfig } from '../lib/models/presets.ts';
import { writeRandomCheckpoint } from '../lib/weights/random-checkpoint.ts';

/** A folder with a random bf16 checkpoint of a preset's shape, made on first use and kept in the temporary folder. */
export async function randomModel(preset: string): Promise<string> {
  const folder = join(tmpdir(), 'mambabyte-bench', preset);
  if (!existsSync(join(folder, 'config.json'))) await writeRandomCheckpoint(folder, presetConfig(preset));
  return folder;
}
