import { type GenericFormatter, Presets, SingleBar } from 'cli-progress';
import { Command, InvalidArgumentError, Option } from 'commander';
import type { EncodeProgress } from '../data/token-dataset.ts';
import { expected } from '../errors.ts';
import { RECOMPUTE } from '../models/architecture.ts';
import { ARCHITECTURES, type ArchitectureName, type PartialModelConfig } from '../models/architectures.ts';
import { PRESETS } from '../models/presets.ts';
import { grouped } from '../text.ts';
import type { Rank } from '../train/data-parallel.ts';
import { train, trainAsRank } from '../train/loop.ts';
import type { TrainOptions, TrainProgress } from '../train/options.ts';
import { interruptible } from './interrupt.ts';
import { bar, note, print } from './output.ts';
import { startedAsRank } from './rank.ts';
import { runRanks } from './ranks.ts';
import { defined, parseCount, parseNumber, parsePositive, separatorOption, UsageError } from './usage.ts';

/** The flags that make the shape of a new model: fields of its configuration. */
const SIZES = [
  ...(['layers', 'dModel', 'dState', 'heads', 'keyHeads', 'dInner', 'latents', 'latentStride', 'patchSize'] as const),
  ...(['globalLayers', 'globalDModel', 'globalHeads', 'globalKeyHeads', 'globalDInner'] as const),
];
const SHAPE = ['architecture', ...SIZES] as const;

interface TrainFlags
  extends Omit<TrainOptions, 'config' | 'betas' | 'separator' | 'signal' | 'onProgress' | 'onEncode'>,
    Partial<Record<(typeof SIZES)[number], number>> {
  architecture?: ArchitectureName;
  beta1?: number;
  beta2?: number;
  separator?: string;
  devices?: readonly number[];
  json?: boolean;
  quiet?: boolean;
}

export function trainCommand(): Command {
  const command = new Command('train')
    .description('train a model; Ctrl-C saves a checkpoint and ends, --resume goes on bit for bit')
    .requiredOption('--out <folder>', 'where checkpoints and log.jsonl go; made if it is not there')
    .option('--data <path...>', 'files or folders to learn from')
    .option('--valid <path...>', 'held-out files or folders')
    .option('--resume', 'go on from the newest checkpoint in --out')
    .optionsGroup('Model (one of preset, layers with d-model, init):')
    .option('--preset <name>', `${Object.keys(PRESETS).join(', ')}`)
    .option('--layers <n>', 'blocks of a new model', parsePositive)
    .option('--d-model <n>', 'its width', parsePositive)
    .addOption(new Option('--architecture <name>', '(default: mamba)').choices(Object.keys(ARCHITECTURES)))
    .option(
      '--d-inner <n>',
      'inner channels of a mamba or gated-s4d (default: 2 x d-model), or width of an MLP',
      parsePositive,
    )
    .option('--d-state <n>', 'states per channel of a mamba (default: 16) or gated-s4d (default: 64)', parsePositive)
    .option(
      '--heads <n>',
      'attention heads of a transformer, perceiver-ar or megabyte (default: of 64 columns)',
      parsePositive,
    )
    .option('--key-heads <n>', 'heads of its keys and values (default: as many)', parsePositive)
    .option(
      '--latents <n>',
      'last positions of a window that a perceiver-ar learns from (default: 1024)',
      parsePositive,
    )
    .option('--latent-stride <n>', 'from one block of them to the next (default: half)', parsePositive)
    .option(
      '--patch-size <n>',
      'bytes of a patch of a megabyte (default: 8), whose local model the above describe',
      parsePositive,
    )
    .option('--global-layers <n>', 'blocks of its global model', parsePositive)
    .option('--global-d-model <n>', 'its width, a multiple of the bytes of a patch', parsePositive)
    .option('--global-heads <n>', 'its attention heads (default: of 64 columns)', parsePositive)
    .option('--global-key-heads <n>', 'heads of its keys and values (default: as many)', parsePositive)
    .option('--global-d-inner <n>', 'width of its MLP', parsePositive)
    .option('--init <model>', 'start from a shipped model, a folder or a file')
    .option('--tokenizer <file>', 'a tokenizer.json: make a subword model, whose context counts tokens')
    .optionsGroup('Length:')
    .option('--steps <n>', 'optimiser steps', parsePositive)
    .option('--bytes <n>', 'or bytes to train on', parsePositive)
    .option('--batch <n>', 'windows per micro-batch (default: 8)', parsePositive)
    .option('--accumulate <n>', 'micro-batches per step (default: 1)', parsePositive)
    .option('--context <n>', 'bytes or tokens of input per window (default: 1024)', parsePositive)
    .optionsGroup('Optimiser:')
    .option('--lr <x>', 'peak learning rate (default: 4e-4)', parseNumber)
    .option('--warmup <n>', 'steps of linear warm-up (default: a tenth of all, at most 500)', parseCount)
    .addOption(new Option('--schedule <name>', 'after warm-up (default: cosine)').choices(['cosine', 'constant']))
    .option('--min-lr <f>', 'fraction of lr that the cosine ends at (default: 0.1)', parseNumber)
    .option('--weight-decay <x>', 'of matrices and convolutions (default: 0.1)', parseNumber)
    .option('--beta1 <x>', 'decay of the first moment (default: 0.9)', parseNumber)
    .option('--beta2 <x>', 'decay of the second moment (default: 0.95)', parseNumber)
    .option('--eps <x>', "AdamW's epsilon (default: 1e-8)", parseNumber)
    .option('--clip <x>', 'largest global gradient norm, 0 for none (default: 1)', parseNumber)
    .option('--seed <n>', 'of weights and windows (default: 0)', parseCount)
    .optionsGroup('Data:')
    .addOption(
      new Option(
        '--sampling <kind>',
        'document: a window per document and epoch (default); uniform: every byte or token once an epoch',
      ).choices(['document', 'uniform']),
    )
    .addOption(separatorOption())
    .option('--token-cache <folder>', 'for encoded data, which runs on the same data can share (default: --out)')
    .optionsGroup('Checkpoints:')
    .option('--eval-every <n>', 'steps between evaluations (default: a tenth of all, at most 1000)', parsePositive)
    .option('--eval-bytes <n>', 'bytes of --valid scored each time (default: 262144)', parsePositive)
    .option('--save-every <n>', 'steps between checkpoints (default: 500)', parsePositive)
    .option('--keep <n>', 'newest checkpoints to keep beside the best (default: 2)', parsePositive)
    .optionsGroup('Machine:')
    .option('--device <name>', 'auto, cuda, cuda:1 (the second GPU), cpu, or ref (slow, obviously right)')
    .option('--devices <list>', 'GPUs that share every batch, a process each: 0,1', parseDevices)
    .option('--threads <n>', 'threads (default: one per core)', parsePositive)
    .addOption(
      new Option('--precision <type>', 'of activations and products (default: bf16 on a GPU, else f32)').choices([
        'f32',
        'bf16',
      ]),
    )
    .addOption(
      new Option(
        '--recompute <what>',
        'in the backward pass, to save memory: none, cheap, layer or auto (default: what the GPU has room for)',
      ).choices(['auto', ...RECOMPUTE]),
    )
    .option('--json', 'print one JSON line a step')
    .option('-q, --quiet', 'no progress on stderr');
  return command.action((flags: TrainFlags) => {
    const rank = startedAsRank();
    if (rank) return rank.run((signal) => run(flags, signal, rank));
    return interruptible((signal) => start(flags, signal));
  });
}

/** "0,1" as numbers of GPUs. */
export function parseDevices(text: string): number[] {
  const devices = text.split(',').map((part) => (/^\s*\d{1,4}\s*$/.test(part) ? Number(part) : -1));
  if (devices.includes(-1)) throw new InvalidArgumentError('Expected numbers of GPUs with commas between: 0,1.');
  const twice = devices.find((device, i) => devices.indexOf(device) < i);
  if (twice !== undefined) throw new InvalidArgumentError(`Expected every GPU once, got ${twice} twice.`);
  return devices;
}

function start(flags: TrainFlags, signal: AbortSignal): Promise<void> {
  const { devices, device } = flags;
  if (!devices) return run(flags, signal);
  if (device !== undefined && device !== 'cuda' && device !== 'auto') {
    throw new UsageError(expected('train', '--device', "be 'cuda' where --devices is given", `'${device}'`));
  }
  return devices.length > 1 ? runRanks(devices, signal) : run(flags, signal);
}

async function run(flags: TrainFlags, signal: AbortSignal, rank?: Rank): Promise<void> {
  const options = { ...trainOptions(flags, rank?.rank), signal };
  if (rank && rank.rank > 0) return void (await trainAsRank(options, rank));
  const progress = flags.quiet ? silent : process.stderr.isTTY ? barProgress() : lineProgress();
  const onProgress = (p: TrainProgress) => {
    progress.update(p);
    if (flags.json) void print(`${JSON.stringify(p)}\n`);
  };
  const watched = { ...options, onProgress, onEncode: progress.encode };
  const training = rank ? trainAsRank(watched, rank) : train(watched);
  const result = await training.finally(progress.stop);
  if (flags.json) return print(`${JSON.stringify(result)}\n`);
  const { step, steps, checkpoint, best } = result;
  const held = best === null ? '' : `, best ${best.bitsPerByte.toFixed(4)} bits per byte at step ${best.step}`;
  const goOn = result.stopped === 'aborted' ? '; --resume goes on' : '';
  if (!flags.quiet) note(`${result.stopped}: step ${step} of ${steps}${held}${goOn}`);
  await print(`${checkpoint}\n`);
}

function trainOptions(flags: TrainFlags, rank = 0): TrainOptions {
  const { beta1, beta2, separator, devices, json, quiet, ...rest } = withoutShape(flags);
  const config = shape(flags);
  const betas = beta1 === undefined && beta2 === undefined ? undefined : ([beta1 ?? 0.9, beta2 ?? 0.95] as const);
  const device = devices ? `cuda:${devices[rank]}` : rest.device;
  return { ...rest, ...defined({ config, betas, device, separator: separator === '' ? null : separator }) };
}

function withoutShape(flags: TrainFlags): Omit<TrainFlags, (typeof SHAPE)[number]> {
  const others = { ...flags };
  for (const key of SHAPE) delete others[key];
  return others;
}

function shape(flags: TrainFlags): TrainOptions['config'] {
  const given = Object.fromEntries(SHAPE.flatMap((key) => (flags[key] === undefined ? [] : [[key, flags[key]]])));
  if (flags.layers !== undefined && flags.dModel !== undefined) return given as unknown as PartialModelConfig;
  if (Object.keys(given).length === 0) return undefined;
  throw new UsageError('--layers and --d-model go together, and all other flags of a shape with them');
}

interface Progress {
  encode(progress: EncodeProgress): void;
  update(progress: TrainProgress): void;
  stop(): void;
}

const silent: Progress = { encode: () => undefined, update: () => undefined, stop: () => undefined };

function barProgress(): Progress {
  const format: GenericFormatter = (_, { progress }, { shown }) =>
    progressLine(shown as TrainProgress, progress, valid, process.stderr.columns || 80);
  const steps = new SingleBar({ format, stream: process.stderr, hideCursor: true }, Presets.legacy);
  let valid: number | undefined;
  const encoding = bar('encoding');
  return {
    encode({ bytes, total }) {
      encoding.update(bytes / total);
      if (bytes === total) encoding.stop();
    },
    update(shown) {
      valid = shown.validBitsPerByte ?? valid;
      if (!steps.isActive) steps.start(shown.steps, shown.step, { shown });
      steps.update(shown.step, { shown });
    },
    stop: () => {
      encoding.stop();
      steps.stop();
    },
  };
}

const BAR_WIDTH = 40;

/** One line that fits: the bar gives way first, then the figures that the others imply or that matter least. */
export function progressLine(p: TrainProgress, fraction: number, valid: number | undefined, columns: number): string {
  const { loss, bitsPerByte, bytesPerSecond, eta } = p;
  const figures = [
    { rank: 0, text: `loss ${loss.toFixed(4)}` },
    { rank: 4, text: `${bitsPerByte.toFixed(4)} bits/byte` },
    { rank: 1, text: `${grouped(bytesPerSecond)} bytes/s` },
    { rank: 2, text: `${duration(eta)} left` },
    ...(valid === undefined ? [] : [{ rank: 3, text: `valid ${valid.toFixed(4)}` }]),
  ];
  const count = `${p.step}/${p.steps}`;
  for (let least = 0; ; least++) {
    const kept = figures.filter(({ rank }) => rank >= least).map(({ text }) => text);
    const line = [count, kept.join(' · ')].filter(Boolean).join(' ');
    const room = Math.min(BAR_WIDTH, columns - line.length - 3);
    if (least === 0 && room >= BAR_WIDTH / 4) {
      const done = Math.round(fraction * room);
      return line.replace(' ', ` [${'='.repeat(done)}${'-'.repeat(room - done)}] `);
    }
    if (line.length <= columns || kept.length === 0) return line;
  }
}

const LINE_SECONDS = 30;

/** For logs: a line now and then, and one for every evaluation. */
function lineProgress(): Progress {
  let last = Number.NEGATIVE_INFINITY;
  let encoded = performance.now() / 1000;
  return {
    encode({ bytes, total, bytesPerSecond }) {
      const now = performance.now() / 1000;
      if (bytes < total && now - encoded < LINE_SECONDS) return;
      encoded = now;
      note(`encoded ${grouped(bytes)} of ${grouped(total)} bytes · ${grouped(bytesPerSecond)} bytes/s`);
    },
    update({ step, steps, loss, bitsPerByte, bytesPerSecond, eta, validBitsPerByte }) {
      const now = performance.now() / 1000;
      if (validBitsPerByte === undefined && now - last < LINE_SECONDS) return;
      last = now;
      const valid = validBitsPerByte === undefined ? '' : ` · valid ${validBitsPerByte.toFixed(4)} bits/byte`;
      const speed = `${grouped(bytesPerSecond)} bytes/s · ${duration(eta)} left`;
      note(`step ${step}/${steps} · loss ${loss.toFixed(4)} · ${bitsPerByte.toFixed(4)} bits/byte · ${speed}${valid}`);
    },
    stop: () => undefined,
  };
}

/** Seconds → "1 h 05 min", "3 min 20 s", "12 s". */
function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return '?';
  const s = Math.round(seconds);
  const two = (n: number) => String(n).padStart(2, '0');
  if (s >= 3600) return `${Math.floor(s / 3600)} h ${two(Math.floor((s % 3600) / 60))} min`;
  return s >= 60 ? `${Math.floor(s / 60)} min ${two(s % 60)} s` : `${s} s`;
}
