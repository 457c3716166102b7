// The case table once more with activations in bf16, as a GPU trains and reads with. Parameters, their gradients, states
// and losses stay f32.
import type { OpCase } from './cases.ts';
import type { Operand } from './poison.ts';

/**
 * The operands of each op that are bf16, all at once; where a model mixes (the residual stream and its gradient stay f32),
 * that too. Ops that are not named have none beyond what their own cases try.
 */
const ACTIVATIONS: Record<string, string | readonly string[]> = {
  embedding: 'y',
  embedding_grad: 'dy',
  linear: ['x y add', 'x'],
  linear_grad_input: ['dy dx weight add', 'dy weight', 'dy dx add'],
  linear_grad_weight: 'dy x',
  column_sum: 'x',
  rms_norm: ['x y', 'y'],
  rms_norm_grad: ['dy x dx add', 'dy'],
  layer_norm: ['x y', 'y'],
  layer_norm_grad: ['dy x dx add', 'dy'],
  add: 'a b y',
  mul: 'a b y',
  scale: 'x y',
  silu: 'x y',
  silu_grad: 'dy x dx',
  swiglu: 'gate up y',
  swiglu_grad: 'dy gate up dgate dup',
  softplus: 'x y',
  softplus_grad: 'dy x dx',
  concat: 'parts_ y',
  causal_conv1d: 'x y',
  causal_conv1d_grad: 'dy x dx',
  selective_scan: 'u delta B C z y',
  selective_scan_grad: 'dy u delta B C z du ddelta dB dC dz',
  diagonal_ssm: 'u y',
  long_conv: 'u y',
  long_conv_grad: 'dy u du',
  rope: 'x y',
  rope_cache_write: ['q k v y keys values', 'keys values', 'q k v y'],
  attention: ['q k v y', 'k v'],
  attention_grad: 'dy q k v y dq dk dv',
  cache_write: ['x cache', 'cache', 'x'],
  cross_entropy: 'logits',
  cross_entropy_grad: 'logits dlogits',
};

/** The cases of `list` with bf16 activations; empty for an op that has none. */
export function withBf16(op: string, list: readonly OpCase[]): OpCase[] {
  return [ACTIVATIONS[op] ?? []].flat().flatMap((words) => turned(list, words.split(' ')));
}

function turned(list: readonly OpCase[], names: readonly string[]): OpCase[] {
  const turn = (o: Operand | undefined) => (o?.dtype === 'f32' ? { ...o, dtype: 'bf16' as const } : o);
  const some = <T>(operands: Record<string, T>): Record<string, T> =>
    Object.fromEntries(
      Object.entries(operands).map(([name, o]) => {
        if (!names.includes(name)) return [name, o];
        return [name, Array.isArray(o) ? o.map(turn) : turn(o as Operand)];
      }),
    ) as Record<string, T>;
  return list.map((c) => ({
    ...c,
    title: `${c.title}, bf16 ${names.join(' ')}`,
    outs: some(c.outs),
    ins: some(c.ins),
    close: (target, output) => {
      if (names.includes(output)) return 'bf16';
      // Both sides read the same bf16 numbers, so what stays f32 is as close as ever; sums of tensor cores cut off late bits.
      const close = c.close(target, output);
      return close === 'f32' ? 'long' : close;
    },
  }));
}
