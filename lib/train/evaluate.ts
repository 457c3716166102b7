// How well a model predicts text it was not trained on: bits per byte and word perplexity of held-out documents.
import { Dataset, type DatasetOptions, openDataset } from '../data/dataset.ts';
import { type ByteRange, stablePieces } from '../data/encode.ts';
import { WordCounter } from '../data/words.ts';
import { checkChoice, checkFunction, checkInteger, checkOptions, checkSignal, DataError, expected } from '../errors.ts';
import type { Model } from '../model.ts';
import { trainedRows } from '../models/architectures.ts';
import type { Session } from '../session.ts';
import { sequencesAtOnce } from '../session-plans.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';

/** A unit is a byte, or a token of a subword model. */
export interface EvaluateOptions {
  /**
   * - 'sliding' (default): windows of `context` units; the first of a document is scored in full, later ones only in
   *   their last `stride` units (Wang et al. 2024)
   * - 'stateful': the recurrent state is carried through the whole document
   */
  mode?: 'sliding' | 'stateful';
  /** Units a window reads; default 8192 bytes, or 2048 tokens. */
  context?: number;
  /**
   * Units from one window to the next; default half a context, or, of a model that learns from the end of a window alone, as
   * many as it learns from there, where that is less.
   */
  stride?: number;
  /**
   * Score about this many bytes: the middle of every document, in proportion to its length, for a subword model from one
   * character to another; default: everything.
   */
  maxBytes?: number;
  /** Between documents of one file, as for a data set; default "\n\f\n". */
  separator?: string | Uint8Array | null;
  signal?: AbortSignal;
  onProgress?: (progress: EvaluateProgress) => void;
}

export interface EvaluateProgress {
  /** Bytes scored so far. */
  bytes: number;
  /** Bytes to score. */
  total: number;
  bitsPerByte: number;
}

export interface EvaluateResult {
  /** Total -log p of all scored bytes. */
  nats: number;
  /** Bytes scored: all but the first unit of every document, which nothing predicts. */
  bytes: number;
  bitsPerByte: number;
  /** Runs of bytes that are not white space, as `wc -w` counts them. */
  words: number;
  /** exp(nats / words). */
  wordPerplexity: number;
  documents: number;
  seconds: number;
}

const KEYS = ['mode', 'context', 'stride', 'maxBytes', 'separator', 'signal', 'onProgress'];
/** Units read at once where the state is carried. */
const PIECE = 1 << 16;

/**
 * Scores documents, each from an empty state; only the windows that are read together are in memory.
 * @param data an opened data set, or a path or paths for one
 * @throws DataError when the data cannot be read; TypeError or RangeError naming a wrong option
 */
export async function evaluate(
  model: Model,
  data: Dataset | string | readonly string[],
  options: EvaluateOptions = {},
): Promise<EvaluateResult> {
  const where = 'evaluate';
  checkOptions(where, options, KEYS);
  model.assertOpen(where);
  const { signal, onProgress } = options;
  checkSignal(where, signal);
  if (onProgress !== undefined) checkFunction(where, 'onProgress', onProgress);
  const mode = checkChoice(where, 'mode', options.mode ?? 'sliding', ['sliding', 'stateful'] as const);
  const { tokenizer } = model;
  const context = checkInteger(where, 'context', options.context ?? (tokenizer ? 2048 : 8192), { min: 1 });
  const usual = Math.min(Math.ceil(context / 2), trainedRows(model.config, context));
  const stride = checkInteger(where, 'stride', options.stride ?? usual, { min: 1, max: context });
  if (options.maxBytes !== undefined) checkInteger(where, 'maxBytes', options.maxBytes, { min: 2 });
  if (!tokenizer && model.config.vocab !== 256) {
    const got = `${model.config.vocab} classes and no tokenizer`;
    throw new TypeError(expected(where, 'the model', 'read bytes (256 classes) or have a tokenizer', got));
  }
  const { separator } = options;
  const opened: DatasetOptions = { ...(separator !== undefined && { separator }), ...(signal && { signal }) };
  const set = data instanceof Dataset ? data : await openDataset(data, opened);
  try {
    const lengths = scoredLengths(set, options.maxBytes);
    const ranges = lengths.map((length, i) => middle(set, i, length, tokenizer !== undefined));
    return await scoreAll(model, set, { mode, context, stride, ranges }, signal, onProgress);
  } finally {
    if (set !== data) set.close();
  }
}

interface ScorePlan {
  mode: 'sliding' | 'stateful';
  context: number;
  stride: number;
  /** Bytes of each document that are read. */
  ranges: ByteRange[];
}

function scoredLengths(set: Dataset, maxBytes: number | undefined): number[] {
  const share = maxBytes === undefined ? 1 : Math.min(1, maxBytes / set.bytes);
  const lengths = Array.from({ length: set.documents }, (_, i) => Math.floor(set.length(i) * share));
  if (lengths.every((n) => n < 2)) lengths[0] = 2;
  return lengths;
}

/** `length` bytes in the middle of a document; `characters`: moved on to where characters of UTF-8 begin. */
function middle(set: Dataset, document: number, length: number, characters: boolean): ByteRange {
  const from = Math.floor((set.length(document) - length) / 2);
  const range = { from, to: from + length };
  if (!characters) return range;
  return { from: characterFrom(set, document, range.from), to: characterFrom(set, document, range.to) };
}

/** The first position from `at` on where no continuation byte of UTF-8 lies; `at` itself in bytes of other kinds. */
function characterFrom(set: Dataset, document: number, at: number): number {
  if (at === 0) return 0;
  const next = set.slice(document, at, Math.min(4, set.length(document) - at));
  const ahead = next.findIndex((byte) => (byte & 0xc0) !== 0x80);
  return ahead >= 0 ? at + ahead : next.length < 4 ? at + next.length : at;
}

/** What is scored of one document. */
interface ScoredText {
  units: number;
  /** Ids of units [from, to). */
  ids(from: number, to: number): Uint8Array | Int32Array;
}

function scoredText(set: Dataset, document: number, range: ByteRange, tokenizer: Tokenizer | undefined): ScoredText {
  if (!tokenizer) {
    const { from, to } = range;
    return { units: to - from, ids: (a, b) => set.slice(document, from + a, b - a) };
  }
  const pieces = Array.from(stablePieces(tokenizer, set, document, range), (bytes) => tokenizer.encode(bytes));
  const all = new Int32Array(pieces.reduce((sum, ids) => sum + ids.length, 0));
  let at = 0;
  for (const ids of pieces) {
    all.set(ids, at);
    at += ids.length;
  }
  return { units: all.length, ids: (a, b) => all.subarray(a, b) };
}

async function scoreAll(
  model: Model,
  set: Dataset,
  plan: ScorePlan,
  signal: AbortSignal | undefined,
  onProgress: EvaluateOptions['onProgress'],
): Promise<EvaluateResult> {
  const started = performance.now();
  const { tokenizer } = model;
  const counter = new WordCounter();
  const textOf = (ids: Uint8Array | Int32Array) => (ids instanceof Uint8Array ? ids : decoded(tokenizer, ids));
  // Windows are independent of each other, so several are read at once; pieces of one document are not.
  const backend = model.runtime.info.backend;
  const most = plan.mode === 'sliding' ? sequencesAtOnce(backend, plan.context) : 1;
  let total = plan.ranges.reduce((sum, { from, to }) => sum + to - from, 0);
  const leaveOut = (ids: Uint8Array | Int32Array) => {
    total -= textOf(ids).length;
  };
  const groups = grouped(piecesOf(plan, set, tokenizer, leaveOut), most);
  const first = groups.next().value;
  if (!first) throw new DataError(expected('evaluate', 'the data', `hold two ${model.unit}s of one document`, 'none'));
  let nats = 0;
  let bytes = 0;
  let documents = 0;
  const score = async (session: Session, pieces: readonly DocumentPiece[]) => {
    if (plan.mode === 'sliding' || pieces[0]?.from === 0) await session.clear();
    const windows = pieces.map(({ text, from, to }) => text.ids(from, to));
    const skips = pieces.map(({ from, scored }) => scored - 1 - from);
    const skip = Math.min(...skips);
    const found = await session.nllOfAll(windows, skip, signal);
    for (const [i, piece] of pieces.entries()) {
      if (piece.from === 0) {
        const unscored = piece.text.ids(0, 1);
        counter.endDocument();
        counter.add(textOf(unscored));
        leaveOut(unscored);
        documents++;
      }
      for (const x of found[i]?.subarray((skips[i] ?? 0) - skip) ?? []) nats += x;
      const scored = textOf(windows[i]?.subarray(piece.scored - piece.from) ?? new Uint8Array(0));
      bytes += scored.length;
      counter.add(scored);
      onProgress?.({ bytes, total, bitsPerByte: nats / Math.LN2 / bytes });
    }
  };
  await model.withSession(async (session) => {
    await score(session, first);
    for (const pieces of groups) await score(session, pieces);
  }, first.length);
  const { words } = counter;
  return {
    nats,
    bytes,
    bitsPerByte: nats / Math.LN2 / bytes,
    words,
    wordPerplexity: Math.exp(nats / words),
    documents,
    seconds: (performance.now() - started) / 1000,
  };
}

function decoded(tokenizer: Tokenizer | undefined, ids: Int32Array): Uint8Array {
  return tokenizer?.decode(ids) ?? new Uint8Array(0);
}

interface DocumentPiece extends Piece {
  text: ScoredText;
}

/** @param leaveOut gets documents that are too short to score any of */
function* piecesOf(
  plan: ScorePlan,
  set: Dataset,
  tokenizer: Tokenizer | undefined,
  leaveOut: (ids: Uint8Array | Int32Array) => void,
): Generator<DocumentPiece> {
  for (const [document, range] of plan.ranges.entries()) {
    const text = scoredText(set, document, range, tokenizer);
    if (text.units < 2) {
      leaveOut(text.ids(0, text.units));
      continue;
    }
    const pieces = plan.mode === 'stateful' ? carried(text.units) : sliding(text.units, plan.context, plan.stride);
    for (const piece of pieces) yield { text, ...piece };
  }
}

/** Runs of `most` items; the last may be shorter. */
function* grouped<T>(items: Iterable<T>, most: number): Generator<T[]> {
  let group: T[] = [];
  for (const item of items) {
    group.push(item);
    if (group.length < most) continue;
    yield group;
    group = [];
  }
  if (group.length > 0) yield group;
}

/** Reads document bytes [from, to) and scores [scored, to), which no other piece scores. */
interface Piece {
  from: number;
  scored: number;
  to: number;
}

/** Windows of `context` inputs, each starting from an empty state. */
export function* sliding(length: number, context: number, stride: number): Generator<Piece> {
  let scored = 1;
  for (let from = 0; scored < length; from += stride) {
    const to = Math.min(length, from + context + 1); // one further than the last input: its target
    yield { from, scored, to };
    scored = to;
  }
}

/** Consecutive pieces; the state after one is the state before the next. */
function* carried(length: number): Generator<Piece> {
  for (let from = 0; from + 1 < length; from += PIECE) {
    yield { from, scored: from + 1, to: Math.min(length, from + PIECE + 1) };
  }
}
