// States: constant in size, copied, saved and restored without the loss of a bit.
import test from 'ava';
import { BusyError, createModel, type Model, ModelFormatError, type State } from '../lib/index.ts';

let model: Model;
test.before(async () => {
  model = await createModel({ layers: 2, dModel: 16 }, { seed: 7, threads: 1 });
});
test.after.always(() => model.dispose());

const greedy = (state: State, prompt: string, maxBytes = 24) =>
  model.generate(prompt, { state, temperature: 0, maxBytes }).then(({ bytes }) => [...bytes]);

test('a generation in two parts is the whole one', async (t) => {
  const whole = await greedy(model.createState(), 'Once upon a time', 40);
  const state = model.createState();
  const first = await greedy(state, 'Once upon a time', 17);
  const second = await greedy(state, '', 23);
  t.deepEqual([...first, ...second], whole);
  t.is(state.position, 'Once upon a time'.length + 40);
});

test('a prompt in parts is the whole one', async (t) => {
  const whole = await greedy(model.createState(), 'It was a dark and stormy night');
  const state = model.createState();
  await greedy(state, 'It was a dark', 0);
  await greedy(state, ' and stor', 0);
  t.deepEqual(await greedy(state, 'my night'), whole);
});

test('a clone goes its own way', async (t) => {
  const state = model.createState();
  await greedy(state, 'The cat', 5);
  const fork = state.clone();
  const before = state.toBytes();
  await greedy(fork, ' sat on the mat');
  t.deepEqual(state.toBytes(), before);
  t.deepEqual(await greedy(state.clone(), ' ran'), await greedy(state, ' ran'));
});

test('saved and restored, not a bit is lost', async (t) => {
  const state = model.createState();
  await greedy(state, 'A state, once saved,', 9);
  const bytes = state.toBytes();
  const restored = model.stateFromBytes(bytes);
  t.deepEqual(restored.toBytes(), bytes);
  t.deepEqual([restored.position, restored.pending], [state.position, state.pending]);
  t.deepEqual(await greedy(restored, ''), await greedy(state, ''));
});

test('size does not depend on the length of the text', async (t) => {
  const state = model.createState();
  const empty = state.toBytes().length;
  await greedy(state, 'x'.repeat(5000), 10);
  t.is(state.toBytes().length, empty);
  t.is(empty, 32 + model.stateBytes);
  t.is(model.stateBytes, 4 * 2 * (3 * 32 + 32 * 16));
});

test('bytes that are no state of this model are refused', async (t) => {
  const good = model.createState().toBytes();
  using other = await createModel({ layers: 3, dModel: 16 }, { threads: 1 });
  const cases: [string, Uint8Array, RegExp][] = [
    ['nothing', new Uint8Array(0), /start with MBS1/],
    ['another file', new TextEncoder().encode('x'.repeat(100)), /start with MBS1/],
    ['cut off', good.subarray(0, good.length - 1), /layers, inner channels/],
    ['too long', Uint8Array.from([...good, 0]), /layers, inner channels/],
    [
      'another shape',
      other.createState().toBytes(),
      /expected .* to be \(2, 32, 16, 4, 256\), got \(3, 32, 16, 4, 256\)/,
    ],
    [
      'a pending byte of 300',
      good.map((b, i) => (i === 24 ? 44 : i === 25 ? 1 : i === 26 || i === 27 ? 0 : b)),
      /pending/,
    ],
  ];
  for (const [title, bytes, message] of cases) {
    t.throws(() => model.stateFromBytes(bytes), { instanceOf: ModelFormatError, message }, title);
  }
  t.throws(() => model.stateFromBytes('text' as never), { instanceOf: TypeError });
  t.throws(() => model.generate('x', { state: other.createState() }), { instanceOf: TypeError, message: /shape/ });
});

test('a state that is in use serves nobody else', async (t) => {
  const state = model.createState();
  const running = model.generate('busy', { state, maxBytes: 200, seed: 1 });
  t.true(state.busy);
  t.throws(() => state.clone(), { instanceOf: BusyError });
  t.throws(() => state.toBytes(), { instanceOf: BusyError });
  await t.throwsAsync(async () => model.generate('busy too', { state, maxBytes: 1 }), { instanceOf: BusyError });
  await t.throwsAsync(model.score('busy too', { state }), { instanceOf: BusyError });
  await running;
  t.false(state.busy);
  t.notThrows(() => state.clone());
});

test('scoring goes on from a state and leaves it after the text', async (t) => {
  const text = 'The lamp on the harbour wall had burned';
  const whole = await model.score(text);
  const state = model.createState();
  const first = await model.score(text.slice(0, 15), { state });
  const second = await model.score(text.slice(15), { state });
  t.is(first.bytes + second.bytes, whole.bytes);
  t.true(Math.abs(first.nats + second.nats - whole.nats) < 1e-3);
  t.is(state.position, text.length);
});
