import type { MambaConfig } from './models/config.ts';
import { type LayerState, layerStateShapes } from './models/mamba.ts';
import { Tensor } from './tensor.ts';

/** A region of a stored, contiguous f32 tensor, `at` elements into it. */
export function region(of: Tensor, name: string, shape: readonly number[], at: number): Tensor {
  const { buffer = 0, offset = 0 } = of.storage ?? {};
  return new Tensor(shape, 'f32', name, { storage: { buffer, offset: offset + at * 4 } });
}

/** The state of B sequences in `memory`, `at` elements into it: layer by layer, convolution before SSM. */
export function layerStatesIn(memory: Tensor, config: MambaConfig, batch: number, at = 0): LayerState[] {
  const shapes = layerStateShapes(config, batch);
  const size = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);
  const [conv, ssm] = [size(shapes.conv), size(shapes.ssm)];
  return Array.from({ length: config.layers }, (_, l) => ({
    conv: region(memory, `${memory.name}.${l}.conv`, shapes.conv, at + l * (conv + ssm)),
    ssm: region(memory, `${memory.name}.${l}.ssm`, shapes.ssm, at + l * (conv + ssm) + conv),
  }));
}
