// Weight files: what is written is read back, and every malformed file is refused by the name of its fault.
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import test from 'ava';
import fc from 'fast-check';
import { CheckpointError, MambaByteError, ModelFormatError } from '../lib/errors.ts';
import {
  bf16ToF32,
  f16ToF32,
  f32ToBf16,
  f32ToF16,
  fromFloat32,
  narrowed,
  toFloat32,
  widened,
} from '../lib/weights/dtypes.ts';
import { readTorchFile } from '../lib/weights/pickle.ts';
import { readSafetensors, type TensorSource, writeSafetensors } from '../lib/weights/safetensors.ts';
import {
  elementBytes,
  packedBytes,
  readTensorBytes,
  STORED_DTYPES,
  sameContents,
} from '../lib/weights/stored-tensor.ts';
import { fileOf, folder } from './support/folder.ts';
import { Random } from './support/random.ts';
import { Raw, stateDict, Tensor, type TorchOptions, torchFile, type Value } from './support/torch-writer.ts';

const runs = { seed: 20240124, numRuns: 60 };

/** A file from a header (an object, or JSON text as it stands) and data; `claim` overrides the header length. */
function safetensors(header: unknown, data: number | Uint8Array = 0, claim?: bigint): Buffer {
  const json = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(claim ?? BigInt(json.length));
  return Buffer.concat([length, json, typeof data === 'number' ? Buffer.alloc(data, 7) : data]);
}

const f32 = (shape: number[], begin: number, end: number) => ({ dtype: 'F32', shape, data_offsets: [begin, end] });

const dtypeArb = fc.constantFrom(...STORED_DTYPES);
const tensorsArb = fc.uniqueArray(
  fc.record({
    name: fc.string({ minLength: 1, maxLength: 12 }).filter((name) => name !== '__metadata__'),
    dtype: dtypeArb,
    shape: fc.array(fc.integer({ min: 0, max: 5 }), { maxLength: 4 }),
    fill: fc.integer({ min: 0, max: 255 }),
  }),
  { selector: ({ name }) => name, maxLength: 8 },
);

test('safetensors: any tensors and metadata are read back as they were written, each aligned to its elements', async (t) => {
  const path = join(folder(), 'model.safetensors');
  await fc.assert(
    fc.asyncProperty(tensorsArb, fc.dictionary(fc.string(), fc.string()), async (specs, metadata) => {
      const sources = specs.map((spec) => ({ ...spec, data: new Uint8Array(packedBytes(spec)).fill(spec.fill) }));
      await writeSafetensors(path, sources, metadata);
      const file = await readSafetensors(path);
      t.deepEqual(Object.entries(file.metadata).sort(), Object.entries(metadata).sort());
      t.is(file.tensors.size, sources.length);
      for (const { name, dtype, shape, data } of sources) {
        const stored = file.tensors.get(name);
        if (!stored) return t.fail(`${name} is missing`);
        t.deepEqual([stored.dtype, stored.shape, stored.bytes], [dtype, shape, data.length]);
        t.is(stored.offset % elementBytes(dtype), 0);
        t.deepEqual(await readTensorBytes(stored), data);
      }
    }),
    runs,
  );
});

test('safetensors: data starts at a multiple of 64 bytes and wide dtypes come first', async (t) => {
  const path = join(folder(), 'a.safetensors');
  const data = (bytes: number) => new Uint8Array(bytes);
  await writeSafetensors(path, [
    { name: 'bytes', dtype: 'I8', shape: [3], data: data(3) },
    { name: 'halves', dtype: 'BF16', shape: [3], data: data(6) },
    { name: 'doubles', dtype: 'F64', shape: [], data: data(8) },
    { name: 'floats', dtype: 'F32', shape: [1, 1], data: data(4) },
  ]);
  const { tensors } = await readSafetensors(path);
  const ordered = [...tensors.values()].sort((a, b) => a.offset - b.offset);
  t.deepEqual(
    ordered.map(({ name }) => name),
    ['doubles', 'floats', 'halves', 'bytes'],
  );
  t.is((ordered[0]?.offset ?? 1) % 64, 0);
});

test('safetensors: data may come in pieces, sync or async', async (t) => {
  const path = join(folder(), 'a.safetensors');
  function* pieces() {
    yield Uint8Array.of(1, 2);
    yield new Uint8Array(0);
    yield Uint8Array.of(3, 4);
  }
  async function* later() {
    yield* pieces();
  }
  await writeSafetensors(path, [
    { name: 'sync', dtype: 'U8', shape: [4], data: pieces() },
    { name: 'async', dtype: 'U8', shape: [2, 2], data: later() },
  ]);
  const { tensors } = await readSafetensors(path);
  for (const stored of tensors.values()) t.deepEqual([...(await readTensorBytes(stored))], [1, 2, 3, 4]);
});

test('safetensors: only the header of a 6 GB file is read', async (t) => {
  const bytes = 6_000_000_000;
  const head = safetensors({ big: { dtype: 'BF16', shape: [3_000_000_000], data_offsets: [0, bytes] } });
  const path = fileOf('sparse.safetensors', head);
  truncateSync(path, head.length + bytes);
  const readSoFar = () => Number(/^rchar: (\d+)/.exec(readFileSync('/proc/self/io', 'utf8'))?.[1]);
  const before = readSoFar();
  const { tensors } = await readSafetensors(path);
  t.is(tensors.get('big')?.bytes, bytes);
  t.true(readSoFar() - before < 1e9); // the other tests of this process read too, but no gigabyte
});

test('safetensors: a file of the reference writer (8-byte padding, metadata, empty tensors, scalars) is read', async (t) => {
  const header = {
    __metadata__: { format: 'pt' },
    scalar: f32([], 0, 4),
    empty: f32([0, 5], 4, 4),
    row: f32([2], 4, 12),
  };
  const { tensors, metadata } = await readSafetensors(
    fileOf('a.safetensors', safetensors(`${JSON.stringify(header)}   `, 12)),
  );
  t.deepEqual(metadata, { format: 'pt' });
  t.deepEqual([...tensors.values()].map(({ name, bytes }) => [name, bytes]).sort(), [
    ['empty', 0],
    ['row', 8],
    ['scalar', 4],
  ]);
});

const MALFORMED: [string, Uint8Array, RegExp][] = [
  ['an empty file', new Uint8Array(0), /at least the 8 bytes of a header length, got 0 bytes/],
  ['a file cut in its header length', safetensors({}).subarray(0, 5), /got 5 bytes/],
  ['a header length past the end', safetensors({}, 0, 1000n), /header length to fit the file, got 1000 with 2 bytes/],
  ['a header length over the cap', safetensors({}, 0, 100_000_001n), /header length to be at most 100000000/],
  ['a header length of 2^64 - 1', safetensors({}, 0, 2n ** 64n - 1n), /got 18446744073709551615/],
  ['a header length shorter than the header', safetensors({ a: f32([1], 0, 4) }, 4, 9n), /header to be JSON/],
  ['an empty header', safetensors(''), /start with "{", got nothing/],
  ['a header that is no JSON', safetensors('{"a": nope}'), /header to be JSON/],
  ['a header that is a list', safetensors([1, 2]), /start with "{"/],
  ['a header with invalid UTF-8', safetensors('{"a\uDC00": 1}').fill(0xff, 11, 12), /JSON in UTF-8/],
  ['a pickle', Buffer.from([0x80, 2, 0x7d, 0x71, 0, 0x2e, 0, 0, 0]), /header length/],
  ['a name twice', safetensors('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"\\u0061":{}}', 4), /"a" twice/],
  [
    'a field twice',
    safetensors('{"a":{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}}', 4),
    /"dtype" twice/,
  ],
  ['an entry that is no object', safetensors({ a: 3 }), /tensor "a" to be described by an object, got 3/],
  ['an unknown dtype', safetensors({ a: { ...f32([1], 0, 4), dtype: 'F8_E5M2' } }, 4), /dtype of F64, .*got "F8_E5M2"/],
  [
    'a dtype from the prototype',
    safetensors({ a: { ...f32([1], 0, 4), dtype: 'constructor' } }, 4),
    /got "constructor"/,
  ],
  ['no dtype', safetensors({ a: { shape: [1], data_offsets: [0, 4] } }, 4), /got undefined/],
  ['a negative dimension', safetensors({ a: f32([-1, -1], 0, 4) }, 4), /non-negative integers/],
  ['a fractional dimension', safetensors({ a: f32([0.5, 2], 0, 4) }, 4), /non-negative integers/],
  ['a dimension as text', safetensors('{"a":{"dtype":"F32","shape":["1"],"data_offsets":[0,4]}}', 4), /non-negative/],
  ['a shape that is no list', safetensors('{"a":{"dtype":"F32","shape":1,"data_offsets":[0,4]}}', 4), /non-negative/],
  ['a shape whose product overflows', safetensors({ a: f32([2 ** 32, 2 ** 32], 0, 0) }), /product under 2\^53/],
  ['a shape whose byte count overflows', safetensors({ a: f32([2 ** 52], 0, 0) }), /take 18014398509481984 bytes/],
  ['offsets in reverse', safetensors({ a: f32([1], 4, 0) }, 4), /0 <= begin <= end/],
  ['negative offsets', safetensors({ a: f32([1], -4, 0) }, 4), /0 <= begin <= end/],
  ['fractional offsets', safetensors({ a: f32([1], 0.5, 4.5) }, 8), /0 <= begin <= end/],
  ['one offset', safetensors('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}', 4), /0 <= begin <= end/],
  ['a range too short for its shape', safetensors({ a: f32([2], 0, 4) }, 4), /take 8 bytes for F32 \[2\], got 4 bytes/],
  ['a range too long for its shape', safetensors({ a: f32([1], 0, 8) }, 8), /take 4 bytes/],
  ['an overlap', safetensors({ a: f32([2], 0, 8), b: f32([2], 4, 12) }, 12), /tensor "b".*an overlap/],
  ['two tensors in one place', safetensors({ a: f32([1], 0, 4), b: f32([1], 0, 4) }, 4), /an overlap/],
  ['a hole', safetensors({ a: f32([1], 0, 4), b: f32([1], 8, 12) }, 12), /tensor "b".*a hole/],
  ['a hole at the start', safetensors({ a: f32([1], 4, 8) }, 8), /a hole/],
  [
    'a misaligned tensor',
    safetensors({ b: { dtype: 'U8', shape: [2], data_offsets: [0, 2] }, a: f32([1], 2, 6) }, 6),
    /tensor "a" to start at a multiple of 4 bytes, got offset 2: misaligned/,
  ],
  ['a truncated file', safetensors({ a: f32([4], 0, 16) }, 15), /lie inside the file.*truncated/],
  ['bytes after the last tensor', safetensors({ a: f32([1], 0, 4) }, 5), /end after its last tensor/],
  ['metadata that is no map', safetensors({ __metadata__: 'x' }), /__metadata__/],
  ['metadata with numbers', safetensors({ __metadata__: { a: 1 } }), /__metadata__ to map strings to strings/],
];

for (const [title, bytes, message] of MALFORMED) {
  test(`safetensors refuses ${title}`, async (t) => {
    const path = fileOf('bad.safetensors', bytes);
    const error = await t.throwsAsync(readSafetensors(path), { instanceOf: ModelFormatError, message });
    t.is(error?.code, 'ERR_MODEL_FORMAT');
    t.true(error?.message.startsWith(`${path}: expected `));
  });
}

test('safetensors refuses a file that is not there, a folder and a pipe', async (t) => {
  await t.throwsAsync(readSafetensors(join(folder(), 'none')), { instanceOf: ModelFormatError, message: /ENOENT/ });
  await t.throwsAsync(readSafetensors(folder()), { instanceOf: ModelFormatError, message: /a folder/ });
  const pipe = join(folder(), 'pipe');
  spawnSync('mkfifo', [pipe]);
  await t.throwsAsync(readSafetensors(pipe), { instanceOf: ModelFormatError, message: /a device or a pipe/ });
});

test('safetensors: a file with damaged bytes is refused, or its tensors still tile it', async (t) => {
  const path = join(folder(), 'damaged.safetensors');
  const good = safetensors({ __metadata__: { a: 'b' }, x: f32([2, 3], 0, 24), y: f32([1], 24, 28) }, 28);
  const damage = fc.array(fc.tuple(fc.nat(good.length - 1), fc.nat(255)), { minLength: 1, maxLength: 4 });
  await fc.assert(
    fc.asyncProperty(damage, fc.nat(good.length), fc.boolean(), async (changes, cut, cuts) => {
      const bytes = Buffer.from(good);
      for (const [at, value] of changes) bytes[at] = value;
      writeFileSync(path, cuts ? bytes.subarray(0, cut) : bytes);
      try {
        const { tensors } = await readSafetensors(path);
        for (const { offset, bytes: size } of tensors.values()) t.true(offset >= 8 && offset + size <= good.length);
      } catch (error) {
        t.true(error instanceof ModelFormatError, String(error));
      }
    }),
    { ...runs, numRuns: 400 },
  );
  t.pass();
});

const source = (name: string, data: TensorSource['data'], bytes = 4): TensorSource => ({
  name,
  dtype: 'U8',
  shape: [bytes],
  data,
});

/** A folder with a good file in it, and a check that it alone is still there. */
async function withOldFile() {
  const path = join(folder(), 'model.safetensors');
  await writeSafetensors(path, [source('old', Uint8Array.of(1, 2, 3, 4))]);
  const before = readFileSync(path);
  const intact = () => readFileSync(path).equals(before) && readdirSync(dirname(path)).length === 1;
  return { path, intact };
}

test('writing: an error of a source passes unchanged and leaves the old file and nothing else', async (t) => {
  const { path, intact } = await withOldFile();
  const reason = new Error('stopped');
  function* failing() {
    yield new Uint8Array(2);
    throw reason;
  }
  t.is(await t.throwsAsync(writeSafetensors(path, [source('new', failing())])), reason);
  t.true(intact());
});

test('writing: a source with too few or too many bytes is refused and leaves the old file', async (t) => {
  const { path, intact } = await withOldFile();
  for (const bytes of [3, 5]) {
    const writing = writeSafetensors(path, [source('new', new Uint8Array(bytes))]);
    await t.throwsAsync(writing, { instanceOf: CheckpointError, message: /tensor "new" to yield 4 bytes/ });
    t.true(intact());
  }
});

test('writing: two tensors of one name, or an impossible one, are refused', async (t) => {
  const { path, intact } = await withOldFile();
  const data = new Uint8Array(4);
  await t.throwsAsync(writeSafetensors(path, [source('a', data), source('a', data)]), { instanceOf: TypeError });
  await t.throwsAsync(writeSafetensors(path, [source('__metadata__', data)]), { instanceOf: TypeError });
  await t.throwsAsync(writeSafetensors(path, [source('a', data, -4)]), { instanceOf: TypeError });
  await t.throwsAsync(writeSafetensors(path, [{ ...source('a', data), dtype: 'F8' as 'U8' }]), {
    instanceOf: TypeError,
  });
  t.true(intact());
});

test('writing: a folder that is not there or not a folder is a CheckpointError with its cause', async (t) => {
  const missing = join(folder(), 'none', 'a.safetensors');
  const error = await t.throwsAsync(writeSafetensors(missing, []), { instanceOf: CheckpointError, message: /ENOENT/ });
  t.like(error?.cause, { code: 'ENOENT' });
  const blocked = join(fileOf('file', ''), 'a.safetensors');
  await t.throwsAsync(writeSafetensors(blocked, []), { instanceOf: CheckpointError, message: /ENOTDIR/ });
});

const WRITER = `
import { writeSafetensors } from ${JSON.stringify(new URL('../lib/weights/safetensors.ts', import.meta.url).href)};
const [path, bytes, pause] = [process.argv[1], Number(process.argv[2]), Number(process.argv[3])];
async function* data() {
  for (let done = 0; done < bytes; done += 65536) {
    yield new Uint8Array(65536);
    process.stdout.write('.');
    if (pause > 0) await new Promise((wake) => setTimeout(wake, pause));
  }
}
try {
  await writeSafetensors(path, [{ name: 'new', dtype: 'U8', shape: [bytes], data: data() }]);
} catch (error) {
  console.log(JSON.stringify({ name: error.name, code: error.code, message: error.message, cause: error.cause?.code }));
}`;
const writerArgs = (path: string, bytes: number, pause: number) => {
  return ['--import=tsx', '--input-type=module', '-e', WRITER, '--', path, `${bytes}`, `${pause}`];
};

test('writing: a disk that takes no more bytes half way leaves the old file and nothing else', async (t) => {
  const { path, intact } = await withOldFile();
  // The kernel refuses writes past the limit just as it does on a full disk; the signal is ignored as on no disk.
  const limited = `trap '' XFSZ; ulimit -f 512; exec "$0" "$@"`;
  const args = ['-c', limited, process.execPath, ...writerArgs(path, 4 << 20, 0)];
  const child = spawnSync('bash', args, { encoding: 'utf8', env: { ...process.env, TSX_DISABLE_CACHE: '1' } });
  const report = JSON.parse(child.stdout.slice(child.stdout.indexOf('{')));
  t.like(report, { name: 'CheckpointError', code: 'ERR_CHECKPOINT', cause: 'EFBIG' });
  t.true(intact());
});

test('writing: kill -9 half way leaves the old file, and the next write clears up', async (t) => {
  const { path } = await withOldFile();
  const before = readFileSync(path);
  const child = spawn(process.execPath, writerArgs(path, 64 << 20, 50), { stdio: ['ignore', 'pipe', 'inherit'] });
  await once(child.stdout, 'data');
  child.kill('SIGKILL');
  await once(child, 'exit');
  t.deepEqual(readFileSync(path), before);
  t.is(readdirSync(dirname(path)).length, 2);
  await writeSafetensors(path, [source('newer', new Uint8Array(4))]);
  t.deepEqual(readdirSync(dirname(path)), [basename(path)]);
  t.true((await readSafetensors(path)).tensors.has('newer'));
});

test('writing: two writes to one path at once leave one whole file', async (t) => {
  const path = join(folder(), 'model.safetensors');
  const write = (name: string) => writeSafetensors(path, [source(name, new Uint8Array(1 << 20), 1 << 20)]);
  await Promise.all([write('a'), write('b')]);
  t.is((await readSafetensors(path)).tensors.size, 1);
  t.is(readdirSync(dirname(path)).length, 1);
});

const floats = (count: number, first = 0) =>
  fromFloat32(
    Float32Array.from({ length: count }, (_, i) => first + i),
    'F32',
  );
const small = { dtype: 'F32', shape: [2, 3], data: floats(6) } as const;

function torchPath(value: Value, options?: TorchOptions): string {
  return fileOf('pytorch_model.bin', torchFile(value, options));
}

async function readValues(path: string): Promise<Record<string, number[]>> {
  const { tensors } = await readTorchFile(path);
  const values: Record<string, number[]> = {};
  for (const [name, stored] of tensors) values[name] = [...toFloat32(await readTensorBytes(stored), stored.dtype)];
  return values;
}

test('torch.save: a file pickled by CPython is read: ties, views, a transposed view, what is not a tensor', async (t) => {
  const values = await readValues('test/fixtures/pickled-by-cpython.pt');
  const count = Array.from({ length: 12 }, (_, i) => i);
  t.deepEqual(values, {
    weight: count,
    tied: count,
    transposed: [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11],
    row: [4, 5, 6, 7],
    bias: [0.5, -0.25],
  });
});

test('torch.save: what PyTorch wrote is read as PyTorch reads it: views, ties, every dtype, scalar, empty', async (t) => {
  const { tensors } = await readTorchFile('test/fixtures/pickle/views.bin');
  const { tensors: packed } = await readSafetensors('test/fixtures/pickle/views.expected.safetensors');
  t.deepEqual([...tensors.keys()].sort(), [...packed.keys()].sort());
  for (const [name, wanted] of packed) {
    const stored = tensors.get(name);
    if (!stored) return t.fail(`${name} is missing`);
    t.deepEqual([stored.dtype, stored.shape], [wanted.dtype, wanted.shape]);
    t.deepEqual(await readTensorBytes(stored), await readTensorBytes(wanted));
  }
  t.deepEqual(tensors.get('transposed')?.strides, [1, 6]);
  t.is(tensors.get('tied')?.offset, tensors.get('base')?.offset);
});

test('torch.save: PyTorch files with a parameter, with a wrapper, of the old format, and with a command', async (t) => {
  const weight = Array.from({ length: 24 }, (_, i) => i / 8);
  t.deepEqual(await readValues('test/fixtures/pickle/parameter.bin'), { weight });
  t.deepEqual(await readValues('test/fixtures/pickle/nested.bin'), { weight });
  const refused = (name: string, message: RegExp) => {
    return t.throwsAsync(readTorchFile(`test/fixtures/pickle/${name}`), { instanceOf: ModelFormatError, message });
  };
  await refused('legacy.bin', /the legacy format/);
  await refused('command.bin', /global "posix\.system"\. It was not loaded/);
});

test('torch.save: every dtype, parameters, zip64 and padded entries are read', async (t) => {
  for (const options of [{}, { zip64: true }, { pad: 37 }, { zip64: true, pad: 60, archive: 'books' }]) {
    const tensors = STORED_DTYPES.map((dtype) => {
      const data = new Uint8Array(elementBytes(dtype) * 4).fill(1);
      return [dtype, { dtype, shape: [2, 1, 2], data, parameter: dtype === 'F32' }] as const;
    });
    const file = await readTorchFile(torchPath(stateDict(Object.fromEntries(tensors)), options));
    for (const [name, { dtype, shape, data }] of tensors) {
      const stored = file.tensors.get(name);
      if (!stored) return t.fail(`${name} is missing`);
      t.deepEqual([stored.dtype, stored.shape, stored.strides], [dtype, shape, undefined]);
      t.deepEqual(await readTensorBytes(stored), data);
    }
  }
});

for (const keys of [['model'], ['state_dict'], ['model_state_dict'], ['model', 'state_dict']]) {
  test(`torch.save: a state dict under ${keys.join('.')} is found beside other things`, async (t) => {
    let value: Value = stateDict({ w: small });
    for (const key of keys.toReversed()) {
      value = new Map<string, Value>([
        ['step', 70_000],
        ['lr', 0.1],
        [key, value],
        ['seed', 2 ** 40],
        ['betas', [0.9, -1]],
      ]);
    }
    t.deepEqual(await readValues(torchPath(value)), { w: [0, 1, 2, 3, 4, 5] });
  });
}

test('torch.save: what is not a tensor in a state dict is named in a warning', async (t) => {
  const { warnings } = await readTorchFile(
    torchPath(
      new Map<string, Value>([
        ['w', new Tensor(small)],
        ['n', 3],
      ]),
    ),
  );
  t.regex(warnings.join(), /ignored what is not a tensor: n/);
});

test('torch.save: more tensors than one memo byte can number', async (t) => {
  const names = Array.from({ length: 300 }, (_, i) => `w${i}`);
  const path = torchPath(stateDict(Object.fromEntries(names.map((name) => [name, small]))));
  t.is((await readTorchFile(path)).tensors.size, 300);
});

test('torch.save: views of any strides inside their storage give the elements that the strides say', async (t) => {
  const dims = fc.array(fc.tuple(fc.integer({ min: 0, max: 4 }), fc.integer({ min: 0, max: 5 })), { maxLength: 3 });
  await fc.assert(
    fc.asyncProperty(dims, fc.nat(3), async (axes, offset) => {
      const shape = axes.map(([dim]) => dim);
      const strides = axes.map(([, stride]) => stride);
      const path = torchPath(stateDict({ w: { dtype: 'F32', shape, strides, offset, data: floats(64) } }));
      const wanted: number[] = [];
      const walk = (axis: number, at: number): void => {
        if (axis === shape.length) wanted.push(at);
        else for (let i = 0; i < (shape[axis] ?? 0); i++) walk(axis + 1, at + i * (strides[axis] ?? 0));
      };
      walk(0, offset);
      t.deepEqual(await readValues(path), { w: wanted });
    }),
    runs,
  );
});

const dict = (...raw: (number | string | Buffer)[]) => new Map<string, Value>([['w', new Raw(...raw)]]);
const deep = Buffer.alloc(600, '(');

const BAD_PICKLES: [string, Value, RegExp][] = [
  [
    'a call of os.system',
    dict('cposix\nsystem\nX\x02\0\0\0id', 0x85, 'R'),
    /got global "posix\.system"\. It was not loaded/,
  ],
  ['a call of builtins.eval', dict('c__builtin__\neval\n'), /global "__builtin__\.eval"/],
  ['a global of torch that is no storage', dict('ctorch\nload\n'), /global "torch\.load"/],
  ['a global by a prototype name', dict('cconstructor\nx\n'), /global "constructor\.x"/],
  ['a dtype without support', dict('ctorch\nQInt8Storage\n'), /global "torch\.QInt8Storage"/],
  ['a Namespace', dict('cargparse\nNamespace\n'), /global "argparse\.Namespace"/],
  ['INST', dict('(ios\nsystem\n'), /opcode 0x69 at byte \d+\. Nothing of it was executed/],
  ['OBJ', dict('(o'), /opcode 0x6f/],
  ['NEWOBJ', dict(0x81), /opcode 0x81/],
  ['STACK_GLOBAL', dict(0x93), /opcode 0x93/],
  ['EXT1', dict(0x82, 1), /opcode 0x82/],
  ['LONG4 of 2 GB', dict(0x8b, 0xff, 0xff, 0xff, 0x7f), /opcode 0x8b/],
  ['protocol 4', dict(0x80, 4), /protocol to be 2, got 4/],
  ['a string longer than the file', dict('X', 0xff, 0xff, 0xff, 0xff), /truncated/],
  ['a memo that was never set', dict('h', 250), /memo 250, which is empty/],
  ['a pop of nothing', new Raw('00R'), /opcode 0x30/],
  ['REDUCE on an empty stack', new Raw('R'), /pop what it pushed/],
  ['REDUCE of a string', dict('X\x01\0\0\0a', ')R'), /REDUCE to rebuild a tensor/],
  ['REDUCE of a storage class', dict('ctorch\nFloatStorage\n', ')R'), /"torch\.FloatStorage" on a tuple of 0/],
  ['an OrderedDict with items', dict('ccollections\nOrderedDict\n', ']', 0x85, 'R'), /OrderedDict to be made empty/],
  ['a persistent id that is no storage', dict('X\x01\0\0\0a', 'Q'), /persistent id/],
  [
    'a persistent id with a negative count',
    dict('(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x01\0\0\0cJ', 0xff, 0xff, 0xff, 0xff, 'tQ'),
    /persistent id/,
  ],
  ['a tensor without a storage', dict('ctorch._utils\n_rebuild_tensor_v2\n(NK\0))tR'), /a tensor to have a storage/],
  ['a parameter of no tensor', dict('ctorch._utils\n_rebuild_parameter\nN', 0x85, 'R'), /parameter to wrap a tensor/],
  ['BUILD of a list', dict(']}b'), /BUILD/],
  ['items for a list', new Raw(']K\x01K\x01s'), /item to go to a dict/],
  ['items without a mark', new Raw('}u'), /set a mark/],
  ['an odd number of items', new Raw('}(K\x01u'), /pairs/],
  ['a dict as a key', new Raw('}}K\x01s'), /key to be a string or a number/],
  ['600 containers in each other', new Raw(deep), /nest at most/],
  ['two values', new Raw('}}'), /leave one value, got 2/],
  ['a list', [1, 2], /be a dict of tensors, got a list of 2/],
  [
    'a dict that contains itself',
    new Raw('}', 'q', 99, 'X\x05\0\0\0modelh', 99, 's'),
    /hold tensors, or a dict of them/,
  ],
  ['a dict without tensors', new Map([['a', 1]]), /hold tensors, or a dict of them under model, .*got a/],
  ['no STOP', new Raw('}', 'q'), /truncated|empty/],
];

for (const [title, value, message] of BAD_PICKLES) {
  test(`torch.save: refuses a pickle with ${title}`, async (t) => {
    await t.throwsAsync(readTorchFile(torchPath(value)), { instanceOf: ModelFormatError, message });
  });
}

const one = stateDict({ w: small });
const rename = (from: RegExp, to: string) => (options: Parameters<NonNullable<TorchOptions['tamper']>>[0]) =>
  options.map((file) => ({ ...file, name: file.name.replace(from, to) }));
const change = (name: RegExp, changes: object): TorchOptions => ({
  tamper: (files) => files.map((file) => (name.test(file.name) ? { ...file, ...changes } : file)),
});

const BAD_ARCHIVES: [string, Buffer, RegExp][] = [
  ['big-endian data', torchFile(one, { byteorder: 'big' }), /byte order to be little, got "big"/],
  ['compressed entries', torchFile(one, change(/data.0$/, { method: 8 })), /be stored, got compression method 8/],
  ['encrypted entries', torchFile(one, change(/data.0$/, { flags: 1 })), /encryption/],
  ['no data.pkl', torchFile(one, { tamper: rename(/data\.pkl/, 'other.pkl') }), /one data\.pkl, got none/],
  [
    'two of them',
    torchFile(one, { tamper: (f) => [...f, { name: 'b/data.pkl', data: Buffer.from('') }] }),
    /one data\.pkl, got archive/,
  ],
  [
    'TorchScript',
    torchFile(one, { tamper: (f) => [...f, { name: 'archive/constants.pkl', data: Buffer.from('') }] }),
    /TorchScript/,
  ],
  ['a name twice', torchFile(one, { tamper: rename(/version/, 'byteorder') }), /"archive\/byteorder" twice/],
  [
    'a missing storage',
    torchFile(one, { tamper: rename(/data.0$/, 'data/9') }),
    /tensor "w" to have its data in data\/0, got no such entry/,
  ],
  [
    'a storage shorter than it says',
    torchFile(stateDict({ w: { ...small, count: 60 } })),
    /60 F32 elements in archive\/data\/0, got 24 bytes/,
  ],
  ['a view past its storage', torchFile(stateDict({ w: { ...small, offset: 1 } })), /inside its storage of 6 elements/],
  ['strides past its storage', torchFile(stateDict({ w: { ...small, strides: [4, 1] } })), /inside its storage/],
  ['a shape past 2^53', torchFile(stateDict({ w: { ...small, shape: [2 ** 40, 2 ** 40], strides: [0, 0] } })), /2\^53/],
  ['negative strides', torchFile(stateDict({ w: { ...small, strides: [-3, 1] } })), /offset and as many strides/],
  ['fewer strides than dimensions', torchFile(stateDict({ w: { ...small, strides: [1] } })), /as many strides/],
  ['an entry past the directory', torchFile(one, change(/data.0$/, { bytes: 1 << 20 })), /end before the directory/],
  [
    'an entry that points elsewhere',
    torchFile(one, change(/data.0$/, { headerOffset: 3 })),
    /start with its own header/,
  ],
  [
    'an entry at the end of the file',
    torchFile(one, change(/data.0$/, { headerOffset: 1 << 30 })),
    /be there, got the end/,
  ],
  ['different packed and unpacked sizes', torchFile(one, change(/data.0$/, { packedBytes: 3 })), /packed as unpacked/],
  ['its end cut off', torchFile(one).subarray(0, -30), /end with a zip directory/],
  ['a directory outside the file', corruptEnd(torchFile(one), 16, 1 << 30), /directory/],
  ['more entries than the directory holds', corruptEnd(torchFile(one), 10, 50), /hold 5\d entries|entries, got/],
  ['the legacy format', Buffer.from([0x80, 2, 0x8a, 0x0a, 0x6c, 0xfc]), /the legacy format\. Load it in PyTorch/],
  ['other contents', Buffer.from('<!DOCTYPE html>'), /zip archive of torch\.save, got "<!DO"/],
  ['nothing', Buffer.alloc(0), /zip archive/],
];

/** Changes a field of the end record of a zip32 archive. */
function corruptEnd(archive: Buffer, field: number, value: number): Buffer {
  if (field === 16) archive.writeUInt32LE(value, archive.length - 22 + field);
  else archive.writeUInt16LE(value, archive.length - 22 + field);
  return archive;
}

for (const [title, bytes, message] of BAD_ARCHIVES) {
  test(`torch.save: refuses an archive with ${title}`, async (t) => {
    await t.throwsAsync(readTorchFile(fileOf('bad.pt', bytes)), { instanceOf: ModelFormatError, message });
  });
}

test('torch.save: a file with damaged bytes is refused, or its tensors still lie inside it', async (t) => {
  const good = torchFile(stateDict({ w: small, v: { ...small, parameter: true } }), { zip64: true });
  const path = join(folder(), 'damaged.pt');
  const damage = fc.array(fc.tuple(fc.nat(good.length - 1), fc.nat(255)), { minLength: 1, maxLength: 6 });
  await fc.assert(
    fc.asyncProperty(damage, async (changes) => {
      const bytes = Buffer.from(good);
      for (const [at, value] of changes) bytes[at] = value;
      writeFileSync(path, bytes);
      try {
        const { tensors } = await readTorchFile(path);
        for (const stored of tensors.values()) t.true(stored.offset + stored.bytes <= good.length);
      } catch (error) {
        t.true(error instanceof MambaByteError, String(error instanceof Error ? error.stack : error));
      }
    }),
    { ...runs, numRuns: 1000 },
  );
  t.pass();
});

test('two tensors are the same if their storage or their bytes are', async (t) => {
  const other = { ...small, data: floats(6, 1) };
  const path = torchPath(stateDict({ a: { ...small, key: 's' }, b: { ...small, key: 's' }, c: small, d: other }));
  const { tensors } = await readTorchFile(path);
  const [a, b, c, d] = ['a', 'b', 'c', 'd'].map((name) => tensors.get(name));
  if (!a || !b || !c || !d) return t.fail('a tensor is missing');
  t.true(await sameContents(a, b));
  t.true(await sameContents(a, c));
  t.false(await sameContents(a, d));
});

test('every half and bfloat16 survives the way to float32 and back; NaN stays NaN', (t) => {
  for (let bits = 0; bits < 65536; bits++) {
    const half = f16ToF32(bits);
    const brain = bf16ToF32(bits);
    if (Number.isNaN(half)) t.true(Number.isNaN(f16ToF32(f32ToF16(half))));
    else if (f32ToF16(half) !== bits) t.is(f32ToF16(half), bits);
    if (Number.isNaN(brain)) t.true(Number.isNaN(bf16ToF32(f32ToBf16(brain))));
    else if (f32ToBf16(brain) !== bits) t.is(f32ToBf16(brain), bits);
  }
});

test('many numbers of 16 bits at once are those one by one', (t) => {
  const values = new Float32Array(new Random(1).normal(1000));
  for (const [dtype, widen, narrow] of [
    ['bf16', bf16ToF32, f32ToBf16],
    ['f16', f16ToF32, f32ToF16],
  ] as const) {
    const all = Uint16Array.from({ length: 65536 }, (_, bits) => bits).filter((bits) => !Number.isNaN(widen(bits)));
    t.deepEqual(widened(all, dtype), Float32Array.from(all, widen));
    t.deepEqual(narrowed(values, dtype), Uint16Array.from(values, narrow));
  }
});

test('halves have the values of IEEE 754', (t) => {
  const known: [number, number][] = [
    [0x0001, 2 ** -24],
    [0x03ff, 1023 * 2 ** -24],
    [0x0400, 2 ** -14],
    [0x3c00, 1],
    [0xc000, -2],
    [0x7bff, 65504],
    [0x7c00, Infinity],
    [0xfc00, -Infinity],
    [0x8000, -0],
  ];
  for (const [bits, value] of known) t.is(f16ToF32(bits), value);
  t.is(f32ToF16(65519.996), 0x7bff);
  t.is(f32ToF16(65520), 0x7c00);
  t.is(f32ToF16(2 ** -25), 0);
  t.is(f32ToF16(2 ** -25 * 1.0001), 1);
  t.is(f32ToBf16(3.4e38), 0x7f80);
  t.is(f32ToBf16(1 + 2 ** -8), 0x3f80);
  t.is(f32ToBf16(1 + 3 * 2 ** -8), 0x3f82);
});

/** Rounding by its definition: the nearer neighbour, and of two equally near ones the even. */
function roundsRight(value: number, bits: number, decode: (bits: number) => number): boolean {
  const here = Math.abs(decode(bits) - value);
  return [bits - 1, bits + 1].every((near) => {
    if ((near & 0x8000) !== (bits & 0x8000) || near < 0 || near > 0xffff) return true;
    const there = Math.abs(decode(near) - value);
    return here < there || (here === there && (bits & 1) === 0);
  });
}

test('rounding to half and bfloat16 is to the nearest, ties to even', (t) => {
  const finite = fc.float({ noNaN: true, noDefaultInfinity: true });
  const inHalf = fc.float({ noNaN: true, min: -65504, max: 65504 });
  const halfway = fc
    .tuple(fc.nat(0x7bfe), fc.boolean())
    .map(([b, s]) => (s ? -1 : 1) * ((f16ToF32(b) + f16ToF32(b + 1)) / 2));
  const tiny = fc.integer({ min: -(2 ** 20), max: 2 ** 20 }).map((n) => n * 2 ** -40);
  fc.assert(
    fc.property(fc.oneof(inHalf, halfway, tiny), (v) => roundsRight(v, f32ToF16(v), f16ToF32)),
    { ...runs, numRuns: 3000 },
  );
  fc.assert(
    fc.property(
      finite.filter((v) => Math.abs(v) < 3.38e38),
      (v) => roundsRight(v, f32ToBf16(v), bf16ToF32),
    ),
    { ...runs, numRuns: 3000 },
  );
  t.pass();
});

test('arrays convert both ways, whatever the alignment of their bytes', (t) => {
  const values = Float32Array.of(0, -0, 1, -1.5, 65504, Infinity, -Infinity, 2 ** -14);
  for (const dtype of ['F64', 'F32', 'F16', 'BF16'] as const) {
    const bytes = fromFloat32(values, dtype);
    const shifted = new Uint8Array(bytes.length + 1);
    shifted.set(bytes, 1);
    t.deepEqual(
      [...toFloat32(shifted.subarray(1), dtype)],
      dtype === 'BF16' ? [...values].map((v) => bf16ToF32(f32ToBf16(v))) : [...values],
    );
  }
  t.deepEqual([...toFloat32(Uint8Array.of(255, 128), 'I8')], [-1, -128]);
  t.deepEqual([...toFloat32(Uint8Array.of(255, 128), 'U8')], [255, 128]);
  t.deepEqual([...toFloat32(Uint8Array.of(254, 255, 255, 255), 'I32')], [-2]);
  t.deepEqual([...toFloat32(Uint8Array.of(254, 255, 255, 255, 255, 255, 255, 255), 'I64')], [-2]);
  t.throws(() => toFloat32(new Uint8Array(3), 'F16'), { instanceOf: RangeError });
});
