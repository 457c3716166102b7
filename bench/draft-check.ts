// Whether drafted output is byte for byte the plain one.
import { performance } from 'node:perf_hooks';
import { type DraftSetup, drafted, lengthLabel, type Mode, plain, sameBytes, sum } from './draft-setup.ts';

interface Tally {
  drafter: string;
  length: string;
  mode: string;
  identical: number;
  of: number;
  /** The first output that differs: its prompt and the byte where it does. */
  firstDifference: string;
}

/**
 * Counts identical outputs by drafter, draft length and mode, over the prompts from `from` up to `to`. Each plain text is made
 * once, and a line for each prompt says how it went: a run of hundreds takes long, and may be made in parts.
 */
export async function draftCheck(
  setup: DraftSetup,
  modes: readonly Mode[],
  { from, to }: { from: number; to: number },
): Promise<Tally[]> {
  const tallies = new Map<string, Tally>();
  for (let prompt = from; prompt < to; prompt++) {
    const start = performance.now();
    for (const mode of modes) await checkPrompt(setup, mode, prompt, tallies);
    const all = [...tallies.values()];
    const count = `${sum(all.map((t) => t.identical))} of ${sum(all.map((t) => t.of))} identical so far`;
    console.error(`prompt ${prompt}: ${count}, ${((performance.now() - start) / 1000).toFixed(1)} s`);
  }
  return [...tallies.values()];
}

async function checkPrompt(setup: DraftSetup, mode: Mode, prompt: number, tallies: Map<string, Tally>): Promise<void> {
  const { bytes } = await plain(setup, mode, prompt);
  for (const { name, source } of setup.drafters) {
    for (const length of setup.lengths) {
      const made = await drafted(setup, mode, prompt, source, length);
      const tally = tallyFor(tallies, name, lengthLabel(length), mode.name);
      tally.of++;
      if (sameBytes(bytes, made.bytes)) tally.identical++;
      else tally.firstDifference ||= `prompt ${prompt}, byte ${bytes.findIndex((b, i) => b !== made.bytes[i])}`;
    }
  }
}

function tallyFor(tallies: Map<string, Tally>, drafter: string, length: string, mode: string): Tally {
  const key = JSON.stringify([drafter, length, mode]);
  const tally = tallies.get(key) ?? { drafter, length, mode, identical: 0, of: 0, firstDifference: '' };
  tallies.set(key, tally);
  return tally;
}
