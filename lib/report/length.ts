import type { LengthResult, PositionPoint } from '../experiments/length.ts';
import { type Axis, lines } from './plots.ts';
import { byCorpus, groupsOf, type Plot, spreadOf, spreadWords, type Table } from './view.ts';

const BITS: Axis = { title: 'bits per byte', format: '.2f' };

export const lengthView = byCorpus<LengthResult>((corpus, results) => ({
  plots: [windowPlot(corpus, results, false), windowPlot(corpus, results, true), positionPlot(corpus, results)],
  tables: [windowTable(corpus, results, false), windowTable(corpus, results, true), positionTable(corpus, results)],
  findings: [...groupsOf(results, ({ model }) => model)].map(([model, of]) => finding(model, of)),
}));

const kind = (sliding: boolean) => (sliding ? 'sliding window, half of it scored' : 'windows side by side');

function windowPlot(corpus: string, results: readonly LengthResult[], sliding: boolean): Plot {
  const times = timesOf(results);
  return {
    name: sliding ? 'length-sliding' : 'length-windows',
    caption: `Bits per byte against the window of evaluation, in windows of training; ${kind(sliding)}.`,
    spec: lines({
      title: `${corpus}: ${kind(sliding)}`,
      x: { title: 'window, in windows of training', log: true, format: '~g', ticks: times },
      y: BITS,
      points: results.flatMap(({ model, windows }) =>
        windows.flatMap((w) => (w.sliding === sliding ? [{ series: model, x: w.times, y: w.bitsPerByte }] : [])),
      ),
    }),
  };
}

function positionPlot(corpus: string, results: readonly LengthResult[]): Plot {
  return {
    name: 'length-position',
    caption:
      'Bits per byte with the whole text before, less those of the same bytes in sliding windows of the training length. ' +
      'Below 0 what lies further back helps; above 0 the model is lost in long texts.',
    spec: lines({
      title: `${corpus}: what lies beyond the training window changes`,
      x: { title: 'place, in windows of training', log: true, format: '~g', ticks: [0.5, ...timesOf(results)] },
      y: { title: 'change in bits per byte', format: '.3f' },
      points: results.flatMap(({ model, positions }) =>
        positions.map((place) => ({ series: model, x: place.to, y: change(place) })),
      ),
    }),
  };
}

const change = ({ bitsPerByte, restarted }: PositionPoint) => bitsPerByte - restarted;

function timesOf(results: readonly LengthResult[]): number[] {
  return [...new Set(results.flatMap(({ windows }) => windows.map(({ times }) => times)))];
}

function windowTable(corpus: string, results: readonly LengthResult[], sliding: boolean): Table {
  const times = timesOf(results);
  const [{ context } = { context: 0 }] = results;
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

function positionTable(corpus: string, results: readonly LengthResult[]): Table {
  const [{ positions } = { positions: [] }] = results;
  return {
    caption: `${corpus}: bits per byte by place in the text, less those in sliding windows of the training length.`,
    head: ['model', ...positions.map(({ from, to }) => `${from} to ${to}`)],
    rows: [...groupsOf(results, ({ model }) => model)].map(([model, of]) => [
      model,
      ...positions.map((_, i) => spreadWords(spreadOf(of.flatMap((r) => r.positions.slice(i, i + 1).map(change))))),
    ]),
  };
}

/** At the last place, against windows of the training length. */
function finding(model: string, results: readonly LengthResult[]): string {
  const last = results[0]?.positions.at(-1);
  const { mean, deviation } = spreadOf(results.flatMap(({ positions }) => positions.slice(-1).map(change)));
  const spread = results.length > 1 ? ` ± ${deviation.toFixed(3)} over seeds` : '';
  const words = mean <= 0 ? 'helps by' : 'costs';
  return (
    `${model}: from ${last?.from} to ${last?.to} training windows on, the whole text before ${words} ` +
    `${Math.abs(mean).toFixed(3)}${spread} bits per byte, against sliding windows of the training length.`
  );
}
