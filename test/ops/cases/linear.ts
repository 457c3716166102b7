import { f16ToF32 } from '../../../lib/weights/dtypes.ts';
import { blank, cases, given, type OpCase, pairs, size } from '../../support/cases.ts';
import type { ToleranceName } from '../../support/close.ts';
import type { Operand } from '../../support/poison.ts';
import type { Random } from '../../support/random.ts';

export type WeightDType = 'f32' | 'bf16' | 'i8';

/** A weight matrix (M, K) about 1 / sqrt(K) in size, and the scale of its rows when it is int8. */
export function weightMatrix(
  random: Random,
  dtype: WeightDType,
  M: number,
  K: number,
): { weight: Operand; scale?: Operand } {
  if (dtype === 'i8') {
    return {
      weight: given('i8', [M, K], random.integers(size(M, K), -127, 128)),
      scale: given(
        'f32',
        [M],
        random.uniform(M, 0.5, 1.5).map((v) => v / (64 * Math.sqrt(K))),
      ),
    };
  }
  return { weight: given(dtype, [M, K], random.normal(size(M, K), 1 / Math.sqrt(K))) };
}

/**
 * AVX-512 multiplies bf16 weights with activations rounded to bf16, and int8 weights with 16-bit integer ones; tensor cores
 * round activations to bf16 for either; elsewhere the products are f32.
 */
export function closeTo(dtype: WeightDType, plain: ToleranceName = 'f32'): (target: string) => ToleranceName {
  return (target) => {
    if (dtype === 'f32') return plain;
    if (target === 'cuda') return 'bf16';
    return target === 'avx512' || target === 'amx' ? dtype : plain;
  };
}

const rows = pairs({
  R: [1, 2, 3, 7, 16, 17, 33, 65],
  K: [1, 2, 7, 15, 16, 17, 63, 64, 65, 257],
  M: [1, 7, 16, 17, 64, 65],
  weight: ['f32', 'bf16', 'i8'],
  bias: [false, true],
  add: [false, true],
  pad: [0, 3],
  padOut: [0, 1],
});
const large = [
  { R: 1, K: 2049, M: 129, weight: 'bf16', bias: false, add: true, pad: 0, padOut: 0 },
  { R: 130, K: 600, M: 80, weight: 'f32', bias: true, add: false, pad: 1, padOut: 1 },
  { R: 130, K: 600, M: 80, weight: 'bf16', bias: true, add: true, pad: 0, padOut: 0 },
  { R: 130, K: 600, M: 80, weight: 'i8', bias: false, add: false, pad: 1, padOut: 0 },
  { R: 1, K: 8, M: 33, weight: 'bf16', bias: false, add: false, pad: 0, padOut: 0 },
  { R: 2, K: 16, M: 40, weight: 'bf16', bias: true, add: false, pad: 1, padOut: 0 },
  { R: 1, K: 40, M: 72, weight: 'bf16', bias: false, add: false, pad: 0, padOut: 0 },
  { R: 8, K: 40, M: 80, weight: 'bf16', bias: false, add: true, pad: 3, padOut: 1 },
  { R: 13, K: 56, M: 33, weight: 'bf16', bias: true, add: false, pad: 0, padOut: 0 },
  { R: 5, K: 24, M: 16, weight: 'bf16', bias: false, add: false, pad: 1, padOut: 0 },
  { R: 1, K: 16, M: 72, weight: 'i8', bias: false, add: true, pad: 0, padOut: 1 },
  { R: 2, K: 32, M: 40, weight: 'i8', bias: true, add: false, pad: 0, padOut: 0 },
  // rows of bytes as lanes: every number of rows, columns that fill no group
  { R: 4, K: 192, M: 48, weight: 'i8', bias: false, add: true, pad: 0, padOut: 0 },
  { R: 5, K: 129, M: 33, weight: 'i8', bias: false, add: false, pad: 1, padOut: 0 },
  { R: 6, K: 80, M: 17, weight: 'i8', bias: true, add: false, pad: 0, padOut: 1 },
  { R: 12, K: 640, M: 40, weight: 'i8', bias: false, add: true, pad: 0, padOut: 0 },
  // projections of a small model over a chunk of text
  { R: 200, K: 64, M: 256, weight: 'bf16', bias: false, add: false, pad: 0, padOut: 0 },
  { R: 200, K: 128, M: 36, weight: 'bf16', bias: false, add: false, pad: 128, padOut: 0 },
  { R: 200, K: 4, M: 128, weight: 'f32', bias: false, add: false, pad: 32, padOut: 0 },
  { R: 200, K: 4, M: 128, weight: 'bf16', bias: false, add: false, pad: 32, padOut: 0 },
  { R: 8, K: 2049, M: 33, weight: 'i8', bias: false, add: false, pad: 0, padOut: 0 },
  // blocks of rows, the last of fewer than a tile takes; weights in two parts
  { R: 67, K: 4100, M: 150, weight: 'i8', bias: true, add: true, pad: 3, padOut: 1 },
] as const;

const gradRows = pairs({
  R: [1, 2, 15, 17, 65, 257],
  K: [1, 7, 16, 17, 64, 65],
  M: [1, 7, 16, 33, 65],
  pad: [0, 3],
  padOut: [0, 1],
});

const long = [{ R: 600, K: 48, M: 80, pad: 1, padOut: 0 }];

export const linear: OpCase[] = [
  ...cases('linear', [...rows, ...large], ({ R, K, M, weight, bias, add, pad, padOut }, random) => ({
    outs: { y: blank([R, M], padOut) },
    ins: {
      x: given('f32', [R, K], random.normal(size(R, K)), pad),
      ...weightMatrix(random, weight, M, K),
      bias: bias ? given('f32', [M], random.normal(M)) : undefined,
      add: add ? given('f32', [R, M], random.normal(size(R, M)), pad) : undefined,
    },
    close: closeTo(weight),
  })),
  ...cases(
    'linear_grad_input',
    [...gradRows, ...long].map((row, i) => ({ ...row, add: i % 3 === 1 })),
    ({ R, K, M, pad, padOut, add }, random) => ({
      outs: { dx: blank([R, K], padOut) },
      ins: {
        dy: given('f32', [R, M], random.normal(size(R, M)), pad),
        weight: given('f32', [M, K], random.normal(size(M, K))),
        add: add ? given('f32', [R, K], random.normal(size(R, K)), pad) : undefined,
      },
      close: 'f32',
    }),
  ),
  ...cases(
    'linear_grad_weight',
    [...gradRows, ...long].map((row, i) => ({ ...row, accumulate: i % 2 === 1 })),
    ({ R, K, M, pad, padOut, accumulate }, random) => ({
      outs: { dweight: accumulate ? given('f32', [M, K], random.normal(size(M, K))) : blank([M, K]) },
      ins: {
        dy: given('f32', [R, M], random.normal(size(R, M)), padOut),
        x: given('f32', [R, K], random.normal(size(R, K)), pad),
      },
      attrs: { accumulate: Number(accumulate) },
      close: 'f32',
    }),
  ),
  ...cases(
    'column_sum',
    pairs({ R: [1, 2, 7, 65, 257, 1025], M: [1, 2, 7, 15, 16, 17, 65, 257], pad: [0, 3], accumulate: [false, true] }),
    ({ R, M, pad, accumulate }, random) => ({
      outs: { y: accumulate ? given('f32', [M], random.normal(M)) : blank([M]) },
      ins: { x: given('f32', [R, M], random.normal(size(R, M)), pad) },
      attrs: { accumulate: Number(accumulate) },
      close: 'f32',
    }),
  ),
  ...cases(
    'quantize_rows',
    pairs({
      M: [1, 3, 17, 65],
      K: [1, 2, 7, 15, 16, 17, 63, 64, 65, 257],
      from: ['f32', 'bf16', 'f16', 'f64'],
      zeros: [false, true],
    }),
    ({ M, K, from, zeros }, random) => {
      const bits = random.integers(size(M, K), 0, 0x6000).map((v, i) => (i % 2 ? v | 0x8000 : v));
      const values = from === 'f16' ? bits.map(f16ToF32) : random.normal(size(M, K));
      if (zeros) values.fill(0, 0, K);
      return {
        outs: { q: blank([M, K], 0, 'i8'), scale: blank([M]) },
        ins: { x: given(from, [M, K], values) },
        close: 'exact',
      };
    },
  ),
];
