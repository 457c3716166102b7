import { MAMBABYTE } from '../experiments/lineup.ts';
import type { ScalingResult } from '../experiments/scaling.ts';
import { mean } from '../experiments/statistics.ts';
import { type Axis, lines } from './plots.ts';
import { byCorpus, groupsOf, type Plot, short, spreadOf, spreadWords, type Table } from './view.ts';

const BITS: Axis = { title: 'bits per byte, test', format: '.2f' };

export const scalingView = byCorpus<ScalingResult>((corpus, results) => {
  const plot = (key: 'flops' | 'parameters', title: string): Plot => ({
    name: `scaling-${key}`,
    caption: `Bits per byte of the test text against ${title}; a point for each size.`,
    spec: lines({
      title: `${corpus}: test text against ${title}`,
      x: { title, log: true },
      y: BITS,
      points: sizesOf(results).map((of) => ({
        series: of.family,
        x: of[key],
        y: of.bits.mean,
        deviation: of.bits.deviation,
      })),
    }),
  });
  return {
    plots: [plot('flops', 'training FLOPs'), plot('parameters', 'parameters'), efficiency(corpus, results)],
    tables: [tableOf(corpus, results)],
    findings: findings(results),
  };
});

interface Size {
  family: string;
  model: string;
  flops: number;
  parameters: number;
  bytes: number;
  bits: ReturnType<typeof spreadOf>;
}

/** The seeds of every model together. */
function sizesOf(results: readonly ScalingResult[]): Size[] {
  return [...groupsOf(results, ({ model }) => model)].map(([model, of]) => ({
    family: of[0]?.family ?? '',
    model,
    flops: mean(of.map(({ trained }) => trained.flops)),
    parameters: of[0]?.trained.parameters ?? 0,
    bytes: mean(of.map(({ trained }) => trained.bytes)),
    bits: spreadOf(of.map(({ trained }) => trained.test.bitsPerByte)),
  }));
}

/** Held-out text against compute while training, all sizes: how far each got with what was spent so far. */
function efficiency(corpus: string, results: readonly ScalingResult[]): Plot {
  return {
    name: 'scaling-efficiency',
    caption: 'Bits per byte of held-out text against training FLOPs so far, a line for each size.',
    spec: lines({
      title: `${corpus}: while training`,
      x: { title: 'training FLOPs', log: true },
      y: { title: 'bits per byte, held out', format: '.2f' },
      points: results.flatMap(({ family, model, trained }) =>
        trained.curve.map(({ flops, bitsPerByte }) => ({ series: family, line: model, x: flops, y: bitsPerByte })),
      ),
    }),
  };
}

function tableOf(corpus: string, results: readonly ScalingResult[]): Table {
  return {
    caption: `${corpus}: each size with the compute of the byte Mamba of that size, mean ± standard deviation (seeds).`,
    head: ['model', 'parameters', 'training bytes', 'training FLOPs', 'bits/byte'],
    rows: sizesOf(results).map(({ model, parameters, bytes, flops, bits }) => [
      ...[model, short(parameters), short(bytes), short(flops)],
      spreadWords(bits),
    ]),
  };
}

/** How much compute a family needs for what the byte Mamba's largest size reaches. */
function findings(results: readonly ScalingResult[]): string[] {
  const families = groupsOf(sizesOf(results), ({ family }) => family);
  const slopes = [...families].map(([family, of]) => {
    const [first, last] = [of[0], of.at(-1)];
    if (!first || !last || of.length < 2) return `${family}: one size, so no slope.`;
    const tenfold = (last.bits.mean - first.bits.mean) / Math.log10(last.flops / first.flops);
    return `${family}: ${first.bits.mean.toFixed(3)} to ${last.bits.mean.toFixed(3)} bits per byte, ${tenfold.toFixed(3)} for ten times the compute.`;
  });
  const goal = families.get(MAMBABYTE)?.at(-1);
  if (!goal) return slopes;
  const needs = [...families].flatMap(([family, of]) => {
    if (family === MAMBABYTE) return [];
    const flops = computeFor(of, goal.bits.mean);
    const reached = `the ${goal.bits.mean.toFixed(3)} bits per byte of ${goal.model}`;
    if (flops === undefined) return [`${family} does not reach ${reached} within its sizes.`];
    return [`${family} reaches ${reached} with ${Number((flops / goal.flops).toPrecision(2))} times its compute.`];
  });
  return [...slopes, ...needs];
}

/** Where the line through the sizes crosses a figure, between two of them, in the logarithm of compute. */
function computeFor(sizes: readonly Size[], bits: number): number | undefined {
  for (const [i, here] of sizes.entries()) {
    const before = sizes[i - 1];
    if (here.bits.mean > bits) continue;
    if (!before) return here.flops;
    const share = (before.bits.mean - bits) / (before.bits.mean - here.bits.mean);
    return before.flops * (here.flops / before.flops) ** share;
  }
  return undefined;
}
