// Where and how a result was made, so that it can be made again.
import { execFileSync } from 'node:child_process';
import { realpathSync } from 'node:fs';
import { cpus, loadavg, release, totalmem } from 'node:os';
import { isCuda } from '../device.ts';
import { createModel } from '../model.ts';
import { packageRoot } from '../native.ts';
import { version } from '../version.ts';

export interface Environment {
  /** ISO 8601, UTC. */
  began: string;
  /** As typed, from `mambabyte` on. */
  command: string;
  /** Of this package. */
  version: string;
  /** Of the clone that ran, with "+changes" where files differ from it; null: an installed package. */
  commit: string | null;
  node: string;
  system: string;
  cpu: string;
  cores: number;
  memoryBytes: number;
  /** Mean number of busy threads in the minute before: what else ran. */
  load: number;
  device: string;
  /** Of a GPU. */
  driver?: string;
}

/** This machine, this package and the device that a name stands for. @throws DeviceUnavailableError */
export async function environment(
  command: string,
  placed: { device?: string; threads?: number },
): Promise<Environment> {
  using model = await createModel({ layers: 1, dModel: 8 }, placed);
  const { info } = model.runtime;
  return {
    began: new Date().toISOString(),
    command,
    version,
    commit: commitOfClone(),
    node: process.version,
    system: `${process.platform}-${process.arch} ${release()}`,
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cores: cpus().length,
    memoryBytes: totalmem(),
    load: loadavg()[0] ?? Number.NaN,
    device: model.device,
    ...(isCuda(info) && { driver: info.driver }),
  };
}

/** A package inside somebody else's repository has no commit of its own. */
function commitOfClone(): string | null {
  const git = (...args: string[]) =>
    execFileSync('git', ['-C', packageRoot, ...args], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
  try {
    if (realpathSync(git('rev-parse', '--show-toplevel')) !== realpathSync(packageRoot)) return null;
    const changed = git('status', '--porcelain', '--untracked-files=no') !== '';
    return `${git('rev-parse', 'HEAD')}${changed ? '+changes' : ''}`;
  } catch {
    return null;
  }
}
