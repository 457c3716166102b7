// Checkpoints: what model a set of tensors is, in every naming and config dialect, and what is said when they disagree.
import {
  closeSync,
  ftruncateSync,
  openSync,
  readFileSync,
  renameSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { CheckpointError, ModelFormatError } from '../lib/errors.ts';
import { architectureOf, type ModelConfig } from '../lib/models/architectures.ts';
import { completeConfig, type MambaConfig } from '../lib/models/config.ts';
import { mambaParams } from '../lib/models/mamba.ts';
import { PRESETS, presetConfig } from '../lib/models/presets.ts';
import { configToJson, openCheckpoint, saveCheckpoint } from '../lib/weights/checkpoint-files.ts';
import { fromFloat32 } from '../lib/weights/dtypes.ts';
import { inferConfig } from '../lib/weights/infer.ts';
import { canonicalName, type NameDialect, nameIn } from '../lib/weights/names.ts';
import { type TensorSource, writeSafetensors } from '../lib/weights/safetensors.ts';
import { readTensorBytes, type StoredTensor } from '../lib/weights/stored-tensor.ts';
import { fileOf, folder } from './support/folder.ts';
import { stateDict, torchFile } from './support/torch-writer.ts';

const BYTE = completeConfig({ layers: 2, dModel: 8, dState: 3, dtRank: 2 });
const SUBWORD = completeConfig({ layers: 2, dModel: 8, vocab: 40, norm: 'rms', tied: true });

/** Tensors of a model, each filled with its own number so that no two are alike. */
function weights(config: MambaConfig, dtype: 'F32' | 'BF16' = 'F32'): TensorSource[] {
  return mambaParams(config).map(({ name, shape }, i) => {
    const count = shape.reduce((a, b) => a * b, 1);
    return { name, dtype, shape, data: fromFloat32(new Float32Array(count).fill(i + 1), dtype) };
  });
}

/** The same without data: a sparse file of zeros in which only the head has a byte of its own. */
function headers(config: ModelConfig): Map<string, StoredTensor> {
  const file = fileOf('sparse', '');
  const handle = openSync(file, 'r+');
  let end = 64;
  const tensors = architectureOf(config)
    .params(config)
    .map(({ name, shape }): [string, StoredTensor] => {
      const bytes = shape.reduce((a, b) => a * b, 4);
      const offset = end;
      end += bytes;
      if (name === 'lm_head.weight') writeSync(handle, Uint8Array.of(1), 0, 1, offset);
      return [name, { name, dtype: 'F32', shape: [...shape], file, offset, bytes }];
    });
  ftruncateSync(handle, end);
  closeSync(handle);
  return new Map(tensors);
}

interface Written {
  rename?: (name: string) => string;
  config?: object | string;
  drop?: RegExp;
  add?: TensorSource[];
}

/** A folder with model.safetensors and, if given, config.json. */
async function written(tensors: TensorSource[], { rename = (n) => n, config, drop, add = [] }: Written = {}) {
  const path = folder();
  const kept = tensors.filter(({ name }) => !drop?.test(name)).map((t) => ({ ...t, name: rename(t.name) }));
  await writeSafetensors(join(path, 'model.safetensors'), [...kept, ...add]);
  if (config) writeFileSync(join(path, 'config.json'), typeof config === 'string' ? config : JSON.stringify(config));
  return path;
}

/** What the tensors of a model do not tell, but its config.json must. */
function untold(config: ModelConfig): Record<string, unknown> | undefined {
  if (config.architecture === 'transformer') return { num_attention_heads: config.heads };
  if (config.architecture === 'gated-s4d') return { architecture: 'gated-s4d' };
  if (config.architecture === 'megabyte') {
    const [local, global] = [config.heads, config.globalHeads].map((heads) => ({ num_attention_heads: heads }));
    return { architecture: 'megabyte', global, local };
  }
  if (config.architecture === 'perceiver-ar') {
    return { architecture: 'perceiver-ar', num_attention_heads: config.heads, num_latents: config.latents };
  }
  return undefined;
}

for (const preset of Object.keys(PRESETS)) {
  const config = presetConfig(preset);
  const json = untold(config);
  test(`the configuration of ${preset} follows from its tensors${json ? ` and ${Object.keys(json)}` : ' alone'}`, async (t) => {
    t.deepEqual((await inferConfig('model', headers(config), json)).config, config);
  });
}

const byteTiny = {
  layers: 2,
  dModel: 32,
  dInner: 64,
  dState: 16,
  dConv: 4,
  dtRank: 2,
  vocab: 256,
  norm: 'layer',
  tied: false,
};
const hfTiny = { ...byteTiny, layers: 3, dState: 8, norm: 'rms', tied: true };

for (const [name, config, dialect] of [
  ['byte-tiny', byteTiny, 'state-spaces'],
  ['byte-tiny-bin', byteTiny, 'state-spaces'],
  ['byte-tiny-module', byteTiny, 'state-spaces'],
  ['hf-tiny', hfTiny, 'hf'],
  ['hf-tiny-48', { ...hfTiny, vocab: 48 }, 'hf'],
] as const) {
  test(`the checkpoint ${name}, written by PyTorch, is opened without a warning`, async (t) => {
    const opened = await openCheckpoint(`test/fixtures/${name}`);
    t.deepEqual(opened.config, { ...config, normEps: 1e-5 });
    t.is(opened.dialect, dialect);
    t.deepEqual(opened.warnings, []);
  });
}

test('one model in three files has the same bytes in each', async (t) => {
  const [first, ...others] = await Promise.all(
    ['', '-bin', '-module'].map((kind) => openCheckpoint(`test/fixtures/byte-tiny${kind}`)),
  );
  for (const [name, tensor] of first?.tensors ?? []) {
    const bytes = await readTensorBytes(tensor);
    for (const { tensors } of others) t.deepEqual(await readTensorBytes(tensors.get(name) as StoredTensor), bytes);
  }
  t.is(first?.tensors.size, 26);
});

const RENAMES: [NameDialect, string, (name: string) => string][] = [
  ['state-spaces', 'of state-spaces/mamba', (name) => name],
  ['hf', 'of transformers', (name) => nameIn('hf', name)],
  ['jxiw', 'of jxiw/MambaByte', (name) => nameIn('jxiw', name)],
  ['state-spaces', 'behind module.', (name) => `module.${name}`],
  ['jxiw', 'behind module.module.', (name) => `module.module.${nameIn('jxiw', name)}`],
  ['state-spaces', 'behind module._orig_mod.', (name) => `module._orig_mod.${name}`],
];

for (const [dialect, title, rename] of RENAMES) {
  test(`names ${title} become the official ones`, async (t) => {
    const opened = await openCheckpoint(await written(weights(BYTE), { rename }));
    t.is(opened.dialect, dialect);
    t.deepEqual(opened.config, BYTE);
    t.deepEqual(
      [...opened.tensors.keys()].sort(),
      mambaParams(BYTE)
        .map(({ name }) => name)
        .sort(),
    );
    for (const [name, tensor] of opened.tensors) t.is(tensor.name, name);
  });
}

test('the names of the other dialects are those that their classes give', (t) => {
  t.is(nameIn('hf', 'backbone.embedding.weight'), 'backbone.embeddings.weight');
  t.is(nameIn('hf', 'backbone.layers.3.mixer.A_log'), 'backbone.layers.3.mixer.A_log');
  t.is(nameIn('jxiw', 'backbone.embedding.weight'), 'mambabyte.token_embedding.weight');
  t.is(nameIn('jxiw', 'backbone.norm_f.bias'), 'mambabyte.final_norm.bias');
  t.is(nameIn('jxiw', 'backbone.layers.3.norm.bias'), 'mambabyte.layers.3.norm.bias');
  t.is(nameIn('jxiw', 'lm_head.weight'), 'lm_head.weight');
  for (const { name } of mambaParams(BYTE)) {
    for (const dialect of ['hf', 'jxiw', 'state-spaces'] as const) {
      t.is(canonicalName(`module.${nameIn(dialect, name)}`).name, name);
    }
  }
});

test('two stored names of one tensor are refused', async (t) => {
  const twin = { name: 'backbone.embeddings.weight', dtype: 'F32', shape: [1], data: new Uint8Array(4) } as const;
  const path = await written(weights(BYTE), { add: [twin] });
  const message = /backbone\.embedding\.weight to be stored once, got .*embeddings\.weight/;
  await t.throwsAsync(openCheckpoint(path), { instanceOf: ModelFormatError, message });
});

for (const name of ['pytorch_model.bin', 'step-1000.pt', 'last.pth']) {
  test(`a checkpoint of torch.save named ${name} is opened, alone and through its folder`, async (t) => {
    const tensors = weights(BYTE).map(({ name: key, shape, data }) => {
      return [`module.${key}`, { dtype: 'F32', shape, data: data as Uint8Array }] as const;
    });
    const path = folder();
    writeFileSync(join(path, name), torchFile(stateDict(Object.fromEntries(tensors))));
    for (const target of [path, join(path, name)]) {
      const opened = await openCheckpoint(target);
      t.deepEqual(opened.config, BYTE);
      t.is(opened.file, join(path, name));
    }
  });
}

test('model.safetensors is taken before pytorch_model.bin; two files of no usual name are refused', async (t) => {
  const path = await written(weights(BYTE));
  writeFileSync(join(path, 'pytorch_model.bin'), 'not looked at');
  t.is((await openCheckpoint(path)).file, join(path, 'model.safetensors'));
  renameSync(join(path, 'model.safetensors'), join(path, 'a.safetensors'));
  renameSync(join(path, 'pytorch_model.bin'), join(path, 'b.bin'));
  await t.throwsAsync(openCheckpoint(path), {
    instanceOf: ModelFormatError,
    message: /got a\.safetensors, b\.bin\. Name one/,
  });
});

test('a path that holds no checkpoint is refused', async (t) => {
  const refused = (path: string, message: RegExp) => {
    return t.throwsAsync(openCheckpoint(path), { instanceOf: ModelFormatError, message });
  };
  await refused(join(folder(), 'none'), /readable, got ENOENT/);
  await refused(folder(), /hold one file of weights, got none/);
  const training = folder();
  symlinkSync('step-00000007', join(training, 'latest'));
  await refused(training, /got none\. Name .*latest\./);
  symlinkSync('step-00000003', join(training, 'best'));
  await refused(training, /got none\. Name .*best\./);
  const path = join(folder(), 'model.gguf');
  writeFileSync(path, 'GGUF');
  await refused(path, /to be a folder, \.safetensors.*got "model\.gguf"/);
});

/** Two shards and their index; `edit` changes the index. */
async function sharded(edit: (map: Record<string, string>) => void = () => {}): Promise<string> {
  const path = folder();
  const tensors = weights(BYTE);
  const map: Record<string, string> = {};
  for (const [i, part] of [tensors.slice(0, 10), tensors.slice(10)].entries()) {
    const shard = `model-0000${i + 1}-of-00002.safetensors`;
    await writeSafetensors(join(path, shard), part);
    for (const { name } of part) map[name] = shard;
  }
  edit(map);
  writeFileSync(join(path, 'model.safetensors.index.json'), JSON.stringify({ metadata: {}, weight_map: map }));
  return path;
}

test('a sharded checkpoint is opened through its folder or its index', async (t) => {
  const path = await sharded();
  for (const target of [path, join(path, 'model.safetensors.index.json')]) {
    const { tensors, config } = await openCheckpoint(target);
    t.deepEqual(config, BYTE);
    t.is(new Set([...tensors.values()].map(({ file }) => file)).size, 2);
  }
});

test('a sharded checkpoint of torch.save is opened', async (t) => {
  const path = folder();
  const map: Record<string, string> = {};
  for (const [i, { name, shape, data }] of weights(BYTE).entries()) {
    const shard = `pytorch_model-${i}.bin`;
    writeFileSync(
      join(path, shard),
      torchFile(stateDict({ [name]: { dtype: 'F32', shape, data: data as Uint8Array } })),
    );
    map[name] = shard;
  }
  writeFileSync(join(path, 'pytorch_model.bin.index.json'), JSON.stringify({ weight_map: map }));
  t.deepEqual((await openCheckpoint(path)).config, BYTE);
});

const BAD_SHARDS: [string, (map: Record<string, string>) => void, RegExp][] = [
  [
    'a tensor that its shard lacks',
    (m) => {
      m.ghost = 'model-00001-of-00002.safetensors';
    },
    /got no "ghost" in model-00001/,
  ],
  [
    'a tensor that is listed for another shard',
    (m) => {
      m['lm_head.weight'] = 'model-00001-of-00002.safetensors';
    },
    /"lm_head\.weight" to be listed for this shard, got one that the index puts in/,
  ],
  [
    'a tensor that is not listed',
    (m) => {
      delete m['lm_head.weight'];
    },
    /"lm_head\.weight".*does not list/,
  ],
  [
    'a shard that is not there',
    (m) => {
      m['lm_head.weight'] = 'model-00003-of-00002.safetensors';
    },
    /model-00003-of-00002\.safetensors: .*ENOENT|does not list|puts in/,
  ],
  [
    'a shard outside the folder',
    (m) => {
      m['lm_head.weight'] = '../other.safetensors';
    },
    /a file beside the index, got "\.\.\/other\.safetensors"/,
  ],
  [
    'a shard in another folder',
    (m) => {
      m['lm_head.weight'] = 'sub/other.safetensors';
    },
    /a file beside the index, got "sub\/other\.safetensors"/,
  ],
  [
    'a shard that is no name',
    (m) => {
      m['lm_head.weight'] = 3 as unknown as string;
    },
    /beside the index, got 3/,
  ],
];

for (const [title, edit, message] of BAD_SHARDS) {
  test(`an index with ${title} is refused`, async (t) => {
    await t.throwsAsync(openCheckpoint(await sharded(edit)), { instanceOf: ModelFormatError, message });
  });
}

test('a missing shard is named', async (t) => {
  const path = await sharded();
  unlinkSync(join(path, 'model-00002-of-00002.safetensors'));
  await t.throwsAsync(openCheckpoint(path), {
    instanceOf: ModelFormatError,
    message: /model-00002-of-00002\.safetensors: .*ENOENT/,
  });
});

test('a head that equals the embedding is tied, whatever the file stores; one that differs is kept', async (t) => {
  const tensors = weights(SUBWORD);
  const embedding = tensors[0] as TensorSource;
  const same = { ...embedding, name: 'lm_head.weight' };
  const other = { ...same, data: fromFloat32(new Float32Array(320).fill(-1), 'F32') };
  for (const add of [[], [same]]) {
    const { config, tensors: opened } = await openCheckpoint(await written(tensors, { add }));
    t.true(config.tied);
    t.false(opened.has('lm_head.weight'));
  }
  t.false(
    (await openCheckpoint(await written(tensors, { add: [same], config: { d_model: 8, tie_embeddings: false } })))
      .config.tied,
  );
  for (const config of [
    { d_model: 8, tie_embeddings: true },
    { hidden_size: 8, tie_word_embeddings: true },
  ]) {
    const opened = await openCheckpoint(await written(tensors, { add: [other], config }));
    t.false(opened.config.tied);
    t.true(opened.tensors.has('lm_head.weight'));
    t.regex(
      opened.warnings.join(),
      /says tie_\w+: true, but lm_head\.weight differs from the embedding; both are kept/,
    );
  }
});

test('a config that says rms_norm over LayerNorm tensors is overruled with a warning', async (t) => {
  const { config, warnings } = await openCheckpoint(
    await written(weights(BYTE), { config: { d_model: 8, rms_norm: true } }),
  );
  t.is((config as MambaConfig).norm, 'layer');
  t.regex(warnings.join(), /says rms_norm: true, but the norms have biases; LayerNorm is used/);
});

const CONTRADICTIONS: [object, RegExp][] = [
  [{ d_model: 16 }, /d_model 16 but 8 in the tensors/],
  [{ d_model: 8, n_layer: 3, vocab_size: 300 }, /n_layer 3 but 2, vocab_size 300 \(padded 304\) but 256/],
  [
    { d_model: 8, ssm_cfg: { d_state: 16, d_conv: 3, expand: 3, dt_rank: 1 } },
    /expand x d_model 24 but 16, d_state 16 but 3, d_conv 3 but 4, dt_rank 1 but 2/,
  ],
  [
    { hidden_size: 8, num_hidden_layers: 9, intermediate_size: 32 },
    /num_hidden_layers 9 but 2, intermediate_size 32 but 16/,
  ],
  [
    { hidden_size: 8, state_size: 4, conv_kernel: 2, time_step_rank: 7 },
    /state_size 4 but 3, conv_kernel 2 but 4, time_step_rank 7 but 2/,
  ],
  [{ d_model: 8.5 }, /d_model to be a positive integer, got 8\.5/],
  [{ d_model: 8, rms_norm: 'yes' }, /rms_norm to be true or false, got "yes"/],
  [{ d_model: 8, ssm_cfg: { layer: 'Mamba2' } }, /Mamba-2 is not supported/],
  [{ model_type: 'mamba2', hidden_size: 8 }, /Mamba-2 is not supported/],
];

for (const [config, message] of CONTRADICTIONS) {
  test(`a config that contradicts the tensors is refused: ${JSON.stringify(config)}`, async (t) => {
    await t.throwsAsync(openCheckpoint(await written(weights(BYTE), { config })), {
      instanceOf: ModelFormatError,
      message,
    });
  });
}

const AGREEING: [string, object, Partial<MambaConfig>][] = [
  [
    'every key of state-spaces',
    {
      d_model: 8,
      n_layer: 2,
      vocab_size: 36,
      pad_vocab_size_multiple: 8,
      ssm_cfg: {},
      rms_norm: true,
      tie_embeddings: true,
    },
    {},
  ],
  ['the default padding', { d_model: 8, vocab_size: 35 }, {}],
  ['an eps', { d_model: 8, norm_epsilon: 1e-6 }, { normEps: 1e-6 }],
  ['a rank left to the reader', { d_model: 8, ssm_cfg: { dt_rank: 'auto', expand: 2 } }, {}],
  ['every key of transformers', { ...configToJson(SUBWORD, 'hf'), layer_norm_epsilon: 1e-4 }, { normEps: 1e-4 }],
  [
    'both dialects in one file, where theirs decides',
    { hidden_size: 8, vocab_size: 40, d_model: 99, intermediate_size: 7, expand: 2 },
    {},
  ],
];

for (const [title, config, changed] of AGREEING) {
  test(`a config that agrees is accepted: ${title}`, async (t) => {
    const opened = await openCheckpoint(await written(weights(SUBWORD), { config }));
    t.deepEqual(opened.config, { ...SUBWORD, ...changed });
    t.deepEqual(opened.warnings, []);
    t.deepEqual(opened.configJson, JSON.parse(JSON.stringify(config)));
  });
}

test('a config of neither dialect is ignored with a warning; one that is no JSON is refused', async (t) => {
  const { warnings } = await openCheckpoint(await written(weights(BYTE), { config: { name: 'app' } }));
  t.regex(warnings.join(), /neither d_model nor hidden_size and was ignored/);
  const refused = async (config: string, message: RegExp) => {
    await t.throwsAsync(openCheckpoint(await written(weights(BYTE), { config })), {
      instanceOf: ModelFormatError,
      message,
    });
  };
  await refused('{', /config\.json: expected the file to be readable JSON/);
  await refused('[]', /config\.json: expected the JSON to be an object/);
  await refused('{"d_model": 8, "d_model": 9}', /"d_model" twice/);
});

test('a head or a bias that the config requires and the tensors lack is a contradiction', async (t) => {
  const refused = async (config: object, message: RegExp) => {
    await t.throwsAsync(openCheckpoint(await written(weights(SUBWORD), { config })), {
      instanceOf: ModelFormatError,
      message,
    });
  };
  await refused({ d_model: 8, tie_embeddings: false }, /tie_embeddings: false in config\.json and no lm_head\.weight/);
  await refused({ d_model: 8, rms_norm: false }, /rms_norm: false in config\.json and no backbone\.norm_f\.bias/);
});

test('missing, unknown, misshaped and wrongly typed tensors are all named', async (t) => {
  const tensors = headers(BYTE);
  tensors.delete('backbone.layers.1.mixer.D');
  tensors.delete('backbone.layers.0.norm.bias');
  const odd = { name: 'odd', dtype: 'F32', shape: [1], file: 'model', offset: 0, bytes: 4 } as const;
  tensors.set('odd', { ...odd, shape: [1] });
  Object.assign(tensors.get('backbone.layers.1.mixer.x_proj.weight') ?? {}, { shape: [9, 16] });
  Object.assign(tensors.get('backbone.layers.0.mixer.A_log') ?? {}, { dtype: 'I8' });
  Object.assign(tensors.get('backbone.norm_f.weight') ?? {}, { dtype: 'I64' });
  const error = await t.throwsAsync(inferConfig('model', tensors), { instanceOf: ModelFormatError });
  t.is(
    error?.message,
    'model: expected the tensors to be those of a Mamba with 2 layers of 8, LayerNorm, got missing ' +
      'backbone.layers.0.norm.bias, backbone.layers.1.mixer.D, backbone.layers.0.mixer.A_log.scale; unknown odd; ' +
      'backbone.layers.0.mixer.A_log of dtype I8, backbone.layers.1.mixer.x_proj.weight [9, 16] instead of [8, 16], ' +
      'backbone.norm_f.weight of dtype I64.',
  );
});

test('many missing tensors are counted after the first eight', async (t) => {
  const tensors = headers(completeConfig({ layers: 8, dModel: 8 }));
  for (const name of [...tensors.keys()]) if (name.startsWith('backbone.layers.5.')) tensors.delete(name);
  await t.throwsAsync(inferConfig('model', tensors), {
    message: /missing (backbone\.layers\.5\.\S+, ){7}\S+ and 3 more/,
  });
});

test('tensors of no Mamba are refused: none, no layers, a lying layer number, empty shapes', async (t) => {
  const refused = (tensors: Map<string, StoredTensor>, message: RegExp) => {
    return t.throwsAsync(inferConfig('model', tensors), { instanceOf: ModelFormatError, message });
  };
  await refused(new Map(), /none named backbone\.layers\.0/);
  const far = headers(BYTE);
  far.set('backbone.layers.999999999.mixer.D', { ...(far.get('backbone.norm_f.weight') as StoredTensor) });
  await refused(far, /layer numbers to be under/);
  const empty = headers(BYTE);
  Object.assign(empty.get('backbone.layers.0.mixer.A_log') ?? {}, { shape: [16, 0] });
  await refused(empty, /A_log to have 2 dimensions, none of them 0, got \[16, 0\]/);
  const flat = headers(BYTE);
  Object.assign(flat.get('backbone.embedding.weight') ?? {}, { shape: [2048] });
  await refused(flat, /embedding\.weight to have 2 dimensions/);
  const wide = headers(BYTE);
  for (const n of [0, 1]) Object.assign(wide.get(`backbone.layers.${n}.mixer.A_log`) ?? {}, { shape: [16, 512] });
  await refused(wide, /supported sizes, got config: expected dState/);
});

test('Mamba-2 is refused by name', async (t) => {
  const message = /Mamba \(version 1\), got .* which only Mamba-2 has\. Mamba-2 is not supported/;
  const vector = headers(BYTE);
  Object.assign(vector.get('backbone.layers.0.mixer.A_log') ?? {}, { shape: [16] });
  await t.throwsAsync(inferConfig('model', vector), { instanceOf: ModelFormatError, message });
  const gated = headers(BYTE);
  gated.set('backbone.layers.0.mixer.norm.weight', gated.get('backbone.norm_f.weight') as StoredTensor);
  await t.throwsAsync(inferConfig('model', gated), { instanceOf: ModelFormatError, message });
});

test('int8 matrices come with one scale per row', async (t) => {
  const tensors = weights(BYTE).flatMap((tensor): TensorSource[] => {
    if (!/(proj|embedding|head)\.weight$/.test(tensor.name)) return [tensor];
    const [rows = 0, columns = 0] = tensor.shape;
    const scale = fromFloat32(new Float32Array(rows), 'F32');
    return [
      {
        name: tensor.name,
        dtype: 'I8',
        shape: tensor.shape,
        data: new Uint8Array(rows * columns).fill(tensor.name.length),
      },
      { name: `${tensor.name}.scale`, dtype: 'F32', shape: [rows], data: scale },
    ];
  });
  const { config, tensors: opened } = await openCheckpoint(await written(tensors));
  t.deepEqual(config, BYTE);
  t.is(opened.get('backbone.layers.0.mixer.in_proj.weight.scale')?.shape[0], 32);
  const without = await written(tensors, { drop: /in_proj\.weight\.scale/ });
  await t.throwsAsync(openCheckpoint(without), { message: /missing \S+in_proj\.weight\.scale/ });
  const hf = saveCheckpoint(folder(), SUBWORD, tensors, { dialect: 'hf' });
  await t.throwsAsync(hf, { instanceOf: ModelFormatError, message: /floating-point, got int8/ });
});

for (const [title, config, dialect] of [
  ['a byte model in our dialect', { ...BYTE, normEps: 1e-6 }, 'mambabyte'],
  ['a subword model in our dialect', SUBWORD, 'mambabyte'],
  ['a subword model for transformers', SUBWORD, 'hf'],
  ['an untied RMSNorm model for transformers', { ...SUBWORD, tied: false, normEps: 1e-6 }, 'hf'],
] as const) {
  test(`what is saved is opened again: ${title}`, async (t) => {
    const path = join(folder(), 'made', 'here');
    const tensors = weights(config, 'BF16');
    await saveCheckpoint(path, config, tensors, { dialect, metadata: { made: 'by a test' } });
    const opened = await openCheckpoint(path);
    t.deepEqual(opened.config, config);
    t.deepEqual(opened.warnings, []);
    t.deepEqual(opened.metadata, { format: 'pt', made: 'by a test' });
    t.is(opened.dialect, dialect === 'hf' ? 'hf' : 'state-spaces');
    for (const { name, data } of tensors) {
      t.deepEqual(await readTensorBytes(opened.tensors.get(name) as StoredTensor), data as Uint8Array);
    }
  });
}

test('config.json for state-spaces has the keys of its dataclass and no other', (t) => {
  t.deepEqual(configToJson(BYTE, 'mambabyte'), {
    d_model: 8,
    n_layer: 2,
    vocab_size: 256,
    ssm_cfg: { d_state: 3, d_conv: 4, expand: 2, dt_rank: 2 },
    rms_norm: false,
    residual_in_fp32: true,
    fused_add_norm: true,
    pad_vocab_size_multiple: 1,
    tie_embeddings: false,
  });
});

test('transformers cannot hold a LayerNorm model or a fractional width: nothing is written', async (t) => {
  const path = join(folder(), 'new');
  for (const [config, message] of [
    [BYTE, /have RMSNorm, got LayerNorm with bias\. Write the "mambabyte" dialect/],
    [{ ...SUBWORD, dInner: 12 }, /be an integer, got 1\.5/],
  ] as const) {
    await t.throwsAsync(saveCheckpoint(path, config, weights(config), { dialect: 'hf' }), {
      instanceOf: ModelFormatError,
      message,
    });
  }
  await t.throwsAsync(openCheckpoint(path), { message: /ENOENT/ });
});

test('a folder that cannot be made is a CheckpointError', async (t) => {
  const file = join(folder(), 'file');
  writeFileSync(file, 'x');
  await t.throwsAsync(saveCheckpoint(join(file, 'sub'), BYTE, weights(BYTE)), {
    instanceOf: CheckpointError,
    message: /ENOTDIR/,
  });
  t.is(readFileSync(file, 'utf8'), 'x');
});
