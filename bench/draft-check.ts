// Whether drafted output is byte for byte the plain one.
import { type DraftSetup, drafted, LOSSLESS, lengthLabel, plain, sameBytes } from './draft-setup.ts';

interface Tally {
  drafter: string;
  length: string;
  mode: string;
  identical: number;
  of: number;
  /** The first output that differs: its prompt and the byte where it does. */
  firstDifference: string;
}

/** Counts identical outputs by drafter, draft length and mode. */
export async function draftCheck(setup: DraftSetup): Promise<Tally[]> {
  const tallies = new Map<string, Tally>();
  for (const prompt of setup.prompts.keys()) {
    for (const mode of LOSSLESS) {
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
    if (process.stderr.isTTY) process.stderr.write(`\r${prompt + 1} of ${setup.prompts.length} prompts `);
  }
  return [...tallies.values()];
}

function tallyFor(tallies: Map<string, Tally>, drafter: string, length: string, mode: string): Tally {
  const key = JSON.stringify([drafter, length, mode]);
  const tally = tallies.get(key) ?? { drafter, length, mode, identical: 0, of: 0, firstDifference: '' };
  tallies.set(key, tally);
  return tally;
}
