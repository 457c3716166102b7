"""Gated S4D as docs/baselines.md defines it: S4D-Lin (Gu et al. 2022) in a gate (Mehta et al. 2022).

Sizes: B sequences, T steps, D width, E inner channels, M pairs of conjugate states (half of d_state).
"""

import math

import torch
import torch.nn.functional as F

import blocks

CONFIGS = {
    'gated-s4d-tiny': {
        'architecture': 'gated-s4d',
        'd_model': 32,
        'n_layer': 2,
        'd_inner': 64,
        'd_state': 8,
        'vocab_size': 256,
        'rms_norm_eps': 1e-5,
        'tie_embeddings': False,
    }
}
LENGTHS = (1, 8, 21)


def init(c, gen, noise=0.1):
    D, E, M, V = c['d_model'], c['d_inner'], c['d_state'] // 2, c['vocab_size']
    p = {'backbone.embedding.weight': blocks.normal(gen, V, D, std=0.3)}
    for i in range(c['n_layer']):
        layer = f'backbone.layers.{i}.'
        log_dt = torch.rand(E, generator=gen) * math.log(100) + math.log(1e-3)
        imag = math.pi * torch.arange(M).expand(E, M)
        p |= {
            f'{layer}norm.weight': blocks.norm_weight(gen, D),
            f'{layer}mixer.in_proj.weight': blocks.matrix(gen, 2 * E, D),
            f'{layer}mixer.log_dt': log_dt,
            f'{layer}mixer.log_A_real': math.log(0.5) + blocks.normal(gen, E, M, std=noise),
            f'{layer}mixer.A_imag': imag + blocks.normal(gen, E, M, std=noise),
            f'{layer}mixer.C': blocks.normal(gen, E, M, 2, std=0.5**0.5),
            f'{layer}mixer.D': 1 + blocks.normal(gen, E, std=noise),
            f'{layer}mixer.out_proj.weight': blocks.matrix(gen, D, E),
        }
    p['backbone.norm_f.weight'] = blocks.norm_weight(gen, D)
    return p if c['tie_embeddings'] else p | {'lm_head.weight': blocks.matrix(gen, V, D)}


def parameters(c):
    D, E, N, V = c['d_model'], c['d_inner'], c['d_state'], c['vocab_size']
    return V * D * (1 if c['tie_embeddings'] else 2) + c['n_layer'] * (3 * D * E + 2 * E + 2 * E * N + D) + D


def flops(c, T, hidden=False):
    """A byte's as a recurrence, whatever T; with `hidden`, matrix products alone."""
    D, E, N, n = c['d_model'], c['d_inner'], c['d_state'], c['n_layer']
    return n * (6 * D * E + (0 if hidden else E * (7 * N + 3))) + 2 * D * c['vocab_size']


def run_window(p, c, T):
    """Computes a window; returns the FLOPs that this should have taken, products alone."""
    forward(p, c, torch.zeros(1, T, dtype=torch.int64), zero_states(c, 1))
    return T * flops(c, T, hidden=True)


def zero_states(c, B):
    return [torch.zeros(B, c['d_inner'], c['d_state'] // 2, dtype=torch.complex128)] * c['n_layer']


def discretised(p, mixer):
    """Ab, Bb and C (E,M), complex."""
    A = torch.complex(-torch.exp(p[f'{mixer}log_A_real']), p[f'{mixer}A_imag'])
    Ab = torch.exp(torch.exp(p[f'{mixer}log_dt'])[:, None] * A)
    return Ab, (Ab - 1) / A, torch.view_as_complex(p[f'{mixer}C'])


def convolve(u, p, mixer):
    """u(B,T,E) -> y(B,T,E) from a state of zeros, by FFT."""
    T = u.shape[1]
    Ab, Bb, C = discretised(p, mixer)
    powers = Ab[..., None] ** torch.arange(T)
    kernel = 2 * torch.einsum('em,eml->el', C * Bb, powers).real
    spectrum = torch.fft.rfft(u.transpose(1, 2), n=2 * T) * torch.fft.rfft(kernel, n=2 * T)
    y = torch.fft.irfft(spectrum, n=2 * T)[..., :T].transpose(1, 2)
    return y + p[f'{mixer}D'] * u


def recur(u, h, p, mixer):
    """u(B,T,E) one step after another from h(B,E,M), complex -> y(B,T,E), h."""
    Ab, Bb, C = discretised(p, mixer)
    ys = []
    for t in range(u.shape[1]):
        h = Ab * h + Bb * u[:, t, :, None]
        ys.append(2 * (C * h).sum(-1).real + p[f'{mixer}D'] * u[:, t])
    return torch.stack(ys, dim=1), h


def forward(p, c, ids, states=None):
    """ids(B,T) -> logits(B,T,V); with states, one h(B,E,M) a layer that is read and replaced, as a recurrence."""
    x = F.embedding(ids, p['backbone.embedding.weight'])
    for i in range(c['n_layer']):
        layer = f'backbone.layers.{i}.'
        mixer = f'{layer}mixer.'
        normed = blocks.rms(x, p[f'{layer}norm.weight'], c['rms_norm_eps'])
        u, z = (normed @ p[f'{mixer}in_proj.weight'].T).chunk(2, dim=-1)
        if states is None:
            y = convolve(F.silu(u), p, mixer)
        else:
            y, states[i] = recur(F.silu(u), states[i], p, mixer)
        x = x + (y * F.silu(z)) @ p[f'{mixer}out_proj.weight'].T
    x = blocks.rms(x, p['backbone.norm_f.weight'], c['rms_norm_eps'])
    return x @ p.get('lm_head.weight', p['backbone.embedding.weight']).T


def train_logits(p, c, ids):
    return forward(p, c, ids)


class Decoder:
    """One id at a time, as a recurrence."""

    def __init__(self, p, c):
        self.p, self.c, self.states = p, c, None

    def step(self, ids):
        """ids(B) -> logits(B,V) of the next"""
        if self.states is None:
            self.states = zero_states(self.c, ids.shape[0])
        return forward(self.p, self.c, ids[:, None], self.states)[:, 0]

    def tensors(self):
        """h of each layer, (B,E,M,2)"""
        return {f'{i}.h': torch.view_as_real(h) for i, h in enumerate(self.states)}
