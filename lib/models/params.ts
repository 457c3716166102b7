import { Philox } from '../rng.ts';
import { elements } from '../tensor.ts';

/** How a parameter starts. */
export type Init =
  | { kind: 'constant'; value: number }
  | { kind: 'normal'; std: number }
  | { kind: 'uniform'; bound: number }
  /** The logarithm of what is drawn log-uniformly from [min, max]: uniform itself. */
  | { kind: 'log-uniform'; min: number; max: number }
  /** `slope` times the column. */
  | { kind: 'ramp'; slope: number }
  /** A_log[e][n] = log(n + 1): S4D-real (Gu et al. 2022). */
  | { kind: 's4d-real' }
  /** softplus⁻¹ of steps drawn log-uniformly from [min, max] (Gu & Dao 2023). */
  | { kind: 'dt-bias'; min: number; max: number; floor: number };

export interface ParamSpec {
  readonly name: string;
  readonly shape: readonly number[];
  readonly init: Init;
}

/** How many numbers parameters are. */
export function parameterCount(specs: readonly ParamSpec[]): number {
  return specs.reduce((sum, { shape }) => sum + elements(shape), 0);
}

/** Starting values of one parameter. Each has its own random stream, so the order of creation does not matter. */
export function initialValues(spec: ParamSpec, seed: number, index: number): Float32Array {
  const out = new Float32Array(elements(spec.shape));
  const rng = new Philox(seed, index + 1);
  const { init } = spec;
  const columns = spec.shape.at(-1) ?? 1;
  for (let i = 0; i < out.length; i++) out[i] = draw(init, rng, i % columns);
  return out;
}

function draw(init: Init, rng: Philox, column: number): number {
  switch (init.kind) {
    case 'constant':
      return init.value;
    case 'normal':
      return rng.normal() * init.std;
    case 'uniform':
      return (2 * rng.uniform() - 1) * init.bound;
    case 'log-uniform':
      return logUniform(init, rng);
    case 'ramp':
      return init.slope * column;
    case 's4d-real':
      return Math.log(column + 1);
    case 'dt-bias': {
      const dt = Math.max(Math.exp(logUniform(init, rng)), init.floor);
      return dt + Math.log(-Math.expm1(-dt));
    }
  }
}

function logUniform({ min, max }: { min: number; max: number }, rng: Philox): number {
  return Math.log(min) + rng.uniform() * (Math.log(max) - Math.log(min));
}
