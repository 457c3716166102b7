// Values on the command line: how they are read, and which errors are the caller's.
import { CommanderError, InvalidArgumentError, Option } from 'commander';

/** The command was called wrongly: exit code 2. */
export class UsageError extends Error {}

/** True for what commander refuses, and for what the library's own checks of options refuse. */
export function isUsageError(error: unknown): boolean {
  if (error instanceof UsageError || error instanceof CommanderError) return true;
  // The library's checks throw these types with this grammar; the runtime's own TypeErrors read otherwise.
  return (
    (error instanceof TypeError || error instanceof RangeError) && /: expected .* to .*, got /s.test(error.message)
  );
}

export function parseNumber(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || Number.isNaN(value)) throw new InvalidArgumentError('Expected a number.');
  return value;
}

export function parseCount(text: string): number {
  const value = Number(text.replaceAll('_', ''));
  if (text.trim() === '' || !Number.isSafeInteger(value) || value < 0) {
    throw new InvalidArgumentError('Expected a whole number, 0 or more.');
  }
  return value;
}

export function parsePositive(text: string): number {
  const value = parseCount(text);
  if (value === 0) throw new InvalidArgumentError('Expected a whole number, 1 or more.');
  return value;
}

/** A byte sequence; repeat the option for several. Escapes: \n \r \t \f \0 \\ and \xNN for any byte. */
export function collectBytes(text: string, before: Uint8Array[] = []): Uint8Array[] {
  return [...before, unescapeBytes(text)];
}

const SHORT: Record<string, number> = { n: 10, r: 13, t: 9, f: 12, 0: 0, '\\': 92 };

/** UTF-8 of `text`, escapes resolved. */
export function unescapeBytes(text: string): Uint8Array {
  const parts = text.split(/(\\x[0-9a-fA-F]{2}|\\.)/su).map((part) => {
    if (!part.startsWith('\\')) return Buffer.from(part);
    if (part.length === 4) return Buffer.from([Number.parseInt(part.slice(2), 16)]);
    const byte = SHORT[part.slice(1)];
    if (byte !== undefined) return Buffer.from([byte]);
    throw new InvalidArgumentError(`Unknown escape ${part}; known: \\n \\r \\t \\f \\0 \\\\ \\xNN.`);
  });
  return Buffer.concat(parts);
}

/** Between documents of one file. */
export function separatorOption(): Option {
  const about = 'text between documents of one file, with escapes; "" for none (default: \\n\\f\\n)';
  return new Option('--separator <text>', about).argParser((text) => Buffer.from(unescapeBytes(text)).toString());
}

/** The entries that are set, for options whose absence means the default. */
export function defined<T extends object>(options: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as {
    [K in keyof T]: Exclude<T[K], undefined>;
  };
}
