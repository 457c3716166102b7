import { open } from 'node:fs/promises';
import { Command, Option } from 'commander';
import { convertModel } from '../convert.ts';
import type { WeightDType } from '../weights/load.ts';
import { interruptible } from './interrupt.ts';
import { dtypeOption, openModel } from './model-options.ts';
import { bar, print, printJson, table } from './output.ts';
import { defined, parsePositive } from './usage.ts';

interface ConvertFlags {
  dtype?: WeightDType;
  to: 'mambabyte' | 'hf';
  eval?: string;
  evalBytes: number;
  json?: boolean;
}

export function convertCommand(): Command {
  return new Command('convert')
    .description('write a checkpoint as config.json, model.safetensors and its tokenizer.json, if it has one')
    .argument('<input>', 'name of a shipped model, a folder or a file')
    .argument('<folder>', 'where to write; made if it is not there')
    .addOption(dtypeOption())
    .addOption(
      new Option('--to <dialect>', 'names and config: mambabyte (state-spaces/mamba), or hf (transformers)')
        .choices(['mambabyte', 'hf'])
        .default('mambabyte'),
    )
    .option('--eval <file>', 'measure what the conversion costs on this text, in bits per byte')
    .option('--eval-bytes <n>', 'how much of that text', parsePositive, 1 << 18)
    .option('--json', 'print JSON')
    .action((input: string, folder: string, flags: ConvertFlags) =>
      interruptible((signal) => convert(input, folder, flags, signal)),
    );
}

async function convert(input: string, folder: string, flags: ConvertFlags, signal: AbortSignal): Promise<void> {
  const progress = bar('converting');
  const { dtype, to } = flags;
  const options = defined({ dtype, to, signal, onProgress: progress.update });
  await convertModel(input, folder, options).finally(progress.stop);
  const cost = flags.eval === undefined ? undefined : await compare(input, folder, flags.eval, flags.evalBytes, signal);
  if (flags.json) return printJson({ folder, ...(cost && { bitsPerByte: cost }) });
  await print(table([['written', folder]]));
  if (!cost) return;
  const { bytes, before, after } = cost;
  const percent = ((after / before - 1) * 100).toFixed(2);
  await print(
    table([
      ['before', `${before.toFixed(4)} bits per byte on ${bytes} bytes of ${flags.eval}`],
      ['after', `${after.toFixed(4)} bits per byte`],
      ['cost', `${(after - before).toFixed(4)} bits per byte (${percent} %)`],
    ]),
  );
}

async function compare(input: string, folder: string, file: string, limit: number, signal: AbortSignal) {
  const text = await readStart(file, limit);
  const measure = async (path: string) => {
    using model = await openModel(path, {}, signal);
    return (await model.score(text, { signal })).bitsPerByte;
  };
  return { bytes: text.length, before: await measure(input), after: await measure(folder) };
}

async function readStart(file: string, limit: number): Promise<Uint8Array> {
  const handle = await open(file, 'r');
  try {
    const { size } = await handle.stat();
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(Math.min(limit, size)), 0, Math.min(limit, size), 0);
    return buffer.subarray(0, bytesRead);
  } finally {
    await handle.close();
  }
}
