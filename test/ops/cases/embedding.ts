import { blank, cases, given, type OpCase, pairs, size } from '../../support/cases.ts';

const rows = pairs({
  R: [1, 2, 7, 65, 257],
  V: [1, 11, 256],
  D: [1, 7, 15, 16, 17, 64, 65, 257],
  ids: ['u8', 'i32'],
  table: ['f32', 'bf16'],
  pad: [0, 3],
});

export const embedding: OpCase[] = [
  ...cases('embedding', rows, ({ R, V, D, ids, table, pad }, random) => ({
    outs: { y: blank([R, D], pad) },
    ins: {
      table: given(table, [V, D], random.normal(size(V, D))),
      ids: given(ids, [R], random.integers(R, 0, V)),
    },
    close: 'exact',
  })),
  ...cases(
    'embedding_grad',
    pairs({
      R: [1, 2, 65, 257],
      V: [1, 11, 256],
      D: [1, 7, 16, 17, 65, 257],
      ids: ['u8', 'i32'],
      pad: [0, 3],
      accumulate: [false, true],
    }),
    ({ R, V, D, ids, pad, accumulate }, random) => ({
      outs: { dtable: accumulate ? given('f32', [V, D], random.normal(size(V, D))) : blank([V, D]) },
      ins: { dy: given('f32', [R, D], random.normal(size(R, D)), pad), ids: given(ids, [R], random.integers(R, 0, V)) },
      attrs: { accumulate: Number(accumulate) },
      close: 'f32',
    }),
  ),
];
