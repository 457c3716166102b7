// Draws from a drafter's distribution the way the verifier's sampler draws from its own (native/core/sample_row.h): by the
// same race with the same random numbers, so that distributions that are alike give the same id.
import { philoxWord } from '../rng.ts';
import type { SamplingSettings } from '../session.ts';

/** Outcomes less probable than this, relative to the best, are not let into the race: it would be for nothing. */
const NEGLIGIBLE = 1e-3;

/**
 * Draws one of the first `n` classes, which weigh `weights` at temperature 1, as draw number `drawn` of the seed.
 * @returns the class, and how sure it is: its probability when greedy, else by how much it won its race
 */
export function draw(
  weights: Float64Array,
  n: number,
  settings: SamplingSettings,
  drawn: number,
): { index: number; confidence: number } {
  let best = 0;
  let total = 0;
  for (let i = 0; i < n; i++) {
    const weight = weights[i] as number;
    total += weight;
    if (weight > (weights[best] as number)) best = i;
  }
  const largest = weights[best] ?? 0;
  if (settings.temperature === 0 || !(largest > 0)) return { index: best, confidence: total > 0 ? largest / total : 0 };
  return race(candidates(weights, n, largest, settings), settings.seed, drawn);
}

interface Candidate {
  index: number;
  /** Relative to the largest. */
  weight: number;
}

/** What may win, after temperature, top-k, top-p and min-p. */
function candidates(weights: Float64Array, n: number, largest: number, settings: SamplingSettings): Candidate[] {
  const { temperature, topK, topP, minP } = settings;
  const least = largest * NEGLIGIBLE ** temperature;
  const found: Candidate[] = [];
  for (let index = 0; index < n; index++) {
    const weight = weights[index] as number;
    if (weight >= least) found.push({ index, weight: (weight / largest) ** (1 / temperature) });
  }
  if (topK < 1 && topP === 1) return found.filter(({ weight }) => weight >= minP);
  const sorted = found.sort((a, b) => b.weight - a.weight || a.index - b.index).slice(0, topK >= 1 ? topK : n);
  const enough = topP * sorted.reduce((sum, { weight }) => sum + weight, 0);
  let sum = 0;
  const last = sorted.findIndex(({ weight }) => {
    sum += weight;
    return sum >= enough;
  });
  return (last < 0 ? sorted : sorted.slice(0, last + 1)).filter(({ weight }) => weight >= minP);
}

/**
 * The outcome that arrives first, each after an exponential time over its weight. A race that is nearly lost may go to
 * the second where weights are slightly different.
 */
function race(among: readonly Candidate[], seed: number, drawn: number) {
  let first = 0;
  let fastest = 0;
  let second = 0;
  for (const { index, weight } of among) {
    const uniform = (philoxWord(seed, drawn, index) + 0.5) / 2 ** 32;
    const speed = weight / -Math.log(uniform);
    if (speed > fastest) {
      second = fastest;
      fastest = speed;
      first = index;
    } else if (speed > second) {
      second = speed;
    }
  }
  // Fitted on races of a subword drafter against a byte model: how often the verifier's went the same way.
  const lead = (fastest / Math.max(second, 1e-12 * fastest)) ** 0.55;
  return { index: first, confidence: lead / (lead + 1.4) };
}
