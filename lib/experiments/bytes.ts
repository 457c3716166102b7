// The same models on bytes that no tokenizer was made for: a genome, and texts in hundreds of languages.
import { brotliCompressSync, constants, gzipSync } from 'node:zlib';
import { trainingOf } from './compute.ts';
import { readSample } from './corpora.ts';
import type { Experiment, Scale } from './experiment.ts';
import type { Trained } from './lab.ts';
import { LINEUP } from './lineup.ts';

export interface BytesResult {
  corpus: string;
  model: string;
  seed: number;
  trained: Trained;
  /** Bits per byte of the test text by what has not seen the training text. */
  references: { entropy: number; gzip: number; brotli: number };
}

const SEEDS: Readonly<Record<Scale, number>> = { quick: 1, default: 2, full: 3 };

export const bytes: Experiment<BytesResult> = {
  name: 'bytes',
  title: 'Other bytes',
  question: 'What do the same models make of bytes that are no English text: a genome, and hundreds of languages?',
  corpora: ['genome', 'udhr'],
  async units(lab) {
    const corpora = lab.corporaOf('experiment bytes', this.corpora);
    const runs = lab.runs(
      LINEUP[lab.scale].filter(({ vocab }) => vocab === undefined),
      SEEDS[lab.scale],
    );
    const wanted = corpora.flatMap((corpus) => runs.map((run) => ({ corpus, ...run })));
    return Promise.all(
      wanted.map(async ({ corpus, model, seed }) => {
        const training = trainingOf(lab, corpus, model, 'compute', seed);
        return {
          key: `${corpus}, ${model.name}, seed ${seed}`,
          inputs: await lab.inputsOf(training),
          run: async () => {
            const { figures: trained } = await lab.trained(training);
            const text = readSample(await lab.sample(corpus, 'test', training.samples.test));
            return { corpus, model: model.name, seed, trained, references: referencesOf(text) };
          },
        };
      }),
    );
  },
};

function referencesOf(text: Buffer): BytesResult['references'] {
  const bits = (packed: Buffer) => (8 * packed.length) / text.length;
  const params = { [constants.BROTLI_PARAM_QUALITY]: 11, [constants.BROTLI_PARAM_LGWIN]: 24 };
  return {
    entropy: entropyOf(text),
    gzip: bits(gzipSync(text, { level: 9 })),
    brotli: bits(brotliCompressSync(text, { params })),
  };
}

/** Bits per byte of a code for single bytes that knows how often each of them comes. */
export function entropyOf(text: Uint8Array): number {
  const counts = new Float64Array(256);
  for (const byte of text) counts[byte] = (counts[byte] ?? 0) + 1;
  return counts.reduce((sum, n) => (n === 0 ? sum : sum - (n / text.length) * Math.log2(n / text.length)), 0);
}
