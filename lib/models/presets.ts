import { expected } from '../errors.ts';
import { architectureOf, type ModelConfig, type PartialModelConfig } from './architectures.ts';
import type { PartialMambaConfig } from './config.ts';
import type { PartialGatedS4dConfig } from './gated-s4d.ts';
import type { PartialMegabyteConfig } from './megabyte.ts';
import type { PartialPerceiverArConfig } from './perceiver-ar.ts';
import type { PartialTransformerConfig } from './transformer.ts';

const byte = (layers: number, dModel: number): PartialMambaConfig => ({ layers, dModel });
const subword = (layers: number, dModel: number, vocab = 32072): PartialMambaConfig => ({
  layers,
  dModel,
  vocab,
  norm: 'rms',
  tied: true,
});
const transformer = (layers: number, dModel: number, dInner: number): PartialTransformerConfig => ({
  architecture: 'transformer',
  layers,
  dModel,
  dInner,
});
const gatedS4d = (layers: number, dModel: number): PartialGatedS4dConfig => ({
  architecture: 'gated-s4d',
  layers,
  dModel,
});
type Stack = readonly [layers: number, dModel: number];
const megabyte = ([globalLayers, globalDModel]: Stack, [layers, dModel]: Stack): PartialMegabyteConfig => ({
  architecture: 'megabyte',
  globalLayers,
  globalDModel,
  layers,
  dModel,
});

const perceiverAr = (layers: number, dModel: number, dInner: number): PartialPerceiverArConfig => ({
  architecture: 'perceiver-ar',
  layers,
  dModel,
  dInner,
  latents: 1024,
});

/**
 * Sizes by name: the paper's models (Wang et al. 2024; layers and widths from the authors' configurations) and the
 * smaller ones that this package ships or measures with, and the baselines of about as many parameters. The
 * MegaByte that the paper calls 758M+262M has 937M here, by the layers, widths and patches of its authors (Yu et al. 2023).
 */
export const PRESETS = {
  'mambabyte-1.6b': byte(48, 2304),
  'mambabyte-972m': byte(48, 1792),
  'mambabyte-353m': byte(53, 1024),
  'mambabyte-27m': byte(16, 512),
  'mambabyte-20m': byte(12, 512),
  'mambabyte-5m': byte(12, 256),
  'mambabyte-tiny': byte(4, 128),
  'transformer-5m': transformer(6, 256, 768),
  'transformer-20m': transformer(6, 512, 1536),
  'transformer-27m': transformer(8, 512, 1536),
  'transformer-353m': transformer(28, 1024, 2752),
  'gated-s4d-5m': gatedS4d(11, 256),
  'gated-s4d-20m': gatedS4d(12, 512),
  'gated-s4d-27m': gatedS4d(16, 512),
  'gated-s4d-353m': gatedS4d(54, 1024),
  'megabyte-5m': megabyte([4, 256], [4, 192]),
  'megabyte-27m': megabyte([6, 512], [5, 320]),
  'megabyte-758m+262m': megabyte([14, 2048], [18, 1024]),
  'perceiver-ar-5m': perceiverAr(5, 256, 768),
  'perceiver-ar-20m': perceiverAr(5, 512, 1536),
  'perceiver-ar-27m': perceiverAr(7, 512, 1536),
  'perceiver-ar-353m': perceiverAr(27, 1024, 2752),
  'mamba-1.03b': subword(48, 1792),
  'mamba-draft-small': subword(48, 1024),
  'mamba-draft-tiny': subword(20, 768),
} as const;
export type PresetName = keyof typeof PRESETS;

/** The configuration of a preset. @throws TypeError naming the known ones */
export function presetConfig(name: string): ModelConfig {
  const preset = (PRESETS as Record<string, PartialModelConfig>)[name];
  if (!preset) {
    throw new TypeError(expected('config', 'preset', `be one of ${Object.keys(PRESETS).join(', ')}`, `"${name}"`));
  }
  return architectureOf(preset).complete(preset);
}
