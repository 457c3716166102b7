// Where and how a result was made, so that it can be made again.
import { execFileSync } from 'node:child_process';
import { realpathSync } from 'node:fs';
import { cpus, loadavg, release, totalmem } from 'node:os';
import { deviceLabel, isCuda } from '../device.ts';
import { openDevice } from '../model.ts';
import { packageRoot } from '../native.ts';
import { version } from '../version.ts';

/** What timings are of. */
export interface Machine {
  cpu: string;
  cores: number;
  device: string;
  /** Of a GPU. */
  driver?: string;
}

export interface Environment extends Machine {
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
  memoryBytes: number;
  /** Mean number of busy threads in the minute before: what else ran. */
  load: number;
}

/** Where to compute: what was asked for. */
type Placed = { device?: string; threads?: number };

/** This machine, and the device that a name stands for. @throws DeviceUnavailableError */
export function machineOf({ device: name, threads }: Placed): Machine {
  using device = openDevice('experiment', name, threads).device;
  const { info } = device;
  return {
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cores: cpus().length,
    device: deviceLabel(info),
    ...(isCuda(info) && { driver: info.driver }),
  };
}

/** This machine and this package. @throws DeviceUnavailableError */
export function environment(command: string, placed: Placed): Environment {
  return {
    began: new Date().toISOString(),
    command,
    version,
    commit: commitOfClone(),
    node: process.version,
    system: `${process.platform}-${process.arch} ${release()}`,
    memoryBytes: totalmem(),
    load: loadavg()[0] ?? Number.NaN,
    ...machineOf(placed),
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
