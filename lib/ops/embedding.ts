import type { Graph } from '../graph.ts';
import type { Tensor } from '../tensor.ts';
import { checkDType, sizes } from './check.ts';

/**
 * Rows of a table.
 * @param ids (B, T) u8 or i32, each below V
 * @param table (V, D) f32 or bf16
 * @returns (B, T, D) f32
 */
export function embedding(g: Graph, ids: Tensor, table: Tensor): Tensor {
  const [, D = 0] = sizes(g, 'embedding', 'table', table, 'V D');
  checkDType(g, 'embedding', 'ids', ids, 'u8', 'i32');
  const y = g.value([...ids.shape, D], table.dtype === 'f64' ? 'f64' : 'f32');
  g.op('embedding', { y }, { table, ids }, {}, (d, into) => {
    const sink = into.accumulating('table');
    if (!sink) return;
    g.op('embedding_grad', { dtable: sink.tensors[0] }, { dy: d.y, ids }, { accumulate: Number(sink.accumulate) });
  });
  return y;
}
