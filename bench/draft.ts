// npm run bench -- draft: speculative decoding beside plain decoding. See main.ts for how to call it.
import { checkInteger } from '../lib/errors.ts';
import { draftCheck } from './draft-check.ts';
import { passCosts } from './draft-passes.ts';
import { FORMULA, parseCosts, projection } from './draft-projection.ts';
import {
  count,
  type DraftFlags,
  type DraftSetup,
  disposeSetup,
  losslessOf,
  modesOf,
  nameOf,
  openSetup,
  sum,
} from './draft-setup.ts';
import { draftSpeed } from './draft-speed.ts';
import { report } from './measure.ts';

/** Measures, or with --check counts identical outputs, or with --bandwidth projects. */
export async function draftBench(flags: DraftFlags): Promise<void> {
  const costs = flags.bandwidth ? parseCosts(flags['verify-cost'], flags['draft-cost']) : undefined;
  const setup = await openSetup(flags, flags.check ? [undefined, 4, 15] : [undefined]);
  const facts = factsOf(setup);
  console.log(`${facts.prompts}, ${setup.bytes} bytes each; ${facts.verifier}`);
  try {
    if (flags.check) await check(setup, flags, facts);
    else if (costs) {
      console.log(FORMULA);
      const given = { formula: FORMULA, verifyCost: flags['verify-cost'] };
      report('draft projection', await projection(setup, modesOf(flags), costs), flags.out, { ...facts, ...given });
    } else {
      const { speed, quality } = await draftSpeed(setup, modesOf(flags), count('pairs', flags.pairs));
      const passes = await passCosts(setup);
      report('verify passes', passes);
      report('log-likelihood under the verifier', quality);
      report('draft', speed, flags.out, { ...facts, passes, quality });
    }
  } finally {
    disposeSetup(setup);
  }
}

async function check(setup: DraftSetup, flags: DraftFlags, facts: Record<string, unknown>): Promise<void> {
  const max = setup.prompts.length;
  const from = checkInteger('bench draft', '--from', Number(flags.from ?? 0), { min: 0, max: max - 1 });
  const to = checkInteger('bench draft', '--to', Number(flags.to ?? max), { min: from + 1, max });
  const tallies = await draftCheck(setup, losslessOf(flags), { from, to });
  report(
    'draft check',
    tallies.map((tally) => ({ ...tally })),
    flags.out,
    facts,
  );
  const [identical, of] = [sum(tallies.map((t) => t.identical)), sum(tallies.map((t) => t.of))];
  console.log(`${identical} of ${of} identical`);
  if (identical < of) process.exitCode = 1;
}

/** What the figures belong to. The command is given without the folders of its paths, which say nothing elsewhere. */
function factsOf({ verifier, drafters, source }: DraftSetup) {
  const words = process.argv.slice(2).map((word) => (word.includes('/') ? nameOf(word) : word));
  return {
    command: `npm run bench -- ${words.join(' ')}`,
    verifier: `${verifier.config.layers} layers of ${verifier.config.dModel}, ${verifier.parameters} parameters, ${verifier.device}`,
    drafters: drafters.map(({ name, source }) =>
      source === 'lookup'
        ? { name }
        : { name, unit: source.unit, parameters: source.parameters, device: source.device },
    ),
    prompts: source,
  };
}
