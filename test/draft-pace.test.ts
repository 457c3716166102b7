// How long drafts are and when they rest, with times that are made up.
import test from 'ava';
import { Times } from '../lib/draft/averages.ts';
import { DraftCosts, Pace } from '../lib/draft/pace.ts';

const passMs = (drafting: number, verifying: number) => ({ drafting, verifying, all: drafting + verifying });

/** Drafts of all lengths, of which `right` of the ids are right by turns, at `drafting` ms an id and `verifying` ms a pass. */
function drafts(pace: Pace, rounds: number, right: (ids: number) => number, verifying: (read: number) => number): void {
  for (let round = 0; round < rounds; round++) {
    const ids = 1 + ((round * 7) % 15);
    pace.learn(new Array(ids).fill(0.8), right(ids), passMs(0.05 * ids, verifying(ids + 1)));
  }
}

/** Costs of a pair that is no longer new. */
function knownCosts(plainMs: number): DraftCosts {
  const costs = new DraftCosts();
  for (let i = 0; i < 3; i++) costs.plain.add(plainMs);
  costs.passes = 100;
  return costs;
}

/** A pass takes as long as one of the next multiple of eight. */
const inEights = (read: number) => 0.5 + Math.ceil(read / 8);
const most = (ids: number) => Math.round(0.8 * ids);

test('a draft goes on to the end of a group of ids that cost the same', (t) => {
  const pace = new Pace(knownCosts(1));
  drafts(pace, 60, most, inEights);
  const least = pace.leastUpTo(15);
  t.is(least.length, 16);
  t.is(least[0], 0);
  // Seven ids and the verifier's own are eight; another would begin the next group.
  for (let n = 1; n < 7; n++) t.true((least[n] ?? 1) < 0.3, `${n}: ${least[n]}`);
  t.true((least[7] ?? 0) > 0.4, `7: ${least[7]}`);
  for (let n = 8; n < 15; n++) t.true((least[n] ?? 1) < (least[7] ?? 0), `${n}: ${least[n]}`);
});

test('drafts rest where plain decoding is faster, longer each time, and not where it is slower', (t) => {
  const rests = (plainMs: number) => {
    const pace = new Pace(knownCosts(plainMs));
    const found: number[] = [];
    for (let trial = 0; trial < 3; trial++) {
      drafts(pace, 10, most, inEights);
      found.push(pace.rest);
      pace.plain(pace.rest, pace.rest * plainMs);
    }
    return found;
  };
  t.deepEqual(rests(0.05), [8, 32, 128]);
  t.deepEqual(rests(5), [0, 0, 0]);
});

test('one pass in which the machine did something else is no reason to rest', (t) => {
  const pace = new Pace(knownCosts(1));
  drafts(pace, 30, most, inEights);
  pace.learn(new Array(7).fill(0.8), 5, passMs(300, 1.5));
  pace.learn(new Array(7).fill(0.8), 5, passMs(0.35, 1000));
  drafts(pace, 30, most, inEights);
  t.is(pace.rest, 0);
});

test('drafts rest only where it is sure that they do not pay', (t) => {
  // By turns nine ids are right and none: in the mean 5.5 a pass, which takes as long as 5.6 or 8 plain ones.
  const rest = (plainIds: number) => {
    const pace = new Pace(knownCosts(1 / plainIds));
    for (let i = 0; i < 60; i++) {
      pace.learn(new Array(9).fill(0.8), i % 2 ? 9 : 0, passMs(0.3, 0.7));
      if (pace.rest > 0) return pace.rest;
    }
    return 0;
  };
  t.is(rest(5.6), 0);
  t.is(rest(8), 8);
});

test('the next text rests as long as the one before did where drafts still do not pay, and no longer where they do', (t) => {
  const costs = knownCosts(0.05);
  const restOf = (right: (ids: number) => number) => {
    const pace = new Pace(costs);
    drafts(pace, 10, right, inEights);
    return pace.rest;
  };
  t.deepEqual([restOf(most), restOf(most), restOf(() => 0)], [8, 32, 128]);
  for (let i = 0; i < 200; i++) costs.plain.add(5);
  t.is(restOf(most), 0);
  for (let i = 0; i < 20; i++) costs.plain.add(0.05);
  t.is(restOf(most), 8);
});

test('the first texts begin with plain decoding, to know its cost, and the next go on with what is known', (t) => {
  const costs = new DraftCosts();
  for (let text = 0; text < 3; text++) {
    const first = new Pace(costs);
    t.is(first.rest, 8);
    first.plain(8, text === 0 ? 800 : 8); // the very first run may wait for much
    t.is(first.rest, 0);
    drafts(first, 20, most, inEights);
  }
  t.is(costs.plain.value, 1);
  const next = new Pace(costs);
  t.is(next.rest, 0);
  drafts(next, 1, most, inEights);
  t.true((next.leastUpTo(15)[7] ?? 0) > (next.leastUpTo(15)[3] ?? 1));
});

test('the first passes of a pair, which wait for much, are no reason to rest, unless nothing is right', (t) => {
  const begun = (right: (ids: number) => number) => {
    const costs = new DraftCosts();
    const pace = new Pace(costs);
    pace.plain(8, 8);
    drafts(pace, 24, right, () => 100);
    const rest = pace.rest;
    drafts(pace, 40, right, inEights);
    return [rest, pace.rest];
  };
  t.deepEqual(begun(most), [0, 0]);
  t.true((begun(() => 0)[0] ?? 0) > 0);
});

test('without costs nothing depends on times', (t) => {
  const run = (slow: number) => {
    const pace = new Pace(undefined);
    t.is(pace.rest, 0);
    drafts(pace, 30, most, (read) => slow * inEights(read));
    pace.plain(3, 100 * slow);
    return { least: [...pace.leastUpTo(15)], rest: pace.rest };
  };
  t.deepEqual(run(1), run(1000));
  const failing = new Pace(undefined);
  drafts(failing, 10, () => 0, inEights);
  t.is(failing.rest, 8);
});

test('times are those that were seen, linear between them, and never more than for more ids', (t) => {
  const times = new Times();
  t.is(times.upTo(4), undefined);
  times.add(2, 4);
  times.add(4, 6);
  t.deepEqual([...(times.upTo(6) ?? [])], [4, 4, 4, 5, 6, 6.75, 7.5]);
  t.deepEqual([...(times.upTo(3) ?? [])], [4, 4, 4, 5]);
  for (let i = 0; i < 4; i++) times.add(6, 3);
  t.deepEqual([...(times.upTo(6) ?? [])], [3, 3, 3, 3, 3, 3, 3]);
  times.add(6, 300);
  t.true((times.upTo(6)?.[6] ?? 9) < 3.2); // a disturbance
});
