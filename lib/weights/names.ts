// Tensor names of published checkpoints → the official ones of state-spaces/mamba, one table per source, and back.
// Sources: state-spaces/mamba mixer_seq_simple.py; transformers modeling_mamba.py; jxiw/MambaByte src/mambabyte.
import { expected, ModelFormatError } from '../errors.ts';
import type { StoredTensor } from './stored-tensor.ts';

/** Whose names a file uses. 'state-spaces' are the canonical ones, used in this package and in its files. */
export type NameDialect = 'state-spaces' | 'hf' | 'jxiw';

/** [canonical prefix, prefix of the dialect], the more special first. */
const PREFIXES: Record<NameDialect, readonly (readonly [string, string])[]> = {
  'state-spaces': [],
  hf: [
    ['backbone.embedding.', 'backbone.embeddings.'],
    ['model.', 'model.'], // of LlamaForCausalLM, whose names are the canonical ones of a Transformer
  ],
  jxiw: [
    ['backbone.embedding.', 'mambabyte.token_embedding.'],
    ['backbone.norm_f.', 'mambabyte.final_norm.'],
    ['backbone.', 'mambabyte.'],
  ],
};

/** What wrappers put in front of every name: distributed data parallel, torch.compile. */
const WRAPPERS = ['module.', '_orig_mod.'];

/** Buffers that older versions of transformers stored, though they follow from the configuration. */
const BUFFERS = /\.rotary_emb\.inv_freq$/;

/** The official name of a stored tensor, and the dialect that its own name shows, if it differs. */
export function canonicalName(stored: string): { name: string; dialect: NameDialect | undefined } {
  let name = stored;
  for (let found = true; found; ) {
    const wrapper = WRAPPERS.find((prefix) => name.startsWith(prefix));
    found = wrapper !== undefined;
    name = name.slice(wrapper?.length ?? 0);
  }
  for (const dialect of ['hf', 'jxiw'] as const) {
    for (const [ours, theirs] of PREFIXES[dialect]) {
      if (name.startsWith(theirs)) return { name: ours + name.slice(theirs.length), dialect };
    }
  }
  return { name, dialect: undefined };
}

/** The name that `dialect` gives a tensor of canonical name. */
export function nameIn(dialect: NameDialect, canonical: string): string {
  for (const [ours, theirs] of PREFIXES[dialect]) {
    if (canonical.startsWith(ours)) return theirs + canonical.slice(ours.length);
  }
  return canonical;
}

/**
 * The same tensors under their canonical names.
 *
 * @throws ModelFormatError if two stored names stand for one tensor.
 */
export function canonicalTensors(where: string, stored: ReadonlyMap<string, StoredTensor>) {
  const tensors = new Map<string, StoredTensor>();
  const storedNames = new Map<string, string>();
  let dialect: NameDialect = 'state-spaces';
  for (const [storedName, tensor] of stored) {
    if (BUFFERS.test(storedName)) continue;
    const { name, dialect: shown } = canonicalName(storedName);
    const other = storedNames.get(name);
    if (other !== undefined) {
      throw new ModelFormatError(expected(where, name, 'be stored once', `${other} and ${storedName}`));
    }
    if (shown !== undefined) dialect = shown;
    storedNames.set(name, storedName);
    tensors.set(name, { ...tensor, name });
  }
  return { tensors, dialect };
}
