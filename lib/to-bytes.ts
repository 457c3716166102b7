import { describe, expected } from './errors.ts';

/** UTF-8 of a string, or the bytes as they are. @throws TypeError for lone surrogates, which UTF-8 cannot express */
export function toBytes(where: string, what: string, input: unknown): Uint8Array {
  if (input instanceof Uint8Array) return input;
  if (typeof input !== 'string') {
    throw new TypeError(expected(where, what, 'be a string or a Uint8Array', describe(input)));
  }
  if (!isWellFormed(input)) {
    throw new TypeError(
      expected(
        where,
        what,
        'be well-formed text',
        'a string with a lone surrogate',
        'Pass bytes, or call toWellFormed().',
      ),
    );
  }
  return new TextEncoder().encode(input);
}

function isWellFormed(text: string): boolean {
  return !/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/.test(text);
}
