/** How far a result may lie from its reference; the reasons are in docs/numerics.md. */
export interface Tolerance {
  /** Root mean square of the differences over that of the reference. */
  rms: number;
  /** Largest difference, relative to the larger of the element and the reference's root mean square. */
  worst: number;
}

/** The bars of the project, relative to the float64 oracle; see docs/numerics.md. */
export const LOGITS: Tolerance = { rms: 2e-5, worst: 2e-5 };
export const GRADIENTS: Tolerance = { rms: 1e-4, worst: 1e-4 };

/**
 * Every tolerance of the parity tests. Names are those of docs/numerics.md.
 * - exact: the result is a choice, a copy or one rounding, so every bit must agree
 * - f32: computed in float32 where the reference computes in float64
 * - long: the same, where terms cancel: a scan over time and its gradient, the variance of numbers far from 0
 * - f16: the same, rounded to f16 where it is kept
 * - bf16: AVX-512 rounds the activations to bf16 before it multiplies
 * - bf16Block: the same in a fused block of many sequences on a GPU, whose products feed one another; single states err most
 * - i8: AVX-512 takes the activations as 16-bit integers
 * - i8Block: the same in a fused block, whose products feed one another
 */
export const TOLERANCES = {
  exact: { rms: 0, worst: 0 },
  f32: { rms: 2e-6, worst: 1e-5 },
  long: { rms: 1e-5, worst: 1e-4 },
  f16: { rms: 1e-4, worst: 1e-3 },
  bf16: { rms: 4e-3, worst: 2e-2 },
  bf16Block: { rms: 4e-3, worst: 5e-2 },
  i8: { rms: 1e-4, worst: 5e-4 },
  i8Block: { rms: 5e-4, worst: 2e-3 },
} as const satisfies Record<string, Tolerance>;
export type ToleranceName = keyof typeof TOLERANCES;

/** The two errors of the definition above. Equal infinities and two NaNs count as no difference. */
export function errors(got: ArrayLike<number>, want: ArrayLike<number>): Tolerance & { at: number } {
  let squares = 0;
  let reference = 0;
  let finite = 0;
  for (let i = 0; i < want.length; i++) {
    const w = want[i] as number;
    if (!Number.isFinite(w)) continue;
    finite++;
    reference += w * w;
  }
  const scale = Math.sqrt(reference / Math.max(1, finite));
  let worst = 0;
  let at = -1;
  for (let i = 0; i < want.length; i++) {
    const w = want[i] as number;
    const g = got[i] as number;
    if (Object.is(g, w) || g === w || (Number.isNaN(g) && Number.isNaN(w))) continue;
    const difference = Math.abs(g - w);
    squares += difference * difference;
    const relative = difference / Math.max(Math.abs(w), scale);
    if (!(relative <= worst)) {
      worst = Number.isNaN(relative) ? Number.POSITIVE_INFINITY : relative;
      at = i;
    }
  }
  const root = Math.sqrt(squares / Math.max(1, finite));
  const rms = squares === 0 ? 0 : root / scale;
  return { rms: Number.isNaN(rms) ? Number.POSITIVE_INFINITY : rms, worst, at };
}

/** Undefined when `got` is as close to `want` as `tolerance` asks, else a sentence that says how far it is. */
export function compare(got: ArrayLike<number>, want: ArrayLike<number>, tolerance: Tolerance): string | undefined {
  if (got.length !== want.length) return `expected ${want.length} elements, got ${got.length}`;
  const e = errors(got, want);
  if (e.rms <= tolerance.rms && e.worst <= tolerance.worst) return undefined;
  const where = e.at < 0 ? '' : `; worst at ${e.at}: expected ${want[e.at]}, got ${got[e.at]}`;
  return (
    `relative RMS ${e.rms.toExponential(2)} (allowed ${tolerance.rms.toExponential(0)}), ` +
    `worst element ${e.worst.toExponential(2)} (allowed ${tolerance.worst.toExponential(0)})${where}`
  );
}
