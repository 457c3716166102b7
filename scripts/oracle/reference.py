"""The ops of native/ops.def as plain PyTorch, in the dtype of their arguments; gradients come from autograd.

Sizes: B batch, T time, R rows, D width, E inner channels, N states, K conv width, as in native/ops.def.
"""

import torch
import torch.nn.functional as F


def softplus(x):
    """log(1 + exp(x)) without the cut-over to x that torch's own softplus makes at 20."""
    return torch.logaddexp(x, torch.zeros_like(x))


def rms_norm(x, weight, eps):
    """x(R,D), weight(D) -> y(R,D), rstd(R)."""
    rstd = torch.rsqrt(x.pow(2).mean(-1) + eps)
    return x * rstd[..., None] * weight, rstd


def layer_norm(x, weight, bias, eps):
    """x(R,D), weight(D), bias(D)? -> y(R,D), mean(R), rstd(R); the variance is the biased one."""
    rstd = torch.rsqrt(x.var(-1, unbiased=False) + eps)
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps), x.mean(-1), rstd


def causal_conv1d(x, weight, bias, state, silu):
    """x(B,T,E), weight(E,K), bias(E)?, state(B,K-1,E)? oldest first -> y(B,T,E), state_out(B,K-1,E)."""
    E, K = weight.shape
    past = x.new_zeros(x.shape[0], K - 1, E) if state is None else state
    seen = torch.cat([past, x], dim=1)
    y = F.conv1d(seen.transpose(1, 2), weight[:, None, :], bias, groups=E).transpose(1, 2)
    return (F.silu(y) if silu else y), seen[:, seen.shape[1] - (K - 1) :]


def selective_scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, state=None, apply_softplus=False):
    """Algorithm 2 of Gu & Dao (2023), one step at a time.

    u, delta, z (B,T,E); A (E,N); B, C (B,T,N); D, delta_bias (E); state (B,E,N).
    Returns y (B,T,E) and the T + 1 states: the initial one, then the one after each step.
    """
    batch, T, E = u.shape
    h = u.new_zeros(batch, E, A.shape[1]) if state is None else state
    dt = delta if delta_bias is None else delta + delta_bias
    dt = softplus(dt) if apply_softplus else dt
    states, ys = [h], []
    for t in range(T):
        h = torch.exp(dt[:, t, :, None] * A) * h + dt[:, t, :, None] * B[:, t, None, :] * u[:, t, :, None]
        y = (h * C[:, t, None, :]).sum(-1)
        y = y if D is None else y + D * u[:, t]
        ys.append(y if z is None else y * F.silu(z[:, t]))
        states.append(h)
    return torch.stack(ys, dim=1), states


def mamba_block(x, p, eps, conv_state=None, ssm_state=None):
    """x(B,T,D) and the block's tensors under the operand names of `mamba_block` -> y, conv_state_out, ssm_state_out."""
    if p.get('norm_bias') is None:
        normed, _ = rms_norm(x, p['norm_weight'], eps)
    else:
        normed, _, _ = layer_norm(x, p['norm_weight'], p['norm_bias'], eps)
    u, z = (normed @ p['in_proj'].T).chunk(2, dim=-1)
    u, conv_state_out = causal_conv1d(u, p['conv_weight'], p['conv_bias'], conv_state, silu=True)
    rank, N = p['dt_proj'].shape[1], p['A'].shape[1]
    low, B, C = torch.split(u @ p['x_proj'].T, [rank, N, N], dim=-1)
    y, states = selective_scan(
        u, low @ p['dt_proj'].T, p['A'], B, C, p['D'], z, p['dt_bias'], ssm_state, apply_softplus=True
    )
    return x + y @ p['out_proj'].T, conv_state_out, states[-1]
