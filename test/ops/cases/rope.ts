import { blank, cases, given, type OpCase, pairs, size } from '../../support/cases.ts';

const rows = pairs({
  B: [1, 3],
  T: [1, 2, 7, 63, 64, 65, 257],
  heads: [1, 2, 5],
  P: [2, 8, 14, 16, 32, 34, 64, 66],
  position: ['none', 'near', 'far'],
  first: [0, 300, -5],
  inverse: [false, true],
  pad: [0, 3],
  padOut: [0, 1],
});

export const rope: OpCase[] = cases(
  'rope',
  [...rows, { B: 1, T: 2049, heads: 2, P: 64, position: 'far', first: 7, inverse: false, pad: 0, padOut: 0 }],
  ({ B, T, heads, P, position, first, inverse, pad, padOut }, random) => ({
    outs: { y: blank([B, T, heads * P], padOut) },
    ins: {
      x: given('f32', [B, T, heads * P], random.normal(size(B, T, heads, P)), pad),
      position:
        position === 'none' ? undefined : given('i32', [B], random.integers(B, 0, position === 'far' ? 2 ** 20 : 100)),
    },
    attrs: { heads, base: P === 64 ? 500000 : 10000, first, inverse: Number(inverse) },
    close: 'f32',
  }),
);
