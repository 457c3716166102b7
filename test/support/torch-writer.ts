// Writes checkpoints in the format of torch.save (zip and pickle, protocol 2), well-formed or with chosen faults.
import { elementBytes, type StoredDType } from '../../lib/weights/stored-tensor.ts';
import { type ZipFile, zipArchive } from './zip-writer.ts';

export interface TorchTensor {
  dtype: StoredDType;
  shape: readonly number[];
  data: Uint8Array;
  /** Tensors with one key share the first one's storage. */
  key?: string;
  offset?: number;
  strides?: readonly number[];
  /** Elements that the pickle claims; default those of `data`. */
  count?: number;
  parameter?: boolean;
}

/** Bytes of a pickle spliced in as they are. */
export class Raw {
  readonly bytes: Buffer;

  constructor(...parts: (number | string | Buffer)[]) {
    this.bytes = Buffer.concat(parts.map((p) => (typeof p === 'number' ? Buffer.from([p]) : Buffer.from(p))));
  }
}

export class Tensor {
  readonly of: TorchTensor;

  constructor(of: TorchTensor) {
    this.of = of;
  }
}

export type Value = Raw | Tensor | Map<string | number, Value> | Value[] | string | number | boolean | null;

const STORAGE_NAMES: Record<StoredDType, string> = {
  F64: 'DoubleStorage',
  F32: 'FloatStorage',
  F16: 'HalfStorage',
  BF16: 'BFloat16Storage',
  I8: 'CharStorage',
  U8: 'ByteStorage',
  BOOL: 'BoolStorage',
  I32: 'IntStorage',
  I64: 'LongStorage',
};

export interface TorchOptions {
  zip64?: boolean;
  pad?: number;
  byteorder?: string;
  archive?: string;
  /** Last changes to the entries before they are zipped. */
  tamper?: (files: ZipFile[]) => ZipFile[];
}

export function torchFile(value: Value, options: TorchOptions = {}): Buffer {
  const { archive = 'archive', byteorder = 'little', tamper = (files) => files } = options;
  const writer = new PickleWriter();
  const pickle = writer.write(value);
  const files: ZipFile[] = [
    { name: `${archive}/data.pkl`, data: pickle },
    { name: `${archive}/byteorder`, data: Buffer.from(byteorder) },
    ...[...writer.storages].map(([key, data]) => ({ name: `${archive}/data/${key}`, data })),
    { name: `${archive}/version`, data: Buffer.from('3\n') },
  ];
  return zipArchive(tamper(files), options);
}

/** A state dict as an OrderedDict, as model.state_dict() is. */
export function stateDict(tensors: Record<string, TorchTensor>): Map<string, Value> {
  return new Map(Object.entries(tensors).map(([name, tensor]) => [name, new Tensor(tensor)]));
}

class PickleWriter {
  readonly storages = new Map<string, Uint8Array>();
  #parts: Buffer[] = [];
  #memo = 0;

  write(value: Value): Buffer {
    this.#bytes(0x80, 2);
    this.#value(value);
    this.#bytes(0x2e);
    return Buffer.concat(this.#parts);
  }

  #bytes(...bytes: number[]): void {
    this.#parts.push(Buffer.from(bytes));
  }

  /** Like CPython, remember everything that could be referred to again. */
  #put(): void {
    const index = this.#memo++;
    if (index < 256) this.#bytes(0x71, index);
    else this.#bytes(0x72, index & 255, (index >> 8) & 255, (index >> 16) & 255, index >>> 24);
  }

  #global(module: string, name: string): void {
    this.#parts.push(Buffer.from(`c${module}\n${name}\n`));
    this.#put();
  }

  #value(value: Value): void {
    if (value instanceof Raw) this.#parts.push(value.bytes);
    else if (value instanceof Tensor) this.#tensor(value.of);
    else if (value instanceof Map) this.#dict(value);
    else if (Array.isArray(value)) this.#list(value);
    else if (typeof value === 'string') this.#string(value);
    else if (typeof value === 'number') this.#number(value);
    else if (value === null) this.#bytes(0x4e);
    else this.#bytes(value ? 0x88 : 0x89);
  }

  #dict(dict: Map<string | number, Value>): void {
    this.#global('collections', 'OrderedDict');
    this.#bytes(0x29, 0x52);
    this.#put();
    this.#bytes(0x28);
    for (const [key, value] of dict) {
      this.#value(key);
      this.#value(value);
    }
    this.#bytes(0x75);
    this.#bytes(0x7d); // the attributes: {'_metadata': {}}
    this.#put();
    this.#string('_metadata');
    this.#bytes(0x7d, 0x73, 0x62);
  }

  #list(items: readonly Value[]): void {
    this.#bytes(0x5d);
    this.#put();
    this.#bytes(0x28);
    for (const item of items) this.#value(item);
    this.#bytes(0x65);
  }

  #string(text: string): void {
    const bytes = Buffer.from(text);
    const length = Buffer.alloc(4);
    length.writeUInt32LE(bytes.length);
    this.#parts.push(Buffer.from('X'), length, bytes);
    this.#put();
  }

  #number(value: number): void {
    const bytes = Buffer.alloc(8);
    if (!Number.isInteger(value)) {
      bytes.writeDoubleBE(value);
      this.#parts.push(Buffer.from('G'), bytes);
    } else if (value >= 0 && value < 256) {
      this.#bytes(0x4b, value);
    } else if (value >= 0 && value < 65536) {
      this.#bytes(0x4d, value & 255, value >> 8);
    } else if (value === (value | 0)) {
      bytes.writeInt32LE(value);
      this.#parts.push(Buffer.from('J'), bytes.subarray(0, 4));
    } else {
      bytes.writeBigInt64LE(BigInt(value));
      this.#parts.push(Buffer.from([0x8a, 8]), bytes);
    }
  }

  #tuple(items: readonly number[]): void {
    if (items.length === 0) {
      this.#bytes(0x29);
      return;
    }
    if (items.length > 3) this.#bytes(0x28);
    for (const item of items) this.#number(item);
    this.#bytes(items.length > 3 ? 0x74 : 0x84 + items.length);
    this.#put();
  }

  #tensor(tensor: TorchTensor): void {
    const { shape, dtype, data, key = String(this.storages.size), offset = 0 } = tensor;
    if (!this.storages.has(key)) this.storages.set(key, data);
    const count = tensor.count ?? (this.storages.get(key) as Uint8Array).length / elementBytes(dtype);
    if (tensor.parameter) {
      this.#global('torch._utils', '_rebuild_parameter');
      this.#bytes(0x28);
    }
    this.#global('torch._utils', '_rebuild_tensor_v2');
    this.#bytes(0x28, 0x28);
    this.#string('storage');
    this.#global('torch', STORAGE_NAMES[dtype]);
    this.#string(key);
    this.#string('cpu');
    this.#number(count);
    this.#bytes(0x74);
    this.#put();
    this.#bytes(0x51);
    this.#number(offset);
    this.#tuple(shape);
    this.#tuple(tensor.strides ?? packedStrides(shape));
    this.#bytes(0x89);
    this.#hooks();
    if (tensor.parameter) {
      this.#bytes(0x88);
      this.#hooks();
    }
  }

  /** An empty OrderedDict of hooks, and the call of the rebuild function. */
  #hooks(): void {
    this.#global('collections', 'OrderedDict');
    this.#bytes(0x29, 0x52);
    this.#put();
    this.#bytes(0x74);
    this.#put();
    this.#bytes(0x52);
    this.#put();
  }
}

function packedStrides(shape: readonly number[]): number[] {
  return shape.map((_, axis) => shape.slice(axis + 1).reduce((a, b) => a * b, 1));
}
