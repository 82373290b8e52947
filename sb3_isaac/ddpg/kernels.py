# mypy: ignore-errors
"""Triton kernels of DDPG's update: values of next observations, gradients of the critics, gradients of the actor.

Imported by :mod:`sb3_isaac.ddpg.fused` only, where there is Triton. The formulas are those of ``ddpg/fast_policy.py``, which
tests compare them with. Actor and critics may have other widths, so that their arguments begin with ``actor_``, A or
``critic_``, C. All critics are alike, and one begins ``critic_size`` numbers after the other.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sb3_isaac.device.mlp_kernels import (
    activated,
    activation_gradient,
    bias_of,
    dot,
    hidden,
    hidden_after,
    rows_of,
    transposed_columns,
    transposed_weight,
    write_bias,
    write_columns,
    write_hidden,
    write_layer,
)


@triton.jit
def _actions(
    h,
    params,
    w3,
    b3,
    LAST: tl.constexpr,
    ACT: tl.constexpr,
    BLAST: tl.constexpr,
    BA: tl.constexpr,
    OUT_KIND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(rows, BA) of the actor, from its last hidden layer; 0 where there are no more."""
    out = dot(h, transposed_weight(params, w3, LAST, ACT, BLAST, BA), PRECISION) + bias_of(params, b3, ACT, BA)[None, :]
    return activated(out, OUT_KIND)


@triton.jit
def _critic(
    x,
    actions,
    params,
    w1,
    b1,
    w2,
    b2,
    w3,
    b3,
    IN: tl.constexpr,
    ACT: tl.constexpr,
    H1: tl.constexpr,
    H2: tl.constexpr,
    BI: tl.constexpr,
    BA: tl.constexpr,
    B1: tl.constexpr,
    B2: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Outputs of a critic's first and last hidden layer, the weight of its output, and that: (rows,)."""
    first = dot(x, transposed_columns(params, w1, IN + ACT, 0, IN, H1, BI, B1), PRECISION)
    first += dot(actions, transposed_columns(params, w1, IN + ACT, IN, ACT, H1, BA, B1), PRECISION)
    h1, h2 = hidden_after(first + bias_of(params, b1, H1, B1)[None, :], params, w2, b2, H1, H2, B1, B2, KIND, PRECISION)
    weight = bias_of(params, w3, H1 if H2 == 0 else H2, B1 if H2 == 0 else B2)
    return h1, h2, weight, tl.sum(h2 * weight[None, :], 1) + tl.load(params + b3)


@triton.jit
def next_values(
    next_obs,  # (n_rows, IN)
    stride,
    noise,  # (n_rows, ACT), or anything, if there is none
    n_rows,
    actor,  # parameters of the target networks, flat; actor_w1, actor_b1, ... are where each begins there
    critics,
    values,  # (n_rows,), written
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
    critic_size,
    IN: tl.constexpr,
    ACT: tl.constexpr,
    AH1: tl.constexpr,
    AH2: tl.constexpr,  # 0: one hidden layer
    CH1: tl.constexpr,
    CH2: tl.constexpr,
    KIND: tl.constexpr,  # of activation
    OUT_KIND: tl.constexpr,  # of the actor's output
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    BI: tl.constexpr,
    BA: tl.constexpr,
    BA1: tl.constexpr,
    BA2: tl.constexpr,
    BC1: tl.constexpr,
    BC2: tl.constexpr,
    N_CRITICS: tl.constexpr,
    NOISE: tl.constexpr,
):
    """What the target networks think of next observations: the lowest of the critics."""
    ALAST: tl.constexpr = AH1 if AH2 == 0 else AH2
    BALAST: tl.constexpr = BA1 if AH2 == 0 else BA2
    r, valid, x = rows_of(next_obs, stride, n_rows, ROWS, IN, BI)
    h1, h2 = hidden(x, actor, actor_w1, actor_b1, actor_w2, actor_b2, IN, AH1, AH2, BI, BA1, BA2, KIND, PRECISION)
    actions = _actions(h2, actor, actor_w3, actor_b3, ALAST, ACT, BALAST, BA, OUT_KIND, PRECISION)
    if NOISE:
        r, valid, more = rows_of(noise, ACT, n_rows, ROWS, ACT, BA)
        actions = tl.clamp(actions + more, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
    lowest = tl.full((ROWS,), float("inf"), tl.float32)
    for k in tl.static_range(N_CRITICS):
        h1, h2, weight, found = _critic(
            x, actions, critics + k * critic_size, critic_w1, critic_b1, critic_w2, critic_b2, critic_w3, critic_b3,
            IN, ACT, CH1, CH2, BI, BA, BC1, BC2, KIND, PRECISION,
        )  # fmt: skip
        lowest = tl.minimum(lowest, found, propagate_nan=tl.PropagateNan.ALL)
    tl.store(values + r, lowest, mask=valid)


@triton.jit
def critic_gradients(
    obs,  # (n_rows, IN)
    stride,
    actions,  # (n_rows, ACT)
    targets,  # (n_rows,)
    n_rows,
    critics,  # parameters, flat; critic_w1, critic_b1, ... are where each of the first one begins there
    parts,  # (blocks, part): gradients as ``critics``, and the sum of each critic's loss
    part,
    n_params,
    critic_w1,
    critic_b1,
    critic_w2,
    critic_b2,
    critic_w3,
    critic_b3,
    critic_size,
    IN: tl.constexpr,
    ACT: tl.constexpr,
    CH1: tl.constexpr,
    CH2: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    BI: tl.constexpr,
    BA: tl.constexpr,
    BC1: tl.constexpr,
    BC2: tl.constexpr,
):
    """Gradients of the mean squared error of ``n_rows``, from the rows of this block, for this critic."""
    LAST: tl.constexpr = CH1 if CH2 == 0 else CH2
    BLAST: tl.constexpr = BC1 if CH2 == 0 else BC2
    k = tl.program_id(1)
    params = critics + k * critic_size
    block = parts + tl.program_id(0).to(tl.int64) * part
    own = block + k * critic_size
    r, valid, x = rows_of(obs, stride, n_rows, ROWS, IN, BI)
    r, valid, a = rows_of(actions, ACT, n_rows, ROWS, ACT, BA)
    h1, h2, weight, values = _critic(
        x, a, params, critic_w1, critic_b1, critic_w2, critic_b2, critic_w3, critic_b3,
        IN, ACT, CH1, CH2, BI, BA, BC1, BC2, KIND, PRECISION,
    )  # fmt: skip
    error = tl.where(valid, values - tl.load(targets + r, mask=valid, other=0.0), 0.0)
    tl.store(block + n_params + k, tl.sum(error * error, 0) / n_rows)
    grad = error * (2.0 / n_rows)
    last = tl.arange(0, BLAST)
    tl.store(own + critic_w3 + last, tl.sum(grad[:, None] * h2, 0), mask=last < LAST)
    tl.store(own + critic_b3, tl.sum(grad, 0))
    below = activation_gradient(grad[:, None] * weight[None, :], h2, KIND)
    if CH2 != 0:
        write_layer(below, h1, own, critic_w2, critic_b2, CH1, CH2, BC1, BC2, PRECISION)
        below = dot(below, tl.trans(transposed_weight(params, critic_w2, CH1, CH2, BC1, BC2)), PRECISION)
        below = activation_gradient(below, h1, KIND)
    write_columns(below, x, own, critic_w1, IN + ACT, 0, IN, CH1, BI, BC1, PRECISION)
    write_columns(below, a, own, critic_w1, IN + ACT, IN, ACT, CH1, BA, BC1, PRECISION)
    write_bias(below, own, critic_b1, CH1, BC1)


@triton.jit
def actor_gradients(
    obs,  # (n_rows, IN)
    stride,
    n_rows,
    actor,  # parameters, flat; actor_w1, actor_b1, ... are where each begins there
    critics,  # likewise; the first one is used
    parts,  # (blocks, part): gradients as ``actor``, and the sum of the loss
    part,
    n_params,
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
    IN: tl.constexpr,
    ACT: tl.constexpr,
    AH1: tl.constexpr,
    AH2: tl.constexpr,
    CH1: tl.constexpr,
    CH2: tl.constexpr,
    KIND: tl.constexpr,
    OUT_KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    BI: tl.constexpr,
    BA: tl.constexpr,
    BA1: tl.constexpr,
    BA2: tl.constexpr,
    BC1: tl.constexpr,
    BC2: tl.constexpr,
):
    """Gradients of minus the mean value of ``n_rows``, from the rows of this block."""
    ALAST: tl.constexpr = AH1 if AH2 == 0 else AH2
    BALAST: tl.constexpr = BA1 if AH2 == 0 else BA2
    own = parts + tl.program_id(0).to(tl.int64) * part
    r, valid, x = rows_of(obs, stride, n_rows, ROWS, IN, BI)
    a1, a2 = hidden(x, actor, actor_w1, actor_b1, actor_w2, actor_b2, IN, AH1, AH2, BI, BA1, BA2, KIND, PRECISION)
    actions = _actions(a2, actor, actor_w3, actor_b3, ALAST, ACT, BALAST, BA, OUT_KIND, PRECISION)
    h1, h2, weight, values = _critic(
        x, actions, critics, critic_w1, critic_b1, critic_w2, critic_b2, critic_w3, critic_b3,
        IN, ACT, CH1, CH2, BI, BA, BC1, BC2, KIND, PRECISION,
    )  # fmt: skip
    tl.store(own + n_params, -tl.sum(tl.where(valid, values, 0.0), 0) / n_rows)
    grad = tl.where(valid, -1.0 / n_rows, 0.0)
    below = activation_gradient(grad[:, None] * weight[None, :], h2, KIND)
    if CH2 != 0:
        below = dot(below, tl.trans(transposed_weight(critics, critic_w2, CH1, CH2, BC1, BC2)), PRECISION)
        below = activation_gradient(below, h1, KIND)
    below = dot(below, tl.trans(transposed_columns(critics, critic_w1, IN + ACT, IN, ACT, CH1, BA, BC1)), PRECISION)
    below = activation_gradient(below, actions, OUT_KIND)
    write_layer(below, a2, own, actor_w3, actor_b3, ALAST, ACT, BALAST, BA, PRECISION)
    below = dot(below, tl.trans(transposed_weight(actor, actor_w3, ALAST, ACT, BALAST, BA)), PRECISION)
    write_hidden(
        below, x, a1, a2, actor, own, actor_w1, actor_b1, actor_w2, actor_b2,
        IN, AH1, AH2, BI, BA1, BA2, KIND, PRECISION,
    )  # fmt: skip
