// What the measurements of speculation have in common: a verifier, its drafters, prompts and ways to decode.
import { readFileSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { checkInteger, expected } from '../lib/errors.ts';
import { type GenerateOptions, type GenerateResult, loadModel, type Model } from '../lib/index.ts';
import { VERIFY_STEPS } from '../lib/session.ts';
import type { WeightDType } from '../lib/weights/load.ts';

/** The command line's words for all of them. */
export interface DraftFlags {
  model?: string;
  draft?: string[];
  text?: string;
  prompts?: string;
  bytes?: string;
  device: string;
  dtype?: string[];
  threads: string;
  'draft-device'?: string[];
  'draft-dtype'?: string;
  'draft-threads': string;
  'draft-length'?: string[];
  beta: string[];
  pairs: string;
  greedy: boolean;
  from?: string | undefined;
  to?: string | undefined;
  check: boolean;
  bandwidth: boolean;
  'verify-cost'?: string;
  'draft-cost'?: string;
  out?: string;
}

export interface NamedDrafter {
  name: string;
  source: Model | 'lookup';
}

/** A way to decode, with a draft or without. */
export interface Mode {
  name: string;
  temperature: number;
  /** For top-beta acceptance; undefined: lossless. */
  beta?: number;
}

/** Bytes drafted at a time; undefined: adaptive. */
export type DraftLength = number | undefined;

export interface DraftSetup {
  verifier: Model;
  drafters: NamedDrafter[];
  prompts: Uint8Array[];
  /** What follows each prompt in the text, as many bytes as are generated. */
  continuations: Uint8Array[];
  /** Where the prompts come from, in words. */
  source: string;
  /** Bytes generated per run. */
  bytes: number;
  lengths: DraftLength[];
}

const PROMPT_BYTES = 200;

export const GREEDY: Mode = { name: 'greedy', temperature: 0 };
export const LOSSLESS: readonly Mode[] = [GREEDY, { name: 'temperature 0.8', temperature: 0.8 }];

/** Lossless greedy and sampling, or --greedy alone, and top-beta greedy. */
export function modesOf(flags: DraftFlags): Mode[] {
  const betas = flags.beta.map((beta) => ({ name: `top-${beta} greedy`, temperature: 0, beta: Number(beta) }));
  return [...losslessOf(flags), ...betas];
}

export function losslessOf({ greedy }: DraftFlags): readonly Mode[] {
  return greedy ? [GREEDY] : LOSSLESS;
}

/** @throws Error naming what is missing on the command line */
export async function openSetup(flags: DraftFlags, lengths: readonly DraftLength[]): Promise<DraftSetup> {
  const { text, device, draft = [] } = flags;
  if (text === undefined) throw new Error(expected('bench draft', '--text', 'name a held-out text', 'nothing'));
  if (draft.length === 0) throw new Error(expected('bench draft', '--draft', "name a model or 'lookup'", 'nothing'));
  const placed = { device, threads: Number(flags.threads) };
  const verifier = await loadModel(flags.model ?? 'books', { ...placed, ...dtypeOf(flags.dtype?.[0]) });
  const drafters = await openDrafters(draft, flags);
  const bytes = count('bytes', flags.bytes ?? 500);
  const { prompts, continuations } = passagesOf(text, count('prompts', flags.prompts ?? 16), bytes);
  return {
    verifier,
    drafters,
    prompts,
    continuations,
    source: `${prompts.length} prompts of ${PROMPT_BYTES} bytes, from the middles of equal parts of ${basename(text)}`,
    bytes,
    lengths: flags['draft-length']?.map((word) => (word === 'adaptive' ? undefined : Number(word))) ?? [...lengths],
  };
}

/** Each model on each of the devices to draft on. */
async function openDrafters(names: readonly string[], flags: DraftFlags): Promise<NamedDrafter[]> {
  const { device, 'draft-device': devices = [device], 'draft-threads': threads, 'draft-dtype': dtype } = flags;
  const drafters: NamedDrafter[] = [];
  for (const path of names) {
    if (path === 'lookup') {
      drafters.push({ name: path, source: path });
      continue;
    }
    for (const device of devices) {
      const source = await loadModel(path, { device, threads: Number(threads), ...dtypeOf(dtype) });
      drafters.push({ name: devices.length > 1 ? `${nameOf(path)} on ${device}` : nameOf(path), source });
    }
  }
  return drafters;
}

/** @throws RangeError naming the flag, if its value is not a number from 1 */
export function count(flag: string, value: string | number): number {
  return checkInteger('bench draft', `--${flag}`, Number(value), { min: 1 });
}

function dtypeOf(dtype: string | undefined): { dtype?: WeightDType } {
  return dtype === undefined ? {} : { dtype: dtype as WeightDType };
}

/** A folder's name; of a checkpoint within a run also the run's. */
export function nameOf(path: string): string {
  const name = basename(path);
  return /^(best|latest|step-\d+)$/.test(name) ? `${basename(dirname(path))}/${name}` : name;
}

/** `count` passages, each from the middle of one of as many equal parts of the file. */
function passagesOf(
  file: string,
  count: number,
  bytes: number,
): { prompts: Uint8Array[]; continuations: Uint8Array[] } {
  const text = readFileSync(file);
  const [part, length] = [text.length / count, PROMPT_BYTES + bytes];
  if (part < length) {
    throw new Error(expected('bench draft', '--text', `hold ${count * length} bytes`, `${text.length}`));
  }
  const passages = Array.from({ length: count }, (_, i) => {
    const start = Math.floor((i + 0.5) * part - length / 2);
    return text.subarray(start, start + length);
  });
  return {
    prompts: passages.map((passage) => passage.subarray(0, PROMPT_BYTES)),
    continuations: passages.map((passage) => passage.subarray(PROMPT_BYTES)),
  };
}

export function disposeSetup({ verifier, drafters }: DraftSetup): void {
  for (const { source } of drafters) if (source !== 'lookup') source.dispose();
  verifier.dispose();
}

/** Decodes without a draft. A prompt's number is its seed, so that all runs of a mode draw alike. */
export async function plain(setup: DraftSetup, mode: Mode, prompt: number): Promise<GenerateResult> {
  return await setup.verifier.generate(setup.prompts[prompt] ?? '', baseOptions(setup, mode, prompt));
}

export async function drafted(
  setup: DraftSetup,
  mode: Mode,
  prompt: number,
  draft: NonNullable<GenerateOptions['draft']>,
  draftLength: DraftLength,
): Promise<GenerateResult> {
  return await setup.verifier.generate(setup.prompts[prompt] ?? '', {
    ...baseOptions(setup, mode, prompt),
    draft,
    ...(mode.beta !== undefined && { acceptance: 'top-beta', beta: mode.beta }),
    ...(draftLength !== undefined && { draftLength }),
  });
}

function baseOptions(setup: DraftSetup, mode: Mode, prompt: number): GenerateOptions {
  return { maxBytes: setup.bytes, temperature: mode.temperature, seed: prompt };
}

/** Compiles what every length of draft needs, so that no run pays for it. */
export async function warmUp(setup: DraftSetup): Promise<void> {
  await setup.verifier.withSession(async (session) => {
    for (let steps = 1; steps <= VERIFY_STEPS; steps++) await session.verify(new Int32Array(steps).fill(32));
  });
  await plain(setup, GREEDY, 0);
  for (const { source } of setup.drafters) await drafted(setup, GREEDY, 0, source, undefined);
}

export function lengthLabel(length: DraftLength): string {
  return length === undefined ? 'adaptive' : `${length}`;
}

export function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

export function sum(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0);
}
