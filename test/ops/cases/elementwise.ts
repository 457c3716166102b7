import { blank, type CaseParts, cases, given, type OpCase, pairs, size } from '../../support/cases.ts';
import type { Random } from '../../support/random.ts';

const rows = pairs({
  R: [1, 2, 7, 65],
  D: [1, 2, 7, 15, 16, 17, 63, 64, 65, 257, 1030],
  pad: [0, 3],
  padOut: [0, 5],
});
type Row = (typeof rows)[number];

/** Values where the functions bend: both sides of softplus's border at 20, and of the range of exp. */
const BENDS = [0, -0, 1e-40, 1e-20, 19.99999, 20, 20.00001, -20, 87.3, -87.3, 88.8, -88.8, 104, -104, 1e4, -1e4];

function curve(random: Random, n: number): Float64Array {
  const x = random.uniform(n, -25, 25);
  for (let i = 0; i < n; i += 3) x[i] = BENDS[(i / 3) % BENDS.length] ?? 0;
  return x;
}

/** y = f(x) */
const unary = (op: string, attrs: Record<string, number>, values: (random: Random, n: number) => Float64Array) =>
  cases(op, rows, ({ R, D, pad, padOut }: Row, random): CaseParts => {
    const n = size(R, D);
    return {
      outs: { y: blank([R, D], padOut) },
      ins: { x: given('f32', [R, D], values(random, n), pad) },
      attrs,
      close: 'f32',
    };
  });

/** y = f(a, b); `same` writes over a. */
const binary = (op: string, close: 'exact' | 'f32', first: string, second: string, out: string, bent: boolean) =>
  cases(
    op,
    [...rows.map((row) => ({ ...row, same: false })), { R: 3, D: 65, pad: 1, padOut: 0, same: true }],
    (row, random) => {
      const { R, D, pad, padOut, same } = row;
      const n = size(R, D);
      const b = bent ? curve(random, n) : random.normal(n);
      const y = { ...blank([R, D], padOut), ...(same ? { same: first } : {}) };
      return {
        outs: { [out]: y },
        ins: { [first]: given('f32', [R, D], random.normal(n), pad), [second]: given('f32', [R, D], b, padOut) },
        close,
      };
    },
  );

const swiglu = [
  ...cases('swiglu', rows, ({ R, D, pad, padOut }, random) => ({
    outs: { y: blank([R, D], padOut) },
    ins: {
      gate: given('f32', [R, D], curve(random, size(R, D)), pad),
      up: given('f32', [R, D], random.normal(size(R, D)), padOut),
    },
    close: 'f32',
  })),
  ...cases('swiglu_grad', rows, ({ R, D, pad, padOut }, random) => ({
    outs: { dgate: blank([R, D], padOut), dup: blank([R, D], pad) },
    ins: {
      dy: given('f32', [R, D], random.normal(size(R, D)), pad),
      gate: given('f32', [R, D], curve(random, size(R, D)), padOut),
      up: given('f32', [R, D], random.normal(size(R, D)), pad + 1),
    },
    close: 'f32',
  })),
];

const tame = (random: Random, n: number) => random.uniform(n, -30, 30);

export const elementwise: OpCase[] = [
  ...binary('add', 'exact', 'a', 'b', 'y', false),
  ...binary('mul', 'exact', 'a', 'b', 'y', false),
  ...unary('scale', { factor: -1.7 }, (random, n) => random.normal(n)),
  ...unary('silu', {}, curve),
  ...binary('silu_grad', 'f32', 'dy', 'x', 'dx', true),
  ...swiglu,
  ...unary('softplus', {}, curve),
  ...binary('softplus_grad', 'f32', 'dy', 'x', 'dx', true),
  ...unary('neg_exp', {}, tame),
];
