// A little of all that a model does on a GPU, for the sanitizers. Arguments choose parts of it: train (both precisions), read
// (logits, scores, verifying and going back), decode (alone and in a batch). Fails where a result is no number.
import { createModel, loadModel, type Model } from '../../lib/model.ts';
import { createTrainer } from '../../lib/trainer.ts';
import { folder } from './folder.ts';
import { prose } from './prose.ts';

const parts = process.argv.length > 2 ? process.argv.slice(2) : ['train', 'read', 'decode'];
const text = prose(700, 1);

function finite(what: string, values: Iterable<number>): void {
  for (const v of values) if (!Number.isFinite(v)) throw new Error(`${what}: ${v}`);
}

async function read(model: Model): Promise<void> {
  finite('logits', await model.logits(text.subarray(0, 75)));
  finite('score', (await model.score(text)).nll);
  await model.withSession(async (session) => {
    for (const K of [1, 7, 16, 32]) {
      finite('verify', (await session.verify([...text.subarray(0, K)])).logits());
      await session.accept(Math.ceil(K / 2));
    }
  });
}

async function decode(model: Model): Promise<void> {
  await model.generate(text.subarray(0, 45), { maxBytes: 24, seed: 1, repetitionPenalty: 1.1, topK: 20 });
  await model.generateBatch(['one', 'another prompt', 'x'], { maxBytes: 12, seed: 2 });
}

async function train(precision: 'f32' | 'bf16'): Promise<void> {
  using model = await createModel({ layers: 2, dModel: 64 }, { seed: 3, device: 'cuda' });
  const trainer = await createTrainer(model, { lr: 1e-3, precision });
  for (let i = 0; i < 2; i++) {
    const batches = [0, 1].map((j) => ({ bytes: text.subarray(j * 9, j * 9 + 2 * 101), batch: 2 }));
    finite('loss', [(await trainer.step(batches)).loss]);
  }
}

if (parts.includes('train')) for (const precision of ['f32', 'bf16'] as const) await train(precision);
const path = folder();
{
  using model = await createModel({ layers: 2, dModel: 64 }, { seed: 3, device: 'cpu' });
  await model.save(path);
}
for (const dtype of ['f32', 'bf16', 'int8'] as const) {
  using model = await loadModel(path, { device: 'cuda', dtype });
  if (parts.includes('read')) await read(model);
  if (parts.includes('decode')) await decode(model);
}
console.log(`done: ${parts.join(', ')}`);
