import type { Device } from '../../lib/device.ts';
import { Graph } from '../../lib/graph.ts';
import { compile } from '../../lib/plan.ts';
import type { DType, Tensor } from '../../lib/tensor.ts';
import { compare, TOLERANCES, type ToleranceName } from './close.ts';
import { Fenced, type Operand } from './poison.ts';
import { hash, Random } from './random.ts';

export type Operands = Record<string, Operand | readonly Operand[] | undefined>;

/** One op on given operands. */
export interface OpCase {
  title: string;
  op: string;
  outs: Record<string, Operand | undefined>;
  ins: Operands;
  attrs: Record<string, number>;
  /** Tolerance for a target; by output where they differ. */
  close: (target: string, output: string) => ToleranceName;
  /** A GPU has no kernel for it, and must say so. */
  onlyOnCpu?: boolean | undefined;
}

/** What a table says of one case, given the sizes and options of a row. */
export interface CaseParts {
  outs: Record<string, Operand | undefined>;
  ins: Operands;
  attrs?: Record<string, number>;
  close: ToleranceName | ((target: string, output: string) => ToleranceName);
  onlyOnCpu?: boolean;
}

export type Row = Record<string, number | boolean | string>;

/** A table: rows of sizes and options, and what they mean for one op. */
export function cases<R extends Row>(
  op: string,
  rows: readonly R[],
  build: (row: R, random: Random) => CaseParts,
): OpCase[] {
  return rows.map((row) => {
    const words = Object.entries(row).filter(([, v]) => v !== false);
    const title = words.map(([k, v]) => (v === true ? k : /^[A-Z]+$/.test(k) ? `${k}${v}` : `${k} ${v}`)).join(' ');
    let made: CaseParts | undefined;
    const parts = () => {
      made ??= build(row, new Random(hash(`${op} ${title}`)));
      return made;
    };
    // Drawn when they are first wanted: most runs want a part of a table.
    return {
      title,
      op,
      get outs() {
        return parts().outs;
      },
      get ins() {
        return parts().ins;
      },
      get attrs() {
        return parts().attrs ?? {};
      },
      close: (target, output) => {
        const { close } = parts();
        return typeof close === 'string' ? close : close(target, output);
      },
      get onlyOnCpu() {
        return parts().onlyOnCpu;
      },
    };
  });
}

/**
 * A small set of rows in which every two values of two axes meet at least once (pairwise covering), built greedily, so
 * the same axes always give the same rows.
 */
export function pairs<const A extends Record<string, readonly (number | boolean | string)[]>>(
  axes: A,
): { [K in keyof A]: A[K][number] }[] {
  const names = Object.keys(axes);
  const values = names.map((n) => axes[n] as readonly (number | boolean | string)[]);
  const open = new Set<string>();
  const key = (a: number, i: number, b: number, j: number) => (a < b ? `${a}:${i},${b}:${j}` : `${b}:${j},${a}:${i}`);
  for (let a = 0; a < names.length; a++) {
    for (let b = a + 1; b < names.length; b++) {
      for (let i = 0; i < (values[a]?.length ?? 0); i++) {
        for (let j = 0; j < (values[b]?.length ?? 0); j++) open.add(key(a, i, b, j));
      }
    }
  }
  const rows: number[][] = [];
  while (open.size > 0) {
    const first = /^(\d+):(\d+),(\d+):(\d+)$/.exec([...open][0] ?? '');
    const row: number[] = names.map(() => -1);
    row[Number(first?.[1])] = Number(first?.[2]);
    row[Number(first?.[3])] = Number(first?.[4]);
    names.forEach((_, a) => {
      if ((row[a] ?? -1) >= 0) return;
      let best = rows.length % (values[a]?.length ?? 1);
      let most = -1;
      for (let step = 0; step < (values[a]?.length ?? 0); step++) {
        const i = (step + rows.length) % (values[a]?.length ?? 1);
        const covered = row.filter((j, b) => j >= 0 && open.has(key(a, i, b, j))).length;
        if (covered > most) {
          most = covered;
          best = i;
        }
      }
      row[a] = best;
    });
    row.forEach((i, a) => {
      row.forEach((j, b) => {
        if (a < b) open.delete(key(a, i, b, j));
      });
    });
    rows.push(row);
  }
  return rows.map(
    (row) => Object.fromEntries(names.map((n, a) => [n, values[a]?.[row[a] ?? 0]])) as { [K in keyof A]: A[K][number] },
  );
}

/** An operand with contents. */
export function given(dtype: DType, shape: readonly number[], values: ArrayLike<number>, pad = 0): Operand {
  return { dtype, shape, values, pad };
}
/** An output to be written whole. */
export function blank(shape: readonly number[], pad = 0, dtype: DType = 'f32'): Operand {
  return { dtype, shape, pad };
}

/**
 * The cases that a slow run takes, as under a sanitizer: with MAMBABYTE_TEST_EVERY=8 every eighth and the last, which is
 * often the largest.
 */
export function thinned(list: readonly OpCase[]): readonly OpCase[] {
  const every = Number(process.env.MAMBABYTE_TEST_EVERY || 1);
  return list.filter((_, i) => i % every === 0 || i === list.length - 1);
}

export function size(...shape: number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}

/** What running a case gave: per output its elements, and the first fault of memory around it. */
export type Outcome = Map<string, { values: Float64Array; fault: string | undefined }>;

/** Runs a case on a device: outputs poisoned, every operand fenced and off its natural alignment by `shift` elements. */
export async function runCase(device: Device, c: OpCase, shift = 1): Promise<Outcome> {
  const fenced = new Map<string, Fenced>();
  const place = (name: string, operand: Operand): Tensor => {
    const f = new Fenced(device, name, operand, shift);
    fenced.set(name, f);
    return f.tensor;
  };
  const ins: Record<string, Tensor | Tensor[] | undefined> = {};
  for (const [name, operand] of Object.entries(c.ins)) {
    if (isList(operand)) ins[name] = operand.map((o, i) => place(`${name}${i}`, o));
    else if (operand) ins[name] = place(name, operand);
  }
  const outs: Record<string, Tensor> = {};
  const owner = new Map<string, string>();
  for (const [name, operand] of Object.entries(c.outs)) {
    if (!operand) continue;
    owner.set(name, operand.same ?? `out ${name}`);
    outs[name] = operand.same ? (ins[operand.same] as Tensor) : place(`out ${name}`, operand);
  }
  const g = new Graph();
  g.op(c.op, outs, ins, c.attrs);
  const plan = await compile(device, g);
  try {
    await plan.run();
    const outcome: Outcome = new Map();
    for (const [name, of] of owner) {
      const result = fenced.get(of)?.collect();
      if (result) outcome.set(name, result);
    }
    for (const [name, f] of fenced) {
      if ([...owner.values()].includes(name)) continue;
      const { fault } = f.collect();
      if (fault) outcome.set(name, { values: new Float64Array(0), fault });
    }
    return outcome;
  } finally {
    plan.dispose();
    for (const f of fenced.values()) f.free();
  }
}

function isList(operand: Operands[string]): operand is readonly Operand[] {
  return Array.isArray(operand);
}

/** Everything in which `got` differs from the reference outcome `want` on a target. */
export function differences(c: OpCase, target: string, got: Outcome, want: Outcome): string[] {
  const found: string[] = [];
  for (const [name, { values, fault }] of got) {
    if (fault) found.push(`${name}: ${fault}`);
    const reference = want.get(name);
    const wrong = reference && compare(values, reference.values, TOLERANCES[c.close(target, name)]);
    if (wrong) found.push(`${name}: ${wrong}`);
  }
  for (const name of want.keys()) if (!got.has(name)) found.push(`${name}: no result`);
  return found.map((text) => `${c.op} · ${c.title} · ${text}`);
}

/** True when two outcomes agree in every bit. */
export function sameBits(a: Outcome, b: Outcome): boolean {
  return [...a].every(([name, { values }]) => {
    const other = b.get(name)?.values;
    if (other?.length !== values.length) return false;
    for (let i = 0; i < values.length; i++) if (!Object.is(values[i], other[i])) return false;
    return true;
  });
}
