import { native } from './native.ts';
import { type DType, rootOf, Tensor, type TypedArray } from './tensor.ts';

/** What `vjp` asks for: where to write the gradient of an input, or undefined when nobody needs it. */
export interface GradientSink {
  /** Overwrite the returned tensor. */
  (input: string): Tensor | undefined;
  /** For ops that can add to what is there: overwrite, or add when `accumulate` is set. */
  accumulating(...inputs: string[]): { tensors: (Tensor | undefined)[]; accumulate: boolean } | undefined;
  /** For ops that can write `their part + add`, where `add` is what other uses of `input` have contributed so far. */
  adding(input: string): { tensor: Tensor; add: Tensor | undefined } | undefined;
  /** The gradient of `input` is `d` itself: nothing needs to be copied. */
  same(input: string, d: Tensor): void;
}

/** Records the ops that turn output gradients (by output name) into input gradients. */
export type Vjp = (d: Record<string, Tensor | undefined>, into: GradientSink) => void;

export type Operands = Record<string, Tensor | readonly Tensor[] | undefined>;

/** One recorded op; operands in the order of the op table. */
export interface GraphNode {
  readonly op: OpSignature;
  readonly scope: string;
  readonly outs: (Tensor | undefined)[];
  readonly ins: (Tensor | undefined)[];
  readonly attrs: number[];
  readonly vjp: Vjp | undefined;
  /** Run again where a gradient needs its outputs, instead of keeping them (see recompute.ts). */
  readonly recomputed: boolean;
}

export interface OpSignature {
  readonly index: number;
  readonly name: string;
  readonly outs: readonly string[];
  readonly ins: readonly string[];
  readonly attrs: readonly string[];
  /** Outputs that may be left out. */
  readonly optionalOuts: ReadonlySet<string>;
}

let table: Map<string, OpSignature> | undefined;

/** The op table of the loaded addon (native/ops.def), by name. */
export function opTable(): Map<string, OpSignature> {
  // A trailing `?` marks an operand that may be absent; native code checks the others.
  const names = (list: string) => list.split(',').map((s) => s.replace('?', '').trim());
  const optional = (list: string) =>
    names(
      list
        .split(',')
        .filter((s) => s.includes('?'))
        .join(),
    );
  table ??= new Map(
    native()
      .binding.opTable()
      .map(([name, outs, ins, attrs], index) => [
        name,
        {
          index,
          name,
          outs: names(outs),
          ins: names(ins),
          attrs: names(attrs).filter(Boolean),
          optionalOuts: new Set(optional(outs)),
        },
      ]),
  );
  return table;
}

/** Records ops in order. What it describes runs only when compiled into a plan. */
export class Graph {
  readonly nodes: GraphNode[] = [];
  /** What the plan is given beside memory: `constant`. */
  readonly constants = new Map<Tensor, TypedArray>();
  #scopes: string[] = [];
  #recomputed = false;
  #values = 0;

  /** Names everything recorded inside `fn`, for messages and profiles: "layers.3.mixer". */
  scope<T>(name: string, fn: () => T): T {
    this.#scopes.push(name);
    try {
      return fn();
    } finally {
      this.#scopes.pop();
    }
  }
  /** Marks everything recorded inside `fn` to be run again in the backward pass rather than kept for it. */
  recomputed<T>(fn: () => T): T {
    const before = this.#recomputed;
    this.#recomputed = true;
    try {
      return fn();
    } finally {
      this.#recomputed = before;
    }
  }
  get scopeName(): string {
    return this.#scopes.join('.');
  }

  /** A tensor that the plan gives memory. */
  value(shape: readonly number[], dtype: DType = 'f32'): Tensor {
    return new Tensor(shape, dtype, `%${this.#values++}`);
  }
  /** An i32 tensor that never changes: which rows to take, where to begin. */
  constant(data: Int32Array, shape: readonly number[] = [data.length]): Tensor {
    const t = new Tensor(shape, 'i32', `%${this.#values++}`, { frozen: true });
    this.constants.set(t, data);
    return t;
  }
  /** A value shaped and typed like `t`. */
  like(t: Tensor): Tensor {
    return this.value(t.shape, t.dtype);
  }

  /** Records one op. Operand names are those of native/ops.def; left-out ones are absent. */
  op(name: string, outs: Operands, ins: Operands, attrs: Record<string, number> = {}, vjp?: Vjp): void {
    const op = opTable().get(name);
    if (!op) {
      throw new Error(
        `mambabyte: the native addon has no op "${name}". It is older than lib/: rebuild it (npm run build).`,
      );
    }
    this.nodes.push({
      op,
      scope: this.scopeName ? `${this.scopeName}.${name}` : name,
      outs: arrange(name, op.outs, outs),
      ins: arrange(name, op.ins, ins),
      attrs: arrangeAttrs(name, op.attrs, attrs),
      vjp,
      recomputed: this.#recomputed,
    });
  }
}

function arrange(op: string, names: readonly string[], given: Operands): (Tensor | undefined)[] {
  for (const name of Object.keys(given)) {
    if (!names.includes(name))
      throw new Error(`${op}: no operand "${name}" in the op table; rebuild the native addon.`);
  }
  const last = names.at(-1);
  if (names.length === 1 && last?.endsWith('_')) return [...((given[last] ?? []) as readonly Tensor[])];
  return names.map((name) => given[name] as Tensor | undefined);
}

function arrangeAttrs(op: string, names: readonly string[], given: Record<string, number>): number[] {
  for (const name of Object.keys(given)) {
    if (!names.includes(name))
      throw new Error(`${op}: no attribute "${name}" in the op table; rebuild the native addon.`);
  }
  return names.map((name) => given[name] ?? 0);
}

/** True when `t` gets its memory from the plan. */
export function isValue(t: Tensor): boolean {
  return rootOf(t).storage === undefined;
}
