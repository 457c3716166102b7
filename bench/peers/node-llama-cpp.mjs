/**
 * What a Node user of node-llama-cpp sees: bytes/s of `generateCompletion` from the first token on, greedy.
 * Run it in a folder where node-llama-cpp is installed; it is no dependency of this package.
 *
 *   node <here>/node-llama-cpp.mjs model.gguf [--threads N] [--gen 128]
 *
 * Without --threads the library chooses. Prints one JSON object.
 */
import { readFileSync } from 'node:fs';
import { availableParallelism, cpus } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { threads: { type: 'string' }, gen: { type: 'string', default: '128' } },
});
const [modelPath] = positionals;
if (!modelPath) throw new Error('node-llama-cpp.mjs: expected a GGUF file, got nothing.');

const installed = resolve('node_modules/node-llama-cpp');
const { getLlama, LlamaCompletion, TokenBias } = await import(pathToFileURL(join(installed, 'dist/index.js')).href);
const { version } = JSON.parse(readFileSync(join(installed, 'package.json'), 'utf8'));

const llama = await getLlama({ gpu: false, build: 'never', logLevel: 'error' });
const model = await llama.loadModel({ modelPath });
const context = await model.createContext({
  contextSize: 1024,
  ...(values.threads === undefined ? {} : { threads: Number(values.threads) }),
});
const completion = new LlamaCompletion({ contextSequence: context.getSequence() });

const gen = Number(values.gen);
const times = [];
await completion.generateCompletion('It was a dark and stormy night', {
  maxTokens: gen + 1,
  temperature: 0,
  // Weights are random: without this the end-of-text byte may come at any point.
  tokenBias: new TokenBias(model.tokenizer).set(0, 'never'),
  onToken: (tokens) => times.push(...tokens.map(() => performance.now())),
});
const seconds = (times.at(-1) - times[0]) / 1000;
const report = {
  peer: `node-llama-cpp ${version}`,
  build: `${llama.buildType} ${llama.llamaCppRelease.release}`,
  model: basename(modelPath),
  threads: context.currentThreads,
  threadsChosenBy: values.threads === undefined ? 'library' : 'caller',
  bytes: times.length - 1,
  decode: (times.length - 1) / seconds,
  machine: { cpu: cpus()[0]?.model, cores: availableParallelism() },
};
process.stdout.write(`${JSON.stringify(report)}\n`);
await llama.dispose();
