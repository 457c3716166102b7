import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const root = mkdtempSync(join(tmpdir(), 'mambabyte-test-'));
process.on('exit', () => rmSync(root, { recursive: true, force: true }));

/** A fresh folder, removed when the process ends. */
export function folder(): string {
  return mkdtempSync(join(root, 'case-'));
}

/** A file with these bytes in a folder of its own. */
export function fileOf(name: string, bytes: Uint8Array | string): string {
  const path = join(folder(), name);
  writeFileSync(path, bytes);
  return path;
}
