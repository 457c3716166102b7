// Decoding after longer and longer contexts: MambaByte, one sequence and several, beside the Transformer of its size, turn by
// turn in one run; and with a text, the shipped model plain and drafted.
import { readFileSync } from 'node:fs';
import { decodingTimes } from '../lib/decoding-times.ts';
import { OutOfMemoryError } from '../lib/errors.ts';
import { loadModel, type Model } from '../lib/index.ts';
import type { WeightDType } from '../lib/weights/load.ts';
import { median, round } from './measure.ts';
import { randomModel } from './random-model.ts';
import { promptOf } from './speed.ts';

export interface ContextsOptions {
  device: string;
  threads: number;
  dtype: WeightDType;
  contexts: readonly number[];
  /** Sequences decoded together. */
  batch: number;
  /** Bytes decoded in each repetition. */
  gen: number;
  reps: number;
  /** Held-out prose for speculation; undefined: no speculation. */
  text: string | undefined;
}

type Rows = Record<string, unknown>[];

/** What pairs of presets have in common: their size. */
const sizeOn = (device: string) => (device.startsWith('cuda') ? '353m' : '5m');

export async function contextsBench(o: ContextsOptions): Promise<{ decode: Rows; speculation: Rows }> {
  const { device, threads, dtype } = o;
  const open = async (name: string) => ({
    name,
    model: await loadModel(await randomModel(name), { device, threads, dtype }),
  });
  const size = sizeOn(device);
  const models = [await open(`mambabyte-${size}`), await open(`transformer-${size}`)];
  const decode: Rows = [];
  for (const context of o.contexts) {
    // The prompt is read each time: the cache of a Transformer after a long one is gigabytes, too slow to keep and restore.
    const runs = models.map((one) => ({ ...one, rates: [] as number[], prompts: [] as number[] }));
    for (let i = 0; i <= o.reps; i++) {
      for (const { model, rates, prompts } of runs) {
        const times = await decodingTimes(model, promptOf(context), { made: o.gen, stretches: 1 });
        if (i === 0) continue;
        rates.push(...times.seconds.map((seconds) => o.gen / seconds));
        prompts.push(context / times.prefillSeconds);
      }
    }
    for (const { name, model, rates, prompts } of runs) {
      decode.push({
        context,
        model: name,
        'bytes/s': round(median(rates)),
        [`bytes/s, ${o.batch} together`]: await together(model, context, o),
        'MB a sequence': round(model.stateBytesAt(context) / 1e6),
        'prompt, bytes/s': round(median(prompts)),
      });
    }
  }
  for (const { model } of models) model.dispose();
  return { decode, speculation: o.text === undefined ? [] : await speculation(o, o.text) };
}

/** Bytes/s of all sequences; a word where they do not fit. */
async function together(model: Model, context: number, { batch, gen }: ContextsOptions): Promise<number | string> {
  try {
    const { seconds } = await decodingTimes(model, promptOf(context), { batch, made: gen, stretches: 2 });
    return round((batch * gen) / (seconds[1] ?? Number.NaN));
  } catch (error) {
    if (error instanceof OutOfMemoryError) return 'out of memory';
    throw error;
  }
}

/** The shipped pair, greedy, after the beginning of a text. */
async function speculation({ device, threads, contexts, gen, reps }: ContextsOptions, text: string): Promise<Rows> {
  const bytes = readFileSync(text);
  using model = await loadModel('books', { device, threads });
  using draft = await loadModel('books-draft', { device, threads: 1 });
  const rows: Rows = [];
  for (const context of contexts.filter((n) => n <= bytes.length)) {
    const prompt = bytes.subarray(0, context);
    const rates: [plain: number[], drafted: number[]] = [[], []];
    for (let i = 0; i < reps; i++) {
      for (const [way, extra] of [{}, { draft }].entries()) {
        const { stats } = await model.generate(prompt, { maxBytes: gen, temperature: 0, ...extra });
        rates[way]?.push(stats.bytesPerSecond);
      }
    }
    const [plain, drafted] = [median(rates[0]), median(rates[1])];
    rows.push({ context, 'plain B/s': round(plain), 'drafted B/s': round(drafted), ratio: round(drafted / plain) });
  }
  return rows;
}
