// GPT-2's printable names of bytes: printable Latin-1 stands for itself, the other 68 bytes are U+0100 and up, in order.

const CHARS = Array.from({ length: 256 }, () => '');
const BYTES = new Map<string, number>();

let others = 0;
for (let byte = 0; byte < 256; byte++) {
  const printable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
  const char = String.fromCharCode(printable ? byte : 256 + others++);
  CHARS[byte] = char;
  BYTES.set(char, byte);
}

/** One character a byte. */
export function nameOfBytes(bytes: Uint8Array): string {
  let name = '';
  for (const byte of bytes) name += CHARS[byte];
  return name;
}

/** The bytes that `name` stands for, or undefined where a character stands for none. */
export function bytesOfName(name: string): Uint8Array | undefined {
  const bytes = new Uint8Array(name.length);
  for (let i = 0; i < name.length; i++) {
    const byte = BYTES.get(name.charAt(i));
    if (byte === undefined) return undefined;
    bytes[i] = byte;
  }
  return bytes;
}
