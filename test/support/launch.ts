// A parent of ranks in a process of its own, to be killed: launch.ts '<script>' '<argument>' ...
import { runRanks } from '../../lib/cli/ranks.ts';

const [script = '', ...argv] = process.argv.slice(2);
void runRanks([0, 1], new AbortController().signal, { script, argv });
