/**
 * Trains the configurations of a list on equal budgets, and compares them:
 *
 *   tsx scripts/shipped/sweep.ts scripts/shipped/sweeps/books.json --data train-00.txt --valid valid.txt --out sweep \
 *     --device cuda --seconds 28
 *
 * With --device given several times (cuda:0, cuda:1, ...) each device takes the next run whenever it is free: every run
 * still has a device to itself. --runs N trains the first N of the list.
 * --seconds and --bytes ask different questions: which is best in so much time of this machine, and which learns most from
 * so much text. Every row has both figures. Writes a JSON line a run to sweep.jsonl in --out, and prints the table.
 */
import { mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { checkChoice, checkInteger, checkNumber, expected } from '../../lib/errors.ts';
import { openDataset } from '../../lib/index.ts';
import { readSweepList } from './sweep-list.ts';
import { runPool } from './sweep-pool.ts';
import { chosenRun, sweepNote, sweepTable, trainFlags, VERIFY_MS } from './sweep-table.ts';
import { type SweepRow, type SweepSetup, trainRun } from './sweep-train.ts';

const WHERE = 'sweep';
const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    data: { type: 'string', multiple: true },
    valid: { type: 'string' },
    out: { type: 'string' },
    seconds: { type: 'string' },
    bytes: { type: 'string' },
    tokenizers: { type: 'string', default: '.' },
    device: { type: 'string', multiple: true, default: ['auto'] },
    runs: { type: 'string' },
    precision: { type: 'string' },
    seed: { type: 'string', default: '1' },
    'eval-bytes': { type: 'string', default: '1000000' },
    'eval-context': { type: 'string' },
    passages: { type: 'string', default: '16' },
    'verify-ms': { type: 'string', default: `${VERIFY_MS}` },
  },
});

const list = readSweepList(needed('LIST', positionals[0]));
const out = needed('--out', flags.out);
const verifyMs = checkNumber(WHERE, '--verify-ms', Number(flags['verify-ms']), { min: 0 });
mkdirSync(out, { recursive: true });
const log = join(out, 'sweep.jsonl');
rmSync(log, { force: true });
const valid = needed('--valid', flags.valid);
const { precision } = flags;
const shared = {
  data: flags.data ?? [needed('--data', undefined)],
  tokenCache: out,
  tokenizers: flags.tokenizers,
  precision:
    precision === undefined ? undefined : checkChoice(WHERE, '--precision', precision, ['f32', 'bf16'] as const),
  seed: count('--seed', flags.seed),
  budget: budgetOf(flags.bytes, flags.seconds),
  evalBytes: count('--eval-bytes', flags['eval-bytes']),
  evalContext: count('--eval-context', flags['eval-context'] ?? (list.unit === 'byte' ? '8192' : '2048')),
  passages: count('--passages', flags.passages),
};
const runs = list.runs.slice(0, flags.runs === undefined ? undefined : count('--runs', flags.runs));
const [device = 'auto'] = flags.device;

/** By place in the list, so that the first row stays the one that the others are compared with. */
const found: SweepRow[] = [];
try {
  if (flags.device.length > 1) {
    const setups = flags.device.map((name, i) => ({ ...shared, device: name, out: join(out, `device-${i}`) }));
    await runPool(runs, setups, valid, keep);
  } else await runAll({ ...shared, device, out });
} finally {
  const rows = found.filter(Boolean);
  if (rows.length > 0) {
    console.log(`${sweepNote(rows)}\n\n${sweepTable(rows, verifyMs)}\n`);
    console.log(`chosen: mambabyte train ${trainFlags(chosenRun(rows, verifyMs))}`);
  }
}

async function runAll(setup: Omit<SweepSetup, 'valid'>): Promise<void> {
  const dataset = await openDataset(valid);
  try {
    for (const [i, run] of runs.entries()) keep(i, await trainRun(run, i, { ...setup, valid: dataset }));
  } finally {
    dataset.close();
  }
}

function keep(index: number, row: SweepRow): void {
  found[index] = row;
  const rows = found.filter(Boolean);
  writeFileSync(`${log}.tmp`, rows.map((line) => `${JSON.stringify(line)}\n`).join(''));
  renameSync(`${log}.tmp`, log);
  console.error(`${rows.length} of ${runs.length}: ${row.name}: ${row.bitsPerByte.toFixed(4)} bits per byte`);
}

function budgetOf(bytes: string | undefined, seconds: string | undefined): SweepSetup['budget'] {
  if (bytes !== undefined && seconds === undefined) return { bytes: count('--bytes', bytes) };
  if (seconds !== undefined && bytes === undefined) {
    return { seconds: checkNumber(WHERE, '--seconds', Number(seconds), { above: 0 }) };
  }
  throw new Error(expected(WHERE, 'one of --bytes and --seconds', 'be given', bytes ? 'both' : 'neither'));
}

function count(flag: string, text: string): number {
  return checkInteger(WHERE, flag, Number(text), { min: 1 });
}

function needed(what: string, value: string | undefined): string {
  if (value === undefined) throw new Error(expected(WHERE, what, 'be given', 'nothing'));
  return value;
}
