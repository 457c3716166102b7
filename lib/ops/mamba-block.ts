import type { Graph } from '../graph.ts';
import type { Tensor } from '../tensor.ts';
import { checkShape, sizes } from './check.ts';

/** Most rows (batch times time) that one fused block takes; longer inputs run the block op by op. */
export const BLOCK_ROWS = 32;
/** Most sequences of which one step is a fused block on a GPU, with bf16 or int8 weights. */
export const BATCH_ROWS = 256;

export interface MambaBlockInputs {
  /** (B, T, D) */
  x: Tensor;
  normWeight: Tensor;
  /** Given: LayerNorm; left out: RMSNorm. */
  normBias?: Tensor | undefined;
  /** (2E, D) */
  inProj: Tensor;
  inScale?: Tensor | undefined;
  /** (E, K) */
  convWeight: Tensor;
  convBias?: Tensor | undefined;
  /** (R + 2N, E) */
  xProj: Tensor;
  xScale?: Tensor | undefined;
  /** (E, R) */
  dtProj: Tensor;
  dtScale?: Tensor | undefined;
  dtBias: Tensor;
  /** (E, N), -exp(A_log) */
  A: Tensor;
  D: Tensor;
  /** (D, E) */
  outProj: Tensor;
  outScale?: Tensor | undefined;
  /** (B, K-1, E) */
  convState: Tensor;
  /** (B, E, N) */
  ssmState: Tensor;
  /** Where the states after the last step go; left out: to where they came from. */
  convStateOut?: Tensor | undefined;
  ssmStateOut?: Tensor | undefined;
}

export interface MambaBlockOptions {
  eps: number;
  /** (T, B, (K-1)*E): receives the convolution state after every step. */
  keptConv?: Tensor | undefined;
  /** (T, B, E*N): receives the SSM state after every step. */
  keptSsm?: Tensor | undefined;
}

/**
 * One Mamba residual block, every part fused, for decoding and for verifying a few drafted bytes. The same as the ops of
 * `block` in models/mamba.ts one by one.
 * @returns (B, T, D): x plus the block's output
 */
export function mambaBlock(g: Graph, inputs: MambaBlockInputs, options: MambaBlockOptions): Tensor {
  const { x, convState, ssmState, convStateOut = convState, ssmStateOut = ssmState } = inputs;
  const [B = 0, T = 0] = sizes(g, 'mamba_block', 'x', x, 'B T D');
  const [E = 0, N = 0] = sizes(g, 'mamba_block', 'A', inputs.A, 'E N');
  checkShape(g, 'mamba_block', 'in_proj', inputs.inProj, 2 * E, x.cols);
  checkShape(g, 'mamba_block', 'out_proj', inputs.outProj, x.cols, E);
  checkShape(g, 'mamba_block', 'ssm_state', ssmState, B, E, N);
  checkShape(g, 'mamba_block', 'kept_ssm', options.keptSsm, T, B, E * N);
  const y = g.like(x);
  g.op(
    'mamba_block',
    {
      y,
      conv_state_out: convStateOut,
      ssm_state_out: ssmStateOut,
      kept_conv: options.keptConv,
      kept_ssm: options.keptSsm,
    },
    {
      x,
      norm_weight: inputs.normWeight,
      norm_bias: inputs.normBias,
      in_proj: inputs.inProj,
      in_scale: inputs.inScale,
      conv_weight: inputs.convWeight,
      conv_bias: inputs.convBias,
      x_proj: inputs.xProj,
      x_scale: inputs.xScale,
      dt_proj: inputs.dtProj,
      dt_scale: inputs.dtScale,
      dt_bias: inputs.dtBias,
      A: inputs.A,
      D: inputs.D,
      out_proj: inputs.outProj,
      out_scale: inputs.outScale,
      conv_state: convState,
      ssm_state: ssmState,
    },
    { eps: options.eps },
  );
  return y;
}
