export { type ConvertOptions, convertModel } from './convert.ts';
export { Dataset, type DatasetOptions, type DocumentSpan, openDataset } from './data/dataset.ts';
export type { DataFile } from './data/files.ts';
export type { EncodeProgress } from './data/token-dataset.ts';
export {
  type DataPosition,
  type Documents,
  type Sampling,
  type Window,
  type WindowOptions,
  WindowSampler,
} from './data/windows.ts';
export type { BackendName, CudaInfo, DeviceInfo } from './device.ts';
export { type BackendReport, type DoctorReport, doctor } from './doctor.ts';
export type { Draft, Drafter, DraftRequest } from './draft/drafter.ts';
export type { DraftStats } from './draft/speculative-steps.ts';
export * from './errors.ts';
export {
  type GenerateChunk,
  type GenerateResult,
  type GenerateStats,
  Generation,
  type StopReason,
} from './generate/generation.ts';
export type { GenerateOptions } from './generate/options.ts';
export { type InspectedTensor, type Inspection, type InspectOptions, inspectModel } from './inspect.ts';
export { type CreateModelOptions, createModel, type LoadModelOptions, loadModel, Model, type Score } from './model.ts';
export type { BaseConfig, Recompute } from './models/architecture.ts';
export type { ModelConfig, PartialModelConfig } from './models/architectures.ts';
export { completeConfig, type MambaConfig, type PartialMambaConfig } from './models/config.ts';
export type { GatedS4dConfig, PartialGatedS4dConfig } from './models/gated-s4d.ts';
export type { MegabyteConfig, PartialMegabyteConfig } from './models/megabyte.ts';
export type { PartialPerceiverArConfig, PerceiverArConfig } from './models/perceiver-ar.ts';
export { PRESETS, type PresetName, presetConfig } from './models/presets.ts';
export type { PartialTransformerConfig, TransformerConfig } from './models/transformer.ts';
export type { BlockConfig, BlockSizes } from './models/transformer-block.ts';
export { type Inputs, type NDArray, type OpOptions, type OpResult, ops } from './ops/eager.ts';
export type { SamplingSettings } from './session.ts';
export { shippedModels } from './shipped.ts';
export { State } from './state.ts';
export type { TypedArray } from './tensor.ts';
export { type MeasureTokenizerOptions, measureTokenizer, type TokenizerMeasure } from './tokenizer/measure.ts';
export { Tokenizer } from './tokenizer/tokenizer.ts';
export { type TrainTokenizerOptions, type TrainTokenizerProgress, trainTokenizer } from './tokenizer/train-bpe.ts';
export { type EvaluateOptions, type EvaluateProgress, type EvaluateResult, evaluate } from './train/evaluate.ts';
export { train } from './train/loop.ts';
export type { TrainOptions, TrainProgress, TrainResult } from './train/options.ts';
export type { Schedule } from './train/schedule.ts';
export {
  type Batch,
  createTrainer,
  type OptimizerState,
  type Precision,
  type StepResult,
  Trainer,
  type TrainerOptions,
} from './trainer.ts';
export { version } from './version.ts';
export type { ConfigDialect } from './weights/config-json.ts';
export type { WeightDType } from './weights/load.ts';
export type { NameDialect } from './weights/names.ts';
export type { StoredDType } from './weights/stored-tensor.ts';
