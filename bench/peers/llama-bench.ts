/**
 * Times llama.cpp through its own llama-bench, whose path comes from `LLAMA_BENCH` (README.md tells how to build it).
 *
 *   LLAMA_BENCH=... tsx bench/peers/llama-bench.ts [--out FILE] [--threads 2,1] [--prompt 512] [--gen 128] [--reps 3] model.gguf ...
 */
import { execFile } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { availableParallelism, cpus, loadavg } from 'node:os';
import { basename } from 'node:path';
import { pathToFileURL } from 'node:url';
import { parseArgs, promisify } from 'node:util';

export interface LlamaBenchOptions {
  /** Path of the llama-bench binary; default: the environment variable LLAMA_BENCH. */
  bin?: string;
  /** A GGUF file. */
  model: string;
  /** Prompt bytes to prefill in one go; 0 skips prefill. */
  prompt: number;
  /** Bytes to decode one by one; 0 skips decoding. */
  gen: number;
  /** Bytes of context that either starts from, which are read without being timed; default 0. */
  depth?: number;
  /** For models with attention: the cache in bfloat16, with or without flash attention; default: llama-bench's own settings. */
  attention?: 'flash' | 'plain';
  threads: number;
  /** Timed runs after one warm-up; the median is reported. Default 3. */
  reps?: number;
  signal?: AbortSignal;
}

export interface LlamaBenchResult {
  /** Median bytes/s, one token being one byte; null when not asked for. */
  prefill: number | null;
  decode: number | null;
  prefillSamples: number[];
  decodeSamples: number[];
  /** The commit llama-bench was built from, and the CPU it saw. */
  commit: string;
  cpu: string;
}

interface LlamaBenchRow {
  n_prompt: number;
  n_gen: number;
  samples_ts: number[];
  build_commit: string;
  cpu_info: string;
}

const median = (values: number[]): number => {
  const sorted = values.toSorted((a, b) => a - b);
  const half = sorted.length >> 1;
  const upper = sorted[half] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[half - 1] ?? Number.NaN) + upper) / 2;
};

/** The arguments llama-bench is called with; the CPU alone, whatever else was compiled in. */
export function llamaBenchArguments(options: LlamaBenchOptions): string[] {
  const { model, prompt, gen, depth = 0, attention, threads, reps = 3 } = options;
  const counts = { '-p': prompt, '-n': gen, '-d': depth, '-t': threads, '-r': reps, '-ngl': 0 };
  const cache = attention ? { '-ctk': 'bf16', '-ctv': 'bf16', '-fa': attention === 'flash' ? 'on' : 'off' } : {};
  const flags = Object.entries({ ...counts, ...cache }).flatMap(([flag, value]) => [flag, String(value)]);
  return ['-m', model, ...flags, '-o', 'json'];
}

/**
 * Runs llama-bench once.
 * @throws Error when no binary is named, or when it fails (its own message is attached)
 */
export async function runLlamaBench(options: LlamaBenchOptions): Promise<LlamaBenchResult> {
  const bin = options.bin ?? process.env.LLAMA_BENCH;
  if (!bin) {
    throw new Error('runLlamaBench: expected LLAMA_BENCH to be a path, got nothing. See bench/peers/README.md.');
  }
  const { stdout } = await promisify(execFile)(bin, llamaBenchArguments(options), {
    maxBuffer: 1 << 24,
    ...(options.signal ? { signal: options.signal } : {}),
  });
  const rows = JSON.parse(stdout) as LlamaBenchRow[];
  const prefillSamples = rows.find((row) => row.n_prompt > 0 && row.n_gen === 0)?.samples_ts ?? [];
  const decodeSamples = rows.find((row) => row.n_gen > 0 && row.n_prompt === 0)?.samples_ts ?? [];
  return {
    prefill: prefillSamples.length > 0 ? median(prefillSamples) : null,
    decode: decodeSamples.length > 0 ? median(decodeSamples) : null,
    prefillSamples,
    decodeSamples,
    commit: rows[0]?.build_commit ?? 'unknown',
    cpu: rows[0]?.cpu_info ?? 'unknown',
  };
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      out: { type: 'string' },
      threads: { type: 'string', default: '2,1' },
      prompt: { type: 'string', default: '512' },
      gen: { type: 'string', default: '128' },
      reps: { type: 'string', default: '3' },
    },
  });
  const [prompt, gen, reps] = [Number(values.prompt), Number(values.gen), Number(values.reps)];
  const report = {
    what: 'llama.cpp on Mamba models with random weights, medians in bytes/s',
    date: new Date().toISOString(),
    machine: { cpu: cpus()[0]?.model, cores: availableParallelism() },
    runs: [] as unknown[],
  };
  for (const model of positionals) {
    for (const threads of values.threads.split(',').map(Number)) {
      // The load before a run tells whether other programs shared the cores: above 0.5 the figures are too low.
      const loadBefore = loadavg()[0];
      const options = { model, prompt, gen, threads, reps };
      const result = await runLlamaBench(options);
      const command = ['llama-bench', ...llamaBenchArguments({ ...options, model: basename(model) })].join(' ');
      const cell = (n: number | null) => (n === null ? '-' : n.toFixed(1)).padStart(8);
      process.stderr.write(
        `${basename(model).padEnd(26)} ${threads}t  prefill ${cell(result.prefill)}  decode ${cell(result.decode)} B/s\n`,
      );
      report.runs.push({ model: basename(model), prompt, gen, threads, reps, command, loadBefore, ...result });
      // After every run, so that an interrupted series keeps what it has.
      if (values.out) writeFileSync(values.out, `${JSON.stringify(report, null, 2)}\n`);
    }
  }
  if (!values.out) process.stdout.write(`${JSON.stringify(report, null, 2)}\n`);
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) await main();
