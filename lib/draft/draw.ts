// Draws from a drafter's distribution the way the verifier's sampler draws from its own (native/core/sample_row.h): with
// the same random number and in the same order, so that distributions that are alike give the same id.
import { Philox } from '../rng.ts';
import type { SamplingSettings } from '../session.ts';

/** The random number of one draw. */
export function uniformOf(seed: number, drawn: number): number {
  const philox = new Philox(seed);
  philox.counter = drawn;
  return philox.uniform();
}

/**
 * Draws one of `n` outcomes that weigh `weights` at temperature 1, in their order.
 * @returns the outcome and its probability after temperature and cuts; greedy: before them
 */
export function draw(
  weights: ArrayLike<number>,
  n: number,
  settings: SamplingSettings,
  uniform: number,
): { index: number; probability: number } {
  let best = 0;
  let total = 0;
  for (let i = 0; i < n; i++) {
    total += weights[i] ?? 0;
    if ((weights[i] ?? 0) > (weights[best] ?? 0)) best = i;
  }
  const largest = weights[best] ?? 0;
  if (settings.temperature === 0 || !(largest > 0))
    return { index: best, probability: total > 0 ? largest / total : 0 };
  const scaled = scale(weights, n, largest, settings);
  const mass = scaled.reduce((a, b) => a + b, 0);
  let sum = 0;
  let index = best;
  for (let i = 0; i < n; i++) {
    if (scaled[i] === 0) continue;
    index = i;
    sum += scaled[i] ?? 0;
    if (sum > uniform * mass) break;
  }
  return { index, probability: (scaled[index] ?? 0) / mass };
}

/** Weights relative to the largest after temperature, top-k, top-p and min-p. */
function scale(weights: ArrayLike<number>, n: number, largest: number, settings: SamplingSettings): Float64Array {
  const { temperature, topK, topP, minP } = settings;
  const scaled = new Float64Array(n);
  for (let i = 0; i < n; i++) scaled[i] = ((weights[i] ?? 0) / largest) ** (1 / temperature);
  if ((topK >= 1 && topK < n) || topP < 1) {
    const sorted = Float64Array.from(scaled)
      .sort()
      .reverse()
      .subarray(0, topK >= 1 ? topK : n);
    const enough = topP * sorted.reduce((a, b) => a + b, 0);
    let sum = 0;
    const last = sorted.find((w) => {
      sum += w;
      return sum >= enough;
    });
    for (let i = 0; i < n; i++) if ((scaled[i] ?? 0) < (last ?? 0)) scaled[i] = 0;
  }
  for (let i = 0; i < n; i++) if ((scaled[i] ?? 0) < minP) scaled[i] = 0;
  return scaled;
}
