import { availableParallelism } from 'node:os';
import {
  type DeviceReason,
  DeviceUnavailableError,
  DisposedError,
  MambaByteError,
  NativeError,
  OutOfMemoryError,
} from './errors.ts';
import { type NativeDevice, type NativePlan, native } from './native.ts';
import type { Plan } from './plan.ts';
import { type DType, dtypeBytes, elements, newArray, rootOf, Tensor, type TypedArray } from './tensor.ts';
import { counted } from './text.ts';

/** Names of the backends a device can be opened on. */
export type BackendName = 'ref' | 'cpu' | 'cuda';

export interface DeviceOptions {
  /** Which of several GPUs, as CUDA_VISIBLE_DEVICES numbers them; default 0. */
  index?: number;
  /** Threads that run plans, the caller's worker included; default: one per core. */
  threads?: number;
  /** Instruction set of the cpu backend: scalar, avx2, avx512, amx, neon; default: MAMBABYTE_CPU, else the best one found. */
  target?: string;
}

/** What a device says of itself. */
export interface DeviceInfo {
  readonly backend: BackendName;
  /** The instruction set in use; of a GPU its architecture: sm_90. */
  readonly target: string;
  /** Threads of the CPU that compute. */
  readonly threads: number;
  /** False where the device's memory is its own: files are then copied, not mapped. */
  readonly hostMemory?: boolean;
}

/** What the cuda backend says of its GPU. */
export interface CudaInfo extends DeviceInfo {
  readonly backend: 'cuda';
  /** "NVIDIA H100 80GB HBM3" */
  readonly name: string;
  readonly index: number;
  readonly multiprocessors: number;
  readonly memoryBytes: number;
  readonly freeBytes: number;
  /** Of the memory interface, by its clock and width: what no program reaches entirely. */
  readonly memoryBytesPerSecond: number;
  /** Newest CUDA version that the driver runs: "13.0". */
  readonly driver: string;
  /** CUDA version that the backend was built with. */
  readonly runtime: string;
  /** What computes large matrix products: "cublasLt" or "own". */
  readonly gemm: string;
}

export function isCuda(info: DeviceInfo): info is CudaInfo {
  return info.backend === 'cuda';
}

/** A device in a few words: "cpu (avx512, 2 threads)". */
export function deviceLabel(info: DeviceInfo): string {
  if (isCuda(info)) return `cuda:${info.index} (${info.name}, ${info.target})`;
  const { backend, target, threads } = info;
  return `${backend} (${target}, ${counted(threads, 'thread')})`;
}

/** The first sentence of why a device cannot be had, to end a note with. */
export function whyUnavailable(error: DeviceUnavailableError): string {
  if (/libmambabyte_cuda\.so: cannot open/.test(error.message)) return 'this installation has no CUDA backend';
  const text = error.message.replace(/^(device: |cuda: )+/, '');
  return /^.*?(?=\.\s|\.$|$)/s.exec(text)?.[0] ?? text;
}

/** An open backend: memory, and plans that run on it one after another, off the JS thread. */
export class Device {
  readonly info: DeviceInfo;
  /** @internal Told of every plan that is compiled, to profile those that a model keeps to itself. */
  onPlan: ((plan: Plan) => void) | undefined;
  readonly #native: NativeDevice;
  #disposed = false;

  private constructor(device: NativeDevice) {
    this.#native = device;
    this.info = JSON.parse(device.info()) as DeviceInfo;
  }

  /** @throws DeviceUnavailableError when the backend, the GPU or the instruction set cannot be had on this machine. */
  static open(backend: BackendName, options: DeviceOptions = {}): Device {
    const { binding } = native();
    const threads = options.threads ?? defaultThreads();
    const target = options.target ?? (backend === 'cpu' ? process.env.MAMBABYTE_CPU : undefined);
    try {
      return new Device(new binding.Device(backend, options.index ?? 0, threads, target || undefined));
    } catch (cause) {
      throw unavailable(cause);
    }
  }

  /** What the device says of itself now: free memory changes. */
  describe(): DeviceInfo {
    return JSON.parse(this.call(() => this.#native.info())) as DeviceInfo;
  }

  /** Reserves zero-filled memory. @throws OutOfMemoryError */
  alloc(bytes: number): number {
    return this.call(() => this.#native.alloc(bytes));
  }
  /** Maps part of a file read-only. @throws NativeError when the file cannot be read or is too short */
  map(path: string, offset: number, bytes: number): number {
    return this.call(() => this.#native.map(path, offset, bytes));
  }
  free(buffer: number): void {
    if (!this.#disposed) this.call(() => this.#native.free(buffer));
  }

  /** A zero-filled tensor with memory of its own. */
  tensor(shape: readonly number[], dtype: DType, name: string, frozen = false): Tensor {
    const bytes = elements(shape) * dtypeBytes(dtype);
    return new Tensor(shape, dtype, name, { storage: { buffer: this.alloc(bytes), offset: 0 }, frozen });
  }
  /** A tensor holding a copy of `data`. */
  tensorFrom(data: TypedArray, shape: readonly number[], dtype: DType, name: string, frozen = false): Tensor {
    const t = this.tensor(shape, dtype, name, frozen);
    this.write(t, data);
    return t;
  }
  /** Gives a tensor's memory back. */
  release(t: Tensor): void {
    if (t.storage) this.free(t.storage.buffer);
  }

  /** Copies `data` into a contiguous tensor; sizes must agree. */
  write(t: Tensor, data: ArrayBufferView): void {
    const { buffer, offset } = this.place(t, data.byteLength);
    this.call(() => this.#native.write(buffer, offset, data));
  }
  /** Copies a contiguous tensor out, to `out` if given; sizes must agree. */
  read(t: Tensor, out = newArray(t.dtype, t.elems)): TypedArray {
    const { buffer, offset } = this.place(t, out.byteLength);
    this.call(() => this.#native.read(buffer, offset, out));
    return out;
  }

  compile(tensors: Float64Array, nodes: Int32Array, attrs: Float64Array, scopes: string[]): NativePlan {
    return this.call(() => this.#native.compile(tensors, nodes, attrs, scopes));
  }
  /** What every rank of a group must hand to `joinGroup`. @throws NativeError when NCCL cannot be loaded */
  newGroupId(): Uint8Array {
    return this.call(() => this.#native.newGroupId());
  }
  /** Waits for all `world` ranks; `all_reduce` nodes of plans compiled afterwards sum over them. @throws NativeError */
  joinGroup(id: Uint8Array, rank: number, world: number): void {
    this.call(() => this.#native.joinGroup(id, rank, world));
  }
  get disposed(): boolean {
    return this.#disposed;
  }
  /** Frees everything on the device; a plan that is running ends after its current step. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#native.dispose();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }

  private place(t: Tensor, bytes: number): { buffer: number; offset: number } {
    const storage = rootOf(t).storage;
    if (!storage || !t.contiguous || t.bytes !== bytes) {
      throw new TypeError(
        `device: expected ${t.name} to be a stored, contiguous tensor of ${bytes} bytes, got ${t.bytes} bytes.`,
      );
    }
    return { buffer: storage.buffer, offset: storage.offset + t.baseOffset * dtypeBytes(t.dtype) };
  }

  private call<T>(fn: () => T): T {
    if (this.#disposed) throw new DisposedError('device: expected an open device, it was disposed.');
    try {
      return fn();
    } catch (cause) {
      throw typedError(cause);
    }
  }
}

/** Phrases of the native messages that tell why a GPU cannot be used. */
const REASONS: readonly [RegExp, DeviceReason][] = [
  [/library cannot be loaded|built for another version/, 'no-library'],
  [/no NVIDIA driver/, 'no-driver'],
  [/driver is too old/, 'driver-too-old'],
  [/finds no GPU|device number/, 'no-device'],
  [/compute capability|expected target/, 'unsupported-device'],
  [/out of memory/i, 'out-of-memory'],
];

/** What to do, where the native message of the cuda backend does not say it. */
const HINTS: Partial<Record<DeviceReason, string>> = {
  'no-library': "Build it in a clone with CUDA 13's nvcc (npm run build:native), or use device 'cpu'.",
  'out-of-memory': "Free some GPU memory (nvidia-smi names who holds it), or use device 'cpu'.",
};

/** The typed error for a device that native code could not open. */
export function unavailable(cause: unknown): DeviceUnavailableError {
  const message = cause instanceof Error ? cause.message : String(cause);
  const reason = reasonOf(cause, message);
  const said = !message.startsWith('cuda:') || message.includes("device 'cpu'");
  const hint = said ? '' : `${message.endsWith('.') ? '' : '.'} ${HINTS[reason] ?? "Use device 'cpu'."}`;
  return new DeviceUnavailableError(`device: ${message}${hint}`, { cause, reason });
}

function reasonOf(cause: unknown, message: string): DeviceReason {
  if ((cause as { code?: string }).code === 'MB_OUT_OF_MEMORY') return 'out-of-memory';
  return REASONS.find(([phrase]) => phrase.test(message))?.[1] ?? 'other';
}

function defaultThreads(): number {
  const text = process.env.MAMBABYTE_THREADS;
  if (!text) return availableParallelism();
  const threads = Number(text);
  if (!Number.isInteger(threads) || threads < 1) {
    throw new RangeError(`device: expected MAMBABYTE_THREADS to be a positive integer, got "${text}".`);
  }
  return threads;
}

/** The typed error for one that native code threw. */
export function typedError(cause: unknown): unknown {
  if (!(cause instanceof Error) || cause instanceof MambaByteError) return cause;
  const code = (cause as { code?: string }).code;
  if (code === 'MB_OUT_OF_MEMORY') return new OutOfMemoryError(cause.message, { cause });
  if (code === 'MB_DEVICE' && cause.message.includes('disposed')) return new DisposedError(cause.message, { cause });
  return code?.startsWith('MB_') ? new NativeError(cause.message, { cause }) : cause;
}
