// Several sizes of each family, every size of all families with the compute of the byte Mamba of that size.
import type { Experiment, Scale } from './experiment.ts';
import type { Trained } from './lab.ts';
import { FAMILIES, MAMBABYTE } from './lineup.ts';
import { trainingSettings } from './training-settings.ts';

export interface ScalingResult {
  corpus: string;
  family: string;
  model: string;
  /** From 0, the smallest. */
  size: number;
  seed: number;
  trained: Trained;
}

interface ScalingSettings {
  /** That the byte Mamba is trained on, for each of its parameters. */
  bytesPerParameter: number;
  seeds: number;
}

const SETTINGS: Readonly<Record<Scale, ScalingSettings>> = {
  quick: { bytesPerParameter: 2, seeds: 1 },
  default: { bytesPerParameter: 4, seeds: 2 },
  full: { bytesPerParameter: 20, seeds: 1 },
};

export const scaling: Experiment<ScalingResult> = {
  name: 'scaling',
  title: 'Scaling',
  question:
    'How does each family improve with size and compute, and which needs the least compute for a given quality?',
  corpora: ['books', 'code', 'latex'],
  async units(lab) {
    const { bytesPerParameter, seeds } = SETTINGS[lab.scale];
    const [corpus = ''] = lab.corporaOf('experiment scaling', this.corpora);
    const settings = trainingSettings(lab.scale);
    const reference = FAMILIES[lab.scale].find(({ name }) => name === MAMBABYTE);
    const wanted = lab
      .contenders(FAMILIES[lab.scale])
      .flatMap(({ name, sizes }) =>
        sizes.flatMap((model, size) => lab.seeds(seeds).map((seed) => ({ family: name, model, size, seed }))),
      );
    return Promise.all(
      wanted.map(async ({ family, model, size, seed }) => {
        const { config } = reference?.sizes[size] ?? model;
        const bytes = bytesPerParameter * lab.parametersOf(config);
        const budget = { flops: lab.flopsOf(config, settings.context, bytes) };
        const training = { corpus, model, seed, budget, ...settings };
        return {
          key: `${corpus}, ${model.name}, seed ${seed}`,
          inputs: await lab.inputsOf(training),
          run: async () => {
            const { figures: trained } = await lab.trained(training);
            return { corpus, family, model: model.name, size, seed, trained };
          },
        };
      }),
    );
  },
};
