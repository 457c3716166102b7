// Where the drafter of a generation comes from, and where it goes when the generation ends.
import { BusyError, describe, expected } from '../errors.ts';
import type { Model } from '../model.ts';
import type { Drafter } from './drafter.ts';
import { LookupDrafter } from './lookup-drafter.ts';
import { DraftCosts } from './pace.ts';

export interface DraftSource {
  /** @throws BusyError when another generation uses the drafter; TypeError when a model cannot draft for `verifier` */
  open(verifier: Model): Drafter;
  close(drafter: Drafter): void;
  /** What drafting with it for `verifier` was found to cost. */
  costs(verifier: Model): DraftCosts;
}

const DRAFTER_METHODS = ['reset', 'push', 'propose', 'dispose'] as const;

/** Drafters that callers gave and generations are using: one follows one text. */
const inUse = new WeakSet<Drafter>();

const known = new WeakMap<Model, WeakMap<object, DraftCosts>>();
/** Stands for lookup there. */
const LOOKUP = {};

/** @throws TypeError for what is no drafter */
export function draftSource(where: string, draft: unknown): DraftSource | undefined {
  if (draft === undefined) return undefined;
  if (draft === 'lookup') return made(LOOKUP, () => new LookupDrafter());
  if (hasMethods(draft, ['drafterFor']))
    return made(draft as Model, (verifier) => (draft as Model).drafterFor(verifier));
  if (hasMethods(draft, DRAFTER_METHODS)) return given(where, draft as Drafter);
  const be = "be a model, 'lookup', or an object with reset, push, propose and dispose";
  throw new TypeError(expected(where, 'draft', be, describe(draft), 'Load a model by its name with loadModel.'));
}

function hasMethods(value: unknown, names: readonly string[]): boolean {
  return (
    typeof value === 'object' && value !== null && names.every((name) => typeof Reflect.get(value, name) === 'function')
  );
}

function made(by: object, open: (verifier: Model) => Drafter): DraftSource {
  return { open, close: (drafter) => drafter.dispose(), costs: (verifier) => costsOf(verifier, by) };
}

function costsOf(verifier: Model, drafting: object): DraftCosts {
  const pairs = known.get(verifier) ?? new WeakMap<object, DraftCosts>();
  known.set(verifier, pairs);
  const costs = pairs.get(drafting) ?? new DraftCosts();
  pairs.set(drafting, costs);
  return costs;
}

function given(where: string, drafter: Drafter): DraftSource {
  return {
    open: () => {
      if (inUse.has(drafter)) {
        const got = 'one that another generation is using';
        throw new BusyError(expected(where, 'the drafter', 'be free', got, 'Wait for it, or make another.'));
      }
      inUse.add(drafter);
      return drafter;
    },
    close: () => inUse.delete(drafter),
    costs: (verifier) => costsOf(verifier, drafter),
  };
}
