import { execFileSync } from 'node:child_process';
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { packageRoot } from '../lib/native.ts';
import { median, round } from './measure.ts';
import { randomModel } from './random-model.ts';

const entry = join(packageRoot, 'dist', 'index.js');

function child(script: string, ...args: string[]): Record<string, number> {
  const out = execFileSync(process.execPath, ['--input-type=module', '-e', script, ...args], { encoding: 'utf8' });
  return JSON.parse(out) as Record<string, number>;
}

const IMPORT = `const t = performance.now(); await import(process.argv[1]);
console.log(JSON.stringify({ ms: performance.now() - t }));`;

/** Loads, generates a little, and says how much memory the process then holds. */
const LOAD = `const { loadModel } = await import(process.argv[1]);
const before = process.memoryUsage().rss, t = performance.now();
const model = await loadModel(process.argv[2]); const ms = performance.now() - t;
const { stats } = await model.generate('x', { maxBytes: 16 });
console.log(JSON.stringify({ ms, rss: process.memoryUsage().rss, before, speed: stats.bytesPerSecond }));
model.dispose();`;

/** Longest time the event loop was held up, and growth of memory, while generating. */
const STEADY = `const { loadModel } = await import(process.argv[1]); const model = await loadModel(process.argv[2]);
const run = (n) => model.generate('x', { maxBytes: n, seed: 1 });
await run(2000); let longest = 0, last = performance.now();
const timer = setInterval(() => { const now = performance.now(); longest = Math.max(longest, now - last - 1); last = now; }, 1);
const start = process.memoryUsage().rss; const total = Number(process.argv[3]);
for (let left = total; left > 0; left -= 50000) await run(Math.min(left, 50000));
clearInterval(timer);
console.log(JSON.stringify({ longest, growth: process.memoryUsage().rss - start, total })); model.dispose();`;

/** Import time, load time and memory, event-loop stalls. Needs `npm run build`. */
export async function loadBench(): Promise<Record<string, unknown>[]> {
  const imports = Array.from({ length: 9 }, () => child(IMPORT, entry).ms ?? Number.NaN);
  const big = await randomModel('mambabyte-353m');
  const bytes = statSync(join(big, 'model.safetensors')).size;
  const load = child(LOAD, entry, big);
  const steady = child(STEADY, entry, await randomModel('mambabyte-tiny'), '1000000');
  return [
    { what: "import 'mambabyte', ms (median of 9)", value: round(median(imports)), bar: '< 40' },
    { what: 'load 353M bf16, ms', value: round(load.ms ?? Number.NaN), bar: '< 1000' },
    { what: 'RSS after generating / file size, 353M', value: round((load.rss ?? 0) / bytes), bar: '< 1.2' },
    { what: 'longest event-loop stall in 10^6 bytes, ms', value: round(steady.longest ?? 0), bar: '< 10' },
    { what: 'RSS growth over 10^6 bytes, MB', value: round((steady.growth ?? 0) / 1e6), bar: '~ 0' },
  ];
}
