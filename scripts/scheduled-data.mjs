/**
 * Corpora for the weekly experiments, out of what a Debian or Ubuntu machine and its packages hold: prose (the packages
 * fortunes, as books), Python's standard library (code), a genome (bowtie-examples).
 *
 *   node scripts/scheduled-data.mjs FOLDER
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { gunzipSync } from 'node:zlib';

const SEPARATOR = '\n\f\n';
/** Of so many documents one is for validation and one for the test. */
const ONE_IN = 5;

const [folder] = process.argv.slice(2);
if (!folder) throw new Error('scheduled-data: expected a folder to be given, got nothing');
const out = resolve(folder);
const unpacked = mkdtempSync(join(tmpdir(), 'mambabyte-data-'));
try {
  for (const name of ['fortunes', 'fortunes-min', 'bowtie-examples']) {
    execFileSync('apt-get', ['download', name], { cwd: unpacked, stdio: 'inherit' });
  }
  for (const name of readdirSync(unpacked)) {
    if (name.endsWith('.deb')) execFileSync('dpkg', ['-x', name, '.'], { cwd: unpacked });
  }
  const quotations = join(unpacked, 'usr/share/games/fortunes');
  corpus(
    'books',
    read(quotations, (name) => !name.includes('.')),
  );
  corpus(
    'code',
    python().flatMap((root) => read(root, (name) => name.endsWith('.py'))),
  );
  const genome = readFileSync(join(unpacked, 'usr/share/doc/bowtie/examples/genomes/NC_008253.fna.gz'));
  const bases = gunzipSync(genome).toString('latin1').replace(/^>.*$/gm, '').replaceAll('\n', '');
  write('genome', 'genome.txt', bases);
} finally {
  rmSync(unpacked, { recursive: true, force: true });
}

function python() {
  const roots = readdirSync('/usr/lib').filter((name) => /^python3\.\d+$/.test(name));
  if (roots.length === 0) throw new Error('scheduled-data: expected /usr/lib to hold Python, got none');
  return roots.map((name) => join('/usr/lib', name));
}

/** Texts of the files below a folder, by path. */
function read(root, wanted) {
  const files = readdirSync(root, { recursive: true, withFileTypes: true });
  return files
    .filter((file) => file.isFile() && wanted(file.name))
    .map((file) => join(file.parentPath ?? file.path, file.name))
    .sort()
    .map((path) => readFileSync(path, 'utf8').replaceAll('\f', ''))
    .filter((text) => text.length > 0);
}

function corpus(name, documents) {
  const part = (wanted) => documents.filter((_, i) => wanted(i % ONE_IN));
  write(name, 'train.txt', part((i) => i < ONE_IN - 2).join(SEPARATOR));
  write(name, 'valid.txt', part((i) => i === ONE_IN - 2).join(SEPARATOR));
  write(name, 'test.txt', part((i) => i === ONE_IN - 1).join(SEPARATOR));
}

function write(name, file, text) {
  mkdirSync(join(out, name), { recursive: true });
  writeFileSync(join(out, name, file), text);
}
