// What plain compressors make of a text, in bits per byte: reference points for a language model.
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';

interface Compressor {
  name: string;
  /** Programs that can do it; the first one that is installed is used. */
  programs: readonly string[];
  /** With `archive`, a path to write to; without, the result goes to stdout. */
  args: (file: string, archive: string) => readonly string[];
  writes?: 'archive';
}

const COMPRESSORS: readonly Compressor[] = [
  { name: 'gzip -9', programs: ['gzip'], args: (file) => ['-9', '-c', file] },
  { name: 'bzip2 -9', programs: ['bzip2'], args: (file) => ['-9', '-c', file] },
  { name: 'zstd --ultra -22', programs: ['zstd'], args: (file) => ['--ultra', '-22', '-q', '-c', file] },
  { name: 'xz -9e', programs: ['xz'], args: (file) => ['-9e', '-c', file] },
  {
    name: 'PPMd (7z -m0=ppmd -mx=9)',
    programs: ['7z', '7zr', '7za'],
    args: (file, archive) => ['a', '-m0=ppmd', '-mx=9', '-bd', archive, file],
    writes: 'archive',
  },
];

/** Runs every compressor that is installed on a file; one that is not is named as missing. */
export async function compressorsBench(file: string): Promise<Record<string, unknown>[]> {
  const { size } = statSync(file);
  const rows: Record<string, unknown>[] = [];
  for (const compressor of COMPRESSORS) {
    const { name } = compressor;
    const started = performance.now();
    const bytes = await compressedBytes(compressor, file);
    if (bytes === undefined) {
      rows.push({ name, missing: compressor.programs.join(' or ') });
      continue;
    }
    const bitsPerByte = Number(((8 * bytes) / size).toFixed(4));
    rows.push({ name, bytes, 'bits/byte': bitsPerByte, seconds: Math.round((performance.now() - started) / 1000) });
  }
  return rows.map((row) => ({ file: basename(file), size, ...row }));
}

/** Size of what a compressor makes of a file; undefined when no program for it is installed. */
async function compressedBytes(
  { name, programs, args, writes }: Compressor,
  file: string,
): Promise<number | undefined> {
  const folder = mkdtempSync(join(tmpdir(), 'mambabyte-bench-'));
  const archive = join(folder, 'archive.7z');
  try {
    for (const program of programs) {
      const printed = await output(name, program, args(file, archive));
      if (printed !== undefined) return writes === 'archive' ? statSync(archive).size : printed;
    }
    return undefined;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** Bytes that a program prints; undefined when it is not installed. */
function output(name: string, program: string, args: readonly string[]): Promise<number | undefined> {
  return new Promise((resolve, reject) => {
    const run = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    let bytes = 0;
    let said = '';
    run.stdout.on('data', (chunk: Buffer) => {
      bytes += chunk.length;
    });
    run.stderr.setEncoding('utf8').on('data', (text: string) => {
      said += text;
    });
    run.on('error', (error: NodeJS.ErrnoException) => (error.code === 'ENOENT' ? resolve(undefined) : reject(error)));
    run.on('close', (code) => {
      if (code === 0) resolve(bytes);
      else reject(new Error(`${name}: expected ${program} to succeed, got exit code ${code}: ${said.trim()}`));
    });
  });
}
