// Training curves at equal compute and at equal numbers of parameters and bytes: tables 1 to 3 of the paper in miniature.
import type { Experiment, Scale } from './experiment.ts';
import type { Lab, Trained, Training } from './lab.ts';
import { type Contender, LINEUP, MAMBABYTE } from './lineup.ts';
import { trainingSettings } from './training-settings.ts';

/** 'compute': as many floating-point operations as the byte Mamba's training takes. 'bytes': as many bytes. */
export const MATCHES = ['compute', 'bytes'] as const;
export type Match = (typeof MATCHES)[number];

export interface ComputeResult {
  corpus: string;
  model: string;
  match: Match;
  seed: number;
  trained: Trained;
}

interface ComputeSettings {
  /** Bytes that the byte Mamba is trained on. */
  bytes: number;
  seeds: number;
  /** Most corpora, of those that are there. */
  corpora: number;
}

const SETTINGS: Readonly<Record<Scale, ComputeSettings>> = {
  quick: { bytes: 2e5, seeds: 2, corpora: 1 },
  default: { bytes: 6e5, seeds: 2, corpora: 3 },
  full: { bytes: 4e8, seeds: 3, corpora: 3 },
};

export const compute: Experiment<ComputeResult> = {
  name: 'compute',
  title: 'Training at equal compute and at equal size',
  question: 'Which model predicts held-out text best after the same training compute, and after the same bytes?',
  corpora: ['books', 'code', 'latex'],
  async units(lab) {
    const settings = SETTINGS[lab.scale];
    const corpora = lab.corporaOf('experiment compute', this.corpora).slice(0, settings.corpora);
    const wanted = corpora.flatMap((corpus) =>
      MATCHES.flatMap((match) => lab.runs(LINEUP[lab.scale], settings.seeds).map((run) => ({ corpus, match, ...run }))),
    );
    return Promise.all(
      wanted.map(async ({ corpus, model, match, seed }) => {
        const training = trainingOf(lab, corpus, model, match, seed);
        return {
          key: `${corpus}, ${model.name}, equal ${match}, seed ${seed}`,
          inputs: { match, ...(await lab.inputsOf(training)) },
          run: async () => {
            const { figures: trained } = await lab.trained(training);
            return { corpus, model: model.name, match, seed, trained };
          },
        };
      }),
    );
  },
};

/** One seed of one model on one corpus. */
export function trainingOf(lab: Lab, corpus: string, model: Contender, match: Match, seed: number): Training {
  const bytes = lab.options.bytes ?? SETTINGS[lab.scale].bytes;
  const settings = trainingSettings(lab.scale);
  const reference = LINEUP[lab.scale].find(({ name }) => name === MAMBABYTE) ?? model;
  const same = match === 'bytes' || model.name === reference.name;
  const budget = same ? { bytes } : { flops: lab.flopsOf(reference.config, settings.context, bytes) };
  return { corpus, model, seed, budget, ...settings };
}
