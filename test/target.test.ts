// MAMBABYTE_CPU forces an instruction set, and the device says which one runs.
import test from 'ava';
import { Device } from '../lib/device.ts';
import { createModel, DeviceUnavailableError } from '../lib/index.ts';
import { cpuTargets } from './support/devices.ts';

const { supported, reasons } = cpuTargets();

function withTarget<T>(value: string | undefined, fn: () => T): T {
  const before = process.env.MAMBABYTE_CPU;
  if (value === undefined) delete process.env.MAMBABYTE_CPU;
  else process.env.MAMBABYTE_CPU = value;
  try {
    return fn();
  } finally {
    if (before === undefined) delete process.env.MAMBABYTE_CPU;
    else process.env.MAMBABYTE_CPU = before;
  }
}

for (const target of supported) {
  test.serial(`MAMBABYTE_CPU=${target} runs ${target}`, (t) => {
    withTarget(target, () => {
      using device = Device.open('cpu', { threads: 1 });
      t.is(device.info.target, target);
      t.is(device.info.backend, 'cpu');
    });
  });

  test.serial(`a model says that it runs on ${target}`, async (t) => {
    const model = await withTarget(target, () => createModel({ layers: 1, dModel: 8 }, { device: 'cpu', threads: 1 }));
    t.is(model.device, `cpu (${target}, 1 thread)`);
    model.dispose();
  });
}

test.serial('without it the best instruction set runs, and an empty one counts as none', (t) => {
  for (const value of [undefined, '']) {
    withTarget(value, () => {
      using device = Device.open('cpu', { threads: 1 });
      t.is(device.info.target, supported.at(-1) ?? 'none');
    });
  }
});

test.serial('an unknown name is refused and the known ones are named', (t) => {
  for (const name of ['sse9', 'AVX2', 'avx', 'avx2 ']) {
    const error = withTarget(name, () => t.throws(() => Device.open('cpu'), { instanceOf: DeviceUnavailableError }));
    t.is(error?.code, 'ERR_DEVICE_UNAVAILABLE');
    t.true(error?.message.includes(`got '${name}'`), error?.message);
    for (const known of supported) t.true(error?.message.includes(known), error?.message);
  }
});

test.serial('a set that this processor lacks is refused', (t) => {
  for (const reason of reasons) t.log(reason);
  t.is(supported.length + reasons.length, 5);
  for (const reason of reasons) t.regex(reason, /expected target to be one of/);
});

test.serial('ref is scalar whatever is asked of the cpu', (t) => {
  withTarget('scalar', () => {
    using device = Device.open('ref', { threads: 4 });
    t.deepEqual([device.info.target, device.info.threads], ['scalar', 1]);
  });
});

test.serial('threads: as asked, by MAMBABYTE_THREADS, else one per core', (t) => {
  const before = process.env.MAMBABYTE_THREADS;
  try {
    process.env.MAMBABYTE_THREADS = '3';
    using by = Device.open('cpu');
    t.is(by.info.threads, 3);
    using asked = Device.open('cpu', { threads: 2 });
    t.is(asked.info.threads, 2);
    for (const bad of ['0', '-1', 'two', '1.5']) {
      process.env.MAMBABYTE_THREADS = bad;
      t.throws(() => Device.open('cpu'), { instanceOf: RangeError, message: /MAMBABYTE_THREADS/ });
    }
  } finally {
    if (before === undefined) delete process.env.MAMBABYTE_THREADS;
    else process.env.MAMBABYTE_THREADS = before;
  }
});
