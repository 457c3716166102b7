import type { BytesResult } from '../experiments/bytes.ts';
import { bars } from './plots.ts';
import { groupsOf, ordering, type Spread, short, spreadOf, spreadWords, type View, type ViewOf } from './view.ts';

/** What the test text alone says, and compressors that see nothing else. */
const REFERENCES = { entropy: 'byte frequencies', gzip: 'gzip -9', brotli: 'brotli -11' } as const;

export const bytesView: ViewOf<BytesResult> = ({ units }) => {
  const results = units.map(({ result }) => result);
  if (results.length === 0) return undefined;
  const corpora = [...groupsOf(results, ({ corpus }) => corpus)];
  const spreads = new Map(corpora.map(([corpus, of]) => [corpus, spreadsOf(of)] as const));
  return {
    plots: [
      {
        name: 'bytes',
        caption: 'Bits per byte of test texts; lower is better. Compressors see only the test text.',
        spec: bars({
          title: 'other bytes',
          y: { title: 'bits per byte', format: '.1f' },
          values: [...spreads].flatMap(([corpus, of]) =>
            [...of].map(([series, { mean, deviation }]) => ({ group: corpus, series, value: mean, deviation })),
          ),
        }),
      },
    ],
    tables: corpora.map(([corpus, of]) => tableOf(corpus, of, spreads.get(corpus) ?? new Map())),
    findings: [...spreads].map(([corpus, of]) => `${corpus}, from the best: ${ordering(of)} bits per byte.`),
  };
};

function spreadsOf(results: readonly BytesResult[]): Map<string, Spread> {
  const models = [...groupsOf(results, ({ model }) => model)];
  const [one] = results;
  const references = Object.entries(REFERENCES) as [keyof typeof REFERENCES, string][];
  return new Map([
    ...models.map(([model, of]) => [model, spreadOf(of.map(({ trained }) => trained.test.bitsPerByte))] as const),
    ...references.map(([key, name]) => [name, spreadOf([one?.references[key] ?? Number.NaN])] as const),
  ]);
}

function tableOf(
  corpus: string,
  results: readonly BytesResult[],
  spreads: ReadonlyMap<string, Spread>,
): View['tables'][number] {
  return {
    caption: `${corpus}: bits per byte of the test text, mean ± standard deviation (seeds).`,
    head: ['model', 'parameters', 'training bytes', 'bits/byte'],
    rows: [...spreads].map(([name, spread]) => {
      const own = results.find(({ model }) => model === name)?.trained;
      return [name, own ? short(own.parameters) : '', own ? short(own.bytes) : '', spreadWords(spread)];
    }),
  };
}
