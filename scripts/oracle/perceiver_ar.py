"""PerceiverAR (Hawthorne et al. 2022) as docs/baselines.md defines it: N latents, blocks that start every S ids."""

import torch
import torch.nn.functional as F

import blocks

CONFIGS = {
    'perceiver-ar-tiny': {
        'architecture': 'perceiver-ar',
        'vocab_size': 256,
        'hidden_size': 32,
        'num_hidden_layers': 2,
        'num_attention_heads': 4,
        'num_key_value_heads': 4,
        'intermediate_size': 48,
        'num_latents': 8,
        'latent_stride': 3,
        'rms_norm_eps': 1e-5,
        'rope_theta': 10000.0,
        'tie_word_embeddings': False,
    }
}
LENGTHS = (1, 8, 9, 25)


def init(c, gen):
    V, D = c['vocab_size'], c['hidden_size']
    p = {'model.embed_tokens.weight': blocks.normal(gen, V, D, std=0.3)}
    for name in ('input', 'context', 'post_attention'):
        p[f'model.cross.{name}_layernorm.weight'] = blocks.norm_weight(gen, D)
    p |= blocks.init_attention(gen, 'model.cross.cross_attn.', c) | blocks.init_mlp(gen, 'model.cross.mlp.', c)
    p |= blocks.init_stack(gen, 'model.', c)
    return p if c['tie_word_embeddings'] else p | {'lm_head.weight': blocks.matrix(gen, V, D)}


def parameters(c):
    V, D, n = c['vocab_size'], c['hidden_size'], c['num_hidden_layers']
    return V * D * (1 if c['tie_word_embeddings'] else 2) + (n + 1) * blocks.block_parameters(c) + 2 * D


def flops(c, T, hidden=False):
    """A scored byte's, on training windows of T >= N bytes."""
    V, D, N, n = c['vocab_size'], c['hidden_size'], c['num_latents'], c['num_hidden_layers']
    context = 4 * D * blocks.key_width(c) * T / N
    keys = T if hidden else T - (N - 1) / 2
    latents = 4 * D * D + 6 * D * c['intermediate_size'] + 4 * D * keys
    return context + latents + n * blocks.block_flops(c, blocks.mean_keys(N, hidden)) + 2 * D * V


def run_window(p, c, T):
    """Computes a window; returns the FLOPs that this should have taken, hidden keys and products alone."""
    train_logits(p, c, torch.zeros(1, T, dtype=torch.int64))
    return c['num_latents'] * flops(c, T, hidden=True)


def first_latent(c, t):
    """w(t)"""
    N, S = c['num_latents'], c['latent_stride']
    return 0 if t < N else S * -(-(t + 1 - N) // S)


def cross(z, context, p, c, position, context_position, cache=None):
    """Latents z(B,L,D), the last of which stands where context(B,S,D) ends."""
    prefix, eps = 'model.cross.', c['rms_norm_eps']
    a = blocks.rms(z, p[f'{prefix}input_layernorm.weight'], eps)
    b = blocks.rms(context, p[f'{prefix}context_layernorm.weight'], eps)
    z = z + blocks.attention(a, b, p, f'{prefix}cross_attn.', c, position, context_position, cache)
    return z + blocks.swiglu(blocks.rms(z, p[f'{prefix}post_attention_layernorm.weight'], eps), p, f'{prefix}mlp.')


def head(p, x):
    return x @ p.get('lm_head.weight', p['model.embed_tokens.weight']).T


def latent_logits(p, c, ids, first):
    """ids(B,T) with latents at first ... T-1 -> their logits(B,T-first,V)"""
    x = F.embedding(ids, p['model.embed_tokens.weight'])
    return head(p, blocks.stack(cross(x[:, first:], x, p, c, first, 0), p, 'model.', c, first))


def forward(p, c, ids):
    """ids(B,T) -> logits(B,T,V): row t alone, from its own block of latents."""
    T = ids.shape[1]
    return torch.cat([latent_logits(p, c, ids[:, : t + 1], first_latent(c, t))[:, -1:] for t in range(T)], dim=1)


def train_logits(p, c, ids):
    """Logits of the last N rows."""
    return latent_logits(p, c, ids, max(0, ids.shape[1] - c['num_latents']))


class Decoder:
    """One id at a time; when the block moves, the self layers read again what cross-attention gave the latents that stay."""

    def __init__(self, p, c):
        self.p, self.c = p, c
        self.position, self.first = 0, 0
        self.cross_cache, self.self_cache, self.kept = {}, {}, []

    def read_latents(self, y, position):
        return blocks.stack(y, self.p, 'model.', self.c, position, self.self_cache)

    def step(self, ids):
        """ids(B) -> logits(B,V) of the next"""
        p, c, t = self.p, self.c, self.position
        first = first_latent(c, t)
        if first != self.first:
            self.kept, self.self_cache = self.kept[first - self.first :], {}
            self.first = first
            if self.kept:
                self.read_latents(torch.cat(self.kept, dim=1), first)
        x = F.embedding(ids[:, None], p['model.embed_tokens.weight'])
        y = cross(x, x, p, c, t, t, self.cross_cache)
        self.kept.append(y)
        self.position += 1
        return head(p, self.read_latents(y, t))[:, 0]

    def tensors(self):
        """y(B,L,D) of the block's latents, and both caches."""
        y = torch.cat(self.kept, dim=1)
        return {'y': y} | blocks.cache_tensors(self.cross_cache) | blocks.cache_tensors(self.self_cache)
