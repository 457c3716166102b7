// How much worse a model predicts text with typing errors: bytes beside subwords, whose tokens errors break up.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { DEFAULT_SEPARATOR } from '../data/dataset.ts';
import type { Model } from '../model.ts';
import { evaluate } from '../train/evaluate.ts';
import { trainingOf } from './compute.ts';
import { documentsOf, type Sample } from './corpora.ts';
import type { Experiment, Scale } from './experiment.ts';
import type { Lab } from './lab.ts';
import { LINEUP } from './lineup.ts';
import { NOISES, type Noise, RATELESS, withNoise } from './noise-functions.ts';

export interface NoiseResult {
  corpus: string;
  model: string;
  seed: number;
  clean: NoisePoint;
  noisy: (NoisePoint & { noise: Noise; rate: number | null })[];
}

/** Of the whole text, over the bytes and words of the clean one, so that texts that noise makes longer compare. */
export interface NoisePoint {
  bitsPerByte: number;
  wordPerplexity: number;
}

/** The paper's. */
const RATES = [0.05, 0.3];
const SEEDS: Readonly<Record<Scale, number>> = { quick: 2, default: 2, full: 3 };

export const noise: Experiment<NoiseResult> = {
  name: 'noise',
  title: 'Noise in the text',
  question: 'How much does noise that no model was trained on cost: dropped, repeated, swapped letters, other case?',
  corpora: ['books', 'code', 'latex'],
  async units(lab) {
    const [corpus = ''] = lab.corporaOf('experiment noise', this.corpora);
    return Promise.all(
      lab.runs(LINEUP[lab.scale], SEEDS[lab.scale]).map(async ({ model, seed }) => {
        const training = trainingOf(lab, corpus, model, 'compute', seed);
        return {
          key: `${corpus}, ${model.name}, seed ${seed}`,
          inputs: { noises: NOISES, rates: RATES, ...(await lab.inputsOf(training)) },
          run: async () => {
            const { folder, figures } = await lab.trained(training);
            using opened = await lab.open(folder);
            const text = await lab.sample(corpus, 'test', training.samples.test);
            return { corpus, model: model.name, seed, ...(await measured(lab, opened, text, figures.context, seed)) };
          },
        };
      }),
    );
  },
};

async function measured(
  lab: Lab,
  model: Model,
  sample: Sample,
  context: number,
  seed: number,
): Promise<Pick<NoiseResult, 'clean' | 'noisy'>> {
  const score = (path: string) => evaluate(model, path, { context, signal: lab.signal });
  const { bytes, words, ...clean } = await score(sample.path);
  const documents = documentsOf(sample).map((document) => document.toString());
  const noisy: NoiseResult['noisy'] = [];
  const path = join(lab.folder('data'), `noise-${sample.hash}.txt`);
  for (const kind of NOISES) {
    for (const rate of RATELESS.includes(kind) ? [null] : RATES) {
      const spoiled = documents.map((text, i) => withNoise(text, kind, rate ?? 1, seed * documents.length + i));
      writeFileSync(path, spoiled.join(DEFAULT_SEPARATOR));
      const { nats } = await score(path);
      const point = { bitsPerByte: nats / Math.LN2 / bytes, wordPerplexity: Math.exp(nats / words) };
      noisy.push({ noise: kind, rate, ...point });
    }
  }
  return { clean: { bitsPerByte: clean.bitsPerByte, wordPerplexity: clean.wordPerplexity }, noisy };
}
