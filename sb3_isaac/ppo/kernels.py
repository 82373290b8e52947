# mypy: ignore-errors
"""Triton kernels of PPO's update: a minibatch's gradients in one, clipping, KL-adaptive learning rate and Adam in another.

Imported by :mod:`sb3_isaac.ppo.fused` only, where there is Triton. The formulas are those of :mod:`sb3_isaac.ppo.loss` and
``device/flat_adam.py``, which tests compare them with. Activations stay on the chip: global memory
sees the rows of the minibatch, the parameters and, of each block of rows, its part of the gradients.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sb3_isaac.device.mlp_kernels import bias_of, dot, hidden, transposed_weight, write_hidden, write_layer


@triton.jit
def _clamp(x, low, high):
    """Between two numbers; not a number stays one, as in torch."""
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minibatch_gradients(
    table,  # packed rows, see loss.Batch
    columns,
    order,  # (n_rows,) int64, rows of the table
    n_rows,
    moments,  # (2,): what is subtracted from an advantage, and what the difference is multiplied by
    params,  # all parameters, flat, in the optimizer's order; log_std, actor_w1, ... are where each begins
    old_log_std,  # (action_dim,) of a Gaussian
    clips,  # (2,): clip_range, clip_range_vf
    parts,  # (blocks, stride): gradients as ``params``, and N_SUMS statistics
    stride,
    n_params,
    ent_coef,
    vf_coef,
    log_std,
    actor_w1,
    actor_b1,
    actor_w2,
    actor_b2,
    actor_w3,
    actor_b3,
    critic_w1,
    critic_b1,
    critic_w2,
    critic_b2,
    critic_w3,
    critic_b3,
    OBS: tl.constexpr,
    OUT: tl.constexpr,  # action_dim, or n_actions
    ACTOR_H1: tl.constexpr,
    ACTOR_H2: tl.constexpr,  # 0: one hidden layer
    CRITIC_H1: tl.constexpr,
    CRITIC_H2: tl.constexpr,
    KIND: tl.constexpr,  # of activation
    DISCRETE: tl.constexpr,
    OLD: tl.constexpr,  # the rows have the old distribution
    CLIP_VF: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,  # of a block; this and the next are powers of 2 from 16
    BI: tl.constexpr,
    BO: tl.constexpr,
    BA1: tl.constexpr,
    BA2: tl.constexpr,
    BC1: tl.constexpr,
    BC2: tl.constexpr,
):
    """The gradients of PPO's loss on ``ROWS`` rows of a minibatch, and their statistics."""
    block = tl.program_id(0)
    r = block * ROWS + tl.arange(0, ROWS)
    valid = r < n_rows
    row = table + tl.load(order + r, mask=valid, other=0) * columns
    i, o = tl.arange(0, BI), tl.arange(0, BO)
    obs = tl.load(row[:, None] + i[None, :], mask=valid[:, None] & (i[None, :] < OBS), other=0.0)
    ACTION: tl.constexpr = 1 if DISCRETE else OUT
    first = row + OBS + ACTION
    old_value = tl.load(first, mask=valid, other=0.0)
    old_log_prob = tl.load(first + 1, mask=valid, other=0.0)
    advantage = tl.load(first + 2, mask=valid, other=0.0)
    returns = tl.load(first + 3, mask=valid, other=0.0)
    advantage = tl.where(valid, (advantage - tl.load(moments)) * tl.load(moments + 1), 0.0)
    part = parts + block.to(tl.int64) * stride
    one = tl.where(valid, 1.0, 0.0)

    # the critic
    h1, h2 = hidden(
        obs, params, critic_w1, critic_b1, critic_w2, critic_b2, OBS, CRITIC_H1, CRITIC_H2, BI, BC1, BC2, KIND, PRECISION
    )
    LAST_C: tl.constexpr = CRITIC_H1 if CRITIC_H2 == 0 else CRITIC_H2
    BLAST_C: tl.constexpr = BC1 if CRITIC_H2 == 0 else BC2
    c = tl.arange(0, BLAST_C)
    w3 = tl.load(params + critic_w3 + c, mask=c < LAST_C, other=0.0)
    value = tl.sum(h2 * w3[None, :], 1) + tl.load(params + critic_b3)
    if CLIP_VF:
        clip_vf = tl.load(clips + 1)
        change = value - old_value
        error = old_value + _clamp(change, -clip_vf, clip_vf) - returns
        grad = tl.where(tl.abs(change) <= clip_vf, error, 0.0)
    else:
        error = value - returns
        grad = error
    squared_error = tl.where(valid, error * error, 0.0)
    grad = tl.where(valid, grad * (2.0 * vf_coef / n_rows), 0.0)
    tl.store(part + critic_w3 + c, tl.sum(grad[:, None] * h2, 0), mask=c < LAST_C)
    tl.store(part + critic_b3, tl.sum(grad, 0))
    write_hidden(
        grad[:, None] * w3[None, :], obs, h1, h2, params, part, critic_w1, critic_b1, critic_w2, critic_b2,
        OBS, CRITIC_H1, CRITIC_H2, BI, BC1, BC2, KIND, PRECISION,
    )  # fmt: skip

    # The actor. What the rollout had from it is float32: with less, a policy that has not moved would seem to have
    h1, h2 = hidden(obs, params, actor_w1, actor_b1, actor_w2, actor_b2, OBS, ACTOR_H1, ACTOR_H2, BI, BA1, BA2, KIND, "fp32")
    LAST_A: tl.constexpr = ACTOR_H1 if ACTOR_H2 == 0 else ACTOR_H2
    BLAST_A: tl.constexpr = BA1 if ACTOR_H2 == 0 else BA2
    weight = transposed_weight(params, actor_w3, LAST_A, OUT, BLAST_A, BO)
    out = dot(h2, weight, "fp32") + bias_of(params, actor_b3, OUT, BO)[None, :]
    used = valid[:, None] & (o[None, :] < OUT)
    clip = tl.load(clips)
    if DISCRETE:
        logits = tl.where(o[None, :] < OUT, out, -float("inf"))
        shifted = logits - tl.max(logits, 1)[:, None]
        log_p = shifted - tl.log(tl.sum(tl.exp(shifted), 1))[:, None]
        p = tl.exp(log_p)
        log_p = tl.where(o[None, :] < OUT, log_p, 0.0)
        action = tl.load(row + OBS, mask=valid, other=0.0).to(tl.int32)
        chosen = tl.where(o[None, :] == action[:, None], 1.0, 0.0)
        log_ratio = tl.sum(chosen * log_p, 1) - old_log_prob
        entropy = -tl.sum(p * log_p, 1)
    else:
        log_std_ = tl.load(params + log_std + o, mask=o < OUT, other=0.0)
        inv_std = tl.exp(-log_std_)
        total = tl.sum(log_std_, 0)
        action = tl.load(row[:, None] + OBS + o[None, :], mask=used, other=0.0)
        z = tl.where(used, (action - out) * inv_std[None, :], 0.0)
        half_log_2pi = 0.9189385332046727  # loss.HALF_LOG_2PI
        log_ratio = -0.5 * tl.sum(z * z, 1) - (old_log_prob + (total + OUT * half_log_2pi))
        entropy = one * (total + OUT * (0.5 + half_log_2pi))
    log_ratio = tl.where(valid, log_ratio, 0.0)
    ratio = tl.exp(log_ratio)
    clipped_ratio = _clamp(ratio, 1.0 - clip, 1.0 + clip)
    loss, clipped_loss = advantage * ratio, advantage * clipped_ratio
    grad = loss * tl.where(loss >= clipped_loss, 1.0, 0.0)  # and not 0 where it is infinite, which is an error to be seen
    approx_kl = ratio - 1.0 - log_ratio
    kl = approx_kl
    if DISCRETE:
        grad_out = (chosen - p) * grad[:, None] + p * (log_p + entropy[:, None]) * (ent_coef / n_rows)
        if OLD:
            old_log_p = tl.load(first[:, None] + 4 + o[None, :], mask=used, other=0.0)
            kl = tl.sum(tl.where(used, tl.exp(old_log_p) * (old_log_p - log_p), 0.0), 1)
    else:
        grad_out = grad[:, None] * z * inv_std[None, :]
        grad_log_std = tl.sum(grad[:, None] * (z * z - 1.0), 0) - tl.where(block == 0, ent_coef, 0.0)
        tl.store(part + log_std + o, grad_log_std, mask=o < OUT)
        if OLD:
            old_mean = tl.load(first[:, None] + 4 + o[None, :], mask=used, other=0.0)
            moved = tl.where(used, (old_mean - out) * inv_std[None, :], 0.0)
            old = tl.load(old_log_std + o, mask=o < OUT, other=0.0)
            wider = tl.where(o < OUT, log_std_ - old + 0.5 * tl.exp(2.0 * (old - log_std_)) - 0.5, 0.0)
            kl = 0.5 * tl.sum(moved * moved, 1) + tl.sum(wider, 0)
    grad_out = tl.where(used, grad_out, 0.0)
    write_layer(grad_out, h2, part, actor_w3, actor_b3, LAST_A, OUT, BLAST_A, BO, PRECISION)
    write_hidden(
        dot(grad_out, tl.trans(weight), PRECISION), obs, h1, h2, params, part, actor_w1, actor_b1, actor_w2, actor_b2,
        OBS, ACTOR_H1, ACTOR_H2, BI, BA1, BA2, KIND, PRECISION,
    )  # fmt: skip

    # loss.POLICY_LOSS, SQUARED_ERROR, APPROX_KL, CLIPPED, ENTROPY, KL
    sums = part + n_params
    tl.store(sums, tl.sum(tl.maximum(loss, clipped_loss, propagate_nan=tl.PropagateNan.ALL), 0))
    tl.store(sums + 1, tl.sum(squared_error, 0))
    tl.store(sums + 2, tl.sum(approx_kl, 0))
    tl.store(sums + 3, tl.sum(tl.where(ratio != clipped_ratio, one, 0.0), 0))
    tl.store(sums + 4, tl.sum(entropy * one, 0))
    tl.store(sums + 5, tl.sum(kl * one, 0))


@triton.jit
def _one_minus_exp(x):
    """1 - exp(x) for x below 0, without cancellation where x is small."""
    series = -x * (1.0 + x * (0.5 + x * (1.0 / 6.0 + x * (1.0 / 24.0 + x / 120.0))))
    return tl.where(x > -0.1, series, 1.0 - tl.exp(x))


@triton.jit
def clip_and_step(
    params,
    grad,  # (n_params + N_SUMS,): the minibatch's gradients and statistics
    clipped,  # (n_params,): where the gradients go in the end
    exp_avg,
    exp_avg_sq,
    n_params,
    n_rows,
    steps,  # () float32: how many this optimizer has made
    lr,  # () float32
    going,  # () float32: 1, and 0 from the minibatch on that target_kl stopped at
    log,  # (8,): the statistics, and ``going`` after them
    max_norm,
    beta2,
    new1,  # 1 - beta1 and 1 - beta2, and the betas' logarithms: float32 is too coarse to compute them here
    new2,
    log_beta1,
    log_beta2,
    eps,
    target_kl,
    kl_target,
    factor,
    lowest,
    highest,
    CLIPS: tl.constexpr,
    STOPS: tl.constexpr,
    ADAPTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What follows the gradients: ``target_kl``, :class:`~sb3_isaac.ppo.update.AdaptiveLR`, clipping, and a step of Adam.

    One program does all of it: a network of this size is a few thousand numbers.
    """
    k = tl.arange(0, BLOCK)
    sums = grad + n_params
    j = tl.arange(0, 8)
    statistics = tl.load(sums + j, mask=j < 6, other=0.0)
    on, rate, step = tl.load(going), tl.load(lr), tl.load(steps)
    tl.debug_barrier()  # the threads that change these wait for those that have yet to read them
    if STOPS:
        on = tl.where(tl.load(sums + 2) / n_rows > 1.5 * target_kl, 0.0, on)
        tl.store(going, on)
    tl.store(log + j, tl.where(j == 6, on, statistics))
    if ADAPTS:
        kl = tl.load(sums + 5) / n_rows
        slower, faster = tl.maximum(rate / factor, lowest), tl.minimum(rate * factor, highest)
        too_small = (kl < 0.5 * kl_target) & (kl > 1e-6)
        rate = tl.where(on < 0.5, rate, tl.where(kl > 2.0 * kl_target, slower, tl.where(too_small, faster, rate)))
        tl.store(lr, rate)
    scale = 1.0
    if CLIPS:
        squares = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, n_params, BLOCK):
            g = tl.load(grad + start + k, mask=start + k < n_params, other=0.0)
            squares += g * g
        scale = tl.minimum(max_norm / (tl.sqrt(tl.sum(squares, 0)) + 1e-6), 1.0, propagate_nan=tl.PropagateNan.ALL)
    step += on
    tl.store(steps, step)
    step = tl.maximum(step, 1.0)  # stopped before the first one
    step_size = rate / _one_minus_exp(step * log_beta1)
    root = tl.sqrt(_one_minus_exp(step * log_beta2))
    n_changed = tl.where(on > 0.5, n_params, 0)
    for start in range(0, n_params, BLOCK):
        inside = start + k < n_changed
        g = tl.load(grad + start + k, mask=inside, other=0.0) * scale
        tl.store(clipped + start + k, g, mask=inside)
        average = tl.load(exp_avg + start + k, mask=inside, other=0.0)
        square = tl.load(exp_avg_sq + start + k, mask=inside, other=0.0)
        average += (g - average) * new1
        square = square * beta2 + g * g * new2
        p = tl.load(params + start + k, mask=inside, other=0.0)
        p -= average / (tl.sqrt(square) / root + eps) * step_size
        tl.store(exp_avg + start + k, average, mask=inside)
        tl.store(exp_avg_sq + start + k, square, mask=inside)
        tl.store(params + start + k, p, mask=inside)
