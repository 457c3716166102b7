import { Device, type DeviceOptions } from '../../lib/device.ts';

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

/** Opens a device for the length of `fn`. */
export async function withDevice<T>(
  backend: 'ref' | 'cpu',
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
