/**
 * Prints the options of `mambabyte train` that a sweep chooses, for a run of so many seconds:
 *
 *   tsx scripts/shipped/chosen.ts sweep.jsonl --seconds 600 [--verify-ms 1]
 */
import { parseArgs } from 'node:util';
import { checkNumber } from '../../lib/errors.ts';
import { chosenRun, readRows, speedOf, trainFlags, VERIFY_MS } from './sweep-table.ts';

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: { seconds: { type: 'string' }, 'verify-ms': { type: 'string', default: `${VERIFY_MS}` } },
});
const rows = readRows(positionals[0] ?? '');
const run = chosenRun(rows, checkNumber('chosen', '--verify-ms', Number(flags['verify-ms']), { min: 0 }));
const seconds = checkNumber('chosen', '--seconds', Number(flags.seconds), { above: 0 });
console.log(`${trainFlags(run)} --bytes ${Math.round(speedOf(rows, run) * seconds)}`);
