import { blank, type CaseParts, cases, given, type OpCase, pairs, size } from '../../support/cases.ts';
import type { Operand } from '../../support/poison.ts';
import type { Random } from '../../support/random.ts';
import { closeTo, weightMatrix } from './linear.ts';

const rows = pairs({
  B: [1, 2, 3],
  T: [1, 2, 5, 8],
  D: [1, 8, 17, 64, 65],
  E: [2, 15, 16, 17, 64, 130],
  N: [1, 3, 8, 16],
  K: [2, 3, 4],
  R: [1, 4, 17],
  weight: ['f32', 'bf16', 'i8'],
  norm: ['layer', 'rms'],
  convBias: [true, false],
  kept: [false, true],
  state: ['in place', 'in and out'],
});
const whole = [
  {
    B: 4,
    T: 8,
    D: 64,
    E: 128,
    N: 16,
    K: 4,
    R: 4,
    weight: 'bf16',
    norm: 'rms',
    convBias: true,
    kept: false,
    state: 'in place',
  },
  {
    B: 1,
    T: 1,
    D: 256,
    E: 512,
    N: 16,
    K: 4,
    R: 16,
    weight: 'i8',
    norm: 'layer',
    convBias: true,
    kept: false,
    state: 'in place',
  },
  {
    B: 1,
    T: 8,
    D: 64,
    E: 80,
    N: 16,
    K: 4,
    R: 40,
    weight: 'bf16',
    norm: 'layer',
    convBias: true,
    kept: true,
    state: 'in and out',
  },
] as const;
/** One step of more sequences than are summed row by row: a GPU has kernels of its own for them, the CPU none. */
const batches = [
  {
    B: 33,
    T: 1,
    D: 96,
    E: 192,
    N: 16,
    K: 3,
    R: 20,
    weight: 'bf16',
    norm: 'layer',
    convBias: true,
    kept: false,
    state: 'in and out',
  },
  {
    B: 70,
    T: 1,
    D: 512,
    E: 1024,
    N: 16,
    K: 4,
    R: 32,
    weight: 'bf16',
    norm: 'rms',
    convBias: false,
    kept: false,
    state: 'in place',
  },
  {
    B: 64,
    T: 1,
    D: 288,
    E: 576,
    N: 16,
    K: 2,
    R: 4,
    weight: 'i8',
    norm: 'rms',
    convBias: true,
    kept: false,
    state: 'in place',
  },
] as const;

type Row = (typeof rows)[number] | (typeof whole)[number] | (typeof batches)[number];

export const mambaBlock: OpCase[] = cases('mamba_block', [...rows, ...whole], parts);
export const mambaBatches: OpCase[] = cases('mamba_block', batches, (row, random) => ({
  ...parts(row, random),
  close: 'bf16Block',
}));

function parts(row: Row, random: Random): CaseParts {
  const { B, T, D, E, N, K, R, weight, norm, convBias, kept, state } = row;
  const matrices: Record<string, Operand | undefined> = {};
  const matrix = (name: string, short: string, M: number, columns: number) => {
    const { weight: w, scale } = weightMatrix(random, weight, M, columns);
    matrices[name] = w;
    matrices[`${short}_scale`] = scale;
  };
  matrix('in_proj', 'in', 2 * E, D);
  matrix('x_proj', 'x', R + 2 * N, E);
  matrix('dt_proj', 'dt', E, R);
  matrix('out_proj', 'out', D, E);
  const same = (name: string) => (state === 'in place' ? { same: name } : {});
  return {
    outs: {
      y: blank([B, T, D]),
      conv_state_out: { ...blank([B, K - 1, E]), ...same('conv_state') },
      ssm_state_out: { ...blank([B, E, N]), ...same('ssm_state') },
      kept_conv: kept ? blank([T, B, (K - 1) * E]) : undefined,
      kept_ssm: kept ? blank([T, B, E * N]) : undefined,
    },
    ins: {
      x: given('f32', [B, T, D], random.normal(size(B, T, D))),
      norm_weight: given('f32', [D], random.uniform(D, 0.5, 1.5)),
      norm_bias: norm === 'layer' ? given('f32', [D], random.normal(D, 0.3)) : undefined,
      ...matrices,
      conv_weight: given('f32', [E, K], random.normal(size(E, K), 0.5)),
      conv_bias: convBias ? given('f32', [E], random.normal(E, 0.3)) : undefined,
      dt_bias: given('f32', [E], random.uniform(E, -4, 1)),
      A: given('f32', [E, N], random.uniform(size(E, N), -4, -0.1)),
      D: given('f32', [E], random.normal(E)),
      conv_state: given('f32', [B, K - 1, E], random.normal(size(B, K - 1, E))),
      ssm_state: given('f32', [B, E, N], random.normal(size(B, E, N))),
    },
    attrs: { eps: 1e-5 },
    close: (target) =>
      (target === 'avx512' || target === 'amx') && weight === 'i8' ? 'i8Block' : closeTo(weight)(target),
  };
}
