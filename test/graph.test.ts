// Graphs: wrong shapes are refused at the line that made them, with the scope and both shapes.
import test from 'ava';
import { ShapeError } from '../lib/errors.ts';
import { Graph, opTable } from '../lib/graph.ts';
import { causalConv1d } from '../lib/ops/causal-conv.ts';
import { crossEntropy } from '../lib/ops/cross-entropy.ts';
import { add } from '../lib/ops/elementwise.ts';
import { embedding } from '../lib/ops/embedding.ts';
import { linear } from '../lib/ops/linear.ts';
import { layerNorm, rmsNorm } from '../lib/ops/norm.ts';
import { selectiveScan } from '../lib/ops/selective-scan.ts';
import { concat, split } from '../lib/ops/shape.ts';
import { Tensor } from '../lib/tensor.ts';

const f32 = (...shape: number[]) => new Tensor(shape, 'f32', 't');
const i32 = (...shape: number[]) => new Tensor(shape, 'i32', 'ids');

const wrong: [title: string, build: (g: Graph) => unknown, message: RegExp][] = [
  [
    'linear',
    (g) => linear(g, f32(2, 5), f32(3, 4)),
    /^linear \(layers\.3\): expected weight to have shape \(3, 5\), got \(3, 4\)\.$/,
  ],
  [
    'linear bias',
    (g) => linear(g, f32(2, 4), f32(3, 4), { bias: f32(4) }),
    /expected bias to have shape \(3\), got \(4\)/,
  ],
  [
    'linear weight of rank 3',
    (g) => linear(g, f32(2, 4), f32(1, 3, 4)),
    /expected weight to have 2 axes \(M K\), got \(1, 3, 4\)/,
  ],
  [
    'add',
    (g) => add(g, f32(2, 3), f32(3, 2)),
    /^add \(layers\.3\): expected b to have shape \(2, 3\), got \(3, 2\)\.$/,
  ],
  ['rmsNorm', (g) => rmsNorm(g, f32(2, 3), f32(2)), /expected weight to have shape \(3\), got \(2\)/],
  ['layerNorm', (g) => layerNorm(g, f32(2, 3), f32(3), f32(1)), /expected bias to have shape \(3\), got \(1\)/],
  [
    'causalConv1d',
    (g) => causalConv1d(g, f32(2, 5, 3), f32(4, 4)),
    /expected weight to have shape \(3, 4\), got \(4, 4\)/,
  ],
  [
    'causalConv1d state',
    (g) => causalConv1d(g, f32(2, 5, 3), f32(3, 4), { state: f32(2, 4, 3) }),
    /expected state to have shape \(2, 3, 3\), got \(2, 4, 3\)/,
  ],
  [
    'selectiveScan',
    (g) =>
      selectiveScan(g, { u: f32(2, 5, 64), delta: f32(2, 5, 32), A: f32(64, 16), B: f32(2, 5, 16), C: f32(2, 5, 16) }),
    /^selective_scan \(layers\.3\): expected delta to have shape \(2, 5, 64\), got \(2, 5, 32\)\.$/,
  ],
  ['crossEntropy', (g) => crossEntropy(g, f32(4, 9), i32(3)), /expected targets to have shape \(4\), got \(3\)/],
];
for (const [title, build, message] of wrong) {
  test(`a wrong shape names the scope and both shapes · ${title}`, (t) => {
    const g = new Graph();
    const error = t.throws(() => g.scope('layers.3', () => build(g)), { instanceOf: ShapeError });
    t.regex(error?.message ?? '', message);
    t.is(g.nodes.length, 0, 'nothing was recorded');
    t.is(g.scopeName, '', 'the scope was left');
  });
}

test('wrong dtypes are TypeErrors', (t) => {
  const g = new Graph();
  t.throws(() => embedding(g, f32(2, 3), f32(5, 4)), {
    instanceOf: TypeError,
    message: /expected ids to be u8 or i32, got f32/,
  });
  t.throws(() => linear(g, f32(2, 3), new Tensor([4, 3], 'i8', 'w')), { instanceOf: TypeError, message: /scale/ });
  t.throws(() => crossEntropy(g, f32(2, 3), f32(2)), { instanceOf: TypeError, message: /u8 or i32/ });
  t.throws(() => split(f32(2, 6), 2, 3), { instanceOf: TypeError, message: /add up to 6, got 2 \+ 3/ });
  t.throws(() => concat(g, []), { instanceOf: TypeError, message: /at least one/ });
  const lengths = f32(2);
  t.throws(() => causalConv1d(g, f32(2, 5, 3), f32(3, 4), { lengths }), {
    message: /expected lengths to be i32, got f32/,
  });
});

test('unknown ops, operands and attributes are errors that name them', (t) => {
  const g = new Graph();
  t.throws(() => g.op('sliu', {}, {}), { message: /no op "sliu"/ });
  t.throws(() => g.op('silu', { y: f32(1) }, { z: f32(1) }), { message: /silu: no operand "z"/ });
  t.throws(() => g.op('silu', { y: f32(1) }, { x: f32(1) }, { factor: 1 }), { message: /silu: no attribute "factor"/ });
});

test('the op table is the one of native/ops.def', (t) => {
  const table = opTable();
  t.deepEqual(table.get('linear')?.ins, ['x', 'weight', 'bias', 'scale', 'add']);
  t.deepEqual(table.get('layer_norm')?.outs, ['y', 'mean', 'rstd']);
  t.deepEqual(table.get('silu')?.attrs, []);
  t.is(new Set([...table.values()].map((op) => op.index)).size, table.size);
});

test('views share memory and know their strides', (t) => {
  const x = new Tensor([2, 3, 8], 'f32', 'x', { storage: { buffer: 1, offset: 0 } });
  const right = x.columns(5, 3);
  t.deepEqual([right.shape, right.rowStride, right.baseOffset, right.contiguous], [[2, 3, 3], 8, 5, false]);
  t.is(right.bytes, (5 * 8 + 3) * 4);
  t.is(right.columns(1, 1).baseOffset, 6);
  t.is(right.base, x);
  t.deepEqual([x.slice(1).shape, x.slice(1).baseOffset], [[1, 3, 8], 24]);
  const step = x.step(2);
  t.deepEqual([step.shape, step.rowStride, step.baseOffset], [[2, 8], 24, 16]);
  t.deepEqual(x.reshape(6, 8).shape, [6, 8]);
  t.deepEqual(right.reshape(6, 3).rowStride, 8);
  t.throws(() => right.reshape(18), { instanceOf: TypeError, message: /contiguous/ });
  t.throws(() => x.reshape(7, 7), { instanceOf: TypeError, message: /48 elements/ });
});
