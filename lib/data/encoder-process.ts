// A process of encoder.ts: gets the text of a tokenizer.json, then texts, and answers each with its ids.
import { Tokenizer } from '../tokenizer/tokenizer.ts';

// Ctrl-C reaches this process too; its parent decides what it means.
process.on('SIGINT', () => undefined);
process.once('message', (json: string) => {
  const tokenizer = Tokenizer.fromJson(json);
  process.on('message', (bytes: Uint8Array) => process.send?.(tokenizer.encode(bytes)));
});
