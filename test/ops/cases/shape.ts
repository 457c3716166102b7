import { f16ToF32 } from '../../../lib/weights/dtypes.ts';
import { blank, cases, given, type OpCase, pairs, size } from '../../support/cases.ts';

const copyRows = pairs({
  from: ['f32', 'f64', 'bf16', 'f16'],
  to: ['f32', 'f64', 'bf16', 'f16'],
  R: [1, 3, 65],
  D: [1, 7, 16, 17, 64, 65, 257],
  pad: [0, 3],
  padOut: [0, 2],
});

const joinRows = pairs({
  R: [1, 2, 17, 65],
  D: [1, 7, 16, 65],
  D2: [1, 3, 64],
  D3: [0, 5, 257],
  pad: [0, 3],
  padOut: [0, 1],
});

export const shape: OpCase[] = [
  ...cases('copy', copyRows, ({ from, to, R, D, pad, padOut }, random) => {
    const n = size(R, D);
    // Every finite f16; or numbers whose rounding ties, and for f16 some that become denormal or too large.
    const halves = random.integers(n, 0, 0x7c00).map((v, i) => f16ToF32(i % 2 ? v | 0x8000 : v));
    const ulps = to === 'f16' ? 2048 : 256;
    const sized = (v: number, i: number) => (to !== 'f16' || i % 7 ? v : v * (i % 2 ? 2 ** -17 : 60000));
    const mixed = random.normal(n).map((v, i) => (i % 5 ? sized(v, i) : 1 + (2 * i + 1) / ulps));
    return {
      outs: { y: blank([R, D], padOut, to) },
      ins: { x: given(from, [R, D], from === 'f16' ? halves : mixed, pad) },
      close: 'exact',
      onlyOnCpu: to === 'f16',
    };
  }),
  ...cases('all_reduce', pairs({ n: [1, 7, 64, 1025], place: ['apart', 'in place'] }), ({ n, place }, random) => ({
    outs: { y: { ...blank([n]), ...(place === 'in place' && { same: 'x' }) } },
    ins: { x: given('f32', [n], random.normal(n)) },
    close: 'exact',
  })),
  ...cases('concat', joinRows, ({ R, D, D2, D3, pad, padOut }, random) => {
    const parts = [D, D2, D3]
      .filter((d) => d > 0)
      .map((d, i) => given('f32', [R, d], random.normal(size(R, d)), i ? 0 : pad));
    return { outs: { y: blank([R, D + D2 + D3], padOut) }, ins: { parts_: parts }, close: 'exact' };
  }),
];
