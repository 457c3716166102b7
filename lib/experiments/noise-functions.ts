// Ways to spoil text (Xue et al. 2022, ByT5, section 6; Wang et al. 2024). A character is a code point.
import { Philox } from '../rng.ts';

export const NOISES = ['drop', 'repeat', 'swap', 'uppercase', 'random case', 'antspeak'] as const;
export type Noise = (typeof NOISES)[number];

/** Noises without a rate touch every character. */
export const RATELESS: readonly Noise[] = ['random case', 'antspeak'];

/**
 * A text with noise; the same seed gives the same.
 * - drop: a character is left out with probability `rate`
 * - repeat: with probability `rate` it gets 1 to 3 copies behind it, equally likely
 * - swap: with probability `rate` it changes places with the next one; both are then done with
 * - uppercase: with probability `rate` it becomes upper case
 * - random case: it becomes upper or lower case, equally likely
 * - antspeak: all become upper case with spaces around them: "an owl" becomes " A N O W L "
 */
export function withNoise(text: string, noise: Noise, rate: number, seed: number): string {
  const rng = new Philox(seed, NOISES.indexOf(noise));
  const characters = Array.from(text);
  const hit = () => rng.uniform() < rate;
  switch (noise) {
    case 'drop':
      return characters.filter(() => !hit()).join('');
    case 'repeat':
      return characters.map((c) => (hit() ? c.repeat(2 + rng.integer(3)) : c)).join('');
    case 'swap':
      return swapped(characters, hit).join('');
    case 'uppercase':
      return characters.map((c) => (hit() ? c.toUpperCase() : c)).join('');
    case 'random case':
      return characters.map((c) => (rng.uniform() < 0.5 ? c.toUpperCase() : c.toLowerCase())).join('');
    case 'antspeak':
      return ` ${characters.flatMap((c) => (c === ' ' ? [] : [c.toUpperCase()])).join(' ')} `;
  }
}

function swapped(characters: readonly string[], hit: () => boolean): string[] {
  const out = [...characters];
  for (let i = 0; i + 1 < out.length; i++) {
    if (!hit()) continue;
    [out[i], out[i + 1]] = [out[i + 1] ?? '', out[i] ?? ''];
    i++;
  }
  return out;
}
