import type { Graph } from '../graph.ts';
import type { Tensor } from '../tensor.ts';
import { checkShape } from './check.ts';

/** y = a + b, equal shapes. */
export function add(g: Graph, a: Tensor, b: Tensor): Tensor {
  checkShape(g, 'add', 'b', b, ...a.shape);
  const y = g.like(a);
  g.op('add', { y }, { a, b }, {}, (d, into) => {
    if (!d.y) return;
    into.same('a', d.y);
    into.same('b', d.y);
  });
  return y;
}

/** y = a * b, elementwise over equal shapes. */
export function mul(g: Graph, a: Tensor, b: Tensor): Tensor {
  checkShape(g, 'mul', 'b', b, ...a.shape);
  const y = g.like(a);
  g.op('mul', { y }, { a, b }, {}, (d, into) => {
    const da = into('a');
    if (da) g.op('mul', { y: da }, { a: d.y, b });
    const db = into('b');
    if (db) g.op('mul', { y: db }, { a: d.y, b: a });
  });
  return y;
}

/** y = factor * x. */
export function scale(g: Graph, x: Tensor, factor: number): Tensor {
  const y = g.like(x);
  g.op('scale', { y }, { x }, { factor }, (d, into) => {
    const dx = into('x');
    if (dx) g.op('scale', { y: dx }, { x: d.y }, { factor });
  });
  return y;
}

/** y = x / (1 + exp(-x)). */
export function silu(g: Graph, x: Tensor): Tensor {
  const y = g.like(x);
  g.op('silu', { y }, { x }, {}, (d, into) => {
    const dx = into('x');
    if (dx) g.op('silu_grad', { dx }, { dy: d.y, x });
  });
  return y;
}

/** y = silu(gate) * up, elementwise over equal shapes (SwiGLU, Shazeer 2020). The gradient computes silu(gate) again. */
export function swiglu(g: Graph, gate: Tensor, up: Tensor): Tensor {
  checkShape(g, 'swiglu', 'up', up, ...gate.shape);
  const y = g.like(gate);
  g.op('swiglu', { y }, { gate, up }, {}, (d, into) => {
    const [dgate, dup] = [into('gate') ?? g.like(gate), into('up') ?? g.like(up)];
    g.op('swiglu_grad', { dgate, dup }, { dy: d.y, gate, up });
  });
  return y;
}

/** y = log(1 + exp(x)), the identity above 20 as in PyTorch. */
export function softplus(g: Graph, x: Tensor): Tensor {
  const y = g.like(x);
  g.op('softplus', { y }, { x }, {}, (d, into) => {
    const dx = into('x');
    if (dx) g.op('softplus_grad', { dx }, { dy: d.y, x });
  });
  return y;
}

/** y = -exp(x): A from A_log. */
export function negExp(g: Graph, x: Tensor): Tensor {
  const y = g.like(x);
  g.op('neg_exp', { y }, { x }, {}, (d, into) => {
    const dx = into('x');
    if (dx) g.op('mul', { y: dx }, { a: d.y, b: y });
  });
  return y;
}
