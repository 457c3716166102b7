import { Command } from 'commander';
import { type DoctorReport, doctor } from '../doctor.ts';
import { print, printJson, sized, table } from './output.ts';

export function doctorCommand(): Command {
  return new Command('doctor')
    .description('show what this installation can do on this machine')
    .option('--json', 'print JSON')
    .action(async (flags: { json?: boolean }) => {
      const report = doctor();
      if (flags.json) await printJson(report);
      else await print(rendered(report));
    });
}

function rendered(r: DoctorReport): string {
  const backends = r.backends.map(({ name, available, detail }) => [
    `backend ${name}`,
    available ? detail : `not available: ${detail}`,
  ]);
  return table([
    ['mambabyte', r.mambabyte],
    ['node', `${r.node} (Node-API ${r.nodeApi})`],
    ['platform', `${r.platform}${r.glibc ? `, glibc ${r.glibc}` : ''}`],
    ['cpu', `${r.cpu}, ${r.cores} cores, ${sized(r.memoryBytes)} of memory`],
    ['cpu features', r.cpuFeatures.join(' ') || 'none known'],
    ['instruction sets', r.targets.join(' ') || 'none'],
    ['addon', r.addon ?? `not loaded: ${r.addonError}`],
    ...backends,
    ['models', r.models.join(' ') || 'none shipped'],
    ...Object.entries(r.environment).map(([key, value]) => [key, value]),
  ]);
}
