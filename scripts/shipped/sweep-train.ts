// One run of a sweep: train() on a budget, then bits per byte of held-out text.
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import {
  createModel,
  type Dataset,
  evaluate,
  loadModel,
  Tokenizer,
  type TrainOptions,
  train,
} from '../../lib/index.ts';
import { type DraftScore, heldOutDrafts } from './held-out-drafts.ts';
import { runName, type SweepRun, shapeName } from './sweep-list.ts';

/** What all runs of a sweep share. */
export interface SweepSetup {
  data: string[];
  valid: Dataset;
  /** Folder of runs and initial weights, which no other process may use at the same time. */
  out: string;
  /** Folder of encoded data, for drafters. */
  tokenCache: string;
  /** Folder of bpe-<vocab>.json. */
  tokenizers: string;
  device: string;
  precision: 'f32' | 'bf16' | undefined;
  seed: number;
  /** Equal for all runs: bytes read, or seconds of steps. */
  budget: { bytes: number } | { seconds: number };
  evalBytes: number;
  /** Units per window of the evaluation, the same for all runs. */
  evalContext: number;
  /** Held-out passages that drafters draft along. */
  passages: number;
}

/** A line of sweep.jsonl. */
export interface SweepRow {
  name: string;
  run: SweepRun;
  budget: string;
  parameters: number;
  device: string;
  steps: number;
  /** Bytes trained on. */
  bytes: number;
  /** Of all steps, without start, evaluation and saving. */
  seconds: number;
  bytesPerSecond: number;
  /** Of the held-out text: windows of evalContext with half of it as stride. */
  bitsPerByte: number;
  evalBytes: number;
  evalContext: number;
  drafts?: DraftScore;
}

/** Steps that the speed is taken from, after as many that do not count. */
const PROBE_STEPS = 8;
/** Never evaluated or saved on the way. */
const NEVER = 1e9;

/** Bytes per second of runs of the same work, by name. */
const speeds = new Map<string, number>();

export async function trainRun(run: SweepRun, index: number, setup: SweepSetup): Promise<SweepRow> {
  const init = await initialWeights(run, setup);
  const bytes = 'bytes' in setup.budget ? setup.budget.bytes : (await speedOf(run, init, setup)) * setup.budget.seconds;
  const out = join(setup.out, `run-${index}`);
  const { checkpoint, ...result } = await train({ ...optionsOf(run, init, setup, out), bytes: Math.round(bytes) });
  const seconds = stepSeconds(out).reduce((a, b) => a + b, 0);
  const measured = await heldOut(checkpoint, setup);
  rmSync(out, { recursive: true });
  return {
    name: runName(run),
    run,
    budget: 'bytes' in setup.budget ? `${setup.budget.bytes} bytes` : `${setup.budget.seconds} s`,
    steps: result.steps,
    bytes: result.bytes,
    seconds,
    bytesPerSecond: result.bytes / seconds,
    ...measured,
    evalBytes: setup.evalBytes,
    evalContext: setup.evalContext,
  };
}

function optionsOf(run: SweepRun, init: string, setup: SweepSetup, out: string): TrainOptions {
  const { data, device, precision, seed, tokenCache } = setup;
  const { batch, context, lr } = run;
  return {
    ...{ init, data, out, tokenCache, batch, context, lr, device, seed },
    ...{ sampling: 'uniform', minLr: 0.05, evalEvery: NEVER, saveEvery: NEVER, keep: 1 },
    ...(precision !== undefined && { precision }),
  };
}

/** Bytes per second of this run's steps, from a few of them. */
async function speedOf(run: SweepRun, init: string, setup: SweepSetup): Promise<number> {
  const key = `${shapeName(run)} ${run.batch} ${run.context}`;
  const known = speeds.get(key);
  if (known !== undefined) return known;
  const out = join(setup.out, 'probe');
  const steps = 2 * PROBE_STEPS;
  const { bytes } = await train({ ...optionsOf(run, init, setup, out), steps, schedule: 'constant' });
  const counted = stepSeconds(out).slice(-PROBE_STEPS);
  rmSync(out, { recursive: true });
  const speed = ((bytes / steps) * counted.length) / counted.reduce((a, b) => a + b, 0);
  speeds.set(key, speed);
  return speed;
}

function stepSeconds(out: string): number[] {
  const lines = readFileSync(join(out, 'log.jsonl'), 'utf8').trimEnd().split('\n');
  return lines.map((line) => (JSON.parse(line) as { seconds: number }).seconds);
}

/** A folder with the weights that runs of this shape begin with: making millions of random numbers takes seconds. */
async function initialWeights(run: SweepRun, { out, tokenizers, seed }: SweepSetup): Promise<string> {
  const folder = join(out, `init-${shapeName(run)}`);
  if (existsSync(folder)) return folder;
  const { layers, dModel, vocab } = run;
  const tokenizer = vocab === undefined ? undefined : await Tokenizer.open(join(tokenizers, `bpe-${vocab}.json`));
  const model = await createModel({ layers, dModel }, { seed, device: 'cpu', ...(tokenizer && { tokenizer }) });
  try {
    await model.save(folder);
  } finally {
    model.dispose();
  }
  return folder;
}

/** With bf16 weights, which is how models are shipped and how drafters draft. */
async function heldOut(checkpoint: string, setup: SweepSetup) {
  const { valid, device, evalBytes, evalContext, passages } = setup;
  const model = await loadModel(checkpoint, { device, dtype: 'bf16' });
  try {
    const { bitsPerByte } = await evaluate(model, valid, { context: evalContext, maxBytes: evalBytes });
    const found = { parameters: model.parameters, device: model.device, bitsPerByte };
    if (!model.tokenizer) return found;
    const text = readFileSync(valid.span(0).file);
    return { ...found, drafts: await heldOutDrafts(model, text, passages) };
  } finally {
    model.dispose();
  }
}
