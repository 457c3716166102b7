import { blank, cases, given, type OpCase, pairs, size } from '../../support/cases.ts';
import type { Random } from '../../support/random.ts';

const lengths = [1, 2, 7, 31, 32, 33, 64, 65, 257] as const;
const channels = [1, 5, 15, 16, 17, 48, 65] as const;

/** As a model has it. */
const model = { E: 128, M: 32, T: 512 } as const;

/** (E, M, 2): numbers inside the unit circle, some of which last for thousands of steps. */
function decays(random: Random, E: number, M: number) {
  const sizes = random.uniform(E * M, 0.5, 0.9999);
  const angles = random.uniform(E * M, -3, 3);
  const values = Float64Array.from({ length: 2 * E * M }, (_, i) => {
    const [size = 0, angle = 0] = [sizes[i >> 1], angles[i >> 1]];
    return size * (i % 2 ? Math.sin(angle) : Math.cos(angle));
  });
  return given('f32', [E, M, 2], values);
}

function pairsOf(random: Random, E: number, M: number, scale = 1) {
  return given('f32', [E, M, 2], random.normal(size(E, M, 2), scale));
}

function parameters(random: Random, E: number, M: number) {
  return {
    log_dt: given('f32', [E], random.uniform(E, Math.log(1e-3), Math.log(0.1))),
    // From states that hardly decay, where the quotients of the hold cancel, to those that are gone in a step.
    log_A_real: given('f32', [E, M], random.uniform(E * M, -6, 3)),
    A_imag: given(
      'f32',
      [E, M],
      random.uniform(E * M, -1, 1).map((x, i) => x + Math.PI * (i % M)),
    ),
  };
}

export const diagonalSsm: OpCase[] = [
  ...cases(
    'zero_order_hold',
    [...pairs({ E: channels, M: [1, 3, 4, 8, 17, 32] }), { E: 128, M: 32 }],
    ({ E, M }, random) => ({
      outs: { Ab: blank([E, M, 2]), Bb: blank([E, M, 2]) },
      ins: parameters(random, E, M),
      close: 'f32',
    }),
  ),
  ...cases(
    'zero_order_hold_grad',
    [
      ...pairs({ E: channels, M: [1, 3, 4, 8, 17, 32], accumulate: [false, true] }),
      { E: 128, M: 32, accumulate: false },
    ],
    ({ E, M, accumulate }, random) => {
      const into = (...shape: number[]) =>
        accumulate ? given('f32', shape, random.normal(size(...shape))) : blank(shape);
      return {
        outs: { dlog_dt: into(E), dlog_A_real: into(E, M), dA_imag: into(E, M) },
        ins: { dAb: pairsOf(random, E, M), dBb: pairsOf(random, E, M, 100), ...parameters(random, E, M) },
        attrs: { accumulate: Number(accumulate) },
        close: 'f32',
      };
    },
  ),
  ...cases(
    'diagonal_ssm',
    [
      ...pairs({
        B: [1, 3],
        T: lengths,
        E: channels,
        M: [1, 3, 4, 8, 17],
        D: [true, false],
        state: ['none', 'in', 'in and out', 'in place'],
        kept: [false, true],
        pad: [0, 3],
      }),
      { B: 1, T: 2049, E: 17, M: 32, D: true, state: 'in and out', kept: false, pad: 17 },
      { B: 2, ...model, D: true, state: 'in place', kept: false, pad: 4 },
      { B: 1, T: 65, E: 3, M: 128, D: false, state: 'in', kept: false, pad: 0 },
    ],
    ({ B, T, E, M, D, state, kept, pad }, random) => ({
      outs: {
        y: blank([B, T, E], pad),
        state_out:
          state === 'in and out' || state === 'in place'
            ? { ...blank([B, E, M, 2]), ...(state === 'in place' ? { same: 'state' } : {}) }
            : undefined,
        kept: kept ? blank([T, B, 2 * E * M]) : undefined,
      },
      ins: {
        u: given('f32', [B, T, E], random.normal(size(B, T, E)), pad + 1),
        Ab: decays(random, E, M),
        Bb: pairsOf(random, E, M),
        C: pairsOf(random, E, M),
        D: D ? given('f32', [E], random.normal(E)) : undefined,
        state: state === 'none' ? undefined : given('f32', [B, E, M, 2], random.normal(size(B, E, M, 2))),
      },
      close: 'long',
    }),
  ),
  ...cases(
    'ssm_kernel',
    [...pairs({ T: lengths, E: channels, M: [1, 3, 4, 17, 32] }), { T: 2049, E: 17, M: 32 }, model],
    ({ T, E, M }, random) => ({
      outs: { k: blank([E, T]) },
      ins: { Ab: decays(random, E, M), Bb: pairsOf(random, E, M), C: pairsOf(random, E, M) },
      close: 'long',
    }),
  ),
  ...cases(
    'ssm_kernel_grad',
    [
      ...pairs({ T: lengths, E: channels, M: [1, 3, 4, 17, 32], accumulate: [false, true] }),
      { T: 2049, E: 17, M: 32, accumulate: false },
      { ...model, accumulate: true },
    ],
    ({ T, E, M, accumulate }, random) => ({
      outs: {
        // Of one step nothing depends on Ab, and its gradient is 0 exactly.
        dAb: blank([E, M, 2]),
        dBb: blank([E, M, 2]),
        dC: accumulate ? pairsOf(random, E, M) : blank([E, M, 2]),
      },
      ins: {
        dk: given('f32', [E, T], random.normal(size(E, T))),
        Ab: decays(random, E, M),
        Bb: pairsOf(random, E, M),
        C: pairsOf(random, E, M),
      },
      attrs: { accumulate: Number(accumulate) },
      close: 'long',
    }),
  ),
  ...cases(
    'long_conv',
    [
      ...pairs({ B: [1, 2, 3], T: lengths, E: channels, D: [true, false], pad: [0, 3] }),
      { B: 1, T: 2049, E: 17, D: true, pad: 17 },
      { B: 1, T: 9000, E: 2, D: true, pad: 0 },
      { B: 4, T: 512, E: 128, D: true, pad: 4 },
    ],
    ({ B, T, E, D, pad }, random) => ({
      outs: { y: blank([B, T, E], pad) },
      ins: {
        u: given('f32', [B, T, E], random.normal(size(B, T, E)), pad + 1),
        k: given('f32', [E, T], random.normal(size(E, T))),
        D: D ? given('f32', [E], random.normal(E)) : undefined,
      },
      close: 'f32',
    }),
  ),
  ...cases(
    'long_conv_grad',
    [
      ...pairs({ B: [1, 2, 3], T: lengths, E: channels, D: [true, false], accumulate: [false, true], pad: [0, 3] }),
      { B: 3, T: 2049, E: 17, D: true, accumulate: false, pad: 17 },
      { B: 3, T: 9000, E: 1, D: true, accumulate: false, pad: 0 },
      { B: 4, T: 512, E: 128, D: true, accumulate: false, pad: 4 },
    ],
    ({ B, T, E, D, accumulate, pad }, random) => ({
      outs: {
        du: blank([B, T, E], pad),
        dk: blank([E, T]),
        dD: D ? (accumulate ? given('f32', [E], random.normal(E)) : blank([E])) : undefined,
      },
      ins: {
        dy: given('f32', [B, T, E], random.normal(size(B, T, E)), pad),
        u: given('f32', [B, T, E], random.normal(size(B, T, E)), pad + 1),
        k: given('f32', [E, T], random.normal(size(E, T))),
        D: D ? given('f32', [E], random.normal(E)) : undefined,
      },
      attrs: { accumulate: Number(accumulate) },
      close: 'f32',
    }),
  ),
];
