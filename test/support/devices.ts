import { type BackendName, type CudaInfo, Device, type DeviceOptions, isCuda } from '../../lib/device.ts';

const TARGETS = ['scalar', 'avx2', 'avx512', 'amx', 'neon'] as const;

/** The instruction sets this processor runs, and why it does not run the others. */
export function cpuTargets(): { supported: string[]; reasons: string[] } {
  const supported: string[] = [];
  const reasons: string[] = [];
  for (const target of TARGETS) {
    try {
      Device.open('cpu', { threads: 1, target }).dispose();
      supported.push(target);
    } catch (error) {
      reasons.push(`${target} is not tested here: ${error instanceof Error ? error.message : error}`);
    }
  }
  return { supported, reasons };
}

let gpu: { info: CudaInfo | undefined; reason: string } | undefined;

/** The GPU that tests use, or why there is none. */
export function cuda(): { info: CudaInfo | undefined; reason: string } {
  if (!gpu) {
    try {
      using device = Device.open('cuda', { threads: 1 });
      gpu = { info: isCuda(device.info) ? device.info : undefined, reason: '' };
    } catch (error) {
      gpu = { info: undefined, reason: `cuda is not tested here: ${error instanceof Error ? error.message : error}` };
    }
  }
  return gpu;
}

/** Opens a device for the length of `fn`. */
export async function withDevice<T>(
  backend: BackendName,
  options: DeviceOptions,
  fn: (device: Device) => Promise<T> | T,
): Promise<T> {
  const device = Device.open(backend, options);
  try {
    return await fn(device);
  } finally {
    device.dispose();
  }
}
