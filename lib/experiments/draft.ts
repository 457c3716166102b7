// Speculative decoding with the shipped models: how much sooner bytes come when a drafter proposes them (section 3.4 of the
// paper), and whether they are the bytes of plain decoding.
import type { GenerateOptions } from '../generate/options.ts';
import { loadModel, type Model } from '../model.ts';
import { shippedFolder } from '../shipped.ts';
import { version } from '../version.ts';
import { documentsOf } from './corpora.ts';
import type { Experiment, Scale } from './experiment.ts';
import type { Lab } from './lab.ts';

export interface DraftResult {
  drafter: string;
  mode: string;
  lossless: boolean;
  /** Bytes a second of decoding, one value a prompt. */
  plain: number[];
  drafted: number[];
  /** Prompts whose drafted bytes are those of plain decoding. */
  identical: number;
  /** Verify passes of all prompts, and the bytes proposed and accepted in them. */
  passes: number;
  proposed: number;
  accepted: number;
}

interface Mode {
  name: string;
  options: Pick<GenerateOptions, 'temperature' | 'acceptance' | 'beta'>;
}

const MODES: readonly Mode[] = [
  { name: 'lossless, greedy', options: { temperature: 0 } },
  { name: 'lossless, temperature 0.8', options: { temperature: 0.8 } },
  { name: 'top-3, greedy', options: { temperature: 0, acceptance: 'top-beta', beta: 3 } },
];
const VERIFIER = 'books';
const DRAFTERS = ['books-draft', 'lookup'];

const SETTINGS: Readonly<Record<Scale, { prompts: number; promptBytes: number; made: number }>> = {
  quick: { prompts: 3, promptBytes: 512, made: 128 },
  default: { prompts: 8, promptBytes: 1024, made: 256 },
  full: { prompts: 32, promptBytes: 2048, made: 512 },
};

export const draft: Experiment<DraftResult> = {
  name: 'draft',
  title: 'Speculative decoding',
  question: 'How much sooner do bytes come when a smaller model, or the text so far, proposes them?',
  corpora: ['books'],
  async units(lab) {
    const { prompts, promptBytes, made } = SETTINGS[lab.scale];
    const [corpus = ''] = lab.corporaOf('experiment draft', this.corpora);
    const limits = { maxBytes: prompts * promptBytes, maxDocument: promptBytes, minDocument: promptBytes };
    const sample = await lab.sample(corpus, 'test', limits);
    const texts = documentsOf(sample);
    const machine = lab.machine();
    return DRAFTERS.flatMap((drafter) =>
      MODES.map((mode) => ({
        key: `${drafter}, ${mode.name}`,
        inputs: { verifier: VERIFIER, drafter, mode, text: sample.hash, made, machine, version },
        run: () => measured(lab, drafter, mode, texts, made),
      })),
    );
  },
};

async function measured(
  lab: Lab,
  drafter: string,
  mode: Mode,
  prompts: readonly Uint8Array[],
  made: number,
): Promise<DraftResult> {
  const open = (name: string) => loadModel(shippedFolder(name), { ...lab.placed, signal: lab.signal });
  using verifier = await open(VERIFIER);
  using model = drafter === 'lookup' ? undefined : await open(drafter);
  const source = model ?? 'lookup';
  const result: DraftResult = {
    ...{ drafter, mode: mode.name, lossless: mode.options.acceptance === undefined },
    ...{ plain: [], drafted: [], identical: 0, passes: 0, proposed: 0, accepted: 0 },
  };
  await both(lab, verifier, source, mode, prompts[0] ?? new Uint8Array(1), 32, 0); // makes the plans
  for (const [seed, prompt] of prompts.entries()) {
    const [plain, drafted] = await both(lab, verifier, source, mode, prompt, made, seed);
    result.plain.push(plain.stats.bytesPerSecond);
    result.drafted.push(drafted.stats.bytesPerSecond);
    result.identical += Buffer.compare(plain.bytes, drafted.bytes) === 0 ? 1 : 0;
    result.passes += drafted.stats.draft?.passes ?? 0;
    result.proposed += drafted.stats.draft?.drafted ?? 0;
    result.accepted += drafted.stats.draft?.accepted ?? 0;
  }
  return result;
}

/** Plain and drafted, one right after the other: what else the machine does falls on both. */
async function both(
  lab: Lab,
  verifier: Model,
  source: Model | 'lookup',
  { options }: Mode,
  prompt: Uint8Array,
  maxBytes: number,
  seed: number,
) {
  const { temperature } = options;
  const common = { maxBytes, seed, signal: lab.signal };
  const plain = await verifier.generate(prompt, { ...common, ...(temperature !== undefined && { temperature }) });
  const drafted = await verifier.generate(prompt, { ...common, ...options, draft: source });
  return [plain, drafted] as const;
}
