import { MAMBABYTE } from '../experiments/lineup.ts';
import type { SpeedPoint, SpeedResult } from '../experiments/speed.ts';
import { type Axis, lines } from './plots.ts';
import { binary, groupsOf, type Plot, short, type Table, type ViewOf } from './view.ts';

export const speedView: ViewOf<SpeedResult> = ({ units }) => {
  const results = units.map(({ result }) => result);
  if (results.length === 0) return undefined;
  const batches = [...groupsOf(results, ({ batch }) => String(batch)).values()];
  return {
    plots: [...batches.map(speedPlot), memoryPlot(batches[0] ?? [])],
    tables: batches.map(speedTable),
    findings: batches.flatMap((of) => [...of.map(fall), ...against(of)]),
  };
};

const sequences = (batch: number) => (batch === 1 ? 'one sequence' : `${batch} sequences`);
const measured = ({ points }: SpeedResult) =>
  points.filter((point): point is SpeedPoint & { bytesPerSecond: number } => point.bytesPerSecond !== null);

function contextAxis(results: readonly SpeedResult[]): Axis {
  const ticks = new Set(results.flatMap(({ points }) => points.map(({ context }) => context)));
  return { title: 'context, bytes', log: true, format: ',', ticks: [...ticks] };
}

function speedPlot(results: readonly SpeedResult[]): Plot {
  const batch = results[0]?.batch ?? 1;
  return {
    name: `speed-batch-${batch}`,
    caption: `Bytes generated a second against bytes read before, ${sequences(batch)}.`,
    spec: lines({
      title: `generation, ${sequences(batch)}`,
      x: contextAxis(results),
      y: { title: 'bytes per second', log: true },
      points: results.flatMap((result) =>
        measured(result).map(({ context, bytesPerSecond, deviation }) => ({
          ...{ series: result.model, x: context, y: bytesPerSecond },
          deviation: Math.min(deviation, 0.9 * bytesPerSecond),
        })),
      ),
    }),
  };
}

function memoryPlot(results: readonly SpeedResult[]): Plot {
  return {
    name: 'speed-memory',
    caption: 'Bytes of state or cache of one sequence against bytes read.',
    spec: lines({
      title: 'what a sequence carries',
      x: contextAxis(results),
      y: { title: 'bytes', log: true },
      points: results.flatMap(({ model, batch, points }) =>
        points.map(({ context, stateBytes }) => ({ series: model, x: context, y: stateBytes / batch })),
      ),
    }),
  };
}

function speedTable(results: readonly SpeedResult[]): Table {
  const batch = results[0]?.batch ?? 1;
  const contexts = [...new Set(results.flatMap(({ points }) => points.map(({ context }) => context)))];
  const rate = (point: SpeedPoint | undefined) => {
    if (!point) return '';
    if (point.bytesPerSecond === null) return 'out of memory';
    return `${short(point.bytesPerSecond)} ± ${short(point.deviation)} (${point.repeats})`;
  };
  return {
    caption: `Bytes per second by context, ${sequences(batch)}: mean ± standard deviation (repetitions).`,
    head: ['model', 'parameters', ...contexts.map(binary), `memory at ${binary(contexts.at(-1) ?? 0)}`],
    rows: results.map(({ model, parameters, points }) => [
      model,
      short(parameters),
      ...contexts.map((context) => rate(points.find((point) => point.context === context))),
      binary(points.at(-1)?.stateBytes ?? 0),
    ]),
  };
}

function fall(result: SpeedResult): string {
  const [first, last] = [measured(result)[0], measured(result).at(-1)];
  if (!first || !last) return `${result.model} does not fit into memory with ${sequences(result.batch)}.`;
  const kept = ((100 * last.bytesPerSecond) / first.bytesPerSecond).toFixed(0);
  const where = `${binary(first.context)} to ${binary(last.context)}`;
  const grown = last.stateBytes / first.stateBytes;
  const memory = grown === 1 ? 'its memory does not change' : `its memory grows ${Number(grown.toPrecision(3))} times`;
  return `${result.model}, ${sequences(result.batch)}, from ${where} of context: ${kept} % of the speed is left; ${memory}.`;
}

function against(results: readonly SpeedResult[]): string[] {
  const own = results.find(({ model }) => model === MAMBABYTE);
  if (!own) return [];
  return results.flatMap((other) => {
    if (other === own) return [];
    const shared = measured(own).flatMap((point) => {
      const theirs = measured(other).find(({ context }) => context === point.context);
      return theirs ? [{ context: point.context, ratio: point.bytesPerSecond / theirs.bytesPerSecond }] : [];
    });
    const [first, last] = [shared[0], shared.at(-1)];
    if (!first || !last) return [];
    const at = ({ context, ratio }: typeof first) => `${Number(ratio.toPrecision(2))} times at ${binary(context)}`;
    return [`${MAMBABYTE}'s speed is ${at(first)} and ${at(last)} that of ${other.model}, ${sequences(own.batch)}.`];
  });
}
