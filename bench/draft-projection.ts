// What speculation would gain on a machine of other costs. Which drafts are made and accepted depends on ids alone, so they
// are counted here and the costs put in.

import type { Drafter } from '../lib/draft/drafter.ts';
import { LookupDrafter } from '../lib/draft/lookup-drafter.ts';
import { expected } from '../lib/errors.ts';
import { StateRing } from '../lib/state-ring.ts';
import {
  type DraftLength,
  type DraftSetup,
  drafted,
  lengthLabel,
  type Mode,
  type NamedDrafter,
  sum,
} from './draft-setup.ts';
import { round } from './measure.ts';

/** What runs were made of. */
interface Counts {
  /** By ids that a verify pass read: how many passes read so many. */
  passes: Map<number, number>;
  /** Steps of the drafter: ids that it read while proposing. */
  steps: number;
  accepted: number;
  bytes: number;
  /** Bytes of plain decoding. */
  plain: number;
}

export const FORMULA =
  'ratio = bytes / (sum over passes of c(K) + undrafted bytes + d * drafter steps), in plain steps: c(K) of a pass that ' +
  'reads K bytes, linear between the given points and beyond them; d of a drafter step';

/** Costs in plain steps: c by bytes that a pass reads, and several d, each for a column of its own. */
export interface ProjectedCosts {
  verify: readonly (readonly [number, number])[];
  draft: readonly number[];
}

/** @param verify "1:1,16:1.3"; `draft` "0.1" or "0.05,0.1" */
export function parseCosts(verify: string | undefined, draft: string | undefined): ProjectedCosts {
  const points = (verify ?? '').split(',').map((point) => point.split(':').map(Number));
  const steps = (draft ?? '').split(',').map((word) => (word === '' ? Number.NaN : Number(word)));
  const rising = points.every(([k = Number.NaN, c], i) => k > (points[i - 1]?.[0] ?? 0) && Number.isFinite(c));
  if (points.length < 2 || !rising) {
    const be = 'give rising K:c points like 1:1,16:1.3';
    throw new Error(expected('bench draft', '--verify-cost', be, verify ?? 'nothing'));
  }
  if (!steps.every((d) => d >= 0)) {
    throw new Error(expected('bench draft', '--draft-cost', 'give plain steps like 0.1', draft ?? 'nothing'));
  }
  return { verify: points.map(([k = 0, c = 0]) => [k, c] as const), draft: steps };
}

export async function projection(
  setup: DraftSetup,
  modes: readonly Mode[],
  costs: ProjectedCosts,
): Promise<Record<string, unknown>[]> {
  const rows: Record<string, unknown>[] = [];
  for (const drafter of setup.drafters) {
    for (const length of setup.lengths) {
      for (const mode of modes) {
        const counts = await count(setup, drafter, length, mode);
        rows.push({ drafter: drafter.name, length: lengthLabel(length), mode: mode.name, ...projected(counts, costs) });
      }
    }
  }
  return rows;
}

async function count(setup: DraftSetup, { source }: NamedDrafter, length: DraftLength, mode: Mode): Promise<Counts> {
  const counts: Counts = { passes: new Map(), steps: 0, accepted: 0, bytes: 0, plain: 0 };
  for (const prompt of setup.prompts.keys()) {
    const drafter = source === 'lookup' ? new LookupDrafter() : source.drafterFor(setup.verifier);
    try {
      const { stats } = await drafted(setup, mode, prompt, counting(drafter, counts), length);
      counts.bytes += stats.bytes;
      counts.accepted += stats.draft?.accepted ?? 0;
      counts.plain += stats.draft?.plain ?? 0;
    } finally {
      drafter.dispose();
    }
  }
  return counts;
}

/** A drafter whose drafts and steps are counted. */
function counting(drafter: Drafter, counts: Counts): Drafter {
  return {
    reset: (ids, signal) => drafter.reset(ids, signal),
    push: (ids) => drafter.push(ids),
    dispose: () => drafter.dispose(),
    propose: async (request) => {
      const step = StateRing.prototype.step;
      StateRing.prototype.step = function (id) {
        counts.steps++;
        return step.call(this, id);
      };
      try {
        const draft = await drafter.propose(request);
        const read = draft.ids.length + 1;
        if (read > 1) counts.passes.set(read, (counts.passes.get(read) ?? 0) + 1);
        return draft;
      } finally {
        StateRing.prototype.step = step;
      }
    },
  };
}

function projected(counts: Counts, { verify, draft }: ProjectedCosts): Record<string, unknown> {
  const spread = [...counts.passes];
  const passes = sum(spread.map(([, n]) => n));
  const read = sum(spread.map(([k, n]) => k * n));
  const verifier = sum(spread.map(([k, n]) => n * costOf(verify, k))) + counts.plain;
  const ratios = draft.map((d) => [`ratio at d = ${d}`, round(counts.bytes / (verifier + d * counts.steps))] as const);
  return {
    'bytes/pass': passes > 0 ? round((counts.accepted + passes) / passes) : '',
    accepted: round(counts.accepted / (read - passes)),
    'mean K': round(read / passes),
    'drafter steps/pass': round(counts.steps / passes),
    undrafted: round(counts.plain / counts.bytes),
    'ratio at d = 0': round(counts.bytes / verifier),
    ...Object.fromEntries(ratios),
  };
}

/** Linear between the points, and beyond them as in the nearest segment. */
function costOf(points: ProjectedCosts['verify'], k: number): number {
  const after = points.findIndex(([at]) => at >= k);
  const end = after < 0 ? points.length - 1 : Math.max(1, after);
  const [k0, c0] = points[end - 1] ?? [0, 0];
  const [k1, c1] = points[end] ?? [1, 0];
  return c0 + ((c1 - c0) * (k - k0)) / (k1 - k0);
}
