"""Cases of single ops: float32 inputs, float64 outputs and gradients of sum(y * dy) (+ sum(state_out * dstate_out))."""

import math
import zlib

import torch
import torch.nn.functional as F

import mamba
import reference


class Cases:
    """Collects tensors as `<case>/<operand>` and one manifest entry for each op run on a case."""

    def __init__(self, seed):
        self.seed, self.tensors, self.entries = seed, {}, []

    def random(self, case):
        """A generator of its own for each case, so that a new case leaves the others as they are."""
        return torch.Generator().manual_seed(self.seed + zlib.crc32(case.encode()))

    def add(self, op, case, attrs, inputs, outputs, before=None):
        """before: what an output that is updated in place, or added to, holds before the op runs."""
        before = before or {}
        for name, value in [*inputs.items(), *outputs.items(), *((f'{k}.before', v) for k, v in before.items())]:
            key = f'{case}/{name}'
            known = self.tensors.setdefault(key, value.detach().clone(memory_format=torch.contiguous_format))
            assert torch.equal(known, value), f'{key} has two values'
        entry = {'op': op, 'case': case, 'attrs': attrs, 'inputs': list(inputs), 'outputs': list(outputs)}
        self.entries.append(entry | ({'before': list(before)} if before else {}))


def leaf(value):
    return None if value is None else value.double().requires_grad_()


def present(**operands):
    return {name: value for name, value in operands.items() if value is not None}


def normal(gen, *shape, scale=1.0):
    return torch.randn(*shape, generator=gen) * scale


def added(gen, gradients):
    """Random contents for outputs that are accumulated into, and the sums."""
    before = {name: normal(gen, *value.shape) for name, value in gradients.items()}
    return before, {name: value + before[name].double() for name, value in gradients.items()}


def embedding(cases):
    for case, R, V, D, ids_dtype, accumulate in [
        ('embedding', 7, 11, 5, torch.int32, 0),
        ('embedding_bytes_accumulate', 33, 256, 3, torch.uint8, 1),
    ]:
        gen = cases.random(case)
        table, dy = normal(gen, V, D), normal(gen, R, D)
        ids = torch.randint(0, V, (R,), generator=gen)
        ids[1] = ids[0]
        ids[2] = V - 1
        wide = leaf(table)
        y = F.embedding(ids, wide)
        (dtable,) = torch.autograd.grad((y * dy.double()).sum(), [wide])
        before, outputs = added(gen, {'dtable': dtable}) if accumulate else ({}, {'dtable': dtable})
        ids = ids.to(ids_dtype)
        cases.add('embedding', case, {}, {'table': table, 'ids': ids}, {'y': y})
        cases.add('embedding_grad', case, {'accumulate': accumulate}, {'dy': dy, 'ids': ids}, outputs, before)


def linear(cases):
    for case, R, K, M, bias, add, accumulate in [
        ('linear', 5, 7, 3, False, False, 0),
        ('linear_bias_add', 3, 33, 17, True, True, 0),
        ('linear_row', 1, 40, 33, False, True, 0),
        ('linear_accumulate', 65, 16, 9, True, False, 1),
    ]:
        gen = cases.random(case)
        x, weight, dy = normal(gen, R, K), normal(gen, M, K), normal(gen, R, M)
        bias, add = normal(gen, M) if bias else None, normal(gen, R, M) if add else None
        wx, ww, wb, wa = map(leaf, (x, weight, bias, add))
        y = F.linear(wx, ww, wb)
        y = y if wa is None else y + wa
        dx, dweight = torch.autograd.grad((y * dy.double()).sum(), [wx, ww])
        before, outputs = added(gen, {'dweight': dweight}) if accumulate else ({}, {'dweight': dweight})
        cases.add('linear', case, {}, present(x=x, weight=weight, bias=bias, add=add), {'y': y})
        cases.add('linear_grad_input', case, {}, {'dy': dy, 'weight': weight}, {'dx': dx})
        cases.add('linear_grad_weight', case, {'accumulate': accumulate}, {'dy': dy, 'x': x}, outputs, before)
    for case, R, K, M in [('linear_bf16', 3, 37, 19), ('linear_i8', 3, 70, 21), ('linear_i8_row', 1, 128, 5)]:
        gen = cases.random(case)
        x, bias = normal(gen, R, K), normal(gen, M)
        if case == 'linear_bf16':
            stored = {'weight': normal(gen, M, K).bfloat16()}
            wide = stored['weight'].double()
        else:
            stored = {
                'weight': torch.randint(-127, 128, (M, K), generator=gen).to(torch.int8),
                'scale': torch.rand(M, generator=gen) * 0.01 + 0.001,
            }
            wide = stored['weight'].double() * stored['scale'].double()[:, None]
        y = F.linear(x.double(), wide, bias.double())
        cases.add('linear', case, {}, {'x': x, 'bias': bias} | stored, {'y': y})
    for case, accumulate in [('column_sum', 0), ('column_sum_accumulate', 1)]:
        gen = cases.random(case)
        x = normal(gen, 67, 13)
        sums = {'y': x.double().sum(0)}
        before, outputs = added(gen, sums) if accumulate else ({}, sums)
        cases.add('column_sum', case, {'accumulate': accumulate}, {'x': x}, outputs, before)


def norms(cases):
    eps = 1e-5
    for case, R, D, accumulate in [
        ('rms_norm', 5, 7, 0),
        ('rms_norm_accumulate', 3, 65, 1),
        ('rms_norm_row', 1, 32, 0),
    ]:
        gen = cases.random(case)
        x, weight, dy = normal(gen, R, D), 1 + normal(gen, D, scale=0.3), normal(gen, R, D)
        wx, ww = leaf(x), leaf(weight)
        y, rstd = reference.rms_norm(wx, ww, eps)
        torch.testing.assert_close(y, F.rms_norm(wx, (D,), ww, eps), rtol=1e-12, atol=1e-12)
        dx, dweight = torch.autograd.grad((y * dy.double()).sum(), [wx, ww])
        before, sums = added(gen, {'dweight': dweight}) if accumulate else ({}, {'dweight': dweight})
        cases.add('rms_norm', case, {'eps': eps}, {'x': x, 'weight': weight}, {'y': y, 'rstd': rstd})
        inputs = {'dy': dy, 'x': x, 'weight': weight, 'rstd': rstd}
        cases.add('rms_norm_grad', case, {'accumulate': accumulate}, inputs, {'dx': dx} | sums, before)
    for case, R, D, bias, accumulate in [
        ('layer_norm', 5, 7, True, 0),
        ('layer_norm_no_bias', 3, 16, False, 0),
        ('layer_norm_accumulate', 4, 65, True, 1),
    ]:
        gen = cases.random(case)
        x, weight, dy = normal(gen, R, D) + 0.5, 1 + normal(gen, D, scale=0.3), normal(gen, R, D)
        bias = normal(gen, D) if bias else None
        wx, ww, wb = leaf(x), leaf(weight), leaf(bias)
        y, mean, rstd = reference.layer_norm(wx, ww, wb, eps)
        names = ['dx', 'dweight'] + (['dbias'] if wb is not None else [])
        wrt = [wx, ww] + ([wb] if wb is not None else [])
        grads = dict(zip(names, torch.autograd.grad((y * dy.double()).sum(), wrt)))
        dx = {'dx': grads.pop('dx')}
        before, sums = added(gen, grads) if accumulate else ({}, grads)
        inputs = present(x=x, weight=weight, bias=bias)
        cases.add('layer_norm', case, {'eps': eps}, inputs, {'y': y, 'mean': mean, 'rstd': rstd})
        inputs = {'dy': dy, 'x': x, 'weight': weight, 'mean': mean, 'rstd': rstd}
        cases.add('layer_norm_grad', case, {'accumulate': accumulate}, inputs, dx | sums, before)


def elementwise(cases):
    gen = cases.random('elementwise')
    a, b = normal(gen, 5, 7), normal(gen, 5, 7)
    cases.add('add', 'add', {}, {'a': a, 'b': b}, {'y': a.double() + b.double()})
    cases.add('mul', 'mul', {}, {'a': a, 'b': b}, {'y': a.double() * b.double()})
    cases.add('scale', 'scale', {'factor': 0.25}, {'x': a}, {'y': a.double() * 0.25})
    cases.add('neg_exp', 'neg_exp', {}, {'x': a}, {'y': -torch.exp(a.double())})
    cases.add('concat', 'concat', {}, {'parts_0': a, 'parts_1': b[:, :2]}, {'y': torch.hstack([a, b[:, :2]]).double()})
    ties, overflow, subnormal = [1 + 2**-8, 1 + 3 * 2**-8], 3.4e38, 1e-40
    wide = torch.cat([a.flatten(), torch.tensor([*ties, overflow, subnormal])])
    cases.add('copy', 'copy_bf16', {}, {'x': wide}, {'y': wide.bfloat16()})
    cases.add('copy', 'copy_from_bf16', {}, {'x': wide[:-2].bfloat16()}, {'y': wide[:-2].bfloat16().double()})
    edges = torch.tensor([-90.0, -30, -20.5, -19.5, -1e-4, 0, 1e-4, 19.5, 20.5, 30, 80])
    x = torch.cat([edges, normal(gen, 66, scale=4)]).reshape(7, 11)
    dy = normal(gen, 7, 11)
    for op, f in [('silu', F.silu), ('softplus', reference.softplus)]:
        wide = leaf(x)
        y = f(wide)
        (dx,) = torch.autograd.grad((y * dy.double()).sum(), [wide])
        cases.add(op, op, {}, {'x': x}, {'y': y})
        cases.add(f'{op}_grad', op, {}, {'dy': dy, 'x': x}, {'dx': dx})


def causal_conv1d(cases):
    # name, B, T, E, K, bias, state, silu, accumulate
    for case, B, T, E, K, bias, state, silu, accumulate in [
        ('conv', 2, 7, 5, 4, True, False, 1, 0),
        ('conv_state', 2, 7, 5, 4, True, True, 1, 0),
        ('conv_state_accumulate', 2, 9, 17, 4, True, True, 1, 1),
        ('conv_plain', 1, 6, 3, 4, False, False, 0, 0),
        ('conv_plain_state_k3', 2, 5, 3, 3, False, True, 0, 0),
        ('conv_step', 2, 1, 5, 4, True, True, 1, 0),
        ('conv_short', 2, 2, 5, 4, True, True, 1, 0),
        ('conv_short_no_state', 2, 2, 5, 4, True, False, 1, 0),
        ('conv_long', 1, 65, 16, 4, True, True, 1, 0),
    ]:
        gen = cases.random(case)
        x, weight, dy = normal(gen, B, T, E), normal(gen, E, K, scale=0.5), normal(gen, B, T, E)
        bias, state = normal(gen, E) if bias else None, normal(gen, B, K - 1, E) if state else None
        dstate_out = normal(gen, B, K - 1, E) if state is not None else None
        wx, ww, wb, ws = map(leaf, (x, weight, bias, state))
        y, state_out = reference.causal_conv1d(wx, ww, wb, ws, silu)
        objective = (y * dy.double()).sum()
        if dstate_out is not None:
            objective = objective + (state_out * dstate_out.double()).sum()
        wrt = present(dx=wx, dweight=ww, dbias=wb, dstate=ws)
        grads = dict(zip(wrt, torch.autograd.grad(objective, list(wrt.values()))))
        before, sums = {}, {}
        if accumulate:
            before, sums = added(gen, {k: grads[k] for k in ('dweight', 'dbias') if k in grads})
        operands = present(x=x, weight=weight, bias=bias, state=state)
        cases.add('causal_conv1d', case, {'silu': silu}, operands, {'y': y, 'state_out': state_out})
        inputs = {'dy': dy} | operands | present(dstate_out=dstate_out)
        attrs = {'silu': silu, 'accumulate': accumulate}
        cases.add('causal_conv1d_grad', case, attrs, inputs, grads | sums, before)


SCAN_CASES = [
    # name, B, T, E, N, optional operands, softplus, chunk, accumulate
    ('scan_bare', 2, 7, 5, 3, '', 0, 4, 0),
    ('scan_skip', 2, 7, 5, 3, 'D', 0, 3, 0),
    ('scan_gate', 2, 7, 5, 3, 'z', 0, 7, 0),
    ('scan_softplus', 2, 7, 5, 3, 'delta_bias', 1, 8, 0),
    ('scan_state', 2, 7, 5, 3, 'state dstate_out', 0, 2, 0),
    ('scan_state_no_gradient', 2, 5, 5, 3, 'D z delta_bias state', 1, 4, 0),
    ('scan_end_gradient', 1, 6, 3, 4, 'dstate_out', 1, 4, 0),
    ('scan_full', 2, 7, 5, 3, 'D z delta_bias state dstate_out', 1, 4, 0),
    ('scan_full_accumulate', 2, 9, 17, 16, 'D z delta_bias state dstate_out', 1, 4, 1),
    ('scan_step', 3, 1, 5, 16, 'D z delta_bias state dstate_out', 1, 4, 0),
    ('scan_long', 1, 65, 8, 8, 'D z delta_bias', 1, 16, 0),
    ('scan_long_state', 1, 65, 16, 16, 'D z delta_bias state dstate_out', 1, 64, 0),
]


def selective_scan(cases):
    for case, B, T, E, N, options, softplus, chunk, accumulate in SCAN_CASES:
        gen = cases.random(case)
        options = options.split()
        u, dy = normal(gen, B, T, E), normal(gen, B, T, E)
        # Without softplus the step has to be positive already; with it, the bias brings it to the official range.
        delta = normal(gen, B, T, E, scale=0.5) if softplus else torch.rand(B, T, E, generator=gen) * 0.5 + 0.01
        A = -torch.exp(torch.log(torch.arange(1, N + 1).float()).repeat(E, 1) + normal(gen, E, N, scale=0.2))
        Bm, C = normal(gen, B, T, N), normal(gen, B, T, N)
        D = normal(gen, E) if 'D' in options else None
        z = normal(gen, B, T, E) if 'z' in options else None
        dt = torch.exp(torch.rand(E, generator=gen) * math.log(100) + math.log(1e-2))
        delta_bias = torch.log(torch.expm1(dt)) if 'delta_bias' in options else None
        state = normal(gen, B, E, N) if 'state' in options else None
        dstate_out = normal(gen, B, E, N) if 'dstate_out' in options else None

        operands = present(u=u, delta=delta, A=A, B=Bm, C=C, D=D, z=z, delta_bias=delta_bias, state=state)
        wide = {name: leaf(value) for name, value in operands.items()}
        y, states = reference.selective_scan(**wide, apply_softplus=bool(softplus))
        objective = (y * dy.double()).sum()
        if dstate_out is not None:
            objective = objective + (states[-1] * dstate_out.double()).sum()
        grads = dict(zip([f'd{name}' for name in wide], torch.autograd.grad(objective, list(wide.values()))))

        chunks = torch.stack([states[t].flatten(1) for t in range(0, T, chunk)], dim=1)
        kept = torch.stack([h.flatten(1) for h in states[1:]])
        attrs = {'softplus': softplus, 'chunk': chunk}
        outputs = {'y': y, 'state_out': states[-1], 'chunks': chunks}
        # The kept states are large: they are stored for the small cases alone.
        cases.add('selective_scan', case, attrs, operands, outputs | ({'kept': kept} if E * N < 100 else {}))
        before, sums = {}, {}
        if accumulate:
            before, sums = added(gen, {k: grads[k] for k in ('dA', 'dD', 'ddelta_bias') if k in grads})
        saved = {name: value for name, value in operands.items() if name != 'state'}
        inputs = {'dy': dy} | saved | {'chunks': chunks} | present(dstate_out=dstate_out)
        cases.add('selective_scan_grad', case, attrs | {'accumulate': accumulate}, inputs, grads | sums, before)


def mamba_block(cases):
    for case, B, T, layer_norm in [('block_step', 1, 1, True), ('block_rms', 2, 1, False), ('block_bytes', 2, 5, True)]:
        gen = cases.random(case)
        config = mamba.Config(vocab=2, d_model=16, n_layer=1, d_state=8, layer_norm=layer_norm)
        p = present(**mamba.block_operands(mamba.init(config, gen), 0))
        E, N, K = config.d_inner, config.d_state, config.d_conv
        x = normal(gen, B, T, config.d_model)
        states = {'conv_state': normal(gen, B, K - 1, E), 'ssm_state': normal(gen, B, E, N)}
        wide = mamba.cast(p | states, torch.float64)
        conv, ssm = wide.pop('conv_state'), wide.pop('ssm_state')
        kept_conv, kept_ssm, ys = [], [], []
        for t in range(T):
            y, conv, ssm = reference.mamba_block(x[:, t : t + 1].double(), wide, config.eps, conv, ssm)
            ys.append(y)
            kept_conv.append(conv.flatten(1))
            kept_ssm.append(ssm.flatten(1))
        outputs = {'y': torch.cat(ys, dim=1), 'conv_state_out': conv, 'ssm_state_out': ssm}
        outputs |= {'kept_conv': torch.stack(kept_conv), 'kept_ssm': torch.stack(kept_ssm)}
        cases.add('mamba_block', case, {'eps': config.eps}, {'x': x} | p | states, outputs)


def cross_entropy(cases):
    for case, R, V, ignore, dtype in [
        ('cross_entropy', 7, 11, -1, torch.int32),
        ('cross_entropy_ignore', 9, 13, 0, torch.int32),
        ('cross_entropy_bytes', 5, 256, 0, torch.uint8),
    ]:
        gen = cases.random(case)
        logits, dloss = normal(gen, R, V, scale=3), torch.tensor([1.5])
        logits[0] += 200  # exp would overflow without the maximum taken out
        targets = torch.randint(1, V, (R,), generator=gen)
        if ignore == 0:
            targets[::3] = 0
        wide = leaf(logits)
        loss = F.cross_entropy(wide, targets, ignore_index=ignore)
        nll = F.cross_entropy(wide, targets, ignore_index=ignore, reduction='none')
        (dlogits,) = torch.autograd.grad(loss * dloss.double()[0], [wide])
        lse, targets = torch.logsumexp(wide, -1), targets.to(dtype)
        attrs, inputs = {'ignore': ignore}, {'logits': logits, 'targets': targets}
        cases.add('cross_entropy', case, attrs, inputs, {'loss': loss[None], 'nll': nll, 'lse': lse})
        cases.add('cross_entropy_grad', case, attrs, {'dloss': dloss, 'lse': lse} | inputs, {'dlogits': dlogits})


def adamw(cases):
    """Steps of torch.optim.AdamW after clip_grad_norm_; with `micro` batches the raw gradient is their sum."""
    beta1, beta2, eps, decay = 0.9, 0.95, 1e-8, 0.1
    for run, clip, micro in [('adamw_clip', 1.0, 1), ('adamw_free', 0.0, 1), ('adamw_micro', 0.5, 4)]:
        gen = cases.random(run)
        params = [torch.nn.Parameter(normal(gen, 5, 7).double()), torch.nn.Parameter(normal(gen, 11).double())]
        groups = [{'params': [params[0]], 'weight_decay': decay}, {'params': [params[1]], 'weight_decay': 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(beta1, beta2), eps=eps)
        for step, lr in enumerate([1e-2, 3e-3, 1e-3], start=1):
            # The second step's gradient is small enough to stay under every clip.
            grads = [normal(gen, *p.shape, scale=0.01 if step == 2 else micro) for p in params]
            for p, g in zip(params, grads):
                p.grad = g.double() / micro
            norm = torch.nn.utils.clip_grad_norm_(params, clip if clip > 0 else math.inf)[None]
            before = []
            for p in params:
                moments = optimizer.state.get(p)
                zero = torch.zeros_like(p)
                m, v = (moments['exp_avg'], moments['exp_avg_sq']) if moments else (zero, zero)
                before.append({'param': p.detach().clone(), 'm': m.clone(), 'v': v.clone()})
            for group in optimizer.param_groups:
                group['lr'] = lr
            optimizer.step()
            case = f'{run}_step{step}'
            inputs = {f'grads_{i}': g for i, g in enumerate(grads)}
            cases.add('global_norm', case, {'scale': 1 / micro}, inputs, {'norm': norm})
            for i, p in enumerate(params):
                attrs = {'beta1': beta1, 'beta2': beta2, 'eps': eps}
                attrs |= {'weight_decay': decay if i == 0 else 0.0, 'clip': clip, 'scale': 1 / micro}
                inputs = {'grad': grads[i], 'scalars': torch.tensor([lr, step], dtype=torch.float64), 'norm': norm}
                moments = optimizer.state[p]
                outputs = {
                    'param': p.detach().clone(),
                    'm': moments['exp_avg'].clone(),
                    'v': moments['exp_avg_sq'].clone(),
                }
                cases.add('adamw', f'{case}_p{i}', attrs, inputs, outputs, before[i])


def make(seed):
    cases = Cases(seed)
    for group in (
        embedding,
        linear,
        norms,
        elementwise,
        causal_conv1d,
        selective_scan,
        mamba_block,
        cross_entropy,
        adamw,
    ):
        group(cases)
    return cases
