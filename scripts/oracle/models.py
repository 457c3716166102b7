"""Whole tiny models: checkpoints in both published layouts, logits, gradients, golden losses, greedy bytes, states."""

import json
from collections import OrderedDict

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode
from transformers import MambaConfig, MambaForCausalLM

import mamba

PROMPT = 'It was a dark and stormy night; '
MIN_GAP = 1e-4
TRAINING = {
    'lr': 1e-3,
    'betas': [0.9, 0.95],
    'eps': 1e-8,
    'weightDecay': 0.1,
    'clip': 1.0,
    'batch': 4,
    'context': 32,
    'steps': 10,
}
TEXT = (
    'The lamp on the harbour wall had burned since before the town was built, and nobody living could say who filled '
    'it. Every evening the keeper climbed the forty steps, looked out over the grey water, and counted the boats that '
    'came home. On most evenings the count was right. On this one there was a boat too many, low in the water and '
    'painted black, and it carried no light at all. He counted again, slowly, with his finger on the cold glass, and '
    'then he went down to ring the bell.\r\n'
)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def as_ids(text):
    return torch.tensor([list(text.encode())])


def uint8(ids):
    return ids.to(torch.uint8).contiguous()


class KeepDouble(TorchFunctionMode):
    """Ignores conversions of float64 tensors to float32.

    transformers' Mamba writes `.float()` and `.to(torch.float32)` in its norm, scan, residual and logits, so
    `model.double()` alone would still round there. Everything else of the public implementation runs as it is.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        to_float = func is torch.Tensor.float
        to_float |= func is torch.Tensor.to and (torch.float32 in args[1:] or kwargs.get('dtype') is torch.float32)
        if to_float and args[0].dtype is torch.float64:
            return args[0]
        return func(*args, **kwargs)


def hf_config(vocab):
    """The same shape for our module and for transformers: RMSNorm, tied head, three layers."""
    ours = mamba.Config(vocab=vocab, d_model=32, n_layer=3, d_state=8, layer_norm=False, tied=True)
    theirs = MambaConfig(
        vocab_size=vocab,
        hidden_size=ours.d_model,
        num_hidden_layers=ours.n_layer,
        state_size=ours.d_state,
        conv_kernel=ours.d_conv,
        expand=ours.expand,
        layer_norm_epsilon=ours.eps,
        use_bias=False,
        use_conv_bias=True,
        residual_in_fp32=True,
        tie_word_embeddings=True,
        use_cache=False,
        use_mambapy=False,
        use_associative_scan=False,
    )
    return ours, theirs


def hf_model(config, p):
    model = MambaForCausalLM(config).eval()
    named = {name.replace('backbone.embedding.', 'backbone.embeddings.'): value for name, value in p.items()}
    missing, unexpected = model.load_state_dict(named, strict=False)
    assert set(missing) <= {'lm_head.weight'} and not unexpected, (missing, unexpected)
    model.tie_weights()
    return model


def hf_logits(model, ids, dtype):
    """Logits of transformers' own forward pass, whole sequence, no cache."""
    with torch.no_grad():
        if dtype is torch.float64:
            with KeepDouble():
                return model.double()(ids, use_cache=False).logits
        return model.float()(ids, use_cache=False).logits


def agree(ours, theirs, tolerance):
    worst = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    assert worst < tolerance, f'implementations differ by {worst}'
    return worst


def greedy(p, config, prompt, count):
    """The most likely `count` bytes, one by one through carried states, and the least gap of the best two logits."""
    logits, states = mamba.forward(p, config, prompt)
    ids, least = [], float('inf')
    for _ in range(count):
        top = logits[0, -1].topk(2)
        least = min(least, (top.values[0] - top.values[1]).item())
        ids.append(top.indices[:1])
        logits, states = mamba.forward(p, config, top.indices[:1][None], states)
    return torch.cat(ids)[None], least


def assert_greedy(logits_of, continuation):
    """The whole sequence at once, by another implementation or precision, has the same most likely bytes."""
    prompt = as_ids(PROMPT)
    logits = logits_of(torch.cat([prompt, continuation], dim=1))
    assert torch.equal(logits[:, prompt.shape[1] - 1 : -1].argmax(-1), continuation)


@torch.no_grad()
def first_good_seed(config, seed):
    """The first seed from `seed` on whose greedy continuation has no near tie and is not a loop of a few bytes."""
    for candidate in range(seed, seed + 20):
        p = mamba.cast(mamba.init(config, generator(candidate)), torch.float64)
        continuation, gap = greedy(p, config, as_ids(PROMPT), 64)
        if gap > MIN_GAP and len(continuation.unique()) >= 16:
            return candidate, continuation, gap
    raise AssertionError('no seed gives a continuation without near ties')


def generation_tensors(continuation):
    return {'generate.prompt': uint8(as_ids(PROMPT)[0]), 'generate.continuation': uint8(continuation[0])}


def make_hf(out, seed):
    """hf-tiny (256 classes, one file) and hf-tiny-48 (48 classes, sharded with an index)."""
    report = {}
    for folder, vocab, shard in [('hf-tiny', 256, '5GB'), ('hf-tiny-48', 48, '50KB')]:
        ours, theirs = hf_config(vocab)
        chosen, continuation, gap = first_good_seed(ours, seed) if vocab == 256 else (seed, None, None)
        p = mamba.init(ours, generator(chosen))
        model = hf_model(theirs, p)
        ids = torch.randint(0, vocab, (2, 17), generator=generator(seed + 1))
        logits32, logits64 = hf_logits(model, ids, torch.float32), hf_logits(model, ids, torch.float64)
        byte_module, _ = mamba.forward(mamba.cast(p, torch.float64), ours, ids)
        tensors = {'ids': uint8(ids), 'logits64': logits64.contiguous(), 'logits32': logits32.contiguous()}
        report[folder] = {
            'seed': chosen,
            'differenceOfImplementations': agree(byte_module, logits64, 1e-10),
            'differenceOfFloat32': agree(logits32, logits64, 1e-5),
        }
        if continuation is not None:
            for dtype in (torch.float64, torch.float32):
                assert_greedy(lambda ids: hf_logits(model, ids, dtype), continuation)
            tensors |= generation_tensors(continuation)
            report[folder]['leastTopTwoGap'] = gap
        model.float().save_pretrained(out / folder, max_shard_size=shard)
        (out / folder / 'generation_config.json').unlink(missing_ok=True)
        save_file(tensors, out / f'{folder}.expected.safetensors')
    return report


def decays(name, value):
    return value.ndim >= 2 and not name.endswith('A_log')


def train(p, config, rows, dtype):
    """Losses, gradient norms before clipping and final weights of TRAINING's run; rows(steps, batch, context + 1)."""
    p = {name: torch.nn.Parameter(value.to(dtype)) for name, value in p.items()}
    groups = [
        {'params': [v for k, v in p.items() if decays(k, v)], 'weight_decay': TRAINING['weightDecay']},
        {'params': [v for k, v in p.items() if not decays(k, v)], 'weight_decay': 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=TRAINING['lr'], betas=tuple(TRAINING['betas']), eps=TRAINING['eps'])
    losses, norms = [], []
    for batch in rows:
        optimizer.zero_grad()
        loss, _ = mamba.loss(p, config, batch)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(p.values(), TRAINING['clip']).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, p


def make_training(out, p, config):
    steps, batch, context = TRAINING['steps'], TRAINING['batch'], TRAINING['context']
    size = steps * batch * (context + 1)
    text = (TEXT * (size // len(TEXT) + 1)).encode()[:size]
    buffer = torch.tensor(list(text))
    rows = buffer.reshape(steps, batch, context + 1)
    loss64, norm64, trained = train(p, config, rows, torch.float64)
    loss32, norm32, _ = train(p, config, rows, torch.float32)
    save_file({'bytes': uint8(buffer)}, out / 'training.safetensors')
    run = TRAINING | {
        'initialWeights': 'byte-tiny',
        'decayed': [name for name, value in p.items() if decays(name, value)],
        'loss64': loss64,
        'gradNorm64': norm64,
        'loss32': loss32,
        'gradNorm32': norm32,
        'finalWeightNorm64': {name: value.detach().norm().item() for name, value in trained.items()},
    }
    (out / 'training.json').write_text(json.dumps(run, indent=1) + '\n')
    return {'loss64': [loss64[0], loss64[-1]], 'gradNorm64': [min(norm64), max(norm64)]}


def save_byte_checkpoints(out, p, config):
    """The same weights as safetensors, as a .bin, and as a .bin with a DDP prefix and no config.json."""
    dialect = {
        'd_model': config.d_model,
        'n_layer': config.n_layer,
        'vocab_size': config.vocab,
        'ssm_cfg': {},
        'rms_norm': False,
        'residual_in_fp32': True,
        'fused_add_norm': False,
        'pad_vocab_size_multiple': 8,
        'tie_embeddings': False,
    }
    for folder in ('byte-tiny', 'byte-tiny-bin', 'byte-tiny-module'):
        (out / folder).mkdir()
    for folder in ('byte-tiny', 'byte-tiny-bin'):
        (out / folder / 'config.json').write_text(json.dumps(dialect, indent=2) + '\n')
    save_file(p, out / 'byte-tiny' / 'model.safetensors', metadata={'format': 'pt'})
    torch.save(OrderedDict(p), out / 'byte-tiny-bin' / 'pytorch_model.bin')
    prefixed = OrderedDict((f'module.{name}', value) for name, value in p.items())
    torch.save(prefixed, out / 'byte-tiny-module' / 'pytorch_model.bin')


def states_after(p, config, prompt, label):
    """Conv (B,K-1,E) and ssm (B,E,N) states of each layer after the prompt, and the logits at its last byte."""
    logits, states = mamba.forward(p, config, prompt)
    tensors = {f'{label}.prompt': uint8(prompt[0]), f'{label}.logits': logits[0, -1]}
    for i, (conv, ssm) in enumerate(states):
        tensors |= {f'{label}.{i}.conv': conv, f'{label}.{i}.ssm': ssm}
    return tensors


def stepwise_difference(p, config, ids):
    """One byte at a time through carried states against the whole sequence at once."""
    whole, _ = mamba.forward(p, config, ids)
    states, steps = None, []
    for t in range(ids.shape[1]):
        logits, states = mamba.forward(p, config, ids[:, t : t + 1], states)
        steps.append(logits)
    return agree(torch.cat(steps, dim=1), whole, 1e-12)


def make_byte(out, seed):
    config = mamba.Config()

    chosen, continuation, gap = first_good_seed(config, seed)
    p = mamba.init(config, generator(chosen))
    for dtype in (torch.float64, torch.float32):
        assert_greedy(lambda ids: mamba.forward(mamba.cast(p, dtype), config, ids)[0], continuation)
    save_byte_checkpoints(out, p, config)

    double = mamba.cast(p, torch.float64)
    wide = {name: value.clone().requires_grad_() for name, value in double.items()}
    rows = torch.randint(0, 256, (2, 18), generator=generator(seed + 1))
    loss, logits = mamba.loss(wide, config, rows)
    loss.backward()
    tensors = {'bytes': uint8(rows), 'logits64': logits, 'loss64': loss[None]}
    tensors |= {f'grad.{name}': value.grad for name, value in wide.items()}
    tensors |= generation_tensors(continuation)
    tensors |= states_after(double, config, as_ids(PROMPT), 'state')
    tensors |= states_after(double, config, as_ids('It'), 'state_short')
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, out / 'byte-tiny.expected.safetensors')
    return {
        'byte-tiny': {
            'seed': chosen,
            'leastTopTwoGap': gap,
            'loss64': loss.item(),
            'stepwiseDifference': stepwise_difference(double, config, rows),
        },
        'training': make_training(out, p, config),
    }
