// Which files a data set consists of: paths that a user gives, folders walked.
import { readdir, realpath, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { DataError, describe, expected } from '../errors.ts';

export interface DataFile {
  path: string;
  bytes: number;
}

/**
 * Files behind `paths` in a fixed order: as given, each folder's files by path. In a folder, empty files and names that
 * start with a dot are passed over; a file that is named itself must hold something.
 * @throws DataError naming the path that is missing, unreadable, empty, or neither a file nor a folder
 */
export async function listFiles(where: string, paths: readonly string[]): Promise<DataFile[]> {
  const files: DataFile[] = [];
  for (const path of paths) {
    const stats = await reading(path, () => stat(path));
    if (stats.isDirectory()) {
      const found = await walk(path, new Set());
      if (found.length === 0) throw new DataError(expected(where, path, 'hold a file with data', 'none in the folder'));
      files.push(...found);
    } else if (!stats.isFile()) {
      throw new DataError(expected(where, path, 'be a file or a folder', 'a device, pipe or socket'));
    } else if (stats.size === 0) {
      throw new DataError(expected(where, path, 'hold data', 'an empty file'));
    } else {
      files.push({ path, bytes: stats.size });
    }
  }
  return files;
}

/** Files below a folder, by path; `seen` holds the real paths of folders above, since links can make a circle. */
async function walk(folder: string, seen: ReadonlySet<string>): Promise<DataFile[]> {
  const real = await reading(folder, () => realpath(folder));
  if (seen.has(real)) return [];
  const above = new Set(seen).add(real);
  const files: DataFile[] = [];
  const names = await reading(folder, () => readdir(folder));
  for (const name of names.sort()) {
    if (name.startsWith('.')) continue;
    const path = join(folder, name);
    const stats = await reading(path, () => stat(path));
    if (stats.isDirectory()) files.push(...(await walk(path, above)));
    else if (stats.isFile() && stats.size > 0) files.push({ path, bytes: stats.size });
  }
  return files;
}

/** Runs a file system call; its failure becomes a DataError in the words of the package. */
export async function reading<T>(path: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (cause) {
    throw unreadable(path, cause);
  }
}

export function unreadable(path: string, cause: unknown): DataError {
  const { code, message } = cause as NodeJS.ErrnoException;
  return new DataError(expected(path, 'the data', 'be readable', code ?? describe(message), HINTS[code ?? '']), {
    cause,
  });
}

const HINTS: Record<string, string> = {
  ENOENT: 'There is no such file or folder.',
  EACCES: 'Its permissions do not let this user read it.',
};
