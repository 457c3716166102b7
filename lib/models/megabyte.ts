// MegaByte (Yu et al. 2023): a global model over patches of bytes, and a local model that predicts the bytes of a patch from
// what the global one tells it. Equations: docs/baselines.md.
import { checkBoolean, checkInteger, checkNumber, checkOptions, expected } from '../errors.ts';
import type { Graph } from '../graph.ts';
import {
  copyPatch,
  type PatchesState,
  PatchMemory,
  type PatchShape,
  type PatchState,
  PatchTrail,
  patchFloats,
} from '../memory/patches.ts';
import { advance, cacheWrite } from '../ops/attention.ts';
import { add } from '../ops/elementwise.ts';
import { embedding } from '../ops/embedding.ts';
import { linear } from '../ops/linear.ts';
import { rmsNorm } from '../ops/norm.ts';
import { concat } from '../ops/shape.ts';
import { elements, type Tensor } from '../tensor.ts';
import { inferMegabyte, megabyteToJson } from '../weights/megabyte-json.ts';
import { type Architecture, type BaseConfig, type ForwardOptions, type Weights, weightOf } from './architecture.ts';
import type { ParamSpec } from './params.ts';
import {
  type BlockCache,
  type BlockConfig,
  type BlockSizes,
  block,
  blockFlops,
  blockMatrices,
  blockParams,
  completeBlocks,
  keyColumns,
  NORMAL,
  ONES,
} from './transformer-block.ts';

/** Shape of a MegaByte. What is not called global is of the local model, which makes the logits. */
export interface MegabyteConfig extends BaseConfig, BlockConfig {
  readonly architecture: 'megabyte';
  /** Bytes of a patch (M), at least 2; default 8. */
  readonly patchSize: number;
  /** Blocks of the global model. */
  readonly globalLayers: number;
  /** Width of the global model: M times what it knows of a byte. */
  readonly globalDModel: number;
  readonly globalHeads: number;
  readonly globalKeyHeads: number;
  readonly globalDInner: number;
}

/** A configuration with everything that follows from the widths left out. */
export type PartialMegabyteConfig = Partial<MegabyteConfig> &
  Pick<MegabyteConfig, 'architecture' | 'layers' | 'dModel' | 'globalLayers' | 'globalDModel'>;

type MegabyteOptions = ForwardOptions<PatchesState>;

const GLOBAL = 'global.';
const LOCAL = 'local.';
const TO_LOCAL = 'global_to_local.weight';
const EMBEDDING = `${LOCAL}embed_tokens.weight`;

const GLOBAL_NAMES: Record<keyof BlockSizes, keyof MegabyteConfig> = {
  layers: 'globalLayers',
  dModel: 'globalDModel',
  heads: 'globalHeads',
  keyHeads: 'globalKeyHeads',
  dInner: 'globalDInner',
};

/** Sizes of the global stack, in the names of a stack. */
export function globalSizes(c: Partial<MegabyteConfig>) {
  return {
    layers: c.globalLayers,
    dModel: c.globalDModel,
    heads: c.globalHeads,
    keyHeads: c.globalKeyHeads,
    dInner: c.globalDInner,
  };
}

/** The same as fields of a configuration. */
export function globalFields(sizes: BlockSizes) {
  return {
    globalLayers: sizes.layers,
    globalDModel: sizes.dModel,
    globalHeads: sizes.heads,
    globalKeyHeads: sizes.keyHeads,
    globalDInner: sizes.dInner,
  };
}

function globalBlocks(c: MegabyteConfig): BlockConfig {
  const { normEps, ropeTheta } = c;
  return { ...(globalSizes(c) as BlockSizes), normEps, ropeTheta };
}

/** @throws TypeError or RangeError naming the field */
export function completeMegabyte(config: Partial<MegabyteConfig>): MegabyteConfig {
  const where = 'config';
  const sizes = ['layers', 'dModel', 'heads', 'keyHeads', 'dInner'];
  const own = ['architecture', 'patchSize', ...sizes, ...Object.values(GLOBAL_NAMES)];
  checkOptions(where, config, [...own, 'vocab', 'tied', 'normEps', 'ropeTheta']);
  const patchSize = checkInteger(where, 'patchSize', config.patchSize ?? 8, { min: 2, max: 256 });
  const global = completeBlocks(where, globalSizes(config), (field) => GLOBAL_NAMES[field]);
  if (global.dModel % patchSize !== 0) {
    const shouldBe = `be a multiple of the ${patchSize} bytes of a patch`;
    throw new RangeError(expected(where, 'globalDModel', shouldBe, `${global.dModel}`));
  }
  return {
    architecture: 'megabyte',
    patchSize,
    ...globalFields(global),
    ...completeBlocks(where, config),
    vocab: checkInteger(where, 'vocab', config.vocab ?? 256, { min: 2, max: 1 << 20 }),
    tied: checkBoolean(where, 'tied', config.tied ?? true),
    normEps: checkNumber(where, 'normEps', config.normEps ?? 1e-5, { min: 0, max: 1 }),
    ropeTheta: checkNumber(where, 'ropeTheta', config.ropeTheta ?? 10000, { above: 0 }),
  };
}

/** What the global model knows of a byte, and tells the local one of a place (d). */
const idWidth = ({ globalDModel, patchSize }: MegabyteConfig) => globalDModel / patchSize;

export function megabyteParams(c: MegabyteConfig): ParamSpec[] {
  const { dModel: D, globalDModel, vocab: V } = c;
  const d = idWidth(c);
  return [
    { name: `${GLOBAL}embed_tokens.weight`, shape: [V, d], init: NORMAL },
    { name: `${GLOBAL}pad`, shape: [globalDModel], init: NORMAL },
    ...blockParams(globalBlocks(c), GLOBAL),
    { name: `${GLOBAL}norm.weight`, shape: [globalDModel], init: ONES },
    { name: TO_LOCAL, shape: [D, d], init: NORMAL },
    { name: EMBEDDING, shape: [V, D], init: NORMAL },
    { name: `${LOCAL}pad`, shape: [D], init: NORMAL },
    ...blockParams(c, LOCAL),
    { name: `${LOCAL}norm.weight`, shape: [D], init: ONES },
    ...(c.tied ? [] : [{ name: 'lm_head.weight', shape: [V, D], init: NORMAL }]),
  ];
}

const headOf = ({ tied }: MegabyteConfig) => (tied ? EMBEDDING : 'lm_head.weight');

/**
 * The residual stream of the local model before its final norm: row t is what is computed for id t + 1.
 * @param ids (B, T) bytes or token ids
 * @returns (B, T, D)
 */
export function megabyteBackbone(
  g: Graph,
  c: MegabyteConfig,
  w: Weights,
  ids: Tensor,
  options: MegabyteOptions = {},
): Tensor {
  const m = new Megabyte(g, c, w, options);
  const { state } = options;
  if (!state) return m.whole(ids);
  if (state.starts) m.start(state);
  if (state.kind === 'single') return m.single(ids, state);
  return state.kind === 'patches' ? m.patches(ids, state) : m.verified(ids, state);
}

/** Final norm of the local model and head: (..., D) to logits (..., V) of x's dtype. */
export function megabyteHead(
  g: Graph,
  c: MegabyteConfig,
  w: Weights,
  x: Tensor,
  { activations }: Pick<MegabyteOptions, 'activations'> = {},
): Tensor {
  const name = headOf(c);
  const h = g.scope('local.norm', () => rmsNorm(g, x, weightOf(w, `${LOCAL}norm.weight`), c.normEps, activations));
  return g.scope('lm_head', () => linear(g, h, weightOf(w, name), { scale: w.get(`${name}.scale`), dtype: x.dtype }));
}

/** Where blocks go on from: caches by layer, how much they hold, and where each step lies if it is to have its own bits. */
type Caches = Pick<BlockCache, 'length' | 'positions'> & { layers: PatchState['layers'] };

/** Tensors of one row of elements each, one behind the other. */
function rowsOf(g: Graph, ...parts: Tensor[]): Tensor {
  return concat(
    g,
    parts.map((t) => t.reshape(1, t.elems)),
  );
}

/** Records the parts of a MegaByte. B sequences, T ids, M ids a patch, K patches, d and D the widths of an id in both models. */
class Megabyte {
  readonly #g: Graph;
  readonly #c: MegabyteConfig;
  readonly #w: Weights;
  readonly #options: MegabyteOptions;

  constructor(g: Graph, c: MegabyteConfig, w: Weights, options: MegabyteOptions) {
    this.#g = g;
    this.#c = c;
    this.#w = w;
    this.#options = options;
  }

  /** Sequences from their beginning on, without caches: training. */
  whole(ids: Tensor): Tensor {
    const [g, M, D] = [this.#g, this.#c.patchSize, this.#c.dModel];
    const [B = 0, T = 0] = ids.shape;
    const d = idWidth(this.#c);
    const K = Math.floor(T / M) + 1;
    const pad = (name: string) => weightOf(this.#w, name);
    /** Row of each place of all patches. */
    const placed = (rows: Tensor, rowOf: (b: number, k: number, p: number) => number) => {
      const at = (i: number) => rowOf(Math.floor(i / (K * M)), Math.floor(i / M) % K, i % M);
      return embedding(
        g,
        g.constant(
          Int32Array.from({ length: B * K * M }, (_, i) => at(i)),
          [B, K * M],
        ),
        rows,
      );
    };
    const known = g.scope('global.embedding', () => {
      const rows = rowsOf(g, pad(`${GLOBAL}pad`), this.#embedded(GLOBAL, ids)).reshape(M + B * T, d);
      return placed(rows, (b, k, p) => (k === 0 ? p : M + b * T + (k - 1) * M + p));
    });
    const own = g.scope('local.embedding', () => {
      const rows = rowsOf(g, pad(`${LOCAL}pad`), this.#embedded(LOCAL, ids)).reshape(1 + B * T, D);
      // No row that is kept sees a place behind the last id.
      const rowOf = (b: number, t: number) => (t < T ? 1 + b * T + t : -1);
      return placed(rows, (b, k, p) => (p === 0 ? 0 : rowOf(b, k * M + p - 1)));
    });
    const inputs = this.#told(this.#global(known.reshape(B, K, M * d)), own);
    const x = this.#local(inputs.reshape(B * K, M, D));
    const kept = Int32Array.from({ length: B * T }, (_, i) => Math.floor(i / T) * K * M + (i % T) + 1);
    return embedding(g, g.constant(kept, [B, T]), x.reshape(B * K * M, D));
  }

  /** Begins the first patch of sequences that have read nothing. */
  start({ global, patch, places }: PatchesState): void {
    const B = patch.told.shape[0] ?? 0;
    const { startPatches, startChosen, startPlaces } = places;
    this.#begin(this.#pads(GLOBAL, [B, 1]), { layers: global, length: startPatches }, startChosen, patch, patch);
    const told = patch.told.reshape(B, patch.told.elems / B).columns(0, this.#c.dModel);
    const x = add(this.#g, this.#pads(LOCAL, [B]), told);
    this.#local(x.reshape(B, 1, x.cols), { layers: patch.layers, length: startPlaces });
  }

  /** One id of every sequence. */
  single(ids: Tensor, state: PatchesState & { kind: 'single' }): Tensor {
    const [g, M, D] = [this.#g, this.#c.patchSize, this.#c.dModel];
    const B = ids.shape[0] ?? 0;
    const { patch, places, ends } = state;
    const to = ends ? state.next : patch;
    cacheWrite(g, patch.ids, this.#embedded(GLOBAL, ids), places.idPlace);
    let own = this.#embedded(LOCAL, ids);
    if (ends) {
      const read = patch.ids.reshape(B, 1, this.#c.globalDModel);
      this.#begin(read, { layers: state.global, length: places.patches }, places.chosen, patch, to);
      const rows = rowsOf(g, weightOf(this.#w, `${LOCAL}pad`), own).reshape(1 + B, D);
      own = embedding(g, places.source.reshape(B, 1), rows);
    }
    const told = embedding(g, places.row.reshape(B, 1), to.told.reshape(B * M, D));
    const x = this.#local(add(g, own, told), { layers: to.layers, length: places.places });
    if (!ends) advance(g, places.moving, 1);
    return x;
  }

  /** Whole patches of every sequence. */
  patches(ids: Tensor, { global, patch, places }: PatchesState): Tensor {
    const [g, M, D] = [this.#g, this.#c.patchSize, this.#c.dModel];
    const [B = 0, T = 0] = ids.shape;
    const known = this.#embedded(GLOBAL, ids).reshape(B, T / M, this.#c.globalDModel);
    const next = this.#told(this.#global(known, { layers: global, length: places.patches })); // (B, T, D)
    const first = patch.told.reshape(B, M * D);
    const told = T === M ? first : concat(g, [first, next.reshape(B, T * D).columns(0, (T - M) * D)]);

    // The local model reads the pad in place of the last id of a patch, which only the patches behind it see.
    const own = this.#embedded(LOCAL, ids).reshape((B * T) / M, M * D);
    const inputs = concat(g, [this.#pads(LOCAL, [(B * T) / M]), own.columns(0, (M - 1) * D)]);
    const x = this.#local(add(g, inputs.reshape(B, T * D), told.reshape(B, T * D)).reshape((B * T) / M, M, D));

    const last = next.reshape(B, T * D).columns((T - M) * D, M * D);
    g.op('copy', { y: first }, { x: last });
    const begun = add(g, this.#pads(LOCAL, [B]), last.columns(0, D));
    const row = this.#local(begun.reshape(B, 1, D), { layers: patch.layers, length: places.places });
    return concat(g, [x.reshape(B, T * D).columns(D, (T - 1) * D), row.reshape(B, D)]).reshape(B, T, D);
  }

  /** Ids of one sequence, each of them with the bits that it has alone. */
  verified(ids: Tensor, state: PatchesState & { kind: 'verify' }): Tensor {
    const [g, M, D] = [this.#g, this.#c.patchSize, this.#c.dModel];
    const { place, patch } = state;
    const T = ids.elems;
    const ended = Math.floor((place + T) / M);
    const known = this.#embedded(GLOBAL, ids).reshape(T, idWidth(this.#c));
    const own = this.#embedded(LOCAL, ids).reshape(T, D);
    const on = ended === 0 ? [patch] : state.kept.slice(0, ended + 1);
    const [current = patch] = on;
    if (current !== patch) copyPatch(g, patch, current);
    const readIds = ended === 0 ? patch.ids : state.keptIds;
    g.op('copy', { y: readIds.reshape(readIds.rows, readIds.cols).slice(place, T) }, { x: known });
    if (ended > 0) this.#tellAll(state, ended);

    const rows = on.map((at, k) => {
      const from = k === 0 ? place + 1 : 0; // first place that is predicted in this patch
      const before = k * M - place - 1; // ids of this pass in front of its place 0
      const count = Math.min(M, T - before) - from;
      if (count <= 0) return undefined;
      const read = own.slice(Math.max(0, before + 1), k === 0 ? count : Math.max(1, count - 1));
      const pad = weightOf(this.#w, `${LOCAL}pad`);
      const inputs = k === 0 ? read : count === 1 ? pad : rowsOf(g, pad, read);
      const told = at.told.reshape(M, D).slice(from, count);
      const positions = g.constant(Int32Array.from({ length: count }, (_, i) => from + i));
      const length = g.constant(Int32Array.of(from));
      const x = add(g, inputs.reshape(1, count, D), told.reshape(1, count, D));
      return this.#local(x, { layers: at.layers, length, positions });
    });
    const latest = on.at(-1) ?? patch;
    if (latest !== patch) copyPatch(g, latest, patch);
    return rowsOf(g, ...rows.filter((x) => x !== undefined)).reshape(1, T, D);
  }

  /** What the global model tells the patches behind those that a verify pass ends. */
  #tellAll({ global, places, positions, kept, keptIds }: PatchesState & { kind: 'verify' }, ended: number): void {
    const [g, M, wide] = [this.#g, this.#c.patchSize, this.#c.globalDModel];
    const read = keptIds
      .reshape(keptIds.elems / wide, wide)
      .slice(0, ended)
      .reshape(1, ended, wide);
    const caches = { layers: global, length: places.patches, positions: positions.slice(0, ended) };
    const said = this.#global(read, caches).reshape(ended, wide);
    for (let k = 0; k < ended; k++) {
      // Apart, since a product of more rows may sum in another order.
      const told = this.#told(said.slice(k, 1).reshape(1, 1, wide));
      g.op('copy', { y: kept[k + 1]?.told }, { x: told.reshape(1, M, this.#c.dModel) });
    }
  }

  /** Begins a patch of those sequences whose row in `chosen` is a new one. */
  #begin(read: Tensor, caches: Caches, chosen: Tensor, from: PatchState, to: PatchState): void {
    const g = this.#g;
    const B = read.shape[0] ?? 0;
    const told = this.#told(this.#global(read, caches));
    const columns = told.elems / B;
    const picked =
      B === 1 ? told.reshape(1, columns) : embedding(g, chosen, rowsOf(g, from.told, told).reshape(2 * B, columns));
    g.op('copy', { y: to.told.reshape(B, columns) }, { x: picked });
  }

  #embedded(model: string, ids: Tensor): Tensor {
    return this.#g.scope(`${model}embedding`, () =>
      embedding(this.#g, ids, weightOf(this.#w, `${model}embed_tokens.weight`)),
    );
  }

  /** The pad of a model, once for each element of a shape: (..., width). */
  #pads(model: string, shape: readonly number[]): Tensor {
    const pad = weightOf(this.#w, `${model}pad`);
    const zeros = new Int32Array(elements(shape));
    return embedding(this.#g, this.#g.constant(zeros, shape), pad.reshape(1, pad.elems));
  }

  /** (B, K, M d) to what the global model says of the patches behind, normed. */
  #global(x: Tensor, caches?: Caches): Tensor {
    const [g, c, w] = [this.#g, globalBlocks(this.#c), this.#w];
    const y = this.#blocks(c, GLOBAL, x, caches);
    return g.scope('global.norm', () =>
      rmsNorm(g, y, weightOf(w, `${GLOBAL}norm.weight`), c.normEps, this.#options.activations),
    );
  }

  /** Of normed patches (B, K, M d) what each place is told (B, K M, D); `own` is added. */
  #told(said: Tensor, own?: Tensor): Tensor {
    const [g, w] = [this.#g, this.#w];
    const [B = 0, K = 0] = said.shape;
    const parts = said.reshape(B, K * this.#c.patchSize, idWidth(this.#c));
    const scale = w.get(`${TO_LOCAL}.scale`);
    const dtype = own?.dtype ?? 'f32'; // part of the residual stream, whatever activations are
    return g.scope('global_to_local', () => linear(g, parts, weightOf(w, TO_LOCAL), { scale, add: own, dtype }));
  }

  /** The blocks of the local model over (B, places, D). */
  #local(x: Tensor, caches?: Caches): Tensor {
    return this.#blocks(this.#c, LOCAL, x, caches);
  }

  #blocks(c: BlockConfig, model: string, x: Tensor, caches?: Caches): Tensor {
    let y = x;
    for (let l = 0; l < c.layers; l++) {
      const own = caches?.layers[l];
      const cache = caches && own && { ...caches, ...own };
      y = this.#g.scope(`${model}layers.${l}`, () => block(this.#g, c, this.#w, model, l, y, cache, this.#options));
    }
    return y;
  }
}

const patchShape = (c: MegabyteConfig): PatchShape => ({
  patch: c.patchSize,
  global: { layers: c.globalLayers, columns: keyColumns(globalBlocks(c)) },
  local: { layers: c.layers, columns: keyColumns(c) },
  localWidth: c.dModel,
  idWidth: idWidth(c),
});

/** On average over windows of whole patches; of other lengths as if the patches went on. */
function flops(c: MegabyteConfig, window: number): number {
  const { patchSize: M, dModel: D, vocab: V } = c;
  const global = c.globalLayers * blockFlops(globalBlocks(c), (window / M + 1) / 2);
  return global / M + c.layers * blockFlops(c, (M + 1) / 2) + 2 * idWidth(c) * D + 2 * D * V;
}

export const megabyte: Architecture<MegabyteConfig> = {
  name: 'megabyte',
  complete: completeMegabyte,
  subword: {},
  params: megabyteParams,
  matrices: (c) => [...blockMatrices(globalBlocks(c), GLOBAL), TO_LOCAL, ...blockMatrices(c, LOCAL), headOf(c)],
  narrowable: /(embed_tokens|^lm_head|^global_to_local|_proj)\.weight$/,
  int8: /_proj\.weight$/,
  backbone: megabyteBackbone,
  head: megabyteHead,
  memory: (device, c, { batch, mostVerified, dtype }) =>
    new PatchMemory(device, patchShape(c), batch, dtype, mostVerified),
  trail: (_device, _c, slots, memory) => new PatchTrail(memory as PatchMemory, slots),
  state: {
    magic: 'MBB1',
    names: '(local layers x columns, global layers x columns, width, global width, patch)',
    signature: (c) => {
      const { local, global, patch } = patchShape(c);
      return [local.layers * local.columns, global.layers * global.columns, c.dModel, c.globalDModel, patch];
    },
    floats: (c, read) => patchFloats(patchShape(c), read),
  },
  flops,
  words: (c) =>
    `a MegaByte with patches of ${c.patchSize}, ${c.globalLayers} global layers of ${c.globalDModel} and ${c.layers} local ones of ${c.dModel}`,
  infer: inferMegabyte,
  toJson: megabyteToJson,
};
