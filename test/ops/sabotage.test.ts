// A test of the parity test: for every op, a result that is 1 % off, one wrong element, an element left unwritten, and a
// byte written past an operand must each be found, under the loosest tolerance that the op has anywhere.
import test from 'ava';
import { Device } from '../../lib/device.ts';
import { differences, type Outcome, pairs, runCase } from '../support/cases.ts';
import { compare, TOLERANCES, type ToleranceName } from '../support/close.ts';
import { withDevice } from '../support/devices.ts';
import { Fenced } from '../support/poison.ts';
import { casesByOp } from './cases/index.ts';

const TARGETS = ['scalar', 'avx2', 'avx512', 'amx', 'neon'];

/** A copy of an outcome in which `change` was applied to one output. */
function tampered(outcome: Outcome, name: string, change: Change): Outcome {
  const copy: Outcome = new Map([...outcome].map(([n, { values, fault }]) => [n, { values: values.slice(), fault }]));
  const values = copy.get(name)?.values;
  if (values) change(values);
  return copy;
}

type Change = (values: Float64Array) => void;

const byOnePercent: Change = (v) => {
  for (const [i, x] of v.entries()) v[i] = 1.01 * x;
};
const oneElement: Change = (v) => {
  v[v.length >> 1] = (v[v.length >> 1] ?? 0) + 0.1 * Math.sqrt(v.reduce((sum, x) => sum + x * x, 0));
};
const oneNaN: Change = (v) => {
  v[0] = Number.NaN;
};
const oneChoice: Change = (v) => {
  v[v.length >> 1] = (v[v.length >> 1] ?? 0) + 1;
};
const float = (values: Float64Array) => values.some((v) => !Number.isInteger(v));

for (const [op, list] of casesByOp) {
  test(`a wrong ${op} is found`, async (t) => {
    const chosen = list.filter((_, i) => i % 9 === 0);
    await withDevice('ref', { threads: 1 }, async (device) => {
      for (const c of chosen) {
        const want = await runCase(device, c);
        for (const target of TARGETS) t.deepEqual(differences(c, target, want, want), [], 'an exact copy passes');
        for (const [name, { values }] of want) {
          if (values.every((v) => v === 0)) continue;
          const changes = float(values) ? [byOnePercent, oneElement, oneNaN] : [oneChoice];
          for (const target of TARGETS) {
            for (const change of changes) {
              const found = differences(c, target, tampered(want, name, change), want);
              t.true(found.length > 0, `${op} · ${c.title} · ${name} on ${target} passed ${change.name}`);
            }
          }
        }
      }
    });
  });
}

test('bytes around an operand and elements left out are found', (t) => {
  const device = Device.open('ref');
  const operand = new Fenced(device, 'y', { shape: [3, 5], dtype: 'f32', pad: 2 }, 1);
  t.is(operand.collect().fault, 'element 0 was not written');
  const { buffer = 0, offset = 0 } = operand.tensor.storage ?? {};
  const part = (at: number, length: number) =>
    Object.assign(Object.create(Object.getPrototypeOf(operand.tensor)), operand.tensor, {
      shape: [length],
      rowStride: length,
      storage: { buffer, offset: offset + 4 * at },
    });
  for (const row of [0, 7, 14]) device.write(part(row, 5), new Float32Array(5));
  t.is(operand.collect().fault, undefined);
  device.write(part(5, 1), new Float32Array(1));
  t.is(operand.collect().fault, 'byte 20 outside of it was written');
  device.dispose();
  const after = Device.open('ref');
  const fenced = new Fenced(after, 'y', { shape: [4], dtype: 'f32', values: [1, 2, 3, 4] }, 0);
  after.write(
    Object.assign(Object.create(Object.getPrototypeOf(fenced.tensor)), fenced.tensor, {
      storage: { buffer: fenced.tensor.storage?.buffer ?? 0, offset: (fenced.tensor.storage?.offset ?? 0) - 4 },
    }),
    new Float32Array(4),
  );
  t.is(fenced.collect().fault, 'byte -4 outside of it was written');
  after.dispose();
});

test('compare knows NaN, infinities and sizes', (t) => {
  const { f32 } = TOLERANCES;
  t.is(compare([1, Number.NaN, Infinity], [1, Number.NaN, Infinity], f32), undefined);
  for (const [got, want] of [
    [
      [1, 2],
      [1, Number.NaN],
    ],
    [
      [1, Number.NaN],
      [1, 2],
    ],
    [
      [1, Infinity],
      [1, 2],
    ],
    [
      [1, 2],
      [1, -Infinity],
    ],
    [[1], [1, 2]],
  ] as const) {
    t.not(compare(got, want, f32), undefined, `${got} against ${want}`);
  }
  t.is(compare([0, 0], [0, 0], TOLERANCES.exact), undefined);
  t.not(compare([0, 1e-30], [0, 0], f32), undefined, 'all zeros must be met exactly');
});

test('every tolerance finds an error of 1 %', (t) => {
  const want = Float64Array.from({ length: 100 }, (_, i) => Math.sin(i));
  for (const name of Object.keys(TOLERANCES) as ToleranceName[]) {
    t.not(
      compare(
        want.map((v) => v * 1.01),
        want,
        TOLERANCES[name],
      ),
      undefined,
      name,
    );
  }
});

test('pairs meets every two values of two axes', (t) => {
  const axes = { a: [1, 2, 3], b: [true, false], c: ['x', 'y', 'z', 'w'], d: [0, 1] } as const;
  const rows = pairs(axes);
  t.true(rows.length <= 16, `${rows.length} rows`);
  for (const [p, ps] of Object.entries(axes)) {
    for (const [q, qs] of Object.entries(axes)) {
      if (p === q) continue;
      for (const x of ps) {
        for (const y of qs) {
          t.true(
            rows.some((row) => (row as Record<string, unknown>)[p] === x && (row as Record<string, unknown>)[q] === y),
          );
        }
      }
    }
  }
});
