// The part of the zip format that torch.save writes: stored (uncompressed) entries, zip64 where a size needs it.
// Everything is located from the central directory at the end; nothing is unpacked.
// Source: PKWARE APPNOTE 6.3.9, sections 4.3 and 4.5.3.
import type { FileHandle } from 'node:fs/promises';
import { describe, expected, ModelFormatError } from '../errors.ts';
import { readExactly } from './stored-tensor.ts';

/** A stored file: its bytes are at [offset, offset + bytes) of the archive. */
export interface ZipEntry {
  name: string;
  offset: number;
  bytes: number;
}

interface Directory {
  start: number;
  bytes: number;
  entries: number;
}

interface Listed {
  name: string;
  headerOffset: number;
  bytes: number;
}

const LOCAL_HEADER = 0x04034b50;
const DIRECTORY_HEADER = 0x02014b50;
const END_RECORD = 0x06054b50;
const END_RECORD_64 = 0x06064b50;
const LOCATOR_64 = 0x07064b50;
const MAX_DIRECTORY_BYTES = 64 << 20;

/** The directory of an archive; `find` resolves an entry to the place of its bytes. */
export class ZipArchive {
  readonly #path: string;
  readonly #handle: FileHandle;
  readonly #directoryStart: number;
  readonly #listed: Map<string, Listed>;

  constructor(path: string, handle: FileHandle, directoryStart: number, listed: Map<string, Listed>) {
    this.#path = path;
    this.#handle = handle;
    this.#directoryStart = directoryStart;
    this.#listed = listed;
  }

  get names(): string[] {
    return [...this.#listed.keys()];
  }

  /** @throws ModelFormatError if the entry's own header contradicts the directory or its bytes pass the directory. */
  async find(name: string): Promise<ZipEntry | undefined> {
    const listed = this.#listed.get(name);
    if (!listed) return undefined;
    const nameBytes = Buffer.byteLength(name);
    const header = await readExactly(this.#handle, this.#path, listed.headerOffset, 30 + nameBytes);
    const isOwn = header.readUInt16LE(26) === nameBytes && header.toString('utf8', 30) === name;
    if (header.readUInt32LE(0) !== LOCAL_HEADER || !isOwn) {
      throw bad(this.#path, `zip entry ${describe(name)}`, 'start with its own header', 'other bytes');
    }
    const offset = listed.headerOffset + 30 + nameBytes + header.readUInt16LE(28);
    if (offset + listed.bytes > this.#directoryStart) {
      const got = `${listed.bytes} bytes at ${offset}`;
      throw bad(this.#path, `zip entry ${describe(name)}`, `end before the directory at ${this.#directoryStart}`, got);
    }
    return { name, offset, bytes: listed.bytes };
  }
}

function bad(path: string, what: string, shouldBe: string, got: string, hint?: string): ModelFormatError {
  return new ModelFormatError(expected(path, what, shouldBe, got, hint));
}

/** @throws ModelFormatError if the file is no zip, is truncated, or has compressed, encrypted or repeated entries. */
export async function openZip(path: string, handle: FileHandle): Promise<ZipArchive> {
  const { size } = await handle.stat();
  const directory = await findDirectory(path, handle, size);
  if (directory.bytes > MAX_DIRECTORY_BYTES || directory.start + directory.bytes > size) {
    const got = `${directory.bytes} bytes at ${directory.start} in a file of ${size}`;
    throw bad(path, 'the zip directory', `fit the file and ${MAX_DIRECTORY_BYTES} bytes`, got);
  }
  const bytes = await readExactly(handle, path, directory.start, directory.bytes);
  return new ZipArchive(path, handle, directory.start, readDirectory(path, bytes, directory.entries));
}

async function findDirectory(path: string, handle: FileHandle, size: number): Promise<Directory> {
  const tailBytes = Math.min(size, 22 + 0xffff + 20);
  const tail = await readExactly(handle, path, size - tailBytes, tailBytes);
  for (let at = tailBytes - 22; at >= 0; at--) {
    // The comment must end the file, or these four bytes are data that happen to look like the record.
    if (tail.readUInt32LE(at) !== END_RECORD || tail.readUInt16LE(at + 20) !== tailBytes - at - 22) continue;
    const small = { entries: tail.readUInt16LE(at + 10), bytes: tail.readUInt32LE(at + 12) };
    const locator = at - 20;
    if (locator >= 0 && tail.readUInt32LE(locator) === LOCATOR_64) {
      return readEndRecord64(path, handle, safe(path, tail.readBigUInt64LE(locator + 8)), size);
    }
    return { ...small, start: tail.readUInt32LE(at + 16) };
  }
  throw bad(path, 'the file', 'end with a zip directory', 'none', 'The file is truncated, or no zip.');
}

async function readEndRecord64(path: string, handle: FileHandle, at: number, size: number): Promise<Directory> {
  if (at + 56 > size) throw bad(path, 'the zip64 end record', 'lie inside the file', `offset ${at}`);
  const record = await readExactly(handle, path, at, 56);
  if (record.readUInt32LE(0) !== END_RECORD_64) throw bad(path, 'the zip64 end record', 'be there', 'other bytes');
  return {
    entries: safe(path, record.readBigUInt64LE(32)),
    bytes: safe(path, record.readBigUInt64LE(40)),
    start: safe(path, record.readBigUInt64LE(48)),
  };
}

function safe(path: string, value: bigint): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw bad(path, 'a zip64 size', 'be under 2^53', String(value));
  return Number(value);
}

function readDirectory(path: string, bytes: Buffer, count: number): Map<string, Listed> {
  const listed = new Map<string, Listed>();
  let at = 0;
  for (let i = 0; i < count; i++) {
    if (at + 46 > bytes.length || bytes.readUInt32LE(at) !== DIRECTORY_HEADER) {
      throw bad(path, 'the zip directory', `hold ${count} entries`, `${i}`);
    }
    const nameEnd = at + 46 + bytes.readUInt16LE(at + 28);
    const extraEnd = nameEnd + bytes.readUInt16LE(at + 30);
    const next = extraEnd + bytes.readUInt16LE(at + 32);
    if (next > bytes.length) throw bad(path, 'the zip directory', `hold ${count} entries`, `${i} and a part`);
    const entry = readListed(path, bytes, at, bytes.toString('utf8', at + 46, nameEnd), nameEnd, extraEnd);
    if (listed.has(entry.name))
      throw bad(path, 'zip entries', 'have names of their own', `${describe(entry.name)} twice`);
    listed.set(entry.name, entry);
    at = next;
  }
  return listed;
}

function readListed(path: string, b: Buffer, at: number, name: string, extraStart: number, extraEnd: number): Listed {
  const flags = b.readUInt16LE(at + 8);
  const method = b.readUInt16LE(at + 10);
  const what = `zip entry ${describe(name)}`;
  if ((flags & 1) !== 0) throw bad(path, what, 'be stored in the open', 'encryption');
  if (method !== 0) throw bad(path, what, 'be stored', `compression method ${method}`, 'torch.save never compresses.');
  const wide = zip64Fields(b, extraStart, extraEnd);
  const pick = (field: number): number => {
    const value = b.readUInt32LE(field);
    if (value !== 0xffffffff) return value;
    const next = wide.shift();
    if (next === undefined) throw bad(path, what, 'have a zip64 field for each large size', 'none');
    return safe(path, next);
  };
  const bytes = pick(at + 24); // the order of the zip64 fields: uncompressed, compressed, header offset
  const packed = pick(at + 20);
  if (packed !== bytes) throw bad(path, what, 'be as long packed as unpacked', `${packed} and ${bytes} bytes`);
  return { name, headerOffset: pick(at + 42), bytes };
}

function zip64Fields(bytes: Buffer, start: number, end: number): bigint[] {
  for (let at = start; at + 4 <= end; ) {
    const id = bytes.readUInt16LE(at);
    const stop = Math.min(end, at + 4 + bytes.readUInt16LE(at + 2));
    if (id === 1) {
      const fields: bigint[] = [];
      for (let field = at + 4; field + 8 <= stop; field += 8) fields.push(bytes.readBigUInt64LE(field));
      return fields;
    }
    at = stop;
  }
  return [];
}
