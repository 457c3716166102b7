import { performance } from 'node:perf_hooks';
import type { Model } from '../model.ts';
import { CHUNK_MS, CHUNK_STEPS, type GenerateResult, type StopReason } from './generation.ts';
import type { ResolvedOptions } from './options.ts';
import { Output } from './output.ts';

/**
 * Continues several prompts of any lengths together: every decode step reads the weights once for all of them. Sequence
 * b draws with seed + b, and gets the same bytes as a generation of its own with that seed would, up to rounding.
 */
export async function generateBatch(
  model: Model,
  prompts: readonly Uint8Array[],
  options: ResolvedOptions,
): Promise<GenerateResult[]> {
  const { signal, settings, maxBytes } = options;
  signal?.throwIfAborted();
  const start = performance.now();
  const states: Float32Array[] = [];
  await model.withSession(async (session) => {
    for (const prompt of prompts) {
      session.writeState(new Float32Array(session.stateFloats));
      await session.consume(prompt.subarray(0, -1), signal);
      states.push(session.readState());
    }
  });
  return model.withSession(async (session) => {
    states.forEach((state, b) => {
      session.writeSequence(b, state);
    });
    const loop = await session.startDecoding(
      prompts.map((_, b) => ({ ...settings, seed: settings.seed + b })),
      prompts.map((p) => p.at(-1) ?? 0),
      prompts,
    );
    const prefillEnd = performance.now();
    const cancel = () => loop.cancel();
    signal?.addEventListener('abort', cancel, { once: true });
    const rows = prompts.map(() => ({ output: new Output(options.stops), text: '', made: 0, stopped: false }));
    try {
      for (let made = 0; made < maxBytes && !signal?.aborted && rows.some((r) => !r.stopped); ) {
        const step = await loop.run({ steps: Math.min(maxBytes - made, CHUNK_STEPS), maxMs: CHUNK_MS });
        made += step.steps;
        rows.forEach((row, b) => {
          if (row.stopped) return;
          const piece = row.output.push(
            Uint8Array.from({ length: step.steps }, (_, i) => step.watched[i * rows.length + b] ?? 0),
          );
          row.made += step.steps;
          row.text += piece.text;
          row.stopped = piece.stopped;
        });
      }
    } finally {
      signal?.removeEventListener('abort', cancel);
    }
    if (signal?.aborted && options.onAbort === 'throw') throw signal.reason;
    const decodeMs = performance.now() - prefillEnd;
    return rows.map((row, b) => {
      row.text += row.output.finish().text;
      const stopReason: StopReason = row.stopped ? 'stop' : signal?.aborted ? 'abort' : 'length';
      return {
        text: row.text,
        bytes: row.output.bytes(),
        stopReason,
        stats: {
          promptBytes: prompts[b]?.length ?? 0,
          bytes: row.made,
          prefillMs: prefillEnd - start,
          decodeMs,
          bytesPerSecond: row.made > 0 ? (row.made / decodeMs) * 1000 : 0,
          seed: settings.seed + b,
          device: model.device,
        },
      };
    });
  }, prompts.length);
}
