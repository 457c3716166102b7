// Writes stored zip archives as torch.save does, well-formed or with one chosen fault.
import { crc32 } from './crc32.ts';

export interface ZipFile {
  name: string;
  data: Uint8Array;
  method?: number;
  flags?: number;
  /** What the directory claims; default the truth. */
  bytes?: number;
  packedBytes?: number;
  headerOffset?: number;
}

/** zip64: put every size and offset into zip64 fields; pad: bytes of an unknown extra field in each local header. */
export function zipArchive(files: readonly ZipFile[], options: { zip64?: boolean; pad?: number } = {}): Buffer {
  const { zip64 = false, pad = 0 } = options;
  const parts: Buffer[] = [];
  const directory: Buffer[] = [];
  let offset = 0;
  for (const file of files) {
    const local = Buffer.alloc(30);
    const name = Buffer.from(file.name);
    const extra = pad === 0 ? Buffer.alloc(0) : Buffer.concat([u16(0x4246), u16(pad), Buffer.alloc(pad, 'Z')]);
    local.writeUInt32LE(0x04034b50, 0);
    local.writeUInt32LE(crc32(file.data), 14);
    local.writeUInt32LE(file.data.length, 18);
    local.writeUInt32LE(file.data.length, 22);
    local.writeUInt16LE(name.length, 26);
    local.writeUInt16LE(extra.length, 28);
    parts.push(local, name, extra, Buffer.from(file.data));
    directory.push(directoryEntry(file, name, file.headerOffset ?? offset, zip64));
    offset += 30 + name.length + extra.length + file.data.length;
  }
  const listing = Buffer.concat(directory);
  return Buffer.concat([...parts, listing, endRecords(files.length, listing.length, offset, zip64)]);
}

function directoryEntry(file: ZipFile, name: Buffer, headerOffset: number, zip64: boolean): Buffer {
  const bytes = file.bytes ?? file.data.length;
  const packed = file.packedBytes ?? bytes;
  const head = Buffer.alloc(46);
  head.writeUInt32LE(0x02014b50, 0);
  head.writeUInt16LE(file.flags ?? 0, 8);
  head.writeUInt16LE(file.method ?? 0, 10);
  head.writeUInt32LE(crc32(file.data), 16);
  head.writeUInt32LE(zip64 ? 0xffffffff : packed, 20);
  head.writeUInt32LE(zip64 ? 0xffffffff : bytes, 24);
  head.writeUInt16LE(name.length, 28);
  head.writeUInt32LE(zip64 ? 0xffffffff : headerOffset, 42);
  const extra = zip64 ? Buffer.concat([u16(1), u16(24), u64(bytes), u64(packed), u64(headerOffset)]) : Buffer.alloc(0);
  head.writeUInt16LE(extra.length, 30);
  return Buffer.concat([head, name, extra]);
}

function endRecords(entries: number, bytes: number, start: number, zip64: boolean): Buffer {
  const end = Buffer.alloc(22);
  end.writeUInt32LE(0x06054b50, 0);
  end.writeUInt16LE(zip64 ? 0xffff : entries, 8);
  end.writeUInt16LE(zip64 ? 0xffff : entries, 10);
  end.writeUInt32LE(zip64 ? 0xffffffff : bytes, 12);
  end.writeUInt32LE(zip64 ? 0xffffffff : start, 16);
  if (!zip64) return end;
  const record = Buffer.alloc(56);
  record.writeUInt32LE(0x06064b50, 0);
  record.writeBigUInt64LE(44n, 4);
  record.writeBigUInt64LE(BigInt(entries), 24);
  record.writeBigUInt64LE(BigInt(entries), 32);
  record.writeBigUInt64LE(BigInt(bytes), 40);
  record.writeBigUInt64LE(BigInt(start), 48);
  const locator = Buffer.alloc(20);
  locator.writeUInt32LE(0x07064b50, 0);
  locator.writeBigUInt64LE(BigInt(start + bytes), 8);
  locator.writeUInt32LE(1, 16);
  return Buffer.concat([record, locator, end]);
}

function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16LE(value);
  return bytes;
}

function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}
