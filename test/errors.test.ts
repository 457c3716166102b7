// The words of errors: one grammar, the nearest option, values printed short.
import test from 'ava';
import fc from 'fast-check';
import * as errors from '../lib/errors.ts';

const {
  checkBoolean,
  checkChoice,
  checkFunction,
  checkInteger,
  checkNumber,
  checkOptions,
  checkProbability,
  checkSignal,
  checkString,
} = errors;

test('each error has its class, its name and its stable code', (t) => {
  const codes = [
    [errors.ModelFormatError, 'ModelFormatError', 'ERR_MODEL_FORMAT'],
    [errors.DeviceUnavailableError, 'DeviceUnavailableError', 'ERR_DEVICE_UNAVAILABLE'],
    [errors.OutOfMemoryError, 'OutOfMemoryError', 'ERR_OUT_OF_MEMORY'],
    [errors.DisposedError, 'DisposedError', 'ERR_DISPOSED'],
    [errors.BusyError, 'BusyError', 'ERR_BUSY'],
    [errors.NativeLoadError, 'NativeLoadError', 'ERR_NATIVE_LOAD'],
    [errors.NativeError, 'NativeError', 'ERR_NATIVE'],
    [errors.CheckpointError, 'CheckpointError', 'ERR_CHECKPOINT'],
    [errors.DataError, 'DataError', 'ERR_DATA'],
  ] as const;
  const cause = new Error('why');
  for (const [Kind, name, code] of codes) {
    const error = new Kind('what', { cause });
    t.true(error instanceof errors.MambaByteError && error instanceof Error);
    t.like(error, { name, code, message: 'what', cause });
    t.true(error.stack?.startsWith(`${name}: what`));
  }
  t.like(new errors.NativeError('m', { op: 'linear', scope: 'layers.3' }), { op: 'linear', scope: 'layers.3' });
  t.true(new errors.ShapeError('m') instanceof TypeError);
  t.like(new errors.ShapeError('m'), { name: 'ShapeError', code: 'ERR_SHAPE' });
});

test('messages follow the grammar', (t) => {
  t.is(errors.expected('linear', 'weight', 'be float32', 'int32'), 'linear: expected weight to be float32, got int32.');
  t.is(errors.expected('a', 'b', 'c', 'd', 'Try e.'), 'a: expected b to c, got d. Try e.');
});

test('values are printed short, and no value makes it throw', (t) => {
  const printed: [unknown, string][] = [
    ['a"b', '"a\\"b"'],
    [-0, '-0'],
    [NaN, 'NaN'],
    [10n, '10n'],
    [undefined, 'undefined'],
    [null, 'null'],
    [[1, [2], {}], '[1, …, …]'],
    [new Array(20).fill(0), '[0, 0, 0, 0, 0, 0, 0, 0, … 20 items]'],
    [new Float32Array(3), 'Float32Array(3)'],
    [{}, '{}'],
    [{ a: 1, b: 2 }, '{ a, b }'],
    [new Map(), 'a Map'],
    [test, 'function test'],
    [Symbol('x'), 'a symbol'],
  ];
  for (const [value, text] of printed) t.is(errors.describe(value), text);
  t.true(errors.describe('x'.repeat(1000)).length < 70);
  fc.assert(
    fc.property(fc.anything({ withNullPrototype: true }), (value) => errors.describe(value).length < 2000),
    { seed: 1 },
  );
});

test('an unknown option is answered with the nearest known one', (t) => {
  const known = ['temperature', 'topK', 'topP', 'minP', 'seed', 'maxBytes', 'stop', 'signal'];
  const answer = (key: string) =>
    t.throws(() => checkOptions('generate', { [key]: 1 }, known), { instanceOf: TypeError })?.message;
  t.is(
    answer('temprature'),
    'generate: expected options to have only known keys, got "temprature". Did you mean "temperature"?',
  );
  t.regex(answer('top_p') ?? '', /Did you mean "topP"/);
  t.regex(answer('top_k') ?? '', /Did you mean "topK"/);
  t.regex(answer('sede') ?? '', /Did you mean "seed"/);
  t.regex(answer('maxbytes') ?? '', /Did you mean "maxBytes"/);
  t.regex(answer('zzzzzzzzzzzz') ?? '', /Known options: temperature, topK/);
  for (const bad of [null, 3, [], 'x']) t.throws(() => checkOptions('f', bad, known), { instanceOf: TypeError });
  t.notThrows(() => checkOptions('f', undefined, known));
  t.notThrows(() => checkOptions('f', { seed: 3, topP: undefined }, known));
});

test('edit distance: identity, symmetry, a swap costs one', (t) => {
  t.is(errors.editDistance('seed', 'sede'), 1);
  t.is(errors.editDistance('', 'abc'), 3);
  t.is(errors.editDistance('kitten', 'sitting'), 3);
  const word = fc.string({ maxLength: 8 });
  fc.assert(
    fc.property(word, (a) => errors.editDistance(a, a) === 0),
    { seed: 1 },
  );
  fc.assert(
    fc.property(word, word, (a, b) => errors.editDistance(a, b) === errors.editDistance(b, a)),
    { seed: 1 },
  );
});

test('numbers are checked for type, finiteness and range', (t) => {
  t.is(checkNumber('f', 'x', 0.5, { above: 0 }), 0.5);
  t.throws(() => checkNumber('f', 'x', '1'), {
    instanceOf: TypeError,
    message: 'f: expected x to be a finite number, got "1".',
  });
  for (const bad of [NaN, Infinity, -1, 0]) {
    t.throws(() => checkNumber('f', 'x', bad, { above: 0 }), {
      instanceOf: RangeError,
      message: /a finite number above 0/,
    });
  }
  t.is(checkInteger('f', 'n', 3, { min: 1, max: 3 }), 3);
  for (const bad of [0, 4, 1.5, NaN, 2 ** 53]) {
    t.throws(() => checkInteger('f', 'n', bad, { min: 1, max: 3 }), {
      instanceOf: RangeError,
      message: /an integer at least 1 and at most 3/,
    });
  }
  t.is(checkProbability('f', 'p', 1), 1);
  for (const bad of [0, -0.1, 1.1, NaN]) t.throws(() => checkProbability('f', 'p', bad), { instanceOf: RangeError });
});

test('other kinds of values are checked', (t) => {
  t.true(checkBoolean('f', 'x', true));
  t.throws(() => checkBoolean('f', 'x', 1), { instanceOf: TypeError });
  t.is(checkString('f', 'x', ''), '');
  t.throws(() => checkString('f', 'x', null), { instanceOf: TypeError });
  t.notThrows(() => checkFunction('f', 'x', () => {}));
  t.throws(() => checkFunction('f', 'x', {}), { instanceOf: TypeError });
  t.notThrows(() => checkSignal('f', new AbortController().signal));
  t.throws(() => checkSignal('f', {}), { instanceOf: TypeError });
  t.is(checkChoice('f', 'dtype', 'bf16', ['f32', 'bf16']), 'bf16');
  const message = 'f: expected dtype to be one of f32, bf16, got "fp16". Did you mean "bf16"?';
  t.throws(() => checkChoice('f', 'dtype', 'fp16', ['f32', 'bf16']), { instanceOf: RangeError, message });
});
