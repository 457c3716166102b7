export * from './errors.ts';
export {
  type GenerateChunk,
  type GenerateResult,
  type GenerateStats,
  Generation,
  type StopReason,
} from './generate/generation.ts';
export type { GenerateOptions } from './generate/options.ts';
export { type CreateModelOptions, createModel, type LoadModelOptions, loadModel, Model, type Score } from './model.ts';
export {
  completeConfig,
  type MambaConfig,
  type PartialMambaConfig,
  PRESETS,
  type PresetName,
  presetConfig,
} from './models/config.ts';
export { type NDArray, type OpOptions, type OpResult, ops } from './ops/eager.ts';
export { State } from './state.ts';
export type { Schedule } from './train/schedule.ts';
export {
  type Batch,
  createTrainer,
  type OptimizerState,
  type StepResult,
  Trainer,
  type TrainerOptions,
} from './trainer.ts';
export type { WeightDType } from './weights/load.ts';
