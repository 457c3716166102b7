// A small byte-level tokenizer.json made by hand: 256 bytes, then merges along common words.
const WORDS = ['the', 'and', 'of', 'to', 'in', 'he', 'was', 'that', 'it', 'his', 'her', 'with', 'which', 'there'];

/** GPT-2's printable stand-ins for bytes. */
function alphabet(): string[] {
  let other = 256;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
    return String.fromCodePoint(printable ? byte : other++);
  });
}

/** Text of a tokenizer.json whose first 256 ids are the bytes; `words` have a token each, with a space in front. */
export function tokenizerJson(words: readonly string[] = WORDS): string {
  const vocab = new Map(alphabet().map((name, byte) => [name, byte]));
  const merges: [string, string][] = [];
  for (const word of words) {
    let left = 'Ġ';
    for (const letter of word) {
      if (!vocab.has(left + letter)) {
        vocab.set(left + letter, vocab.size);
        merges.push([left, letter]);
      }
      left += letter;
    }
  }
  return JSON.stringify({
    version: '1.0',
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
    post_processor: null,
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: { type: 'BPE', vocab: Object.fromEntries(vocab), merges },
  });
}
