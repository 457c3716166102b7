// Data parallelism (Li et al. 2020, "PyTorch Distributed"): every rank computes the gradients of its rows of a batch;
// they are summed over the ranks in buckets, each as soon as the backward pass has written the last of it, so that the
// sums travel while the rest of the backward pass computes.
import type { Window } from '../data/windows.ts';
import type { Device } from '../device.ts';
import { type Graph, isValue } from '../graph.ts';
import { dtypeBytes, elements, rootOf, Tensor } from '../tensor.ts';

/** One of several processes that train one model together, each on a GPU of its own. */
export interface Rank {
  /** From 0; the first one evaluates, logs and saves. */
  readonly rank: number;
  readonly world: number;
  /** Waits for all ranks; `all_reduce` nodes of plans compiled on `device` afterwards sum over them. */
  join(device: Device): Promise<void>;
  /** This rank wants training to end; all hear of it with the next step ... */
  wantsEnd: boolean;
  /** ... and end after the same one: whether any rank wanted it in the last step. */
  ending: boolean;
  /** Runs `write`, which the end of another rank must not cut short. */
  saving<T>(write: () => Promise<T>): Promise<T>;
}

/** Floats between the starts of two gradients: 256 bytes, so that wide loads stay aligned. */
const ALIGN = 64;
/** Enough for NCCL to reach its full bandwidth, and little enough for the first sum to start early. */
const BUCKET_BYTES = 25_000_000;

/** Gradients in one piece of memory, in the order that they are given. */
export interface GradientMemory {
  /** f32, by parameter. */
  readonly gradients: Map<string, Tensor>;
  /** One after another all of the memory: (n) f32 each, at least 25 MB but for the last one. */
  readonly buckets: Tensor[];
}

/**
 * Zero-filled memory for the gradients of parameters.
 * @param shapes in the order in which a backward pass finishes them, so that buckets are complete early
 */
export function gradientMemory(
  device: Device,
  shapes: readonly (readonly [name: string, shape: readonly number[]])[],
  bucketBytes = BUCKET_BYTES,
): GradientMemory {
  const starts: number[] = [];
  const bucketStarts = [0];
  let end = 0;
  for (const [, shape] of shapes) {
    if ((end - (bucketStarts.at(-1) ?? 0)) * 4 >= bucketBytes) bucketStarts.push(end);
    starts.push(end);
    const elems = elements(shape);
    end += Math.ceil(elems / ALIGN) * ALIGN;
  }
  const base = device.tensor([end], 'f32', 'gradients');
  const view = (shape: readonly number[], name: string, baseOffset: number) =>
    new Tensor(shape, 'f32', name, { base, baseOffset });
  return {
    gradients: new Map(shapes.map(([name, shape], i) => [name, view(shape, `d ${name}`, starts[i] ?? 0)])),
    buckets: bucketStarts.map((start, i) => view([(bucketStarts[i + 1] ?? end) - start], `gradients ${i}`, start)),
  };
}

/** Puts an `all_reduce` of each bucket, in place, behind the last node of the graph that reads or writes part of it. */
export function reduceGradients(g: Graph, buckets: readonly Tensor[]): void {
  const last = new Map<Tensor, number>();
  g.nodes.forEach((node, i) => {
    for (const t of [...node.outs, ...node.ins]) {
      if (!t || isValue(t)) continue;
      for (const bucket of buckets) if (overlap(bucket, t)) last.set(bucket, i);
    }
  });
  const nodes = g.nodes.splice(0);
  nodes.forEach((node, i) => {
    g.nodes.push(node);
    for (const bucket of buckets) if (last.get(bucket) === i) sumOverRanks(g, bucket);
  });
}

/** t = sum of t over the ranks, in place; nothing later in the graph may touch it. */
export function sumOverRanks(g: Graph, t: Tensor): void {
  g.scope('ranks', () => g.op('all_reduce', { y: t }, { x: t }));
}

function overlap(a: Tensor, b: Tensor): boolean {
  const end = (t: Tensor) => t.baseOffset + t.bytes / dtypeBytes(t.dtype);
  return rootOf(a) === rootOf(b) && a.baseOffset < end(b) && b.baseOffset < end(a);
}

/**
 * The rows of a batch that a rank computes, and their weight: world times their part of the targets, which differs from 1
 * where documents are short. The mean over the ranks of weight * loss is the mean over all targets.
 */
export function shareOf(
  windows: readonly Window[],
  { rank, world }: Pick<Rank, 'rank' | 'world'>,
): { windows: Window[]; weight: number } {
  const rows = windows.length / world;
  const own = windows.slice(rank * rows, (rank + 1) * rows);
  const targets = (of: readonly Window[]) => of.reduce((sum, w) => sum + w.length - 1, 0);
  return { windows: own, weight: (world * targets(own)) / targets(windows) };
}
