// Which device is opened, why another one is not, and what the errors say: with and without a GPU, with and without the
// library of the cuda backend.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import test from 'ava';
import { Device, deviceLabel, unavailable, whyUnavailable } from '../lib/device.ts';
import { doctor } from '../lib/doctor.ts';
import { DeviceUnavailableError } from '../lib/errors.ts';
import { createModel } from '../lib/model.ts';
import { native, packageRoot } from '../lib/native.ts';
import { LIBRARY } from './support/bundle.ts';
import { cuda } from './support/devices.ts';
import { fileOf } from './support/folder.ts';

const CONFIG = { layers: 1, dModel: 8 };
const library = process.env.MAMBABYTE_CUDA_LIB || join(dirname(native().file), 'libmambabyte_cuda.so');

interface Opened {
  device?: string;
  note?: string;
  name?: string;
  code?: string;
  reason?: string;
  message?: string;
}

/** What opening a model on `device` gives in a process with this environment: a library once loaded stays. */
function open(device: string | undefined, environment: Record<string, string>): Opened {
  const script = `
    import { createModel } from ${JSON.stringify(LIBRARY)};
    const show = (value) => console.log(JSON.stringify(value));
    try {
      const model = await createModel({ layers: 1, dModel: 8 }, ${JSON.stringify({ device })});
      show({ device: model.device, note: model.deviceNote });
    } catch ({ name, code, reason, message }) {
      show({ name, code, reason, message });
    }`;
  const { MAMBABYTE_DEVICE, MAMBABYTE_CUDA_LIB, ...inherited } = process.env;
  const child = spawnSync(process.execPath, ['--input-type=module', '-e', script], {
    encoding: 'utf8',
    cwd: packageRoot,
    env: { ...inherited, ...environment },
  });
  if (child.status !== 0) throw new Error(child.stderr);
  return JSON.parse(child.stdout) as Opened;
}

test("'auto' opens a GPU if one can be used, else the CPU, and says why", async (t) => {
  using model = await createModel(CONFIG, { device: 'auto' });
  t.log(`${model.device}: ${model.deviceNote}`);
  t.regex(model.deviceNote, cuda().info ? /^cuda: / : /^cpu: \S/);
  t.regex(model.device, cuda().info ? /^cuda:0 \(/ : /^cpu \(/);
  t.is(doctor().auto, model.deviceNote);
});

test('what is asked for by name is what is opened, or an error', async (t) => {
  using cpu = await createModel(CONFIG, { device: 'cpu' });
  t.is(cpu.deviceNote, 'cpu: as asked');
  using ref = await createModel(CONFIG, { device: 'ref' });
  t.is(ref.device, 'ref (scalar, 1 thread)');
  for (const device of ['gpu', 'cuda:', 'cuda:x', 'cuda:-1', 'CUDA', '']) {
    await t.throwsAsync(createModel(CONFIG, { device }), {
      instanceOf: TypeError,
      message: `createModel: expected device to be 'auto', 'cuda', 'cuda:1', 'cpu' or 'ref', got "${device}".`,
    });
  }
});

test('a library that is not there, or is none, is named with what to do', (t) => {
  for (const [file, why] of [
    ['/nowhere/libmambabyte_cuda.so', /No such file/],
    [fileOf('libmambabyte_cuda.so', 'not a library'), /file too short|invalid ELF header/],
  ] as const) {
    const refused = open('cuda', { MAMBABYTE_CUDA_LIB: file });
    t.like(refused, { name: 'DeviceUnavailableError', code: 'ERR_DEVICE_UNAVAILABLE', reason: 'no-library' });
    t.true(refused.message?.includes(file), refused.message);
    t.regex(refused.message ?? '', why);
    t.regex(refused.message ?? '', /npm run build:native.* or use device 'cpu'\.$/);
    const auto = open('auto', { MAMBABYTE_CUDA_LIB: file });
    t.regex(auto.device ?? '', /^cpu \(/);
    t.regex(auto.note ?? '', /^cpu: (this installation has no CUDA backend|the backend library cannot be loaded: .+)$/);
  }
});

test('a library that is no backend is named as one of another version', (t) => {
  const refused = open('cuda', { MAMBABYTE_CUDA_LIB: 'libm.so.6' });
  t.is(refused.reason, 'no-library');
  t.regex(refused.message ?? '', /libm\.so\.6 was built for another version of mambabyte\. Build both together/);
});

test('MAMBABYTE_DEVICE is the device where none is named', (t) => {
  const nowhere = { MAMBABYTE_CUDA_LIB: '/nowhere/x.so' };
  t.like(open(undefined, { MAMBABYTE_DEVICE: 'ref' }), { note: 'ref: as MAMBABYTE_DEVICE asks' });
  t.like(open('cpu', { MAMBABYTE_DEVICE: 'cuda', ...nowhere }), { note: 'cpu: as asked' });
  t.like(open(undefined, { MAMBABYTE_DEVICE: 'cuda', ...nowhere }), { reason: 'no-library' });
  t.regex(open(undefined, { MAMBABYTE_DEVICE: '', ...nowhere }).note ?? '', /^cpu: /);
  t.is(
    open(undefined, { MAMBABYTE_DEVICE: 'gpu' }).message,
    `createModel: expected MAMBABYTE_DEVICE to be 'auto', 'cuda', 'cuda:1', 'cpu' or 'ref', got "gpu".`,
  );
});

test('the compiled backend refuses cleanly where there is no GPU', (t) => {
  if (!existsSync(library)) {
    t.log('not tested here: this build has no CUDA backend (no libmambabyte_cuda.so beside the addon)');
    return t.pass();
  }
  // With every GPU hidden this is also what a machine with one says.
  const hidden = { CUDA_VISIBLE_DEVICES: '', MAMBABYTE_CUDA_LIB: library };
  const refused = open('cuda', hidden);
  t.is(refused.name, 'DeviceUnavailableError');
  t.true(['no-driver', 'driver-too-old', 'no-device'].includes(refused.reason ?? ''), JSON.stringify(refused));
  t.regex(refused.message ?? '', /^device: cuda: .*(or use device 'cpu')\.$/);
  t.log(refused.message);
  const auto = open('auto', hidden);
  t.regex(auto.note ?? '', /^cpu: .*(no NVIDIA driver|too old|finds no GPU)/);
});

test('a GPU that is not there is refused by its number', async (t) => {
  const { info, reason } = cuda();
  if (!info) {
    t.log(reason);
    return t.pass();
  }
  const error = await t.throwsAsync(createModel(CONFIG, { device: 'cuda:999' }), {
    instanceOf: DeviceUnavailableError,
    message: /expected the device number to be 0\.\.\d+, got 999/,
  });
  t.is((error as DeviceUnavailableError).reason, 'no-device');
});

test('every reason is told apart', (t) => {
  const native = (message: string, code = 'MB_DEVICE') => Object.assign(new Error(message), { code });
  for (const [reason, cause] of [
    ['no-library', native('cuda: the backend library cannot be loaded: x.so: cannot open shared object file')],
    ['no-driver', native("cuda: no NVIDIA driver is installed. Install driver 580 or newer, or use device 'cpu'.")],
    ['driver-too-old', native('cuda: the NVIDIA driver is too old: it supports CUDA 12.4, expected CUDA 13.')],
    ['no-device', native('cuda: the NVIDIA driver finds no GPU. Check nvidia-smi and CUDA_VISIBLE_DEVICES.')],
    ['unsupported-device', native('cuda: expected a GPU of compute capability 8.0 or newer, got 7.5 (Tesla T4)')],
    ['out-of-memory', native('cuda: cudaStreamCreate: out of memory', 'MB_OUT_OF_MEMORY')],
    ['other', native('cuda: cudaSetDevice: unknown error')],
  ] as const) {
    const error = unavailable(cause);
    t.is(error.reason, reason);
    t.true(error.message.startsWith(`device: ${cause.message}`));
    t.regex(error.message, /[^.]\. .*[Uu]se device 'cpu'\.$/);
  }
  t.is(
    whyUnavailable(unavailable(native('cuda: no NVIDIA driver is installed. Install one.'))),
    'no NVIDIA driver is installed',
  );
});

test('a device says what it is', (t) => {
  using cpu = Device.open('cpu', { threads: 2, target: 'scalar' });
  t.is(deviceLabel(cpu.info), 'cpu (scalar, 2 threads)');
  const { info, reason } = cuda();
  if (!info) return t.log(reason);
  using gpu = Device.open('cuda');
  t.is(deviceLabel(gpu.info), `cuda:0 (${info.name}, ${info.target})`);
  t.true(info.memoryBytes > 2 ** 30 && info.freeBytes <= info.memoryBytes && info.multiprocessors > 0);
  const before = (gpu.describe() as typeof info).freeBytes;
  gpu.alloc(2 ** 28);
  t.true((gpu.describe() as typeof info).freeBytes <= before - 2 ** 28);
});
