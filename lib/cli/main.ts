#!/usr/bin/env node
// The command line: data on stdout, everything else on stderr; exit code 0 done, 1 failed, 2 wrong usage, 130 after
// Ctrl-C, 143 after SIGTERM.
import { Command, CommanderError } from 'commander';
import { version } from '../version.ts';
import { benchCommand } from './bench.ts';
import { convertCommand } from './convert.ts';
import { doctorCommand } from './doctor.ts';
import { evalCommand } from './eval.ts';
import { experimentCommand } from './experiment.ts';
import { generateCommand } from './generate.ts';
import { inspectCommand } from './inspect.ts';
import { Interrupted, watchPipes } from './interrupt.ts';
import { note } from './output.ts';
import { reportCommand } from './report.ts';
import { tokenizerCommand } from './tokenizer.ts';
import { trainCommand } from './train.ts';
import { isUsageError, UsageError } from './usage.ts';

const COMMANDS = [
  generateCommand,
  trainCommand,
  evalCommand,
  tokenizerCommand,
  inspectCommand,
  convertCommand,
  doctorCommand,
  benchCommand,
  experimentCommand,
  reportCommand,
];

const EXAMPLES = `
Examples:
  mambabyte generate "It was a dark and" --temperature 0.8
  mambabyte train --preset mambabyte-tiny --data books/ --out run --bytes 50000000
  mambabyte generate --model run/best "Once upon a time"`;

async function main(argv: readonly string[]): Promise<void> {
  watchPipes();
  const program = new Command('mambabyte')
    .description('Language models on raw bytes: generate, train, measure, convert.')
    .version(version)
    .helpCommand('help [command]', 'the same as --help')
    .addHelpText('after', EXAMPLES);
  for (const command of COMMANDS) program.addCommand(command());
  const commands = program.commands.flatMap((command) => [command, ...command.commands]);
  for (const command of [program, ...commands]) {
    command.exitOverride().configureOutput({ outputError: () => undefined });
  }
  try {
    if (argv.length === 0) throw new UsageError(`a command is missing\n\n${program.helpInformation()}`);
    await program.parseAsync(argv, { from: 'user' });
  } catch (error) {
    process.exitCode = report(error);
  }
}

/** Says what went wrong, in one line, and returns the exit code. */
function report(error: unknown): number {
  if (error instanceof Interrupted) return error.exitCode;
  if (error instanceof CommanderError && error.exitCode === 0) return 0; // --help and --version end this way
  if (error instanceof CommanderError && error.code === 'commander.help') return 2; // a group without its command: help is printed
  const debug = process.env.MAMBABYTE_DEBUG === '1' && error instanceof Error;
  note(`mambabyte: ${debug ? error.stack : messageOf(error)}`);
  return isUsageError(error) ? 2 : 1;
}

function messageOf(error: unknown): string {
  const message = error instanceof Error ? error.message : String(error);
  if (!(error instanceof CommanderError)) return message;
  return message.replace(/^error: /, '').replace(/\n\(Did you mean (.*)\?\)$/, '. Did you mean $1?');
}

void main(process.argv.slice(2));
