import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { Command } from 'commander';
import { isCuda } from '../device.ts';
import type { Model } from '../model.ts';
import { PRESETS, presetConfig } from '../models/presets.ts';
import { chromeTrace, collectPlans, type DeviceLimits, measureLimits, type PlanProfile, profile } from '../profile.ts';
import { counted, grouped } from '../text.ts';
import { version } from '../version.ts';
import { writeRandomCheckpoint } from '../weights/random-checkpoint.ts';
import { interruptible } from './interrupt.ts';
import { type ModelFlags, openModel, withModelOptions } from './model-options.ts';
import { print, printJson, sized, table } from './output.ts';
import { parsePositive } from './usage.ts';
import { assertWritable } from './writable.ts';

interface BenchFlags extends ModelFlags {
  decode: number;
  prefill: number;
  repeats: number;
  profile?: boolean;
  trace?: string;
  json?: boolean;
}

export function benchCommand(): Command {
  const command = new Command('bench')
    .description('measure prefill and decode speed')
    .argument('[model]', 'a model, or a preset with random weights', 'mambabyte-5m')
    .option('--decode <n>', 'bytes to generate in each run', parsePositive, 512)
    .option('--prefill <n>', 'bytes of prompt in each run', parsePositive, 2048)
    .option('--repeats <n>', 'runs of each kind', parsePositive, 5)
    .option('--profile', 'print the time, bytes and fraction of the limit of each kernel (always on a GPU)')
    .option('--trace <file>', 'write a decode step and the reading of a prompt as a Chrome trace')
    .option('--json', 'print JSON')
    .addHelpText('after', `\nPresets: ${Object.keys(PRESETS).join(', ')}`);
  return withModelOptions(command).action((model: string, flags: BenchFlags) =>
    interruptible((signal) => bench(model, flags, signal)),
  );
}

async function bench(name: string, flags: BenchFlags, signal: AbortSignal): Promise<void> {
  if (flags.trace !== undefined) await assertWritable(flags.trace);
  using model = name in PRESETS ? await randomModel(name, flags, signal) : await openModel(name, flags, signal);
  const gpu = isCuda(model.runtime.info);
  const profiled = flags.profile || flags.trace !== undefined || gpu;
  const limits = profiled ? await measureLimits(model.runtime) : undefined;
  const plans = collectPlans(model.runtime);
  const prompt = Uint8Array.from({ length: flags.prefill }, (_, i) => 32 + ((i * 37) % 90));
  const prefill = await repeated(flags.repeats, async () => {
    const { stats } = await model.generate(prompt, { maxBytes: 0, seed: 0, signal });
    return (stats.promptBytes / stats.prefillMs) * 1000;
  });

  const decode = await repeated(flags.repeats, async () => {
    const { stats } = await model.generate('\n', { maxBytes: flags.decode, seed: 0, signal });
    return stats.bytesPerSecond;
  });
  const profiles = limits && {
    decode: await profile(limits, plans, () => model.generate('\n', { maxBytes: 256, seed: 0, signal })),
    prefill: await profile(limits, plans, () => model.generate(prompt, { maxBytes: 0, seed: 0, signal })),
  };
  if (profiles && flags.trace !== undefined) {
    await writeFile(flags.trace, chromeTrace([...profiles.decode, ...profiles.prefill]));
  }
  const report = {
    model: name,
    parameters: model.parameters,
    bytes: model.bytes,
    dtype: flags.dtype ?? 'as stored',
    device: model.device,
    deviceNote: model.deviceNote,
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    mambabyte: version,
    prefill: { bytes: flags.prefill, ...prefill },
    decode: { bytes: flags.decode, ...decode },
    ...(limits && { limits, profiles }),
  };
  if (flags.json) return printJson(report);
  const speed = ({ best, median }: Speed) => `${grouped(median)} bytes/s (best ${grouped(best)})`;
  await print(
    table([
      ['model', `${name}, ${grouped(report.parameters)} parameters, ${sized(report.bytes)}`],
      ['device', gpu ? report.device : `${report.device}, ${report.cpu}`],
      ['prefill', `${speed(prefill)}, ${counted(flags.prefill, 'byte')}, ${counted(flags.repeats, 'run')}`],
      ['decode', `${speed(decode)}, ${counted(flags.decode, 'byte')}, ${counted(flags.repeats, 'run')}`],
    ]),
  );
  if (!limits || !profiles) return;
  const [unit, words] = unitOf(limits);
  const copy = (limits.bytesPerSecond / unit).toFixed(2);
  await print(
    `\nlimits, measured now: a copy ${copy} ${words}B/s, a product ${(limits.flopsPerSecond / unit).toFixed(0)} ${words}FLOP/s\n`,
  );
  for (const [title, parts] of Object.entries(profiles)) {
    for (const part of parts) await print(kernelTable(title, part, limits));
  }
}

/** A line for each kind of kernel of what ran, the most time first. */
function kernelTable(title: string, { seconds, steps, kernels }: PlanProfile, limits: DeviceLimits): string {
  const [unit, words] = unitOf(limits);
  const head = ['kernel', 'nodes', 'us', 'share', 'MB', `${words}B/s`, `${words}FLOP/s`, 'of limit', 'operands'];
  const rows = kernels.map((k) => [
    k.op,
    String(k.nodes),
    (k.seconds * 1e6).toFixed(1),
    `${((100 * k.seconds) / seconds).toFixed(1)} %`,
    (k.bytes / 1e6).toFixed(2),
    (k.bytes / k.seconds / unit).toFixed(2),
    k.flops > 0 ? (k.flops / k.seconds / unit).toFixed(1) : '',
    k.fractionOfLimit.toFixed(2),
    k.shapes,
  ]);
  return `\n${title}: ${(seconds * 1e6).toFixed(1)} us a step, ${steps} steps\n${table([head, ...rows], [1, 2, 3, 4, 5, 6, 7])}`;
}

function unitOf(limits: DeviceLimits): [unit: number, letter: string] {
  return limits.flopsPerSecond > 1e13 ? [1e12, 'T'] : [1e9, 'G'];
}

interface Speed {
  /** Bytes per second. */
  median: number;
  best: number;
  runs: number[];
}

/** The first run compiles the plans and is not counted. */
async function repeated(repeats: number, run: () => Promise<number>): Promise<Speed> {
  await run();
  const runs: number[] = [];
  for (let i = 0; i < repeats; i++) runs.push(await run());
  const sorted = [...runs].sort((a, b) => a - b);
  return { median: sorted[Math.floor((sorted.length - 1) / 2)] ?? 0, best: sorted.at(-1) ?? 0, runs };
}

/** A preset with random weights. */
async function randomModel(name: string, flags: ModelFlags, signal: AbortSignal): Promise<Model> {
  const folder = await mkdtemp(join(tmpdir(), 'mambabyte-bench-'));
  try {
    await writeRandomCheckpoint(folder, presetConfig(name));
    return await openModel(folder, flags, signal);
  } finally {
    await rm(folder, { recursive: true, force: true }); // what is mapped stays readable
  }
}
