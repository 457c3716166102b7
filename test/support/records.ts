// Records of experiments with made-up figures, to test what the report says of them.
import type { ComputeResult, Match } from '../../lib/experiments/compute.ts';
import type { Environment } from '../../lib/experiments/environment.ts';
import type { Trained } from '../../lib/experiments/lab.ts';
import type { ExperimentRecord } from '../../lib/experiments/records.ts';

export const RUN: Environment = {
  began: '2026-01-02T03:04:05.000Z',
  command: "mambabyte experiment compute --out 'a <b>'",
  version: '0.0.0',
  commit: 'abc',
  node: 'v20',
  system: 'linux-x64',
  cpu: 'a processor',
  cores: 2,
  memoryBytes: 2 ** 33,
  load: 0.5,
  device: 'cpu (scalar, 1 thread)',
};

export function recordOf<R>(experiment: string, results: readonly R[]): ExperimentRecord<R> {
  return {
    ...{ format: 1, experiment, title: `Title of ${experiment}`, question: 'Which is better?', scale: 'quick' },
    runs: [RUN],
    units: results.map((result, i) => ({ key: `unit ${i}`, inputs: {}, run: 0, seconds: 1, result })),
  };
}

export function trained(bitsPerByte: number, flops = 3e9): Trained {
  const curve = [1, 2, 3].map((i) => ({ bytes: 1000 * i, flops: (flops * i) / 3, bitsPerByte: bitsPerByte + 3 - i }));
  return {
    ...{ parameters: 12345, bytesPerUnit: 1, context: 64, flopsPerByte: 1e6, steps: 3, bytes: 3000, flops, curve },
    test: { bitsPerByte, wordPerplexity: 2 ** (5 * bitsPerByte), bytes: 1000 },
  };
}

/** A result for each seed. */
export function computeResults(model: string, match: Match, bits: readonly number[]): ComputeResult[] {
  return bits.map((value, seed) => ({ corpus: 'books', model, match, seed, trained: trained(value) }));
}
