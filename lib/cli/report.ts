import { Command } from 'commander';
import { writeReport } from '../report/report.ts';
import { print } from './output.ts';

export function reportCommand(): Command {
  return new Command('report')
    .description('show the results of experiments: one HTML page, and a PNG for each plot')
    .argument('[folder]', 'where `mambabyte experiment` put its records', 'experiments/default')
    .option('--png <folder>', 'for the PNGs (default: the same)')
    .action(async (folder: string, { png }: { png?: string }) => {
      const { page, pngs } = await writeReport(folder, png);
      await print([page, ...pngs].map((path) => `${path}\n`).join(''));
    });
}
