import type { Plan } from './plan.ts';

/** Plans with what belongs to them, by name, each compiled on first use. */
export class PlanCache {
  readonly #made = new Map<string, Promise<{ plan: Plan }>>();

  once<T extends { plan: Plan }>(name: string, make: () => Promise<T>): Promise<T> {
    let made = this.#made.get(name) as Promise<T> | undefined;
    if (!made) {
      made = make();
      this.#made.set(name, made);
      // Memory that was short may be there the next time.
      made.catch(() => this.#made.delete(name));
    }
    return made;
  }

  /** Disposes of all plans. */
  async forget(): Promise<void> {
    const made = [...this.#made.values()];
    this.#made.clear();
    const drop = ({ plan }: { plan: Plan }) => plan.dispose();
    await Promise.all(made.map((entry) => entry.then(drop, () => undefined)));
  }
}
