"""A whole Mamba language model over a dict of tensors with the names of state-spaces/mamba, in any float dtype."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import reference


@dataclass(frozen=True)
class Config:
    vocab: int = 256
    d_model: int = 32
    n_layer: int = 2
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    eps: float = 1e-5
    layer_norm: bool = True  # LayerNorm with bias; False: RMSNorm
    tied: bool = False

    @property
    def d_inner(self):
        return self.expand * self.d_model

    @property
    def dt_rank(self):
        return math.ceil(self.d_model / 16)


def init(config, gen, noise=0.1):
    """Official initialisation (mamba_ssm's), then noise on every tensor so that none is trivial; float32."""

    def uniform(*shape, bound):
        return (torch.rand(*shape, generator=gen) * 2 - 1) * bound

    D, E, N, K, R = config.d_model, config.d_inner, config.d_state, config.d_conv, config.dt_rank
    p = {'backbone.embedding.weight': torch.randn(config.vocab, D, generator=gen) * 0.02}
    for i in range(config.n_layer):
        dt = torch.exp(torch.rand(E, generator=gen) * math.log(100) + math.log(1e-3)).clamp(min=1e-4)
        layer = {
            'norm.weight': torch.ones(D),
            'mixer.A_log': torch.log(torch.arange(1, N + 1).float()).repeat(E, 1),
            'mixer.D': torch.ones(E),
            'mixer.in_proj.weight': uniform(2 * E, D, bound=D**-0.5),
            'mixer.conv1d.weight': uniform(E, 1, K, bound=K**-0.5),
            'mixer.conv1d.bias': uniform(E, bound=K**-0.5),
            'mixer.x_proj.weight': uniform(R + 2 * N, E, bound=E**-0.5),
            'mixer.dt_proj.weight': uniform(E, R, bound=R**-0.5),
            'mixer.dt_proj.bias': dt + torch.log(-torch.expm1(-dt)),
            'mixer.out_proj.weight': uniform(D, E, bound=E**-0.5) / math.sqrt(config.n_layer),
        }
        if config.layer_norm:
            layer['norm.bias'] = torch.zeros(D)
        p |= {f'backbone.layers.{i}.{name}': value for name, value in layer.items()}
    p['backbone.norm_f.weight'] = torch.ones(D)
    if config.layer_norm:
        p['backbone.norm_f.bias'] = torch.zeros(D)
    if not config.tied:
        p['lm_head.weight'] = uniform(config.vocab, D, bound=D**-0.5)
    p = {name: value + noise * torch.randn(value.shape, generator=gen) for name, value in p.items()}
    if config.tied:
        # A tied head sees its own input byte in the residual; a smaller embedding lets the blocks decide the next one.
        p['backbone.embedding.weight'] *= 0.3
    return p


def block_operands(p, i):
    """Layer i under the operand names of the op `mamba_block`."""
    layer = f'backbone.layers.{i}.'
    mixer = layer + 'mixer.'
    return {
        'norm_weight': p[layer + 'norm.weight'],
        'norm_bias': p.get(layer + 'norm.bias'),
        'in_proj': p[mixer + 'in_proj.weight'],
        'conv_weight': p[mixer + 'conv1d.weight'][:, 0],
        'conv_bias': p[mixer + 'conv1d.bias'],
        'x_proj': p[mixer + 'x_proj.weight'],
        'dt_proj': p[mixer + 'dt_proj.weight'],
        'dt_bias': p[mixer + 'dt_proj.bias'],
        'A': -torch.exp(p[mixer + 'A_log']),
        'D': p[mixer + 'D'],
        'out_proj': p[mixer + 'out_proj.weight'],
    }


def forward(p, config, ids, states=None):
    """ids(B,T), states: per layer (conv(B,K-1,E), ssm(B,E,N)) -> logits(B,T,V), states."""
    x = F.embedding(ids, p['backbone.embedding.weight'])
    after = []
    for i in range(config.n_layer):
        conv, ssm = states[i] if states else (None, None)
        x, conv, ssm = reference.mamba_block(x, block_operands(p, i), config.eps, conv, ssm)
        after.append((conv, ssm))
    weight, bias = p['backbone.norm_f.weight'], p.get('backbone.norm_f.bias')
    if bias is None:
        x, _ = reference.rms_norm(x, weight, config.eps)
    else:
        x, _, _ = reference.layer_norm(x, weight, bias, config.eps)
    return x @ p.get('lm_head.weight', p['backbone.embedding.weight']).T, after


def loss(p, config, rows):
    """rows(B,T+1): mean over all B * T positions of the next byte's cross-entropy, in nats."""
    logits, _ = forward(p, config, rows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()), logits


def cast(p, dtype):
    return {name: value.detach().to(dtype) for name, value in p.items()}
