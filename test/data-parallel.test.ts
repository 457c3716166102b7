// Data parallelism without a GPU: gradients in buckets, rows and weights of a rank, and training as one rank of a world of
// one, which must be training, bit for bit.
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import type { Window } from '../lib/data/windows.ts';
import { Device } from '../lib/device.ts';
import { grad } from '../lib/grad.ts';
import { Graph } from '../lib/graph.ts';
import { createModel, type Model } from '../lib/model.ts';
import { crossEntropy } from '../lib/ops/cross-entropy.ts';
import { evaluate } from '../lib/plan.ts';
import { recompute } from '../lib/recompute.ts';
import { rootOf, type Tensor } from '../lib/tensor.ts';
import { gradientMemory, type Rank, reduceGradients, shareOf } from '../lib/train/data-parallel.ts';
import { train, trainAsRank } from '../lib/train/loop.ts';
import type { TrainOptions } from '../lib/train/options.ts';
import { createTrainer } from '../lib/trainer.ts';
import { errors } from './support/close.ts';
import { fileOf, folder } from './support/folder.ts';
import { CORPUS, TEXT, VALID } from './support/training.ts';

const config = { layers: 3, dModel: 16 };

/** A rank whose sums over ranks are done by nobody: in a world of one they change nothing. */
class LoneRank implements Rank {
  readonly rank: number;
  readonly world: number;
  wantsEnd = false;
  ending = false;
  joined = 0;
  saves = 0;

  constructor(rank = 0, world = 1) {
    this.rank = rank;
    this.world = world;
  }
  async join(): Promise<void> {
    this.joined++;
  }
  saving<T>(write: () => Promise<T>): Promise<T> {
    this.saves++;
    return write();
  }
}

test('gradients lie one after another in the order given, aligned, in buckets of enough bytes', (t) => {
  using device = Device.open('ref');
  const shapes = [
    ['a', [3, 5]],
    ['b', [64]],
    ['c', [7, 1, 4]],
    ['d', [200]],
    ['e', [1]],
  ] as const;
  const { gradients, buckets } = gradientMemory(device, shapes, 600);
  t.deepEqual(
    [...gradients].map(([name, g]) => [name, g.shape, g.baseOffset]),
    [
      ['a', [3, 5], 0],
      ['b', [64], 64],
      ['c', [7, 1, 4], 128],
      ['d', [200], 192],
      ['e', [1], 448],
    ],
  );
  t.deepEqual(
    buckets.map((b) => [b.baseOffset, b.elems]),
    [
      [0, 192],
      [192, 256],
      [448, 64],
    ],
  );
  t.is(new Set([...gradients.values(), ...buckets].map(rootOf)).size, 1);
});

/** Pads short rows: (rows, T + 1) ids as the sampler makes them. */
function rowsOf(windows: readonly Window[], T: number): Int32Array {
  const ids = new Int32Array(windows.length * (T + 1)).fill(-1);
  for (const [r, w] of windows.entries()) ids.set(TEXT.subarray(w.start, w.start + w.length), r * (T + 1));
  return ids;
}

interface Recorded {
  g: Graph;
  gradients: Map<string, Tensor>;
  buckets: Tensor[];
}

/** A pass over padded rows of ids, recorded as the trainer does it; with `more` it adds to what the gradients hold. */
function recorded(
  { runtime, config: c, weights, architecture }: Model,
  ids: Int32Array,
  T: number,
  weight = 1,
  more = false,
): Recorded {
  const rows = ids.length / (T + 1);
  const shapes = architecture.params(c).map(({ name, shape }) => [name, shape] as const);
  const memory = gradientMemory(runtime, shapes.reverse(), 4096);
  for (const gradient of memory.gradients.values()) runtime.write(gradient, new Float32Array(gradient.elems).fill(0.5));
  const from = (start: number) =>
    Int32Array.from({ length: rows * T }, (_, i) => ids[Math.floor(i / T) * (T + 1) + (i % T) + start] ?? 0);
  const inputs = runtime.tensorFrom(
    from(0).map((id) => Math.max(0, id)),
    [rows, T],
    'i32',
    'inputs',
  );
  const targets = runtime.tensorFrom(from(1), [rows, T], 'i32', 'targets');
  const g = new Graph();
  const x = architecture.backbone(g, c, weights, inputs, { differentiable: true, recompute: 'cheap' });
  const { loss } = crossEntropy(g, architecture.head(g, c, weights, x), targets, -1);
  const backward = g.nodes.length;
  const byWeight = new Map([...weights].map(([name, w]) => [w, memory.gradients.get(name) as Tensor]));
  grad(g, loss, runtime.tensorFrom(Float32Array.of(weight), [1], 'f32', 'dloss'), byWeight, more);
  recompute(g, backward);
  return { g, ...memory };
}

async function gradientsOf(model: Model, { g, gradients }: Recorded): Promise<Map<string, Float32Array>> {
  await evaluate(model.runtime, g, []);
  return new Map([...gradients].map(([name, d]) => [name, model.runtime.read(d) as Float32Array]));
}

const windows: Window[] = [0, 1, 2, 3].map((i) => ({ document: i, start: 500 * i, length: 24 - 5 * i }));

for (const tied of [false, true]) {
  test(`every bucket is summed once, when nothing touches it any more, most of them early · tied ${tied}`, async (t) => {
    using model = await createModel({ ...config, tied }, { seed: 2, device: 'ref' });
    for (const more of [false, true]) {
      const { g, buckets } = recorded(model, rowsOf(windows, 23), 23, 1, more);
      const before = [...g.nodes];
      reduceGradients(g, buckets);
      const sums = g.nodes.filter((node) => node.op.name === 'all_reduce');
      t.deepEqual(new Set(sums.map((node) => node.outs[0])), new Set(buckets));
      t.is(sums.length, buckets.length);
      t.true(buckets.length > 5);
      t.deepEqual(
        g.nodes.filter((node) => !sums.includes(node)),
        before,
      );
      for (const sum of sums) {
        const [bucket] = sum.outs as [Tensor];
        t.is(sum.ins[0], bucket);
        const at = g.nodes.indexOf(sum);
        for (const node of g.nodes.slice(at + 1)) {
          for (const other of [...node.outs, ...node.ins]) {
            if (!other || rootOf(other) !== rootOf(bucket)) continue;
            const apart =
              other.baseOffset + other.elems <= bucket.baseOffset ||
              bucket.baseOffset + bucket.elems <= other.baseOffset;
            t.true(apart, `${node.scope} touches ${bucket.name}`);
          }
        }
      }
      const places = sums.map((sum) => g.nodes.indexOf(sum));
      const early = places.filter((at) => at < g.nodes.length - g.nodes.length / 8);
      t.true(early.length >= sums.length / 2, `${places} of ${g.nodes.length}`);
    }
  });

  test(`sums within a world of one change no gradient · tied ${tied}`, async (t) => {
    for (const device of ['ref', 'cpu'] as const) {
      using model = await createModel({ ...config, tied }, { seed: 2, device, threads: 2 });
      for (const more of [false, true]) {
        const plain = await gradientsOf(model, recorded(model, rowsOf(windows, 23), 23, 1, more));
        const pass = recorded(model, rowsOf(windows, 23), 23, 1, more);
        reduceGradients(pass.g, pass.buckets);
        t.deepEqual(await gradientsOf(model, pass), plain);
      }
    }
  });

  test(`the mean over ranks is the gradient of the whole batch, however short the rows · tied ${tied}`, async (t) => {
    using model = await createModel({ ...config, tied }, { seed: 2, device: 'ref' });
    const whole = await gradientsOf(model, recorded(model, rowsOf(windows, 23), 23));
    for (const world of [2, 4]) {
      const parts: Map<string, Float32Array>[] = [];
      for (let rank = 0; rank < world; rank++) {
        const share = shareOf(windows, { rank, world });
        t.is(share.windows.length, windows.length / world);
        parts.push(await gradientsOf(model, recorded(model, rowsOf(share.windows, 23), 23, share.weight)));
      }
      for (const [name, want] of whole) {
        const mean = want.map((_, i) => parts.reduce((sum, part) => sum + (part.get(name)?.[i] ?? 0), 0) / world);
        const e = errors(mean, want);
        t.true(e.rms < 2e-6, `${name} over ${world}: ${e.rms}`);
      }
    }
  });
}

test("rows of full windows weigh 1 exactly, and all rows are somebody's", (t) => {
  const full = Array.from({ length: 6 }, (_, i) => ({ document: i, start: 0, length: 1025 }));
  const shares = [0, 1, 2].map((rank) => shareOf(full, { rank, world: 3 }));
  t.deepEqual(
    shares.map(({ weight }) => weight),
    [1, 1, 1],
  );
  t.deepEqual(
    shares.flatMap((share) => share.windows),
    full,
  );
});

test('steps as the only rank are steps, bit for bit', async (t) => {
  const steps = async (rank?: Rank) => {
    using model = await createModel(config, { seed: 3, device: 'cpu', threads: 2 });
    const trainer = await createTrainer(model, { lr: 1e-2 }, rank);
    const batch = (at: number) => ({ bytes: Uint8Array.from(TEXT.subarray(at, at + 2 * 33)), batch: 2 });
    const results = [await trainer.step(batch(0)), await trainer.step([batch(99), batch(200), batch(300)])];
    return { results, weights: [...model.weights].map(([name, w]) => [name, model.runtime.read(w)]) };
  };
  t.deepEqual(await steps(new LoneRank()), await steps());
});

const data = fileOf('corpus.txt', CORPUS);
const valid = fileOf('valid.txt', VALID);

function options(more: Partial<TrainOptions> = {}): TrainOptions & { out: string } {
  const out = join(folder(), 'run');
  return {
    config,
    data,
    valid,
    evalEvery: 2,
    out,
    steps: 4,
    batch: 2,
    context: 32,
    threads: 1,
    device: 'cpu',
    ...more,
  };
}

test('a run as the only rank is a run, and its saves are announced', async (t) => {
  const [alone, ranked] = [options(), options()];
  const rank = new LoneRank();
  const [want, got] = [await train(alone), await trainAsRank(ranked, rank)];
  t.deepEqual({ ...got, checkpoint: '' }, { ...want, checkpoint: '' });
  for (const name of ['model.safetensors', 'optimizer.safetensors']) {
    t.deepEqual(readFileSync(join(got.checkpoint, name)), readFileSync(join(want.checkpoint, name)), name);
  }
  t.is(rank.joined, 1);
  t.true(rank.saves >= 2);
});

test('all ranks end after the step with which one of them asks for it', async (t) => {
  const rank = new LoneRank();
  const given = options();
  const controller = new AbortController();
  controller.signal.addEventListener('abort', () => {
    rank.wantsEnd = true;
  });
  const onProgress = ({ step }: { step: number }) => step === 2 && controller.abort();
  const result = await trainAsRank({ ...given, onProgress, signal: controller.signal }, rank);
  t.like(result, { step: 3, stopped: 'aborted' });
  t.true(existsSync(join(given.out, 'step-00000003')));
  t.is((await train({ out: given.out, resume: true })).step, 4);
});

test('ranks but the first one write nothing', async (t) => {
  const given = options();
  const result = await trainAsRank(given, new LoneRank(1, 2));
  t.like(result, { step: 4, best: null });
  t.false(existsSync(given.out));
});

test('a batch that the devices cannot share evenly is refused before anything is joined', async (t) => {
  const rank = new LoneRank(0, 3);
  const given = options({ batch: 4 });
  await t.throwsAsync(trainAsRank(given, rank), {
    instanceOf: RangeError,
    message: 'train: expected batch to be a multiple of the 3 devices, got 4.',
  });
  t.is(rank.joined, 0);
  t.false(existsSync(given.out));
});
