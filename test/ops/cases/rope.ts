import { blank, cases, given, type OpCase, pairs, size } from '../../support/cases.ts';

const rows = pairs({
  B: [1, 3],
  T: [1, 2, 7, 63, 64, 65, 257],
  heads: [1, 2, 5],
  P: [2, 8, 14, 16, 32, 34, 64, 66],
  first: [0, 70, -5, 2 ** 20],
  inverse: [false, true],
  pad: [0, 3],
  padOut: [0, 1],
});

const baseOf = (P: number) => (P === 64 ? 500000 : 10000);

const written = pairs({
  B: [1, 3],
  T: [1, 2, 31, 32, 33, 64, 65, 257],
  S: [257, 300],
  heads: ['1/1', '4/2', '3/1', '2/2'],
  P: [2, 8, 14, 16, 34, 64, 130],
  position: ['none', 'near', 'far'],
  first: [0, 300, -5],
  broken: [false, true],
  kept: ['f32', 'bf16', 'f16'] as const,
  pad: [0, 3],
  padOut: [0, 1],
});

export const rope: OpCase[] = [
  ...cases(
    'rope',
    [...rows, { B: 1, T: 2049, heads: 2, P: 64, first: 2 ** 19, inverse: false, pad: 0, padOut: 0 }],
    ({ B, T, heads, P, first, inverse, pad, padOut }, random) => ({
      outs: { y: blank([B, T, heads * P], padOut) },
      ins: { x: given('f32', [B, T, heads * P], random.normal(size(B, T, heads, P)), pad) },
      attrs: { heads, base: baseOf(P), first, inverse: Number(inverse) },
      close: 'f32',
    }),
  ),
  ...cases('rope_cache_write', written, ({ B, T, S, heads, P, position, first, broken, kept, pad, padOut }, random) => {
    const [H = 1, J = 1] = heads.split('/').map(Number);
    const lengths = random.integers(B, 0, S - T + 1);
    if (broken) lengths[B - 1] = B === 1 ? -1 : S - T + 1;
    const steps = (columns: number, gap: number) =>
      given('f32', [B, T, columns], random.normal(size(B, T, columns)), gap);
    const cache = (gap: number) => given(kept, [B, S, J * P], random.normal(size(B, S, J * P)), gap);
    const places = () => given('i32', [B], random.integers(B, 0, position === 'far' ? 2 ** 20 : 100));
    return {
      outs: { y: blank([B, T, H * P], padOut), keys: cache(padOut), values: cache(pad) },
      ins: {
        q: steps(H * P, pad),
        k: steps(J * P, pad),
        v: steps(J * P, pad + 1),
        length: given('i32', [B], lengths),
        position: position === 'none' ? undefined : places(),
      },
      attrs: { heads: H, base: baseOf(P), first },
      close: (_, output) => (output === 'values' ? 'exact' : output === 'keys' ? kept : 'f32'),
      onlyOnCpu: kept === 'f16',
    };
  }),
];
