// A worker thread that generates until it is terminated. Plain calls, so that it also shows the addon loading many times.
import { parentPort, workerData } from 'node:worker_threads';
import { createModel } from '../../lib/index.ts';

const { maxBytes } = workerData as { maxBytes: number };
const model = await createModel({ layers: 2, dModel: 32 }, { seed: 3, threads: 2 });
const run = model.generate('worker', { maxBytes, seed: 1 });
for await (const chunk of run) {
  parentPort?.postMessage({ bytes: chunk.bytes.length });
}
parentPort?.postMessage({ done: [...(await run).bytes] });
