// The texts of the experiments: a folder for each corpus, with files or folders train*, valid* and test* in it. A corpus
// without them, any other files, is cut: of every document the first 90 % are for training, 5 % each for the others.
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { type Dataset, DEFAULT_SEPARATOR, openDataset } from '../data/dataset.ts';
import { DataError, expected } from '../errors.ts';
import { writeFileAtomically } from '../weights/atomic-file.ts';

export const SPLITS = ['train', 'valid', 'test'] as const;
export type Split = (typeof SPLITS)[number];

export interface SampleOptions {
  /** About so many bytes ... */
  maxBytes: number;
  /** ... from the middles of evenly spread documents, at most so many of each ... */
  maxDocument: number;
  /** ... and of none that has fewer than these. */
  minDocument?: number;
  /** All documents as one, with blank lines between them: every window of a training is full then. */
  joined?: boolean;
}

/** A text that was cut out of a corpus. */
export interface Sample {
  path: string;
  bytes: number;
  documents: number;
  /** SHA-256 of the file, its first 16 digits. */
  hash: string;
}

const LAYOUT = 'It holds a folder for each corpus, such as books/ with train.txt, valid.txt and test.txt.';
const CUTS: Readonly<Record<Split, readonly [from: number, to: number]>> = {
  train: [0, 0.9],
  valid: [0.9, 0.95],
  test: [0.95, 1],
};

/** The corpora below a folder. */
export class Corpora {
  readonly folder: string | undefined;

  /** @throws DataError unless it is a folder */
  constructor(folder: string | undefined) {
    this.folder = folder;
    if (folder === undefined || (existsSync(folder) && statSync(folder).isDirectory())) return;
    const got = existsSync(folder) ? 'a file' : 'nothing of that name';
    throw new DataError(expected('experiment', '--data', 'be a folder', `${got} (${folder})`, LAYOUT));
  }

  has(name: string): boolean {
    const path = join(this.folder ?? '', name);
    return this.folder !== undefined && existsSync(path) && statSync(path).isDirectory();
  }

  /** Those of `names` that are there. @throws DataError saying what is needed where none is */
  present(where: string, names: readonly string[]): string[] {
    const found = names.filter((name) => this.has(name));
    if (found.length > 0) return found;
    const be = `hold one of ${names.join(', ')}`;
    const got = this.folder === undefined ? 'no --data' : `none of them in ${this.folder}`;
    throw new DataError(expected(where, '--data', be, got, LAYOUT));
  }

  /** Writes a sample of one split to a folder, where it is found the next time. @throws DataError */
  async sample(name: string, split: Split, options: SampleOptions, folder: string): Promise<Sample> {
    const [paths, whole] = this.files(name, split);
    using data = await openDataset(paths);
    const [from, to] = whole ? [0, 1] : CUTS[split];
    const pieces = samplePieces(data, from, to, options);
    const separator = Buffer.from(options.joined ? '\n\n\n' : DEFAULT_SEPARATOR);
    const text = Buffer.concat(pieces.flatMap((piece, i) => (i === 0 ? [piece] : [separator, piece])));
    if (pieces.length === 0) {
      const be = `hold a document of ${options.minDocument ?? 2} bytes`;
      throw new DataError(expected(paths.join(', '), `the ${split} data`, be, `none in ${data.documents}`));
    }
    const hash = createHash('sha256').update(text).digest('hex').slice(0, 16);
    const path = join(folder, `${name}-${split}-${hash}.txt`);
    if (!existsSync(path)) await writeFileAtomically(path, (append) => append(text));
    return { path, bytes: text.length, documents: pieces.length, hash };
  }

  /** Files of a split, and whether they are of it alone. */
  private files(name: string, split: Split): [paths: string[], whole: boolean] {
    const folder = join(this.folder ?? '', name);
    const all = readdirSync(folder).sort();
    const names = all.filter((file) => !/^(\.|README|MANIFEST|LICEN[CS]E)|\.zst$/.test(file));
    const of = (wanted: Split) => names.filter((file) => file.startsWith(wanted)).map((file) => join(folder, file));
    if (SPLITS.every((wanted) => of(wanted).length === 0)) {
      if (names.length > 0) return [names.map((file) => join(folder, file)), false];
    } else if (of(split).length > 0) return [of(split), true];
    const packed = all.some((file) => file.endsWith('.zst'));
    const hint = packed ? 'Unpack its .zst files first: zstd -d.' : LAYOUT;
    const got = names.join(', ') || 'none that can be read';
    throw new DataError(expected('experiment', folder, `hold files ${split}*`, got, hint));
  }
}

/** Texts of evenly spread documents, each between two fractions of its length. */
function samplePieces(
  data: Dataset,
  from: number,
  to: number,
  { maxBytes, maxDocument, minDocument = 2 }: SampleOptions,
): Buffer[] {
  const all = Array.from({ length: data.documents }, (_, i) => {
    const [start, end] = [Math.floor(data.length(i) * from), Math.floor(data.length(i) * to)];
    const length = Math.min(end - start, maxDocument);
    return { document: i, start: start + Math.floor((end - start - length) / 2), length };
  });
  const spans = all.filter(({ length }) => length >= minDocument);
  const total = spans.reduce((sum, { length }) => sum + length, 0);
  const share = Math.min(1, maxBytes / total);
  const pieces: Buffer[] = [];
  let passed = 0;
  let taken = 0;
  for (const { document, start, length } of spans) {
    passed += length;
    const wanted = Math.min(length, Math.ceil(maxBytes - taken));
    if (taken >= passed * share || wanted < minDocument) continue;
    const piece = characters(Buffer.from(data.slice(document, start, wanted)));
    if (piece.length < 2) continue;
    pieces.push(piece);
    taken += piece.length;
  }
  return pieces;
}

/** Without the rest of a character of UTF-8 at either end; bytes of other kinds as they are. */
export function characters(bytes: Buffer): Buffer {
  const inside = (at: number) => ((bytes[at] ?? 0) & 0xc0) === 0x80;
  let from = 0;
  while (from < 3 && inside(from)) from++;
  let last = bytes.length - 1;
  while (last > bytes.length - 4 && inside(last)) last--;
  const lead = bytes[last] ?? 0;
  const size = lead < 0xc0 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  return bytes.subarray(from, last + size > bytes.length ? last : bytes.length);
}

/** A sample's bytes. */
export function readSample({ path }: Sample): Buffer {
  return readFileSync(path);
}

/** Those of each of its documents. */
export function documentsOf(sample: Sample): Buffer[] {
  const documents = readSample(sample).toString('latin1').split(DEFAULT_SEPARATOR);
  return documents.map((document) => Buffer.from(document, 'latin1'));
}
