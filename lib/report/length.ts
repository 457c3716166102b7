import type { LengthResult } from '../experiments/length.ts';
import { type Axis, lines } from './plots.ts';
import { groupsOf, type Plot, spreadOf, spreadWords, type Table, type ViewOf } from './view.ts';

const BITS: Axis = { title: 'bits per byte', format: '.2f' };

export const lengthView: ViewOf<LengthResult> = ({ units }) => {
  const results = units.map(({ result }) => result);
  if (results.length === 0) return undefined;
  return {
    plots: [windowPlot(results, false), windowPlot(results, true), positionPlot(results)],
    tables: [windowTable(results, false), windowTable(results, true), positionTable(results)],
    findings: [...groupsOf(results, ({ model }) => model)].map(([model, of]) => finding(model, of)),
  };
};

const kind = (sliding: boolean) => (sliding ? 'sliding window, half of it scored' : 'windows side by side');

function windowPlot(results: readonly LengthResult[], sliding: boolean): Plot {
  const times = timesOf(results);
  return {
    name: sliding ? 'length-sliding' : 'length-windows',
    caption: `Bits per byte against the window of evaluation, in windows of training; ${kind(sliding)}.`,
    spec: lines({
      title: kind(sliding),
      x: { title: 'window, in windows of training', log: true, format: '~g', ticks: times },
      y: BITS,
      points: results.flatMap(({ model, windows }) =>
        windows.flatMap((w) => (w.sliding === sliding ? [{ series: model, x: w.times, y: w.bitsPerByte }] : [])),
      ),
    }),
  };
}

function positionPlot(results: readonly LengthResult[]): Plot {
  return {
    name: 'length-position',
    caption: 'Bits per byte of the bytes up to a place in the text, from the place before it on; one long window.',
    spec: lines({
      title: 'by place in the text',
      x: { title: 'place, in windows of training', log: true, format: '~g', ticks: [0.5, ...timesOf(results)] },
      y: BITS,
      points: results.flatMap(({ model, positions }) =>
        positions.map(({ to, bitsPerByte }) => ({ series: model, x: to, y: bitsPerByte })),
      ),
    }),
  };
}

function timesOf(results: readonly LengthResult[]): number[] {
  return [...new Set(results.flatMap(({ windows }) => windows.map(({ times }) => times)))];
}

function windowTable(results: readonly LengthResult[], sliding: boolean): Table {
  const times = timesOf(results);
  const [{ corpus, context } = { corpus: '', context: 0 }] = results;
  return {
    caption: `${corpus}, trained on windows of ${context} bytes, ${kind(sliding)}: bits per byte by window.`,
    head: ['model', ...times.map((n) => `${n}x`)],
    rows: [...groupsOf(results, ({ model }) => model)].map(([model, of]) => [
      model,
      ...times.map((n) => spreadWords(spreadOf(of.flatMap((r) => windowBits(r, n, sliding))))),
    ]),
  };
}

function windowBits({ windows }: LengthResult, times: number, sliding: boolean): number[] {
  return windows.flatMap((w) => (w.times === times && w.sliding === sliding ? [w.bitsPerByte] : []));
}

function positionTable(results: readonly LengthResult[]): Table {
  const [{ positions } = { positions: [] }] = results;
  return {
    caption: 'Bits per byte by place in the text, in windows of training.',
    head: ['model', ...positions.map(({ from, to }) => `${from} to ${to}`)],
    rows: [...groupsOf(results, ({ model }) => model)].map(([model, of]) => [
      model,
      ...positions.map((_, i) => spreadWords(spreadOf(of.map((r) => r.positions[i]?.bitsPerByte ?? Number.NaN)))),
    ]),
  };
}

/** The last place against the end of the first training window. */
function finding(model: string, results: readonly LengthResult[]): string {
  const at = (place: (r: LengthResult) => number | undefined) => spreadOf(results.map((r) => place(r) ?? Number.NaN));
  const inside = at(({ positions }) => positions.find(({ to }) => to === 1)?.bitsPerByte);
  const beyond = at(({ positions }) => positions.at(-1)?.bitsPerByte);
  const last = results[0]?.positions.at(-1);
  const change = beyond.mean - inside.mean;
  const words = change <= 0 ? `${(-change).toFixed(3)} fewer` : `${change.toFixed(3)} more`;
  return (
    `${model}: ${inside.mean.toFixed(3)} bits per byte in the second half of the first training window, ` +
    `${beyond.mean.toFixed(3)} from ${last?.from} to ${last?.to} windows on: ${words}.`
  );
}
