import { Command } from 'commander';
import { grouped } from '../text.ts';
import { type MeasureTokenizerOptions, measureTokenizer } from '../tokenizer/measure.ts';
import { Tokenizer } from '../tokenizer/tokenizer.ts';
import { type TrainTokenizerOptions, trainTokenizer } from '../tokenizer/train-bpe.ts';
import { writeFileAtomically } from '../weights/atomic-file.ts';
import { interruptible } from './interrupt.ts';
import { bar, print, printJson, table } from './output.ts';
import { defined, parsePositive, separatorOption } from './usage.ts';

interface DataFlags {
  maxBytes?: number;
  separator?: string;
  json?: boolean;
}

interface TrainFlags extends DataFlags {
  vocab: number;
  out: string;
}

/** Reading the data is this part of the bar of training; merging is the rest. */
const READING = 0.75;

export function tokenizerCommand(): Command {
  return new Command('tokenizer')
    .description('train a vocabulary of subwords, measure how many tokens text takes')
    .helpCommand(false)
    .addCommand(trainCommand())
    .addCommand(measureCommand());
}

function trainCommand(): Command {
  const command = new Command('train')
    .description("train byte-level BPE and write it as Hugging Face's tokenizer.json")
    .argument('<data...>', 'files or folders')
    .requiredOption('--vocab <n>', 'number of tokens, 256 to 65536: the bytes and the merges', parsePositive)
    .requiredOption('--out <file>', 'where to write it');
  return withDataOptions(command, 'learn from').action((data: string[], flags: TrainFlags) =>
    interruptible((signal) => train(data, flags, signal)),
  );
}

function measureCommand(): Command {
  const command = new Command('measure')
    .description('count the tokens of text')
    .argument('<tokenizer>', 'a tokenizer.json')
    .argument('<data...>', 'files or folders');
  return withDataOptions(command, 'encode').action((path: string, data: string[], flags: DataFlags) =>
    interruptible((signal) => measure(path, data, flags, signal)),
  );
}

function withDataOptions(command: Command, verb: string): Command {
  return command
    .option('--max-bytes <n>', `${verb} about this much: the middle of every document`, parsePositive)
    .addOption(separatorOption())
    .option('--json', 'print JSON');
}

async function train(data: string[], flags: TrainFlags, signal: AbortSignal): Promise<void> {
  const { vocab, out } = flags;
  const progress = bar('training');
  const started = performance.now();
  let read = 0;
  const options: TrainTokenizerOptions = {
    vocab,
    ...dataOptions(flags, signal),
    onProgress: ({ bytes, totalBytes, tokens }) => {
      read = bytes;
      const merged = (tokens - 256) / Math.max(1, vocab - 256);
      progress.update(READING * (bytes / totalBytes) + (1 - READING) * merged);
    },
  };
  const tokenizer = await trainTokenizer(data, options).finally(progress.stop);
  await writeFileAtomically(out, (append) => append(Buffer.from(tokenizer.json)));
  const seconds = (performance.now() - started) / 1000;
  if (flags.json) return printJson({ out, data, vocab: tokenizer.vocab, bytes: read, seconds });
  await print(
    table([
      ['written', out],
      ['tokens', grouped(tokenizer.vocab)],
      ['read', `${grouped(read)} bytes in ${seconds.toFixed(1)} s`],
    ]),
  );
}

async function measure(path: string, data: string[], flags: DataFlags, signal: AbortSignal): Promise<void> {
  const tokenizer = await Tokenizer.open(path);
  const progress = bar('encoding');
  const options: MeasureTokenizerOptions = {
    ...dataOptions(flags, signal),
    onProgress: ({ bytes, totalBytes }) => progress.update(bytes / totalBytes),
  };
  const result = await measureTokenizer(tokenizer, data, options).finally(progress.stop);
  if (flags.json) return printJson({ tokenizer: path, data, vocab: tokenizer.vocab, ...result });
  const { bytesPerToken, bytes, tokens, documents } = result;
  await print(
    table([
      ['bytes per token', bytesPerToken.toFixed(4)],
      ['tokens', grouped(tokens)],
      ['encoded', `${grouped(bytes)} bytes, ${grouped(documents)} documents`],
      ['vocabulary', grouped(tokenizer.vocab)],
    ]),
  );
}

function dataOptions({ maxBytes, separator }: DataFlags, signal: AbortSignal) {
  return { ...defined({ maxBytes, separator: separator === '' ? null : separator }), signal };
}
