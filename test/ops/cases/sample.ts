import { blank, cases, given, type OpCase, pairs, size } from '../../support/cases.ts';

const rows = pairs({
  B: [1, 3, 8],
  V: [2, 17, 256],
  temperature: [0, 0.7, 1.5],
  topK: [0, 1, 5],
  topP: [1, 0.9, 0.1],
  minP: [0, 0.1],
  penalty: [1, 1.3],
  bias: [false, true],
  logprob: [true, false],
  pad: [0, 3],
});

export const sample: OpCase[] = cases('sample', rows, (row, random) => {
  const { B, V, temperature, topK, topP, minP, penalty, bias, logprob, pad } = row;
  const params = Array.from({ length: B }, () => [temperature, topK, topP, minP, penalty, 0, 0, 0]).flat();
  return {
    outs: {
      ids: blank([B], 0, 'i32'),
      logprob: logprob ? blank([B]) : undefined,
      rng: given('i32', [B, 4], random.integers(B * 4, -(2 ** 31), 2 ** 31)),
      seen: penalty !== 1 ? given('u8', [B, V], random.integers(size(B, V), 0, 2)) : undefined,
    },
    ins: {
      logits: given('f32', [B, V], random.normal(size(B, V), 2), pad),
      params: given('f32', [B, 8], params),
      bias: bias ? given('f32', [B, V], random.normal(size(B, V))) : undefined,
    },
    close: (_target, output) => (output === 'logprob' ? 'f32' : 'exact'),
  };
});
