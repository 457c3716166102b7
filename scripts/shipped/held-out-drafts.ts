// What a subword model is worth as a drafter, without a verifier: the held-out text itself says which bytes are right.
import { performance } from 'node:perf_hooks';
import { SubwordDrafter } from '../../lib/draft/subword-drafter.ts';
import type { Model } from '../../lib/index.ts';
import type { SamplingSettings } from '../../lib/session.ts';

const PROMPT_BYTES = 200;
const PASSAGE_BYTES = 300;
/** Bytes proposed at a time: what a verify pass of 13 bytes takes in. */
export const DRAFT_BYTES = 12;
const GREEDY: SamplingSettings = { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed: 0 };

export interface DraftScore {
  /** Proposals made, in all passages. */
  passes: number;
  /** Bytes of a proposal before its first wrong one, in the mean. */
  rightPerPass: number;
  msPerPass: number;
  /** Bytes proposed right per second of the drafter's time. */
  rightPerSecond: number;
}

/**
 * Drafts along passages from evenly spaced places of `text`. After each proposal the passage goes on behind the bytes that
 * were right and one more, as behind a verifier that writes just this text. The first passage warms up and does not count.
 * @throws TypeError when the model has no tokenizer
 */
export async function heldOutDrafts(model: Model, text: Uint8Array, passages: number): Promise<DraftScore> {
  const { tokenizer } = model;
  if (!tokenizer) throw new TypeError('heldOutDrafts: expected the model to have a tokenizer, got none.');
  const drafter = new SubwordDrafter(model, tokenizer);
  let [passes, right, ms] = [0, 0, 0];
  try {
    for (let i = 0; i <= passages; i++) {
      const from = Math.floor((text.length - PROMPT_BYTES - PASSAGE_BYTES - DRAFT_BYTES) * (i / (passages + 1)));
      const counted = await draftPassage(drafter, text.subarray(from));
      if (i === 0) continue;
      passes += counted.passes;
      right += counted.right;
      ms += counted.ms;
    }
  } finally {
    drafter.dispose();
  }
  return { passes, rightPerPass: right / passes, msPerPass: ms / passes, rightPerSecond: right / (ms / 1000) };
}

async function draftPassage(drafter: SubwordDrafter, text: Uint8Array) {
  const counted = { passes: 0, right: 0, ms: 0 };
  await drafter.reset(text.subarray(0, PROMPT_BYTES));
  for (let at = PROMPT_BYTES; at < PROMPT_BYTES + PASSAGE_BYTES; ) {
    const started = performance.now();
    const { ids } = await drafter.propose({ most: DRAFT_BYTES, least: [], settings: GREEDY, drawn: 0 });
    counted.ms += performance.now() - started;
    const wrong = ids.findIndex((id, i) => id !== text[at + i]);
    const right = wrong < 0 ? ids.length : wrong;
    drafter.push(text.subarray(at, at + right + 1));
    at += right + 1;
    counted.passes++;
    counted.right += right;
  }
  return counted;
}
