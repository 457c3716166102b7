// What this installation can do on this machine, for bug reports and for people whose addon does not load.
import { existsSync, readFileSync } from 'node:fs';
import { availableParallelism, cpus, totalmem } from 'node:os';
import { dirname, join } from 'node:path';
import { type CudaInfo, Device, isCuda, whyUnavailable } from './device.ts';
import { type DeviceReason, DeviceUnavailableError } from './errors.ts';
import { native } from './native.ts';
import { shippedModels } from './shipped.ts';
import { counted } from './text.ts';
import { version } from './version.ts';

export interface BackendReport {
  name: string;
  available: boolean;
  /** The instruction set in use or the GPUs, or why the backend is not available and what to do. */
  detail: string;
  /** Why the backend is not available, in one word. */
  reason?: DeviceReason;
}

export interface DoctorReport {
  mambabyte: string;
  node: string;
  /** Highest Node-API version of this Node. */
  nodeApi: string;
  /** "linux-x64" */
  platform: string;
  /** Version of the C library, where it is glibc. */
  glibc: string | undefined;
  cpu: string;
  /** Of the vector extensions that kernels know, those that this CPU has. */
  cpuFeatures: string[];
  /** Instruction sets that the cpu backend can be forced to (MAMBABYTE_CPU). */
  targets: string[];
  /** Cores this process may use. */
  cores: number;
  memoryBytes: number;
  /** The addon that was loaded, or undefined. */
  addon: string | undefined;
  /** Why the addon did not load. */
  addonError: string | undefined;
  backends: BackendReport[];
  /** GPUs that the cuda backend runs on. */
  gpus: CudaInfo[];
  /** The file of the cuda backend, or undefined where there is none. */
  cudaLibrary: string | undefined;
  /** What device 'auto' chooses and why: "cpu: no NVIDIA driver is installed". */
  auto: string | undefined;
  /** Models that ship with the package. */
  models: string[];
  /** Variables of this package that are set. */
  environment: Record<string, string>;
}

const TARGETS = ['scalar', 'avx2', 'avx512', 'amx', 'neon'];
const EXTENSIONS = ['avx2', 'fma', 'f16c', 'avx512f', 'avx512bw', 'avx512_vnni', 'avx512_bf16', 'amx_bf16', 'amx_int8'];

/** Looks at the machine and the installation; never throws. */
export function doctor(): DoctorReport {
  const addon = addonReport();
  const cuda = addon.file === undefined ? undefined : cudaReport();
  return {
    mambabyte: version,
    node: process.version,
    nodeApi: process.versions.napi ?? 'none',
    platform: `${process.platform}-${process.arch}`,
    glibc: glibcVersion(),
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cpuFeatures: cpuFeatures(),
    targets: addon.file === undefined ? [] : TARGETS.filter(opens),
    cores: availableParallelism(),
    memoryBytes: totalmem(),
    addon: addon.file,
    addonError: addon.error,
    backends: cuda ? [openReport('cpu'), openReport('ref'), cuda.backend] : [],
    gpus: cuda?.gpus ?? [],
    cudaLibrary: cudaLibrary(addon.file),
    auto: cuda?.auto,
    models: shippedModels(),
    environment: environment(),
  };
}

function addonReport(): { file: string | undefined; error: string | undefined } {
  try {
    return { file: native().file, error: undefined };
  } catch (error) {
    return { file: undefined, error: message(error) };
  }
}

function openReport(name: 'cpu' | 'ref'): BackendReport {
  try {
    using device = Device.open(name);
    const { target, threads } = device.info;
    return { name, available: true, detail: `${target}, ${counted(threads, 'thread')}` };
  } catch (error) {
    return { name, available: false, detail: message(error) };
  }
}

/** Opens every GPU there is, one after another. */
function cudaReport(): { backend: BackendReport; gpus: CudaInfo[]; auto: string } {
  const gpus: CudaInfo[] = [];
  for (;;) {
    try {
      using device = Device.open('cuda', { threads: 1, index: gpus.length });
      if (isCuda(device.info)) gpus.push(device.info);
    } catch (error) {
      if (gpus.length > 0) break;
      const reason = error instanceof DeviceUnavailableError ? error.reason : 'other';
      const auto = `cpu: ${error instanceof DeviceUnavailableError ? whyUnavailable(error) : message(error)}`;
      return { backend: { name: 'cuda', available: false, detail: message(error), reason }, gpus, auto };
    }
  }
  const detail = counted(gpus.length, 'GPU');
  return { backend: { name: 'cuda', available: true, detail }, gpus, auto: 'cuda: a GPU that can be used' };
}

/** Where native code looks for the library of the cuda backend, if there is a file. */
function cudaLibrary(addon: string | undefined): string | undefined {
  const file = process.env.MAMBABYTE_CUDA_LIB || join(dirname(addon ?? '.'), 'libmambabyte_cuda.so');
  return existsSync(file) ? file : undefined;
}

function opens(target: string): boolean {
  try {
    Device.open('cpu', { target, threads: 1 }).dispose();
    return true;
  } catch {
    return false;
  }
}

/** As the kernel lists them: it leaves out what the operating system has not enabled. */
function cpuFeatures(): string[] {
  const list = '/proc/cpuinfo';
  const flags = existsSync(list) ? (/^flags\s*:(.*)$/m.exec(readFileSync(list, 'utf8'))?.[1]?.split(' ') ?? []) : [];
  return EXTENSIONS.filter((name) => flags.includes(name));
}

function glibcVersion(): string | undefined {
  const settings = process.report as { excludeNetwork?: boolean | undefined };
  const before = settings.excludeNetwork;
  settings.excludeNetwork = true; // the report would look up the names of every open socket
  const report = process.report.getReport() as unknown as { header: { glibcVersionRuntime?: string } };
  settings.excludeNetwork = before;
  return report.header.glibcVersionRuntime;
}

function environment(): Record<string, string> {
  const set = Object.entries(process.env).filter(([key, value]) => key.startsWith('MAMBABYTE_') && value);
  return Object.fromEntries(set) as Record<string, string>;
}

function message(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
