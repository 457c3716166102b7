import { blank, cases, given, type OpCase, pairs, size } from '../../support/cases.ts';

const rows = pairs({
  R: [1, 2, 7, 65],
  V: [2, 5, 15, 16, 17, 256, 257],
  targets: ['u8', 'i32'],
  ignore: [-1, 1],
  pad: [0, 3],
  size: [1, 30],
});

export const crossEntropy: OpCase[] = [
  ...cases('cross_entropy', rows, ({ R, V, targets, ignore, pad, size: spread }, random) => ({
    outs: { loss: blank([1]), nll: blank([R]), lse: blank([R]) },
    ins: {
      logits: given('f32', [R, V], random.normal(size(R, V), spread), pad),
      targets: given(targets, [R], random.integers(R, 0, Math.min(V, 256))),
    },
    attrs: { ignore },
    close: 'f32',
  })),
  ...cases('cross_entropy_grad', rows, ({ R, V, targets, ignore, pad, size: spread }, random) => {
    const logits = random.normal(size(R, V), spread);
    // The first target always counts and is unlikely: sure rows alone leave nothing but rounding.
    logits[0] = -spread;
    const lse = Array.from({ length: R }, (_, r) => {
      const row = logits.subarray(r * V, (r + 1) * V);
      const max = row.reduce((a, b) => Math.max(a, b));
      return max + Math.log(row.reduce((sum, x) => sum + Math.exp(x - max), 0));
    });
    return {
      outs: { dlogits: blank([R, V], pad) },
      ins: {
        dloss: given('f32', [1], [0.7]),
        logits: given('f32', [R, V], logits, pad),
        targets: given(targets, [R], random.integers(R, 0, Math.min(V, 256)).fill(0, 0, 1)),
        lse: given('f32', [R], lse),
      },
      attrs: { ignore },
      close: 'f32',
    };
  }),
];
