// What all experiments work with: samples of the corpora, tokenizers, and models that are trained once and then found again.
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expected } from '../errors.ts';
import { configFor, loadModel, type Model } from '../model.ts';
import { architectureOf, type ModelConfig, type PartialModelConfig, trainedRows } from '../models/architectures.ts';
import { parameterCount } from '../models/params.ts';
import { measureTokenizer } from '../tokenizer/measure.ts';
import { Tokenizer } from '../tokenizer/tokenizer.ts';
import { trainTokenizer } from '../tokenizer/train-bpe.ts';
import { evaluate } from '../train/evaluate.ts';
import { train } from '../train/loop.ts';
import { writeFileAtomically } from '../weights/atomic-file.ts';
import type { Corpora, Sample, SampleOptions, Split } from './corpora.ts';
import { type Machine, machineOf } from './environment.ts';
import type { Scale } from './experiment.ts';
import type { Contender } from './lineup.ts';
import { sameInputs } from './records.ts';

export interface LabOptions {
  out: string;
  scale: Scale;
  corpora: Corpora;
  device?: string | undefined;
  threads?: number | undefined;
  /** In place of as many as the scale has. */
  seeds?: number | undefined;
  /** That the byte Mamba is trained on, in place of as many as the scale has; not in `scaling`. */
  bytes?: number | undefined;
  /** Only these corpora and models, where an experiment has several. */
  only: { corpora?: readonly string[] | undefined; models?: readonly string[] | undefined };
  signal: AbortSignal;
  /** A line for the person who waits. */
  note(line: string): void;
}

/** How a model is trained. */
export interface Training {
  corpus: string;
  model: Contender;
  /** Of every split: how much of it is used. */
  samples: Readonly<Record<Split, SampleOptions>>;
  /** Bytes of a window, on average for a subword model. */
  context: number;
  /** Windows of a step. */
  batch: number;
  lr: number;
  seed: number;
  /** How long: so many bytes, or as many as these floating-point operations are enough for. */
  budget: { bytes: number } | { flops: number };
}

/** A point of a training curve. */
export interface CurvePoint {
  bytes: number;
  /** Floating-point operations so far. */
  flops: number;
  /** Of held-out text. */
  bitsPerByte: number;
}

/** What is known of a trained model. */
export interface Trained {
  parameters: number;
  /** 1, or of the subword model's tokens in its training text. */
  bytesPerUnit: number;
  /** Bytes, or tokens. */
  context: number;
  /** Of training. */
  flopsPerByte: number;
  steps: number;
  bytes: number;
  flops: number;
  curve: CurvePoint[];
  /** Of the test text, in sliding windows of the training context. */
  test: { bitsPerByte: number; wordPerplexity: number; bytes: number };
}

/** A trained model: where it is kept, and what is known of it. */
export interface TrainedModel {
  folder: string;
  figures: Trained;
}

export interface TrainedTokenizer {
  path: string;
  tokenizer: Tokenizer;
  /** Of its training text. */
  bytesPerUnit: number;
}

/** Forward and backward; the backward pass counts as two forward ones. */
const PASSES = 3;
const CURVE_POINTS = 12;
const TOKENIZER_BYTES = 16e6;

export class Lab {
  readonly options: LabOptions;
  readonly #samples = new Map<string, Promise<Sample>>();
  #machine: Machine | undefined;
  readonly #tokenizers = new Map<string, Promise<TrainedTokenizer>>();

  constructor(options: LabOptions) {
    this.options = options;
  }

  get scale(): Scale {
    return this.options.scale;
  }
  get signal(): AbortSignal {
    return this.options.signal;
  }
  note(line: string): void {
    this.options.note(line);
  }
  /** 0 to n - 1. */
  seeds(usual: number): number[] {
    return Array.from({ length: this.options.seeds ?? usual }, (_, seed) => seed);
  }
  /** Whether one of some corpora is there and wanted. */
  hasAny(names: readonly string[]): boolean {
    return this.wanted(names).some((name) => this.options.corpora.has(name));
  }
  /** The corpora of an experiment that are there and wanted. @throws DataError where there is none */
  corporaOf(where: string, names: readonly string[]): string[] {
    const wanted = this.wanted(names);
    if (wanted.length > 0) return this.options.corpora.present(where, wanted);
    const got = this.options.only.corpora?.join(', ') ?? 'none';
    throw new RangeError(expected(where, '--corpus', `name one of ${names.join(', ')}`, got));
  }
  private wanted(names: readonly string[]): readonly string[] {
    const { corpora } = this.options.only;
    return corpora ? names.filter((name) => corpora.includes(name)) : names;
  }
  contenders<T extends { name: string }>(lineup: readonly T[]): T[] {
    const { models } = this.options.only;
    return lineup.filter(({ name }) => !models || models.includes(name));
  }
  /** The contenders of a lineup, each with every seed. */
  runs<T extends { name: string }>(lineup: readonly T[], seeds: number): { model: T; seed: number }[] {
    return this.contenders(lineup).flatMap((model) => this.seeds(seeds).map((seed) => ({ model, seed })));
  }
  /** Device and threads, as far as they were asked for. */
  get placed(): { device?: string; threads?: number } {
    const { device, threads } = this.options;
    return { ...(device !== undefined && { device }), ...(threads !== undefined && { threads }) };
  }

  /** A folder below `out`, made if it is not there. */
  folder(name: string): string {
    const path = join(this.options.out, name);
    mkdirSync(path, { recursive: true });
    return path;
  }

  /** Processor and device, which timings are of. */
  machine(): string {
    this.#machine ??= machineOf(this.placed);
    const { cpu, cores, device } = this.#machine;
    return `${cpu}, ${cores} cores, ${device}`;
  }

  /** A text of a corpus, cut once. */
  sample(corpus: string, split: Split, options: SampleOptions): Promise<Sample> {
    const key = JSON.stringify([corpus, split, options]);
    const found = this.#samples.get(key) ?? this.options.corpora.sample(corpus, split, options, this.folder('data'));
    this.#samples.set(key, found);
    return found;
  }

  /** All that decides what a training gives. */
  async inputsOf({ corpus, model, samples, ...rest }: Training): Promise<object> {
    const hash = async (split: Split) => (await this.sample(corpus, split, samples[split])).hash;
    const data = { train: await hash('train'), valid: await hash('valid'), test: await hash('test') };
    return { corpus, model, data, ...rest };
  }

  /** Trains a model, goes on where that was interrupted, or finds it trained. @throws the signal's reason when aborted */
  async trained(training: Training): Promise<TrainedModel> {
    const inputs = await this.inputsOf(training);
    const folder = join(this.folder('models'), nameOf(training, inputs));
    const path = join(folder, 'trained.json');
    if (existsSync(path)) {
      const found = JSON.parse(readFileSync(path, 'utf8')) as { inputs: object; trained: Trained };
      if (sameInputs(found.inputs, inputs)) return { folder, figures: found.trained };
    }
    const trained = await this.train(training, folder);
    const text = Buffer.from(`${JSON.stringify({ inputs, trained }, null, 1)}\n`);
    await writeFileAtomically(path, (append) => append(text));
    return { folder, figures: trained };
  }

  /** Number of parameters of a byte model. */
  parametersOf(config: PartialModelConfig): number {
    const full = configFor(config, undefined);
    return parameterCount(architectureOf(full).params(full));
  }
  /** What training a byte model on so many bytes takes. */
  flopsOf(config: PartialModelConfig, context: number, bytes: number): number {
    return trainingFlops(configFor(config, undefined), context) * bytes;
  }

  /** Opens a trained model. */
  open(folder: string): Promise<Model> {
    return loadModel(join(folder, 'latest'), { ...this.placed, signal: this.signal });
  }

  /** A tokenizer of the training text of a corpus, trained once. */
  tokenizer(sample: Sample, vocab: number): Promise<TrainedTokenizer> {
    const key = `${sample.hash}-${vocab}`;
    const found = this.#tokenizers.get(key) ?? this.trainedTokenizer(sample, vocab, `${key}.json`);
    this.#tokenizers.set(key, found);
    return found;
  }

  private async trainedTokenizer(sample: Sample, vocab: number, name: string): Promise<TrainedTokenizer> {
    const path = join(this.folder('tokenizers'), name);
    const limits = { maxBytes: TOKENIZER_BYTES, signal: this.signal };
    if (!existsSync(path)) {
      const made = await trainTokenizer(sample.path, { vocab, ...limits });
      await writeFileAtomically(path, (append) => append(Buffer.from(made.json)));
    }
    const tokenizer = await Tokenizer.open(path);
    const { bytesPerToken } = await measureTokenizer(tokenizer, sample.path, limits);
    return { path, tokenizer, bytesPerUnit: bytesPerToken };
  }

  private async train(training: Training, folder: string): Promise<Trained> {
    const { corpus, model, samples, batch, lr, seed, budget } = training;
    const [data, valid, test] = await Promise.all([
      this.sample(corpus, 'train', samples.train),
      this.sample(corpus, 'valid', samples.valid),
      this.sample(corpus, 'test', samples.test),
    ]);
    const made = model.vocab === undefined ? undefined : await this.tokenizer(data, model.vocab);
    const bytesPerUnit = made?.bytesPerUnit ?? 1;
    const context = Math.max(1, Math.round(training.context / bytesPerUnit));
    const config = configFor(model.config, made?.tokenizer);
    const flopsPerByte = trainingFlops(config, context) / bytesPerUnit;
    const perStep = batch * context * bytesPerUnit;
    const wanted = 'bytes' in budget ? budget.bytes : budget.flops / flopsPerByte;
    const steps = Math.max(1, Math.round(wanted / perStep));
    const result = await train({
      config: model.config,
      ...(made && { tokenizer: made.path, tokenCache: this.folder('data') }),
      ...{ data: data.path, valid: valid.path, out: folder, resume: existsSync(join(folder, 'latest')) },
      ...{ steps, batch, context, lr, seed, sampling: 'uniform' },
      ...{ evalEvery: Math.max(1, Math.ceil(steps / CURVE_POINTS)), evalBytes: valid.bytes, keep: 1 },
      ...this.placed,
      signal: this.signal,
    });
    if (result.stopped === 'aborted') this.signal.throwIfAborted();
    const flopsOf = (bytes: number) => flopsPerByte * bytes;
    const curve = curveOf(join(folder, 'log.jsonl'), flopsOf);
    using opened = await this.open(folder);
    const { bitsPerByte, wordPerplexity, bytes } = await evaluate(opened, test.path, { context, signal: this.signal });
    return {
      parameters: opened.parameters,
      ...{ bytesPerUnit, context, flopsPerByte, steps },
      bytes: result.bytes,
      flops: flopsOf(result.bytes),
      curve,
      test: { bitsPerByte, wordPerplexity, bytes },
    };
  }
}

/** Floating-point operations of training on a window, for each of its bytes or tokens, trained on or only read. */
function trainingFlops(config: ModelConfig, window: number): number {
  return (PASSES * architectureOf(config).flops(config, window) * trainedRows(config, window)) / window;
}

function nameOf({ corpus, model, seed }: Training, inputs: object): string {
  const plain = model.name.toLowerCase().replaceAll(/[^a-z0-9]+/g, '-');
  const hash = createHash('sha256').update(JSON.stringify(inputs)).digest('hex').slice(0, 10);
  return `${corpus}-${plain}-${seed}-${hash}`;
}

function curveOf(log: string, flopsOf: (bytes: number) => number): CurvePoint[] {
  const lines = readFileSync(log, 'utf8').trimEnd().split('\n');
  return lines.flatMap((line) => {
    const { bytes, validBitsPerByte } = JSON.parse(line) as { bytes: number; validBitsPerByte?: number };
    return validBitsPerByte === undefined ? [] : [{ bytes, flops: flopsOf(bytes), bitsPerByte: validBitsPerByte }];
  });
}
