import { blank, cases, given, type OpCase, pairs } from '../../support/cases.ts';

export const adamw: OpCase[] = [
  ...cases(
    'global_norm',
    pairs({ n: [1, 2, 15, 16, 17, 1025, 16385], n2: [0, 7, 64], n3: [0, 1, 1023], scale: [1, 0.25] }),
    ({ n, n2, n3, scale }, random) => ({
      outs: { norm: blank([1]) },
      ins: { grads_: [n, n2, n3].filter((k) => k > 0).map((k) => given('f32', [k], random.normal(k, 0.1))) },
      attrs: { scale },
      close: 'f32',
    }),
  ),
  ...cases(
    'adamw',
    pairs({
      n: [1, 2, 7, 15, 16, 17, 63, 64, 65, 257, 2049],
      step: [1, 2, 1000],
      decay: [0, 0.1],
      clip: [0, 1],
      scale: [1, 0.5],
      norm: [0, 0.3, 40],
    }),
    ({ n, step, decay, clip, scale, norm }, random) => ({
      outs: {
        param: given('f32', [n], random.normal(n)),
        m: given('f32', [n], random.normal(n, 0.1)),
        v: given('f32', [n], random.uniform(n, 0, 0.1)),
      },
      ins: {
        grad: given('f32', [n], random.normal(n)),
        scalars: given('f32', [2], [4e-3, step]),
        norm: norm > 0 ? given('f32', [1], [norm]) : undefined,
      },
      attrs: { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: decay, clip, scale },
      close: 'f32',
    }),
  ),
];
