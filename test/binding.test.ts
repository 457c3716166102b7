// The border to native code: worker threads, disposal, wrong arguments, memory, cancellation and the event loop.
import { spawnSync } from 'node:child_process';
import { monitorEventLoopDelay, performance } from 'node:perf_hooks';
import { Worker } from 'node:worker_threads';
import test from 'ava';
import { Device } from '../lib/device.ts';
import { opTable } from '../lib/graph.ts';
import { createModel, DisposedError, type Model, NativeError, OutOfMemoryError } from '../lib/index.ts';
import { native, packageRoot } from '../lib/native.ts';
import { Session } from '../lib/session.ts';

const tiny = { layers: 2, dModel: 32 };
const open = () => createModel(tiny, { seed: 3, threads: 2 });

/** A worker of support/generate-worker.ts; workers of Node 20 do not take over the loader of TypeScript. */
function start(maxBytes: number): Worker {
  const file = JSON.stringify(new URL('./support/generate-worker.ts', import.meta.url).href);
  const code = `import('tsx/esm/api').then(({ register }) => { register(); return import(${file}); })`;
  return new Worker(code, { eval: true, workerData: { maxBytes } });
}

test.serial('eight workers generate the same bytes', async (t) => {
  const results = await Promise.all(
    Array.from(
      { length: 8 },
      () =>
        new Promise<number[]>((resolve, reject) => {
          const worker = start(40);
          worker.on('message', (m: { done?: number[] }) => m.done && resolve(m.done));
          worker.on('error', reject);
        }),
    ),
  );
  using model = await open();
  const { bytes } = await model.generate('worker', { maxBytes: 40, seed: 1 });
  for (const result of results) t.deepEqual(result, [...bytes]);
});

test.serial('terminating workers in the middle of a generation crashes nothing', async (t) => {
  for (const wait of [0, 1, 7]) {
    await Promise.all(
      Array.from({ length: 3 }, async (_, i) => {
        const worker = start(1e7);
        await new Promise((resolve, reject) => {
          worker.once('message', resolve);
          worker.once('error', reject);
        });
        await new Promise((resolve) => setTimeout(resolve, wait * i));
        await worker.terminate();
      }),
    );
  }
  using model = await open();
  t.is((await model.generate('after', { maxBytes: 8 })).bytes.length, 8);
});

test.serial('disposing a model while it generates ends the run with an error', async (t) => {
  const model = await open();
  const run = model.generate('x', { maxBytes: 1e7 });
  for await (const _ of run) break;
  const other = await open();
  const busy = other.generate('x', { maxBytes: 1e7 });
  const first = new Promise<void>((resolve) => {
    void (async () => {
      try {
        for await (const _ of busy) resolve();
      } catch {
        resolve();
      }
    })();
  });
  await first;
  other.dispose();
  other.dispose();
  await t.throwsAsync(async () => busy, { instanceOf: DisposedError });
  model.dispose();
});

test.serial('use after dispose is a typed error everywhere', async (t) => {
  const model = await open();
  const state = model.createState();
  model.dispose();
  t.true(model.disposed);
  t.throws(() => model.generate('x'), { instanceOf: DisposedError, message: /model to be open/ });
  t.throws(() => model.createState(), { instanceOf: DisposedError });
  await t.throwsAsync(model.logits('x'), { instanceOf: DisposedError });
  await t.throwsAsync(model.score('xy'), { instanceOf: DisposedError });
  await t.throwsAsync(model.save('/nowhere'), { instanceOf: DisposedError });
  t.notThrows(() => state.toBytes(), 'a state is plain data');
});

test.serial('a buffer of impossible size is out of memory, not a crash', (t) => {
  using device = Device.open('cpu', { threads: 1 });
  t.throws(() => device.alloc(2 ** 50), { instanceOf: OutOfMemoryError });
  t.throws(() => device.tensor([2 ** 20, 2 ** 25], 'f32', 'huge'), { instanceOf: OutOfMemoryError });
  t.is(device.read(device.tensor([4], 'f32', 'small')).length, 4);
});

test.serial('native calls with wrong arguments throw', (t) => {
  const { binding } = native();
  const Raw = binding.Device as unknown as new (...args: unknown[]) => Record<string, (...args: unknown[]) => unknown>;
  for (const args of [
    [],
    ['cpu'],
    ['gpu', 0, 1],
    [1, 2, 3],
    ['cpu', -1, 1],
    ['cpu', 0, Number.NaN],
    ['cpu', 0, 1, 'sse'],
  ]) {
    t.throws(() => new Raw(...args), { any: true }, JSON.stringify(args));
  }
  const device = new Raw('cpu', 0, 1);
  const id = device.alloc?.(64);
  const wrong: [string, unknown[]][] = [
    ['alloc', []],
    ['alloc', [-1]],
    ['alloc', [1.5]],
    ['alloc', ['64']],
    ['alloc', [Number.MAX_SAFE_INTEGER]],
    ['free', [999]],
    ['free', [{}]],
    ['write', [id, 0]],
    ['write', [id, 0, 'text']],
    ['write', [id, 60, new Uint8Array(5)]],
    ['write', [id, 65, new Uint8Array(0)]],
    ['write', [id, -1, new Uint8Array(1)]],
    ['write', [999, 0, new Uint8Array(1)]],
    ['read', [id, 0, new Uint8Array(65)]],
    ['read', [id, 0, null]],
    ['map', ['/does/not/exist', 0, 1]],
    ['map', [packageRoot, 0, 1]],
    ['map', [1, 2, 3]],
    ['compile', []],
    ['compile', [1, 2, 3, 4]],
    ['compile', [new Float64Array(9), new Int32Array(5), new Float64Array(0), [1]]],
    ['compile', [new Float32Array(9), new Int32Array(5), new Float64Array(0), ['x']]],
    ['compile', [new Float64Array(0), new Float64Array(5), new Float64Array(0), ['x']]],
  ];
  for (const [method, args] of wrong)
    t.throws(() => device[method]?.(...args), { any: true }, `${method}(${args.map(String).join()})`);
  for (const method of ['alloc', 'free', 'write', 'read', 'map', 'compile', 'info', 'dispose']) {
    t.throws(() => device[method]?.call({}), { any: true }, `${method} on another object`);
  }
  const detached = new Uint8Array(8);
  structuredClone(detached.buffer, { transfer: [detached.buffer] });
  t.notThrows(() => device.write?.(id, 0, detached), 'a detached view has no bytes');
  device.dispose?.();
  device.dispose?.();
  for (const method of ['alloc', 'info', 'compile']) t.throws(() => device[method]?.(1, 2, 3), { any: true }, method);
});

test.serial('tokens are not weighed with arrays of another kind, too short, or of ids that are no classes', (t) => {
  const { weighTokens } = native().binding as unknown as { weighTokens: (...args: unknown[]) => unknown };
  const [logits, ids, positions, sums] = [
    new Float32Array(4),
    Int32Array.of(3, 0, 2),
    new Int32Array(3),
    new Float64Array(4),
  ];
  const shared = new ArrayBuffer(64);
  const one = new Int32Array(shared, 0, 3);
  const WRONG: [name: string, args: unknown[], error: ErrorConstructor, message: RegExp][] = [
    ['nothing', [], TypeError, /logits to be a Float32Array/],
    ['logits in double', [sums, ids, 0, 3, positions, sums], TypeError, /logits/],
    ['ids in a list', [logits, [3, 0, 2], 0, 3, positions, sums], TypeError, /ids to be an Int32Array/],
    ['a view of bytes', [logits, new DataView(shared), 0, 3, positions, sums], TypeError, /ids/],
    ['positions of 16 bits', [logits, ids, 0, 3, new Int16Array(3), sums], TypeError, /positions/],
    ['sums in float', [logits, ids, 0, 3, positions, new Float32Array(4)], TypeError, /sums to be a Float64Array/],
    ['no range', [logits, ids, undefined, 3, positions, sums], TypeError, /from/],
    ['a range that begins below 0', [logits, ids, -1, 3, positions, sums], TypeError, /from/],
    ['a range backwards', [logits, ids, 2, 1, positions, sums], RangeError, /range of ids/],
    ['a range beyond the ids', [logits, ids, 0, 4, new Int32Array(4), new Float64Array(5)], RangeError, /range of ids/],
    ['too few positions', [logits, ids, 0, 3, new Int32Array(2), sums], RangeError, /hold all/],
    ['too few sums', [logits, ids, 0, 3, positions, new Float64Array(3)], RangeError, /hold all/],
    ['an id too large', [logits, Int32Array.of(4), 0, 1, positions, sums], RangeError, /below the number of logits/],
    ['an id below 0', [logits, Int32Array.of(-1), 0, 1, positions, sums], RangeError, /below the number of logits/],
    ['positions over ids', [logits, one, 0, 3, one, sums], RangeError, /share no memory/],
    ['sums over positions', [logits, ids, 0, 3, one, new Float64Array(shared)], RangeError, /share no memory/],
  ];
  for (const [name, args, error, message] of WRONG) {
    t.throws(() => weighTokens(...args), { instanceOf: error, message }, name);
  }
  t.is(weighTokens(logits, ids, 0, 3, positions, sums), 3);
});

test.serial('a node without a required operand is refused by name', (t) => {
  using device = Device.open('cpu', { threads: 1 });
  const op = opTable().get('silu')?.index ?? -1;
  const none = new Float64Array(0);
  const compile = () => device.compile(none, Int32Array.of(op, 0, 0, 0, 0), none, ['x']);
  t.throws(compile, { message: /plan: x: expected output y to be given/ });
});

test.serial('random plans are refused or run, and crash nothing', (t) => {
  // In a process of its own, so that a crash is a failure of this test and not of the whole file.
  const script = `
    import fc from 'fast-check';
    import { Device } from './lib/device.ts';
    import { opTable } from './lib/graph.ts';
    const device = Device.open('cpu', { threads: 1 });
    const buffers = [64, 4096, 1 << 16].map((n) => device.alloc(n));
    const count = opTable().size;
    const number = fc.oneof(fc.integer({ min: -2, max: 40 }), fc.constantFrom(NaN, Infinity, -Infinity, 2 ** 31, 2 ** 53, -1, 0.5, 1e300));
    const tensor = fc.tuple(fc.oneof(fc.constantFrom(...buffers), number), number, fc.oneof(fc.constantFrom(0, 1, 2, 3, 4, 5, 6), number),
      fc.oneof(fc.constantFrom(1, 2, 3), number), number, number, number, number, number);
    const raw = fc.array(fc.integer({ min: -3, max: 40 }), { maxLength: 40 });
    const node = fc.tuple(fc.integer({ min: -1, max: count }), fc.constantFrom(0, 0, 0, 1, -1), raw, raw, fc.array(number, { maxLength: 6 }));
    let refused = 0;
    let compiled = 0;
    const attempt = (tensors, codes, attrs) => {
      try {
        const plan = device.compile(Float64Array.from(tensors), Int32Array.from(codes), Float64Array.from(attrs), ['fuzz']);
        compiled++;
        plan.dispose();
      } catch (error) {
        if (!(error instanceof Error)) throw error;
        refused++;
      }
    };
    fc.assert(fc.property(fc.array(tensor, { maxLength: 6 }), raw, fc.array(number, { maxLength: 6 }), (ts, codes, attrs) => attempt(ts.flat(), codes, attrs)), { seed: 1, numRuns: 3000 });
    fc.assert(fc.property(fc.array(tensor, { minLength: 1, maxLength: 6 }), fc.array(node, { maxLength: 3 }), (ts, nodes) => {
      const codes = nodes.flatMap(([op, scope, outs, ins, attrs]) => [op, scope, outs.length, ins.length, attrs.length, ...outs, ...ins]);
      attempt(ts.flat(), codes, nodes.flatMap((n) => n[4]));
    }), { seed: 2, numRuns: 3000 });
    console.log(JSON.stringify({ refused, compiled }));
  `;
  const { status, signal, stdout, stderr } = spawnSync(
    process.execPath,
    ['--import=tsx', '--input-type=module', '--eval', script],
    { cwd: packageRoot, encoding: 'utf8', timeout: 120000 },
  );
  t.is(signal, null, stderr);
  t.is(status, 0, stderr);
  t.log(stdout.trim());
});

test.serial('an abort ends a run within one step', async (t) => {
  using model = await open();
  for (let i = 0; i < 5; i++) {
    const controller = new AbortController();
    const run = model.generate('x', { maxBytes: 1e7, signal: controller.signal });
    await new Promise((resolve) => setTimeout(resolve, 30));
    const at = performance.now();
    controller.abort(new Error('now'));
    await t.throwsAsync(async () => run, { message: 'now' });
    t.true(performance.now() - at < 100, `${performance.now() - at} ms`);
  }
});

test.serial('the event loop stays free while generating', async (t) => {
  using model = await createModel({ layers: 4, dModel: 128 }, { seed: 1, threads: 1 });
  await model.generate('warm up', { maxBytes: 20 });
  // Only what this process does counts: a busy machine delays timers too, so the best of some windows is taken.
  let best = Number.POSITIVE_INFINITY;
  for (let i = 0; i < 4 && best >= 10; i++) {
    const delay = monitorEventLoopDelay({ resolution: 1 });
    const run = model.generate('x', { maxBytes: 1e6, onAbort: 'return' });
    delay.enable();
    const until = performance.now() + 700;
    for await (const _ of run) if (performance.now() > until) break;
    delay.disable();
    best = Math.min(best, delay.max / 1e6);
  }
  t.log(`longest stall ${best.toFixed(1)} ms`);
  t.true(best < 10, `${best} ms`);
});

/** Runs a module text in a Node of its own. */
function child(script: string, flags: string[] = []) {
  return spawnSync(process.execPath, [...flags, '--import=tsx', '--input-type=module', '--eval', script], {
    cwd: packageRoot,
    encoding: 'utf8',
    timeout: 120000,
  });
}

test.serial('a process ends by itself after work, without dispose', (t) => {
  const { status, stdout, stderr, signal } = child(`
    import { createModel } from './lib/index.ts';
    const model = await createModel({ layers: 1, dModel: 16 }, { threads: 2 });
    const { bytes } = await model.generate('x', { maxBytes: 10 });
    console.log(bytes.length);
  `);
  t.deepEqual([status, signal, stdout.trim()], [0, null, '10'], stderr);
});

test.serial('a process that exits while it generates does so cleanly', (t) => {
  const { status, stderr, signal } = child(`
    import { createModel } from './lib/index.ts';
    const model = await createModel({ layers: 1, dModel: 16 }, { threads: 2 });
    for await (const chunk of model.generate('x', { maxBytes: 1e7 })) process.exit(7);
  `);
  t.deepEqual([status, signal], [7, null], stderr);
});

test.serial('models and generations that are let go of give their memory back', (t) => {
  const { status, stdout, stderr } = child(
    `
    import { createModel } from './lib/index.ts';
    const round = async () => {
      const model = await createModel({ layers: 2, dModel: 128 }, { threads: 1 });
      await model.generate('x', { maxBytes: 4 });
      if (Math.random() < 0.5) model.dispose();
    };
    const settle = async () => {
      for (let i = 0; i < 4; i++) { globalThis.gc(); await new Promise((r) => setTimeout(r, 20)); }
    };
    for (let i = 0; i < 10; i++) await round();
    await settle();
    const before = process.memoryUsage().rss;
    for (let i = 0; i < 60; i++) { await round(); if (i % 10 === 9) await settle(); }
    await settle();
    console.log((process.memoryUsage().rss - before) / 2 ** 20);
  `,
    ['--expose-gc'],
  );
  t.is(status, 0, stderr);
  t.log(`RSS grew by ${Number(stdout).toFixed(1)} MiB over 60 models of 1.2 MiB`);
  t.true(Number(stdout) < 24, stdout);
});

test.serial('a long generation grows nothing', (t) => {
  const { status, stdout, stderr } = child(
    `
    import { createModel } from './lib/index.ts';
    const model = await createModel({ layers: 1, dModel: 16 }, { threads: 1 });
    const state = model.createState();
    const go = async (n) => { for (let i = 0; i < n; i++) for await (const _ of model.generate('x', { maxBytes: 2000, state, seed: i })); };
    await go(5); globalThis.gc();
    const before = process.memoryUsage().rss;
    await go(40); globalThis.gc();
    console.log((process.memoryUsage().rss - before) / 2 ** 20);
  `,
    ['--expose-gc'],
  );
  t.is(status, 0, stderr);
  t.log(`RSS grew by ${Number(stdout).toFixed(1)} MiB over 80000 bytes`);
  t.true(Number(stdout) < 16, stdout);
});

test.serial('sessions of one model are used again', async (t) => {
  using model: Model = await open();
  const seen = new Set<Session>();
  for (let i = 0; i < 5; i++) await model.withSession(async (s) => void seen.add(s));
  t.is(seen.size, 1);
  t.true([...seen][0] instanceof Session);
});

test('errors of native code carry their code', (t) => {
  using device = Device.open('cpu', { threads: 1 });
  const error = t.throws(
    () => device.compile(Float64Array.of(9, 0, 0, 1, 1, 1, 1, 1, 1), new Int32Array(), new Float64Array(), []),
    {
      instanceOf: NativeError,
    },
  );
  t.is(error?.code, 'ERR_NATIVE');
  t.is((error?.cause as { code?: string } | undefined)?.code, 'MB_BAD_PLAN');
});
