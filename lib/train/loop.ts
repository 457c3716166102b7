// train(): a whole training run, from options to checkpoints. Read it top to bottom.
import { isAbsolute, join, resolve } from 'node:path';
import { type Dataset, openDataset } from '../data/dataset.ts';
import { openTokens, type TokenDataset } from '../data/token-dataset.ts';
import { WindowSampler } from '../data/windows.ts';
import { CheckpointError, DataError, expected, MambaByteError } from '../errors.ts';
import { createModel, loadModel, type Model } from '../model.ts';
import { trainedRows } from '../models/architectures.ts';
import { resolveModel } from '../shipped.ts';
import { counted } from '../text.ts';
import { Tokenizer } from '../tokenizer/tokenizer.ts';
import { type Batch, createTrainer, type StepResult, type Trainer, type TrainerOptions } from '../trainer.ts';
import { version } from '../version.ts';
import {
  latestCheckpoint,
  prepareFolder,
  type RunState,
  readRunState,
  restoreTrainer,
  writeCheckpoint,
} from './checkpoint.ts';
import { type Rank, shareOf } from './data-parallel.ts';
import { evaluate } from './evaluate.ts';
import { RunLog } from './log.ts';
import {
  cadenceOf,
  checkTrainOptions,
  contradiction,
  datasetOptions,
  decayOf,
  newSettings,
  resumedSettings,
  shapeContradiction,
  type TrainOptions,
  type TrainResult,
  type TrainSettings,
  wantedConfig,
} from './options.ts';

const WHERE = 'train';

/**
 * Trains a model and leaves checkpoints in `out`: `latest` and `best` are folders that loadModel opens. A run that was
 * aborted, or killed at any moment, goes on with `resume` to the same weights, bit for bit.
 * @throws TypeError, RangeError for wrong options; DataError; CheckpointError (what was saved is intact); a
 * MambaByteError with code ERR_DIVERGED when the loss is no number any more
 */
export function train(options: TrainOptions): Promise<TrainResult> {
  return trainAs(undefined, options);
}

/**
 * train() in one of several processes, each with a GPU of its own: together they do what one GPU does, each with its rows
 * of every batch. Only the first one evaluates, logs and saves.
 */
export function trainAsRank(options: TrainOptions, rank: Rank): Promise<TrainResult> {
  return trainAs(rank, options);
}

async function trainAs(rank: Rank | undefined, options: TrainOptions): Promise<TrainResult> {
  checkTrainOptions(options);
  const tokenizer = options.tokenizer === undefined ? undefined : await Tokenizer.open(options.tokenizer);
  const run = await (options.resume ? resumeRun : newRun)(options, tokenizer, rank);
  try {
    return await trainingLoop(run, options);
  } finally {
    run.close();
  }
}

/** Everything that a run has open. */
interface Run {
  model: Model;
  trainer: Trainer;
  sampler: WindowSampler;
  /** Mean bytes of what the sampler counts: 1, or bytes per token. */
  bytesPerUnit: number;
  valid: Dataset | undefined;
  /** Undefined on all ranks but the first. */
  log: RunLog | undefined;
  rank: Rank | undefined;
  /** As of the last step. */
  state: RunState;
  /** Newest checkpoint, if there is one. */
  checkpoint: string | undefined;
  close(): void;
}

async function newRun(options: TrainOptions, tokenizer: Tokenizer | undefined, rank: Rank | undefined): Promise<Run> {
  const { out, init } = options;
  const settingsFor = (bytesPerUnit: number) => newSettings(options, bytesPerUnit);
  const { seed } = settingsFor(1);
  const found = await latestCheckpoint(out);
  if (found !== undefined) {
    const hint = 'Pass resume to go on with it, or choose another folder.';
    throw new CheckpointError(expected(WHERE, out, 'hold no checkpoint', found, hint));
  }
  const config = wantedConfig(options, tokenizer);
  const { device, threads } = options;
  const placed = { ...(device !== undefined && { device }), ...(threads !== undefined && { threads }) };
  const makeModel = () =>
    config
      ? createModel(config, { seed, ...(tokenizer && { tokenizer }), ...placed })
      : loadModel(resolveModel(init ?? ''), { trainable: true, ...placed });
  return openRun(options, settingsFor, makeModel, undefined, rank);
}

async function resumeRun(
  options: TrainOptions,
  tokenizer: Tokenizer | undefined,
  rank: Rank | undefined,
): Promise<Run> {
  const { out, device, threads } = options;
  const folder = await latestCheckpoint(out);
  if (folder === undefined) {
    const hint = 'Leave resume out to begin a run.';
    throw new CheckpointError(expected(WHERE, out, 'hold a checkpoint to resume from', 'none', hint));
  }
  const stored = await readRunState(folder);
  const bytesPerUnit = stored.tokens?.bytesPerToken ?? 1;
  const wanted = wantedConfig(options, tokenizer);
  const fault =
    contradiction(stored.settings, options, bytesPerUnit) ?? (wanted && shapeContradiction(stored.config, wanted));
  if (fault) throw new CheckpointError(`${fault} The checkpoint is ${folder}.`);
  const placed = { ...(device !== undefined && { device }), ...(threads !== undefined && { threads }) };
  const settings = resumedSettings(stored.settings, options, bytesPerUnit);
  const makeModel = async () => {
    const model = await loadModel(folder, { trainable: true, ...placed });
    if (!tokenizer || tokenizer.json === model.tokenizer?.json) return model;
    model.dispose();
    const got = `another one in ${options.tokenizer}`;
    throw new CheckpointError(expected(WHERE, 'the tokenizer', `be that of ${folder}`, got));
  };
  return openRun(options, () => settings, makeModel, { folder, stored }, rank);
}

/**
 * Opens data, model, trainer and log; `from` is the checkpoint to go on from.
 * @param settingsFor the settings where a unit, a byte or token, has this many bytes
 */
async function openRun(
  options: TrainOptions,
  settingsFor: (bytesPerUnit: number) => TrainSettings,
  makeModel: () => Promise<Model>,
  from: { folder: string; stored: RunState } | undefined,
  rank: Rank | undefined,
): Promise<Run> {
  const { out, signal } = options;
  const { batch, separator } = settingsFor(1);
  if (rank && batch % rank.world !== 0) {
    throw new RangeError(expected(WHERE, 'batch', `be a multiple of the ${rank.world} devices`, `${batch}`));
  }
  const opened: { close(): void }[] = [];
  const closeAll = () => {
    for (const item of opened.reverse()) item.close();
  };
  try {
    const paths = absolute(options.data) ?? from?.stored.data.paths ?? [];
    const data = await openDataset(paths, datasetOptions({ separator }, signal));
    opened.push(data);
    if (from) checkSameData(from.stored, data);
    const validPaths = absolute(options.valid) ?? from?.stored.valid ?? null;
    const valid = validPaths ? await openDataset(validPaths, datasetOptions({ separator }, signal)) : undefined;
    if (valid) opened.push(valid);
    const model = await makeModel();
    opened.push({ close: () => model.dispose() });
    const cache = resolve(options.tokenCache ?? from?.stored.tokens?.cache ?? out);
    const tokens = await tokensFor(model, data, cache, options, rank);
    if (tokens) opened.push(tokens);
    checkSameTokens(from?.stored, tokens);
    const bytesPerUnit = tokens?.bytesPerToken ?? 1;
    const settings = settingsFor(bytesPerUnit);
    const { context } = settings;
    const whole = trainedRows(model.config, context) < context;
    const sampler = new WindowSampler(tokens ?? data, { ...settings, whole });
    await rank?.join(model.runtime);
    const trainer = await createTrainer(model, trainerOptions(settings, options), rank);
    const leads = !rank || rank.rank === 0;
    if (leads) await prepareFolder(out);
    if (from) {
      await restoreTrainer(from.folder, trainer, from.stored.step);
      sampler.position = from.stored.position;
    }
    const log = leads ? new RunLog(join(out, 'log.jsonl'), trainer.steps) : undefined;
    if (log) opened.push(log);
    const state: RunState = {
      format: 1,
      version,
      step: trainer.steps,
      position: sampler.position,
      settings,
      cadence: cadenceOf(options, settings.steps, from?.stored.cadence),
      config: model.config,
      data: { paths, bytes: data.bytes, documents: data.documents, fingerprint: data.fingerprint() },
      ...(tokens && { tokens: { bytesPerToken: tokens.bytesPerToken, cache } }),
      valid: validPaths,
      best: from?.stored.best ?? null,
    };
    const checkpoint = from?.folder;
    return { model, trainer, sampler, bytesPerUnit, valid, log, rank, state, checkpoint, close: closeAll };
  } catch (error) {
    closeAll();
    throw error;
  }
}

/** The data as tokens, for a subword model. One rank encodes; the others wait for its file. */
async function tokensFor(
  { tokenizer, config }: Model,
  data: Dataset,
  folder: string,
  { threads, signal, onEncode }: TrainOptions,
  rank: Rank | undefined,
): Promise<TokenDataset | undefined> {
  if (tokenizer) {
    const wait = rank !== undefined && rank.rank > 0;
    return openTokens(data, tokenizer, { folder, wait, threads, signal, onProgress: onEncode });
  }
  if (config.vocab === 256) return undefined;
  const got = `${config.vocab} classes and no tokenizer`;
  throw new TypeError(expected(WHERE, 'the model', 'read bytes (256 classes) or have a tokenizer', got));
}

function checkSameTokens(stored: RunState | undefined, tokens: TokenDataset | undefined): void {
  const [then, now] = [stored?.tokens?.bytesPerToken, tokens?.bytesPerToken];
  if (!stored || then === now) return;
  const words = (mean: number | undefined) => (mean === undefined ? 'bytes' : `tokens of ${mean} bytes in the mean`);
  throw new CheckpointError(expected(WHERE, 'the data', `be ${words(then)} as when the run began`, words(now)));
}

function trainerOptions(settings: TrainSettings, { precision, recompute }: TrainOptions): TrainerOptions {
  const { lr, betas, eps, clip, schedule, warmup, steps, minLr, weightDecay } = settings;
  const decay = (name: string) => decayOf(name, weightDecay);
  return {
    ...{ lr, betas, eps, clip, schedule, warmup, steps, minLr, weightDecay: decay },
    ...(precision !== undefined && { precision }),
    ...(recompute !== undefined && { recompute }),
  };
}

function absolute(paths: string | readonly string[] | undefined): string[] | undefined {
  if (paths === undefined) return undefined;
  return (typeof paths === 'string' ? [paths] : [...paths]).map((path) => (isAbsolute(path) ? path : resolve(path)));
}

function checkSameData({ data: then }: RunState, now: Dataset): void {
  if (now.fingerprint() === then.fingerprint) return;
  const words = (d: { bytes: number; documents: number }) =>
    `${counted(d.bytes, 'byte')} in ${counted(d.documents, 'document')}`;
  const got = `${words(now)}${words(now) === words(then) ? ' of other lengths' : ''}`;
  throw new CheckpointError(expected(WHERE, 'the data', `be ${words(then)} as when the run began`, got));
}

async function trainingLoop(run: Run, options: TrainOptions): Promise<TrainResult> {
  const { model, trainer, sampler, bytesPerUnit, valid, log, rank, state } = run;
  const { signal } = options;
  const { steps, batch, accumulate, context } = state.settings;
  const { evalEvery, saveEvery } = state.cadence;
  const perStep = batch * accumulate * context * bytesPerUnit;
  const speed = new Speed();
  let saved = run.checkpoint === undefined ? -1 : state.step;
  let loss = Number.NaN;
  const save = async () => {
    if (!log || saved === state.step) return;
    log.sync();
    const write = () => writeCheckpoint(options.out, model, trainer, state);
    run.checkpoint = await (rank ? rank.saving(write) : write());
    saved = state.step;
  };
  // A folder that cannot be written is found out now, and a run that is killed early has something to resume from.
  await save();
  while (state.step < steps && !(rank ? rank.ending : signal?.aborted)) {
    const started = performance.now();
    const micro = await drawn(run, accumulate, batch, save);
    const result = await trainer.step(micro);
    loss = result.loss;
    if (!Number.isFinite(loss) || !Number.isFinite(result.gradNorm)) throw diverged(result, run.checkpoint);
    speed.add(performance.now() - started);
    state.step = result.step;
    state.position = sampler.position;
    const evaluates = log && valid && (state.step % evalEvery === 0 || state.step === steps);
    const validBitsPerByte = evaluates ? await heldOut(run, valid, options) : undefined;
    const improved = validBitsPerByte !== undefined && validBitsPerByte < (state.best?.bitsPerByte ?? Infinity);
    if (improved) state.best = { step: state.step, bitsPerByte: validBitsPerByte };
    const line = {
      step: state.step,
      loss,
      bitsPerByte: loss / Math.LN2 / bytesPerUnit,
      gradNorm: result.gradNorm,
      lr: result.lr,
      bytes: Math.round(state.step * perStep),
      epoch: state.position.epoch,
      ...(validBitsPerByte !== undefined && { validBitsPerByte }),
      bytesPerSecond: perStep / speed.seconds,
    };
    log?.append({ ...line, seconds: speed.last });
    if (improved || state.step % saveEvery === 0 || state.step === steps) await save();
    options.onProgress?.({ ...line, steps, eta: (steps - state.step) * speed.seconds });
  }
  await save();
  return {
    step: state.step,
    steps,
    stopped: state.step < steps ? 'aborted' : 'done',
    loss,
    best: state.best,
    checkpoint: run.checkpoint ?? '',
    bytes: Math.round(state.step * perStep),
  };
}

/** The next step's batches. When the data has become unreadable, what was learned so far is saved first. */
async function drawn({ sampler, rank }: Run, accumulate: number, batch: number, save: () => Promise<void>) {
  const own = (): Batch => {
    if (!rank) return sampler.batch(batch);
    const { windows, weight } = shareOf(sampler.draw(batch), rank);
    return { ...sampler.read(windows), weight };
  };
  try {
    return Array.from({ length: accumulate }, own);
  } catch (error) {
    if (error instanceof DataError) await save();
    throw error;
  }
}

/** Bits per byte of the held-out data; undefined when the run is aborted meanwhile. */
async function heldOut({ model, state }: Run, valid: Dataset, options: TrainOptions): Promise<number | undefined> {
  const { signal } = options;
  try {
    const { context } = state.settings;
    const maxBytes = state.cadence.evalBytes;
    const result = await evaluate(model, valid, { context, maxBytes, ...(signal && { signal }) });
    return result.bitsPerByte;
  } catch (error) {
    if (signal?.aborted) return undefined;
    throw error;
  }
}

function diverged({ step, loss, gradNorm }: StepResult, checkpoint: string | undefined): MambaByteError {
  const got = `${loss} with gradient norm ${gradNorm}`;
  const hint = `Lower lr, clip or lengthen warmup. The last good checkpoint is ${checkpoint}.`;
  return new MambaByteError('ERR_DIVERGED', expected(WHERE, `the loss of step ${step}`, 'be finite', got, hint));
}

/** Seconds per step, smoothed over about the last twenty; the first one, which compiles plans, does not count. */
class Speed {
  seconds = Number.NaN;
  last = Number.NaN;
  #steps = 0;

  add(milliseconds: number): void {
    this.last = milliseconds / 1000;
    this.seconds = this.#steps < 2 ? this.last : 0.95 * this.seconds + 0.05 * this.last;
    this.#steps++;
  }
}
