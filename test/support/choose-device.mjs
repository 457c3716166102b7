// Loaded before every test file: tests that do not name a device use the CPU, also where there is a GPU, unless
// MAMBABYTE_TEST_DEVICE says otherwise. With MAMBABYTE_TEST_DEVICE=cuda the tests of models, generation, states, training
// and checkpoints run on the GPU.
process.env.MAMBABYTE_DEVICE ??= process.env.MAMBABYTE_TEST_DEVICE || 'cpu';
