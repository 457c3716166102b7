/**
 * Writes what a model makes of passages of a text, for a drafter to learn from (sequence-level distillation: Kim and Rush
 * 2016; for drafters: Zhou et al. 2023, DistillSpec):
 *
 *   tsx scripts/shipped/continuations.ts --model books --data train-01.txt --out drawn.txt --bytes 20000000 \
 *     --temperature 0.8 --length 1536 [--seed 0] [--device cuda]
 *
 * Each document is a prompt from a random place, at the beginning of a word, and its continuation.
 */
import { closeSync, openSync, readFileSync, writeSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { DEFAULT_SEPARATOR } from '../../lib/data/dataset.ts';
import { checkInteger, checkNumber } from '../../lib/errors.ts';
import { loadModel } from '../../lib/index.ts';
import { Philox } from '../../lib/rng.ts';

const PROMPT_BYTES = 96;
/** Prompts of one call: as many as decode together on a GPU. */
const TOGETHER = 256;
const SPACE = 0x20;
const FORM_FEED = 0x0c;

const { values: flags } = parseArgs({
  options: {
    model: { type: 'string', default: 'books' },
    data: { type: 'string' },
    out: { type: 'string' },
    bytes: { type: 'string' },
    temperature: { type: 'string', default: '1' },
    length: { type: 'string', default: '1024' },
    seed: { type: 'string', default: '0' },
    device: { type: 'string', default: 'auto' },
  },
});
const where = 'continuations';
const wanted = checkInteger(where, '--bytes', Number(flags.bytes), { min: 1 });
const maxBytes = checkInteger(where, '--length', Number(flags.length), { min: 1 });
const temperature = checkNumber(where, '--temperature', Number(flags.temperature), { min: 0 });
const seed = checkInteger(where, '--seed', Number(flags.seed), { min: 0 });

const text = readFileSync(flags.data ?? '');
const places = new Philox(seed, 0);
const model = await loadModel(flags.model, { device: flags.device });
const file = openSync(flags.out ?? '', 'w');
const started = performance.now();
let written = 0;
for (let round = 0; written < wanted; round++) {
  const prompts = Array.from({ length: TOGETHER }, promptOf);
  const options = { maxBytes, temperature, seed: (seed * 1e6 + round) * TOGETHER };
  const results = await model.generateBatch(prompts, options);
  for (const [i, { bytes }] of results.entries()) {
    const end = bytes.indexOf(FORM_FEED); // a document of its own would begin here
    const made = end < 0 ? bytes : bytes.subarray(0, end);
    written += writeSync(file, Buffer.concat([prompts[i] ?? bytes, made, Buffer.from(DEFAULT_SEPARATOR)]));
  }
  const seconds = (performance.now() - started) / 1000;
  console.log(`${(written / 1e6).toFixed(1)} MB at ${temperature}, ${(written / 1e6 / seconds).toFixed(3)} MB/s`);
}
closeSync(file);
model.dispose();

/** The bytes behind a space, from a place where no document ends. */
function promptOf(): Uint8Array {
  for (;;) {
    const from = places.integer(text.length - 2 * PROMPT_BYTES);
    const word = text.indexOf(SPACE, from) + 1;
    const prompt = text.subarray(word, word + PROMPT_BYTES);
    if (word > 0 && prompt.length === PROMPT_BYTES && !prompt.includes(FORM_FEED)) return prompt;
  }
}
