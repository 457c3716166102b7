// Texts far longer than the windows of training: by window, and by the place in the longest one.
import { DEFAULT_SEPARATOR } from '../data/dataset.ts';
import type { Model } from '../model.ts';
import { evaluate } from '../train/evaluate.ts';
import { trainingOf } from './compute.ts';
import type { Sample, SampleOptions } from './corpora.ts';
import type { Experiment, Scale } from './experiment.ts';
import { type Lab, textOf } from './lab.ts';
import { LINEUP } from './lineup.ts';
import { trainingSettings } from './training-settings.ts';

export interface LengthResult {
  corpus: string;
  model: string;
  seed: number;
  /** Bytes of a training window. */
  context: number;
  windows: WindowPoint[];
  positions: PositionPoint[];
}

/** All of the text in windows of so many training windows. */
export interface WindowPoint {
  times: number;
  /** Windows overlap by half, and only the second half counts; else they do not, and all of them counts. */
  sliding: boolean;
  bitsPerByte: number;
}

/** Bytes [from, to) of every document, read from its start. */
export interface PositionPoint {
  /** In training windows. */
  from: number;
  to: number;
  bitsPerByte: number;
}

const TIMES = [1, 2, 4, 8, 16, 32, 64];
const LONGEST = 64;

const SETTINGS: Readonly<Record<Scale, { seeds: number; documents: number }>> = {
  quick: { seeds: 1, documents: 3 },
  default: { seeds: 2, documents: 8 },
  full: { seeds: 3, documents: 16 },
};

export const length: Experiment<LengthResult> = {
  name: 'length',
  title: 'Texts longer than in training',
  question: 'Trained on windows of one length, how well does a model predict texts that are up to 64 times as long?',
  corpora: ['books', 'code', 'latex'],
  async units(lab) {
    const settings = SETTINGS[lab.scale];
    const [corpus = ''] = lab.corporaOf('experiment length', this.corpora);
    const models = lab.contenders(LINEUP[lab.scale]);
    const text = await lab.sample(corpus, 'test', longTexts(lab.scale, settings.documents));
    const wanted = models.flatMap((model) => lab.seeds(settings.seeds).map((seed) => ({ model, seed })));
    return Promise.all(
      wanted.map(async ({ model, seed }) => {
        const training = trainingOf(lab, corpus, model, 'compute', seed);
        return {
          key: `${corpus}, ${model.name}, seed ${seed}`,
          inputs: { times: TIMES, text: text.hash, ...(await lab.inputsOf(training)) },
          run: async () => {
            const trained = await lab.trained(training);
            using opened = await lab.open(trained.folder);
            const windows = await byWindow(lab, opened, text, trained.context);
            const positions = await byPosition(lab, opened, text, training.context);
            return { corpus, model: model.name, seed, context: training.context, windows, positions };
          },
        };
      }),
    );
  },
};

/** Documents of the same length; a few bytes more than needed, since a character may be cut off at either end. */
function longTexts(scale: Scale, documents: number): SampleOptions {
  const length = LONGEST * trainingSettings(scale).context + 8;
  return { maxBytes: documents * length, maxDocument: length, minDocument: length };
}

async function byWindow(lab: Lab, model: Model, text: Sample, context: number): Promise<WindowPoint[]> {
  const points: WindowPoint[] = [];
  for (const times of TIMES) {
    for (const sliding of [false, true]) {
      const window = times * context;
      const stride = sliding ? Math.ceil(window / 2) : window;
      const { bitsPerByte } = await evaluate(model, text.path, { context: window, stride, signal: lab.signal });
      points.push({ times, sliding, bitsPerByte });
    }
  }
  return points;
}

async function byPosition(lab: Lab, model: Model, text: Sample, context: number): Promise<PositionPoint[]> {
  const sums = [0, ...TIMES].map(() => ({ nats: 0, bytes: 0 }));
  const ends = [0.5, ...TIMES].map((times) => times * context);
  for (const document of textOf(text).toString('latin1').split(DEFAULT_SEPARATOR)) {
    const bytes = Buffer.from(document, 'latin1');
    const { nll } = await model.score(bytes, { signal: lab.signal });
    const ids = model.tokenizer ? model.tokenizer.encode(bytes) : bytes;
    let at = model.bytesOfId(ids[0] ?? 0).length;
    for (const [i, nats] of nll.entries()) {
      const size = model.bytesOfId(ids[i + 1] ?? 0).length;
      const sum = sums[ends.findIndex((end) => at < end)];
      if (sum) {
        sum.nats += nats;
        sum.bytes += size;
      }
      at += size;
    }
  }
  return sums.map(({ nats, bytes }, i) => ({
    from: (ends[i - 1] ?? 0) / context,
    to: (ends[i] ?? 0) / context,
    bitsPerByte: nats / Math.LN2 / bytes,
  }));
}
