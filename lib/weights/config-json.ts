// config.json in its two dialects: state-spaces/mamba (MambaConfig) and transformers (MambaConfig of MambaForCausalLM).
// Sources: mamba_ssm/models/config_mamba.py; transformers configuration_mamba.py.
import { describe, expected, ModelFormatError } from '../errors.ts';
import type { MambaConfig } from '../models/config.ts';
import { isObject } from './strict-json.ts';

/** 'mambabyte' is the state-spaces dialect: exactly its keys, since its reader refuses others. */
export type ConfigDialect = 'mambabyte' | 'hf';

/** One value that a config.json states, and under which key. */
export interface Stated<T> {
  key: string;
  value: T;
}

/** What a config.json states; a field is absent where the file does not say. */
export interface StatedConfig {
  layers?: Stated<number>;
  dModel?: Stated<number>;
  dInner?: Stated<number>;
  dState?: Stated<number>;
  dConv?: Stated<number>;
  dtRank?: Stated<number>;
  vocab?: Stated<number>;
  /** `vocab` rounded up as the embedding may have been. */
  paddedVocab?: number;
  rmsNorm?: Stated<boolean>;
  tied?: Stated<boolean>;
  normEps?: Stated<number>;
}

export const DEFAULT_NORM_EPS = 1e-5;

/**
 * What a parsed config.json says, or undefined if it is of neither dialect.
 *
 * @throws ModelFormatError if a value has an impossible type, or the config is one of Mamba-2.
 */
export function readConfigJson(where: string, json: Record<string, unknown>): StatedConfig | undefined {
  const ssm = isObject(json.ssm_cfg) ? json.ssm_cfg : {};
  if (ssm.layer === 'Mamba2' || json.model_type === 'mamba2') throw mamba2(where, 'a config of Mamba-2');
  // transformers' own conversions keep the older keys beside theirs, so theirs decide.
  if ('hidden_size' in json) return readHf(where, json);
  if ('d_model' in json) return readStateSpaces(where, json, ssm);
  return undefined;
}

export function mamba2(where: string, got: string): ModelFormatError {
  return new ModelFormatError(expected(where, 'the model', 'be a Mamba (version 1)', got, 'Mamba-2 is not supported.'));
}

function readStateSpaces(where: string, json: Record<string, unknown>, ssm: Record<string, unknown>): StatedConfig {
  const dModel = count(where, json, 'd_model');
  const stated: StatedConfig = {
    ...only('dModel', dModel),
    ...only('layers', count(where, json, 'n_layer')),
    ...only('dState', count(where, ssm, 'd_state')),
    ...only('dConv', count(where, ssm, 'd_conv')),
    ...only('dtRank', ssm.dt_rank === 'auto' ? undefined : count(where, ssm, 'dt_rank')),
    ...only('dInner', widened(positive(where, ssm, 'expand'), dModel)),
    ...only('rmsNorm', flag(where, json, 'rms_norm')),
    ...only('tied', flag(where, json, 'tie_embeddings')),
    ...only('normEps', positive(where, json, 'norm_epsilon')),
  };
  const vocab = count(where, json, 'vocab_size');
  if (vocab === undefined) return stated;
  const multiple = count(where, json, 'pad_vocab_size_multiple')?.value ?? 8; // the reader's default
  return { ...stated, vocab, paddedVocab: Math.ceil(vocab.value / multiple) * multiple };
}

function readHf(where: string, json: Record<string, unknown>): StatedConfig {
  const dModel = count(where, json, 'hidden_size');
  // transformers computes the width from `expand` and disregards a stored intermediate_size, so it counts only alone.
  const dInner = widened(positive(where, json, 'expand'), dModel) ?? count(where, json, 'intermediate_size');
  return {
    ...only('dModel', dModel),
    ...only('dInner', dInner),
    ...only('layers', count(where, json, 'num_hidden_layers')),
    ...only('dState', count(where, json, 'state_size')),
    ...only('dConv', count(where, json, 'conv_kernel')),
    ...only('dtRank', json.time_step_rank === 'auto' ? undefined : count(where, json, 'time_step_rank')),
    ...only('vocab', count(where, json, 'vocab_size')),
    ...only('rmsNorm', flag(where, json, 'rms_norm')),
    ...only('tied', flag(where, json, 'tie_word_embeddings')),
    ...only('normEps', positive(where, json, 'layer_norm_epsilon')),
  };
}

function only<K extends string, T>(key: K, stated: Stated<T> | undefined): { [P in K]?: Stated<T> } {
  return stated === undefined ? {} : ({ [key]: stated } as { [P in K]?: Stated<T> });
}

function widened(expand: Stated<number> | undefined, dModel: Stated<number> | undefined): Stated<number> | undefined {
  if (!expand || !dModel) return undefined;
  return { key: `${expand.key} x ${dModel.key}`, value: Math.trunc(expand.value * dModel.value) };
}

export function count(where: string, json: Record<string, unknown>, key: string): Stated<number> | undefined {
  return read(
    where,
    json,
    key,
    'be a positive integer',
    (v): v is number => Number.isSafeInteger(v) && (v as number) > 0,
  );
}

export function positive(where: string, json: Record<string, unknown>, key: string): Stated<number> | undefined {
  return read(
    where,
    json,
    key,
    'be a positive number',
    (v): v is number => typeof v === 'number' && Number.isFinite(v) && v > 0,
  );
}

export function flag(where: string, json: Record<string, unknown>, key: string): Stated<boolean> | undefined {
  return read(where, json, key, 'be true or false', (v): v is boolean => typeof v === 'boolean');
}

function read<T>(
  where: string,
  json: Record<string, unknown>,
  key: string,
  shouldBe: string,
  is: (value: unknown) => value is T,
): Stated<T> | undefined {
  const value = json[key];
  if (value === undefined || value === null) return undefined;
  if (!is(value)) throw new ModelFormatError(expected(where, key, shouldBe, describe(value)));
  return { key, value };
}

/** For models that transformers does not have. @throws ModelFormatError for its dialect */
export function refuseHf(what: string, dialect: ConfigDialect): void {
  if (dialect !== 'hf') return;
  const hint = 'Write the "mambabyte" dialect instead.';
  throw new ModelFormatError(expected('hf config', 'the model', 'be one that transformers has', what, hint));
}

/**
 * The config.json of a Mamba in one of the dialects.
 *
 * @throws ModelFormatError if transformers' MambaForCausalLM cannot express the model: it has RMSNorm only and a whole
 * number for `expand`.
 */
export function mambaToJson(config: MambaConfig, dialect: ConfigDialect): Record<string, unknown> {
  return dialect === 'hf' ? toHf(config) : toStateSpaces(config);
}

function toStateSpaces(config: MambaConfig): Record<string, unknown> {
  const json = {
    d_model: config.dModel,
    n_layer: config.layers,
    vocab_size: config.vocab,
    ssm_cfg: {
      d_state: config.dState,
      d_conv: config.dConv,
      expand: config.dInner / config.dModel,
      dt_rank: config.dtRank,
    },
    rms_norm: config.norm === 'rms',
    residual_in_fp32: true,
    fused_add_norm: true,
    pad_vocab_size_multiple: 1,
    tie_embeddings: config.tied,
  };
  // The official reader knows no such key and has 1e-5 built in: a model with another eps must not load there silently.
  return config.normEps === DEFAULT_NORM_EPS ? json : { ...json, norm_epsilon: config.normEps };
}

function toHf(config: MambaConfig): Record<string, unknown> {
  const expand = config.dInner / config.dModel;
  const hint = 'Write the "mambabyte" dialect instead.';
  if (config.norm !== 'rms') {
    throw new ModelFormatError(expected('hf config', 'the model', 'have RMSNorm', 'LayerNorm with bias', hint));
  }
  if (!Number.isInteger(expand)) {
    throw new ModelFormatError(expected('hf config', 'dInner / dModel', 'be an integer', String(expand), hint));
  }
  return {
    architectures: ['MambaForCausalLM'],
    model_type: 'mamba',
    vocab_size: config.vocab,
    hidden_size: config.dModel,
    num_hidden_layers: config.layers,
    state_size: config.dState,
    conv_kernel: config.dConv,
    expand,
    intermediate_size: config.dInner,
    time_step_rank: config.dtRank,
    layer_norm_epsilon: config.normEps,
    hidden_act: 'silu',
    use_bias: false,
    use_conv_bias: true,
    residual_in_fp32: true,
    tie_word_embeddings: config.tied,
  };
}
