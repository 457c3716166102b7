import { type GradientSink, type Graph, type GraphNode, isValue } from './graph.ts';
import { rootOf, Tensor } from './tensor.ts';

/** Gradient of one root tensor while it is being put together from the contributions of its uses. */
interface Gradient {
  tensor: Tensor;
  /** Column ranges written so far, when the uses are column views of the root. */
  written: [start: number, end: number][];
  /** The tensor is another value's gradient too, so it must not be added to in place. */
  shared?: boolean;
}

/**
 * Extends `g` with the backward ops of everything `loss` depends on, by calling each op's own rule in reverse order.
 * Parameter gradients are written to `gradientOf` (tensors with memory of their own).
 *
 * @param loss scalar (1) f32; its own gradient is `dloss` (1)
 * @param accumulate add to the parameter gradients instead of overwriting them (micro-batches)
 */
export function grad(
  g: Graph,
  loss: Tensor,
  dloss: Tensor,
  gradientOf: ReadonlyMap<Tensor, Tensor>,
  accumulate = false,
): void {
  const nodes = [...g.nodes];
  const needed = tensorsDependingOn(nodes, new Set(gradientOf.keys()));
  const gradients = new Map<Tensor, Gradient>([
    [rootOf(loss), { tensor: dloss, written: [[0, loss.cols]], shared: true }],
  ]);
  const writtenParams = new Set<Tensor>();

  for (const node of nodes.reverse()) {
    const d: Record<string, Tensor | undefined> = {};
    let any = false;
    node.outs.forEach((out, i) => {
      const name = node.op.outs[i];
      if (!out || name === undefined) return;
      const have = gradients.get(rootOf(out));
      if (!have || !needed.has(rootOf(out))) return;
      d[name] = gradientView(node, out, have);
      any = true;
    });
    if (!any) continue;
    if (!node.vjp) throw new Error(`grad: expected ${node.scope} to have a gradient rule, it has none.`);
    g.scope(`grad.${node.scope}`, () => backward(g, node, d, needed, gradients, gradientOf, writtenParams, accumulate));
  }
}

function backward(
  g: Graph,
  node: GraphNode,
  d: Record<string, Tensor | undefined>,
  needed: ReadonlySet<Tensor>,
  gradients: Map<Tensor, Gradient>,
  gradientOf: ReadonlyMap<Tensor, Tensor>,
  writtenParams: Set<Tensor>,
  accumulate: boolean,
): void {
  const after: (() => void)[] = [];
  const input = (name: string): Tensor | undefined => {
    const t = node.ins[operandIndex(node, name)];
    return t && needed.has(rootOf(t)) ? t : undefined;
  };
  /** Whether what is in the parameter's gradient must be kept. */
  const adds = (root: Tensor) => accumulate || writtenParams.has(root);

  const into = ((name: string) => {
    const t = input(name);
    if (!t) return undefined;
    const root = rootOf(t);
    const param = gradientOf.get(root);
    if (param) {
      const add = adds(root);
      writtenParams.add(root);
      const target = param.reshape(...t.shape);
      if (!add) return target;
      const part = g.value(t.shape, param.dtype);
      after.push(() => g.op('add', { y: target }, { a: target, b: part }));
      return part;
    }
    return valueSink(g, t, gradients, after);
  }) as GradientSink;

  into.accumulating = (...names: string[]) => {
    const inputs = names.map(input);
    if (inputs.every((t) => !t)) return undefined;
    const params = inputs.map((t) => (t ? gradientOf.get(rootOf(t)) : undefined));
    const add = inputs.some((t, i) => t && params[i] && adds(rootOf(t)));
    // The kernel adds to all of its parameter-like outputs or to none, so a mixed set is written aside and added after.
    const together = inputs.every((t, i) => !t || (params[i] && adds(rootOf(t)) === add));
    const tensors = inputs.map((t, i) => {
      if (!t) return undefined;
      const target = params[i]?.reshape(...t.shape);
      if (!target) return valueSink(g, t, gradients, after);
      if (together || !adds(rootOf(t))) return target;
      const part = g.value(t.shape, target.dtype);
      after.push(() => g.op('add', { y: target }, { a: target, b: part }));
      return part;
    });
    for (const t of inputs) if (t && gradientOf.has(rootOf(t))) writtenParams.add(rootOf(t));
    return { tensors, accumulate: add && together };
  };

  into.adding = (name: string) => {
    const t = input(name);
    if (!t) return undefined;
    const root = rootOf(t);
    const have = gradients.get(root);
    const whole = !gradientOf.has(root) && t.elems === root.elems;
    if (!whole || !have || !covers(have, root) || have.tensor.dtype !== root.dtype) {
      const tensor = into(name);
      return tensor && { tensor, add: undefined };
    }
    const sum = g.value(root.shape, root.dtype);
    gradients.set(root, { tensor: sum, written: [[0, root.cols]] });
    return { tensor: sum.reshape(...t.shape), add: have.tensor.reshape(...t.shape) };
  };

  into.same = (name: string, dt: Tensor) => {
    const t = input(name);
    if (!t) return;
    const root = rootOf(t);
    const whole = !gradientOf.has(root) && t.elems === root.elems;
    const have = gradients.get(root);
    if (whole && !have) {
      gradients.set(root, { tensor: dt.reshape(...root.shape), written: [[0, root.cols]], shared: true });
    } else if (whole && have && covers(have, root)) {
      const sum = g.value(root.shape, root.dtype);
      g.op('add', { y: sum }, { a: have.tensor, b: dt.reshape(...root.shape) });
      gradients.set(root, { tensor: sum, written: [[0, root.cols]] });
    } else {
      const place = into(name);
      if (place) g.op('copy', { y: place }, { x: dt });
    }
  };

  node.vjp?.(d, into);
  for (const fn of after) fn();
}

/** Where an input lies among the operands; those of a list are named by their number behind its name: `parts_1`. */
function operandIndex({ op }: GraphNode, name: string): number {
  const [list = ''] = op.ins;
  const listed = list.endsWith('_') && name.startsWith(list);
  return listed ? Number(name.slice(list.length)) : op.ins.indexOf(name);
}

/** Where the gradient of value `t` goes: straight into its place, or aside to be added when something is there already. */
function valueSink(g: Graph, t: Tensor, gradients: Map<Tensor, Gradient>, after: (() => void)[]): Tensor {
  const root = rootOf(t);
  const start = columnStart(root, t);
  const end = start + (t === root || t.elems === root.elems ? root.cols : t.cols);
  let have = gradients.get(root);
  if (!have) {
    have = { tensor: g.value(root.shape, root.dtype), written: [] };
    gradients.set(root, have);
  }
  const place = likeView(root, t, have.tensor);
  if (!have.written.some(([s, e]) => start < e && s < end)) {
    have.written.push([start, end]);
    return place;
  }
  const part = g.value(t.shape, t.dtype);
  after.push(() => {
    // Read now: another operand of the same op may have added its part since.
    const before = gradients.get(root) ?? have;
    if (t.elems !== root.elems) {
      const own = before.shared ? ownCopy(g, root, before) : before;
      gradients.set(root, own);
      const at = likeView(root, t, own.tensor);
      g.op('add', { y: at }, { a: at, b: part });
      return;
    }
    // The sum is a new value, since earlier ops may still read the old one.
    const sum = g.value(root.shape, root.dtype);
    g.op('add', { y: sum }, { a: before.tensor, b: part.reshape(...root.shape) });
    gradients.set(root, { tensor: sum, written: [[0, root.cols]] });
  });
  return part;
}

function ownCopy(g: Graph, root: Tensor, gradient: Gradient): Gradient {
  const tensor = g.value(root.shape, root.dtype);
  g.op('copy', { y: tensor }, { x: gradient.tensor });
  return { tensor, written: gradient.written };
}

/** True when a gradient was written as a whole, not by columns. */
function covers({ written }: Gradient, root: Tensor): boolean {
  return written[0]?.[0] === 0 && written[0][1] === root.cols;
}

/** The gradient of `out`, as the matching view of its root's gradient. */
function gradientView(node: GraphNode, out: Tensor, have: Gradient): Tensor {
  const root = rootOf(out);
  const covered = have.written.reduce((sum, [s, e]) => sum + e - s, 0);
  if (covered < root.cols) {
    throw new Error(
      `grad: only ${covered} of ${root.cols} columns made by ${node.scope} are used; split off all of them.`,
    );
  }
  return likeView(root, out, have.tensor);
}

/** `t` is a view of `root` (or root itself): the same view of `other`, which is shaped like root. */
function likeView(root: Tensor, t: Tensor, other: Tensor): Tensor {
  if (t === root) return other;
  if (t.elems === root.elems) return other.reshape(...t.shape);
  return new Tensor(t.shape, other.dtype, t.name, {
    base: rootOf(other),
    baseOffset: other.baseOffset + t.baseOffset,
    rowStride: t.rowStride,
  });
}

function columnStart(root: Tensor, t: Tensor): number {
  return t === root || t.elems === root.elems ? 0 : t.baseOffset % root.cols;
}

/** Roots of all tensors whose value changes with one of `sources`. */
function tensorsDependingOn(nodes: readonly GraphNode[], sources: ReadonlySet<Tensor>): Set<Tensor> {
  const found = new Set<Tensor>(sources);
  for (const node of nodes) {
    if (!node.ins.some((t) => t && found.has(rootOf(t)))) continue;
    for (const out of node.outs) if (out && isValue(out)) found.add(rootOf(out));
  }
  return found;
}
