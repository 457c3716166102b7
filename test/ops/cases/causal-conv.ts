import { blank, cases, given, type OpCase, pairs, size } from '../../support/cases.ts';

const axes = {
  B: [1, 3],
  T: [1, 2, 3, 7, 64, 65],
  E: [1, 5, 15, 16, 17, 48, 65],
  K: [2, 3, 4, 5],
  bias: [true, false],
  state: ['none', 'in', 'in and out', 'in place'],
  silu: [true, false],
  pad: [0, 3],
} as const;
const long = { B: 2, T: 2049, E: 17, K: 4, bias: true, state: 'in and out', silu: true, pad: 17 } as const;

const conv = [false, true].flatMap((lengths) => [...pairs(axes), long].map((row) => ({ ...row, lengths })));

export const causalConv: OpCase[] = [
  ...cases('causal_conv1d', conv, ({ B, T, E, K, bias, state, silu, pad, lengths }, random) => ({
    outs: {
      y: blank([B, T, E], pad),
      state_out:
        state === 'in and out' || state === 'in place'
          ? { ...blank([B, K - 1, E]), ...(state === 'in place' ? { same: 'state' } : {}) }
          : undefined,
    },
    ins: {
      x: given('f32', [B, T, E], random.normal(size(B, T, E)), pad),
      weight: given('f32', [E, K], random.normal(size(E, K))),
      bias: bias ? given('f32', [E], random.normal(E)) : undefined,
      state: state === 'none' ? undefined : given('f32', [B, K - 1, E], random.normal(size(B, K - 1, E))),
      lengths: lengths ? given('i32', [B], random.integers(B, -1, T + 3)) : undefined,
    },
    attrs: { silu: Number(silu) },
    close: 'f32',
  })),
  ...cases(
    'causal_conv1d_grad',
    [
      ...pairs({ ...axes, state: ['none', 'in', 'in and out'], accumulate: [false, true] }),
      { ...long, accumulate: true },
    ],
    ({ B, T, E, K, bias, state, silu, pad, accumulate }, random) => {
      const into = (...shape: number[]) =>
        accumulate ? given('f32', shape, random.normal(size(...shape))) : blank(shape);
      return {
        outs: {
          dx: blank([B, T, E], pad),
          dweight: into(E, K),
          dbias: bias ? into(E) : undefined,
          dstate: state === 'none' ? undefined : blank([B, K - 1, E]),
        },
        ins: {
          dy: given('f32', [B, T, E], random.normal(size(B, T, E))),
          x: given('f32', [B, T, E], random.normal(size(B, T, E)), pad),
          weight: given('f32', [E, K], random.normal(size(E, K))),
          bias: bias ? given('f32', [E], random.normal(E)) : undefined,
          state: state === 'none' ? undefined : given('f32', [B, K - 1, E], random.normal(size(B, K - 1, E))),
          dstate_out:
            state === 'in and out' ? given('f32', [B, K - 1, E], random.normal(size(B, K - 1, E))) : undefined,
        },
        attrs: { silu: Number(silu), accumulate: Number(accumulate) },
        close: 'f32',
      };
    },
  ),
];
