"""Writes the PyTorch fixtures of test/fixtures: python3 -B scripts/oracle/make_fixtures.py --out DIR (empty or new)."""

import argparse
import json
import pathlib
import platform

import safetensors.torch
import torch
import transformers

import models
import op_cases
import pickle_cases

SEED = 20240124


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=pathlib.Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    assert not any(out.iterdir()), f'{out} is not empty'
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()

    cases = op_cases.make(SEED)
    safetensors.torch.save_file(cases.tensors, out / 'ops.safetensors')
    (out / 'ops.json').write_text('[\n' + ',\n'.join(json.dumps(entry) for entry in cases.entries) + '\n]\n')
    report = {
        'command': 'python3 -B scripts/oracle/make_fixtures.py --out DIR',
        'seed': SEED,
        'versions': {
            'python': platform.python_version(),
            'torch': torch.__version__,
            'transformers': transformers.__version__,
            'safetensors': safetensors.__version__,
        },
        'opCases': len(cases.entries),
    }
    report |= models.make_hf(out, SEED) | models.make_byte(out, SEED)
    pickle_cases.make(out)
    (out / 'manifest.json').write_text(json.dumps(report, indent=1) + '\n')
    print(json.dumps(report, indent=1))


if __name__ == '__main__':
    main()
