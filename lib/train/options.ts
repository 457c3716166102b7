// What a training run is told: defaults, checks, and the part that a resumed run must agree with.
import { type DatasetOptions, DEFAULT_SEPARATOR } from '../data/dataset.ts';
import type { EncodeProgress } from '../data/token-dataset.ts';
import type { Sampling } from '../data/windows.ts';
import {
  checkBoolean,
  checkChoice,
  checkFunction,
  checkInteger,
  checkNumber,
  checkOptions,
  checkSignal,
  checkString,
  describe,
  expected,
} from '../errors.ts';
import { configFor } from '../model.ts';
import type { Recompute } from '../models/architecture.ts';
import { architectureOf, type ModelConfig, type PartialModelConfig } from '../models/architectures.ts';
import { presetConfig } from '../models/presets.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import type { Precision } from '../trainer.ts';

/** How a run is going, after every step. */
export interface TrainProgress {
  /** Steps done, of `steps`. */
  step: number;
  steps: number;
  /** Mean nats per byte, or token of a subword model, of this step's batch, before the update. */
  loss: number;
  bitsPerByte: number;
  gradNorm: number;
  lr: number;
  /** Bytes trained on so far; of a subword model: tokens times the data's mean of bytes per token. */
  bytes: number;
  /** Passes over the data done. */
  epoch: number;
  bytesPerSecond: number;
  /** Seconds left at this speed, not counting evaluations. */
  eta: number;
  /** Of the held-out data, where this step evaluated it. */
  validBitsPerByte?: number;
}

export interface TrainOptions {
  /** What to train: a preset's name ... */
  preset?: string;
  /** ... or a new model's shape ... */
  config?: PartialModelConfig;
  /** ... or a model to start from: the name of a shipped one, a folder or a file. */
  init?: string;
  /**
   * A tokenizer.json: preset or config is a subword model over its ids, with RMSNorm and a tied head where config does not
   * say otherwise. `init` brings its own.
   */
  tokenizer?: string;
  /** Folder for the encoded data of subword models, which runs on the same data can share; default: `out`. */
  tokenCache?: string;
  /** Files or folders to learn from. */
  data?: string | readonly string[];
  /** Held-out files or folders. */
  valid?: string | readonly string[];
  /** Folder for checkpoints and log.jsonl; made if it is not there. */
  out: string;
  /**
   * Go on from `out/latest`: what is left out here is as it was; what is given must agree with it, but for how often to
   * evaluate and save.
   */
  resume?: boolean;

  /** Optimiser steps ... */
  steps?: number;
  /** ... or bytes to train on, rounded up to whole steps. */
  bytes?: number;
  /** Windows per micro-batch; default 8. */
  batch?: number;
  /** Micro-batches per step, whose gradients are averaged; default 1. */
  accumulate?: number;
  /** Bytes, or tokens of a subword model, of input per window (T); default 1024. */
  context?: number;
  /** Peak learning rate; default 4e-4. */
  lr?: number;
  /** Steps of linear warm-up; default a tenth of all, at most 500. */
  warmup?: number;
  /** After warm-up: half a cosine down to `minLr` (default), or constant. */
  schedule?: 'cosine' | 'constant';
  /** Fraction of lr that the cosine ends at; default 0.1. */
  minLr?: number;
  /** Decoupled weight decay of matrices and convolutions; norms, biases, A_log and D have none; default 0.1. */
  weightDecay?: number;
  betas?: readonly [number, number];
  eps?: number;
  /** Largest global gradient norm; 0: no clipping; default 1. */
  clip?: number;
  /** Of the initial weights and of the windows; default 0. */
  seed?: number;
  /** 'document' (default, Wang et al. 2024): a window per document and epoch; 'uniform': every unit once an epoch. */
  sampling?: Sampling;
  /** Between documents of one file; null: every file is one; default "\n\f\n". */
  separator?: string | null;

  /** Steps between evaluations of `valid`; default a tenth of all, at most 1000. The last step always is one. */
  evalEvery?: number;
  /** Bytes of `valid` scored each time, in windows of `context`; default 2^18. */
  evalBytes?: number;
  /** Steps between checkpoints; default 500. The last step, and every best evaluation, always is one. */
  saveEvery?: number;
  /** Newest checkpoints to keep, beside the best one; default 2. */
  keep?: number;

  device?: string;
  threads?: number;
  /** As of createTrainer; like the device free to change on resume. */
  precision?: Precision;
  /** As of createTrainer. */
  recompute?: Recompute | 'auto';
  onProgress?: (progress: TrainProgress) => void;
  /** Called while the data of a subword model is encoded, before the first step. */
  onEncode?: (progress: EncodeProgress) => void;
  /** Aborting finishes the current step, saves and returns. */
  signal?: AbortSignal;
}

export interface TrainResult {
  /** Steps done in all, of `steps`. */
  step: number;
  steps: number;
  /** 'aborted' when the signal ended the run; resume it to go on. */
  stopped: 'done' | 'aborted';
  /** Mean nats per byte, or token, of the last step's batch; NaN when no step was done. */
  loss: number;
  /** Lowest bits per byte on the held-out data, and its step. */
  best: { step: number; bitsPerByte: number } | null;
  /** Folder of the newest checkpoint. */
  checkpoint: string;
  /** Bytes trained on in all. */
  bytes: number;
}

const SETTINGS = [
  'steps',
  'batch',
  'accumulate',
  'context',
  'lr',
  'warmup',
  'schedule',
  'minLr',
  'weightDecay',
  'betas',
  'eps',
  'clip',
  'seed',
  'sampling',
  'separator',
] as const;
const KEYS = [
  ...SETTINGS,
  ...['preset', 'config', 'init', 'data', 'valid', 'out', 'resume', 'bytes', 'evalEvery', 'evalBytes', 'saveEvery'],
  ...[
    'keep',
    'device',
    'threads',
    'precision',
    'recompute',
    'onProgress',
    'signal',
    'tokenizer',
    'tokenCache',
    'onEncode',
  ],
];

/** What decides the weights of a run, beside data and shape: stored with every checkpoint. */
export type TrainSettings = Required<Pick<TrainOptions, (typeof SETTINGS)[number]>>;

/** How often a run stops to look at itself; stored with every checkpoint, and free to change on resume. */
export type TrainCadence = Required<Pick<TrainOptions, 'evalEvery' | 'evalBytes' | 'saveEvery' | 'keep'>>;

const WHERE = 'train';

/** Checks everything about the options that does not need a file. @throws TypeError or RangeError naming the option */
export function checkTrainOptions(options: TrainOptions): void {
  checkOptions(WHERE, options, KEYS);
  if (checkString(WHERE, 'out', options?.out) === '') throw new RangeError(expected(WHERE, 'out', 'be a path', '""'));
  const { preset, config, init, resume, bytes, steps, onProgress } = options;
  if (resume !== undefined) checkBoolean(WHERE, 'resume', resume);
  const sources = [preset, config, init].filter((source) => source !== undefined).length;
  if (sources > 1 || (sources === 0 && !resume)) {
    const got = sources === 0 ? 'none of them' : `${sources} of them`;
    throw new TypeError(expected(WHERE, 'one of preset, config and init', 'be given', got));
  }
  if (options.data === undefined && !resume) throw new TypeError(expected(WHERE, 'data', 'be a path', 'undefined'));
  if (bytes !== undefined && steps !== undefined) {
    throw new TypeError(expected(WHERE, 'one of steps and bytes', 'be given', 'both'));
  }
  if (bytes === undefined && steps === undefined && !resume) {
    throw new TypeError(expected(WHERE, 'steps or bytes', 'be given', 'neither'));
  }
  if (bytes !== undefined) checkInteger(WHERE, 'bytes', bytes, { min: 1 });
  for (const key of ['steps', 'batch', 'accumulate', 'context', 'evalEvery', 'saveEvery', 'keep', 'threads'] as const) {
    if (options[key] !== undefined) checkInteger(WHERE, key, options[key], { min: 1 });
  }
  if (options.evalBytes !== undefined) checkInteger(WHERE, 'evalBytes', options.evalBytes, { min: 2 });
  if (onProgress !== undefined) checkFunction(WHERE, 'onProgress', onProgress);
  if (options.onEncode !== undefined) checkFunction(WHERE, 'onEncode', options.onEncode);
  for (const key of ['tokenizer', 'tokenCache'] as const) {
    if (options[key] !== undefined && checkString(WHERE, key, options[key]) === '') {
      throw new RangeError(expected(WHERE, key, 'be a path', '""'));
    }
  }
  if (options.tokenizer !== undefined && init !== undefined) {
    throw new TypeError(expected(WHERE, 'tokenizer', 'be left out with init, which brings its own', 'both'));
  }
  checkSignal(WHERE, options.signal);
}

/** The shape that the options ask for, or undefined for `init` and a plain resume. */
export function wantedConfig({ preset, config }: TrainOptions, tokenizer?: Tokenizer): ModelConfig | undefined {
  const shape = preset === undefined ? config : presetConfig(preset);
  return shape && configFor(shape, tokenizer);
}

/** Settings of a new run. */
export function newSettings(options: TrainOptions, bytesPerUnit: number): TrainSettings {
  const { batch = 8, accumulate = 1, context = 1024 } = options;
  const steps = options.steps ?? stepsFor(options.bytes ?? 0, { batch, accumulate, context }, bytesPerUnit);
  return {
    steps,
    batch,
    accumulate,
    context,
    lr: checkNumber(WHERE, 'lr', options.lr ?? 4e-4, { min: 0 }),
    warmup: checkInteger(WHERE, 'warmup', options.warmup ?? Math.min(500, Math.ceil(steps / 10)), { min: 0 }),
    schedule: checkChoice(WHERE, 'schedule', options.schedule ?? 'cosine', ['cosine', 'constant']),
    minLr: checkNumber(WHERE, 'minLr', options.minLr ?? 0.1, { min: 0, max: 1 }),
    weightDecay: checkNumber(WHERE, 'weightDecay', options.weightDecay ?? 0.1, { min: 0 }),
    betas: options.betas ?? [0.9, 0.95],
    eps: checkNumber(WHERE, 'eps', options.eps ?? 1e-8, { above: 0 }),
    clip: checkNumber(WHERE, 'clip', options.clip ?? 1, { min: 0 }),
    seed: checkInteger(WHERE, 'seed', options.seed ?? 0, { min: 0 }),
    sampling: checkChoice(WHERE, 'sampling', options.sampling ?? 'document', ['document', 'uniform']),
    separator: options.separator === undefined ? DEFAULT_SEPARATOR : options.separator,
  };
}

function stepsFor(
  bytes: number,
  { batch, accumulate, context }: Pick<TrainSettings, 'batch' | 'accumulate' | 'context'>,
  bytesPerUnit: number,
): number {
  return Math.ceil(bytes / (batch * accumulate * context * bytesPerUnit));
}

/** As given, else as it was, else the defaults. */
export function cadenceOf(options: TrainOptions, steps: number, stored: Partial<TrainCadence> = {}): TrainCadence {
  return {
    evalEvery: options.evalEvery ?? stored.evalEvery ?? Math.min(1000, Math.ceil(steps / 10)),
    evalBytes: options.evalBytes ?? stored.evalBytes ?? 1 << 18,
    saveEvery: options.saveEvery ?? stored.saveEvery ?? 500,
    keep: options.keep ?? stored.keep ?? 2,
  };
}

/**
 * First setting that the options contradict, in words, or undefined. The steps of a constant schedule may change: the
 * steps already done do not depend on them.
 */
export function contradiction(stored: TrainSettings, options: TrainOptions, bytesPerUnit: number): string | undefined {
  const steps = options.bytes === undefined ? options.steps : stepsFor(options.bytes, stored, bytesPerUnit);
  const given = { ...options, steps };
  for (const key of SETTINGS) {
    if (given[key] === undefined || (key === 'steps' && stored.schedule === 'constant')) continue;
    const [then, now] = [JSON.stringify(stored[key]), JSON.stringify(given[key])];
    if (then !== now) return expected(WHERE, key, `be ${then} as when the run began`, now);
  }
  return undefined;
}

/** What the options leave of stored settings: all, but for the steps of a constant schedule. */
export function resumedSettings(stored: TrainSettings, options: TrainOptions, bytesPerUnit: number): TrainSettings {
  const { steps, bytes } = options;
  return { ...stored, steps: steps ?? (bytes === undefined ? stored.steps : stepsFor(bytes, stored, bytesPerUnit)) };
}

/** First field in which two shapes differ, in words, or undefined. */
export function shapeContradiction(stored: ModelConfig, given: ModelConfig): string | undefined {
  const fields = (c: ModelConfig): Record<string, unknown> => ({ architecture: architectureOf(c).name, ...c });
  const [then, now] = [fields(stored), fields(given)];
  for (const key of Object.keys(then)) {
    if (then[key] === now[key]) continue;
    return expected(WHERE, key, `be ${describe(then[key])} as in the checkpoint`, describe(now[key]));
  }
  return undefined;
}

/** Weight decay by parameter, as state-spaces/mamba does it; nor do the rates and steps of S4D decay, and pads. */
export function decayOf(name: string, weightDecay: number): number {
  return /(\.bias|norm(_f)?\.weight|\.A_log|\.D|\.log_dt|\.log_A_real|\.A_imag|\.pad)$/.test(name) ? 0 : weightDecay;
}

/** Options of the data set that settings decide. */
export function datasetOptions(
  { separator }: Pick<TrainSettings, 'separator'>,
  signal: AbortSignal | undefined,
): DatasetOptions {
  return { separator, ...(signal && { signal }) };
}
