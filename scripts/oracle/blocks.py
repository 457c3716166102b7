"""The pre-norm block that all Transformers of docs/baselines.md share, in the dtype of its arguments.

Sizes: B sequences, T steps, S keys, D width, H query heads, J heads of keys and values, P width of a head, F inner width.
"""

import torch
import torch.nn.functional as F

import reference


def rms(x, weight, eps):
    return reference.rms_norm(x, weight, eps)[0]


def heads_of(x, count):
    """(B,T,count*P) -> (B,T,count,P)"""
    return x.unflatten(-1, (count, x.shape[-1] // count))


def rope(x, position, theta):
    """x(B,T,H,P) whose first step stands at `position`; dims i and i + P/2 of a head are a pair."""
    T, P = x.shape[1], x.shape[3]
    frequency = theta ** (-torch.arange(0, P, 2, dtype=x.dtype) / P)
    angle = (position + torch.arange(T, dtype=x.dtype))[:, None, None] * frequency
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


def attend(q, k, v):
    """q(B,T,H,P), k and v(B,S,J,P) -> (B,T,H*P); the last query sees all S keys, each one before it one key less."""
    T, H, P = q.shape[1:]
    S, J = k.shape[1:3]
    k, v = k.repeat_interleave(H // J, dim=2), v.repeat_interleave(H // J, dim=2)
    scores = torch.einsum('bthp,bshp->bhts', q, k) / P**0.5
    hidden = torch.arange(S) > torch.arange(T)[:, None] + S - T
    weights = torch.softmax(scores.masked_fill(hidden, float('-inf')), dim=-1)
    return torch.einsum('bhts,bshp->bthp', weights, v).flatten(2)


def swiglu(x, p, prefix):
    gate, up, down = (p[f'{prefix}{name}_proj.weight'] for name in ('gate', 'up', 'down'))
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def attention(x, context, p, prefix, c, position, context_position, cache):
    """Queries from x(B,T,D) at `position`; keys and values from context(B,S,D) behind those that `cache` holds."""
    q, k, v, o = (p[f'{prefix}{name}_proj.weight'] for name in 'qkvo')
    H, J, theta = c['num_attention_heads'], c['num_key_value_heads'], c['rope_theta']
    keys = rope(heads_of(context @ k.T, J), context_position, theta)
    values = heads_of(context @ v.T, J)
    if cache is not None:
        if prefix in cache:
            keys, values = (torch.cat(pair, dim=1) for pair in zip(cache[prefix], (keys, values)))
        cache[prefix] = keys, values
    return attend(rope(heads_of(x @ q.T, H), position, theta), keys, values) @ o.T


def block(x, p, prefix, c, position=0, cache=None):
    """x(B,T,D) -> (B,T,D); `cache` maps the name of an attention to its keys and values (B,S,J,P) and grows by T."""
    a = rms(x, p[f'{prefix}input_layernorm.weight'], c['rms_norm_eps'])
    x = x + attention(a, a, p, f'{prefix}self_attn.', c, position, position, cache)
    m = rms(x, p[f'{prefix}post_attention_layernorm.weight'], c['rms_norm_eps'])
    return x + swiglu(m, p, f'{prefix}mlp.')


def stack(x, p, prefix, c, position=0, cache=None):
    """All blocks under `prefix` and the norm behind them."""
    for i in range(c['num_hidden_layers']):
        x = block(x, p, f'{prefix}layers.{i}.', c, position, cache)
    return rms(x, p[f'{prefix}norm.weight'], c['rms_norm_eps'])


def key_width(c):
    return c['hidden_size'] // c['num_attention_heads'] * c['num_key_value_heads']


def block_parameters(c):
    D, inner = c['hidden_size'], c['intermediate_size']
    return 2 * D * D + 2 * D * key_width(c) + 3 * D * inner + 2 * D


def block_flops(c, keys):
    """Of one step that sees so many keys; a multiply and an add are two."""
    D = c['hidden_size']
    return 4 * D * D + 4 * D * key_width(c) + 6 * D * c['intermediate_size'] + 4 * D * keys


def mean_keys(T, hidden):
    """Of causal attention over T steps; with `hidden`, those behind the mask are counted too."""
    return T if hidden else (T + 1) / 2


def cache_tensors(cache):
    """Keys and values (B,S,J,P) of each attention, by its name."""
    return {f'{prefix}{"kv"[i]}': value for prefix, pair in cache.items() for i, value in enumerate(pair)}


def normal(gen, *shape, std=1.0):
    return torch.randn(*shape, generator=gen) * std


def matrix(gen, rows, columns):
    """Large enough that every part of a tiny model matters."""
    return normal(gen, rows, columns, std=1.2 * columns**-0.5)


def norm_weight(gen, D):
    return 1 + normal(gen, D, std=0.1)


def init_attention(gen, prefix, c):
    D, keys = c['hidden_size'], key_width(c)
    shapes = {'q': (D, D), 'k': (keys, D), 'v': (keys, D), 'o': (D, D)}
    return {f'{prefix}{name}_proj.weight': matrix(gen, *shape) for name, shape in shapes.items()}


def init_mlp(gen, prefix, c):
    D, inner = c['hidden_size'], c['intermediate_size']
    shapes = {'gate': (inner, D), 'up': (inner, D), 'down': (D, inner)}
    return {f'{prefix}{name}_proj.weight': matrix(gen, *shape) for name, shape in shapes.items()}


def init_stack(gen, prefix, c):
    p = {}
    for i in range(c['num_hidden_layers']):
        layer = f'{prefix}layers.{i}.'
        p |= {f'{layer}input_layernorm.weight': norm_weight(gen, c['hidden_size'])}
        p |= init_attention(gen, f'{layer}self_attn.', c)
        p |= {f'{layer}post_attention_layernorm.weight': norm_weight(gen, c['hidden_size'])}
        p |= init_mlp(gen, f'{layer}mlp.', c)
    return p | {f'{prefix}norm.weight': norm_weight(gen, c['hidden_size'])}
