// lib/ as it is now, in a few files, for tests that start processes: these begin in a third of the time that they need to
// load every source through tsx.
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { buildSync } from 'esbuild';
import { packageRoot } from '../../lib/native.ts';

// In the package, where the addon, the models and the dependencies are found from.
mkdirSync(join(packageRoot, '.out'), { recursive: true });
const outdir = mkdtempSync(join(packageRoot, '.out', 'test-'));
process.on('exit', () => rmSync(outdir, { recursive: true, force: true }));

buildSync({
  entryPoints: ['lib/index.ts', 'lib/cli/main.ts'],
  absWorkingDir: packageRoot,
  bundle: true,
  splitting: true,
  format: 'esm',
  platform: 'node',
  target: 'node20',
  packages: 'external',
  keepNames: true,
  outdir,
});

/** The library, to import. */
export const LIBRARY = join(outdir, 'index.js');
/** The command line, to run with node. */
export const PROGRAM = join(outdir, 'cli/main.js');
