"""Writes the PyTorch fixtures of test/fixtures: python3 -B scripts/oracle/make_fixtures.py [baselines] --out DIR

DIR is empty or new. With `baselines`, those of docs/baselines.md; without, all others.
"""

import argparse
import json
import pathlib
import platform
import sys

import safetensors.torch
import torch
import transformers

import baselines
import models
import op_cases
import pickle_cases

SEED = 20240124


def versions():
    return {
        'python': platform.python_version(),
        'torch': torch.__version__,
        'transformers': transformers.__version__,
        'safetensors': safetensors.__version__,
    }


def make_mamba(out):
    cases = op_cases.make(SEED)
    safetensors.torch.save_file(cases.tensors, out / 'ops.safetensors')
    (out / 'ops.json').write_text('[\n' + ',\n'.join(json.dumps(entry) for entry in cases.entries) + '\n]\n')
    report = {
        'command': 'python3 -B scripts/oracle/make_fixtures.py --out DIR',
        'seed': SEED,
        'versions': versions(),
        'opCases': len(cases.entries),
    }
    report |= models.make_hf(out, SEED) | models.make_byte(out, SEED)
    pickle_cases.make(out)
    write_report(out / 'manifest.json', report)


def make_baselines(out):
    """Exits with 1 after all others are written if a model failed."""
    report, failed = baselines.make(out, SEED)
    command = 'python3 -B scripts/oracle/make_fixtures.py baselines --out DIR'
    write_report(out / 'baselines.json', {'command': command, 'seed': SEED, 'versions': versions()} | report)
    if failed:
        sys.exit(f'failed: {", ".join(failed)}')


def write_report(path, report):
    text = json.dumps(report, indent=1)
    path.write_text(text + '\n')
    print(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('what', nargs='?', choices=['baselines'])
    parser.add_argument('--out', type=pathlib.Path, required=True)
    options = parser.parse_args()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    assert not any(out.iterdir()), f'{out} is not empty'
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    make = make_baselines if options.what == 'baselines' else make_mamba
    make(out)


if __name__ == '__main__':
    main()
