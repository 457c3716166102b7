// Where words go: data to stdout, notes and bars to stderr.
import { styleText } from 'node:util';
import { Presets, SingleBar } from 'cli-progress';

/** Writes data and waits until the stream has taken it, so that a slow reader holds the writer back. */
export function print(data: string | Uint8Array): Promise<void> {
  return new Promise((resolve) => {
    process.stdout.write(data, () => resolve());
  });
}

/** One line for the person at the terminal. */
export function note(line: string): void {
  process.stderr.write(`${line}\n`);
}

export function printJson(value: unknown): Promise<void> {
  return print(`${JSON.stringify(value, null, 2)}\n`);
}

/** A note in grey, for figures that are beside the point. */
export function aside(line: string): void {
  note(coloured(process.stderr) ? styleText('gray', line) : line);
}

export function warn(line: string): void {
  note(coloured(process.stderr) ? styleText('yellow', `warning: ${line}`) : `warning: ${line}`);
}

/** https://no-color.org: any value but the empty one means no. */
function coloured(stream: NodeJS.WriteStream): boolean {
  return stream.isTTY === true && !process.env.NO_COLOR && process.env.TERM !== 'dumb';
}

export interface Bar {
  update(fraction: number): void;
  stop(): void;
}

const BAR_AFTER_MS = 300;

/** A bar on stderr if that is a terminal, else nothing; it appears once the work has taken long enough to wait for. */
export function bar(label: string): Bar {
  if (!process.stderr.isTTY) return { update: () => undefined, stop: () => undefined };
  const format = `${label} [{bar}] {percentage}%`;
  const single = new SingleBar(
    { format, stream: process.stderr, hideCursor: true, clearOnComplete: true },
    Presets.legacy,
  );
  const began = performance.now();
  return {
    update(fraction) {
      if (!single.isActive && performance.now() - began < BAR_AFTER_MS) return;
      if (!single.isActive) single.start(1, 0);
      single.update(Math.min(1, fraction));
    },
    stop: () => single.stop(),
  };
}

/** Left-aligned columns; those in `right` are right-aligned. */
export function table(rows: readonly (readonly string[])[], right: readonly number[] = []): string {
  const widths = (rows[0] ?? []).map((_, i) => Math.max(...rows.map((row) => (row[i] ?? '').length)));
  const cell = (text: string, i: number) =>
    right.includes(i) ? text.padStart(widths[i] ?? 0) : text.padEnd(widths[i] ?? 0);
  return rows.map((row) => `${row.map(cell).join('  ').trimEnd()}\n`).join('');
}

/** Bytes in binary units: "1.50 MiB". */
export function sized(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  const step = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(1, bytes)) / 10));
  return `${step === 0 ? bytes : (bytes / 1024 ** step).toFixed(2)} ${units[step]}`;
}
