// The models that the experiments compare, of about as many parameters each. To add one, add a line.

import type { PartialModelConfig } from '../models/architectures.ts';
import { presetConfig } from '../models/presets.ts';
import type { Scale } from './experiment.ts';

/** A model in a comparison. */
export interface Contender {
  name: string;
  config: PartialModelConfig;
  /** Tokens of its vocabulary; left out: it reads bytes. */
  vocab?: number;
}

export const MAMBABYTE = 'MambaByte';
export const SUBWORD = 'Mamba, subword';

/** Beside a Mamba of 4 layers of width 128. */
const SMALL: readonly Contender[] = [
  { name: 'Transformer', config: { architecture: 'transformer', layers: 4, dModel: 128, dInner: 128 } },
  { name: 'gated S4D', config: { architecture: 'gated-s4d', layers: 4, dModel: 128, dState: 32 } },
  { name: 'MegaByte', config: { architecture: 'megabyte', globalLayers: 1, globalDModel: 128, layers: 2, dModel: 96 } },
  { name: 'PerceiverAR', config: { architecture: 'perceiver-ar', layers: 3, dModel: 128, dInner: 128, latents: 256 } },
];
/** Presets of one size. */
const presets = (size: string, megabyte = size): Contender[] => [
  { name: 'Transformer', config: presetConfig(`transformer-${size}`) },
  { name: 'gated S4D', config: presetConfig(`gated-s4d-${size}`) },
  { name: 'MegaByte', config: presetConfig(`megabyte-${megabyte}`) },
  { name: 'PerceiverAR', config: presetConfig(`perceiver-ar-${size}`) },
];

/** Of about as many parameters, but for the vocabulary of the subword model. */
export const LINEUP: Readonly<Record<Scale, readonly Contender[]>> = {
  quick: [
    { name: MAMBABYTE, config: { layers: 2, dModel: 64 } },
    { name: SUBWORD, config: { layers: 2, dModel: 64 }, vocab: 512 },
    { name: 'Transformer', config: { architecture: 'transformer', layers: 2, dModel: 64, dInner: 96 } },
    { name: 'gated S4D', config: { architecture: 'gated-s4d', layers: 2, dModel: 64, dState: 32 } },
    {
      name: 'MegaByte',
      config: { architecture: 'megabyte', globalLayers: 1, globalDModel: 64, layers: 1, dModel: 48 },
    },
    { name: 'PerceiverAR', config: { architecture: 'perceiver-ar', layers: 1, dModel: 64, dInner: 96, latents: 128 } },
  ],
  default: [
    { name: MAMBABYTE, config: { layers: 4, dModel: 128 } },
    { name: SUBWORD, config: { layers: 4, dModel: 128 }, vocab: 2048 },
    ...SMALL,
  ],
  full: [
    { name: MAMBABYTE, config: presetConfig('mambabyte-27m') },
    { name: SUBWORD, config: { layers: 16, dModel: 512 }, vocab: 8192 },
    ...presets('27m'),
  ],
};

/** For speed, larger: calls and barriers would be most of what small models take. */
export const SPEED_LINEUP: Readonly<Record<Scale, readonly Contender[]>> = {
  quick: [{ name: MAMBABYTE, config: presetConfig('mambabyte-tiny') }, ...SMALL],
  default: [{ name: MAMBABYTE, config: presetConfig('mambabyte-5m') }, ...presets('5m')],
  full: [{ name: MAMBABYTE, config: presetConfig('mambabyte-353m') }, ...presets('353m', '758m+262m')],
};

/** One architecture in several sizes. */
export interface Family {
  name: string;
  sizes: readonly Contender[];
}

const sizes = (name: string, of: readonly PartialModelConfig[], vocab?: number): Family => ({
  name,
  sizes: of.map((config) => ({ name: `${name} ${config.layers}x${config.dModel}`, config, ...(vocab && { vocab }) })),
});
const mamba = (...of: [layers: number, dModel: number][]) => of.map(([layers, dModel]) => ({ layers, dModel }));
const transformer = (...of: [layers: number, dModel: number, dInner: number][]): PartialModelConfig[] =>
  of.map(([layers, dModel, dInner]) => ({ architecture: 'transformer', layers, dModel, dInner }));

/** From small to large; a size stands at the same place in every family. */
export const FAMILIES: Readonly<Record<Scale, readonly Family[]>> = {
  quick: [
    sizes(MAMBABYTE, mamba([1, 32], [2, 48], [2, 64])),
    sizes(SUBWORD, mamba([1, 32], [2, 48], [2, 64]), 512),
    sizes('Transformer', transformer([1, 32, 64], [2, 48, 72], [2, 64, 96])),
  ],
  default: [
    sizes(MAMBABYTE, mamba([2, 64], [3, 96], [4, 128], [6, 160])),
    sizes(SUBWORD, mamba([2, 64], [3, 96], [4, 128], [6, 160]), 1024),
    sizes('Transformer', transformer([2, 64, 96], [3, 96, 96], [4, 128, 128], [6, 160, 160])),
  ],
  full: [
    sizes(MAMBABYTE, mamba([8, 256], [12, 384], [16, 512], [24, 768], [53, 1024])),
    sizes(SUBWORD, mamba([8, 256], [12, 384], [16, 512], [24, 768], [53, 1024]), 8192),
    sizes('Transformer', transformer([4, 256, 768], [6, 384, 1152], [8, 512, 1536], [12, 768, 2304], [28, 1024, 2752])),
  ],
};
