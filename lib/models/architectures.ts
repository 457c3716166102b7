// The architectures there are, by the name in `config.architecture`; left out, it is 'mamba'.
import { describe, expected } from '../errors.ts';
import type { Architecture } from './architecture.ts';
import type { MambaConfig, PartialMambaConfig } from './config.ts';
import { type GatedS4dConfig, gatedS4d, type PartialGatedS4dConfig } from './gated-s4d.ts';
import { mamba } from './mamba.ts';
import { type MegabyteConfig, megabyte, type PartialMegabyteConfig } from './megabyte.ts';
import { type PartialPerceiverArConfig, type PerceiverArConfig, perceiverAr } from './perceiver-ar.ts';
import { type PartialTransformerConfig, type TransformerConfig, transformer } from './transformer.ts';

/** Shape of a model of any architecture. */
export type ModelConfig = MambaConfig | TransformerConfig | GatedS4dConfig | MegabyteConfig | PerceiverArConfig;
/** A configuration with everything that follows from the rest left out. */
export type PartialModelConfig =
  | PartialMambaConfig
  | PartialTransformerConfig
  | PartialGatedS4dConfig
  | PartialMegabyteConfig
  | PartialPerceiverArConfig;

export const ARCHITECTURES = {
  mamba,
  transformer,
  'gated-s4d': gatedS4d,
  megabyte,
  'perceiver-ar': perceiverAr,
} as const;
export type ArchitectureName = keyof typeof ARCHITECTURES;

/** Of the rows of a window of `window` ids, how many training learns from: the last so many. */
export function trainedRows(config: ModelConfig, window: number): number {
  return architectureOf(config).trainedRows?.(config, window) ?? window;
}

/** What a configuration is a shape of. @throws TypeError for an unknown one */
export function architectureOf({
  architecture = 'mamba',
}: Pick<PartialModelConfig, 'architecture'>): Architecture<ModelConfig> {
  const found = (ARCHITECTURES as Record<string, Architecture<ModelConfig>>)[architecture];
  if (found) return found;
  const known = `be one of ${Object.keys(ARCHITECTURES).join(', ')}`;
  throw new TypeError(expected('config', 'architecture', known, describe(architecture)));
}
