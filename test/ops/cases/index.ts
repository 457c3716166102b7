import type { OpCase } from '../../support/cases.ts';
import { adamw } from './adamw.ts';
import { attention } from './attention.ts';
import { causalConv } from './causal-conv.ts';
import { crossEntropy } from './cross-entropy.ts';
import { diagonalSsm } from './diagonal-ssm.ts';
import { elementwise } from './elementwise.ts';
import { embedding } from './embedding.ts';
import { linear } from './linear.ts';
import { mambaBatches, mambaBlock } from './mamba-block.ts';
import { norm } from './norm.ts';
import { rope } from './rope.ts';
import { sample } from './sample.ts';
import { selectiveScan } from './selective-scan.ts';
import { shape } from './shape.ts';

const all: readonly OpCase[] = [
  ...embedding,
  ...linear,
  ...norm,
  ...elementwise,
  ...shape,
  ...causalConv,
  ...selectiveScan,
  ...diagonalSsm,
  ...mambaBlock,
  ...rope,
  ...attention,
  ...crossEntropy,
  ...adamw,
  ...sample,
];

/** Every case of every op, by op. */
export const casesByOp: ReadonlyMap<string, OpCase[]> = new Map(
  [...new Set(all.map((c) => c.op))].map((op) => [op, all.filter((c) => c.op === op)]),
);

/** Cases that only a GPU takes, by op. */
export const casesOfGpu: ReadonlyMap<string, OpCase[]> = new Map([['mamba_block', mambaBatches]]);
