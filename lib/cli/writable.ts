import { access, constants, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { CheckpointError, expected } from '../errors.ts';

/**
 * Finds out before long work whether its result can be put at `path`: a file that is there or in a folder that is.
 * @throws CheckpointError if not
 */
export async function assertWritable(path: string): Promise<void> {
  const there = await stat(path).catch(() => undefined);
  if (there && !there.isFile()) {
    const got = there.isDirectory() ? 'a folder' : 'a device, pipe or socket';
    throw new CheckpointError(expected(path, 'what is there', 'be a file', got));
  }
  try {
    await access(dirname(path), constants.W_OK);
  } catch (cause) {
    const { code = 'an error' } = cause as NodeJS.ErrnoException;
    const hint = code === 'ENOENT' ? 'The folder does not exist.' : undefined;
    throw new CheckpointError(expected(path, 'the file', 'be in a folder that can be written', code, hint), { cause });
  }
}
