// Where the drafter of a generation comes from, and where it goes when the generation ends.
import { BusyError, describe, expected } from '../errors.ts';
import type { Model } from '../model.ts';
import type { Drafter } from './drafter.ts';
import { LookupDrafter } from './lookup-drafter.ts';

export interface DraftSource {
  /** @throws BusyError when another generation uses the drafter; TypeError when a model cannot draft for `verifier` */
  open(verifier: Model): Drafter;
  close(drafter: Drafter): void;
}

const DRAFTER_METHODS = ['reset', 'push', 'propose', 'dispose'] as const;

/** Drafters that callers gave and generations are using: one follows one text. */
const inUse = new WeakSet<Drafter>();

/** @throws TypeError for what is no drafter */
export function draftSource(where: string, draft: unknown): DraftSource | undefined {
  if (draft === undefined) return undefined;
  if (draft === 'lookup') return made(() => new LookupDrafter());
  if (hasMethods(draft, ['drafterFor'])) return made((verifier) => (draft as Model).drafterFor(verifier));
  if (hasMethods(draft, DRAFTER_METHODS)) return given(where, draft as Drafter);
  const be = "be a model, 'lookup', or an object with reset, push, propose and dispose";
  throw new TypeError(expected(where, 'draft', be, describe(draft), 'Load a model by its name with loadModel.'));
}

function hasMethods(value: unknown, names: readonly string[]): boolean {
  return (
    typeof value === 'object' && value !== null && names.every((name) => typeof Reflect.get(value, name) === 'function')
  );
}

function made(open: (verifier: Model) => Drafter): DraftSource {
  return { open, close: (drafter) => drafter.dispose() };
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
  };
}
