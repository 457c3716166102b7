import type { Graph } from '../graph.ts';
import type { Tensor } from '../tensor.ts';
import { checkDType, checkShape, sizes } from './check.ts';

/** Columns of the `params` operand. */
export const SAMPLE_PARAMS = ['temperature', 'topK', 'topP', 'minP', 'repetitionPenalty'] as const;
export const SAMPLE_COLUMNS = 8;

/**
 * Draws one class a row, with counter-based random numbers (Philox4x32-10), so that a seed gives the same bytes on every
 * backend and in every batch.
 */
export function sample(
  g: Graph,
  tensors: {
    /** (B, V) f32 */
    logits: Tensor;
    /** (B, 8) f32, columns as SAMPLE_PARAMS */
    params: Tensor;
    /** (B, V) f32, added to the logits */
    bias?: Tensor | undefined;
    /** (B, 4) i32: seed low and high, counter low and high; advanced by one draw */
    rng: Tensor;
    /** (B, V) u8: classes seen so far, for the repetition penalty; updated */
    seen?: Tensor | undefined;
    /** (B) i32: receives the drawn classes */
    ids: Tensor;
    /** (B) f32: receives their log-probability under the unmodified logits */
    logprob?: Tensor | undefined;
  },
): void {
  const { logits, params, bias, rng, seen, ids, logprob } = tensors;
  const [B = 0, V = 0] = sizes(g, 'sample', 'logits', logits, 'B V');
  checkShape(g, 'sample', 'params', params, B, SAMPLE_COLUMNS);
  checkShape(g, 'sample', 'bias', bias, B, V);
  checkShape(g, 'sample', 'rng', rng, B, 4);
  checkShape(g, 'sample', 'seen', seen, B, V);
  checkDType(g, 'sample', 'ids', ids, 'i32');
  g.op('sample', { ids, logprob, rng, seen }, { logits, params, bias });
}
