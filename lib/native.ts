import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { NativeLoadError } from './errors.ts';

/** The result of running a plan. */
export interface RunResult {
  readonly steps: number;
  readonly cancelled: boolean;
  /** Index of the stop sequence that ended the run, or -1. */
  readonly stop: number;
  /** The watched tensor after every step, one after another. */
  readonly watched: Int32Array;
}

export interface RunOptions {
  steps?: number;
  maxMs?: number;
  watch?: number;
  stops?: Int32Array[];
  history?: Int32Array;
}

export interface NativePlan {
  run(options?: RunOptions): Promise<RunResult>;
  /** As `run`, on the JS thread; undefined: it did not, since runs of the device are under way. */
  runStepsHere(options?: RunOptions): RunResult | undefined;
  /**
   * Runs once on the JS thread; false: it did not, since runs of the device are under way. The contents of tensor `watch`
   * go to `out`; with `wait` false and none of these it may return before the run has ended.
   */
  runHere(wait?: boolean, watch?: number, out?: Int32Array | Float32Array): boolean;
  profile(): Float64Array;
  cancel(): void;
  dispose(): void;
}

export interface NativeDevice {
  alloc(bytes: number): number;
  map(path: string, offset: number, bytes: number): number;
  free(buffer: number): void;
  write(buffer: number, offset: number, view: ArrayBufferView): void;
  read(buffer: number, offset: number, view: ArrayBufferView): void;
  compile(tensors: Float64Array, nodes: Int32Array, attrs: Float64Array, scopes: string[]): NativePlan;
  /** What every rank of a group of devices hands to joinGroup. */
  newGroupId(): Uint8Array;
  /** Waits until all `world` ranks have joined. */
  joinGroup(id: Uint8Array, rank: number, world: number): void;
  info(): string;
  dispose(): void;
}

export interface NativeBinding {
  readonly abi: number;
  readonly Device: new (backend: string, index: number, threads: number, target?: string) => NativeDevice;
  /**
   * Which of ids[from, to) count in a distribution, and how much; returns how many do.
   * @param logits (V)
   * @param ids each below V
   * @param positions (to - from) or more; afterwards, where in `ids` those that count are, ascending
   * @param sums (to - from + 1) or more; afterwards the weights of those before each, then of all; the best weighs 1
   * @throws TypeError for another kind of array; RangeError for one that is too short, or an id that is no class
   */
  weighTokens(
    logits: Float32Array,
    ids: Int32Array,
    from: number,
    to: number,
    positions: Int32Array,
    sums: Float64Array,
  ): number;
  opTable(): [name: string, outputs: string, inputs: string, attributes: string][];
}

const require = createRequire(import.meta.url);
let loaded: { binding: NativeBinding; file: string } | undefined;

/** Root of the installed package. */
export const packageRoot = findRoot(dirname(fileURLToPath(import.meta.url)));

function findRoot(from: string): string {
  let dir = from;
  while (!existsSync(join(dir, 'package.json')) && dirname(dir) !== dir) dir = dirname(dir);
  return dir;
}

/**
 * The native addon, loaded on first use: a local build if there is one, else the prebuild for this platform.
 * @throws NativeLoadError naming what was looked for and what to do.
 */
export function native(): { binding: NativeBinding; file: string } {
  if (!loaded) {
    try {
      const nodeGypBuild = require('node-gyp-build') as { path(dir: string): string };
      const file = nodeGypBuild.path(packageRoot);
      loaded = { binding: require(file) as NativeBinding, file };
    } catch (cause) {
      throw new NativeLoadError(
        `mambabyte: the native addon could not be loaded on ${process.platform}-${process.arch}, node ${process.version} (Node-API ${process.versions.napi}).\n` +
          `${cause instanceof Error ? cause.message.split('\n')[0] : cause}\n` +
          'Possible solutions:\n' +
          '- reinstall the package so that its prebuilds/ folder is complete: npm install --force mambabyte\n' +
          '- in a clone of the repository, build it: npm run build (needs CMake 3.25 and a C++20 compiler)',
        { cause },
      );
    }
  }
  return loaded;
}
