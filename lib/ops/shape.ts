import type { Graph } from '../graph.ts';
import type { DType, Tensor } from '../tensor.ts';

/** Splits the last axis into parts of the given sizes. The parts share memory with `x`; nothing is copied. */
export function split(x: Tensor, ...sizes: number[]): Tensor[] {
  const total = sizes.reduce((a, b) => a + b, 0);
  if (total !== x.cols) throw new TypeError(`split: expected sizes to add up to ${x.cols}, got ${sizes.join(' + ')}.`);
  let start = 0;
  return sizes.map((size) => {
    const part = x.columns(start, size);
    start += size;
    return part;
  });
}

/** A contiguous copy of `x` as `dtype` (f32, f64, bf16 or f16, rounded to nearest even; a GPU makes no f16). */
export function cast(g: Graph, x: Tensor, dtype: DType): Tensor {
  const y = g.value(x.shape, dtype);
  g.op('copy', { y }, { x }, {}, (d, into) => {
    const dx = into('x');
    if (dx) g.op('copy', { y: dx }, { x: d.y });
  });
  return y;
}

/** Joins tensors of equal row counts along the last axis. Tensors of one row are joined row behind row. */
export function concat(g: Graph, parts: readonly Tensor[]): Tensor {
  const [first] = parts;
  if (!first) throw new TypeError('concat: expected at least one part, got none.');
  const y = g.value([...first.shape.slice(0, -1), parts.reduce((sum, p) => sum + p.cols, 0)], first.dtype);
  g.op('concat', { y }, { parts_: parts }, {}, (d, into) => {
    let at = 0;
    for (const [i, { cols }] of parts.entries()) {
      const dx = into(`parts_${i}`);
      if (dx) g.op('copy', { y: dx }, { x: d.y?.columns(at, cols) });
      at += cols;
    }
  });
  return y;
}
