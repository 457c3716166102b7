// The parts of @huggingface/tokenizers that are used, loaded by require because the package's type declarations do not
// resolve for an ES module.
import { createRequire } from 'node:module';

/** Byte-pair encoding: words in, their tokens out. */
interface Bpe {
  encode(words: string[]): string[];
}

interface SplitPreTokenizer {
  /** The expression, rewritten from Oniguruma's syntax to JavaScript's; global. */
  readonly pattern: RegExp;
}

interface Library {
  BPE: new (config: {
    type: 'BPE';
    vocab: Record<string, number>;
    merges: readonly [string, string][];
    ignore_merges: boolean;
  }) => Bpe;
  SplitPreTokenizer: new (config: { pattern: { Regex: string } | { String: string } }) => SplitPreTokenizer;
}

export type { Bpe };
export const { BPE, SplitPreTokenizer }: Library = createRequire(import.meta.url)('@huggingface/tokenizers');
