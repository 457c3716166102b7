// Generation speed and memory against the context: a state of constant size beside caches that grow.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { decodingTimes } from '../decoding-times.ts';
import { OutOfMemoryError } from '../errors.ts';
import { loadModel, type Model } from '../model.ts';
import { architectureOf } from '../models/architectures.ts';
import type { WeightDType } from '../weights/load.ts';
import { writeRandomCheckpoint } from '../weights/random-checkpoint.ts';
import type { Experiment, Scale, Unit } from './experiment.ts';
import type { Lab } from './lab.ts';
import { type Contender, SPEED_LINEUP } from './lineup.ts';
import { deviation, mean } from './statistics.ts';

export interface SpeedResult {
  model: string;
  batch: number;
  parameters: number;
  points: SpeedPoint[];
}

export interface SpeedPoint {
  /** Bytes that every sequence has read. */
  context: number;
  /** Of all sequences together; null: they do not fit into memory. */
  bytesPerSecond: number | null;
  /** Standard deviation over the repetitions. */
  deviation: number;
  repeats: number;
  /** What the sequences carry, states or caches, as kept on the host. */
  stateBytes: number;
  /** Of reading the context, one sequence. */
  prefillSeconds: number;
}

interface SpeedSettings {
  contexts: readonly number[];
  batches: readonly number[];
  /** Bytes made in each repetition, which goes on where the one before ended. One more comes first and is not counted. */
  made: number;
  repeats: number;
  dtype: WeightDType;
}

const powers = (from: number, to: number) => {
  const all: number[] = [];
  for (let n = from; n <= to; n *= 2) all.push(n);
  return all;
};

const SETTINGS: Readonly<Record<Scale, SpeedSettings>> = {
  quick: { contexts: powers(1024, 1 << 14), batches: [1, 4], made: 32, repeats: 3, dtype: 'bf16' },
  default: { contexts: powers(1024, 1 << 15), batches: [1, 8], made: 192, repeats: 5, dtype: 'bf16' },
  full: { contexts: powers(1024, 1 << 18), batches: [1, 32], made: 256, repeats: 5, dtype: 'bf16' },
};

export const speed: Experiment<SpeedResult> = {
  name: 'speed',
  title: 'Generation speed against context',
  question: 'How fast does each model generate, and how much memory does a sequence take, as the context grows?',
  corpora: [],
  async units(lab) {
    const settings = SETTINGS[lab.scale];
    const models = lab.contenders(SPEED_LINEUP[lab.scale]);
    const machine = lab.machine();
    return models.flatMap((model) => settings.batches.map((batch) => unitOf(lab, model, batch, settings, machine)));
  },
};

function unitOf(
  lab: Lab,
  model: Contender,
  batch: number,
  settings: SpeedSettings,
  machine: string,
): Unit<SpeedResult> {
  const { batches, ...rest } = settings;
  return {
    key: `${model.name}, batch ${batch}`,
    inputs: { model, batch, machine, ...rest },
    run: () => withRandomWeights(lab, model, settings, (opened) => measured(lab, opened, model.name, batch, settings)),
  };
}

async function withRandomWeights<T>(
  lab: Lab,
  { config }: Contender,
  { dtype }: SpeedSettings,
  use: (model: Model) => Promise<T>,
): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), 'mambabyte-speed-'));
  try {
    await writeRandomCheckpoint(folder, architectureOf(config).complete(config));
    using model = await loadModel(folder, { dtype, signal: lab.signal, ...lab.placed });
    return await use(model);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function measured(
  lab: Lab,
  model: Model,
  name: string,
  batch: number,
  settings: SpeedSettings,
): Promise<SpeedResult> {
  const points: SpeedPoint[] = [];
  const largest = settings.contexts.at(-1) ?? 0;
  const text = Uint8Array.from({ length: largest }, (_, i) => 32 + ((i * 37) % 90));
  for (const context of settings.contexts) {
    const point = { context, stateBytes: batch * model.stateBytesAt(context), repeats: settings.repeats };
    try {
      const { prefillSeconds, seconds } = await decodingTimes(model, text.subarray(0, context), {
        batch,
        made: settings.made,
        stretches: settings.repeats + 1,
        signal: lab.signal,
      });
      const rates = seconds.slice(1).map((each) => (batch * settings.made) / each);
      points.push({ ...point, bytesPerSecond: mean(rates), deviation: deviation(rates), prefillSeconds });
    } catch (error) {
      if (!(error instanceof OutOfMemoryError)) throw error;
      points.push({ ...point, bytesPerSecond: null, deviation: 0, prefillSeconds: 0 });
      break;
    }
  }
  return { model: name, batch, parameters: model.parameters, points };
}
