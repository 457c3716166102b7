// Figures of a run as it goes on: all forget with time.

/** Weight of the past against one more value. */
const MEMORY = 0.9;
/** The same where values differ by more than what is sought, so that it takes many to see it. */
export const LONG_MEMORY = 0.98;

/** A mean, and how far off it may be. */
export class Average {
  readonly #memory: number;
  #n = 0;
  #squares = 0;
  #sum = 0;
  #sumOfSquares = 0;

  constructor(memory = MEMORY) {
    this.#memory = memory;
  }

  add(x: number): void {
    const memory = this.#memory;
    this.#n = memory * this.#n + 1;
    this.#squares = memory ** 2 * this.#squares + 1;
    this.#sum = memory * this.#sum + x;
    this.#sumOfSquares = memory * this.#sumOfSquares + x * x;
  }

  get value(): number | undefined {
    return this.#n > 0 ? this.#sum / this.#n : undefined;
  }

  /** The standard error of the mean; Infinity before the first value. */
  get error(): number {
    if (this.value === undefined) return Infinity;
    const variance = Math.max(0, this.#sumOfSquares / this.#n - this.value ** 2);
    return Math.sqrt(variance * this.#squares) / this.#n;
  }
}

/** A time that depends on more than can be told apart, and now and then on what else the machine does. */
export class Usual {
  readonly #mean = new Average();

  /** `ms`, but at most thrice what it was in the mean: one that takes a hundred times as long says nothing of the next. */
  add(ms: number): number {
    const counted = Math.min(ms, 3 * (this.#mean.value ?? ms));
    this.#mean.add(counted);
    return counted;
  }
}

/** y = a + b x, fitted to points. */
export class Line {
  #n = 0;
  #x = 0;
  #y = 0;
  #xx = 0;
  #xy = 0;

  add(x: number, y: number): void {
    this.#n = LONG_MEMORY * this.#n + 1;
    this.#x = LONG_MEMORY * this.#x + x;
    this.#y = LONG_MEMORY * this.#y + y;
    this.#xx = LONG_MEMORY * this.#xx + x * x;
    this.#xy = LONG_MEMORY * this.#xy + x * y;
  }

  /** b, but at least 0 and no more than if a were 0, as while all x are alike; undefined before the first point. */
  get slope(): number | undefined {
    if (this.#x === 0) return undefined;
    const mean = this.#y / this.#x;
    const spread = this.#n * this.#xx - this.#x * this.#x;
    if (spread < 1e-9 * this.#n * this.#xx) return mean;
    return Math.min(mean, Math.max(0, (this.#n * this.#xy - this.#x * this.#y) / spread));
  }
}

/** Of so many values the least counts. */
const FIRST = 3;

/** A time that others only make longer, never shorter: so less is believed sooner than more, and the least of the first at once. */
export class Undisturbed {
  value: number | undefined;
  samples = 0;

  add(ms: number): void {
    const known = this.value ?? ms;
    const share = ms > known ? 0.1 : this.samples < FIRST ? 1 : 0.5;
    this.value = known + share * (Math.min(ms, 1.5 * known) - known);
    this.samples++;
  }
}

/** Times by a number of ids, which need not lie on a line: kernels take ids in groups. */
export class Times {
  readonly #by: Undisturbed[] = [];

  add(ids: number, ms: number): void {
    this.#by[ids] ??= new Undisturbed();
    this.#by[ids].add(ms);
  }

  /**
   * Milliseconds for 0 to `most` ids: never more than for more of them, linear between numbers that were seen, and beyond
   * those half of a proportional share for each. Undefined before the first.
   */
  upTo(most: number): Float64Array | undefined {
    const seen = this.#by.flatMap(({ value = 0 }, ids) => [[ids, value] as const]);
    const [first, last] = [seen[0], seen.at(-1)];
    if (!first || !last) return undefined;
    const each = (0.5 * last[1]) / last[0];
    const points = [[0, first[1]] as const, ...seen, [most + 1, last[1] + each * (most + 1 - last[0])] as const];
    const times = new Float64Array(most + 1);
    for (const [i, [to, b]] of points.entries()) {
      const [from, a] = points[i - 1] ?? [to, b];
      for (let ids = from; ids <= Math.min(to, most); ids++)
        times[ids] = a + ((b - a) * (ids - from)) / (to - from || 1);
    }
    for (let ids = most - 1; ids >= 0; ids--) times[ids] = Math.min(times[ids] ?? 0, times[ids + 1] ?? 0);
    return times;
  }
}
