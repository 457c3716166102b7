// Every op, forward and backward, on every instruction set this processor has and with 1 and 2 threads, and on a GPU where
// there is one, equals the reference: outputs poisoned before the run, guards around every operand, rows with gaps,
// operands off alignment.
import test from 'ava';
import { opTable } from '../../lib/graph.ts';
import { withBf16 } from '../support/bf16.ts';
import { differences, type OpCase, type Outcome, runCase, sameBits, thinned } from '../support/cases.ts';
import { cpuTargets, cuda, withDevice } from '../support/devices.ts';
import { casesByOp, casesOfGpu } from './cases/index.ts';

const { supported, reasons } = cpuTargets();

/** Most findings worth printing; one wrong line often breaks every case of an op. */
const SHOWN = 6;

function report(found: string[]): string {
  return `${found.length} differences:\n${found.slice(0, SHOWN).join('\n')}`;
}

function outcomes(list: readonly OpCase[], backend: 'ref' | 'cpu', target: string | undefined, threads: number) {
  return withDevice(backend, { threads, ...(target ? { target } : {}) }, async (device) => {
    const all: Outcome[] = [];
    // Half of the cases lie on a 64-byte border, as a buffer's first tensor does; the rest, like column views, do not.
    for (const [i, c] of list.entries()) all.push(await runCase(device, c, i % 2));
    return all;
  });
}

test('the table has cases for every op', (t) => {
  t.deepEqual(
    [...opTable().keys()].filter((op) => !casesByOp.has(op)),
    [],
  );
});

test('instruction sets', (t) => {
  t.log(`tested: ${supported.join(', ')}`);
  for (const reason of reasons) t.log(reason);
  t.true(supported.includes('scalar'));
});

test('GPU', (t) => {
  const { info, reason } = cuda();
  t.log(info ? `tested: ${info.name}, ${info.target}, driver ${info.driver}, products by ${info.gemm}` : reason);
  t.pass();
});

for (const [op, all] of casesByOp) {
  const list = thinned(all);
  test.serial(`${op} on cpu equals ref · ${list.length} cases`, async (t) => {
    const want = await outcomes(list, 'ref', undefined, 1);
    const found: string[] = [];
    for (const target of supported) {
      const one = await outcomes(list, 'cpu', target, 1);
      const two = await outcomes(list, 'cpu', target, 2);
      list.forEach((c, i) => {
        const reference = want[i] as Outcome;
        for (const text of differences(c, target, one[i] as Outcome, reference)) found.push(`${target} · ${text}`);
        for (const text of differences(c, target, two[i] as Outcome, reference))
          found.push(`${target}, 2 threads · ${text}`);
        if (!sameBits(one[i] as Outcome, two[i] as Outcome)) {
          found.push(`${target} · ${op} · ${c.title} · 2 threads give other bits than 1`);
        }
      });
    }
    t.is(found.length, 0, report(found));
  });
}

/** A fault that the process does not recover from: what follows it says nothing. */
const FATAL = /illegal|misaligned|unspecified launch|hardware|assert/i;

/** What is wrong with an op on the GPU: against the reference, and from one run to the next. */
async function faultsOnCuda(list: readonly OpCase[]): Promise<string[]> {
  const want = await outcomes(list, 'ref', undefined, 1);
  return withDevice('cuda', { threads: 1 }, async (device) => {
    const found: string[] = [];
    for (const [i, c] of list.entries()) {
      try {
        const [first, second] = [await runCase(device, c, i % 2), await runCase(device, c, i % 2)];
        if (c.onlyOnCpu) found.push(`${c.op} · ${c.title} · was not refused`);
        found.push(...differences(c, 'cuda', first, want[i] as Outcome));
        if (!sameBits(first, second)) found.push(`${c.op} · ${c.title} · the second run gives other bits`);
      } catch (error) {
        const message = error instanceof Error ? error.message : String(error);
        if (c.onlyOnCpu && /1 node cannot run on cuda: .*f32.* or bf16/.test(message)) continue;
        found.push(`${c.op} · ${c.title} · ${message}`);
        if (FATAL.test(message))
          return [`${found.pop()} (the ${list.length - i - 1} cases after it did not run)`, ...found];
      }
    }
    return found;
  });
}

if (cuda().info) {
  for (const [op, all] of casesByOp) {
    const list = [...thinned(all), ...(casesOfGpu.get(op) ?? [])];
    test.serial(`${op} on cuda equals ref · ${list.length} cases`, async (t) => {
      const found = await faultsOnCuda(list);
      t.is(found.length, 0, report(found));
    });
    const half = withBf16(op, list);
    if (half.length === 0) continue;
    test.serial(`${op} with bf16 activations on cuda equals ref · ${half.length} cases`, async (t) => {
      const found = await faultsOnCuda(half);
      t.is(found.length, 0, report(found));
    });
  }
}
