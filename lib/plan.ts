import { type Device, typedError } from './device.ts';
import { type Graph, type GraphNode, isValue } from './graph.ts';
import type { NativePlan, RunOptions, RunResult } from './native.ts';
import { DTYPES, dtypeBytes, rootOf, type Storage, type Tensor, type TypedArray } from './tensor.ts';

const ALIGN = 64;

/** Where every value of a plan lives while it runs. */
interface Layout {
  readonly offsets: Map<Tensor, number>;
  readonly bytes: number;
}

/** A graph made ready to run on a device: memory laid out, one native call per run. */
export class Plan {
  readonly device: Device;
  readonly scopes: readonly string[];
  /** Bytes of memory that the plan's values share. */
  readonly arenaBytes: number;
  readonly #native: NativePlan;
  readonly #buffers: number[];
  readonly #places: ReadonlyMap<Tensor, Storage>;
  readonly #indices: ReadonlyMap<Tensor, number>;
  #disposed = false;

  constructor(
    device: Device,
    nativePlan: NativePlan,
    parts: {
      scopes: string[];
      arenaBytes: number;
      buffers: number[];
      places: Map<Tensor, Storage>;
      indices: Map<Tensor, number>;
    },
  ) {
    this.device = device;
    this.scopes = parts.scopes;
    this.arenaBytes = parts.arenaBytes;
    this.#native = nativePlan;
    this.#buffers = parts.buffers;
    this.#places = parts.places;
    this.#indices = parts.indices;
  }

  /**
   * Runs the plan, `steps` times in a row if asked, off the JS thread. `watch` names an i32 tensor whose contents are
   * returned after every step.
   */
  async run(options: Omit<RunOptions, 'watch'> & { watch?: Tensor } = {}): Promise<RunResult> {
    const { watch, ...rest } = options;
    try {
      const index = watch ? this.#indices.get(watch) : undefined;
      if (watch && index === undefined) throw new Error(`plan: ${watch.name} is not part of it.`);
      return await this.#native.run(index === undefined ? rest : { ...rest, watch: index });
    } catch (cause) {
      throw typedError(cause);
    }
  }

  /** Ends the current run between two steps; it resolves with what was done. */
  cancel(): void {
    if (!this.#disposed) this.#native.cancel();
  }

  /** Copies an output of the last run out. It must have been named when compiling, or have storage of its own. */
  read(t: Tensor): TypedArray {
    const place = this.#places.get(rootOf(t));
    return this.device.read(place ? placed(t, place) : t);
  }

  /** Seconds spent per node since the last call; the first call starts the measurement. */
  profile(): Float64Array {
    return this.#native.profile();
  }

  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#native.dispose();
    for (const buffer of this.#buffers) this.device.free(buffer);
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * Compiles a graph: drops what no output needs, computes once what depends on frozen tensors alone, gives values that do
 * not live at the same time the same memory, and encodes the rest into one native plan.
 *
 * @param outputs values to keep readable after a run; tensors with their own storage always are
 * @throws NativeError listing every node that the device cannot run
 */
export async function compile(device: Device, graph: Graph, outputs: readonly Tensor[] = []): Promise<Plan> {
  const kept = new Set(outputs.map(rootOf));
  const { setup, nodes } = splitFrozen(liveNodes(graph.nodes, kept));
  const places = new Map<Tensor, Storage>();
  const buffers: number[] = [];
  try {
    for (const node of setup) {
      for (const out of node.outs) {
        if (out) buffers.push(place(device, rootOf(out), places));
      }
    }
    if (setup.length > 0) {
      const once = encode(device, setup, places, { offsets: new Map(), bytes: 0 });
      await once.run();
      once.dispose();
    }
    for (const root of kept) {
      if (isValue(root) && !places.has(root)) buffers.push(place(device, root, places));
    }
    return encode(device, nodes, places, layOut(nodes, places), buffers);
  } catch (error) {
    for (const buffer of buffers) device.free(buffer);
    throw error;
  }
}

/** Compiles, runs once and reads `outputs`. */
export async function evaluate(device: Device, graph: Graph, outputs: readonly Tensor[]): Promise<TypedArray[]> {
  using plan = await compile(device, graph, outputs);
  await plan.run();
  return outputs.map((t) => plan.read(t));
}

function place(device: Device, root: Tensor, places: Map<Tensor, Storage>): number {
  const buffer = device.alloc(root.bytes);
  places.set(root, { buffer, offset: 0 });
  return buffer;
}

/** A stand-in for `t` whose root has storage. */
function placed(t: Tensor, storage: Storage): Tensor {
  return Object.assign(Object.create(Object.getPrototypeOf(t)), t, {
    storage: { buffer: storage.buffer, offset: storage.offset + t.baseOffset * dtypeBytes(t.dtype) },
    base: undefined,
    baseOffset: 0,
  }) as Tensor;
}

/** Nodes that write to storage, to a kept value, or to what such a node reads. */
function liveNodes(nodes: readonly GraphNode[], kept: ReadonlySet<Tensor>): GraphNode[] {
  const wanted = new Set(kept);
  const live: GraphNode[] = [];
  for (const node of [...nodes].reverse()) {
    if (!node.outs.some((t) => t && (!isValue(t) || wanted.has(rootOf(t))))) continue;
    live.push(node);
    for (const t of [...node.ins, ...node.outs]) if (t) wanted.add(rootOf(t));
  }
  return live.reverse();
}

/** Splits off the nodes whose inputs never change: they run once, when compiling. */
function splitFrozen(nodes: readonly GraphNode[]): { setup: GraphNode[]; nodes: GraphNode[] } {
  const frozen = new Set<Tensor>();
  const isFrozen = (t: Tensor) => rootOf(t).frozen || frozen.has(rootOf(t));
  const setup: GraphNode[] = [];
  const rest: GraphNode[] = [];
  for (const node of nodes) {
    const once = node.ins.every((t) => !t || isFrozen(t)) && node.outs.every((t) => !t || isValue(t));
    (once ? setup : rest).push(node);
    if (once) for (const t of node.outs) if (t) frozen.add(rootOf(t));
  }
  return { setup, nodes: rest };
}

/** First-fit placement by lifetime: a value's memory is free again after the last node that names it. */
function layOut(nodes: readonly GraphNode[], places: ReadonlyMap<Tensor, Storage>): Layout {
  const lastUse = new Map<Tensor, number>();
  nodes.forEach((node, i) => {
    for (const t of [...node.outs, ...node.ins]) {
      if (t && isValue(t) && !places.has(rootOf(t))) lastUse.set(rootOf(t), i);
    }
  });
  const offsets = new Map<Tensor, number>();
  const live: { start: number; end: number; until: number }[] = []; // ordered by start
  let bytes = 0;
  nodes.forEach((node, i) => {
    for (let j = live.length - 1; j >= 0; j--) if ((live[j]?.until ?? i) < i) live.splice(j, 1);
    for (const t of [...node.outs, ...node.ins]) {
      if (!t) continue;
      const root = rootOf(t);
      const until = lastUse.get(root);
      if (until === undefined || offsets.has(root)) continue;
      const size = Math.ceil(Math.max(root.bytes, 1) / ALIGN) * ALIGN;
      let start = 0;
      let at = 0;
      for (; at < live.length; at++) {
        const block = live[at];
        if (!block || block.start - start >= size) break;
        start = Math.max(start, block.end);
      }
      live.splice(at, 0, { start, end: start + size, until });
      offsets.set(root, start);
      bytes = Math.max(bytes, start + size);
    }
  });
  return { offsets, bytes };
}

/** Turns nodes into the arrays of native/binding/decode.h. */
function encode(
  device: Device,
  nodes: readonly GraphNode[],
  places: Map<Tensor, Storage>,
  layout: Layout,
  owned: number[] = [],
): Plan {
  const arena = layout.bytes > 0 ? device.alloc(layout.bytes) : 0;
  const buffers = arena ? [...owned, arena] : owned;
  const tensors: number[] = [];
  const indices = new Map<Tensor, number>();
  const index = (t: Tensor | undefined): number => {
    if (!t) return -1;
    const known = indices.get(t);
    if (known !== undefined) return known;
    const root = rootOf(t);
    const offset = layout.offsets.get(root);
    const storage = root.storage ?? places.get(root) ?? (offset === undefined ? undefined : { buffer: arena, offset });
    if (!storage) throw new Error(`plan: ${t.name} is read before anything wrote it.`);
    const [a = 1, b = 1, c = 1, d = 1] = t.shape;
    const at = storage.offset + t.baseOffset * dtypeBytes(t.dtype);
    tensors.push(storage.buffer, at, DTYPES.indexOf(t.dtype), t.shape.length, a, b, c, d, t.rowStride);
    indices.set(t, indices.size);
    return indices.size - 1;
  };
  const codes: number[] = [];
  const attrs: number[] = [];
  const scopes: string[] = [];
  for (const node of nodes) {
    codes.push(node.op.index, scopes.length, node.outs.length, node.ins.length, node.attrs.length);
    for (const t of node.outs) codes.push(index(t));
    for (const t of node.ins) codes.push(index(t));
    attrs.push(...node.attrs);
    scopes.push(node.scope);
  }
  try {
    const plan = device.compile(Float64Array.from(tensors), Int32Array.from(codes), Float64Array.from(attrs), scopes);
    return new Plan(device, plan, { scopes, arenaBytes: layout.bytes, buffers, places, indices });
  } catch (error) {
    if (arena) device.free(arena);
    throw error;
  }
}
