// A small corpus to train on, and what a run leaves behind, in a form that runs can be compared in.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { prose } from './prose.ts';

/** Prose of 12,000 bytes: ten documents of 1,000 bytes, and the rest for validation. */
export const TEXT = prose(12_000, 1);
export const DOCUMENTS = Array.from({ length: 10 }, (_, i) => TEXT.toString('latin1', i * 1000, (i + 1) * 1000));
export const CORPUS = DOCUMENTS.join('\n\f\n');
export const VALID = TEXT.subarray(10_000, 10_800);

/** Contents of a checkpoint's files, base64: weights, optimizer and config.json, and those named. */
export function filesOf(checkpoint: string, ...more: string[]): Record<string, string> {
  const names = ['model.safetensors', 'optimizer.safetensors', 'config.json', ...more];
  return Object.fromEntries(names.map((name) => [name, readFileSync(join(checkpoint, name)).toString('base64')]));
}

/** Log lines without what a clock decides. */
export function logOf(out: string): Record<string, number>[] {
  const lines = readFileSync(join(out, 'log.jsonl'), 'utf8').trimEnd().split('\n');
  return lines.map((line) => {
    const { seconds, bytesPerSecond, ...rest } = JSON.parse(line);
    return rest;
  });
}
