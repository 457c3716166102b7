import { Command, Option } from 'commander';
import { counted, grouped } from '../text.ts';
import { type EvaluateOptions, evaluate } from '../train/evaluate.ts';
import { interruptible } from './interrupt.ts';
import { type ModelFlags, openModel, withModelOptions } from './model-options.ts';
import { bar, print, printJson, table } from './output.ts';
import { defined, parsePositive, separatorOption, UsageError } from './usage.ts';

interface EvalFlags extends ModelFlags {
  mode?: 'sliding' | 'stateful';
  context?: number;
  stride?: number;
  maxBytes?: number;
  separator?: string;
  json?: boolean;
}

export function evalCommand(): Command {
  const command = new Command('eval')
    .description('measure how well a model predicts text: bits per byte and word perplexity')
    .argument('<model>', 'name of a shipped model, a folder or a file')
    .argument('<data...>', 'files or folders')
    .addOption(
      new Option(
        '--mode <mode>',
        'sliding: windows, each from an empty state (default); stateful: carry the state through each document',
      ).choices(['sliding', 'stateful']),
    )
    .option('--context <n>', 'bytes or tokens a window reads (default: 8192, or 2048 tokens)', parsePositive)
    .option(
      '--stride <n>',
      'from one window to the next (default: half a context, or what the model learns from if less)',
      parsePositive,
    )
    .option('--max-bytes <n>', 'score about this much: the middle of every document', parsePositive)
    .addOption(separatorOption())
    .option('--json', 'print JSON');
  return withModelOptions(command).action((model: string, data: string[], flags: EvalFlags) =>
    interruptible((signal) => run(model, data, flags, signal)),
  );
}

async function run(name: string, data: string[], flags: EvalFlags, signal: AbortSignal): Promise<void> {
  if (flags.mode === 'stateful' && (flags.context !== undefined || flags.stride !== undefined)) {
    throw new UsageError('--context and --stride are of --mode sliding: stateful has no windows');
  }
  using model = await openModel(name, flags, signal);
  const progress = bar('scoring');
  const { mode, context, stride, maxBytes, separator } = flags;
  const options: EvaluateOptions = {
    ...defined({ mode, context, stride, maxBytes, separator: separator === '' ? null : separator }),
    signal,
    onProgress: ({ bytes, total }) => progress.update(bytes / total),
  };
  const result = await evaluate(model, data, options).finally(progress.stop);
  const report = { model: name, data, device: model.device, deviceNote: model.deviceNote, ...result };
  if (flags.json) return printJson(report);
  const { bitsPerByte, wordPerplexity, words, bytes, documents, seconds } = result;
  await print(
    table([
      ['bits per byte', bitsPerByte.toFixed(4)],
      ['word perplexity', wordPerplexity.toFixed(2)],
      ['scored', [counted(bytes, 'byte'), counted(words, 'word'), counted(documents, 'document')].join(', ')],
      ['speed', `${grouped(bytes / seconds)} bytes/s on ${model.device}`],
    ]),
  );
}
