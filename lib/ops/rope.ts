import { expected } from '../errors.ts';
import type { Graph } from '../graph.ts';
import type { Tensor } from '../tensor.ts';
import { checkDType, checkHeads, checkShape, sizes } from './check.ts';

export interface RopeOptions {
  heads: number;
  /** (B) i32: the position of step 0 of each sequence; 0 when left out. */
  position?: Tensor | undefined;
  /** Added to all positions; default 0. */
  first?: number | undefined;
  /** The wave length of pair i is 2π base^(2i/P). */
  base?: number;
}

/**
 * Rotary positions (Su et al. 2021): turns each pair of dimensions (i, i + P/2) of every head by its position times
 * base^(-2i/P), so that a product of a query and a key depends on their distance alone.
 * @param x (B, T, heads * P), P even
 * @returns (B, T, heads * P)
 */
export function rope(g: Graph, x: Tensor, options: RopeOptions): Tensor {
  const { heads, position, first = 0, base = 10000 } = options;
  const [B = 0] = sizes(g, 'rope', 'x', x, 'B T D');
  if (checkHeads(g, 'rope', 'x', x, heads) % 2 !== 0) {
    throw new RangeError(expected('rope', 'heads', `split ${x.cols} columns into heads of even width`, String(heads)));
  }
  if (!(base > 0)) throw new RangeError(expected('rope', 'base', 'be positive', String(base)));
  checkShape(g, 'rope', 'position', position, B);
  checkDType(g, 'rope', 'position', position, 'i32');
  const y = g.like(x);
  g.op('rope', { y }, { x, position }, { heads, base, first, inverse: 0 }, (d, into) => {
    const dx = into('x');
    if (dx) g.op('rope', { y: dx }, { x: d.y, position }, { heads, base, first, inverse: 1 });
  });
  return y;
}
