import { open } from 'node:fs/promises';
import { Command, Option } from 'commander';
import { convertModel } from '../convert.ts';
import { reading } from '../data/files.ts';
import { DataError, expected } from '../errors.ts';
import { counted } from '../text.ts';
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
  const text = flags.eval === undefined ? undefined : await readStart(flags.eval, flags.evalBytes);
  const measure = async (path: string) => {
    using model = await openModel(path, {}, signal);
    return (await model.score(text ?? '', { signal })).bitsPerByte;
  };
  const before = text && (await measure(input)); // now: the folder may be the input
  const progress = bar('converting');
  const { dtype, to } = flags;
  const options = defined({ dtype, to, signal, onProgress: progress.update });
  await convertModel(input, folder, options).finally(progress.stop);
  const cost = text && before !== undefined && { bytes: text.length, before, after: await measure(folder) };
  if (flags.json) return printJson({ folder, ...(cost && { bitsPerByte: cost }) });
  await print(table([['written', folder], ...(cost ? costRows(cost, flags.eval ?? '') : [])]));
}

function costRows({ bytes, before, after }: { bytes: number; before: number; after: number }, file: string) {
  const signed = (x: number, digits: number) => x.toFixed(digits).replace(/^-(?=[0.]+$)/, ''); // no -0.00
  const percent = signed((after / before - 1) * 100, 2);
  return [
    ['before', `${before.toFixed(4)} bits per byte on ${counted(bytes, 'byte')} of ${file}`],
    ['after', `${after.toFixed(4)} bits per byte`],
    ['cost', `${signed(after - before, 4)} bits per byte (${percent} %)`],
  ];
}

/** The first bytes of a file, `limit` at most. */
async function readStart(path: string, limit: number): Promise<Uint8Array> {
  const handle = await reading(path, () => open(path, 'r'));
  try {
    const { size } = await handle.stat();
    const bytes = Buffer.alloc(Math.min(limit, size));
    const { bytesRead } = await reading(path, () => handle.read(bytes, 0, bytes.length, 0));
    if (bytesRead === 0) throw new DataError(expected('convert', path, 'hold data', 'an empty file'));
    return bytes.subarray(0, bytesRead);
  } finally {
    await handle.close();
  }
}
