// The model that a set of tensors is, and whether all of them are there.
import { describe, expected, ModelFormatError } from '../errors.ts';
import type { Architecture, Inferred } from '../models/architecture.ts';
import { ARCHITECTURES, type ModelConfig } from '../models/architectures.ts';
import type { StoredTensor } from './stored-tensor.ts';
import { checkTensors } from './tensor-checks.ts';

const LLAMA_EMBEDDING = 'model.embed_tokens.weight';

/**
 * Infers the configuration of the model that `tensors` (canonical names) hold.
 *
 * @param where names the checkpoint in messages.
 * @param configJson the parsed config.json, if there is one.
 * @throws ModelFormatError listing missing, extra, misshaped and wrongly typed tensors by name, naming both values of
 * any contradiction with the config, or saying that there is no such architecture.
 */
export async function inferConfig(
  where: string,
  tensors: ReadonlyMap<string, StoredTensor>,
  configJson?: Record<string, unknown>,
): Promise<Inferred<ModelConfig>> {
  const architecture = architectureOfFile(where, tensors, configJson);
  const inferred = await architecture.infer(where, tensors, configJson);
  const config = withinLimits(where, inferred.config, architecture);
  checkTensors(where, tensors, config, architecture);
  return { config, warnings: inferred.warnings };
}

/** As config.json says; else by how published checkpoints call the embedding. */
function architectureOfFile(
  where: string,
  tensors: ReadonlyMap<string, StoredTensor>,
  json: Record<string, unknown> | undefined,
): Architecture<ModelConfig> {
  const stated = json?.architecture;
  if (stated === undefined) return ARCHITECTURES[tensors.has(LLAMA_EMBEDDING) ? 'transformer' : 'mamba'];
  const found = Object.values(ARCHITECTURES).find(({ name }) => name === stated);
  if (found) return found;
  const known = `be one of ${Object.keys(ARCHITECTURES).join(', ')}`;
  throw new ModelFormatError(expected(`${where}: config.json`, 'architecture', known, describe(stated)));
}

/** Sizes that no op supports are a fault of the file here, not of the call. */
function withinLimits(where: string, config: ModelConfig, architecture: Architecture<ModelConfig>): ModelConfig {
  try {
    return architecture.complete(config);
  } catch (cause) {
    throw new ModelFormatError(expected(where, 'the model', 'have supported sizes', (cause as Error).message), {
      cause,
    });
  }
}
