# mypy: ignore-errors
"""Triton kernels of DQN's update: values of next observations in one, the gradients of the Huber loss in another.

Imported by :mod:`sb3_isaac.dqn.fused` only, where there is Triton. The formulas are those of ``dqn/fast_policy.py``, which
tests compare them with.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sb3_isaac.device.mlp_kernels import bias_of, dot, hidden, rows_of, transposed_weight, write_hidden, write_layer


@triton.jit
def next_values(
    next_obs,  # (n_rows, IN)
    stride,
    n_rows,
    online,  # parameters, flat; w1, b1, ... are where each begins there
    target,  # likewise
    values,  # (n_rows,), written
    w1,
    b1,
    w2,
    b2,
    w3,
    b3,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    H1: tl.constexpr,
    H2: tl.constexpr,  # 0: one hidden layer
    KIND: tl.constexpr,  # of activation
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    BI: tl.constexpr,
    BO: tl.constexpr,
    B1: tl.constexpr,
    B2: tl.constexpr,
    DOUBLE: tl.constexpr,
):
    """What the target network thinks of next observations for the best action: its own, or the online network's."""
    LAST: tl.constexpr = H1 if H2 == 0 else H2
    BLAST: tl.constexpr = B1 if H2 == 0 else B2
    r, valid, x = rows_of(next_obs, stride, n_rows, ROWS, IN, BI)
    o = tl.arange(0, BO)
    h1, h2 = hidden(x, target, w1, b1, w2, b2, IN, H1, H2, BI, B1, B2, KIND, PRECISION)
    q = dot(h2, transposed_weight(target, w3, LAST, OUT, BLAST, BO), PRECISION) + bias_of(target, b3, OUT, BO)[None, :]
    chooses = q
    if DOUBLE:
        h1, h2 = hidden(x, online, w1, b1, w2, b2, IN, H1, H2, BI, B1, B2, KIND, PRECISION)
        chooses = dot(h2, transposed_weight(online, w3, LAST, OUT, BLAST, BO), PRECISION)
        chooses += bias_of(online, b3, OUT, BO)[None, :]
    best = tl.argmax(tl.where(o[None, :] < OUT, chooses, -float("inf")), 1)
    best = tl.minimum(best, OUT - 1)  # of a row with NaN none is the largest
    tl.store(values + r, tl.sum(tl.where(o[None, :] == best[:, None], q, 0.0), 1), mask=valid)


@triton.jit
def huber_gradients(
    obs,  # (n_rows, IN)
    stride,
    n_rows,
    actions,  # (n_rows,) int64
    targets,  # (n_rows,)
    params,  # flat; w1, b1, ... are where each begins there
    parts,  # (blocks, part): gradients as ``params``, and the sum of the loss
    part,
    n_params,
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
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    BI: tl.constexpr,
    BO: tl.constexpr,
    B1: tl.constexpr,
    B2: tl.constexpr,
):
    """Gradients of the mean Huber loss of ``n_rows``, from the rows of this block."""
    LAST: tl.constexpr = H1 if H2 == 0 else H2
    BLAST: tl.constexpr = B1 if H2 == 0 else B2
    own = parts + tl.program_id(0).to(tl.int64) * part
    r, valid, x = rows_of(obs, stride, n_rows, ROWS, IN, BI)
    o = tl.arange(0, BO)
    h1, h2 = hidden(x, params, w1, b1, w2, b2, IN, H1, H2, BI, B1, B2, KIND, PRECISION)
    weight = transposed_weight(params, w3, LAST, OUT, BLAST, BO)
    q = dot(h2, weight, PRECISION) + bias_of(params, b3, OUT, BO)[None, :]
    action = tl.load(actions + r, mask=valid, other=0).to(tl.int32)
    chosen = (o[None, :] == action[:, None]) & valid[:, None]
    error = tl.sum(tl.where(chosen, q, 0.0), 1) - tl.load(targets + r, mask=valid, other=0.0)
    size = tl.abs(error)
    loss = tl.where(size < 1.0, 0.5 * error * error, size - 0.5)
    tl.store(own + n_params, tl.sum(tl.where(valid, loss, 0.0), 0) / n_rows)
    slope = tl.where(size < 1.0, error, tl.where(error < 0.0, -1.0, 1.0)) / n_rows
    grad = tl.where(chosen, slope[:, None], 0.0)
    write_layer(grad, h2, own, w3, b3, LAST, OUT, BLAST, BO, PRECISION)
    below = dot(grad, tl.trans(weight), PRECISION)
    write_hidden(below, x, h1, h2, params, own, w1, b1, w2, b2, IN, H1, H2, BI, B1, B2, KIND, PRECISION)
