# mypy: ignore-errors
"""Triton kernels of PPO. Rollout: acting, and storing what the environments made of it. Update: a minibatch's gradients in
one, clipping, KL-adaptive learning rate and Adam in another.

Imported by :mod:`sb3_isaac.ppo.fused` and :mod:`sb3_isaac.ppo.fused_steps` only, where there is Triton. The formulas are those
of ``fast_policy.py``, ``loss.py`` and ``device/flat_adam.py``, which tests compare them with. Activations stay on the chip: of
an update global memory sees the rows of the minibatch, the parameters and, of each block of rows, its part of the gradients.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sb3_isaac.device.mlp_kernels import bias_of, clamped, dot, hidden, transposed_weight, write_hidden, write_layer

HALF_LOG_2PI = tl.constexpr(0.9189385332046727)  # loss.HALF_LOG_2PI


@triton.jit
def _values(
    obs,
    params,
    w1,
    b1,
    w2,
    b2,
    w3,
    b3,
    IN: tl.constexpr,
    H1: tl.constexpr,
    H2: tl.constexpr,
    BI: tl.constexpr,
    B1: tl.constexpr,
    B2: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The critic: outputs of its hidden layers, weight of the last one, and values (rows,)."""
    LAST: tl.constexpr = H1 if H2 == 0 else H2
    BLAST: tl.constexpr = B1 if H2 == 0 else B2
    h1, h2 = hidden(obs, params, w1, b1, w2, b2, IN, H1, H2, BI, B1, B2, KIND, PRECISION)
    c = tl.arange(0, BLAST)
    weight = tl.load(params + w3 + c, mask=c < LAST, other=0.0)
    return h1, h2, weight, tl.sum(h2 * weight[None, :], 1) + tl.load(params + b3)


@triton.jit
def _distribution(
    obs,
    params,
    w1,
    b1,
    w2,
    b2,
    w3,
    b3,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    H1: tl.constexpr,
    H2: tl.constexpr,
    BI: tl.constexpr,
    BO: tl.constexpr,
    B1: tl.constexpr,
    B2: tl.constexpr,
    KIND: tl.constexpr,
):
    """The actor: outputs of its hidden layers, transposed weight of the last one, and means or logits (rows, BO). All float32,
    in the rollout and in the update: with less, a policy that has not moved would seem to have."""
    LAST: tl.constexpr = H1 if H2 == 0 else H2
    BLAST: tl.constexpr = B1 if H2 == 0 else B2
    h1, h2 = hidden(obs, params, w1, b1, w2, b2, IN, H1, H2, BI, B1, B2, KIND, "fp32")
    weight = transposed_weight(params, w3, LAST, OUT, BLAST, BO)
    return h1, h2, weight, dot(h2, weight, "fp32") + bias_of(params, b3, OUT, BO)[None, :]


@triton.jit
def _log_softmax(logits, o, OUT: tl.constexpr):
    """Log-probabilities (rows, BO), 0 in the columns that do not exist, and probabilities."""
    logits = tl.where(o[None, :] < OUT, logits, -float("inf"))
    shifted = logits - tl.max(logits, 1)[:, None]
    log_p = shifted - tl.log(tl.sum(tl.exp(shifted), 1))[:, None]
    return tl.where(o[None, :] < OUT, log_p, 0.0), tl.exp(log_p)


@triton.jit
def act(
    obs,  # (n, OBS)
    noise,  # (n, OUT): standard normal, or exponential for DISCRETE
    params,  # all parameters, flat; log_std, actor_w1, ... are where each begins
    low,  # (OUT,) of the action space, likewise high
    high,
    step,  # (1,) int64: where in the rollout
    table,  # (n_steps * n, columns) packed rows, see loss.Batch: written but for advantages and returns
    columns,
    actions,  # (n, OUT), or (n,) int64: written, likewise the next three
    env_actions,  # (n, OUT): within the action space
    values,  # (n,)
    log_probs,  # (n,)
    n,
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
    OUT: tl.constexpr,
    ACTOR_H1: tl.constexpr,
    ACTOR_H2: tl.constexpr,
    CRITIC_H1: tl.constexpr,
    CRITIC_H2: tl.constexpr,
    KIND: tl.constexpr,
    DISCRETE: tl.constexpr,
    OLD: tl.constexpr,  # the rows have the distribution
    ROWS: tl.constexpr,
    BI: tl.constexpr,
    BO: tl.constexpr,
    BA1: tl.constexpr,
    BA2: tl.constexpr,
    BC1: tl.constexpr,
    BC2: tl.constexpr,
):
    """Both networks on ``ROWS`` environments, actions drawn, and what the update needs of it stored."""
    e = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = e < n
    i, o = tl.arange(0, BI), tl.arange(0, BO)
    seen = inside[:, None] & (i[None, :] < OBS)
    used = inside[:, None] & (o[None, :] < OUT)
    x = tl.load(obs + e[:, None].to(tl.int64) * OBS + i[None, :], mask=seen, other=0.0)
    _, _, _, value = _values(
        x, params, critic_w1, critic_b1, critic_w2, critic_b2, critic_w3, critic_b3,
        OBS, CRITIC_H1, CRITIC_H2, BI, BC1, BC2, KIND, "fp32",
    )  # fmt: skip
    _, _, _, out = _distribution(
        x, params, actor_w1, actor_b1, actor_w2, actor_b2, actor_w3, actor_b3,
        OBS, OUT, ACTOR_H1, ACTOR_H2, BI, BO, BA1, BA2, KIND,
    )  # fmt: skip
    at = e[:, None].to(tl.int64) * OUT + o[None, :]
    row = table + (tl.load(step) * n + e) * columns
    if DISCRETE:
        out, p = _log_softmax(out, o, OUT)
        drawn = tl.load(noise + at, mask=used, other=1.0)
        action = tl.argmax(tl.where(o[None, :] < OUT, p / drawn, -1.0), 1)
        action = tl.minimum(action, OUT - 1)  # of a row with NaN none is the largest
        log_prob = tl.sum(tl.where(o[None, :] == action[:, None], out, 0.0), 1)
        tl.store(actions + e, action.to(tl.int64), mask=inside)
        tl.store(row + OBS, action.to(tl.float32), mask=inside)
        first = row + OBS + 1
    else:
        log_std_ = tl.load(params + log_std + o, mask=o < OUT, other=0.0)
        z = tl.load(noise + at, mask=used, other=0.0)
        action = out + z * tl.exp(log_std_)[None, :]
        log_prob = -0.5 * tl.sum(z * z, 1) - (tl.sum(log_std_, 0) + OUT * HALF_LOG_2PI)
        tl.store(actions + at, action, mask=used)
        lowest = tl.load(low + o, mask=o < OUT, other=0.0)[None, :]
        highest = tl.load(high + o, mask=o < OUT, other=0.0)[None, :]
        tl.store(env_actions + at, clamped(action, lowest, highest), mask=used)
        tl.store(row[:, None] + OBS + o[None, :], action, mask=used)
        first = row + OBS + OUT
    tl.store(values + e, value, mask=inside)
    tl.store(log_probs + e, log_prob, mask=inside)
    tl.store(row[:, None] + i[None, :], x, mask=seen)
    tl.store(first, value, mask=inside)
    tl.store(first + 1, log_prob, mask=inside)
    if OLD:
        tl.store(first[:, None] + 4 + o[None, :], out, mask=used)


@triton.jit
def store_step(
    obs,  # (n, OBS), likewise final_obs
    final_obs,
    reward,  # (n,)
    truncated,  # (n,) bool
    dones,  # (n,) bool
    returns,  # (n,) of the episodes so far
    lengths,  # (n,) int64
    step,  # (1,) int64: where in the rollout
    next_obs,  # (n, OBS) written
    final_obs_log,  # (n_steps, n, OBS): one step written, likewise the others
    rewards,  # (n_steps, n)
    truncated_log,  # (n_steps, n), 1 or 0
    returns_log,  # (n_steps, n)
    lengths_log,  # (n_steps, n), 0 where no episode ended
    n,
    OBS: tl.constexpr,
    BI: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What the environments made of an action, for the end of the rollout."""
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = e < n
    at = tl.load(step) * n + e
    tl.store(rewards + at, tl.load(reward + e, mask=inside, other=0.0), mask=inside)
    timed_out = tl.load(truncated + e, mask=inside, other=0) != 0
    tl.store(truncated_log + at, tl.where(timed_out, 1.0, 0.0), mask=inside)
    tl.store(returns_log + at, tl.load(returns + e, mask=inside, other=0.0), mask=inside)
    ended = tl.load(dones + e, mask=inside, other=0) != 0
    length = tl.load(lengths + e, mask=inside, other=0).to(tl.float32)
    tl.store(lengths_log + at, tl.where(ended, length, 0.0), mask=inside)
    i = tl.arange(0, BI)
    used = inside[:, None] & (i[None, :] < OBS)
    entries = e[:, None].to(tl.int64) * OBS + i[None, :]
    tl.store(next_obs + entries, tl.load(obs + entries, mask=used, other=0.0), mask=used)
    last = tl.load(final_obs + entries, mask=used, other=0.0)
    tl.store(final_obs_log + at[:, None] * OBS + i[None, :], last, mask=used)


@triton.jit
def advantages(
    rewards,  # (n_steps, n), with the bootstrapped value of truncated episodes added
    lengths_log,  # (n_steps, n), 0 where no episode ended
    last_values,  # (n,) of the observations after the last step
    table,  # (n_steps * n, columns) packed rows, see loss.Batch: advantages and returns are written
    columns,
    n,
    n_steps,
    gamma,
    decay,  # gamma times lambda
    VALUE: tl.constexpr,  # column of the values
    BLOCK: tl.constexpr,
):
    """Generalised advantage estimation, see ``DeviceRolloutBuffer.compute_returns_and_advantage``."""
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = e < n
    next_value = tl.load(last_values + e, mask=inside, other=0.0)
    advantage = tl.zeros((BLOCK,), tl.float32)
    for i in range(n_steps):
        at = (n_steps - 1 - i).to(tl.int64) * n + e
        row = table + at * columns + VALUE
        value = tl.load(row, mask=inside, other=0.0)
        goes_on = tl.load(lengths_log + at, mask=inside, other=0.0) == 0.0
        delta = tl.load(rewards + at, mask=inside, other=0.0) - value + tl.where(goes_on, gamma * next_value, 0.0)
        advantage = delta + tl.where(goes_on, decay * advantage, 0.0)
        tl.store(row + 2, advantage, mask=inside)
        tl.store(row + 3, advantage + value, mask=inside)
        next_value = value


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
    h1, h2, w3, value = _values(
        obs, params, critic_w1, critic_b1, critic_w2, critic_b2, critic_w3, critic_b3,
        OBS, CRITIC_H1, CRITIC_H2, BI, BC1, BC2, KIND, PRECISION,
    )  # fmt: skip
    LAST_C: tl.constexpr = CRITIC_H1 if CRITIC_H2 == 0 else CRITIC_H2
    c = tl.arange(0, BC1 if CRITIC_H2 == 0 else BC2)
    if CLIP_VF:
        clip_vf = tl.load(clips + 1)
        change = value - old_value
        error = old_value + clamped(change, -clip_vf, clip_vf) - returns
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

    # the actor
    h1, h2, weight, out = _distribution(
        obs, params, actor_w1, actor_b1, actor_w2, actor_b2, actor_w3, actor_b3,
        OBS, OUT, ACTOR_H1, ACTOR_H2, BI, BO, BA1, BA2, KIND,
    )  # fmt: skip
    LAST_A: tl.constexpr = ACTOR_H1 if ACTOR_H2 == 0 else ACTOR_H2
    BLAST_A: tl.constexpr = BA1 if ACTOR_H2 == 0 else BA2
    used = valid[:, None] & (o[None, :] < OUT)
    clip = tl.load(clips)
    if DISCRETE:
        log_p, p = _log_softmax(out, o, OUT)
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
        log_ratio = -0.5 * tl.sum(z * z, 1) - (old_log_prob + (total + OUT * HALF_LOG_2PI))
        entropy = one * (total + OUT * (0.5 + HALF_LOG_2PI))
    log_ratio = tl.where(valid, log_ratio, 0.0)
    ratio = tl.exp(log_ratio)
    clipped_ratio = clamped(ratio, 1.0 - clip, 1.0 + clip)
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
