// The command line as a user meets it: what goes to stdout and stderr, exit codes, signals, closed pipes.
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, existsSync, openSync, readFileSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { progressLine } from '../lib/cli/train.ts';
import { unescapeBytes } from '../lib/cli/usage.ts';
import { createModel, loadModel } from '../lib/model.ts';
import type { TrainProgress } from '../lib/train/options.ts';
import { version } from '../lib/version.ts';
import { PROGRAM } from './support/bundle.ts';
import { fileOf, folder } from './support/folder.ts';

const tiny = folder();
const tied = folder();

test.before(async () => {
  using layerNorm = await createModel({ layers: 2, dModel: 32 }, { seed: 1, threads: 1 });
  await layerNorm.save(tiny);
  using rmsNorm = await createModel({ layers: 2, dModel: 32, norm: 'rms', tied: true }, { seed: 1, threads: 1 });
  await rmsNorm.save(tied);
});

interface Ran {
  code: number | null;
  out: Buffer;
  text: string;
  err: string;
}

function start(args: readonly string[], env: Record<string, string> = {}, out: 'pipe' | number = 'pipe'): ChildProcess {
  const environment = { ...process.env, MAMBABYTE_THREADS: '1', ...env };
  return spawn(process.execPath, [PROGRAM, ...args], { env: environment, stdio: ['pipe', out, 'pipe'] });
}

async function finished(child: ChildProcess): Promise<Ran> {
  const collect = (stream: NodeJS.ReadableStream | null) => {
    const chunks: Buffer[] = [];
    stream?.on('data', (chunk: Buffer) => chunks.push(chunk));
    return chunks;
  };
  const [out, err] = [collect(child.stdout), collect(child.stderr)];
  const code = await new Promise<number | null>((resolve) => child.on('close', resolve));
  const all = Buffer.concat(out);
  return { code, out: all, text: all.toString(), err: Buffer.concat(err).toString() };
}

function run(args: readonly string[], input: string | Uint8Array = '', env: Record<string, string> = {}): Promise<Ran> {
  const child = start(args, env);
  child.stdin?.end(input);
  return finished(child);
}

const generate = (...args: string[]) => ['generate', '--model', tiny, ...args];

test.serial('generate streams bytes to stdout and figures to stderr', async (t) => {
  const { code, out, err } = await run(generate('hello', '--max-bytes', '20', '--seed', '7', '--raw'));
  t.is(code, 0);
  t.is(out.length, 20);
  t.regex(
    err,
    /^20 bytes in [\d.]+ s: [\d,]+ bytes\/s · prompt 5 bytes in [\d.]+ ms · (cpu|cuda:\d+) \(.*\) · seed 7\n$/,
  );
});

test.serial('generate gives the bytes of the library, and the same ones for the same seed', async (t) => {
  const options = ['hello', '--max-bytes', '40', '--seed', '7', '--top-k', '50', '--raw', '-q'];
  const { out, err } = await run(generate(...options));
  using model = await loadModel(tiny, { threads: 1 });
  const { bytes } = await model.generate('hello', { maxBytes: 40, seed: 7, topK: 50 });
  t.deepEqual([...out], [...bytes]);
  t.is(err, '');
});

test.serial('generate reads a prompt of any bytes from stdin', async (t) => {
  const prompt = Uint8Array.of(0, 255, 10, 128, 65);
  const { code, text } = await run(generate('-', '--max-bytes', '4', '--seed', '1', '--json'), prompt);
  t.is(code, 0);
  const { stats, base64, stopReason } = JSON.parse(text);
  t.is(stats.promptBytes, 5);
  t.is(Buffer.from(base64, 'base64').length, 4);
  t.is(stopReason, 'length');
});

test.serial('generate --json --logprobs has a log-probability for each byte', async (t) => {
  const { text } = await run(generate('a', '--max-bytes', '6', '--seed', '1', '--json', '--logprobs'));
  const { logprobs } = JSON.parse(text);
  t.is(logprobs.length, 6);
  t.true(logprobs.every((x: number) => x < 0));
});

test.serial('generate stops before a stop sequence given with escapes', async (t) => {
  const stops = Array.from({ length: 256 }, (_, i) => `--stop=\\x${i.toString(16).padStart(2, '0')}`);
  const { code, text } = await run(generate('a', '--seed', '1', '--json', ...stops));
  t.is(code, 0);
  const { stopReason, base64 } = JSON.parse(text);
  t.is(stopReason, 'stop');
  t.is(base64, '');
});

test.serial('generate goes on from a saved state as if it had never stopped', async (t) => {
  const state = join(folder(), 'state.bin');
  const greedy = (...args: string[]) => run(generate('--temperature', '0', '--raw', ...args));
  const whole = await greedy('--prompt', 'hello', '--max-bytes', '24');
  const first = await greedy('--prompt', 'hello', '--max-bytes', '10', '--state-out', state);
  const rest = await greedy('--max-bytes', '14', '--state-in', state);
  t.is(rest.code, 0, rest.err);
  t.deepEqual([...first.out, ...rest.out], [...whole.out]);

  const cut = fileOf('cut.bin', readFileSync(state).subarray(0, 100));
  const refused = await greedy('--max-bytes', '14', '--state-in', cut);
  t.is(refused.code, 1);
  t.regex(refused.err, /cut\.bin: state: .* in 100 bytes\. The state takes \d+ bytes/);
});

test.serial('Ctrl-C ends a generation with what there is, a newline and exit code 130', async (t) => {
  const child = start(generate('a', '--max-bytes', '1000000000'));
  let made = 0;
  child.stdout?.on('data', (piece: Buffer) => {
    made += piece.length;
    if (made > 1 && !child.killed) child.kill('SIGINT');
  });
  const { code, out, err } = await finished(child);
  t.is(code, 130);
  t.true(out.length > 1);
  t.is(out.at(-1), 10);
  // All that was made is counted; the last newline is only added where the text did not end in one.
  const counts = [out.length - 1, out.length].map((n) => n.toLocaleString('en-US'));
  t.regex(err, new RegExp(`^(${counts.join('|')}) bytes in`));
});

test.serial('Ctrl-C ends the wait for a prompt', async (t) => {
  const child = start(generate('-'));
  // More than a pipe holds: when it is gone, the prompt is being read.
  child.stdin?.write(Buffer.alloc(4e6, 97), () => child.kill('SIGINT'));
  const { code, text, err } = await finished(child);
  t.is(code, 130);
  t.is(text + err, '');
});

test.serial('SIGTERM ends a generation with exit code 143', async (t) => {
  const child = start(generate('a', '--max-bytes', '1000000000'));
  child.stdout?.once('data', () => child.kill('SIGTERM'));
  t.is((await finished(child)).code, 143);
});

test.serial('a reader that leaves ends a generation quietly', async (t) => {
  const child = start(generate('a', '--max-bytes', '1000000000'));
  child.stdout?.once('data', () => child.stdout?.destroy());
  const { code, err } = await finished(child);
  t.is(code, 0);
  t.is(err, '');
});

test.serial('a full disk ends training with a checkpoint, an error and exit code 1', async (t) => {
  const [out, data, full] = [join(folder(), 'run'), corpus(), openSync('/dev/full', 'w')];
  const args = ['train', ...training(out), '--data', data, '--layers', '1', '--d-model', '32', '--steps', '100000'];
  const { code, err } = await finished(start([...args, '--json', '-q'], {}, full));
  closeSync(full);
  t.is(code, 1);
  t.regex(err, /^mambabyte: stdout: expected the output to be written, got ENOSPC\. [^\n]*\n$/);
  t.regex(readlinkSync(join(out, 'latest')), /step-0*[1-9]/);
});

const WRONG: [title: string, args: string[], message: RegExp][] = [
  ['an unknown command', ['genrate'], /^mambabyte: unknown command 'genrate'\. Did you mean generate\?\n$/],
  [
    'an unknown option',
    generate('a', '--temprature', '1'),
    /unknown option '--temprature'\. Did you mean --temperature\?/,
  ],
  ['a number that is none', generate('a', '--top-k', 'many'), /'--top-k <k>' argument 'many' is invalid/],
  [
    'a negative temperature',
    generate('a', '--temperature', '-1'),
    /expected temperature to be .* at least 0.*, got -1/,
  ],
  ['a NaN temperature', generate('a', '--temperature', 'NaN'), /'--temperature <t>' argument 'NaN' is invalid/],
  ['a top-p above 1', generate('a', '--top-p', '1.5'), /expected topP to be .*, got 1\.5/],
  ['an unknown escape', generate('a', '--stop', '\\q'), /Unknown escape \\q/],
  ['an empty prompt', generate(''), /expected the prompt to hold at least one byte/],
  ['two prompts', generate('a', '--prompt', 'b'), /the prompt is given twice/],
  ['an unknown dtype', generate('a', '--dtype', 'f8'), /'--dtype <type>' argument 'f8' is invalid/],
  ['an unknown device', generate('a', '--device', 'gpu'), /expected device to be .*, got "gpu"/],
  ['a place for a drafter where there is none', generate('a', '--draft-device', 'cpu'), /--draft-device needs --draft/],
  ['--json with another form of output', generate('a', '--json', '--echo'), /--json goes without --raw and --echo/],
  [
    'windows where there are none',
    ['eval', tiny, tiny, '--mode', 'stateful', '--stride', '2'],
    /are of --mode sliding/,
  ],
  ['half a shape', ['train', '--out', tiny, '--data', tiny, '--layers', '1'], /--layers and --d-model go together/],
  ['an argument too many', ['doctor', 'x'], /too many arguments/],
  ['a missing argument', ['inspect'], /missing required argument 'model'/],
  ['a training run of no model', ['train', '--out', join(tiny, 'x'), '--data', tiny], /one of preset, config and init/],
];

for (const [title, args, message] of WRONG) {
  test.serial(`wrong usage ends with exit code 2 and one line · ${title}`, async (t) => {
    const { code, out, err } = await run(args);
    t.is(code, 2, err);
    t.is(out.length, 0);
    t.regex(err, message);
    t.regex(err, /^mambabyte: [^\n]*\n$/);
  });
}

test.serial('no command at all shows the help on stderr and ends with exit code 2', async (t) => {
  const { code, out, err } = await run([]);
  t.is(code, 2);
  t.is(out.length, 0);
  t.regex(err, /Usage: mambabyte/);
});

const FAILING: [title: string, args: string[], message: RegExp][] = [
  [
    'no such model',
    ['inspect', 'no-such-model'],
    /expected "no-such-model" to be an existing path or .* shipped model/,
  ],
  [
    'no model in the folder',
    generate('a', '--model', folder()),
    /expected the folder to hold one file of weights, got none/,
  ],
  ['a damaged file', ['inspect', fileOf('model.safetensors', 'nonsense')], /the header length/],
  ['a GPU that is not there', generate('a', '--device', 'cuda:999'), /^mambabyte: device: cuda: /],
  ['data that is not there', ['eval', tiny, '/nonexistent.txt'], /expected the data to be readable, got ENOENT/],
  ['a state that is not there', generate('--state-in', '/nonexistent'), /expected the data to be readable, got ENOENT/],
  [
    'a state where a folder is',
    generate('a', '--state-out', tiny),
    /expected what is there to be a file, got a folder/,
  ],
  ['a trace in no folder', ['bench', tiny, '--trace', '/nonexistent/x'], /The folder does not exist/],
  ['a text that is not there', ['convert', tiny, folder(), '--eval', '/nonexistent'], /readable, got ENOENT/],
  ['a text of nothing', ['convert', tiny, folder(), '--eval', fileOf('empty', '')], /hold data, got an empty file/],
  ['a model that hf cannot express', ['convert', tiny, folder(), '--to', 'hf'], /expected the model to have RMSNorm/],
];

for (const [title, args, message] of FAILING) {
  test.serial(`a failure ends with exit code 1 and one line · ${title}`, async (t) => {
    const { code, out, err } = await run(args);
    t.is(code, 1, err);
    t.is(out.length, 0);
    t.regex(err, message);
    t.regex(err, /^mambabyte: [^\n]*\n$/);
  });
}

test.serial('MAMBABYTE_DEBUG=1 shows the stack', async (t) => {
  const { err } = await run(['inspect', 'no-such-model'], '', { MAMBABYTE_DEBUG: '1' });
  t.regex(err, /\n {4}at /);
});

test.serial('--version and --help go to stdout', async (t) => {
  t.is((await run(['--version'])).text, `${version}\n`);
  const help = await run(['generate', '--help']);
  t.is(help.code, 0);
  t.regex(help.text, /Usage: mambabyte generate/);
  t.is((await run(['help', 'generate'])).text, help.text);
});

test.serial('inspect lists every tensor and the configuration', async (t) => {
  const { code, text } = await run(['inspect', tiny]);
  t.is(code, 0);
  t.regex(text, /backbone\.layers\.1\.mixer\.A_log +F32 +64 x 16 +4\.00 KiB/);
  t.regex(text, /dModel +32/);
  const { tensors, parameters, config, dialect } = JSON.parse((await run(['inspect', tiny, '--json'])).text);
  using model = await loadModel(tiny, { threads: 1 });
  t.is(parameters, model.parameters);
  t.deepEqual(config, model.config);
  t.is(dialect, 'state-spaces');
  t.is(tensors.length, model.weights.size);
});

test.serial('inspect --check counts NaN and infinity where they are', async (t) => {
  const bytes = readFileSync(join(tiny, 'model.safetensors'));
  const headerBytes = Number(bytes.readBigUInt64LE());
  const header = JSON.parse(bytes.toString('utf8', 8, 8 + headerBytes));
  const at = 8 + headerBytes + header['backbone.norm_f.bias'].data_offsets[0];
  bytes.writeFloatLE(Number.NaN, at + 4);
  bytes.writeFloatLE(-Infinity, at + 20);
  const { text, err } = await run(['inspect', fileOf('model.safetensors', bytes), '--check', '--json']);
  const found = JSON.parse(text).tensors.filter((x: { nonFinite: number }) => x.nonFinite > 0);
  t.deepEqual(
    found.map((x: { name: string; nonFinite: number }) => [x.name, x.nonFinite]),
    [['backbone.norm_f.bias', 2]],
  );
  t.regex(err, /warning: backbone\.norm_f\.bias holds 2 values that are NaN or infinite/);
});

test.serial('convert to int8 writes a model that loads, and reports its cost', async (t) => {
  const out = join(folder(), 'int8');
  const text = fileOf('text.txt', 'All happy families are alike. '.repeat(40));
  const { code, text: json, err } = await run(['convert', tiny, out, '--dtype', 'int8', '--eval', text, '--json']);
  t.is(code, 0, err);
  const { bitsPerByte } = JSON.parse(json);
  t.is(bitsPerByte.bytes, 1200);
  t.true(Math.abs(bitsPerByte.after - bitsPerByte.before) < 0.05);
  using before = await loadModel(tiny, { threads: 1 });
  using after = await loadModel(out, { threads: 1 });
  t.true(after.bytes < before.bytes / 2);
});

test.serial('convert --eval compares with what was there, also where the input is replaced', async (t) => {
  const [there, text] = [join(folder(), 'model'), fileOf('text.txt', 'All happy families are alike. ')];
  t.is((await run(['convert', tiny, there])).code, 0);
  const { bitsPerByte } = JSON.parse(
    (await run(['convert', there, there, '--dtype', 'int8', '--eval', text, '--json'])).text,
  );
  t.not(bitsPerByte.after, bitsPerByte.before);
});

test.serial('convert to hf and back changes no value', async (t) => {
  const [there, back] = [join(folder(), 'hf'), join(folder(), 'back')];
  t.is((await run(['convert', tied, there, '--to', 'hf'])).code, 0);
  t.is(JSON.parse(readFileSync(join(there, 'config.json'), 'utf8')).model_type, 'mamba');
  t.is((await run(['convert', there, back])).code, 0);
  using model = await loadModel(tied, { threads: 1 });
  using again = await loadModel(back, { threads: 1 });
  t.deepEqual(again.config, model.config);
  t.deepEqual(await again.logits('hello'), await model.logits('hello'));
});

test.serial('doctor says what it found', async (t) => {
  const { code, text } = await run(['doctor', '--json']);
  t.is(code, 0);
  const report = JSON.parse(text);
  t.is(report.node, process.version);
  t.true(existsSync(report.addon));
  t.true(report.backends.find((b: { name: string }) => b.name === 'cpu').available);
  t.true(report.targets.includes('scalar'));
  const cuda = report.backends.find((b: { name: string }) => b.name === 'cuda');
  t.is(cuda.available, report.gpus.length > 0);
  t.regex(cuda.available ? cuda.detail : cuda.reason, /^(\d+ GPUs?|no-(library|driver|device)|driver-too-old)$/);
  t.regex(report.auto, cuda.available ? /^cuda: / : /^cpu: \S/);
  const forced = JSON.parse((await run(['doctor', '--json'], '', { MAMBABYTE_CPU: 'scalar' })).text);
  t.regex(forced.backends[0].detail, /^scalar, 1 thread$/);
});

test.serial('bench measures a model and says on what', async (t) => {
  const { code, text } = await run(['bench', tiny, '--decode', '8', '--prefill', '16', '--repeats', '2', '--json']);
  t.is(code, 0);
  const { prefill, decode, device } = JSON.parse(text);
  t.is(prefill.runs.length, 2);
  t.true(decode.median > 0 && decode.best >= decode.median);
  t.regex(device, /^(cpu|cuda:0) \(/);
});

test.serial('bench --profile says where the time goes, --trace writes it for a viewer', async (t) => {
  const file = join(folder(), 'trace.json');
  const args = [
    'bench',
    tiny,
    '--decode',
    '8',
    '--prefill',
    '70',
    '--repeats',
    '1',
    '--device',
    'cpu',
    '--trace',
    file,
  ];
  const { code, text, err } = await run([...args, '--json']);
  t.is(code, 0, err);
  const { limits, profiles } = JSON.parse(text);
  t.true(limits.bytesPerSecond > 1e8 && limits.flopsPerSecond > 1e8);
  const [decode] = profiles.decode;
  const block = decode.kernels.find((k: { op: string }) => k.op === 'mamba_block');
  t.true(block.nodes > 0 && block.seconds > 0 && block.bytes > 0 && block.flops > 0 && block.fractionOfLimit > 0);
  t.true(decode.seconds >= block.seconds);
  t.true(profiles.prefill.length > 0);
  const { traceEvents } = JSON.parse(readFileSync(file, 'utf8'));
  t.is(traceEvents.length, [...profiles.decode, ...profiles.prefill].flatMap((p) => p.trace).length);
  t.true(traceEvents.every((e: { ph: string; dur: number }) => e.ph === 'X' && e.dur >= 0));
  const shown = await run([
    'bench',
    tiny,
    '--decode',
    '8',
    '--prefill',
    '8',
    '--repeats',
    '1',
    '--device',
    'cpu',
    '--profile',
  ]);
  t.regex(shown.text, /limits, measured now: a copy .* GB\/s/);
  t.regex(shown.text, /decode: [\d.]+ us a step, \d+ steps\nkernel +nodes +us +share/);
});

const corpus = () => fileOf('text.txt', Array.from({ length: 400 }, (_, i) => `line ${i * i} of the text\n`).join(''));
const training = (out: string) => ['--out', out, '--context', '32', '--batch', '2', '--sampling', 'uniform'];

test.serial('train trains, eval measures, and the checkpoint generates', async (t) => {
  const [out, data] = [join(folder(), 'run'), corpus()];
  const args = ['train', ...training(out), '--data', data, '--valid', data, '--layers', '1', '--d-model', '32'];
  const { code, text, err } = await run([...args, '--steps', '4', '--eval-bytes', '500', '--json']);
  t.is(code, 0, err);
  const lines = text
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  t.deepEqual(
    lines.slice(0, 4).map((line) => line.step),
    [1, 2, 3, 4],
  );
  t.is(lines[4].stopped, 'done');
  const scored = await run(['eval', join(out, 'latest'), data, '--max-bytes', '400', '--context', '64', '--json']);
  t.is(scored.code, 0, scored.err);
  t.true(JSON.parse(scored.text).bitsPerByte > 0);
});

test.serial('a Transformer is trained, resumed, inspected, scored and generates', async (t) => {
  const [out, data] = [join(folder(), 'run'), corpus()];
  const model = [
    '--architecture',
    'transformer',
    '--layers',
    '1',
    '--d-model',
    '32',
    '--heads',
    '4',
    '--key-heads',
    '2',
  ];
  const args = ['train', ...training(out), '--data', data, ...model, '--schedule', 'constant', '--json'];
  t.is((await run([...args, '--steps', '3'])).code, 0);
  const resumed = await run([...args, '--steps', '5', '--resume']);
  t.is(resumed.code, 0, resumed.err);
  t.is(JSON.parse(resumed.text.split('\n')[0] ?? '').step, 4);
  const mamba = ['train', '--out', out, '--resume', '--steps', '6', '--layers', '1', '--d-model', '32'];
  t.regex((await run(mamba)).err, /architecture to be "transformer" as in the checkpoint, got "mamba"/);
  const latest = join(out, 'latest');
  const shown = (await run(['inspect', latest])).text;
  t.regex(shown, /model\.layers\.0\.self_attn\.k_proj\.weight +F32 +16 x 32/);
  t.regex(shown, /architecture +transformer\n(.*\n)*keyHeads +2/);
  const scored = await run(['eval', latest, data, '--max-bytes', '400', '--context', '64', '--json']);
  t.true(JSON.parse(scored.text).bitsPerByte > 0, scored.err);
  const made = await run(['generate', '--model', latest, 'line', '--max-bytes', '100', '--raw']);
  t.is(made.out.length, 100, made.err);
  const wrong = ['train', '--out', join(out, 'x'), '--data', data, '--layers', '1', '--d-model', '32', '--steps', '1'];
  t.regex((await run([...wrong, '--heads', '2'])).err, /heads/);
});

for (const [name, model, shown] of [
  ['gated-s4d', ['--layers', '1', '--d-model', '32', '--d-state', '8'], /architecture +gated-s4d\n(.*\n)*dState +8/],
  [
    'megabyte',
    [
      ...['--layers', '1', '--d-model', '32', '--heads', '4', '--patch-size', '4'],
      ...['--global-layers', '1', '--global-d-model', '48', '--global-heads', '4', '--global-key-heads', '2'],
    ],
    /architecture +megabyte\npatchSize +4\n(.*\n)*globalKeyHeads +2/,
  ],
  [
    'perceiver-ar',
    ['--layers', '1', '--d-model', '32', '--heads', '4', '--latents', '24', '--latent-stride', '9'],
    /architecture +perceiver-ar\n(.*\n)*latentStride +9/,
  ],
] as const) {
  test.serial(`a ${name} is trained, resumed, inspected, scored, measured and generates`, async (t) => {
    const [out, data] = [join(folder(), 'run'), corpus()];
    const shape = ['--architecture', name, ...model];
    const args = ['train', ...training(out), '--data', data, ...shape, '--schedule', 'constant', '--json'];
    const begun = await run([...args, '--steps', '3']);
    t.is(begun.code, 0, begun.err);
    const resumed = await run([...args, '--steps', '5', '--resume']);
    t.is(resumed.code, 0, resumed.err);
    t.is(JSON.parse(resumed.text.split('\n')[0] ?? '').step, 4);
    const latest = join(out, 'latest');
    const { text } = await run(['inspect', latest]);
    t.regex(text, shown);
    t.notRegex(text, /^names/m);
    const scored = await run(['eval', latest, data, '--max-bytes', '400', '--context', '64', '--json']);
    t.true(JSON.parse(scored.text).bitsPerByte > 0, scored.err);
    const generate = ['generate', '--model', latest, 'line', '--max-bytes', '100', '--seed', '5', '--raw'];
    const made = await run(generate);
    t.is(made.out.length, 100, made.err);
    t.deepEqual((await run([...generate, '--draft', latest])).out, made.out);
    t.deepEqual((await run([...generate, '--draft', latest, '--draft-device', 'ref'])).out, made.out);
    const bench = ['bench', latest, '--repeats', '1', '--decode', '40', '--prefill', '80', '--profile', '--json'];
    const measured = await run(bench);
    t.is(measured.code, 0, measured.err);
  });
}

test.serial('Ctrl-C during training saves a checkpoint, and --resume goes on from it', async (t) => {
  const [out, data] = [join(folder(), 'run'), corpus()];
  const model = ['--layers', '1', '--d-model', '32', '--schedule', 'constant'];
  const child = start(['train', ...training(out), '--data', data, ...model, '--steps', '1000000', '--json']);
  child.stdout?.once('data', () => child.kill('SIGINT'));
  const { code, text, err } = await finished(child);
  t.is(code, 130, err);
  const end = JSON.parse(text.trim().split('\n').at(-1) ?? '');
  t.is(end.stopped, 'aborted');
  t.true(existsSync(join(out, 'latest', 'model.safetensors')));
  const steps = String(end.step + 1);
  const resumed = await run(['train', '--out', out, '--resume', '--steps', steps, '--json']);
  t.is(resumed.code, 0, resumed.err);
  t.is(JSON.parse(resumed.text.split('\n')[0] ?? '').step, end.step + 1);
});

test('the line of a training run fits the terminal, and keeps bits per byte longest', (t) => {
  const speed = { bytesPerSecond: 12_345, eta: 754 };
  const progress = { step: 1234, steps: 5000, loss: 0.7341, bitsPerByte: 1.0591, ...speed } as TrainProgress;
  const line = (columns: number) => progressLine(progress, 0.25, 1.1, columns);
  t.is(
    line(200),
    `1234/5000 [${'='.repeat(10)}${'-'.repeat(30)}] loss 0.7341 · 1.0591 bits/byte · 12,345 bytes/s · 12 min 34 s left · valid 1.1000`,
  );
  t.is(line(60), '1234/5000 1.0591 bits/byte · 12 min 34 s left · valid 1.1000');
  t.is(line(30), '1234/5000 1.0591 bits/byte');
  for (let columns = 30; columns < 200; columns++) t.true(line(columns).length <= columns, `${columns}`);
});

test('escapes stand for bytes', (t) => {
  t.deepEqual([...unescapeBytes('a\\n\\x00\\xffé\\\\n')], [97, 10, 0, 255, 0xc3, 0xa9, 92, 110]);
  t.throws(() => unescapeBytes('\\'), { message: /Unknown escape/ });
  t.throws(() => unescapeBytes('\\xg0'), { message: /Unknown escape \\x/ });
});
