import { type ComputeResult, MATCHES, type Match } from '../experiments/compute.ts';
import { MAMBABYTE } from '../experiments/lineup.ts';
import { type LinePoint, lines } from './plots.ts';
import type { Table, ViewOf } from './view.ts';
import {
  comparison,
  groupsOf,
  ordering,
  type Plot,
  type Spread,
  short,
  shortSpreadWords,
  spreadOf,
  spreadWords,
} from './view.ts';

/** What the budget is of, in words, and the axis that all models of it share. */
const SHOWN = {
  compute: { words: 'equal compute', axis: 'flops', title: 'training FLOPs' },
  bytes: { words: 'equal bytes', axis: 'bytes', title: 'bytes of training text' },
} as const satisfies Record<Match, object>;

export const computeView: ViewOf<ComputeResult> = ({ units }) => {
  const results = units.map(({ result }) => result);
  if (results.length === 0) return undefined;
  const shown = [...groupsOf(results, ({ corpus, match }) => `${corpus} ${match}`).values()];
  return {
    plots: shown.map(curves),
    tables: MATCHES.flatMap((match) => tableOf(match, results)),
    findings: shown.map(finding),
  };
};

const bits = (results: readonly ComputeResult[]) => spreadOf(results.map(({ trained }) => trained.test.bitsPerByte));

/** Of one corpus and match. */
function curves(results: readonly ComputeResult[]): Plot {
  const [{ corpus, match } = { corpus: '', match: 'compute' as Match }] = results;
  const { words, axis, title } = SHOWN[match];
  const points: LinePoint[] = results.flatMap(({ model, trained }) =>
    trained.curve.map((point) => ({ series: model, x: point[axis], y: point.bitsPerByte })),
  );
  return {
    name: `compute-${corpus}-${match}`,
    caption: `Bits per byte of held-out ${corpus} against ${title}, models trained with ${words}.`,
    spec: lines({
      title: `${corpus}, ${words}`,
      x: { title, log: true },
      y: { title: 'bits per byte, held out', format: '.2f' },
      points,
    }),
  };
}

function tableOf(match: Match, results: readonly ComputeResult[]): Table[] {
  const wanted = results.filter((result) => result.match === match);
  if (wanted.length === 0) return [];
  const corpora = [...groupsOf(wanted, ({ corpus }) => corpus).keys()];
  const rows = [...groupsOf(wanted, ({ model }) => model)].map(([model, own]) => {
    const [one] = own;
    const cells = corpora.flatMap((corpus) => {
      const of = own.filter((result) => result.corpus === corpus);
      if (of.length === 0) return ['', ''];
      const words = spreadOf(of.map(({ trained }) => trained.test.wordPerplexity));
      return [spreadWords(bits(of)), shortSpreadWords(words)];
    });
    const { parameters = 0, flopsPerByte = 0, bytes = 0, flops = 0 } = one?.trained ?? {};
    return [model, short(parameters), short(flopsPerByte), short(bytes), short(flops), ...cells];
  });
  const head = ['model', 'parameters', 'training FLOPs/byte', 'training bytes', 'training FLOPs'];
  const table = {
    caption: `Test text after training with ${SHOWN[match].words}: mean ± standard deviation (seeds). Lower is better.`,
    head: [...head, ...corpora.flatMap((corpus) => [`${corpus}, bits/byte`, `${corpus}, word perplexity`])],
    rows,
  };
  return [table];
}

function finding(results: readonly ComputeResult[]): string {
  const [{ corpus, match } = { corpus: '', match: 'compute' as Match }] = results;
  const spreads = new Map<string, Spread>([...groupsOf(results, ({ model }) => model)].map(([k, of]) => [k, bits(of)]));
  const own = spreads.get(MAMBABYTE);
  const [best] = [...spreads].filter(([name]) => name !== MAMBABYTE).sort(([, a], [, b]) => a.mean - b.mean);
  const against = own && best ? ` ${comparison(MAMBABYTE, own, best[0], best[1])}.` : '';
  return `${corpus}, ${SHOWN[match].words}, from the best: ${ordering(spreads)} bits per byte.${against}`;
}
