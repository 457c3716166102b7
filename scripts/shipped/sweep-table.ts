// The rows of a sweep as a table, and what they choose.
import { readFileSync } from 'node:fs';
import { DRAFT_BYTES } from './held-out-drafts.ts';
import type { SweepRun } from './sweep-list.ts';
import type { SweepRow } from './sweep-train.ts';

/** Milliseconds of a verify pass where nothing else is said: of about 30 million parameters on an H100. */
export const VERIFY_MS = 1;
/** Settings that a sweep moves together. */
const AXES: (keyof SweepRun)[][] = [['lr'], ['vocab', 'layers', 'dModel'], ['batch', 'context']];

/** @param path a sweep.jsonl */
export function readRows(path: string): SweepRow[] {
  const lines = readFileSync(path, 'utf8').trimEnd().split('\n');
  return lines.map((line) => JSON.parse(line) as SweepRow);
}

/** Markdown. @param verifyMs milliseconds of a verify pass, which the speed of drafts follows from */
export function sweepTable(rows: readonly SweepRow[], verifyMs: number): string {
  const drafts = rows.some((row) => row.drafts);
  const head = ['run', 'parameters', 'steps', 'MB read', 's', 'MB/s', 'bits per byte'];
  if (drafts) head.push('right of 12', 'ms a draft', 'right bytes/s', `bytes/s at ${verifyMs} ms a verify pass`);
  const body = rows.map((row) => {
    const { name, parameters, steps, bytes, seconds, bytesPerSecond, bitsPerByte } = row;
    const cells = [name, grouped(parameters), grouped(steps), mb(bytes), seconds.toFixed(1), mb(bytesPerSecond)];
    cells.push(bitsPerByte.toFixed(4));
    if (!row.drafts) return cells;
    const { rightPerPass, msPerPass, rightPerSecond } = row.drafts;
    const speed = grouped(Math.round(draftSpeed(row, verifyMs)));
    return [...cells, rightPerPass.toFixed(2), msPerPass.toFixed(2), grouped(Math.round(rightPerSecond)), speed];
  });
  const rule = head.map((_, i) => (i === 0 ? '---' : '---:'));
  return [head, rule, ...body].map((cells) => `| ${cells.join(' | ')} |`).join('\n');
}

/** What was equal for all rows, and what they were scored on. */
export function sweepNote(rows: readonly SweepRow[]): string {
  const { budget, evalBytes, evalContext, drafts } = rows[0] as SweepRow;
  const devices = [...new Set(rows.map(({ device }) => device))].sort();
  const alone = devices.length > 1 ? ', a run alone on each at a time' : '';
  const unit = drafts ? 'tokens' : 'bytes';
  const drafted = drafts ? ` Drafts of ${DRAFT_BYTES} bytes along held-out text.` : '';
  return (
    `Equal for all rows: ${budget}. Device: ${devices.join(', ')}${alone}. Bits per byte: ${grouped(evalBytes)} bytes of the held-out text, ` +
    `windows of ${evalContext} ${unit}, stride half of it.${drafted}`
  );
}

/** Bytes per second of drafting and verifying by turns: the right bytes of a draft, and the verifier's own. */
export function draftSpeed({ drafts }: SweepRow, verifyMs: number): number {
  if (!drafts) return Number.NaN;
  return (1000 * (drafts.rightPerPass + 1)) / (drafts.msPerPass + verifyMs);
}

/**
 * The first row's run with the settings of the best row on each axis, among the rows that differ from it on that axis
 * alone. Best: fewest bits per byte; of drafters' shapes, most bytes per second.
 */
export function chosenRun(rows: readonly SweepRow[], verifyMs: number): SweepRun {
  const base = rows[0] as SweepRow;
  const chosen = { ...base.run };
  for (const axis of AXES) {
    const others = AXES.filter((other) => other !== axis).flat();
    const row = rows
      .filter(({ run }) => others.every((key) => run[key] === base.run[key]))
      .reduce((best, next) => (isBetter(next, best, axis, verifyMs) ? next : best), base);
    for (const key of axis) if (row.run[key] !== undefined) Object.assign(chosen, { [key]: row.run[key] });
  }
  return chosen;
}

function isBetter(a: SweepRow, b: SweepRow, axis: readonly (keyof SweepRun)[], verifyMs: number): boolean {
  if (a.drafts && axis.includes('vocab')) return draftSpeed(a, verifyMs) > draftSpeed(b, verifyMs);
  return a.bitsPerByte < b.bitsPerByte;
}

/** Bytes per second of a run, which may combine the settings of two rows: then those of the slower one. */
export function speedOf(rows: readonly SweepRow[], run: SweepRun): number {
  const alike = rows.filter((row) =>
    (['layers', 'dModel', 'vocab'] as const).every((key) => row.run[key] === run[key]),
  );
  const windows = rows.filter((row) => (['batch', 'context'] as const).every((key) => row.run[key] === run[key]));
  const both = alike.filter((row) => windows.includes(row));
  return Math.min(...(both.length > 0 ? both : [...alike, ...windows]).map((row) => row.bytesPerSecond));
}

/** The options of `mambabyte train` that a run stands for. */
export function trainFlags({ layers, dModel, batch, context, lr, vocab }: SweepRun): string {
  const tokenizer = vocab === undefined ? '' : `--tokenizer bpe-${vocab}.json `;
  return `${tokenizer}--layers ${layers} --d-model ${dModel} --batch ${batch} --context ${context} --lr ${lr}`;
}

function grouped(n: number): string {
  return n.toLocaleString('en-US');
}

function mb(bytes: number): string {
  return (bytes / 1e6).toFixed(2);
}
