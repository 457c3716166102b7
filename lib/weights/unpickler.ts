// A pickle machine that can build dicts, lists, tuples, numbers, strings and descriptions of tensors, and nothing else.
// No global is ever looked up and nothing is ever called: the few names that torch.save needs are matched as text.
// Source: CPython Lib/pickletools.py (opcodes of protocol 2); torch/_utils.py (arguments of the rebuild functions).
import { describe, expected, ModelFormatError } from '../errors.ts';
import type { StoredDType } from './stored-tensor.ts';

/** A tensor's data as torch.save names it: archive entry data/<key>, `count` elements. */
export class PickledStorage {
  readonly dtype: StoredDType;
  readonly key: string;
  readonly count: number;

  constructor(dtype: StoredDType, key: string, count: number) {
    this.dtype = dtype;
    this.key = key;
    this.count = count;
  }
}

/** A view of a storage; offset and strides in elements. */
export class PickledTensor {
  readonly storage: PickledStorage;
  readonly offset: number;
  readonly shape: number[];
  readonly strides: number[];

  constructor(storage: PickledStorage, offset: number, shape: number[], strides: number[]) {
    this.storage = storage;
    this.offset = offset;
    this.shape = shape;
    this.strides = strides;
  }
}

export class PickledTuple {
  readonly items: readonly Pickled[];

  constructor(items: readonly Pickled[]) {
    this.items = items;
  }
}

/** The name of a class or function, as text. */
class Global {
  readonly name: string;

  constructor(name: string) {
    this.name = name;
  }
}

export type PickledDict = Map<string | number | boolean, Pickled>;
export type Pickled =
  | null
  | boolean
  | number
  | string
  | Pickled[]
  | PickledDict
  | PickledTuple
  | PickledStorage
  | PickledTensor
  | Global;

const STORAGES: Record<string, StoredDType> = {
  'torch.DoubleStorage': 'F64',
  'torch.FloatStorage': 'F32',
  'torch.HalfStorage': 'F16',
  'torch.BFloat16Storage': 'BF16',
  'torch.CharStorage': 'I8',
  'torch.ByteStorage': 'U8',
  'torch.BoolStorage': 'BOOL',
  'torch.IntStorage': 'I32',
  'torch.LongStorage': 'I64',
};

const CALLS: Record<string, (machine: Unpickler, args: readonly Pickled[]) => Pickled> = {
  'collections.OrderedDict': (machine, args) => machine.orderedDict(args),
  'torch._utils._rebuild_tensor_v2': (machine, args) => machine.tensor(args),
  'torch._utils._rebuild_parameter': (machine, args) => machine.parameter(args),
};

const MAX_STACK = 1 << 20;
const MAX_MARKS = 256; // each open container holds one: this is the nesting depth

/**
 * Builds the one value of a pickle.
 *
 * @throws ModelFormatError naming any opcode or global beyond those of a state dict, and any malformed operand.
 */
export function unpickle(where: string, bytes: Buffer): Pickled {
  return new Unpickler(where, bytes).run();
}

class Unpickler {
  readonly #where: string;
  readonly #bytes: Buffer;
  readonly #memo = new Map<number, Pickled>();
  #stack: Pickled[] = [];
  #marks: number[] = [];
  #at = 0;

  constructor(where: string, bytes: Buffer) {
    this.#where = where;
    this.#bytes = bytes;
  }

  run(): Pickled {
    for (;;) {
      const start = this.#at;
      const opcode = this.#u8();
      if (opcode === 0x2e) return this.#result();
      const act = OPCODES.get(opcode);
      if (!act) {
        const got = `opcode 0x${opcode.toString(16).padStart(2, '0')} at byte ${start}`;
        throw this.#bad('the pickle', 'use only the opcodes of a state dict', got, 'Nothing of it was executed.');
      }
      act(this);
      if (this.#stack.length > MAX_STACK || this.#marks.length > MAX_MARKS) {
        throw this.#bad('the pickle', `nest at most ${MAX_MARKS} deep`, `more at byte ${start}`);
      }
    }
  }

  #result(): Pickled {
    const value = this.pop();
    if (this.#stack.length > 0) throw this.#bad('the pickle', 'leave one value', `${this.#stack.length + 1}`);
    return value;
  }

  #bad(what: string, shouldBe: string, got: string, hint?: string): ModelFormatError {
    return new ModelFormatError(expected(this.#where, what, shouldBe, got, hint));
  }

  #take(count: number): number {
    const start = this.#at;
    if (start + count > this.#bytes.length) {
      throw this.#bad(
        'the pickle',
        'end with STOP',
        `its end at byte ${this.#bytes.length}`,
        'The pickle is truncated.',
      );
    }
    this.#at += count;
    return start;
  }

  #u8(): number {
    return this.#bytes.readUInt8(this.#take(1));
  }

  #text(length: number): string {
    const start = this.#take(length);
    return this.#bytes.toString('utf8', start, start + length);
  }

  #line(): string {
    const end = this.#bytes.indexOf(0x0a, this.#at);
    const text = this.#text((end < 0 ? this.#bytes.length : end) - this.#at);
    this.#take(1);
    return text;
  }

  push(value: Pickled): void {
    this.#stack.push(value);
  }

  pop(): Pickled {
    if (this.#stack.length <= (this.#marks.at(-1) ?? 0)) throw this.#bad('the pickle', 'pop what it pushed', 'too few');
    return this.#stack.pop() as Pickled;
  }

  mark(): void {
    this.#marks.push(this.#stack.length);
  }

  #popToMark(): Pickled[] {
    const mark = this.#marks.pop();
    if (mark === undefined) throw this.#bad('the pickle', 'set a mark before it is used', 'none');
    return this.#stack.splice(mark);
  }

  proto(): void {
    const protocol = this.#u8();
    if (protocol !== 2) {
      throw this.#bad('the pickle protocol', 'be 2', `${protocol}`, 'Save with torch.save and its default protocol.');
    }
  }

  integer(bytes: 1 | 2 | 4): void {
    const at = this.#take(bytes);
    this.push(bytes === 4 ? this.#bytes.readInt32LE(at) : this.#bytes.readUIntLE(at, bytes));
  }

  long(): void {
    const length = this.#u8();
    let value = 0n;
    const start = this.#take(length);
    if (length > 8) throw this.#bad('an integer', 'fit in 8 bytes', `${length}`);
    for (let i = 0; i < length; i++) value |= BigInt(this.#bytes[start + i] as number) << BigInt(8 * i);
    // A step count or a large seed may pass 2^53: as data that no tensor uses it may lose its last bits.
    this.push(Number(BigInt.asIntN(8 * length, value)));
  }

  float(): void {
    this.push(this.#bytes.readDoubleBE(this.#take(8)));
  }

  unicode(): void {
    this.push(this.#text(this.#bytes.readUInt32LE(this.#take(4))));
  }

  global(): void {
    const name = `${this.#line()}.${this.#line()}`;
    if (!Object.hasOwn(STORAGES, name) && !Object.hasOwn(CALLS, name)) {
      const hint = 'It was not loaded. Save the plain state dict: torch.save(model.state_dict(), path).';
      throw this.#bad('the pickle', 'name only what a state dict needs', `global ${describe(name)}`, hint);
    }
    this.push(new Global(name));
  }

  put(index: number): void {
    const value = this.pop();
    this.push(value);
    this.#memo.set(index, value);
  }

  putShort(): void {
    this.put(this.#u8());
  }

  putLong(): void {
    this.put(this.#bytes.readUInt32LE(this.#take(4)));
  }

  get(index: number): void {
    const value = this.#memo.get(index);
    if (value === undefined) throw this.#bad('the pickle', 'get what it put', `memo ${index}, which is empty`);
    this.push(value);
  }

  getShort(): void {
    this.get(this.#u8());
  }

  getLong(): void {
    this.get(this.#bytes.readUInt32LE(this.#take(4)));
  }

  tuple(count: number): void {
    const items: Pickled[] = [];
    for (let i = 0; i < count; i++) items.unshift(this.pop());
    this.push(new PickledTuple(items));
  }

  tupleToMark(): void {
    this.push(new PickledTuple(this.#popToMark()));
  }

  append(items: readonly Pickled[]): void {
    const list = this.pop();
    if (!Array.isArray(list)) throw this.#bad('an append', 'go to a list', kindOf(list));
    for (const item of items) list.push(item);
    this.push(list);
  }

  appendOne(): void {
    this.append([this.pop()]);
  }

  appendToMark(): void {
    this.append(this.#popToMark());
  }

  setItems(items: readonly Pickled[]): void {
    const dict = this.pop();
    if (!(dict instanceof Map)) throw this.#bad('an item', 'go to a dict', kindOf(dict));
    if (items.length % 2 !== 0) throw this.#bad('dict items', 'come in pairs', `${items.length} values`);
    for (let i = 0; i < items.length; i += 2) {
      const key = items[i] as Pickled;
      if (typeof key !== 'string' && typeof key !== 'number' && typeof key !== 'boolean') {
        throw this.#bad('a dict key', 'be a string or a number', kindOf(key));
      }
      dict.set(key, items[i + 1] as Pickled);
    }
    this.push(dict);
  }

  setOne(): void {
    const value = this.pop();
    this.setItems([this.pop(), value]);
  }

  setToMark(): void {
    this.setItems(this.#popToMark());
  }

  /** State dicts carry version numbers as attributes of their OrderedDict; tensors do not depend on them. */
  build(): void {
    const state = this.pop();
    const target = this.pop();
    if (!(target instanceof Map) || !(state instanceof Map)) {
      throw this.#bad('BUILD', 'set the attributes of an OrderedDict', kindOf(target));
    }
    this.push(target);
  }

  reduce(): void {
    const args = this.pop();
    const callee = this.pop();
    const call = callee instanceof Global && Object.hasOwn(CALLS, callee.name) ? CALLS[callee.name] : undefined;
    if (!call || !(args instanceof PickledTuple)) {
      throw this.#bad('REDUCE', 'rebuild a tensor or an OrderedDict', `${kindOf(callee)} on ${kindOf(args)}`);
    }
    this.push(call(this, args.items));
  }

  /** ('storage', storage class, key, device, element count) */
  persistentId(): void {
    const id = this.pop();
    const [tag, type, key, , count] = id instanceof PickledTuple ? id.items : [];
    const dtype = type instanceof Global && Object.hasOwn(STORAGES, type.name) ? STORAGES[type.name] : undefined;
    if (tag !== 'storage' || !dtype || typeof key !== 'string' || !isCount(count)) {
      throw this.#bad('a persistent id', 'describe a storage', kindOf(id));
    }
    this.push(new PickledStorage(dtype, key, count));
  }

  orderedDict(args: readonly Pickled[]): Pickled {
    if (args.length > 0) throw this.#bad('OrderedDict', 'be made empty', `${args.length} arguments`);
    return new Map();
  }

  /** (storage, offset, shape, strides, requires_grad, backward_hooks, metadata?) */
  tensor(args: readonly Pickled[]): Pickled {
    const [storage, offset, shape, strides] = args;
    const dims = counts(shape);
    const steps = counts(strides);
    const ok = storage instanceof PickledStorage && isCount(offset) && dims && steps && dims.length === steps.length;
    if (!ok) {
      throw this.#bad('a tensor', 'have a storage, an offset and as many strides as dimensions', 'other arguments');
    }
    return new PickledTensor(storage, offset, dims, steps);
  }

  parameter(args: readonly Pickled[]): Pickled {
    if (!(args[0] instanceof PickledTensor)) throw this.#bad('a parameter', 'wrap a tensor', kindOf(args[0]));
    return args[0];
  }
}

/** The opcodes that torch.save writes for dicts of tensors and numbers, by their byte. */
const OPCODES = new Map<number, (machine: Unpickler) => void>([
  [0x80, (m) => m.proto()], // PROTO
  [0x28, (m) => m.mark()], // MARK
  [0x7d, (m) => m.push(new Map())], // EMPTY_DICT
  [0x5d, (m) => m.push([])], // EMPTY_LIST
  [0x29, (m) => m.tuple(0)], // EMPTY_TUPLE
  [0x85, (m) => m.tuple(1)], // TUPLE1
  [0x86, (m) => m.tuple(2)], // TUPLE2
  [0x87, (m) => m.tuple(3)], // TUPLE3
  [0x74, (m) => m.tupleToMark()], // TUPLE
  [0x4e, (m) => m.push(null)], // NONE
  [0x88, (m) => m.push(true)], // NEWTRUE
  [0x89, (m) => m.push(false)], // NEWFALSE
  [0x4b, (m) => m.integer(1)], // BININT1
  [0x4d, (m) => m.integer(2)], // BININT2
  [0x4a, (m) => m.integer(4)], // BININT
  [0x8a, (m) => m.long()], // LONG1
  [0x47, (m) => m.float()], // BINFLOAT
  [0x58, (m) => m.unicode()], // BINUNICODE
  [0x63, (m) => m.global()], // GLOBAL
  [0x71, (m) => m.putShort()], // BINPUT
  [0x72, (m) => m.putLong()], // LONG_BINPUT
  [0x68, (m) => m.getShort()], // BINGET
  [0x6a, (m) => m.getLong()], // LONG_BINGET
  [0x61, (m) => m.appendOne()], // APPEND
  [0x65, (m) => m.appendToMark()], // APPENDS
  [0x73, (m) => m.setOne()], // SETITEM
  [0x75, (m) => m.setToMark()], // SETITEMS
  [0x62, (m) => m.build()], // BUILD
  [0x52, (m) => m.reduce()], // REDUCE
  [0x51, (m) => m.persistentId()], // BINPERSID
]);

function isCount(value: Pickled | undefined): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;
}

function counts(value: Pickled | undefined): number[] | undefined {
  return value instanceof PickledTuple && value.items.every(isCount) ? [...(value.items as number[])] : undefined;
}

/** What a value is, without printing what is inside: a pickle may hold cycles. */
export function kindOf(value: Pickled | undefined): string {
  if (value instanceof Global) return describe(value.name);
  if (value instanceof Map) return `a dict of ${value.size}`;
  if (Array.isArray(value)) return `a list of ${value.length}`;
  if (value instanceof PickledTuple) return `a tuple of ${value.items.length}`;
  if (value instanceof PickledTensor) return 'a tensor';
  if (value instanceof PickledStorage) return 'a storage';
  return describe(value);
}
