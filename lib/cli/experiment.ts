import { resolve } from 'node:path';
import { Command } from 'commander';
import { checkChoice, DataError } from '../errors.ts';
import { Corpora } from '../experiments/corpora.ts';
import { EXPERIMENT_NAMES, experimentsOf } from '../experiments/experiments.ts';
import { Lab } from '../experiments/lab.ts';
import { FAMILIES, LINEUP, SPEED_LINEUP } from '../experiments/lineup.ts';
import { runExperiment } from '../experiments/runner.ts';
import { interruptible } from './interrupt.ts';
import { note, print, warn } from './output.ts';
import { parsePositive, UsageError } from './usage.ts';

interface ExperimentFlags {
  out?: string;
  data?: string;
  quick?: boolean;
  full?: boolean;
  seeds?: number;
  bytes?: number;
  corpus?: string[];
  model?: string[];
  device?: string;
  threads?: number;
  quiet?: boolean;
}

export function experimentCommand(): Command {
  return new Command('experiment')
    .description("the paper's comparisons in small; the same call again goes on where the last one ended")
    .argument('<name>', `${EXPERIMENT_NAMES.join(', ')}, or all`)
    .option('--data <folder>', 'holds a folder for each corpus, such as books/ with train.txt, valid.txt and test.txt')
    .option('--out <folder>', 'for records, models and samples (default: experiments/<scale>)')
    .option('--quick', 'the smallest settings: all of them in minutes on two cores')
    .option('--full', 'the settings for a GPU: hours')
    .option('--seeds <n>', 'trainings of each model (default: by experiment and scale)', parsePositive)
    .option('--bytes <n>', 'that the byte Mamba is trained on; not in scaling (default: by scale)', parsePositive)
    .option('--corpus <name...>', 'only these corpora')
    .option('--model <name...>', 'only these models')
    .option('--device <name>', 'auto (a GPU if there is one), cuda, cuda:1, cpu')
    .option('--threads <n>', 'threads (default: one per core)', parsePositive)
    .option('-q, --quiet', 'no progress on stderr')
    .addHelpText(
      'after',
      '\ndocs/experiments.md says what each of them does; `mambabyte report <folder>` shows the results.',
    )
    .action((name: string, flags: ExperimentFlags) => interruptible((signal) => run(name, flags, signal)));
}

async function run(name: string, flags: ExperimentFlags, signal: AbortSignal): Promise<void> {
  if (flags.quick && flags.full) throw new UsageError('--quick and --full are two scales: give one');
  const scale = flags.quick ? 'quick' : flags.full ? 'full' : 'default';
  const experiments = experimentsOf(name);
  const models = [...LINEUP[scale], ...SPEED_LINEUP[scale], ...FAMILIES[scale]].map(({ name }) => name);
  for (const model of flags.model ?? []) checkChoice('experiment', '--model', model, [...new Set(models)]);
  const corpora = experimentsOf('all').flatMap((experiment) => experiment.corpora);
  for (const corpus of flags.corpus ?? []) checkChoice('experiment', '--corpus', corpus, [...new Set(corpora)]);
  const lab = new Lab({
    ...{ out: resolve(flags.out ?? `experiments/${scale}`), scale, corpora: new Corpora(flags.data), signal },
    ...{ device: flags.device, threads: flags.threads, seeds: flags.seeds, bytes: flags.bytes },
    only: { corpora: flags.corpus, models: flags.model },
    note: flags.quiet ? () => undefined : note,
  });
  const command = ['mambabyte', ...process.argv.slice(2)].map(quoted).join(' ');
  const failures: DataError[] = [];
  let written = 0;
  for (const experiment of experiments) {
    const { name, corpora } = experiment;
    if (experiments.length > 1 && corpora.length > 0 && !lab.hasAny(corpora)) {
      warn(`left out ${name}: none of ${corpora.join(', ')} is in ${flags.data ?? '--data, which was not given'}`);
      continue;
    }
    try {
      const path = await runExperiment(experiment, lab, command);
      if (path === undefined) warn(`left out ${name}: it has none of these models: ${flags.model?.join(', ')}`);
      else await print(`${path}\n`);
      written += path === undefined ? 0 : 1;
    } catch (error) {
      // What is wrong with the data of one is no reason not to run the others.
      if (!(error instanceof DataError) || experiments.length === 1) throw error;
      warn(error.message);
      failures.push(error);
    }
  }
  const [failure] = failures;
  if (failure) throw failure;
  if (written === 0) throw new UsageError('experiment: nothing was run; the warnings say why');
}

function quoted(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
