import { mkdtemp, rm } from 'node:fs/promises';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { Command } from 'commander';
import { createModel, type Model } from '../model.ts';
import { PRESETS, presetConfig } from '../models/config.ts';
import { version } from '../version.ts';
import { interruptible } from './interrupt.ts';
import { type ModelFlags, openModel, withModelOptions } from './model-options.ts';
import { grouped, print, printJson, sized, table } from './output.ts';
import { defined, parsePositive } from './usage.ts';

interface BenchFlags extends ModelFlags {
  decode: number;
  prefill: number;
  repeats: number;
  json?: boolean;
}

export function benchCommand(): Command {
  const command = new Command('bench')
    .description('measure prefill and decode speed')
    .argument('[model]', 'a model, or a preset with random weights', 'mambabyte-5m')
    .option('--decode <n>', 'bytes to generate in each run', parsePositive, 512)
    .option('--prefill <n>', 'bytes of prompt in each run', parsePositive, 2048)
    .option('--repeats <n>', 'runs of each kind', parsePositive, 5)
    .option('--json', 'print JSON')
    .addHelpText('after', `\nPresets: ${Object.keys(PRESETS).join(', ')}`);
  return withModelOptions(command).action((model: string, flags: BenchFlags) =>
    interruptible((signal) => bench(model, flags, signal)),
  );
}

async function bench(name: string, flags: BenchFlags, signal: AbortSignal): Promise<void> {
  using model = name in PRESETS ? await randomModel(name, flags, signal) : await openModel(name, flags, signal);
  const prompt = Uint8Array.from({ length: flags.prefill }, (_, i) => 32 + ((i * 37) % 90));
  const prefill = await repeated(flags.repeats, async () => {
    const { stats } = await model.generate(prompt, { maxBytes: 0, seed: 0, signal });
    return (stats.promptBytes / stats.prefillMs) * 1000;
  });
  const decode = await repeated(flags.repeats, async () => {
    const { stats } = await model.generate('\n', { maxBytes: flags.decode, seed: 0, signal });
    return stats.bytesPerSecond;
  });
  const report = {
    model: name,
    parameters: model.parameters,
    bytes: model.bytes,
    dtype: flags.dtype ?? 'as stored',
    device: model.device,
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    mambabyte: version,
    prefill: { bytes: flags.prefill, ...prefill },
    decode: { bytes: flags.decode, ...decode },
  };
  if (flags.json) return printJson(report);
  const speed = ({ best, median }: Speed) => `${grouped(median)} bytes/s (best ${grouped(best)})`;
  await print(
    table([
      ['model', `${name}, ${grouped(report.parameters)} parameters, ${sized(report.bytes)}`],
      ['device', `${report.device}, ${report.cpu}`],
      ['prefill', `${speed(prefill)}, ${flags.prefill} bytes, ${flags.repeats} runs`],
      ['decode', `${speed(decode)}, ${flags.decode} bytes, ${flags.repeats} runs`],
    ]),
  );
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

/** A preset with random weights, written out and loaded again so that it has the storage that was asked for. */
async function randomModel(name: string, flags: ModelFlags, signal: AbortSignal): Promise<Model> {
  const folder = await mkdtemp(join(tmpdir(), 'mambabyte-bench-'));
  try {
    const { device, threads } = flags;
    using random = await createModel(presetConfig(name), { seed: 0, ...defined({ device, threads }) });
    await random.save(folder);
    return await openModel(folder, flags, signal);
  } finally {
    await rm(folder, { recursive: true, force: true }); // what is mapped stays readable
  }
}
