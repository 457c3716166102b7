import { blank, cases, given, type OpCase, pairs, size } from '../../support/cases.ts';

const axes = {
  B: [1, 3],
  T: [1, 2, 7, 63, 64, 65, 257],
  E: [1, 5, 15, 16, 17, 48, 65],
  N: [3, 1, 8, 16],
  D: [true, false],
  z: [true, false],
  bias: [true, false],
  softplus: [true, false],
  state: ['none', 'in', 'in and out', 'in place'],
  pad: [0, 3],
} as const;

const long = { B: 1, T: 2049, E: 17, N: 16, D: true, z: true, bias: true, softplus: true, pad: 17 } as const;

/** As a model has it, whole vectors in every row. */
const whole = { N: 16, D: true, z: true, bias: true, softplus: true } as const;
const model = [
  { B: 3, T: 64, E: 128, ...whole, pad: 0 },
  { B: 1, T: 200, E: 128, ...whole, pad: 4 },
  { B: 1, T: 512, E: 256, ...whole, pad: 0 },
] as const;

/** Steps on both sides of softplus's border at 20 where it applies, else positive ones. */
function stepRange(softplus: boolean): [number, number] {
  return softplus ? [-6, 24] : [0.001, 2];
}

export const selectiveScan: OpCase[] = [
  ...cases(
    'selective_scan',
    [
      ...pairs({ ...axes, chunks: [false, true], kept: [false, true] }).map((row) => ({ ...row, lengths: false })),
      { ...long, state: 'in and out', chunks: true, kept: false, lengths: false },
      ...model.map((row, i) => ({ ...row, state: 'in place' as const, chunks: i === 1, kept: false, lengths: false })),
      ...pairs({ ...axes, chunks: [false, true], kept: [false, true] }).map((row) => ({ ...row, lengths: true })),
      { ...long, state: 'in and out', chunks: false, kept: false, lengths: true },
      ...model.map((row) => ({ ...row, state: 'in place' as const, chunks: false, kept: false, lengths: true })),
    ],
    ({ B, T, E, N, D, z, bias, softplus, state, pad, chunks, kept, lengths }, random) => ({
      outs: {
        y: blank([B, T, E], pad),
        state_out:
          state === 'in and out' || state === 'in place'
            ? { ...blank([B, E, N]), ...(state === 'in place' ? { same: 'state' } : {}) }
            : undefined,
        chunks: chunks ? blank([B, Math.ceil(T / 64), E * N]) : undefined,
        kept: kept ? blank([T, B, E * N]) : undefined,
      },
      ins: {
        u: given('f32', [B, T, E], random.normal(size(B, T, E)), pad),
        delta: given('f32', [B, T, E], random.uniform(size(B, T, E), ...stepRange(softplus))),
        A: given('f32', [E, N], random.uniform(size(E, N), -4, -0.01)),
        B: given('f32', [B, T, N], random.normal(size(B, T, N)), pad),
        C: given('f32', [B, T, N], random.normal(size(B, T, N)), pad + 1),
        D: D ? given('f32', [E], random.normal(E)) : undefined,
        z: z ? given('f32', [B, T, E], random.normal(size(B, T, E), 3), pad) : undefined,
        delta_bias: bias ? given('f32', [E], random.uniform(E, 0, 0.5)) : undefined,
        state: state === 'none' ? undefined : given('f32', [B, E, N], random.normal(size(B, E, N))),
        lengths: lengths ? given('i32', [B], random.integers(B, -1, T + 3)) : undefined,
      },
      attrs: { softplus: Number(softplus), chunk: 64 },
      close: 'long',
    }),
  ),
  ...cases(
    'selective_scan_grad',
    [
      ...pairs({ ...axes, state: ['none', 'in', 'in and out'], accumulate: [false, true] }),
      { ...long, state: 'in and out', accumulate: false },
      ...model.map((row) => ({ ...row, state: 'none' as const, accumulate: false })),
    ],
    ({ B, T, E, N, D, z, bias, softplus, state, pad, accumulate }, random) => {
      const into = (...shape: number[]) =>
        accumulate ? given('f32', shape, random.normal(size(...shape))) : blank(shape);
      const [low, high] = stepRange(softplus);
      return {
        outs: {
          du: blank([B, T, E]),
          ddelta: blank([B, T, E], pad),
          dA: into(E, N),
          dB: blank([B, T, N], pad),
          dC: blank([B, T, N], pad + 1),
          dD: D ? into(E) : undefined,
          dz: z ? blank([B, T, E], pad) : undefined,
          ddelta_bias: bias ? into(E) : undefined,
          dstate: state === 'none' ? undefined : blank([B, E, N]),
        },
        ins: {
          dy: given('f32', [B, T, E], random.normal(size(B, T, E)), pad),
          u: given('f32', [B, T, E], random.normal(size(B, T, E)), pad),
          // Mostly short steps: with long ones every state is forgotten at once and half of the gradient is 0.
          delta: given('f32', [B, T, E], random.uniform(size(B, T, E), low, high / 4)),
          A: given('f32', [E, N], random.uniform(size(E, N), -2, -0.01)),
          B: given('f32', [B, T, N], random.normal(size(B, T, N)), pad),
          C: given('f32', [B, T, N], random.normal(size(B, T, N)), pad + 1),
          D: D ? given('f32', [E], random.normal(E)) : undefined,
          z: z ? given('f32', [B, T, E], random.normal(size(B, T, E)), pad) : undefined,
          delta_bias: bias ? given('f32', [E], random.uniform(E, 0, 0.5)) : undefined,
          chunks: given('f32', [B, Math.ceil(T / 64), E * N], random.normal(size(B, Math.ceil(T / 64), E, N))),
          dstate_out: state === 'in and out' ? given('f32', [B, E, N], random.normal(size(B, E, N))) : undefined,
        },
        attrs: { softplus: Number(softplus), chunk: 64, accumulate: Number(accumulate) },
        close: 'long',
      };
    },
  ),
];
