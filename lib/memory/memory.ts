import type { Graph } from '../graph.ts';
import type { ForwardOptions, Weights } from '../models/architecture.ts';

/** Runs a plan over `rows` rows, which is recorded and compiled once for each key. */
export type RunPlan = (
  key: string,
  rows: number,
  record: (g: Graph, weights: Weights, options: Pick<ForwardOptions, 'activations'>) => void,
) => Promise<void>;

/**
 * What the sequences of a session carry from id to id on a device, in the form in which their architecture keeps it. A
 * session moves it on by running plans; everything else that may happen to it is here.
 */
export interface Memory {
  /** Plans of more than one id read a multiple of so many. */
  readonly period: number;
  /** Ids to be read one by one before plans of more can read on. */
  readonly singles: number;
  /** Ids that one plan of a single id, run again and again, can read of every sequence before it must be asked for again. */
  readonly room: number;
  /** After `reserve(n)` there is room for a sequence of `longest + n` ids: those of the longest there is, or fewer. */
  readonly longest: number;
  /** Floats of the state of a text not yet begun. */
  readonly emptyFloats: number;

  /**
   * Makes room for `steps` more ids of every sequence.
   * @returns true when the state lies elsewhere now, so that plans over the old one must not run again
   * @throws OutOfMemoryError; the state is intact
   */
  reserve(steps: number): Promise<boolean>;
  /** Ids that every sequence can read from here, once prepared, before it must be prepared again; left out: any number. */
  readonly stretch?: number;
  /** Computes what must be there before the next id is read, where that depends on the position. */
  prepare?(run: RunPlan): Promise<void>;
  /**
   * Of `steps` ids ahead, where only the state after the last of them is wanted: how many of the first need no more than a
   * pass with the state `skipping`. Once one of them is read, the state is of use only after all `steps`.
   */
  skippable?(steps: number): number;
  readonly skipping?: Passage;
  /** A run with `skipping` has read `steps` ids of every sequence. */
  skipped?(steps: number): void;
  /**
   * How many of `steps` ids ahead one pass with the state `spanning` reads, over several stretches at once, where no layer
   * takes more than `rows` rows; 0: none. At least one id is left, to be read after them in any other way.
   */
  spannable?(steps: number, rows: number): number;
  readonly spanning?: Passage;
  /** A run with `spanning` has read `steps` ids of every sequence. */
  spanned?(steps: number): void;
  /** A run has read `steps` ids of every sequence. */
  advanced(steps: number): void;
  /** Forgets everything: the state of texts not yet begun. */
  clear(): Promise<void>;

  /** The state of sequence `b`. */
  read(b: number): Float32Array;
  /** The states of all sequences. */
  readAll(): Float32Array[];
  /** Gives sequence `b` a state that `read` returned; `reserve` has made room for it. */
  write(b: number, data: Float32Array): void;
  /**
   * Gives sequence `b` the state of the only sequence of another memory of the same model, without leaving the device;
   * `reserve` has made room for it. Left out: `write` what it reads.
   */
  take?(b: number, from: Memory): Promise<void>;
  /** Ids that a state has read, where its size tells; else 0. */
  stepsIn(data: Float32Array): number;
  /** Nobody reads sequence `b` any more: it need not grow. */
  leave(b: number): void;

  /** For the next run, over `steps` ids of every sequence. Room is reserved. */
  reading(steps: number): Passage;
  /** For the next run, a pass over `steps` ids of one sequence any prefix of which can be accepted. Room is reserved. */
  verifying(steps: number): Passage;
  /** After such a pass: goes back to the state after the first `steps` of its ids. May be called again with another count. */
  accept(steps: number): Promise<void>;

  dispose(): void;
}

/** What a run goes on from and leaves. */
export interface Passage {
  /** Runs of one kind with the same key may use one plan, until `reserve` returns true. */
  readonly key: string;
  /** What the architecture's backbone is recorded with. */
  readonly state: () => unknown;
}

/** Where the states of one sequence lie that is read id by id and may go back. */
export interface Trail {
  /** Position 0 is the state that the session's memory has now. */
  begin(): void;
  /** For the next step, which reads one id from `position`. */
  at(position: number): Passage;
  dispose(): void;
}
