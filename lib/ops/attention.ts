import { expected, ShapeError } from '../errors.ts';
import type { Graph } from '../graph.ts';
import { accumulatorDType, type Tensor } from '../tensor.ts';
import { checkDType, checkHeads, checkShape, shapeText, sizes } from './check.ts';

export interface AttentionInputs {
  /** (B, T, heads * P) */
  q: Tensor;
  /** (B, S, keyHeads * P), keyHeads dividing heads. */
  k: Tensor;
  /** As k. */
  v: Tensor;
}

export interface AttentionOptions {
  heads: number;
  /**
   * (B) i32: k and v are caches of capacity S that held so many steps before these T, whose keys and values are written
   * (ropeCacheWrite). Left out: all S keys exist and the last query sees all of them.
   */
  length?: Tensor | undefined;
}

/**
 * Causal softmax(q kᵀ / √P) v for each head (Vaswani et al. 2017), with one key head for heads / keyHeads of them. Step t
 * sees the keys up to S - T + t, or up to length[b] + t. Differentiable without `length`.
 * @returns (B, T, heads * P)
 */
export function attention(g: Graph, { q, k, v }: AttentionInputs, options: AttentionOptions): Tensor {
  const { heads, length } = options;
  const [B = 0, T = 0] = sizes(g, 'attention', 'q', q, 'B T D');
  const [, S = 0, columns = 0] = sizes(g, 'attention', 'k', k, 'B S C');
  const width = checkHeads(g, 'attention', 'q', q, heads);
  const keyHeads = columns / width;
  if (!Number.isInteger(keyHeads) || keyHeads < 1 || heads % keyHeads !== 0) {
    const what = `have whole heads of ${width} columns, whose number divides ${heads}`;
    throw new ShapeError(expected('attention', 'k', what, shapeText(k.shape)));
  }
  checkShape(g, 'attention', 'k', k, B, S, columns);
  checkShape(g, 'attention', 'v', v, B, S, columns);
  checkShape(g, 'attention', 'length', length, B);
  checkDType(g, 'attention', 'length', length, 'i32');
  if (S < T) throw new ShapeError(expected('attention', 'k', `have at least the ${T} steps of q`, shapeText(k.shape)));
  const y = g.like(q);
  if (length) {
    g.op('attention', { y }, { q, k, v, length }, { heads });
    return y;
  }
  const lse = g.value([B, T, heads], accumulatorDType(q.dtype));
  g.op('attention', { y, lse }, { q, k, v }, { heads }, (d, into) => {
    const [dq, dk, dv] = [into('q') ?? g.like(q), into('k') ?? g.like(k), into('v') ?? g.like(v)];
    g.op('attention_grad', { dq, dk, dv }, { dy: d.y, q, k, v, y, lse }, { heads });
  });
  return y;
}

/**
 * Writes the rows of x behind what a cache holds: cache[b, length[b] + t] = x[b, t]. `checkCapacity` must pass before
 * each run: rows that do not fit are not written, and attention over such a sequence is NaN.
 * @param cache (B, capacity, D), with storage of its own; recorded before the ops that read the new rows
 * @param x (B, T, D)
 * @param length (B) i32: steps that each sequence of the cache holds
 */
export function cacheWrite(g: Graph, cache: Tensor, x: Tensor, length: Tensor): void {
  const [B = 0, capacity = 0, D = 0] = sizes(g, 'cache_write', 'cache', cache, 'B S D');
  const [, T = 0] = sizes(g, 'cache_write', 'x', x, 'B T D');
  checkShape(g, 'cache_write', 'x', x, B, T, D);
  checkShape(g, 'cache_write', 'length', length, B);
  checkDType(g, 'cache_write', 'length', length, 'i32');
  if (T > capacity) {
    throw new ShapeError(expected('cache_write', 'x', `have at most the ${capacity} steps of the cache`, String(T)));
  }
  g.op('cache_write', { cache }, { x, length });
}

/** Adds `steps` to length (B) i32, in place: the last op of a plan that goes on from a cache. */
export function advance(g: Graph, length: Tensor, steps: number): void {
  checkDType(g, 'advance', 'length', length, 'i32');
  g.op('advance', { length_out: length }, { length }, { steps });
}

/**
 * Whoever knows the lengths of a cache calls this before a run that writes `steps` more to every sequence, since the plan
 * itself reads them on the device.
 * @param lengths steps that each sequence holds
 * @throws RangeError when they would not fit
 */
export function checkCapacity(where: string, lengths: Iterable<number>, steps: number, capacity: number): void {
  const longest = Math.max(0, ...lengths);
  if (longest + steps <= capacity) return;
  throw new RangeError(expected(where, 'the sequence', `fit a cache of ${capacity} steps`, `${longest} + ${steps}`));
}
