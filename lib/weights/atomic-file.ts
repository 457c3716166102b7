// Files that appear whole or not at all: written beside the target, synced, then renamed over it.
import { type FileHandle, open, readdir, rename, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { CheckpointError, expected } from '../errors.ts';

const WRITE_BYTES = 16 << 20; // one write call stays below every platform's limit

let counter = 0;

/**
 * Calls `fill` with a function that appends bytes, and puts the result at `path` in one step.
 *
 * Until then, and after any failure, what was at `path` is untouched; the half-written file is removed. A process that is
 * killed leaves its half-written file behind, hidden, and the next write to the same path removes it.
 *
 * @throws CheckpointError if the file system refuses (its error is the cause); whatever `fill` throws passes unchanged.
 */
export async function writeFileAtomically(
  path: string,
  fill: (append: (bytes: Uint8Array) => Promise<void>) => Promise<void>,
): Promise<void> {
  const folder = dirname(path);
  const temporary = join(folder, `.${basename(path)}.${process.pid}-${counter++}.tmp`);
  await removeAbandoned(folder, basename(path));
  const handle = await refusing(path, () => open(temporary, 'wx'));
  try {
    await fill((bytes) => refusing(path, () => writeAll(handle, bytes)));
    await refusing(path, () => handle.sync());
    await refusing(path, () => handle.close());
    await refusing(path, () => rename(temporary, path));
  } catch (error) {
    await handle.close().catch(() => {}); // already closed if closing or renaming is what failed
    await rm(temporary, { force: true }).catch(() => {}); // the first failure is the one to report
    throw error;
  }
  await refusing(path, () => syncFolder(folder));
}

async function writeAll(handle: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const length = Math.min(WRITE_BYTES, bytes.length - done);
    done += (await handle.write(bytes, done, length)).bytesWritten;
  }
}

/** A rename survives a power cut only once its folder is on disk too. */
async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

async function refusing<T>(path: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (cause) {
    const { code = 'an error', message } = cause as NodeJS.ErrnoException;
    const hint = `${HINTS[code] ?? `${message}.`} Nothing that was there before is lost.`;
    throw new CheckpointError(expected(path, 'the file', 'be written', code, hint), { cause });
  }
}

const HINTS: Record<string, string> = {
  ENOSPC: 'The disk is full.',
  EDQUOT: 'The disk quota is used up.',
  EFBIG: 'The file would pass the allowed file size.',
  EACCES: 'The folder is not writable.',
  EROFS: 'The file system is read-only.',
  ENOENT: 'The folder does not exist.',
};

/** Removes what processes that no longer run left of an unfinished write to this name. */
async function removeAbandoned(folder: string, name: string): Promise<void> {
  const entries = await readdir(folder).catch(() => []); // open() reports a bad folder
  for (const entry of entries) {
    if (!entry.startsWith(`.${name}.`)) continue;
    const pid = /^(\d+)-\d+\.tmp$/.exec(entry.slice(name.length + 2))?.[1];
    if (pid === undefined || isRunning(Number(pid))) continue;
    await rm(join(folder, entry), { force: true }).catch(() => {});
  }
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ESRCH';
  }
}
