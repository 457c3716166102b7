import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, loadavg } from 'node:os';
import { join } from 'node:path';
import { packageRoot } from '../lib/native.ts';

/** Median of some figures. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  const upper = sorted[half] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[half - 1] ?? Number.NaN) + upper) / 2;
}

/** Where a figure comes from: without this a result is not recorded. */
export function provenance(): Record<string, unknown> {
  const git = (...args: string[]) => execFileSync('git', args, { cwd: packageRoot, encoding: 'utf8' }).trim();
  return {
    date: new Date().toISOString().slice(0, 10),
    machine: cpus()[0]?.model ?? 'unknown',
    cores: availableParallelism(),
    load: loadavg().map((l) => Number(l.toFixed(2))),
    node: process.version,
    commit: git('rev-parse', '--short', 'HEAD'),
    // Records themselves, which a run before this one may have written, change nothing.
    dirty: git('status', '--porcelain', '--untracked-files=no', '--', ':!bench/results') !== '',
    command: `npm run bench -- ${process.argv.slice(2).join(' ')}`,
  };
}

/** Prints rows as a table and, with `out`, writes them with their provenance to bench/results/<out>.json. */
export function report(
  name: string,
  rows: Record<string, unknown>[],
  out?: string,
  machine: Record<string, unknown> = {},
): void {
  console.log(`\n${name}`);
  console.table(rows);
  if (out === undefined) return;
  const folder = join(packageRoot, 'bench', 'results');
  mkdirSync(folder, { recursive: true });
  const text = JSON.stringify({ name, ...provenance(), ...machine, rows }, null, 2);
  writeFileSync(join(folder, `${out}.json`), `${text}\n`);
}

/** A figure with three significant digits. */
export function round(value: number): number {
  return Number(value.toPrecision(3));
}
