/**
 * npm run bench -- <decode | prefill | train | ops | profile | limits | compare | ceiling | load | compressors FILE |
 *   draft> [options]
 *
 * decode without --preset: MambaByte beside the Transformer of its size after contexts of growing length, on any device:
 *   decode [--device cuda] [--contexts 1024,8192] [--batch 8] [--text FILE for speculation]
 *
 * Speculative decoding, on any device; --draft is 'lookup' or a model and may come several times, as may --draft-length and
 * --draft-device:
 *   draft --model books --draft lookup --text FILE [--prompts 16] [--bytes 500] [--beta 3] [--draft-length 8]
 *     [--device cuda] [--draft-device cpu] [--draft-threads 4]    each drafter on each of the devices named
 *   draft --check --prompts 200 ...       counts the outputs that are the plain ones; exit code 1 if any is not. --from 50 --to 100
 *                                         takes the prompts of these numbers alone; --greedy leaves out sampling
 *   draft --bandwidth --verify-cost 1:1,16:1.3 --draft-cost 0.1 ...    what it would gain at other costs
 *
 * On a GPU: --device cuda. The table of the README:
 *   ops --device cuda [--only scan]
 *   decode --device cuda [--batch 64]
 *   decode --device cuda --preset transformer-353m --prompt 8192     after so many bytes of context
 *   prefill --device cuda --prompt 8192
 *   train --device cuda --preset mambabyte-353m --batch 4 --context 8192
 *   train --device cuda --preset mambabyte-27m --batch 32 --context 2048
 *   verify --device cuda --preset mambabyte-353m
 *   profile --device cuda --work <decode | prefill | train> --preset <name> [--trace file.json]
 */
import { parseArgs } from 'node:util';
import { Device } from '../lib/device.ts';
import type { DeviceLimits } from '../lib/profile.ts';
import { bounds, readCeiling } from './ceiling.ts';
import { compare } from './compare.ts';
import { compressorsBench } from './compressors.ts';
import { contextsBench } from './contexts.ts';
import {
  type CudaBench,
  cudaDecode,
  cudaPrefill,
  cudaProfile,
  cudaTrain,
  cudaVerify,
  gpuLimits,
} from './cuda-models.ts';
import { cudaOpsBench } from './cuda-ops.ts';
import { draftBench } from './draft.ts';
import { loadBench } from './load.ts';
import { report, round } from './measure.ts';
import { opsBench } from './ops.ts';
import { decodeSpeed, openModel, prefillSpeed } from './speed.ts';
import { trainBench } from './train.ts';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    preset: { type: 'string', multiple: true },
    dtype: { type: 'string', multiple: true },
    threads: { type: 'string', default: '2' },
    gen: { type: 'string' },
    prompt: { type: 'string' },
    reps: { type: 'string', default: '5' },
    device: { type: 'string', default: 'cpu' },
    batch: { type: 'string' },
    contexts: { type: 'string' },
    context: { type: 'string', default: '2048' },
    precision: { type: 'string', default: 'bf16' },
    recompute: { type: 'string' },
    work: { type: 'string', default: 'decode' },
    only: { type: 'string', default: '' },
    trace: { type: 'string' },
    gguf: { type: 'string' },
    model: { type: 'string' },
    draft: { type: 'string', multiple: true },
    'draft-device': { type: 'string', multiple: true },
    'draft-dtype': { type: 'string' },
    'draft-threads': { type: 'string', default: '1' },
    'draft-length': { type: 'string', multiple: true },
    beta: { type: 'string', multiple: true, default: ['3'] },
    text: { type: 'string' },
    prompts: { type: 'string' },
    bytes: { type: 'string' },
    pairs: { type: 'string', default: '2' },
    check: { type: 'boolean', default: false },
    greedy: { type: 'boolean', default: false },
    from: { type: 'string' },
    to: { type: 'string' },
    bandwidth: { type: 'boolean', default: false },
    'verify-cost': { type: 'string' },
    'draft-cost': { type: 'string' },
    out: { type: 'string' },
  },
});

const gpu = values.device.startsWith('cuda');
const presets =
  values.preset ?? (gpu ? ['mambabyte-27m', 'mambabyte-353m', 'mambabyte-972m'] : ['mambabyte-5m', 'mambabyte-20m']);
const dtypes = (values.dtype ?? (gpu ? ['bf16'] : ['bf16', 'int8'])) as ('f32' | 'bf16' | 'int8')[];
const threads = Number(values.threads);
const reps = Number(values.reps);
const prompt = Number(values.prompt ?? (gpu ? 8192 : 512));

/** Long enough to time, short enough to repeat. */
function genFor(preset: string): number {
  return values.gen ? Number(values.gen) : preset.includes('353m') ? 64 : 2048;
}

async function decodeOrPrefill(kind: 'decode' | 'prefill'): Promise<void> {
  const rows = [];
  const ceiling = await readCeiling();
  for (const preset of presets) {
    for (const dtype of dtypes) {
      const model = await openModel({ preset, dtype, threads });
      const speed =
        kind === 'decode' ? await decodeSpeed(model, genFor(preset), reps) : await prefillSpeed(model, prompt, reps);
      const bound = bounds(model, dtype, threads, ceiling)[kind];
      rows.push({
        preset,
        dtype,
        threads,
        'bytes/s': round(speed),
        bound: round(bound),
        fraction: round(speed / bound),
      });
      model.dispose();
    }
  }
  report(kind, rows, values.out);
}

const commands: Record<string, () => Promise<void>> = {
  decode: () => decodeOrPrefill('decode'),
  prefill: () => decodeOrPrefill('prefill'),
  ceiling: async () => report('ceiling', [{ ...(await readCeiling()) }], values.out),
  train: async () => report('train', await trainBench(presets, threads, reps), values.out),
  ops: async () => report('ops', await opsBench(threads, reps), values.out),
  draft: () => draftBench(values),
  load: async () => report('load', await loadBench(), values.out),
  compressors: async () => {
    const file = positionals[1];
    if (file === undefined) throw new Error('compressors: expected a file, got none');
    report('compressors', await compressorsBench(file), values.out);
  },
  compare: async () => {
    if (!values.gguf) throw new Error('compare: expected --gguf to name the folder of write-gguf.ts');
    const contexts = (values.contexts ?? '0').split(',').map(Number);
    const options = { gguf: values.gguf, presets, dtypes, threads, prompt, contexts, reps, genFor };
    report('compare', await compare(options), values.out);
  },
};

const onGpu: CudaBench = {
  device: values.device,
  presets,
  dtypes,
  batch: Number(values.batch ?? 1),
  gen: Number(values.gen ?? (values.batch ? 512 : 4096)),
  prompt,
  read: Number(values.prompt ?? 1),
  context: Number(values.context),
  reps,
  precision: values.precision as CudaBench['precision'],
  recompute: values.recompute as CudaBench['recompute'],
  trace: values.trace,
};

async function aboutGpu() {
  const { info, limits } = await gpuLimits(values.device);
  return { gpu: info.name, driver: info.driver, limits };
}

/** The same words on a GPU: limits are measured first, in the same run. */
const gpuCommands: Record<string, () => Promise<void>> = Object.fromEntries(
  Object.entries({
    decode: cudaDecode,
    prefill: cudaPrefill,
    train: cudaTrain,
    verify: cudaVerify,
    ops: async (o: CudaBench, limits: DeviceLimits) => {
      using device = Device.open('cuda');
      return await cudaOpsBench(device, limits, o.reps, values.only);
    },
    profile: (o: CudaBench, limits: DeviceLimits) => cudaProfile(o, limits, values.work),
    limits: async () => [],
  }).map(([name, run]) => [
    name,
    async () => {
      const about = await aboutGpu();
      report(name, await run(onGpu, about.limits), values.out, about);
    },
  ]),
);

/** The question that comes first: what a byte costs, in time and memory, as the text grows. */
async function decodeByContext(): Promise<void> {
  const contexts = (values.contexts ?? (gpu ? '1024,8192,32768,131072' : '1024,4096,16384')).split(',').map(Number);
  const about = gpu ? await aboutGpu() : {};
  const { decode, speculation } = await contextsBench({
    device: values.device,
    threads,
    dtype: dtypes[0] ?? 'bf16',
    contexts,
    batch: Number(values.batch ?? 8),
    gen: Number(values.gen ?? 256),
    reps,
    text: values.text,
  });
  report('decode', decode, values.out, about);
  if (values.text === undefined) console.log('speculation is not measured: give a held-out text with --text FILE');
  else report('speculation, books with books-draft, greedy', speculation);
}
const byContext = positionals[0] === 'decode' && values.preset === undefined;

const available = gpu ? { ...gpuCommands, draft: () => draftBench(values) } : commands;
const command = available[positionals[0] ?? ''];
if (!command) {
  console.error(`bench: expected one of ${Object.keys(available).join(', ')}, got ${positionals[0] ?? 'nothing'}`);
  process.exitCode = 2;
} else {
  await (byContext ? decodeByContext() : command());
}
