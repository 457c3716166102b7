import { checkChoice, checkInteger, checkNumber, checkOptions, expected } from '../errors.ts';
import type { BaseConfig } from './architecture.ts';

/** Shape of a Mamba language model. */
export interface MambaConfig extends BaseConfig {
  /** As given, or left out. */
  readonly architecture?: 'mamba';
  /** Inner channels (E), usually 2 D. */
  readonly dInner: number;
  /** States per channel (N). */
  readonly dState: number;
  /** Width of the causal convolution (K). */
  readonly dConv: number;
  /** Rank of the step-size projection (R), usually D / 16. */
  readonly dtRank: number;
  /** RMSNorm, or LayerNorm with bias (the published byte models). */
  readonly norm: 'rms' | 'layer';
}

/** A configuration with everything that follows from the width left out. */
export type PartialMambaConfig = Partial<MambaConfig> & Pick<MambaConfig, 'layers' | 'dModel'>;

/**
 * Fills in what was left out: E = 2 D, N = 16, K = 4, R = ceil(D / 16), 256 classes, LayerNorm with bias, untied head.
 * @throws TypeError or RangeError naming the field
 */
export function completeConfig(config: PartialMambaConfig): MambaConfig {
  const where = 'config';
  checkOptions(where, config, [
    'architecture',
    'layers',
    'dModel',
    'dInner',
    'dState',
    'dConv',
    'dtRank',
    'vocab',
    'norm',
    'tied',
    'normEps',
  ]);
  if (config.architecture !== undefined) checkChoice(where, 'architecture', config.architecture, ['mamba'] as const);
  const size = (name: string, value: unknown, max: number) => checkInteger(where, name, value, { min: 1, max });
  const dModel = size('dModel', config.dModel, 65536);
  const norm = config.norm ?? 'layer';
  if (norm !== 'layer' && norm !== 'rms') {
    throw new TypeError(expected(where, 'norm', "be 'layer' or 'rms'", JSON.stringify(norm)));
  }
  return {
    layers: size('layers', config.layers, 1024),
    dModel,
    dInner: size('dInner', config.dInner ?? 2 * dModel, 1 << 20),
    dState: size('dState', config.dState ?? 16, 256),
    dConv: checkInteger(where, 'dConv', config.dConv ?? 4, { min: 2, max: 16 }),
    dtRank: size('dtRank', config.dtRank ?? Math.ceil(dModel / 16), 65536),
    vocab: checkInteger(where, 'vocab', config.vocab ?? 256, { min: 2, max: 1 << 20 }),
    norm,
    tied: config.tied ?? false,
    normEps: checkNumber(where, 'normEps', config.normEps ?? 1e-5, { min: 0, max: 1 }),
  };
}
