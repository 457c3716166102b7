// What must hold of the kernels whatever their numbers are: a split scan is a whole scan, and attention from a cache is
// attention of the whole; kept states are the states of prefixes, sequences of a batch do not touch each other, and neither the run nor the number of threads changes a bit.
import test, { type ExecutionContext } from 'ava';
import type { Device } from '../../lib/device.ts';
import { blank, given, type OpCase, type Outcome, runCase, sameBits, size } from '../support/cases.ts';
import { compare, TOLERANCES } from '../support/close.ts';
import { cpuTargets, cuda, withDevice } from '../support/devices.ts';
import type { Operand } from '../support/poison.ts';
import { Random } from '../support/random.ts';
import { casesByOp } from './cases/index.ts';

const { supported } = cpuTargets();
const devices = [
  ['ref', undefined] as const,
  ...supported.map((target) => ['cpu', target] as const),
  ...(cuda().info ? [['cuda', undefined] as const] : []),
];

/** Registers a test for ref, for every instruction set, and for a GPU where there is one. */
function everywhere(title: string, run: (t: ExecutionContext, device: Device) => Promise<void>): void {
  for (const [backend, target] of devices) {
    test.serial(`${title} · ${target ?? backend}`, (t) =>
      withDevice(backend, { threads: 2, ...(target ? { target } : {}) }, (device) => run(t, device)),
    );
  }
}

const SIZES = { B: 2, T: 131, E: 17, N: 16, K: 4 };
const { B, T, E, N, K } = SIZES;

type Sequence = Record<string, Operand>;

/** Steps [from, to) of operands shaped (B, T, ...). */
function steps(operands: Sequence, from: number, to: number): Sequence {
  return Object.fromEntries(
    Object.entries(operands).map(([name, o]) => {
      const [batch = 0, length = 0, cols = 0] = o.shape;
      const values = Array.from({ length: batch }, (_, b) =>
        Array.from((o.values ?? []) as Float64Array).slice((b * length + from) * cols, (b * length + to) * cols),
      ).flat();
      return [name, given(o.dtype, [batch, to - from, cols], values)];
    }),
  );
}

function op(name: string, outs: OpCase['outs'], ins: OpCase['ins'], attrs: OpCase['attrs']): OpCase {
  return { title: name, op: name, outs, ins, attrs, close: () => 'long' };
}

const values = (o: Outcome, name: string) => o.get(name)?.values ?? new Float64Array();

/** Joins (B, T1, D) and (B, T2, D) along time. */
function joinTime(parts: readonly Float64Array[], lengths: readonly number[], cols: number): number[] {
  return Array.from({ length: B }, (_, b) =>
    parts.flatMap((p, i) => [...p.subarray(b * (lengths[i] ?? 0) * cols, (b + 1) * (lengths[i] ?? 0) * cols)]),
  ).flat();
}

function scanInputs(random: Random): { inTime: Sequence; fixed: Sequence; state: Operand } {
  const draw = (...shape: number[]) => given('f32', shape, random.normal(size(...shape)));
  return {
    inTime: {
      u: draw(B, T, E),
      delta: given('f32', [B, T, E], random.uniform(B * T * E, -5, 1)),
      B: draw(B, T, N),
      C: draw(B, T, N),
      z: draw(B, T, E),
    },
    fixed: { A: given('f32', [E, N], random.uniform(E * N, -3, -0.05)), D: draw(E), delta_bias: draw(E) },
    state: draw(B, E, N),
  };
}

everywhere('a split scan is a whole scan, and kept states are states of prefixes', async (t, device) => {
  const { inTime, fixed, state } = scanInputs(new Random(21));
  const scan = (from: number, to: number, start: Operand) =>
    runCase(
      device,
      op(
        'selective_scan',
        { y: blank([B, to - from, E]), state_out: blank([B, E, N]), kept: blank([to - from, B, E * N]) },
        { ...steps(inTime, from, to), ...fixed, state: start },
        { softplus: 1, chunk: 64 },
      ),
    );
  const whole = await scan(0, T, state);
  const kept = values(whole, 'kept');
  t.deepEqual(kept.slice(-B * E * N), values(whole, 'state_out'), 'the last kept state is the final state');
  // One step alone may take another path through the kernel, so states agree closely, not bit for bit.
  for (const cut of [1, 7, 63, 64, 65, 128]) {
    const first = await scan(0, cut, state);
    const prefix = kept.subarray((cut - 1) * B * E * N, cut * B * E * N);
    t.is(compare(values(first, 'state_out'), prefix, TOLERANCES.f32), undefined, `state after ${cut}`);
    const second = await scan(cut, T, given('f32', [B, E, N], values(first, 'state_out')));
    const y = joinTime([values(first, 'y'), values(second, 'y')], [cut, T - cut], E);
    t.is(compare(y, values(whole, 'y'), TOLERANCES.f32), undefined, `split at ${cut}`);
    t.is(
      compare(values(second, 'state_out'), values(whole, 'state_out'), TOLERANCES.f32),
      undefined,
      `split at ${cut}`,
    );
  }
});

everywhere('a split convolution is a whole one', async (t, device) => {
  const random = new Random(22);
  const draw = (...shape: number[]) => given('f32', shape, random.normal(size(...shape)));
  const inTime = { x: draw(B, T, E) };
  const fixed = { weight: draw(E, K), bias: draw(E) };
  const conv = (from: number, to: number, state: Operand) =>
    runCase(
      device,
      op(
        'causal_conv1d',
        { y: blank([B, to - from, E]), state_out: blank([B, K - 1, E]) },
        { ...steps(inTime, from, to), ...fixed, state },
        { silu: 1 },
      ),
    );
  const state = draw(B, K - 1, E);
  const whole = await conv(0, T, state);
  for (const cut of [1, 2, 3, 64, 129, 130]) {
    const first = await conv(0, cut, state);
    const second = await conv(cut, T, given('f32', [B, K - 1, E], values(first, 'state_out')));
    const y = joinTime([values(first, 'y'), values(second, 'y')], [cut, T - cut], E);
    t.is(compare(y, values(whole, 'y'), TOLERANCES.f32), undefined, `split at ${cut}`);
    t.deepEqual(values(second, 'state_out'), values(whole, 'state_out'), `split at ${cut}`);
  }
});

everywhere('attention from a cache, in steps and chunks, is attention of the whole', async (t, device) => {
  const random = new Random(24);
  const [H, J, P, capacity] = [4, 2, 17, T + 5];
  const draw = (...shape: number[]) => given('f32', shape, random.normal(size(...shape)));
  const inTime = { q: draw(B, T, H * P), k: draw(B, T, J * P), v: draw(B, T, J * P) };
  const whole = await runCase(device, op('attention', { y: blank([B, T, H * P]) }, inTime, { heads: H }));
  for (const lengths of [Array.from({ length: T }, () => 1), [1, 7, 8, 9, 64, 42], [65, 66], [1, 130]]) {
    const cache: Record<string, ArrayLike<number>> = {};
    const parts: Float64Array[] = [];
    let from = 0;
    for (const n of lengths) {
      const { q, k, v } = steps(inTime, from, from + n) as { q: Operand; k: Operand; v: Operand };
      const length = given('i32', [B], new Int32Array(B).fill(from));
      for (const [name, x] of Object.entries({ k, v })) {
        const before = cache[name] ?? new Float64Array(size(B, capacity, J * P)).fill(Number.NaN);
        const out = { cache: given('f32', [B, capacity, J * P], before) };
        cache[name] = values(await runCase(device, op('cache_write', out, { x, length }, {})), 'cache');
      }
      const held = (name: string) => given('f32', [B, capacity, J * P], cache[name] ?? []);
      const ins = { q, k: held('k'), v: held('v'), length };
      const part = await runCase(device, op('attention', { y: blank([B, n, H * P]) }, ins, { heads: H }));
      parts.push(values(part, 'y'));
      from += n;
    }
    const y = joinTime(parts, lengths, H * P);
    t.is(compare(y, values(whole, 'y'), TOLERANCES.f32), undefined, `chunks of ${lengths.slice(0, 6)}`);
  }
});

everywhere(
  'up to 32 steps turn on their way into a cache as each of them does alone, bit for bit',
  async (t, device) => {
    const random = new Random(25);
    const [H, J, P, capacity, held] = [4, 2, 18, 80, [37, 11]];
    const draw = (...shape: number[]) => given('f32', shape, random.normal(size(...shape)));
    const inTime = { q: draw(B, 32, H * P), k: draw(B, 32, J * P), v: draw(B, 32, J * P) };
    const empty: Float64Array = new Float64Array(size(B, capacity, J * P));
    const write = async (from: number, to: number, before: { keys: ArrayLike<number>; values: ArrayLike<number> }) => {
      const cache = (name: 'keys' | 'values') => given('f32', [B, capacity, J * P], before[name]);
      const outs = { y: blank([B, to - from, H * P]), keys: cache('keys'), values: cache('values') };
      const length = given(
        'i32',
        [B],
        Int32Array.from(held, (n) => n + from),
      );
      return runCase(
        device,
        op('rope_cache_write', outs, { ...steps(inTime, from, to), length }, { heads: H, base: 10000, first: 0 }),
      );
    };
    for (const T of [2, 9, 32]) {
      const together = await write(0, T, { keys: empty, values: empty });
      const parts: Float64Array[] = [];
      let cache = { keys: empty, values: empty };
      for (let from = 0; from < T; from++) {
        const one = await write(from, from + 1, cache);
        parts.push(values(one, 'y'));
        cache = { keys: values(one, 'keys'), values: values(one, 'values') };
      }
      const lengths = parts.map(() => 1);
      t.deepEqual(joinTime(parts, lengths, H * P), [...values(together, 'y')], `${T} queries`);
      t.deepEqual(cache.keys, values(together, 'keys'), `${T} keys`);
      t.deepEqual(cache.values, values(together, 'values'), `${T} values`);
    }
  },
);

everywhere('sequences of a batch do not touch each other', async (t, device) => {
  const { inTime, fixed, state } = scanInputs(new Random(23));
  const run = async (spoil: number) => {
    const all = { ...inTime, state };
    const changed = Object.fromEntries(
      Object.entries(all).map(([name, o]) => {
        const v = Float64Array.from(o.values ?? []);
        const half = v.length / B;
        for (let i = spoil * half; i < (spoil + 1) * half; i++) v[i] = -(v[i] ?? 0) + 0.1;
        return [name, given(o.dtype, o.shape, v)];
      }),
    );
    const outs = { y: blank([B, T, E]), state_out: blank([B, E, N]) };
    return [
      await runCase(device, op('selective_scan', outs, { ...all, ...fixed }, { softplus: 1, chunk: 64 })),
      await runCase(device, op('selective_scan', outs, { ...changed, ...fixed }, { softplus: 1, chunk: 64 })),
    ] as const;
  };
  for (const spoil of [0, 1]) {
    const [before, after] = await run(spoil);
    for (const name of ['y', 'state_out']) {
      const half = values(before, name).length / B;
      const other = (1 - spoil) * half;
      t.deepEqual(
        values(after, name).slice(other, other + half),
        values(before, name).slice(other, other + half),
        name,
      );
      t.notDeepEqual(
        values(after, name).slice(spoil * half, (spoil + 1) * half),
        values(before, name).slice(spoil * half, (spoil + 1) * half),
      );
    }
  }
});

everywhere(
  'a row of int8 products has the same bits among any others, and sums of the largest numbers hold',
  async (t, device) => {
    const random = new Random(29);
    const [M, K] = [33, 4100];
    const weights = random
      .integers(M * K, -127, 128)
      .fill(127, 0, K)
      .fill(-127, K, 2 * K);
    const fixed = {
      weight: given('i8', [M, K], weights),
      scale: given(
        'f32',
        [M],
        Array.from({ length: M }, (_, m) => 1 + m / M),
      ),
    };
    const x = random.normal(32 * K).fill(1, 0, K);
    const run = async (from: number, to: number) => {
      const ins = { ...fixed, x: given('f32', [to - from, K], x.slice(from * K, to * K)) };
      return values(await runCase(device, op('linear', { y: blank([to - from, M]) }, ins, {})), 'y');
    };
    const alone: number[] = [];
    for (let r = 0; r < 32; r++) alone.push(...(await run(r, r + 1)));
    for (const R of [2, 3, 4, 5, 7, 8, 9, 12, 16, 23, 32])
      t.deepEqual([...(await run(0, R))], alone.slice(0, R * M), `${R} rows`);
    const largest = [127 * K, -127 * K * (1 + 1 / M)];
    t.is(compare(alone.slice(0, 2), largest, TOLERANCES.i8), undefined);
  },
);

for (const target of supported) {
  test.serial(`a row of bf16 products has the same bits among any others · ${target}`, (t) =>
    withDevice('cpu', { threads: 2, target }, async (device) => {
      const random = new Random(31);
      const M = 33;
      for (const K of [16, 40, 257]) {
        const weight = given('bf16', [M, K], random.normal(M * K));
        const x = random.normal(32 * K);
        const run = async (from: number, to: number) => {
          const ins = { weight, x: given('f32', [to - from, K], x.slice(from * K, to * K)) };
          return values(await runCase(device, op('linear', { y: blank([to - from, M]) }, ins, {})), 'y');
        };
        const alone: number[] = [];
        for (let r = 0; r < 32; r++) alone.push(...(await run(r, r + 1)));
        for (const R of [2, 3, 4, 5, 8, 13, 32]) {
          t.deepEqual([...(await run(0, R))], alone.slice(0, R * M), `${R} rows of ${K}`);
        }
      }
    }),
  );
  test.serial(`any number of threads and every run give the same bits · ${target}`, async (t) => {
    const chosen = [...casesByOp].flatMap(([, list]) => list.filter((_, i) => i % 16 === 0 || i === list.length - 1));
    const runs: Outcome[][] = [];
    for (const threads of [1, 2, 3, 3]) {
      runs.push(
        await withDevice('cpu', { threads, target }, async (device) => {
          const all: Outcome[] = [];
          for (const c of chosen) all.push(await runCase(device, c));
          return all;
        }),
      );
    }
    const [one = [], ...others] = runs;
    chosen.forEach((c, i) => {
      for (const [r, other] of others.entries()) {
        t.true(sameBits(one[i] as Outcome, other[i] as Outcome), `${c.op} · ${c.title} · run ${r + 2}`);
      }
    });
  });
}
