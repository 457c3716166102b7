// Every error this package throws, the one grammar of their messages, and the checks of options that users pass.
//
// Grammar: `<where>: expected <what> to <be what>, got <actual>. <hint>`. Mistakes in a call are TypeError or RangeError,
// thrown at the offending line; what the world did (a bad file, no memory, a lost device) is a MambaByteError with a code.

/** The base of all errors that are not mistakes in a call. `code` never changes between versions. */
export class MambaByteError extends Error {
  readonly code: string;

  constructor(code: string, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }

  override get name(): string {
    return this.constructor.name;
  }
}

/** A weight file, or its config, is not what its format or the architecture requires. */
export class ModelFormatError extends MambaByteError {
  constructor(message: string, options?: ErrorOptions) {
    super('ERR_MODEL_FORMAT', message, options);
  }
}

/**
 * Why a device cannot be opened: the backend's library is missing or of another version; there is no NVIDIA driver, or
 * one too old for the CUDA version of the backend; there is no GPU of that number; the GPU or processor is one that the
 * kernels do not run on; its memory is full; or what the message says.
 */
export type DeviceReason =
  | 'no-library'
  | 'no-driver'
  | 'driver-too-old'
  | 'no-device'
  | 'unsupported-device'
  | 'out-of-memory'
  | 'other';

/** The device that was asked for cannot be opened here; `reason` says why, the message also what to do. */
export class DeviceUnavailableError extends MambaByteError {
  readonly reason: DeviceReason;

  constructor(message: string, options: ErrorOptions & { reason?: DeviceReason } = {}) {
    super('ERR_DEVICE_UNAVAILABLE', message, options);
    this.reason = options.reason ?? 'other';
  }
}

/** A buffer could not be allocated; nothing was changed. */
export class OutOfMemoryError extends MambaByteError {
  constructor(message: string, options?: ErrorOptions) {
    super('ERR_OUT_OF_MEMORY', message, options);
  }
}

/** An object was used after its dispose(). */
export class DisposedError extends MambaByteError {
  constructor(message: string, options?: ErrorOptions) {
    super('ERR_DISPOSED', message, options);
  }
}

/** An object that serves one caller at a time is already in use. */
export class BusyError extends MambaByteError {
  constructor(message: string, options?: ErrorOptions) {
    super('ERR_BUSY', message, options);
  }
}

/** The native addon could not be found or loaded. */
export class NativeLoadError extends MambaByteError {
  constructor(message: string, options?: ErrorOptions) {
    super('ERR_NATIVE_LOAD', message, options);
  }
}

/** Native code reported a failure; `op` and `scope` name the node of the plan where that is known. */
export class NativeError extends MambaByteError {
  readonly op: string | undefined;
  readonly scope: string | undefined;

  constructor(message: string, options: ErrorOptions & { op?: string; scope?: string } = {}) {
    super('ERR_NATIVE', message, options);
    this.op = options.op;
    this.scope = options.scope;
  }
}

/** A checkpoint could not be written or resumed from; the previous one is intact. */
export class CheckpointError extends MambaByteError {
  constructor(message: string, options?: ErrorOptions) {
    super('ERR_CHECKPOINT', message, options);
  }
}

/** A data set is missing, unreadable or too small. */
export class DataError extends MambaByteError {
  constructor(message: string, options?: ErrorOptions) {
    super('ERR_DATA', message, options);
  }
}

/** An operand's shape or dtype does not fit the op; thrown at the line that recorded it. */
export class ShapeError extends TypeError {
  readonly code = 'ERR_SHAPE';

  override get name(): string {
    return 'ShapeError';
  }
}

/**
 * A message in the package's one grammar.
 *
 * `got` is printed as it stands, so pass `describe(value)` for anything that is not already words.
 */
export function expected(where: string, what: string, shouldBe: string, got: string, hint?: string): string {
  return `${where}: expected ${what} to ${shouldBe}, got ${got}.${hint ? ` ${hint}` : ''}`;
}

/** A short, one-line rendering of any value for an error message; never throws and never runs user code at length. */
export function describe(value: unknown): string {
  switch (typeof value) {
    case 'string':
      return quote(value);
    case 'bigint':
      return `${value}n`;
    case 'function':
      return value.name ? `function ${value.name}` : 'a function';
    case 'symbol':
      return 'a symbol';
    case 'object':
      return describeObject(value);
    default:
      return Object.is(value, -0) ? '-0' : String(value);
  }
}

function describeObject(value: object | null): string {
  if (value === null) return 'null';
  if (Array.isArray(value)) {
    const items = value.slice(0, 8).map((item) => (typeof item === 'object' && item !== null ? '…' : describe(item)));
    return `[${items.join(', ')}${value.length > 8 ? `, … ${value.length} items` : ''}]`;
  }
  const kind = Object.prototype.toString.call(value).slice(8, -1);
  if (ArrayBuffer.isView(value) && 'length' in value) return `${kind}(${value.length})`;
  if (value instanceof Error) return `${value.name}: ${quote(value.message)}`;
  if (kind !== 'Object') return `a ${kind}`;
  const keys = Object.keys(value);
  const shown = keys.slice(0, 4).join(', ');
  return keys.length === 0 ? '{}' : `{ ${shown}${keys.length > 4 ? ', …' : ''} }`;
}

function quote(text: string): string {
  return JSON.stringify(text.length > 60 ? `${text.slice(0, 57)}…` : text);
}

/** `first, second, …` up to `limit` names, then how many more there are. */
export function listNames(names: readonly string[], limit = 8): string {
  const shown = names.slice(0, limit).join(', ');
  return names.length > limit ? `${shown} and ${names.length - limit} more` : shown;
}

/**
 * Checks that `options` is a plain bag of known keys.
 *
 * @throws TypeError naming the unknown option and the nearest known one.
 */
export function checkOptions(where: string, options: unknown, allowedKeys: readonly string[]): void {
  if (options === undefined) return;
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw new TypeError(expected(where, 'options', 'be an object', describe(options)));
  }
  for (const key of Object.keys(options)) {
    if (allowedKeys.includes(key)) continue;
    const near = nearest(key, allowedKeys);
    const hint = near === undefined ? `Known options: ${allowedKeys.join(', ')}.` : `Did you mean ${quote(near)}?`;
    throw new TypeError(expected(where, 'options', 'have only known keys', quote(key), hint));
  }
}

/** The candidate closest to `word` in Damerau-Levenshtein distance, if any is near enough to be meant. */
export function nearest(word: string, candidates: readonly string[]): string | undefined {
  let best: string | undefined;
  let bestDistance = Math.max(2, Math.floor(word.length / 2)) + 1;
  for (const candidate of candidates) {
    const distance = editDistance(plain(word), plain(candidate));
    if (distance < bestDistance) {
      best = candidate;
      bestDistance = distance;
    }
  }
  return best;
}

/** top_p, top-p and topP are one name to a reader. */
function plain(word: string): string {
  return word.slice(0, 64).toLowerCase().replaceAll(/[-_]/g, '');
}

/** Optimal string alignment: insertions, deletions, substitutions and swaps of neighbours each cost 1. */
export function editDistance(a: string, b: string): number {
  let beforeLast: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1];
      let cost = Math.min(at(last, j) + 1, at(row, j - 1) + 1, at(last, j - 1) + (same ? 0 : 1));
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        cost = Math.min(cost, at(beforeLast, j - 2) + 1);
      }
      row.push(cost);
    }
    beforeLast = last;
    last = row;
  }
  return at(last, b.length);
}

function at(row: readonly number[], index: number): number {
  return row[index] ?? Number.POSITIVE_INFINITY;
}

/** What a numeric option may be; a bound that is left out does not apply. `above` and `below` are exclusive. */
export interface NumberRange {
  min?: number;
  max?: number;
  above?: number;
  below?: number;
}

/**
 * Checks that a user's value is a finite number in a range and returns it.
 *
 * @throws TypeError if it is not a number, RangeError if it is NaN, infinite or out of range.
 */
export function checkNumber(where: string, name: string, value: unknown, range: NumberRange = {}): number {
  return checkRange(where, name, value, range, 'a finite number', Number.isFinite);
}

/**
 * Checks that a user's value is a safe integer in a range and returns it.
 *
 * @throws TypeError if it is not a number, RangeError if it is not an integer or out of range.
 */
export function checkInteger(where: string, name: string, value: unknown, range: NumberRange = {}): number {
  return checkRange(where, name, value, range, 'an integer', Number.isSafeInteger);
}

/** Checks that a user's value is a probability in (0, 1] and returns it. */
export function checkProbability(where: string, name: string, value: unknown): number {
  return checkNumber(where, name, value, { above: 0, max: 1 });
}

function checkRange(
  where: string,
  name: string,
  value: unknown,
  range: NumberRange,
  kind: string,
  isKind: (value: number) => boolean,
): number {
  const { min = -Infinity, max = Infinity, above = -Infinity, below = Infinity } = range;
  const isNumber = typeof value === 'number';
  if (isNumber && isKind(value) && value >= min && value <= max && value > above && value < below) return value;
  const message = expected(where, name, `be ${kind}${rangeWords(range)}`, describe(value));
  throw isNumber ? new RangeError(message) : new TypeError(message);
}

function rangeWords({ min, max, above, below }: NumberRange): string {
  const words: string[] = [];
  if (min !== undefined) words.push(`at least ${min}`);
  if (above !== undefined) words.push(`above ${above}`);
  if (max !== undefined) words.push(`at most ${max}`);
  if (below !== undefined) words.push(`below ${below}`);
  return words.length === 0 ? '' : ` ${words.join(' and ')}`;
}

/** @throws TypeError unless `value` is true or false. */
export function checkBoolean(where: string, name: string, value: unknown): boolean {
  if (typeof value !== 'boolean') throw new TypeError(expected(where, name, 'be true or false', describe(value)));
  return value;
}

/** @throws TypeError unless `value` is a function. */
export function checkFunction(where: string, name: string, value: unknown): void {
  if (typeof value !== 'function') throw new TypeError(expected(where, name, 'be a function', describe(value)));
}

/** @throws TypeError unless `value` is a string. */
export function checkString(where: string, name: string, value: unknown): string {
  if (typeof value !== 'string') throw new TypeError(expected(where, name, 'be a string', describe(value)));
  return value;
}

/** @throws TypeError if `value` is not a string, RangeError naming the nearest choice if it is not one of `choices`. */
export function checkChoice<T extends string>(where: string, name: string, value: unknown, choices: readonly T[]): T {
  const shouldBe = `be one of ${choices.join(', ')}`;
  if (typeof value !== 'string') throw new TypeError(expected(where, name, shouldBe, describe(value)));
  const found = choices.find((choice) => choice === value);
  if (found !== undefined) return found;
  const near = nearest(value, choices);
  const hint = near === undefined ? undefined : `Did you mean ${quote(near)}?`;
  throw new RangeError(expected(where, name, shouldBe, describe(value), hint));
}

/** @throws TypeError unless `value` is undefined or an AbortSignal. */
export function checkSignal(where: string, value: unknown): void {
  if (value === undefined || value instanceof AbortSignal) return;
  throw new TypeError(expected(where, 'signal', 'be an AbortSignal', describe(value)));
}
