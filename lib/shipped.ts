// The models that come with the package: folders under models/, each with a config.json.
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { expected, ModelFormatError, nearest } from './errors.ts';
import { packageRoot } from './native.ts';

const folder = join(packageRoot, 'models');

/** Names of the models that ship with the package. */
export function shippedModels(): string[] {
  if (!existsSync(folder)) return [];
  const entries = readdirSync(folder, { withFileTypes: true });
  const isModel = (name: string) => existsSync(join(folder, name, 'config.json'));
  return entries
    .filter((e) => e.isDirectory() && isModel(e.name))
    .map((e) => e.name)
    .sort();
}

/** Where the shipped model of a name lies, whatever else has that name. */
export function shippedFolder(name: string): string {
  return join(folder, name);
}

/**
 * The path that a model is opened from: an existing path as it is, else the folder of the shipped model of that name.
 *
 * @throws ModelFormatError naming the shipped models if there is neither.
 */
export function resolveModel(model: string): string {
  if (existsSync(model)) return model;
  const shipped = shippedModels();
  if (shipped.includes(model)) return shippedFolder(model);
  const near = nearest(model, shipped);
  const known = shipped.length === 0 ? 'None is shipped here.' : `Shipped models: ${shipped.join(', ')}.`;
  const hint = near === undefined ? known : `Did you mean "${near}"?`;
  const be = 'be an existing path or the name of a shipped model';
  throw new ModelFormatError(expected('model', JSON.stringify(model), be, 'neither', hint));
}
