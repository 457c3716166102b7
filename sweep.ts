import { Corpora } from './lib/experiments/corpora.ts';
import { Lab } from './lib/experiments/lab.ts';
import { LINEUP } from './lib/experiments/lineup.ts';
import { trainingOf } from './lib/experiments/compute.ts';
const lab = new Lab({ out: '/tmp/exp-sweepd', scale: 'default', corpora: new Corpora('/tmp/exp-data'), device: 'cpu', threads: 2, only: {}, signal: new AbortController().signal, note: console.log });
for (const lr of [5e-3, 2e-3, 1e-2]) for (const model of LINEUP.default) {
  const t0 = performance.now();
  const r = await lab.trained({ ...trainingOf(lab, 'books', model, 'bytes', 0), lr });
  console.log(model.name, lr, r.test.bitsPerByte.toFixed(3), r.curve.at(-1)?.bitsPerByte.toFixed(3), (performance.now()-t0)/1000, r.parameters, process.cpuUsage().user/1e6);
}
