import type { CacheDType } from '../../../lib/memory/region.ts';
import { blank, type CaseParts, cases, given, type OpCase, pairs, size } from '../../support/cases.ts';
import type { Random } from '../../support/random.ts';

const axes = {
  B: [1, 3],
  T: [1, 2, 7, 8, 9, 63, 64, 65, 257],
  // Keys before the first query.
  earlier: [0, 1, 63, 513],
  heads: ['1/1', '2/2', '4/2', '3/1'],
  P: [1, 3, 8, 16, 17, 64, 80],
  sharp: [false, true],
  pad: [0, 3],
} as const;

/** As models have it: long, with whole vectors, some keys shared; and PerceiverAR's last latents. */
const long = [
  { B: 1, T: 2049, earlier: 0, heads: '2/1', P: 64, sharp: false, pad: 0 },
  { B: 1, T: 130, earlier: 1919, heads: '1/1', P: 128, sharp: false, pad: 8 },
] as const;

interface Sizes {
  B: number;
  T: number;
  S: number;
  heads: string;
  P: number;
  sharp: boolean;
  pad: number;
}

/** `sharp`: scores so far apart that most weights are 0. */
function inputs({ B, T, S, heads, P, sharp, pad }: Sizes, random: Random) {
  const [H = 1, J = 1] = heads.split('/').map(Number);
  return {
    H,
    J,
    q: given('f32', [B, T, H * P], random.normal(size(B, T, H, P), sharp ? 4 : 1), pad),
    k: given('f32', [B, S, J * P], random.normal(size(B, S, J, P)), pad),
    v: given('f32', [B, S, J * P], random.normal(size(B, S, J, P)), 2 * pad),
  };
}

/** About the log of the sum of S exponentials of such scores. */
function likelyLse(sharp: boolean, S: number): number {
  return sharp ? 4 * Math.sqrt(2 * Math.log(S + 1)) : Math.log(S) + 0.5;
}

/** What a cache holds past its end must not matter, whatever it is. */
function spoil(values: Float64Array, B: number, columns: number, ends: ArrayLike<number>): Float64Array {
  const per = values.length / B;
  return values.map((v, i) => (i % per >= (ends[Math.floor(i / per)] ?? 0) * columns ? Number.NaN : v));
}

/** One that fits its capacity with no room left, one with much, and with `broken` one that does not fit. */
function cached(row: Sizes & { broken: boolean; kept: CacheDType }, random: Random): CaseParts {
  const { B, T, S, P, broken, kept: dtype, pad } = row;
  const { H, J, q, k, v } = inputs(row, random);
  const lengths = Int32Array.from({ length: B }, (_, b) => (b === 0 ? S - T : Math.floor((S - T) / (b + 1))));
  if (broken) lengths[B - 1] = B === 1 ? -1 : S - T + 1;
  const ends = Array.from(lengths, (n) => n + T);
  return {
    outs: { y: blank([B, T, H * P], pad), lse: undefined },
    ins: {
      q,
      k: { ...k, dtype, values: spoil(k.values as Float64Array, B, J * P, ends) },
      v: { ...v, dtype, values: spoil(v.values as Float64Array, B, J * P, ends) },
      length: given('i32', [B], lengths),
    },
    attrs: { heads: H },
    close: 'f32',
    onlyOnCpu: dtype === 'f16',
  };
}

export const attention: OpCase[] = [
  ...cases(
    'attention',
    [...pairs({ ...axes, lse: [true, false] }), ...long.map((row) => ({ ...row, lse: true }))],
    (row, random) => {
      const { B, T, earlier, P, lse, pad } = row;
      const { H, q, k, v } = inputs({ ...row, S: T + earlier }, random);
      return {
        outs: { y: blank([B, T, H * P], pad), lse: lse ? blank([B, T, H], pad) : undefined },
        ins: { q, k, v },
        attrs: { heads: H },
        close: row.sharp ? 'long' : 'f32',
      };
    },
  ),
  ...cases(
    'attention',
    pairs({
      B: [1, 3],
      T: [1, 2, 8, 9, 65],
      S: [66, 512, 513, 1100],
      heads: ['1/1', '4/2', '3/1'],
      P: [3, 16, 64, 128],
      broken: [false, true],
      kept: ['f32', 'bf16', 'f16'] as const,
      pad: [0, 3],
    }),
    (row, random) => cached({ ...row, sharp: false }, random),
  ),
  ...cases('attention_grad', [...pairs(axes), ...long], (row, random) => {
    const { B, T, earlier, P, pad } = row;
    const S = T + earlier;
    const { H, J, q, k, v } = inputs({ ...row, S }, random);
    return {
      outs: { dq: blank([B, T, H * P], pad), dk: blank([B, S, J * P], 2 * pad), dv: blank([B, S, J * P], pad) },
      ins: {
        dy: given('f32', [B, T, H * P], random.normal(size(B, T, H, P)), pad),
        q,
        k,
        v,
        y: given('f32', [B, T, H * P], random.normal(size(B, T, H, P), 0.5), pad),
        lse: given(
          'f32',
          [B, T, H],
          random.normal(size(B, T, H), 0.3).map((x) => x + likelyLse(row.sharp, S)),
        ),
      },
      attrs: { heads: H },
      close: 'long',
    };
  }),
  ...cases(
    'cache_write',
    pairs({
      B: [1, 3],
      T: [1, 2, 65],
      S: [65, 257],
      D: [1, 7, 16, 65],
      broken: [false, true],
      kept: ['f32', 'bf16', 'f16'] as const,
      pad: [0, 3],
    }),
    ({ B, T, S, D, broken, kept, pad }, random) => {
      const lengths = random.integers(B, 0, S - T + 1);
      if (broken) lengths[B - 1] = B === 1 ? -1 : S - T + 1;
      return {
        outs: { cache: given(kept, [B, S, D], random.normal(size(B, S, D)), pad + 1) },
        ins: { x: given('f32', [B, T, D], random.normal(size(B, T, D)), pad), length: given('i32', [B], lengths) },
        close: 'exact' as const,
        onlyOnCpu: kept === 'f16',
      };
    },
  ),
  ...cases(
    'advance',
    pairs({ B: [1, 3, 65], steps: [1, 512], place: ['apart', 'in place'] }),
    ({ B, steps, place }, random) => ({
      outs: { length_out: { ...blank([B], 0, 'i32'), ...(place === 'in place' && { same: 'length' }) } },
      ins: { length: given('i32', [B], random.integers(B, 0, 10000)) },
      attrs: { steps },
      close: 'exact',
    }),
  ),
];
