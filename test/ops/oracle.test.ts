// The reference, and the cpu backend on every instruction set, equal PyTorch: float64 outputs and autograd gradients of
// single ops on float32 inputs.
import test from 'ava';
import type { DType } from '../../lib/tensor.ts';
import { differences, type OpCase, type Operands, type Outcome, runCase } from '../support/cases.ts';
import { compare, TOLERANCES } from '../support/close.ts';
import { cpuTargets, withDevice } from '../support/devices.ts';
import { readFixture, readJson } from '../support/fixtures.ts';
import type { Operand } from '../support/poison.ts';
import { closeTo, type WeightDType } from './cases/linear.ts';

interface Entry {
  op: string;
  case: string;
  attrs: Record<string, number>;
  inputs: string[];
  outputs: string[];
  before?: string[];
}

const tensors = readFixture('ops.safetensors');
const entries = readJson<Entry[]>('ops.json');

/** In float64 both sides round at the sixteenth digit; sums of up to 10^4 terms cost a few more. */
const DOUBLE = { rms: 1e-12, worst: 1e-11 };
/** Above 20 softplus is the identity, which is off by exp(-20) = 2e-9. */
const GUARDED = { rms: 2e-9, worst: 2e-8 };

function find(entry: Entry, name: string) {
  const t = tensors.get(`${entry.case}/${name}`);
  if (!t) throw new Error(`ops.safetensors has no ${entry.case}/${name}`);
  return t;
}

/** The entry as a case, with float operands as `float`; and what PyTorch says of its outputs. */
function caseOf(entry: Entry, float: 'f32' | 'f64'): { c: OpCase; want: Outcome } {
  const dtype = (stored: DType): DType => (stored === 'f32' || stored === 'f64' ? float : stored);
  const ins: Operands = {};
  for (const name of entry.inputs) {
    const { shape, values, dtype: stored } = find(entry, name);
    const operand: Operand = { shape, values, dtype: dtype(stored) };
    const list = /^(.+_)(\d+)$/.exec(name);
    if (list?.[1]) ins[list[1]] = [...((ins[list[1]] as Operand[] | undefined) ?? []), operand];
    else ins[name] = operand;
  }
  const outs: Record<string, Operand> = {};
  const want: Outcome = new Map();
  for (const name of entry.outputs) {
    const { shape, values, dtype: stored } = find(entry, name);
    const before = entry.before?.includes(name) ? { values: find(entry, `${name}.before`).values } : {};
    outs[name] = { shape, dtype: dtype(stored), ...before };
    want.set(name, { values, fault: undefined });
  }
  const weight = tensors.get(`${entry.case}/weight`)?.dtype as WeightDType | undefined;
  const close = entry.op === 'linear' ? closeTo(weight ?? 'f32', 'long') : () => 'long' as const;
  return { c: { title: entry.case, op: entry.op, attrs: entry.attrs, ins, outs, close }, want };
}

test('ref in float64 equals PyTorch', (t) =>
  withDevice('ref', { threads: 1 }, async (device) => {
    for (const entry of entries) {
      const { c, want } = caseOf(entry, 'f64');
      const got = await runCase(device, c);
      for (const [name, { values }] of want) {
        const title = `${c.op} · ${c.title} · ${name}`;
        const close = /softplus|scan/.test(c.op) ? GUARDED : DOUBLE;
        t.is(compare(got.get(name)?.values ?? [], values, close), undefined, title);
        t.is(got.get(name)?.fault, undefined, title);
      }
    }
  }));

test('ref in float32 equals PyTorch', (t) =>
  withDevice('ref', { threads: 1 }, async (device) => {
    for (const entry of entries) {
      const { c, want } = caseOf(entry, 'f32');
      const got = await runCase(device, c);
      // The inputs are float32 already, so rounding the result is all that float32 changes.
      for (const [name, { values }] of want) {
        t.is(compare(got.get(name)?.values ?? [], values, TOLERANCES.f32), undefined, `${c.op} · ${c.title} · ${name}`);
      }
    }
  }));

for (const target of cpuTargets().supported) {
  test(`cpu equals PyTorch · ${target}`, (t) =>
    withDevice('cpu', { threads: 2, target }, async (device) => {
      for (const entry of entries) {
        const { c, want } = caseOf(entry, 'f32');
        t.deepEqual(differences(c, target, await runCase(device, c), want), []);
      }
    }));
}

test('fixtures cover every differentiable op', (t) => {
  const ops = new Set(entries.map((e) => e.op));
  for (const op of ['linear_grad_weight', 'selective_scan_grad', 'causal_conv1d_grad', 'layer_norm_grad', 'adamw']) {
    t.true(ops.has(op), op);
  }
  t.log(`${entries.length} cases of ${ops.size} ops`);
});
