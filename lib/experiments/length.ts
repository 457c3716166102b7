// Texts far longer than the windows of training: by window, and by the place in the longest one.
import type { Model } from '../model.ts';
import { evaluate, sliding } from '../train/evaluate.ts';
import { trainingOf } from './compute.ts';
import { documentsOf, type Sample, type SampleOptions } from './corpora.ts';
import type { Experiment, Scale } from './experiment.ts';
import type { Lab } from './lab.ts';
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

/** Bytes [from, to) of every document. */
export interface PositionPoint {
  /** In training windows. */
  from: number;
  to: number;
  /** Of a model that has read all of the document before. */
  bitsPerByte: number;
  /** Of the same bytes in sliding windows of the training length, each from nothing. */
  restarted: number;
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
    const text = await lab.sample(corpus, 'test', longTexts(lab.scale, settings.documents));
    return Promise.all(
      lab.runs(LINEUP[lab.scale], settings.seeds).map(async ({ model, seed }) => {
        const training = trainingOf(lab, corpus, model, 'compute', seed);
        return {
          key: `${corpus}, ${model.name}, seed ${seed}`,
          inputs: { times: TIMES, text: text.hash, ...(await lab.inputsOf(training)) },
          run: async () => {
            const { folder, figures } = await lab.trained(training);
            using opened = await lab.open(folder);
            const windows = await byWindow(lab, opened, text, figures.context);
            const positions = await byPosition(lab, opened, text, training.context, figures.context);
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
    for (const slides of [false, true]) {
      const window = times * context;
      const stride = slides ? Math.ceil(window / 2) : window;
      const { bitsPerByte } = await evaluate(model, text.path, { context: window, stride, signal: lab.signal });
      points.push({ times, sliding: slides, bitsPerByte });
    }
  }
  return points;
}

async function byPosition(
  lab: Lab,
  model: Model,
  text: Sample,
  bytes: number,
  context: number,
): Promise<PositionPoint[]> {
  const ends = [0.5, ...TIMES].map((times) => times * bytes);
  const sums = ends.map(() => ({ whole: 0, restarted: 0, bytes: 0 }));
  for (const read of documentsOf(text)) {
    const ids = model.tokenizer ? model.tokenizer.encode(read) : Uint8Array.from(read);
    const whole = await nllIn(lab, model, ids, ids.length);
    const restarted = await nllIn(lab, model, ids, context);
    let at = model.bytesOfId(ids[0] ?? 0).length;
    for (const [i, nats] of whole.entries()) {
      const size = model.bytesOfId(ids[i + 1] ?? 0).length;
      const sum = sums[ends.findIndex((end) => at < end)];
      at += size;
      if (!sum) continue;
      sum.whole += nats;
      sum.restarted += restarted[i] ?? Number.NaN;
      sum.bytes += size;
    }
  }
  return sums.map((sum, i) => ({
    from: (ends[i - 1] ?? 0) / bytes,
    to: (ends[i] ?? 0) / bytes,
    bitsPerByte: sum.whole / Math.LN2 / sum.bytes,
    restarted: sum.restarted / Math.LN2 / sum.bytes,
  }));
}

/** -log p of all ids but the first, in windows of `context` that overlap by half. */
async function nllIn(lab: Lab, model: Model, ids: Uint8Array | Int32Array, context: number): Promise<Float32Array> {
  const out = new Float32Array(ids.length - 1);
  for (const { from, scored, to } of sliding(ids.length, context, Math.ceil(context / 2))) {
    const { nll } = await model.score(ids.slice(from, to), { signal: lab.signal });
    out.set(nll.subarray(scored - 1 - from), scored - 1);
  }
  return out;
}
