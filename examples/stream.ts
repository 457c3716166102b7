// Streams a continuation and stops it from outside: npx tsx examples/stream.ts "It was a dark and"
import { loadModel } from 'mambabyte';

const model = await loadModel('books');
const signal = AbortSignal.timeout(10_000);
const run = model.generate(process.argv[2] ?? 'It was a dark and', {
  maxBytes: 2000,
  temperature: 0.8,
  topP: 0.95,
  stop: '\n\n',
  seed: 7,
  signal,
  onAbort: 'return',
});
for await (const { text } of run) process.stdout.write(text);
const { stopReason, stats } = await run;
console.error(`\n${stopReason}, ${stats.bytesPerSecond.toFixed(0)} bytes/s`);
model.dispose();
