import { expected, ShapeError } from '../errors.ts';
import type { Graph } from '../graph.ts';
import type { DType, Tensor } from '../tensor.ts';

/** "(2, 5, 64)" */
export function shapeText(shape: readonly number[]): string {
  return `(${shape.join(', ')})`;
}

/**
 * Checks an operand's shape where it is recorded, so that the mistake is reported at the line that made it.
 * @throws ShapeError
 */
export function checkShape(g: Graph, op: string, name: string, t: Tensor | undefined, ...shape: number[]): void {
  if (!t || (t.shape.length === shape.length && t.shape.every((n, i) => n === shape[i]))) return;
  const where = g.scopeName ? `${op} (${g.scopeName})` : op;
  throw new ShapeError(expected(where, name, `have shape ${shapeText(shape)}`, shapeText(t.shape)));
}

/** @throws TypeError when a tensor's dtype is none of `allowed`. */
export function checkDType(g: Graph, op: string, name: string, t: Tensor | undefined, ...allowed: DType[]): void {
  if (!t || allowed.includes(t.dtype)) return;
  const where = g.scopeName ? `${op} (${g.scopeName})` : op;
  throw new TypeError(expected(where, name, `be ${allowed.join(' or ')}`, t.dtype));
}

/** The sizes of a tensor of the given rank. @throws ShapeError */
export function sizes(g: Graph, op: string, name: string, t: Tensor, axes: string): number[] {
  const rank = axes.split(' ').length;
  if (t.shape.length !== rank) {
    const where = g.scopeName ? `${op} (${g.scopeName})` : op;
    throw new ShapeError(expected(where, name, `have ${rank} axes (${axes})`, shapeText(t.shape)));
  }
  return [...t.shape];
}

/** The width of each of `heads` equal heads in the columns of a tensor. @throws RangeError when they do not divide */
export function checkHeads(g: Graph, op: string, name: string, t: Tensor, heads: number): number {
  const width = t.cols / heads;
  if (heads > 0 && Number.isInteger(heads) && Number.isInteger(width)) return width;
  const where = g.scopeName ? `${op} (${g.scopeName})` : op;
  throw new RangeError(expected(where, 'heads', `divide the ${t.cols} columns of ${name}`, String(heads)));
}
