// How well a model predicts text it was not trained on: bits per byte and word perplexity of held-out documents.
import { Dataset, type DatasetOptions, openDataset } from '../data/dataset.ts';
import { WordCounter } from '../data/words.ts';
import { checkChoice, checkFunction, checkInteger, checkOptions, checkSignal, expected } from '../errors.ts';
import type { Model } from '../model.ts';
import type { Session } from '../session.ts';
import { sequencesAtOnce } from '../session-plans.ts';

export interface EvaluateOptions {
  /**
   * - 'sliding' (default): windows of `context` bytes; the first of a document is scored in full, later ones only in
   *   their last `stride` bytes (Wang et al. 2024)
   * - 'stateful': the recurrent state is carried through the whole document
   */
  mode?: 'sliding' | 'stateful';
  /** Bytes a window reads; default 8192. */
  context?: number;
  /** Bytes from one window to the next; default half a context. */
  stride?: number;
  /** Score about this many bytes: the middle of every document, in proportion to its length; default: everything. */
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
  /** Bytes scored: all but the first of every document, which nothing predicts. */
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
/** Bytes read at once where the state is carried. */
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
  const context = checkInteger(where, 'context', options.context ?? 8192, { min: 1 });
  const stride = checkInteger(where, 'stride', options.stride ?? Math.ceil(context / 2), { min: 1, max: context });
  if (options.maxBytes !== undefined) checkInteger(where, 'maxBytes', options.maxBytes, { min: 2 });
  if (model.config.vocab !== 256) {
    throw new TypeError(expected(where, 'the model', 'read bytes (256 classes)', `${model.config.vocab} classes`));
  }
  const { separator } = options;
  const opened: DatasetOptions = { ...(separator !== undefined && { separator }), ...(signal && { signal }) };
  const set = data instanceof Dataset ? data : await openDataset(data, opened);
  try {
    const plan = { mode, context, stride, lengths: scoredLengths(set, options.maxBytes) };
    return await scoreAll(model, set, plan, signal, onProgress);
  } finally {
    if (set !== data) set.close();
  }
}

interface ScorePlan {
  mode: 'sliding' | 'stateful';
  context: number;
  stride: number;
  /** Bytes of each document that are read. */
  lengths: number[];
}

function scoredLengths(set: Dataset, maxBytes: number | undefined): number[] {
  const share = maxBytes === undefined ? 1 : Math.min(1, maxBytes / set.bytes);
  const lengths = Array.from({ length: set.documents }, (_, i) => Math.floor(set.length(i) * share));
  if (lengths.every((n) => n < 2)) lengths[0] = 2;
  return lengths;
}

async function scoreAll(
  model: Model,
  set: Dataset,
  plan: ScorePlan,
  signal: AbortSignal | undefined,
  onProgress: EvaluateOptions['onProgress'],
): Promise<EvaluateResult> {
  const started = performance.now();
  const counter = new WordCounter();
  const total = plan.lengths.reduce((sum, n) => sum + Math.max(0, n - 1), 0);
  const documents = plan.lengths.filter((n) => n >= 2).length;
  const read = ({ document }: DocumentPiece, from: number, to: number) => {
    const middle = Math.floor((set.length(document) - (plan.lengths[document] ?? 0)) / 2);
    const bytes = new Uint8Array(to - from);
    set.read(document, middle + from, bytes);
    return bytes;
  };
  // Windows are independent of each other, so several are read at once; pieces of one document are not.
  const backend = model.runtime.info.backend;
  const most = plan.mode === 'sliding' ? sequencesAtOnce(backend, plan.context) : 1;
  const groups = grouped(piecesOf(plan), most);
  const first = groups.next().value ?? [];
  let nats = 0;
  let bytes = 0;
  const score = async (session: Session, pieces: readonly DocumentPiece[]) => {
    if (plan.mode === 'sliding' || pieces[0]?.from === 0) await session.clear();
    const windows = pieces.map((piece) => read(piece, piece.from, piece.to));
    const skips = pieces.map(({ from, scored }) => scored - 1 - from);
    const skip = Math.min(...skips);
    const found = await session.nllOfAll(windows, skip, signal);
    for (const [i, piece] of pieces.entries()) {
      if (piece.from === 0) {
        counter.endDocument();
        counter.add(read(piece, 0, 1));
      }
      const nll = found[i]?.subarray((skips[i] ?? 0) - skip) ?? new Float32Array(0);
      for (const x of nll) nats += x;
      bytes += nll.length;
      counter.add(windows[i]?.subarray(piece.scored - piece.from) ?? new Uint8Array(0));
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

interface DocumentPiece extends Piece {
  document: number;
}

function* piecesOf(plan: ScorePlan): Generator<DocumentPiece> {
  for (const [document, length] of plan.lengths.entries()) {
    if (length < 2) continue;
    const pieces = plan.mode === 'stateful' ? carried(length) : sliding(length, plan.context, plan.stride);
    for (const piece of pieces) yield { document, ...piece };
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
