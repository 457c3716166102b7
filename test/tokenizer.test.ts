// Tokenizers against Hugging Face's own encoding of whole texts, round trips of any bytes, what stays when bytes follow,
// and the trainer against merges made by hand.
import { spawn } from 'node:child_process';
import { createRequire } from 'node:module';
import { text } from 'node:stream/consumers';
import test from 'ava';
import { DataError, ModelFormatError } from '../lib/errors.ts';
import { bytesOfName, nameOfBytes } from '../lib/tokenizer/byte-alphabet.ts';
import { measureTokenizer } from '../lib/tokenizer/measure.ts';
import { PairMerger } from '../lib/tokenizer/pair-merger.ts';
import { Tokenizer } from '../lib/tokenizer/tokenizer.ts';
import { trainTokenizer } from '../lib/tokenizer/train-bpe.ts';
import { PROGRAM } from './support/bundle.ts';
import { fileOf, folder } from './support/folder.ts';
import { prose } from './support/prose.ts';
import { Random } from './support/random.ts';

interface Peer {
  encode(text: string, options: { add_special_tokens: boolean }): { ids: number[] };
}
const library: { Tokenizer: new (file: unknown, config: object) => Peer } = createRequire(import.meta.url)(
  '@huggingface/tokenizers',
);

const ODD =
  "It's 'tis don't\r\n\r\n\t x=  12 345\f\n\f naïve e\u0301 “quoted” — 東京  \u00a0\u3000 \ufeff\u0665 😀👍🏽 <|endoftext|> \u0000\n\n\n  end \n ";

/** The trained tokenizer, with what a case changes in its file. */
type Change = (file: TokenizerJson) => void;
interface TokenizerJson {
  normalizer: unknown;
  added_tokens: unknown[];
  // biome-ignore lint/suspicious/noExplicitAny: cases write what no type allows
  pre_tokenizer: any;
  // biome-ignore lint/suspicious/noExplicitAny: cases write what no type allows
  model: any;
}
let trained: Tokenizer;
const changed = (change: Change): string => {
  const file = JSON.parse(trained.json);
  change(file);
  return JSON.stringify(file);
};

const special = { id: 600, content: '<|endoftext|>', special: true };
const indent = { id: 601, content: '   ', special: false, normalized: true };
const VARIANTS: Record<string, Change> = {
  'as trained': () => {},
  'with a special token': (file) => {
    file.added_tokens.push(special);
  },
  "with GPT-2's pieces": (file) => {
    file.pre_tokenizer = { type: 'ByteLevel', add_prefix_space: false };
  },
  "with GPT-2's pieces and tokens found before them": (file) => {
    file.pre_tokenizer = { type: 'ByteLevel', add_prefix_space: false };
    file.added_tokens.push(special, indent);
  },
  'with merges in the older form, NFC and another Split': (file) => {
    file.model.merges = file.model.merges.map((pair: string[]) => pair.join(' '));
    file.normalizer = { type: 'NFC' };
    file.pre_tokenizer.pretokenizers[0].pattern = { Regex: '\\s?\\w+|\\s+(?!\\S)|[^\\s\\w]' };
  },
};

test.before(async () => {
  const text = Buffer.concat([prose(60_000, 1), Buffer.from(ODD.repeat(20))]);
  trained = await trainTokenizer(fileOf('text.txt', text), { vocab: 512 });
});

for (const [name, change] of Object.entries(VARIANTS)) {
  test(`encodes text as the library does, ${name}`, (t) => {
    const tokenizer = Tokenizer.fromJson(changed(change));
    // The library parses special tokens out of a text and normalizes it; here neither may be.
    const file = JSON.parse(tokenizer.json);
    file.added_tokens = file.added_tokens.filter((token: { special: boolean }) => !token.special);
    const peer = new library.Tokenizer({ ...file, normalizer: null }, {});
    for (const text of ['', ODD, prose(5000, 2).toString(), ODD.repeat(50)]) {
      t.deepEqual([...tokenizer.encode(text)], peer.encode(text, { add_special_tokens: false }).ids);
    }
  });

  test(`decode gives back any bytes, ${name}`, (t) => {
    const tokenizer = Tokenizer.fromJson(changed(change));
    const emoji = Buffer.from('smile 😀 and more');
    const cases: Record<string, Uint8Array> = {
      empty: Buffer.alloc(0),
      'all bytes': Uint8Array.from({ length: 256 }, (_, i) => i),
      random: Uint8Array.from(new Random(3).integers(5000, 0, 256)),
      'continuation bytes alone': Buffer.from([0x80, 0x80, 0xbf]),
      'overlong, surrogate and beyond U+10FFFF': Buffer.from([
        0xc0, 0xaf, 0xe0, 0x80, 0xaf, 0xed, 0xa0, 0x80, 0xf4, 0x90, 0x80, 0x80,
      ]),
      'text beside other bytes': Buffer.concat([
        Buffer.from(' the'),
        Buffer.of(0xff),
        Buffer.from('n é'),
        Buffer.of(0xe2),
      ]),
      'CRLF and special text': Buffer.from(ODD),
    };
    for (let cut = 6; cut <= 10; cut++) {
      cases[`emoji cut at ${cut}`] = emoji.subarray(0, cut);
      cases[`emoji from ${cut}`] = emoji.subarray(cut);
    }
    for (const [what, bytes] of Object.entries(cases)) {
      t.deepEqual([...tokenizer.decode(tokenizer.encode(bytes))], [...bytes], what);
    }
  });

  test(`what follows does not change the ids before stableEnd, ${name}`, (t) => {
    const tokenizer = Tokenizer.fromJson(changed(change));
    const parts = [' ', ' ', '\n', '\t', 'the', 'a', "'", "'s", '5', '\u0665', 'é', '\u00a0', '😀', '.', '"'].map((s) =>
      Buffer.from(s),
    );
    const cutOff = [[0xff], [0xe2], [0xe2, 0x82], [0xac], [0xf0, 0x9f], [0xc3], [0xa9], [0x80]].map((b) =>
      Buffer.from(b),
    );
    const choices = [...parts, ...cutOff];
    const random = new Random(4);
    const some = (most: number) => {
      const [length = 0] = random.integers(1, 0, most + 1);
      return Buffer.concat([...random.integers(length, 0, choices.length)].map((i) => choices[i] ?? Buffer.alloc(0)));
    };
    for (let i = 0; i < 400; i++) {
      const head = some(10);
      const end = tokenizer.stableEnd(head);
      t.true(end >= 0 && end <= head.length);
      for (let j = 0; j < 6; j++) {
        const all = Buffer.concat([head, some(5)]);
        const apart = [...tokenizer.encode(all.subarray(0, end)), ...tokenizer.encode(all.subarray(end))];
        t.deepEqual([...tokenizer.encode(all)], apart, `${head.toString('latin1')} | ${all.toString('latin1')}`);
      }
    }
  });
}

test('stableEnd is the start of the last piece that can change', (t) => {
  const cases: [string | Buffer, number][] = [
    ['', 0],
    ['one', 0],
    ['one two', 3],
    ['one two ', 7],
    ['one two.', 7],
    ['one\n\n', 3],
    ['one 12', 6],
    [Buffer.from('one é').subarray(0, 5), 3],
    [Buffer.from([0x61, 0x20, 0xff]), 3],
    ["don't", 0],
  ];
  for (const [text, end] of cases) t.is(trained.stableEnd(Buffer.from(text as string)), end, String(text));
  const gpt2 = Tokenizer.fromJson(changed(VARIANTS["with GPT-2's pieces"] as Change));
  t.is(gpt2.stableEnd(Buffer.from('one two')), 3);
});

test('text longer than what is cut at once has the ids of the library', (t) => {
  const text = prose(4.5 * 2 ** 20, 5).toString();
  const peer = new library.Tokenizer(JSON.parse(trained.json), {});
  const ids = trained.encode(text);
  t.is(
    Buffer.compare(
      Buffer.from(ids.buffer),
      Buffer.from(Int32Array.from(peer.encode(text, { add_special_tokens: false }).ids).buffer),
    ),
    0,
  );
});

test('sorted orders ids by their bytes, and range finds what begins with a prefix', (t) => {
  const tokenizer = Tokenizer.fromJson(changed((file) => file.added_tokens.push(special, indent)));
  const { sorted } = tokenizer;
  t.is(tokenizer.vocab, 602);
  t.is(sorted.length, 513);
  t.is(tokenizer.bytesOf(600).length, 0);
  t.is(tokenizer.bytesOf(550).length, 0);
  const bytes = [...sorted].map((id) => Buffer.from(tokenizer.bytesOf(id)));
  for (let i = 1; i < bytes.length; i++) t.true(Buffer.compare(bytes[i - 1] as Buffer, bytes[i] as Buffer) <= 0);
  for (const prefix of ['', 't', ' t', ' the', '\xff', '   ', 'no such prefix'].map((s) => Buffer.from(s, 'latin1'))) {
    const begins = bytes.map((b) => b.subarray(0, prefix.length).equals(prefix));
    const count = begins.filter(Boolean).length;
    const [from, to] = tokenizer.range(prefix);
    t.is(to - from, count, prefix.toString());
    if (count > 0) t.is(from, begins.indexOf(true), prefix.toString());
  }
});

test('names of bytes are those of GPT-2', (t) => {
  t.is(nameOfBytes(Buffer.from(' a\n\u00ad', 'latin1')), 'ĠaĊŃ');
  t.is(bytesOfName('no space'), undefined);
});

test('training makes the merges that a count by hand makes', async (t) => {
  // Pieces: " ab" x 4, " abc" x 3, "ab", " c". Pairs: (a b) 8, ( a) 7; then ( ab) 7, (ab c) 3; then ( ab c) 3, again.
  const path = fileOf('small.txt', 'ab ab ab ab ab abc abc abc c');
  const names = (tokenizer: Tokenizer) =>
    [...Array(tokenizer.vocab - 256).keys()].map((i) => Buffer.from(tokenizer.bytesOf(256 + i)).toString());
  const small = await trainTokenizer(path, { vocab: 259 });
  t.deepEqual(names(small), ['ab', ' ab', ' abc']);
  t.deepEqual(
    [...Array(256).keys()].map((id) => [...small.bytesOf(id)]),
    [...Array(256).keys()].map((id) => [id]),
  );
  t.deepEqual([...small.encode('ab abc c')], [256, 258, 32, 99]);
  const error = await t.throwsAsync(trainTokenizer(path, { vocab: 300 }), { instanceOf: DataError });
  t.regex(error.message, /small\.txt: expected the data to yield 300 tokens, got pairs that occur twice for 259 only/);
});

test('merges are those of counting all pairs anew each time', (t) => {
  const random = new Random(8);
  for (let round = 0; round < 30; round++) {
    const letters = () => String.fromCharCode(...random.integers(2 + round, 97, 99 + (round % 3)));
    const counts = new Map(Array.from({ length: 8 }, (_, i) => [letters(), 1 + (i % 3)]));
    const merger = new PairMerger(counts);
    const names: string[] = [];
    for (let merge = merger.next(); merge && names.length < 25; merge = merger.next()) {
      names.push(`${Buffer.from(merger.bytesOf(merge.left))} ${Buffer.from(merger.bytesOf(merge.right))}`);
    }
    t.deepEqual(names, mergesCountedAnew(counts, 25));
  }
});

/** Byte-pair encoding by its definition; words of ASCII. */
function mergesCountedAnew(counts: ReadonlyMap<string, number>, most: number): string[] {
  const words = [...counts].map(([word, count]) => ({ symbols: [...word], count }));
  const merges: string[] = [];
  while (merges.length < most) {
    const pairs = new Map<string, number>();
    for (const { symbols, count } of words) {
      for (let i = 1; i < symbols.length; i++) {
        const pair = `${symbols[i - 1]} ${symbols[i]}`;
        pairs.set(pair, (pairs.get(pair) ?? 0) + count);
      }
    }
    const [best] = [...pairs].sort(([a, n], [b, m]) => m - n || (a < b ? -1 : 1));
    if (!best || best[1] < 2) break;
    merges.push(best[0]);
    const [left, right] = best[0].split(' ');
    for (const word of words) {
      const merged: string[] = [];
      for (let i = 0; i < word.symbols.length; i++) {
        const joins = word.symbols[i] === left && word.symbols[i + 1] === right;
        merged.push(joins ? `${left}${right}` : (word.symbols[i] ?? ''));
        if (joins) i++;
      }
      word.symbols = merged;
    }
  }
  return merges;
}

test('equal counts go by their bytes, whatever the order of the text', async (t) => {
  const words = ['zx', 'by', 'ac', 'ab'];
  const train = (list: string[]) =>
    trainTokenizer(fileOf('t.txt', `${list.join('\n\n')}\n\n`.repeat(3)), { vocab: 258 });
  const first = await train(words);
  const second = await train(words.reverse());
  t.is(first.json, second.json);
});

test('training twice gives the same file, of the vocabulary asked for; maxBytes bounds what is read', async (t) => {
  const path = fileOf('prose.txt', prose(50_000, 6));
  let most = 0;
  const train = () =>
    trainTokenizer(path, {
      vocab: 400,
      maxBytes: 20_000,
      onProgress: ({ bytes }) => {
        most = bytes;
      },
    });
  const tokenizer = await train();
  t.is(tokenizer.vocab, 400);
  t.is(tokenizer.json, (await train()).json);
  t.is(most, 20_000);
  const { bytes, tokens, bytesPerToken } = await measureTokenizer(tokenizer, path);
  t.deepEqual([bytes, tokens, bytesPerToken], [50_000, tokenizer.encode(prose(50_000, 6)).length, bytes / tokens]);
});

test('training ends when its signal says so', async (t) => {
  const controller = new AbortController();
  const stop = () => controller.abort(new Error('enough'));
  const path = fileOf('prose.txt', prose(50_000, 7));
  await t.throwsAsync(trainTokenizer(path, { vocab: 400, signal: controller.signal, onProgress: stop }), {
    message: 'enough',
  });
});

test('the command trains a tokenizer and measures it', async (t) => {
  const data = fileOf('prose.txt', prose(20_000, 9));
  const out = `${folder()}/tokenizer.json`;
  const made = await run('train', '--vocab', '300', '--out', out, data, '--json');
  t.like(JSON.parse(made.out), { out, data: [data], vocab: 300, bytes: 20_000 });
  const tokenizer = await trainTokenizer(data, { vocab: 300 });
  t.is((await Tokenizer.open(out)).json, tokenizer.json);
  const measured = await run('measure', out, data, '--json');
  t.like(JSON.parse(measured.out), { bytes: 20_000, tokens: tokenizer.encode(prose(20_000, 9)).length });
  t.regex((await run('measure', out, data)).out, /^bytes per token {2}\d\.\d{4}\ntokens /);
  const faults: [string[], number, RegExp][] = [
    [[], 2, /Usage: mambabyte tokenizer/],
    [['train', '--vocab', '100', '--out', out, data], 2, /vocab to be an integer at least 256/],
    [['measure', data, data], 1, /prose\.txt: expected the file to be JSON/],
  ];
  for (const [args, code, message] of faults) {
    const ran = await run(...args);
    t.is(ran.code, code);
    t.regex(ran.err, message);
  }
});

async function run(...args: string[]): Promise<{ code: number | null; out: string; err: string }> {
  const child = spawn(process.execPath, [PROGRAM, 'tokenizer', ...args]);
  const [out, err, code] = await Promise.all([
    text(child.stdout),
    text(child.stderr),
    new Promise<number | null>((resolve) => child.on('close', resolve)),
  ]);
  return { code, out, err };
}

test('a file that is no byte-level BPE is refused by what is wrong with it', async (t) => {
  const split =
    (change: object): Change =>
    (file) =>
      Object.assign(file.pre_tokenizer.pretokenizers[0], change);
  const cases: [string, RegExp][] = [
    ['{', /Tokenizer\.fromJson: expected the file to be JSON/],
    ['[]', /the file to be an object, got \[\]/],
    ['{}', /model to be an object, got undefined/],
    ['{"a":1,"a":2}', /keys to be unique, got "a" twice/],
    [
      changed((f) => {
        f.normalizer = { type: 'Lowercase' };
      }),
      /normalizer to be null or NFC, got "Lowercase"/,
    ],
    [
      changed((f) => {
        f.model.type = 'Unigram';
      }),
      /model\.type to be "BPE", got "Unigram"/,
    ],
    [
      changed((f) => {
        f.model.byte_fallback = true;
      }),
      /model\.byte_fallback to be off, got true/,
    ],
    [
      changed((f) => {
        delete f.model.vocab.Ā;
      }),
      /a token for each of the 256 bytes, got none for 1: 0\./,
    ],
    [
      changed((f) => {
        f.model.vocab.extra = 0;
      }),
      /the id of "extra" to belong to one token, got 0/,
    ],
    [
      changed((f) => {
        f.model.vocab.extra = -1;
      }),
      /the id of "extra" to be an integer from 0/,
    ],
    [
      changed((f) => {
        f.model.vocab['two words'] = 700;
      }),
      /a token to be written in the byte alphabet/,
    ],
    [
      changed((f) => {
        f.model.merges.push(['Ā', 'ÿ']);
      }),
      /merge 256 to join tokens to a token of the vocabulary, got "Āÿ"/,
    ],
    [
      changed((f) => {
        f.model.merges.push('abc');
      }),
      /merge 256 to be two tokens, got "abc"/,
    ],
    [
      changed((f) => {
        f.pre_tokenizer = { type: 'Metaspace' };
      }),
      /pre_tokenizer to end in ByteLevel, got "Metaspace"/,
    ],
    [
      changed((f) => {
        f.pre_tokenizer.pretokenizers[1].add_prefix_space = true;
      }),
      /add_prefix_space to be false/,
    ],
    [changed(split({ behavior: 'Removed' })), /Split\.behavior to be "Isolated", got "Removed"/],
    [changed(split({ invert: true })), /Split\.invert to be false/],
    [changed(split({ pattern: { Regex: '(' } })), /Split\.pattern to be an expression that JavaScript has/],
    [changed((f) => f.added_tokens.push({ ...indent, lstrip: true })), /lstrip of the added token " {3}" to be false/],
  ];
  for (const [json, message] of cases)
    t.throws(() => Tokenizer.fromJson(json), { instanceOf: ModelFormatError, message });
  const missing = `${folder()}/none.json`;
  await t.throwsAsync(Tokenizer.open(missing), {
    instanceOf: ModelFormatError,
    message: /none\.json: expected the tokenizer to be readable, got ENOENT/,
  });
  t.is((await Tokenizer.open(fileOf('tokenizer.json', trained.json))).json, trained.json);
});

test('mistakes in a call are refused', async (t) => {
  t.throws(() => trained.encode(5 as never), { instanceOf: TypeError, message: /text to be a string or a Uint8Array/ });
  t.throws(() => trained.encode('a\ud800'), { instanceOf: TypeError, message: /text to be well-formed/ });
  for (const id of [-1, 512, 0.5]) t.throws(() => trained.decode([id]), { instanceOf: RangeError });
  await t.throwsAsync(trainTokenizer('x', { vocab: 255 }), {
    instanceOf: RangeError,
    message: /vocab to be an integer at least 256/,
  });
  await t.throwsAsync(trainTokenizer('x', { vocab: 300, size: 1 } as never), {
    instanceOf: TypeError,
    message: /"size"/,
  });
  await t.throwsAsync(measureTokenizer(trained, folder()), { instanceOf: DataError });
  const path = fileOf('letters.txt', 'aa\n\f\nbb\n\f\ncc');
  await t.throwsAsync(measureTokenizer(trained, path, { maxBytes: 2 }), {
    instanceOf: DataError,
    message: /have text within maxBytes, got none/,
  });
});
