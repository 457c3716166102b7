// Reads a tokenizer.json of Hugging Face's tokenizers and refuses what byte-level BPE cannot reproduce for all bytes.
import { describe, expected, listNames, ModelFormatError } from '../errors.ts';
import { duplicateKey, isObject } from '../weights/strict-json.ts';
import { bytesOfName, nameOfBytes } from './byte-alphabet.ts';
import { compilePattern, GPT2_PATTERN, TRAINING_PATTERN } from './pieces.ts';

export interface TokenizerFile {
  /** Name of a token in the byte alphabet → id. */
  vocab: Record<string, number>;
  merges: [string, string][];
  /** Take a word that is a token as it is, without merging. */
  ignoreMerges: boolean;
  /** Each cuts the pieces of the one before. */
  patterns: RegExp[];
  /** True where the pieces are those that trainTokenizer cuts. */
  trained: boolean;
  /** Tokens that are found in the text before it is cut, by their text. */
  added: Map<string, number>;
  /** Bytes by id; empty for special tokens and for ids that no token has. */
  bytes: Uint8Array[];
}

type Json = Record<string, unknown>;

const MAX_ID = 1 << 24;

/** @throws ModelFormatError saying what is not as it must be */
export function parseTokenizerFile(where: string, text: string): TokenizerFile {
  const root = parseObject(where, text);
  checkNormalizer(where, root.normalizer);
  const model = object(where, 'model', root.model);
  if (model.type !== 'BPE') refuse(where, 'model.type', 'be "BPE"', model.type);
  for (const key of ['dropout', 'continuing_subword_prefix', 'end_of_word_suffix', 'byte_fallback']) {
    if (model[key]) refuse(where, `model.${key}`, 'be off', model[key]);
  }
  const vocab = readVocab(where, model.vocab);
  const { patterns, trained } = readPatterns(where, root.pre_tokenizer);
  const { added, special } = readAdded(where, root.added_tokens ?? []);
  return {
    vocab,
    merges: readMerges(where, model.merges, vocab),
    ignoreMerges: model.ignore_merges === true,
    patterns,
    trained,
    added,
    bytes: bytesById(where, vocab, added, special),
  };
}

function parseObject(where: string, text: string): Json {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new ModelFormatError(expected(where, 'the file', 'be JSON', describe((cause as Error).message)), { cause });
  }
  const twice = duplicateKey(text);
  if (twice !== undefined) throw new ModelFormatError(expected(where, 'keys', 'be unique', `${describe(twice)} twice`));
  return object(where, 'the file', value);
}

function refuse(where: string, what: string, shouldBe: string, got: unknown, hint?: string): never {
  throw new ModelFormatError(expected(where, what, shouldBe, describe(got), hint));
}

function object(where: string, what: string, value: unknown): Json {
  return isObject(value) ? value : refuse(where, what, 'be an object', value);
}

function list(where: string, what: string, value: unknown): unknown[] {
  return Array.isArray(value) ? value : refuse(where, what, 'be a list', value);
}

/** NFC is passed over: text keeps its bytes, and text in NFC, as nearly all is, gets the ids that it would get. */
function checkNormalizer(where: string, value: unknown): void {
  if (value === undefined || value === null) return;
  const { type } = object(where, 'normalizer', value);
  if (type !== 'NFC') refuse(where, 'normalizer', 'be null or NFC', type, 'It would change bytes.');
}

function readVocab(where: string, value: unknown): Record<string, number> {
  const vocab = object(where, 'model.vocab', value) as Record<string, number>;
  const seen = new Set<number>();
  for (const [name, id] of Object.entries(vocab)) {
    checkId(where, name, id);
    if (seen.has(id)) refuse(where, `the id of ${describe(name)}`, 'belong to one token', id);
    seen.add(id);
  }
  const missing = Array.from({ length: 256 }, (_, byte) => byte).filter(
    (byte) => !Object.hasOwn(vocab, nameOfBytes(Uint8Array.of(byte))),
  );
  if (missing.length > 0) {
    const got = `none for ${missing.length}: ${listNames(missing.map(String))}`;
    const hint = 'It cannot write all bytes.';
    throw new ModelFormatError(expected(where, 'model.vocab', 'hold a token for each of the 256 bytes', got, hint));
  }
  return vocab;
}

function checkId(where: string, name: string, id: unknown): void {
  if (Number.isInteger(id) && (id as number) >= 0 && (id as number) < MAX_ID) return;
  refuse(where, `the id of ${describe(name)}`, `be an integer from 0 to ${MAX_ID - 1}`, id);
}

function readMerges(where: string, value: unknown, vocab: Record<string, number>): [string, string][] {
  return list(where, 'model.merges', value).map((merge, i) => {
    const pair: unknown[] = typeof merge === 'string' ? merge.split(' ') : Array.isArray(merge) ? merge : [];
    const [left, right] = pair;
    if (pair.length !== 2 || typeof left !== 'string' || typeof right !== 'string') {
      return refuse(where, `merge ${i}`, 'be two tokens', merge);
    }
    for (const name of [left, right, left + right]) {
      if (!Object.hasOwn(vocab, name)) refuse(where, `merge ${i}`, 'join tokens to a token of the vocabulary', name);
    }
    return [left, right];
  });
}

function readPatterns(where: string, value: unknown): { patterns: RegExp[]; trained: boolean } {
  const stages = flatten(where, value);
  const last = stages.pop();
  if (last?.type !== 'ByteLevel') refuse(where, 'pre_tokenizer', 'end in ByteLevel', last?.type);
  if (last?.add_prefix_space) refuse(where, 'ByteLevel.add_prefix_space', 'be false', last.add_prefix_space);
  const sources = stages.map((stage) => splitPattern(where, stage));
  const patterns = sources.map((source) => compile(where, source));
  const ownRegex = (last?.use_regex ?? true) === true;
  const [only] = sources;
  const trained = !ownRegex && sources.length === 1 && !!only && 'Regex' in only && only.Regex === TRAINING_PATTERN;
  return { patterns: ownRegex ? [...patterns, GPT2_PATTERN] : patterns, trained };
}

function flatten(where: string, value: unknown): Json[] {
  const stage = object(where, 'pre_tokenizer', value);
  if (stage.type !== 'Sequence') return [stage];
  return list(where, 'pre_tokenizer.pretokenizers', stage.pretokenizers).flatMap((part) => flatten(where, part));
}

function splitPattern(where: string, stage: Json): { Regex: string } | { String: string } {
  const { type, behavior, invert, pattern } = stage;
  if (type !== 'Split') refuse(where, 'a pre_tokenizer before ByteLevel', 'be Split', type);
  if (behavior !== 'Isolated') refuse(where, 'Split.behavior', 'be "Isolated"', behavior);
  if (invert) refuse(where, 'Split.invert', 'be false', invert);
  const source = object(where, 'Split.pattern', pattern);
  if (typeof source.Regex === 'string') return { Regex: source.Regex };
  if (typeof source.String === 'string') return { String: source.String };
  return refuse(where, 'Split.pattern', 'be a Regex or a String', pattern);
}

function compile(where: string, source: { Regex: string } | { String: string }): RegExp {
  try {
    return compilePattern(source);
  } catch (cause) {
    const got = describe((cause as Error).message);
    throw new ModelFormatError(expected(where, 'Split.pattern', 'be an expression that JavaScript has', got), {
      cause,
    });
  }
}

interface AddedTokens {
  added: Map<string, number>;
  special: Map<string, number>;
}

function readAdded(where: string, value: unknown): AddedTokens {
  const added = new Map<string, number>();
  const special = new Map<string, number>();
  for (const item of list(where, 'added_tokens', value)) {
    const token = object(where, 'an added token', item);
    const { content, id } = token;
    if (typeof content !== 'string' || content === '') {
      return refuse(where, 'content of an added token', 'be text', content);
    }
    checkId(where, content, id);
    if (token.special === true) {
      special.set(content, id as number);
      continue;
    }
    for (const key of ['single_word', 'lstrip', 'rstrip']) {
      if (token[key]) refuse(where, `${key} of the added token ${describe(content)}`, 'be false', token[key]);
    }
    added.set(content, id as number);
  }
  return { added, special };
}

function bytesById(
  where: string,
  vocab: Record<string, number>,
  added: AddedTokens['added'],
  special: AddedTokens['special'],
) {
  const ids = [...Object.values(vocab), ...added.values(), ...special.values()];
  const size = ids.reduce((a, b) => Math.max(a, b), 0) + 1;
  const bytes = new Array<Uint8Array>(size).fill(new Uint8Array(0));
  for (const [name, id] of Object.entries(vocab)) {
    if (added.has(name) || special.has(name)) continue;
    bytes[id] = bytesOfName(name) ?? refuse(where, 'a token', 'be written in the byte alphabet of GPT-2', name);
  }
  for (const [content, id] of added) bytes[id] = Buffer.from(content);
  return bytes;
}
