// The fused Mamba block equals the ops that it stands for, one by one, for every weight type, also for a batch of short
// sequences; and the states it keeps are the states of prefixes.
import test from 'ava';
import type { Device } from '../../lib/device.ts';
import { Graph } from '../../lib/graph.ts';
import type { Weights } from '../../lib/models/architecture.ts';
import { completeConfig } from '../../lib/models/config.ts';
import { type LayerState, mambaBackbone, mambaHead, mambaParams } from '../../lib/models/mamba.ts';
import { initialValues } from '../../lib/models/params.ts';
import { evaluate } from '../../lib/plan.ts';
import type { Tensor, TypedArray } from '../../lib/tensor.ts';
import { compare } from '../support/close.ts';
import { withDevice } from '../support/devices.ts';
import { sameAs, targets } from '../support/language-models.ts';
import { encode } from '../support/poison.ts';
import { Random } from '../support/random.ts';

const MATRIX = /(\.(in|x|dt|out)_proj|embedding|lm_head)\.weight$/;
const INT8 = /\.(in|x|out)_proj\.weight$/;

function weightsOn(device: Device, config: ReturnType<typeof completeConfig>, dtype: 'f32' | 'bf16' | 'int8'): Weights {
  const weights = new Map<string, Tensor>();
  mambaParams(config).forEach((spec, i) => {
    const { name, shape } = spec;
    const values = initialValues(spec, 4, i).map((v, j) => v + 0.05 * Math.sin(j + i));
    if (dtype === 'int8' && INT8.test(name)) {
      const [M = 0, columns = 0] = shape;
      const scale = Float32Array.from(
        { length: M },
        (_, m) => values.subarray(m * columns, (m + 1) * columns).reduce((a, v) => Math.max(a, Math.abs(v)), 0) / 127,
      );
      const q = Int8Array.from(values, (v, j) => Math.round(v / (scale[Math.floor(j / columns)] ?? 1)));
      weights.set(name, device.tensorFrom(q, shape, 'i8', name));
      weights.set(`${name}.scale`, device.tensorFrom(scale, [M], 'f32', `${name}.scale`));
    } else if (dtype === 'bf16' && MATRIX.test(name)) {
      weights.set(name, device.tensorFrom(encode('bf16', values), shape, 'bf16', name));
    } else {
      weights.set(name, device.tensorFrom(values, shape, 'f32', name));
    }
  });
  return weights;
}

for (const norm of ['layer', 'rms'] as const) {
  for (const dtype of ['f32', 'bf16', 'int8'] as const) {
    for (const on of targets) {
      const [backend, target] = on;
      test.serial(`the fused block equals its expansion · ${norm} ${dtype} · ${target ?? backend}`, (t) =>
        withDevice(backend, { threads: 2, ...(target ? { target } : {}) }, async (device) => {
          const config = completeConfig({ layers: 2, dModel: 24, dInner: 50, dState: 5, dtRank: 3, norm });
          const weights = weightsOn(device, config, dtype);
          const close = sameAs(dtype, on);
          for (const [B, T] of [
            [1, 1],
            [3, 5],
            [1, 32],
            [8, 4],
          ] as const) {
            const random = new Random(B, T);
            const ids = device.tensorFrom(Int32Array.from(random.integers(B * T, 0, 256)), [B, T], 'i32', 'ids');
            const { dInner: E, dState: N, dConv: K } = config;
            const shapes = { conv: [B, K - 1, E], ssm: [B, E, N] };
            const start = Object.values(shapes).map((shape) =>
              Float32Array.from(random.normal(shape.reduce((a, b) => a * b, 1))),
            );
            const run = async (fused: boolean, keep: boolean): Promise<{ logits: TypedArray; state: LayerState[] }> => {
              const state = Array.from(
                { length: config.layers },
                (_, l): LayerState => ({
                  conv: device.tensorFrom(start[0] ?? new Float32Array(), shapes.conv, 'f32', `conv${l}`),
                  ssm: device.tensorFrom(start[1] ?? new Float32Array(), shapes.ssm, 'f32', `ssm${l}`),
                  ...(keep && {
                    keptConv: device.tensor([T, B, (K - 1) * E], 'f32', `keptConv${l}`),
                    keptSsm: device.tensor([T, B, E * N], 'f32', `keptSsm${l}`),
                  }),
                }),
              );
              const g = new Graph();
              const x = mambaBackbone(g, config, weights, ids, { state, blockRows: fused ? B * T : 0 });
              const [logits = new Float32Array()] = await evaluate(device, g, [mambaHead(g, config, weights, x)]);
              return { logits, state };
            };
            const one = await run(true, true);
            const many = await run(false, false);
            const where = `B${B} T${T}`;
            t.is(compare(one.logits as Float32Array, many.logits as Float32Array, close), undefined, where);
            for (const [l, s] of one.state.entries()) {
              for (const name of ['conv', 'ssm'] as const) {
                const [got, want] = [device.read(s[name]), device.read(many.state[l]?.[name] as Tensor)];
                t.is(compare(got, want, close), undefined, `${where} ${name} of layer ${l}`);
              }
              const perStep = (kept: Tensor | undefined, n: number) =>
                (device.read(kept as Tensor) as Float32Array).slice(-n);
              t.deepEqual(
                perStep(s.keptConv, s.conv.elems),
                device.read(s.conv) as Float32Array,
                `${where}: last kept conv`,
              );
              t.deepEqual(
                perStep(s.keptSsm, s.ssm.elems),
                device.read(s.ssm) as Float32Array,
                `${where}: last kept ssm`,
              );
            }
          }
        }),
      );
    }
  }
}
