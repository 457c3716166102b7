"""MegaByte (Yu et al. 2023) as docs/baselines.md defines it: M bytes a patch, row t of the logits predicts id t + 1."""

import torch
import torch.nn.functional as F

import blocks

CONFIGS = {
    'megabyte-tiny': {
        'architecture': 'megabyte',
        'vocab_size': 256,
        'patch_size': 4,
        'global': {
            'hidden_size': 32,
            'num_hidden_layers': 2,
            'num_attention_heads': 4,
            'num_key_value_heads': 4,
            'intermediate_size': 48,
        },
        'local': {
            'hidden_size': 16,
            'num_hidden_layers': 2,
            'num_attention_heads': 2,
            'num_key_value_heads': 1,
            'intermediate_size': 32,
        },
        'rms_norm_eps': 1e-5,
        'rope_theta': 10000.0,
        'tie_word_embeddings': True,
    }
}
LENGTHS = (1, 3, 4, 8, 21)


def part(c, name):
    return c[name] | {'rms_norm_eps': c['rms_norm_eps'], 'rope_theta': c['rope_theta']}


def sizes(c):
    """V, M, width of the global model, width of the local model"""
    return c['vocab_size'], c['patch_size'], c['global']['hidden_size'], c['local']['hidden_size']


def init(c, gen):
    V, M, wide, narrow = sizes(c)
    p = {
        'global.embed_tokens.weight': blocks.normal(gen, V, wide // M, std=0.3),
        'global.pad': blocks.normal(gen, wide, std=0.3),
        'global_to_local.weight': blocks.matrix(gen, narrow, wide // M),
        'local.embed_tokens.weight': blocks.normal(gen, V, narrow, std=0.3),
        'local.pad': blocks.normal(gen, narrow, std=0.3),
    }
    for name in ('global', 'local'):
        p |= blocks.init_stack(gen, f'{name}.', part(c, name))
    return p if c['tie_word_embeddings'] else p | {'lm_head.weight': blocks.matrix(gen, V, narrow)}


def parameters(c):
    V, M, wide, narrow = sizes(c)
    global_blocks = c['global']['num_hidden_layers'] * blocks.block_parameters(c['global'])
    local_blocks = c['local']['num_hidden_layers'] * blocks.block_parameters(c['local'])
    head = V * narrow * (1 if c['tie_word_embeddings'] else 2)
    return V * wide // M + wide + global_blocks + wide + narrow * wide // M + head + narrow + local_blocks + narrow


def flops(c, T, hidden=False):
    """A byte's, on windows of T bytes, T a multiple of M."""
    V, M, wide, narrow = sizes(c)
    wide_flops = c['global']['num_hidden_layers'] * blocks.block_flops(c['global'], blocks.mean_keys(T // M, hidden))
    narrow_flops = c['local']['num_hidden_layers'] * blocks.block_flops(c['local'], blocks.mean_keys(M, hidden))
    return wide_flops / M + narrow_flops + 2 * wide // M * narrow + 2 * narrow * V


def run_window(p, c, T):
    """Computes a window; returns the FLOPs that this should have taken, hidden keys and products alone."""
    V, _, _, narrow = sizes(c)
    forward(p, c, torch.zeros(1, T - 1, dtype=torch.int64))
    return T * flops(c, T, hidden=True) - 2 * narrow * V  # no row for id 0


def head(p, x):
    return x @ p.get('lm_head.weight', p['local.embed_tokens.weight']).T


def patch_vectors(p, c, ids, K):
    """g(B,K,M,narrow) of patches 0 ... K-1, from ids(B,(K-1)*M)."""
    B, M = ids.shape[0], c['patch_size']
    patches = F.embedding(ids, p['global.embed_tokens.weight']).reshape(B, K - 1, c['global']['hidden_size'])
    inputs = torch.cat([p['global.pad'].expand(B, 1, -1), patches], dim=1)
    outputs = blocks.stack(inputs, p, 'global.', part(c, 'global'))
    return outputs.unflatten(-1, (M, -1)) @ p['global_to_local.weight'].T


def forward(p, c, ids):
    """ids(B,T) -> logits(B,T,V)"""
    B, T = ids.shape
    M = c['patch_size']
    K = T // M + 1
    g = patch_vectors(p, c, ids[:, : (K - 1) * M], K)
    # The last patch is filled up with id 0; the local model is causal, so no row that is kept sees it.
    filled = F.pad(ids, (0, K * M - T)).reshape(B, K, M)
    before = F.embedding(filled[:, :, : M - 1], p['local.embed_tokens.weight'])
    inputs = g + torch.cat([p['local.pad'].expand(B, K, 1, -1), before], dim=2)
    outputs = blocks.stack(inputs.flatten(0, 1), p, 'local.', part(c, 'local'))
    return head(p, outputs.reshape(B, K * M, -1)[:, 1 : T + 1])


def train_logits(p, c, ids):
    return forward(p, c, ids)


class Decoder:
    """One id at a time: a global step once a patch, a local step for every id."""

    def __init__(self, p, c):
        self.p, self.c = p, c
        self.global_cache, self.patches, self.patch = {}, 0, []

    def begin_patch(self, vector):
        """vector(B,wide): what the global model reads; then the local model reads its pad."""
        p, c = self.p, self.c
        out = blocks.stack(vector[:, None], p, 'global.', part(c, 'global'), self.patches, self.global_cache)
        self.patches += 1
        self.g = out[:, 0].unflatten(-1, (c['patch_size'], -1)) @ p['global_to_local.weight'].T
        self.local_cache, self.patch = {}, []
        return self.local_step(p['local.pad'].expand(vector.shape[0], -1))

    def local_step(self, vector):
        place = len(self.patch)
        inputs = (self.g[:, place] + vector)[:, None]
        return blocks.stack(inputs, self.p, 'local.', part(self.c, 'local'), place, self.local_cache)[:, 0]

    def step(self, ids):
        """ids(B) -> logits(B,V) of the next"""
        p = self.p
        if self.patches == 0:
            self.begin_patch(p['global.pad'].expand(ids.shape[0], -1))
        self.patch.append(ids)
        if len(self.patch) == self.c['patch_size']:
            x = self.begin_patch(
                F.embedding(torch.stack(self.patch, dim=1), p['global.embed_tokens.weight']).flatten(1)
            )
        else:
            x = self.local_step(F.embedding(ids, p['local.embed_tokens.weight']))
        return head(p, x)

    def tensors(self):
        """g(B,M,narrow) of the patch that is being predicted, and both caches."""
        return {'g': self.g} | blocks.cache_tensors(self.global_cache) | blocks.cache_tensors(self.local_cache)
