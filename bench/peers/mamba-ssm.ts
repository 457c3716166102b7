/**
 * Figures of state-spaces mamba_ssm 2.3.2 (CUDA scan and convolution, Triton state update, CUDA-graph decoding) under
 * PyTorch 2.11 on one H100 80GB HBM3, driver 580, CUDA 13.0, 2026-11-21, random weights, bf16. Recorded, not measured in
 * the same run: a ratio to them is only worth something on such a GPU.
 */
export const MAMBA_SSM = {
  gpu: 'NVIDIA H100 80GB HBM3',
  /** Milliseconds of one op. */
  ops: {
    'scan B1 L8192 D2048': 0.438,
    'scan B8 L8192 D2048': 2.77,
    'scan B1 L65536 D2048': 3.15,
    'scan B1 L8192 D3584': 0.706,
    'scan forward + backward B8 L8192 D2048': 13.3,
    'scan forward + backward B1 L8192 D2048': 2.09,
    'conv + SiLU B8 L8192 D2048': 0.641,
  } as Record<string, number>,
  /** Bytes per second of whole models, by work. */
  models: {
    'decode mambabyte-27m x1': 1931,
    'decode mambabyte-353m x1': 583,
    'decode mambabyte-972m x1': 443,
    'decode mambabyte-353m x64': 25800,
    'decode mambabyte-972m x64': 18600,
    'prefill mambabyte-353m 8192': 227000,
    'prefill mambabyte-972m 8192': 137000,
    'train mambabyte-353m 4x8192': 65000,
    'train mambabyte-27m 32x2048': 466000,
  } as Record<string, number>,
};
