"""Fixtures of the models that Mamba is compared with (docs/baselines.md): one folder each, checked while it is written."""

import json
import traceback

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

import gated_s4d
import megabyte
import perceiver_ar
import transformer
from mamba import cast
from models import MIN_GAP, as_ids, generator, uint8

MODELS = (transformer, megabyte, perceiver_ar, gated_s4d)
PROMPT = 'It was a dark and '
CONTINUATION = 24
TRAIN_STEPS = 18
FLOPS_WINDOW = 64


def prompt_ids(c):
    return as_ids(PROMPT) % c['vocab_size']


def difference(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def stepwise(model, p, c, ids):
    """Logits of ids(B,T), one id at a time through the caches."""
    decoder = model.Decoder(p, c)
    return torch.stack([decoder.step(ids[:, t]) for t in range(ids.shape[1])], dim=1)


def greedy(model, p, c):
    """The state after the prompt, the most likely ids after it and the logits that each was taken from."""
    decoder = model.Decoder(p, c)
    prompt = prompt_ids(c)
    for t in range(prompt.shape[1]):
        logits = decoder.step(prompt[:, t])
    tensors = {f'generate.state.{name}': value for name, value in decoder.tensors().items()}
    ids, rows = [], []
    for _ in range(CONTINUATION):
        ids.append(logits.argmax(-1))
        rows.append(logits)
        logits = decoder.step(ids[-1])
    return tensors | {
        'generate.prompt': prompt[0],
        'generate.continuation': torch.cat(ids),
        'generate.logits': torch.cat(rows),
    }


def least_gap(rows):
    """Of the best two logits."""
    best = rows.topk(2).values
    return (best[:, 0] - best[:, 1]).min().item()


@torch.no_grad()
def first_good_seed(model, c, seed):
    """The first seed whose continuation has no near tie and is not a loop of a few ids."""
    for candidate in range(seed, seed + 50):
        p = model.init(c, generator(candidate))
        tensors = greedy(model, cast(p, torch.float64), c)
        if least_gap(tensors['generate.logits']) > MIN_GAP and len(tensors['generate.continuation'].unique()) >= 8:
            return candidate, p, tensors
    raise AssertionError('no seed gives a continuation without near ties')


def training(model, p, c, seed):
    """One batch: rows, loss, the logits of the rows that count, and the gradient of every parameter."""
    rows = torch.randint(0, c['vocab_size'], (2, TRAIN_STEPS + 1), generator=generator(seed))
    leaves = {name: value.clone().requires_grad_() for name, value in p.items()}
    logits = model.train_logits(leaves, c, rows[:, :-1])
    targets = rows[:, -logits.shape[1] :]
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    tensors = {'train.rows': rows, 'train.loss': loss[None], 'train.logits': logits}
    return tensors | {f'train.grad.{name}': leaf.grad for name, leaf in leaves.items()}


def whole_sequences(model, p, c, seed):
    """Logits of several lengths, and the largest difference from decoding through caches."""
    tensors, worst = {}, 0.0
    for T in model.LENGTHS:
        ids = torch.randint(0, c['vocab_size'], (2 if T < 10 else 1, T), generator=generator(seed + T))
        logits = model.forward(p, c, ids)
        worst = max(worst, difference(stepwise(model, p, c, ids), logits))
        tensors |= {f'ids.{T}': ids, f'logits.{T}': logits}
    return tensors, worst


def check_flops(model, p, c):
    """The formula for matrix products against what torch counts; returns the formula for everything."""
    with FlopCounterMode(display=False) as counter:
        expected = model.run_window(p, c, FLOPS_WINDOW)
    counted = counter.get_total_flops()
    assert counted == expected, f'{counted} FLOPs counted, {expected} by the formula'
    return model.flops(c, FLOPS_WINDOW)


def stored(value):
    value = value.detach()
    return value.float().contiguous() if value.is_floating_point() else uint8(value)


def make_one(model, folder, c, out, seed):
    chosen, p, tensors = first_good_seed(model, c, seed)
    counted = sum(value.numel() for value in p.values())
    assert counted == model.parameters(c), f'{counted} parameters, {model.parameters(c)} by the formula'
    wide = cast(p, torch.float64)
    with torch.no_grad():
        sequences, worst = whole_sequences(model, wide, c, seed)
        prompt, continuation, rows = (tensors[f'generate.{name}'] for name in ('prompt', 'continuation', 'logits'))
        whole = model.forward(wide, c, torch.cat([prompt, continuation])[None])
        worst = max(worst, difference(rows, whole[0, len(prompt) - 1 : -1]))
        flops = check_flops(model, wide, c)
    assert worst < 1e-12, f'decoding differs from the whole sequence by {worst}'
    tensors |= sequences | training(model, wide, c, seed + 1)
    missing = [name for name, value in tensors.items() if name.startswith('train.grad.') and not value.abs().max() > 0]
    assert not missing, f'no gradient: {missing}'
    report = {
        'seed': chosen,
        'parameters': counted,
        f'flopsPerByte{FLOPS_WINDOW}': flops,
        'leastTopTwoGap': least_gap(rows),
        'stepwiseDifference': worst,
        'loss64': tensors['train.loss'].item(),
    }
    if model is transformer:
        report |= transformer.check(wide, c, tensors[f'ids.{model.LENGTHS[-1]}'])
    (out / folder).mkdir()
    if folder == 'transformer-tiny-48':
        transformer.save_published(p, c, out / folder)
    else:
        (out / folder / 'config.json').write_text(json.dumps(c, indent=2) + '\n')
        save_file(p, out / folder / 'model.safetensors', metadata={'format': 'pt'})
    save_file({name: stored(value) for name, value in tensors.items()}, out / folder / 'fixture.safetensors')
    return report


def make(out, seed):
    """Writes every model that can be made; returns their figures and the names of those that failed."""
    report, failed = {}, []
    for model in MODELS:
        for folder, c in model.CONFIGS.items():
            try:
                report[folder] = make_one(model, folder, c, out, seed)
            except Exception:
                traceback.print_exc()
                failed.append(folder)
    return report, failed
