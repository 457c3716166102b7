// Attention as lib records it: plans that repeat natively from their caches, and mistakes reported where they are made.
import test from 'ava';
import { Graph } from '../../lib/graph.ts';
import { advance, attention, cacheWrite, checkCapacity } from '../../lib/ops/attention.ts';
import { rope, ropeCacheWrite } from '../../lib/ops/rope.ts';
import { compile, evaluate } from '../../lib/plan.ts';
import { compare, TOLERANCES } from '../support/close.ts';
import { withDevice } from '../support/devices.ts';
import { Random } from '../support/random.ts';

const [B, H, J, P, STEPS] = [2, 4, 2, 8, 11];

test('a plan run natively for many steps goes on from its caches', (t) =>
  withDevice('cpu', { threads: 2 }, async (device) => {
    const random = new Random(31);
    const draw = (heads: number) => Float32Array.from(random.normal(B * heads * P));
    const [q, k, v] = [draw(H), draw(J), draw(J)];
    const step = new Graph();
    const length = device.tensor([B], 'i32', 'length');
    const caches = [0, 1].map(() => device.tensor([B, STEPS, J * P], 'f32', 'cache'));
    const [keys, values] = caches as [(typeof caches)[0], (typeof caches)[0]];
    const input = (data: Float32Array) => device.tensorFrom(data, [B, 1, data.length / B], 'f32', 'x');
    const turned = ropeCacheWrite(step, { q: input(q), k: input(k), v: input(v) }, { heads: H, keys, values, length });
    const y = attention(step, { q: turned, k: keys, v: values }, { heads: H, length });
    advance(step, length, 1);
    using plan = await compile(device, step, [y]);
    checkCapacity('test', device.read(length), STEPS, STEPS);
    await plan.run({ steps: STEPS });
    t.deepEqual([...device.read(length)], [STEPS, STEPS]);

    const whole = new Graph();
    const repeated = (data: Float32Array) => {
      const columns = data.length / B;
      const rows = Array.from({ length: B * STEPS }, (_, r) => {
        const b = Math.floor(r / STEPS);
        return [...data.subarray(b * columns, (b + 1) * columns)];
      });
      return device.tensorFrom(Float32Array.from(rows.flat()), [B, STEPS, columns], 'f32', 'x');
    };
    const all = {
      q: rope(whole, repeated(q), { heads: H }),
      k: rope(whole, repeated(k), { heads: J }),
      v: repeated(v),
    };
    const [want = new Float32Array()] = await evaluate(device, whole, [attention(whole, all, { heads: H })]);
    const last = [0, 1].flatMap((b) => [...want.subarray((b * STEPS + STEPS - 1) * H * P, (b + 1) * STEPS * H * P)]);
    t.is(compare(plan.read(y), last, TOLERANCES.f32), undefined);
    t.throws(() => checkCapacity('test', device.read(length), 1, STEPS), {
      instanceOf: RangeError,
      message: 'test: expected the sequence to fit a cache of 11 steps, got 11 + 1.',
    });
  }));

test('mistakes are reported where they are made', (t) => {
  const g = new Graph();
  const value = (...shape: number[]) => g.value(shape);
  const [q, k] = [value(2, 3, 12), value(2, 3, 6)];
  const lengths = g.value([2], 'i32');
  for (const [mistake, message] of [
    [
      () => attention(g, { q, k, v: k }, { heads: 5 }),
      'attention: expected heads to divide the 12 columns of q, got 5.',
    ],
    [
      () => attention(g, { q, k: value(2, 3, 9), v: k }, { heads: 4 }),
      'attention: expected k to have whole heads of 3 columns, whose number divides 4, got (2, 3, 9).',
    ],
    [
      () => attention(g, { q, k, v: value(2, 4, 6) }, { heads: 4 }),
      'attention: expected v to have shape (2, 3, 6), got (2, 4, 6).',
    ],
    [
      () => attention(g, { q, k: value(2, 2, 6), v: value(2, 2, 6) }, { heads: 4 }),
      'attention: expected k to have at least the 3 steps of q, got (2, 2, 6).',
    ],
    [
      () => attention(g, { q, k, v: k }, { heads: 4, length: value(2) }),
      'attention: expected length to be i32, got f32.',
    ],
    [() => rope(g, q, { heads: 4 }), 'rope: expected heads to split 12 columns into heads of even width, got 4.'],
    [() => rope(g, q, { heads: 2, base: 0 }), 'rope: expected base to be positive, got 0.'],
    [
      () =>
        ropeCacheWrite(g, { q, k, v: k }, { heads: 4, keys: value(2, 9, 6), values: value(2, 9, 6), length: lengths }),
      'rope_cache_write: expected heads to split 12 columns into heads of even width, got 4.',
    ],
    [
      () =>
        ropeCacheWrite(g, { q, k, v: k }, { heads: 3, keys: value(2, 9, 6), values: value(2, 9, 6), length: lengths }),
      'rope_cache_write: expected keys to have whole heads of 4 columns, got (2, 9, 6).',
    ],
    [
      () =>
        ropeCacheWrite(g, { q, k, v: q }, { heads: 6, keys: value(2, 9, 6), values: value(2, 9, 6), length: lengths }),
      'rope_cache_write: expected v to have shape (2, 3, 6), got (2, 3, 12).',
    ],
    [
      () =>
        ropeCacheWrite(g, { q, k, v: k }, { heads: 6, keys: value(2, 9, 6), values: value(2, 9, 6), length: value(2) }),
      'rope_cache_write: expected length to be i32, got f32.',
    ],
    [
      () =>
        ropeCacheWrite(g, { q, k, v: k }, { heads: 6, keys: value(2, 2, 6), values: value(2, 2, 6), length: lengths }),
      'rope_cache_write: expected q to have at most the 2 steps of the cache, got 3.',
    ],
    [
      () => cacheWrite(g, value(2, 2, 12), q, lengths),
      'cache_write: expected x to have at most the 2 steps of the cache, got 3.',
    ],
    [
      () => cacheWrite(g, value(2, 9, 6), q, lengths),
      'cache_write: expected x to have shape (2, 3, 6), got (2, 3, 12).',
    ],
  ] as const) {
    t.throws(mistake, { message });
  }
});
