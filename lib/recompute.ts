// Activation recomputation (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"): what the forward pass
// marked is run again right before the gradients that read it, so that its memory is free in between. Same kernels on
// the same inputs: the same bits.
import { type Graph, type GraphNode, isValue } from './graph.ts';
import { rootOf, Tensor } from './tensor.ts';

/**
 * Lets the nodes from `backward` on read fresh copies of what marked nodes before it made (`g.recomputed`).
 * @param backward number of nodes of the forward pass
 */
export function recompute(g: Graph, backward: number): void {
  const forward = g.nodes.slice(0, backward);
  const producer = new Map<Tensor, GraphNode>();
  for (const node of forward) {
    if (!node.recomputed) continue;
    for (const out of node.outs) if (out) producer.set(rootOf(checked(node, out)), node);
  }
  if (producer.size === 0) return;

  const nodes: GraphNode[] = [];
  const copies = new Map<Tensor, Tensor>(); // by root
  const again = new Set<GraphNode>();
  const copyOf = (t: Tensor | undefined): Tensor | undefined => {
    const node = t && producer.get(rootOf(t));
    if (!t || !node) return t;
    if (!again.has(node)) {
      again.add(node);
      const ins = node.ins.map(copyOf); // runs what this one reads first
      for (const out of node.outs) if (out && !copies.has(rootOf(out))) copies.set(rootOf(out), g.like(rootOf(out)));
      nodes.push({ ...node, scope: `again.${node.scope}`, ins, outs: node.outs.map((out) => out && viewOf(out)) });
    }
    return viewOf(t);
  };
  const viewOf = (t: Tensor): Tensor => {
    const root = rootOf(t);
    const copy = copies.get(root) ?? root;
    if (t === root) return copy;
    return new Tensor(t.shape, t.dtype, t.name, { base: copy, baseOffset: t.baseOffset, rowStride: t.rowStride });
  };
  for (const node of g.nodes.slice(backward)) {
    const ins = node.ins.map(copyOf);
    nodes.push({ ...node, ins });
  }
  g.nodes.splice(backward, g.nodes.length, ...nodes);
}

function checked(node: GraphNode, out: Tensor): Tensor {
  if (isValue(out)) return out;
  throw new Error(`recompute: expected ${node.scope} to write values alone, it writes ${out.name}.`);
}
