"""The Transformer of docs/baselines.md: the plain blocks, and transformers' LlamaForCausalLM, which they must equal."""

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from transformers import LlamaConfig, LlamaForCausalLM

import blocks

TINY = {
    'architecture': 'transformer',
    'model_type': 'llama',
    'vocab_size': 256,
    'hidden_size': 32,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'intermediate_size': 48,
    'hidden_act': 'silu',
    'rms_norm_eps': 1e-5,
    'rope_theta': 10000.0,
    'tie_word_embeddings': False,
}
CONFIGS = {
    'transformer-tiny': TINY,
    'transformer-tiny-48': TINY
    | {'vocab_size': 48, 'num_key_value_heads': 4, 'rope_theta': 500.0, 'tie_word_embeddings': True},
}
LENGTHS = (1, 8, 21)


def init(c, gen):
    V, D = c['vocab_size'], c['hidden_size']
    p = {'model.embed_tokens.weight': blocks.normal(gen, V, D, std=0.3)} | blocks.init_stack(gen, 'model.', c)
    return p if c['tie_word_embeddings'] else p | {'lm_head.weight': blocks.matrix(gen, V, D)}


def parameters(c):
    V, D, n = c['vocab_size'], c['hidden_size'], c['num_hidden_layers']
    return V * D * (1 if c['tie_word_embeddings'] else 2) + n * blocks.block_parameters(c) + D


def flops(c, T, hidden=False):
    """A byte's, on windows of T bytes."""
    keys = blocks.mean_keys(T, hidden)
    return c['num_hidden_layers'] * blocks.block_flops(c, keys) + 2 * c['hidden_size'] * c['vocab_size']


def run_window(p, c, T):
    """Computes a window; returns the FLOPs that this should have taken, hidden keys and products alone."""
    forward(p, c, torch.zeros(1, T, dtype=torch.int64))
    return T * flops(c, T, hidden=True)


def forward(p, c, ids, position=0, cache=None):
    """ids(B,T) -> logits(B,T,V)"""
    x = blocks.stack(F.embedding(ids, p['model.embed_tokens.weight']), p, 'model.', c, position, cache)
    return x @ p.get('lm_head.weight', p['model.embed_tokens.weight']).T


def train_logits(p, c, ids):
    return forward(p, c, ids)


class Decoder:
    """One id at a time; the state is all keys and values."""

    def __init__(self, p, c):
        self.p, self.c, self.cache, self.position = p, c, {}, 0

    def step(self, ids):
        """ids(B) -> logits(B,V) of the next"""
        logits = forward(self.p, self.c, ids[:, None], self.position, self.cache)
        self.position += 1
        return logits[:, 0]

    def tensors(self):
        return blocks.cache_tensors(self.cache)


class AsDouble(TorchFunctionMode):
    """Every conversion to float32 becomes one to float64: transformers rounds in its norms and rotary positions."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        wide = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        return func(*(torch.float64 if arg is torch.float32 else arg for arg in args), **wide)


def llama(p, c):
    names = {name for name in c if name not in ('architecture', 'model_type', 'rope_theta')}
    rope = {'rope_type': 'default', 'rope_theta': c['rope_theta']}
    config = LlamaConfig(**{name: c[name] for name in names}, rope_parameters=rope, attn_implementation='sdpa')
    model = LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(p, strict=False)
    assert set(missing) <= {'lm_head.weight'} and not unexpected, (missing, unexpected)
    model.tie_weights()
    return model


def save_published(p, c, folder):
    """config.json and model.safetensors as transformers writes them."""
    llama(p, c).save_pretrained(folder)
    (folder / 'generation_config.json').unlink(missing_ok=True)


def check(p, c, ids):
    """Largest differences from LlamaForCausalLM as published, and with every float32 in it made float64."""
    with torch.no_grad():
        model = llama({name: value.float() for name, value in p.items()}, c)
        ours = forward(p, c, ids)
        scale = ours.abs().max()
        single = ((model(ids, use_cache=False).logits - ours).abs().max() / scale).item()
        assert single < 1e-5, single
        model.double()
        P = c['hidden_size'] // c['num_attention_heads']
        exact = c['rope_theta'] ** (-torch.arange(0, P, 2, dtype=torch.float64) / P)
        # The published frequencies are rounded to float32 when the model is made.
        torch.testing.assert_close(model.model.rotary_emb.inv_freq.double(), exact, rtol=1e-6, atol=0)
        model.model.rotary_emb.inv_freq = exact
        with AsDouble():
            double = ((model(ids, use_cache=False).logits - ours).abs().max() / scale).item()
            cache, steps = None, []
            for t in range(ids.shape[1]):
                out = model(ids[:, t : t + 1], past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                steps.append(out.logits)
            cached = ((torch.cat(steps, dim=1) - ours).abs().max() / scale).item()
        assert max(double, cached) < 1e-12, (double, cached)
    return {'differenceFromLlama32': single, 'differenceFromLlama64': double, 'differenceFromLlamaCache64': cached}
