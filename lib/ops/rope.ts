import { expected, ShapeError } from '../errors.ts';
import type { Graph } from '../graph.ts';
import type { Tensor } from '../tensor.ts';
import type { AttentionInputs } from './attention.ts';
import { checkDType, checkHeads, checkShape, shapeText, sizes } from './check.ts';

export interface RopeOptions {
  heads: number;
  /** The position of step 0; default 0. */
  first?: number | undefined;
  /** The wave length of pair i is 2π base^(2i/P). */
  base?: number;
}

/** Where steps that go on from a cache are written, and how they are turned. */
export interface RopeCacheOptions extends RopeOptions {
  /** (B, capacity, keyHeads * P), with storage of its own. */
  keys: Tensor;
  /** As `keys`. */
  values: Tensor;
  /** (B) i32: steps that each sequence of the cache holds. */
  length: Tensor;
  /** (B) i32: `first` is added to this; default `length`. */
  position?: Tensor | undefined;
}

/** The width of a head, which must be even. */
function headWidth(g: Graph, op: string, name: string, x: Tensor, { heads, base = 10000 }: RopeOptions): number {
  const width = checkHeads(g, op, name, x, heads);
  if (width % 2 !== 0) {
    throw new RangeError(expected(op, 'heads', `split ${x.cols} columns into heads of even width`, String(heads)));
  }
  if (!(base > 0)) throw new RangeError(expected(op, 'base', 'be positive', String(base)));
  return width;
}

/**
 * Rotary positions (Su et al. 2021): turns each pair of dimensions (i, i + P/2) of every head by its position times
 * base^(-2i/P), so that a product of a query and a key depends on their distance alone.
 * @param x (B, T, heads * P), P even
 * @returns (B, T, heads * P)
 */
export function rope(g: Graph, x: Tensor, options: RopeOptions): Tensor {
  const { heads, first = 0, base = 10000 } = options;
  sizes(g, 'rope', 'x', x, 'B T D');
  headWidth(g, 'rope', 'x', x, options);
  const y = g.like(x);
  g.op('rope', { y }, { x }, { heads, base, first, inverse: 0 }, (d, into) => {
    const dx = into('x');
    if (dx) g.op('rope', { y: dx }, { x: d.y }, { heads, base, first, inverse: 1 });
  });
  return y;
}

/**
 * The same of steps that go on from a cache, in one op: the keys are written behind what the cache holds as they turn, the
 * values as they are. `checkCapacity` must pass before each run: steps that do not fit are not written, and attention over
 * such a sequence is NaN. Up to 32 steps have the bits of each alone. Recorded before the ops that read the cache.
 * @returns (B, T, heads * P), the queries
 */
export function ropeCacheWrite(g: Graph, { q, k, v }: AttentionInputs, options: RopeCacheOptions): Tensor {
  const op = 'rope_cache_write';
  const { heads, keys, values, length, position, first = 0, base = 10000 } = options;
  const [B = 0, T = 0] = sizes(g, op, 'q', q, 'B T D');
  const [, capacity = 0, columns = 0] = sizes(g, op, 'keys', keys, 'B S C');
  const width = headWidth(g, op, 'q', q, options);
  if (columns % width !== 0) {
    throw new ShapeError(expected(op, 'keys', `have whole heads of ${width} columns`, shapeText(keys.shape)));
  }
  checkShape(g, op, 'k', k, B, T, columns);
  checkShape(g, op, 'v', v, B, T, columns);
  checkShape(g, op, 'keys', keys, B, capacity, columns);
  checkShape(g, op, 'values', values, B, capacity, columns);
  for (const [name, t] of Object.entries({ length, position })) {
    checkShape(g, op, name, t, B);
    checkDType(g, op, name, t, 'i32');
  }
  if (T > capacity) {
    throw new ShapeError(expected(op, 'q', `have at most the ${capacity} steps of the cache`, String(T)));
  }
  const y = g.like(q);
  g.op(op, { y, keys, values }, { q, k, v, length, position }, { heads, base, first });
  return y;
}
