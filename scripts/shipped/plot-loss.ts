/**
 * Draws how training went: bits per byte against bytes read, the batches' own as a line, held-out text's as points.
 *
 *   tsx scripts/shipped/plot-loss.ts --out models/books/loss.svg books=run/log.jsonl [books-draft=other/log.jsonl]
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { parse, View } from 'vega';
import { compile, type TopLevelSpec } from 'vega-lite';
import { expected } from '../../lib/errors.ts';

interface LogLine {
  bytes: number;
  bitsPerByte: number;
  validBitsPerByte?: number;
}

interface Point {
  model: string;
  /** Millions of bytes. */
  read: number;
  bitsPerByte: number;
}

/** Means are taken over stretches that grow like the bytes read, so that they are as wide on a logarithmic axis. */
const STRETCHES = 160;
/** The first steps, from 8 bits down to here, would take most of the picture. */
const MOST_BITS = 4;
const READ_AXIS = { tickCount: 6, format: '~g' };
const SIZE = { width: 620, height: 340 };

const { values: flags, positionals } = parseArgs({ allowPositionals: true, options: { out: { type: 'string' } } });
if (flags.out === undefined || positionals.length === 0) {
  throw new Error(expected('plot-loss', '--out FILE and NAME=log.jsonl', 'be given', 'less'));
}
const logs = positionals.map((argument) => {
  const at = argument.lastIndexOf('=');
  return { model: argument.slice(0, Math.max(0, at)), lines: readLog(argument.slice(at + 1)) };
});
const spec = lossCurves(
  logs.flatMap(({ model, lines }) => smoothed(model, lines)),
  logs.flatMap(({ model, lines }) => heldOut(model, lines)),
);
const view = new View(parse(compile(spec).spec), { renderer: 'none' });
writeFileSync(flags.out, `${await view.toSVG()}\n`);

function readLog(path: string): LogLine[] {
  const lines = readFileSync(path, 'utf8').trimEnd().split('\n');
  return lines.map((line) => JSON.parse(line) as LogLine);
}

/** The batches' bits per byte, as means of geometrically growing stretches. */
function smoothed(model: string, lines: readonly LogLine[]): Point[] {
  const first = lines[0]?.bytes ?? 1;
  const last = lines.at(-1)?.bytes ?? 1;
  const stretchOf = ({ bytes }: LogLine) => Math.floor((STRETCHES * Math.log(bytes / first)) / Math.log(last / first));
  const stretches = new Map<number, LogLine[]>();
  for (const line of lines) {
    const stretch = stretchOf(line);
    stretches.set(stretch, [...(stretches.get(stretch) ?? []), line]);
  }
  const mean = (of: readonly LogLine[], key: 'bytes' | 'bitsPerByte') => of.reduce((a, b) => a + b[key], 0) / of.length;
  return [...stretches.values()].map((of) => point(model, mean(of, 'bytes'), mean(of, 'bitsPerByte')));
}

function heldOut(model: string, lines: readonly LogLine[]): Point[] {
  return lines.flatMap(({ bytes, validBitsPerByte }) =>
    validBitsPerByte === undefined ? [] : [point(model, bytes, validBitsPerByte)],
  );
}

function point(model: string, bytes: number, bitsPerByte: number): Point {
  return { model, read: bytes / 1e6, bitsPerByte };
}

function lossCurves(train: readonly Point[], valid: readonly Point[]): TopLevelSpec {
  const all = [...train, ...valid].map(({ bitsPerByte }) => bitsPerByte);
  const bits = [Math.floor(Math.min(...all) * 10) / 10, Math.min(MOST_BITS, Math.ceil(Math.max(...all)))];
  const encoding = {
    x: {
      field: 'read',
      type: 'quantitative',
      title: 'bytes read, millions',
      scale: { type: 'log', nice: false },
      axis: READ_AXIS,
    },
    y: { field: 'bitsPerByte', type: 'quantitative', title: 'bits per byte', scale: { domain: bits, nice: false } },
    color: { field: 'model', type: 'nominal', title: null },
  } as const;
  return {
    ...SIZE,
    background: 'white',
    title: { text: 'line: training batches; points: held-out text', fontWeight: 'normal', fontSize: 12 },
    config: { font: 'sans-serif', axis: { labelFontSize: 11, titleFontSize: 12, titleFontWeight: 'normal' } },
    encoding,
    layer: [
      { data: { values: [...train] }, mark: { type: 'line', strokeWidth: 1.5, clip: true } },
      { data: { values: [...valid] }, mark: { type: 'point', filled: true, size: 45 } },
    ],
  };
}
