import type { Scale } from './experiment.ts';
import type { Training } from './lab.ts';

const SETTINGS: Readonly<Record<Scale, Pick<Training, 'samples' | 'context' | 'batch' | 'lr'>>> = {
  quick: { context: 256, batch: 8, lr: 1e-2, samples: samplesOf(1e6, 16e3, 256) },
  default: { context: 512, batch: 4, lr: 5e-3, samples: samplesOf(16e6, 64e3, 512) },
  full: { context: 8192, batch: 16, lr: 2e-3, samples: samplesOf(1e9, 4e6, 8192) },
};

/** Held-out texts are pieces of documents, long enough that most of their windows are full. */
function samplesOf(train: number, heldOut: number, context: number): Training['samples'] {
  const part = { maxBytes: heldOut, maxDocument: 16 * context };
  return { train: { maxBytes: train, maxDocument: Number.MAX_SAFE_INTEGER, joined: true }, valid: part, test: part };
}

/** What all trained models of a scale share: data, windows and the peak learning rate. */
export function trainingSettings(scale: Scale): Pick<Training, 'samples' | 'context' | 'batch' | 'lr'> {
  return SETTINGS[scale];
}
