import { Philox } from '../../lib/rng.ts';

const WORDS =
  `the of and a to in he was that it his her with as had she for on at but not be from by they all which said
were him one so have this or an my you there when been no out would up who them me their we is into what more could then
little now very like time some down upon over about old man night house`.split(/\s+/);

/** Sentences of common words, a fixed text for every seed. */
export function prose(bytes: number, seed: number): Buffer {
  const rng = new Philox(seed);
  let text = '';
  while (text.length < bytes) {
    const words = Array.from({ length: 4 + rng.integer(12) }, () => WORDS[rng.integer(WORDS.length)] ?? '');
    text += `${words.join(' ')}.${rng.integer(5) === 0 ? '\n\n' : rng.integer(2) === 0 ? '\n' : ' '}`;
  }
  return Buffer.from(text.slice(0, bytes));
}
