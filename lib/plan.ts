import { type Device, typedError } from './device.ts';
import { expected } from './errors.ts';
import { type Graph, type GraphNode, isValue } from './graph.ts';
import type { NativePlan, RunOptions, RunResult } from './native.ts';
import { DTYPES, dtypeBytes, rootOf, type Storage, type Tensor, type TypedArray } from './tensor.ts';

const ALIGN = 256; // what a GPU's widest loads and copies like

/**
 * Runs that take less (ms) are not handed to another thread where it matters. There and back takes up to 0.1 ms, and on a
 * CPU whose cores are all in use now and then several: the thread that waits may find its core taken.
 */
const BRIEF_MS = 8;
/** How long (ms) such runs may keep timers, signals and everything else of the JS thread waiting. */
const TURN_MS = 4;
/** When the first brief run since the event loop's last turn began. */
let turnBegan: number | undefined;

/** Lets the event loop turn where brief runs have kept it for too long. */
async function turnIfDue(): Promise<void> {
  const now = performance.now();
  if (turnBegan !== undefined && now - turnBegan > TURN_MS) await new Promise(setImmediate);
  if (turnBegan !== undefined) return;
  turnBegan = now;
  setImmediate(() => {
    turnBegan = undefined;
  });
}

type StepOptions = Omit<RunOptions, 'watch'> & { watch?: Tensor };

/** An i32 or f32 tensor, and where its contents after a run go. */
interface Watched {
  readonly watch: Tensor;
  readonly out: Int32Array | Float32Array;
}

function checkWatched({ watch, out }: Watched): void {
  const kind = watch.dtype === 'i32' ? Int32Array : watch.dtype === 'f32' ? Float32Array : undefined;
  if (kind && out instanceof kind && out.length === watch.elems) return;
  const shouldBe = `be the array for ${watch.name}, ${watch.elems} elements in ${watch.dtype}`;
  throw new TypeError(expected('plan.runBrief', 'out', shouldBe, `${out.length} in a ${out.constructor.name}`));
}

/** Where every value of a plan lives while it runs. */
interface Layout {
  readonly offsets: Map<Tensor, number>;
  readonly bytes: number;
}

/**
 * Memory that several plans of one device use in turn for their values: plans run one after another, and values do not
 * outlive a run. Grows to what the largest plan needs.
 */
export class Arena {
  readonly #device: Device;
  readonly #blocks: { buffer: number; bytes: number }[] = []; // plans compiled before still use the smaller ones

  constructor(device: Device) {
    this.#device = device;
  }

  /** Bytes held. */
  get bytes(): number {
    return this.#blocks.reduce((sum, block) => sum + block.bytes, 0);
  }

  /** A buffer of at least `bytes`. */
  buffer(bytes: number): number {
    const found = this.#blocks.find((block) => block.bytes >= bytes);
    if (found) return found.buffer;
    const buffer = this.#device.alloc(bytes);
    this.#blocks.push({ buffer, bytes });
    return buffer;
  }

  /** Gives the memory back; plans that use it must not run again. */
  dispose(): void {
    for (const { buffer } of this.#blocks.splice(0)) this.#device.free(buffer);
  }
}

/** A graph made ready to run on a device: memory laid out, one native call per run. */
export class Plan {
  readonly device: Device;
  readonly scopes: readonly string[];
  /** What it runs, in order. */
  readonly nodes: readonly GraphNode[];
  /** Bytes of memory that the plan's values share. */
  readonly arenaBytes: number;
  readonly #native: NativePlan;
  readonly #buffers: number[];
  readonly #places: ReadonlyMap<Tensor, Storage>;
  readonly #indices: ReadonlyMap<Tensor, number>;
  #steps = 0;
  #seconds = 0;
  /** Milliseconds of a step of the last run. */
  #last = Number.NaN;
  #disposed = false;

  constructor(
    device: Device,
    nativePlan: NativePlan,
    parts: {
      scopes: string[];
      nodes: readonly GraphNode[];
      arenaBytes: number;
      buffers: number[];
      places: Map<Tensor, Storage>;
      indices: Map<Tensor, number>;
    },
  ) {
    this.device = device;
    this.scopes = parts.scopes;
    this.nodes = parts.nodes;
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
  run(options: StepOptions = {}): Promise<RunResult> {
    return this.#timed(() => this.#native.run(this.#named(options)));
  }

  /**
   * The same, on the JS thread where it takes as little as the last run lets expect and the device rests. For what is run
   * again and again with something to decide in between.
   */
  async runStepsBrief(options: StepOptions): Promise<RunResult> {
    const { steps = 1 } = options;
    if (!(this.#last * steps < BRIEF_MS)) return this.run(options);
    await turnIfDue();
    return this.#timed(() => {
      const named = this.#named(options);
      return this.#native.runStepsHere(named) ?? this.#native.run(named);
    });
  }

  /**
   * Runs the plan once, on the JS thread where that is brief and the device rests; else as `run` does.
   *
   * @param watched what to hand over, sooner than a `read` has it; readable as there
   * @throws TypeError when `out` is no array for what is watched
   */
  async runBrief(watched?: Watched): Promise<void> {
    if (watched) checkWatched(watched);
    const index = watched && this.#indexOf(watched.watch);
    if (await this.#runHere(true, index, watched?.out)) return;
    await this.run();
    if (watched) this.read(watched.watch, watched.out);
  }

  /**
   * As `runBrief`, but may resolve before a device of its own has ended the run: what is read, written or run there comes
   * after it, and gets its error if there is one.
   */
  async startBrief(): Promise<void> {
    if (!(await this.#runHere(false))) await this.run();
  }

  #named({ watch, ...rest }: StepOptions): RunOptions {
    return watch ? { ...rest, watch: this.#indexOf(watch) } : rest;
  }

  async #timed(run: () => RunResult | Promise<RunResult>): Promise<RunResult> {
    const start = performance.now();
    try {
      const result = await run();
      this.#ran(result.steps, performance.now() - start);
      return result;
    } catch (cause) {
      throw typedError(cause);
    }
  }

  /** Whether it ran on this thread. */
  async #runHere(wait: boolean, watch?: number, out?: Watched['out']): Promise<boolean> {
    if (!(this.#last < BRIEF_MS)) return false;
    await turnIfDue();
    const start = performance.now();
    try {
      if (!this.#native.runHere(wait, watch, out)) return false;
    } catch (cause) {
      throw typedError(cause);
    }
    this.#ran(1, performance.now() - start);
    return true;
  }

  #indexOf(t: Tensor): number {
    const index = this.#indices.get(t);
    if (index === undefined) throw new Error(`plan: ${t.name} is not part of it.`);
    return index;
  }

  #ran(steps: number, ms: number): void {
    this.#steps += steps;
    this.#seconds += ms / 1000;
    this.#last = ms / steps;
  }

  /** Steps that all runs so far have done. */
  get steps(): number {
    return this.#steps;
  }

  /** Seconds from the call to the end of all runs so far; of those that were only started, to that. */
  get seconds(): number {
    return this.#seconds;
  }

  /** Ends the current run between two steps; it resolves with what was done. */
  cancel(): void {
    if (!this.#disposed) this.#native.cancel();
  }

  /**
   * Copies an output of the last run out, to `out` if given. It must have been named when compiling, or have storage of
   * its own.
   */
  read(t: Tensor, out?: TypedArray): TypedArray {
    const place = this.#places.get(rootOf(t));
    return this.device.read(place ? placed(t, place) : t, out);
  }

  /** Seconds spent per node since the last call; the first call starts the measurement. */
  profile(): Float64Array {
    return this.#native.profile();
  }

  get disposed(): boolean {
    return this.#disposed;
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
 * @param arena memory for all other values; default: the plan's own
 * @throws NativeError listing every node that the device cannot run
 */
export async function compile(
  device: Device,
  graph: Graph,
  outputs: readonly Tensor[] = [],
  arena?: Arena,
): Promise<Plan> {
  const { setup, nodes, apart, constants } = prepare(graph, outputs);
  const places = new Map<Tensor, Storage>();
  const buffers: number[] = [];
  try {
    for (const root of apart) buffers.push(place(device, root, places));
    for (const [t, data] of constants) device.write(placed(t, places.get(t) as Storage), data);
    if (setup.length > 0) {
      const once = encode(device, setup, places, { offsets: new Map(), bytes: 0 });
      await once.run();
      once.dispose();
    }
    return encode(device, nodes, places, layOut(nodes, apart), buffers, arena);
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

/** Bytes that the values of a plan need together, without compiling it. */
export function arenaBytes(graph: Graph, outputs: readonly Tensor[] = []): number {
  const { nodes, apart } = prepare(graph, outputs);
  return layOut(nodes, apart).bytes;
}

/** What runs once, what runs every time, and the values that need memory of their own. */
function prepare(graph: Graph, outputs: readonly Tensor[]) {
  const kept = new Set(outputs.map(rootOf));
  const { setup, nodes } = splitFrozen(liveNodes(graph.nodes, kept));
  const apart = new Set([...kept].filter(isValue));
  for (const node of setup) for (const out of node.outs) if (out) apart.add(rootOf(out));
  const read = new Set([...setup, ...nodes].flatMap(({ ins }) => ins.map((t) => t && rootOf(t))));
  const constants = [...graph.constants].filter(([t]) => read.has(t));
  for (const [t] of constants) apart.add(t);
  return { setup, nodes, apart, constants };
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

/** Nodes that write to storage, to a kept value, or to what such a node reads; without optional outputs nobody reads. */
function liveNodes(nodes: readonly GraphNode[], kept: ReadonlySet<Tensor>): GraphNode[] {
  const wanted = new Set(kept);
  const live: GraphNode[] = [];
  for (const node of [...nodes].reverse()) {
    const needed = (t: Tensor | undefined) => t && (!isValue(t) || wanted.has(rootOf(t)));
    if (!node.outs.some(needed)) continue;
    const outs = node.outs.map((t, i) =>
      needed(t) || !node.op.optionalOuts.has(node.op.outs[i] ?? '') ? t : undefined,
    );
    live.push({ ...node, outs });
    for (const t of [...node.ins, ...outs]) if (t) wanted.add(rootOf(t));
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
function layOut(nodes: readonly GraphNode[], apart: ReadonlySet<Tensor>): Layout {
  const lastUse = new Map<Tensor, number>();
  nodes.forEach((node, i) => {
    for (const t of [...node.outs, ...node.ins]) {
      if (t && isValue(t) && !apart.has(rootOf(t))) lastUse.set(rootOf(t), i);
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
  shared?: Arena,
): Plan {
  const arena = layout.bytes === 0 ? 0 : (shared?.buffer(layout.bytes) ?? device.alloc(layout.bytes));
  const ownArena = arena && !shared;
  const buffers = ownArena ? [...owned, arena] : owned;
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
    const made = new Plan(device, plan, { scopes, nodes, arenaBytes: layout.bytes, buffers, places, indices });
    device.onPlan?.(made);
    return made;
  } catch (error) {
    if (ownArena) device.free(arena);
    throw error;
  }
}
