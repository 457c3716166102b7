import { MAMBABYTE, SUBWORD } from '../experiments/lineup.ts';
import type { NoiseResult } from '../experiments/noise.ts';
import { bars } from './plots.ts';
import {
  byCorpus,
  comparison,
  groupsOf,
  type Spread,
  shortSpreadWords,
  signed,
  spreadOf,
  spreadWords,
} from './view.ts';

type Noisy = NoiseResult['noisy'][number];

const nameOf = ({ noise, rate }: Noisy) => (rate === null ? noise : `${noise} ${rate}`);

export const noiseView = byCorpus<NoiseResult>((corpus, results) => {
  const noises = [...new Set(results.flatMap(({ noisy }) => noisy.map(nameOf)))];
  const models = [...groupsOf(results, ({ model }) => model)];
  const increase = (of: readonly NoiseResult[], name: string, key: 'bitsPerByte' | 'wordPerplexity'): Spread =>
    spreadOf(of.map(({ clean, noisy }) => (noisy.find((n) => nameOf(n) === name)?.[key] ?? Number.NaN) - clean[key]));
  const plot = bars({
    title: `${corpus}: what noise costs`,
    y: { title: 'more bits per byte', format: '.1f' },
    values: noises.flatMap((name) =>
      models.map(([model, of]) => {
        const { mean, deviation } = increase(of, name, 'bitsPerByte');
        return { group: name, series: model, value: mean, deviation };
      }),
    ),
  });
  const rows = (key: 'bitsPerByte' | 'wordPerplexity', words: (spread: Spread) => string) => [
    ['none: the clean text', ...models.map(([, of]) => words(spreadOf(of.map((r) => r.clean[key]))))],
    ...noises.map((name) => [
      name,
      ...models.map(([, of]) => {
        const spread = increase(of, name, key);
        return `${spread.mean < 0 ? '' : '+'}${words(spread)}`;
      }),
    ]),
  ];
  const head = ['noise', ...models.map(([model]) => model)];
  const [byte, subword] = [MAMBABYTE, SUBWORD].map((name) => models.find(([model]) => model === name)?.[1]);
  return {
    plots: [{ name: 'noise', caption: 'Increase over the clean text, by noise and rate; over its bytes.', spec: plot }],
    tables: [
      {
        caption: `${corpus}: increase in bits per byte, over the bytes of the clean text.`,
        head,
        rows: rows('bitsPerByte', spreadWords),
      },
      {
        caption: `${corpus}: increase in word perplexity, over the words of the clean text.`,
        head,
        rows: rows('wordPerplexity', shortSpreadWords),
      },
    ],
    findings:
      byte && subword
        ? noises.map((name) => {
            const [a, b] = [increase(byte, name, 'bitsPerByte'), increase(subword, name, 'bitsPerByte')];
            const cost = `${signed(a.mean)} bits per byte for the byte model, ${signed(b.mean)} for the subword model`;
            return `${name}: ${cost}; ${comparison(MAMBABYTE, a, SUBWORD, b, 'loses less than')}.`;
          })
        : [],
  };
});
