import type { Device } from '../device.ts';
import { expected, listNames } from '../errors.ts';
import { Graph } from '../graph.ts';
import { linear } from '../ops/linear.ts';
import { compile } from '../plan.ts';
import type { Tensor } from '../tensor.ts';

/**
 * Looks for NaN and infinity in all weights, at the speed of memory: a matrix is multiplied by ones, and whatever is not
 * finite in a row makes its sum so.
 * @returns a warning that names the tensors, or nothing
 */
export async function warnOfNonFinite(device: Device, weights: ReadonlyMap<string, Tensor>): Promise<string[]> {
  const g = new Graph();
  const sums = new Map<string, Tensor>();
  const bad: string[] = [];
  const ones = new Map<number, Tensor>();
  for (const [name, t] of weights) {
    if (t.shape.length === 2 && name.endsWith('_proj.weight')) {
      const K = t.cols;
      const x = ones.get(K) ?? device.tensorFrom(new Float32Array(K).fill(1), [1, K], 'f32', 'ones');
      ones.set(K, x);
      sums.set(name, linear(g, x, t, { scale: weights.get(`${name}.scale`) }));
    } else if (!holdsOnlyFinite(t, device)) {
      bad.push(name);
    }
  }
  using plan = await compile(device, g, [...sums.values()]);
  await plan.run();
  for (const [name, sum] of sums) if (!(plan.read(sum) as Float32Array).every(Number.isFinite)) bad.push(name);
  for (const t of ones.values()) device.release(t);
  return bad.length === 0
    ? []
    : [expected('weights', 'all values', 'be finite', `NaN or infinity in ${listNames(bad)}`)];
}

/** For small tensors and the embedding, read one by one. */
function holdsOnlyFinite(t: Tensor, device: Device): boolean {
  const data = device.read(t);
  if (t.dtype === 'bf16') return (data as Uint16Array).every((bits) => (bits & 0x7f80) !== 0x7f80);
  return data.every((v: number) => Number.isFinite(v));
}
