import { Command } from 'commander';
import { type Inspection, inspectModel } from '../inspect.ts';
import { counted, grouped } from '../text.ts';
import { interruptible } from './interrupt.ts';
import { bar, print, printJson, sized, table, warn } from './output.ts';

interface InspectFlags {
  check?: boolean;
  json?: boolean;
}

export function inspectCommand(): Command {
  return new Command('inspect')
    .description('show the tensors and the configuration of a checkpoint')
    .argument('<model>', 'name of a shipped model, a folder or a file')
    .option('--check', 'read every value and count NaN and infinity')
    .option('--json', 'print JSON')
    .action((model: string, flags: InspectFlags) => interruptible((signal) => inspect(model, flags, signal)));
}

async function inspect(model: string, flags: InspectFlags, signal: AbortSignal): Promise<void> {
  const progress = bar('reading');
  const found = await inspectModel(model, {
    check: flags.check ?? false,
    signal,
    onProgress: progress.update,
  }).finally(progress.stop);
  if (flags.json) await printJson(found);
  else await print(rendered(found));
  for (const warning of found.warnings) warn(warning);
}

function rendered({ file, dialect, config, tokenizer, parameters, bytes, tensors, metadata }: Inspection): string {
  const { architecture = 'mamba', ...sizes } = config;
  const checked = tensors.some((t) => t.nonFinite !== undefined);
  const head = ['tensor', 'dtype', 'shape', 'size', ...(checked ? ['NaN/Inf'] : [])];
  const rows = tensors.map(({ name, dtype, shape, bytes, nonFinite }) => [
    name,
    dtype,
    shape.join(' x '),
    sized(bytes),
    ...(checked ? [String(nonFinite)] : []),
  ]);
  const facts = [
    ['file', file],
    // Only of Mamba there are several.
    ...(architecture === 'mamba' ? [['names', dialect]] : []),
    ['parameters', grouped(parameters)],
    ['size', sized(bytes)],
    ...(tokenizer ? [['tokenizer', counted(tokenizer.vocab, 'id')]] : []),
    ['architecture', architecture],
    ...Object.entries(sizes).map(([key, value]) => [key, String(value)]),
    ...Object.entries(metadata).map(([key, value]) => [`metadata ${key}`, value]),
  ];
  return `${table([head, ...rows], [3, 4])}\n${table(facts)}`;
}
