/** npm run bench -- <decode | prefill | train | ops | compare | ceiling | load> [options]; see --help of each. */
import { parseArgs } from 'node:util';
import { bounds, readCeiling } from './ceiling.ts';
import { compare } from './compare.ts';
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
    prompt: { type: 'string', default: '512' },
    reps: { type: 'string', default: '5' },
    gguf: { type: 'string' },
    out: { type: 'string' },
  },
});

const presets = values.preset ?? ['mambabyte-5m', 'mambabyte-20m'];
const dtypes = (values.dtype ?? ['bf16', 'int8']) as ('f32' | 'bf16' | 'int8')[];
const threads = Number(values.threads);
const reps = Number(values.reps);
const prompt = Number(values.prompt);

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
  load: async () => report('load', await loadBench(), values.out),
  compare: async () => {
    if (!values.gguf) throw new Error('compare: expected --gguf to name the folder of write-gguf.ts');
    report('compare', await compare({ gguf: values.gguf, presets, dtypes, threads, prompt, reps, genFor }), values.out);
  },
};

const command = commands[positionals[0] ?? ''];
if (!command) {
  console.error(`bench: expected one of ${Object.keys(commands).join(', ')}, got ${positionals[0] ?? 'nothing'}`);
  process.exitCode = 2;
} else {
  await command();
}
