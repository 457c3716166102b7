import { blank, type CaseParts, cases, given, type OpCase, pairs, size } from '../../support/cases.ts';

const rows = pairs({
  R: [1, 2, 7, 65],
  D: [1, 2, 7, 15, 16, 17, 63, 64, 65, 257],
  bias: [true, false],
  saved: [true, false],
  far: [false, true],
  pad: [0, 3],
});
const gradRows = pairs({
  R: [1, 2, 7, 65, 257],
  D: [2, 7, 15, 16, 17, 64, 65, 257],
  bias: [true, false],
  accumulate: [false, true],
  add: [false, true],
  pad: [0, 3],
  padOut: [0, 1],
});

/** `far`: a mean of 5 standard deviations, which a one-pass variance would lose. */
const forward = (op: string, layer: boolean) =>
  cases(op, rows, ({ R, D, bias, saved, far, pad }, random): CaseParts => {
    const x = random.normal(size(R, D)).map((v) => (far ? v + 5 : v));
    return {
      outs: {
        y: blank([R, D], pad),
        ...(layer ? { mean: saved ? blank([R]) : undefined } : {}),
        rstd: saved ? blank([R]) : undefined,
      },
      ins: {
        x: given('f32', [R, D], x, pad),
        weight: given('f32', [D], random.normal(D)),
        ...(layer ? { bias: bias ? given('f32', [D], random.normal(D)) : undefined } : {}),
      },
      attrs: { eps: 1e-5 },
      close: far ? 'long' : 'f32',
    };
  });

const backward = (op: string, layer: boolean) =>
  cases(op, gradRows, ({ R, D, bias, accumulate, add, pad, padOut }, random): CaseParts => {
    const vector = () => (accumulate ? given('f32', [D], random.normal(D)) : blank([D]));
    return {
      outs: { dx: blank([R, D], padOut), dweight: vector(), ...(layer && bias ? { dbias: vector() } : {}) },
      ins: {
        dy: given('f32', [R, D], random.normal(size(R, D)), pad),
        x: given('f32', [R, D], random.normal(size(R, D)), padOut),
        weight: given('f32', [D], random.normal(D)),
        ...(layer ? { mean: given('f32', [R], random.normal(R, 0.3)) } : {}),
        rstd: given('f32', [R], random.uniform(R, 0.5, 2)),
        add: add ? given('f32', [R, D], random.normal(size(R, D)), pad) : undefined,
      },
      attrs: { accumulate: Number(accumulate) },
      close: 'f32',
    };
  });

export const norm: OpCase[] = [
  ...forward('rms_norm', false),
  ...backward('rms_norm_grad', false),
  ...forward('layer_norm', true),
  ...backward('layer_norm_grad', true),
];
