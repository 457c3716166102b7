/**
 * A Transformer of 361M parameters (28 x 1024) under PyTorch 2.11 at its best: SDPA, a static cache, CUDA graphs, bf16, one
 * sequence; recorded on one H100 80GB HBM3, driver 580, CUDA 13.0, 2026-11-21. Tokens per second by the context before them.
 */
export const PYTORCH_TRANSFORMER: Readonly<Record<string, number>> = {
  'decode transformer-353m at 1024': 759,
  'decode transformer-353m at 8192': 626,
  'decode transformer-353m at 32768': 397,
  'decode transformer-353m at 131072': 160,
};
