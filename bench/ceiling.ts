import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Model } from '../lib/index.ts';
import { packageRoot } from '../lib/native.ts';
import type { WeightDType } from '../lib/weights/load.ts';

interface Pair {
  one: number;
  two: number;
}

/** What this machine can do at most, as bench/ceiling/main.cc measures it. */
export interface Ceiling {
  cpu: string;
  cacheBytes: { l1: number; l2: number; l3: number };
  l1ReadGBs: Pair;
  l2ReadGBs: Pair;
  /** Each thread streams a region of its own of this size again and again. */
  read3MBGBs: Pair;
  read6MBGBs: Pair;
  read12MBGBs: Pair;
  read24MBGBs: Pair;
  dramReadGBs: Pair;
  fp32FmaGflops: Pair;
  bf16DotGflops: Pair;
  int8DotGops: Pair;
  bf16AmxGflops?: Pair;
  barrierNs: number;
  placement: string;
}

/** Builds the probe if it is not there and runs it; a result of the last hour is used again. */
export async function readCeiling(): Promise<Ceiling> {
  const folder = join(tmpdir(), 'mambabyte-bench');
  const binary = join(folder, 'ceiling');
  const result = join(folder, 'ceiling.json');
  const source = join(packageRoot, 'bench', 'ceiling', 'main.cc');
  mkdirSync(folder, { recursive: true });
  if (!existsSync(binary) || statSync(binary).mtimeMs < statSync(source).mtimeMs) {
    execFileSync('g++', ['-std=c++20', '-O2', '-pthread', '-o', binary, source], { stdio: 'inherit' });
  }
  if (!existsSync(result) || Date.now() - statSync(result).mtimeMs > 3_600_000) {
    writeFileSync(result, execFileSync(binary, { encoding: 'utf8' }));
  }
  return JSON.parse(readFileSync(result, 'utf8')) as Ceiling;
}

/** The most bytes of text a second that the machine's own limits allow for a model. */
export function bounds(
  model: Model,
  dtype: WeightDType,
  threads: number,
  c: Ceiling,
): { decode: number; prefill: number; train: number } {
  const pick = (p: Pair) => (threads === 1 ? p.one : p.two);
  // Each thread streams its share of the weights, over and over: its limit is what a stream of that size reaches.
  const share = model.bytes / threads / 2 ** 20;
  const levels: [number, Pair][] = [
    [c.cacheBytes.l2 / 2 ** 20, c.l2ReadGBs],
    [3, c.read3MBGBs],
    [6, c.read6MBGBs],
    [12, c.read12MBGBs],
    [24, c.read24MBGBs],
  ];
  const read = pick(levels.find(([megabytes]) => share <= megabytes)?.[1] ?? c.dramReadGBs) * 1e9;
  const flops = 2 * model.parameters;
  const matrix = dtype === 'f32' ? c.fp32FmaGflops : (c.bf16AmxGflops ?? c.bf16DotGflops);
  return {
    decode: read / model.bytes,
    prefill: (pick(matrix) * 1e9) / flops,
    train: (pick(c.fp32FmaGflops) * 1e9) / (3 * flops),
  };
}
