import { Command } from 'commander';
import type { CudaInfo } from '../device.ts';
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
    ['cuda library', r.cudaLibrary ?? 'none'],
    ...r.gpus.map((gpu) => [`cuda:${gpu.index}`, described(gpu)]),
    ['device auto', r.auto ?? 'none: the addon is not loaded'],
    ['models', r.models.join(' ') || 'none shipped'],
    ...Object.entries(r.environment).map(([key, value]) => [key, value]),
  ]);
}

function described(gpu: CudaInfo): string {
  return [
    `${gpu.name} (${gpu.target}, ${gpu.multiprocessors} multiprocessors)`,
    `${sized(gpu.freeBytes)} of ${sized(gpu.memoryBytes)} free`,
    `${(gpu.memoryBytesPerSecond / 1e12).toFixed(2)} TB/s`,
    `driver for CUDA ${gpu.driver}, built with ${gpu.runtime}`,
    `matrix products by ${gpu.gemm}`,
  ].join(', ');
}
