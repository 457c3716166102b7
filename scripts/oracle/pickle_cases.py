"""Small torch.save files for the restricted reader: views, dtypes and wrappers, and one that must be refused."""

import os
from collections import OrderedDict

import torch
from safetensors.torch import save_file


class RunsCommand:
    """Unpickling this with Python's own pickle would call os.system; a reader of weights must refuse it."""

    def __reduce__(self):
        return os.system, ('true',)


def make(out):
    (out / 'pickle').mkdir()
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 8
    tensors = OrderedDict(
        base=base,
        rows=base[1:3],
        transposed=base.t(),
        column=base[:, 2],
        tied=base,
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 4),
        half=base.half(),
        bfloat16=base.bfloat16(),
        double=base.double() / 3,
        int64=torch.tensor([-(2**40), 0, 2**40]),
        int32=torch.tensor([-7, 7], dtype=torch.int32),
        int8=torch.tensor([-128, 127], dtype=torch.int8),
        uint8=torch.tensor([0, 255], dtype=torch.uint8),
        bool=torch.tensor([True, False]),
    )
    torch.save(tensors, out / 'pickle' / 'views.bin')
    packed = {name: value.contiguous().clone() for name, value in tensors.items()}
    save_file(packed, out / 'pickle' / 'views.expected.safetensors')
    torch.save(OrderedDict(weight=torch.nn.Parameter(base)), out / 'pickle' / 'parameter.bin')
    torch.save({'model': OrderedDict(weight=base), 'step': 3, 'note': 'text'}, out / 'pickle' / 'nested.bin')
    torch.save(OrderedDict(weight=base), out / 'pickle' / 'legacy.bin', _use_new_zipfile_serialization=False)
    torch.save(OrderedDict(weight=base, extra=RunsCommand()), out / 'pickle' / 'command.bin')
