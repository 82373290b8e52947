# mypy: ignore-errors
"""Forward and backward passes of small multi-layer perceptrons within a Triton kernel, for blocks of rows.

Imported by the algorithms' ``kernels.py`` and :mod:`sb3_isaac.device.fused_mlp` only, where there is Triton. The formulas are
those of ``device/fast_mlp.py``. A network has one or two hidden layers; its weights lie in one flat tensor, as (out, in), and
on the chip transposed, in blocks whose sides are powers of 2 from 16, with zeros around them.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def clamped(x, low, high):
    """Between two numbers; not a number stays one, as in torch."""
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def rounded(x):
    """To the nearest TensorFloat-32: the matrix units would cut the other bits off."""
    return ((x.to(tl.int32, bitcast=True) + 0x1000) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """Matrix product, summed in float32. PRECISION: of ``device/fused.py``."""
    if PRECISION == "bf16":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    elif PRECISION == "tf32":
        return tl.dot(rounded(a), rounded(b), input_precision="tf32")
    else:  # each factor as a sum of two TensorFloat-32: as exact as float32 but for the last bits, and on the matrix units
        return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def rows_of(table, stride, n_rows, ROWS: tl.constexpr, IN: tl.constexpr, BI: tl.constexpr):
    """The rows of this block: their numbers, which of them there are, and what is in them (ROWS, BI)."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, BI)
    valid = r < n_rows
    inside = valid[:, None] & (i[None, :] < IN)
    return r, valid, tl.load(table + r[:, None].to(tl.int64) * stride + i[None, :], mask=inside, other=0.0)


@triton.jit
def transposed_weight(params, weight, IN: tl.constexpr, OUT: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr):
    """(BI, BO): the transposed weight of a layer, which lies at ``params + weight`` as (OUT, IN), with zeros around it."""
    return transposed_columns(params, weight, IN, 0, IN, OUT, BI, BO)


@triton.jit
def transposed_columns(
    params,
    weight,
    ALL: tl.constexpr,
    FIRST: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    BI: tl.constexpr,
    BO: tl.constexpr,
):
    """As :func:`transposed_weight`, of IN inputs from FIRST on, of a layer that has ALL."""
    i, o = tl.arange(0, BI), tl.arange(0, BO)
    inside = (i[:, None] < IN) & (o[None, :] < OUT)
    return tl.load(params + weight + o[None, :] * ALL + FIRST + i[:, None], mask=inside, other=0.0)


@triton.jit
def bias_of(params, bias, OUT: tl.constexpr, BO: tl.constexpr):
    o = tl.arange(0, BO)
    return tl.load(params + bias + o, mask=o < OUT, other=0.0)


@triton.jit
def activated(x, KIND: tl.constexpr):
    """KIND: of ``fast_mlp.ACTIVATIONS``."""
    if KIND == 1:
        return 2.0 * tl.sigmoid(2.0 * x) - 1.0
    elif KIND == 2:
        return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif KIND == 3:
        return tl.where(x > 0.0, x, tl.exp(tl.where(x > 0.0, 0.0, x)) - 1.0)
    elif KIND == 4:
        return tl.where(x > 0.0, x, 0.01 * x)
    else:
        return x


@triton.jit
def activation_gradient(grad, h, KIND: tl.constexpr):
    """The gradient with respect to an activation's input, from that with respect to its output ``h``."""
    if KIND == 1:
        return grad * (1.0 - h * h)
    elif KIND == 2:
        return tl.where(h > 0.0, grad, 0.0)
    elif KIND == 3:
        return tl.where(h > 0.0, grad, grad * (h + 1.0))
    elif KIND == 4:
        return tl.where(h > 0.0, grad, 0.01 * grad)
    else:
        return grad


@triton.jit
def hidden(
    x,
    params,
    w1,
    b1,
    w2,
    b2,
    IN: tl.constexpr,
    H1: tl.constexpr,
    H2: tl.constexpr,
    BI: tl.constexpr,
    B1: tl.constexpr,
    B2: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Outputs of the first and of the last hidden layer, which are the same one where H2 is 0."""
    first = dot(x, transposed_weight(params, w1, IN, H1, BI, B1), PRECISION) + bias_of(params, b1, H1, B1)[None, :]
    return hidden_after(first, params, w2, b2, H1, H2, B1, B2, KIND, PRECISION)


@triton.jit
def hidden_after(
    first,
    params,
    w2,
    b2,
    H1: tl.constexpr,
    H2: tl.constexpr,
    B1: tl.constexpr,
    B2: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """:func:`hidden` from what goes into the first activation."""
    h1 = activated(first, KIND)
    if H2 == 0:
        return h1, h1
    else:
        h2 = dot(h1, transposed_weight(params, w2, H1, H2, B1, B2), PRECISION) + bias_of(params, b2, H2, B2)[None, :]
        return h1, activated(h2, KIND)


@triton.jit
def write_layer(
    grad,
    x,
    part,
    weight,
    bias,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    BI: tl.constexpr,
    BO: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of a layer's weight and bias, given that of its output (rows, BO), and its input (rows, BI)."""
    write_columns(grad, x, part, weight, IN, 0, IN, OUT, BI, BO, PRECISION)
    write_bias(grad, part, bias, OUT, BO)


@triton.jit
def write_columns(
    grad,
    x,
    part,
    weight,
    ALL: tl.constexpr,
    FIRST: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    BI: tl.constexpr,
    BO: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient of a layer's weight, of IN inputs from FIRST on, of a layer that has ALL."""
    i, o = tl.arange(0, BI), tl.arange(0, BO)
    inside = (o[:, None] < OUT) & (i[None, :] < IN)
    tl.store(part + weight + o[:, None] * ALL + FIRST + i[None, :], dot(tl.trans(grad), x, PRECISION), mask=inside)


@triton.jit
def write_bias(grad, part, bias, OUT: tl.constexpr, BO: tl.constexpr):
    o = tl.arange(0, BO)
    tl.store(part + bias + o, tl.sum(grad, 0), mask=o < OUT)


@triton.jit
def write_hidden(
    grad,
    x,
    h1,
    h2,
    params,
    part,
    w1,
    b1,
    w2,
    b2,
    IN: tl.constexpr,
    H1: tl.constexpr,
    H2: tl.constexpr,
    BI: tl.constexpr,
    B1: tl.constexpr,
    B2: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of the hidden layers, given that of the last one's output. See :func:`hidden`."""
    grad = activation_gradient(grad, h2, KIND)
    if H2 != 0:
        write_layer(grad, h1, part, w2, b2, H1, H2, B1, B2, PRECISION)
        below = dot(grad, tl.trans(transposed_weight(params, w2, H1, H2, B1, B2)), PRECISION)
        write_layer(activation_gradient(below, h1, KIND), x, part, w1, b1, IN, H1, BI, B1, PRECISION)
    else:
        write_layer(grad, x, part, w1, b1, IN, H1, BI, B1, PRECISION)


@triton.jit
def outputs(
    x,  # (n_rows, IN)
    stride,
    n_rows,
    w1,  # (H1, IN), contiguous, and so are the others
    b1,
    w2,  # without a second hidden layer nobody reads this one
    b2,
    w3,
    b3,
    out,  # (n_rows, OUT), written
    IN: tl.constexpr,
    OUT: tl.constexpr,
    H1: tl.constexpr,
    H2: tl.constexpr,  # 0: one hidden layer
    KIND: tl.constexpr,  # of activation
    OUT_KIND: tl.constexpr,  # of activation of the outputs
    ROWS: tl.constexpr,
    BI: tl.constexpr,
    BO: tl.constexpr,
    B1: tl.constexpr,
    B2: tl.constexpr,
):
    """A kernel of its own: a forward pass in float32."""
    r, valid, h = rows_of(x, stride, n_rows, ROWS, IN, BI)
    h = activated(dot(h, transposed_weight(w1, 0, IN, H1, BI, B1), "fp32") + bias_of(b1, 0, H1, B1)[None, :], KIND)
    if H2 > 0:
        h = activated(dot(h, transposed_weight(w2, 0, H1, H2, B1, B2), "fp32") + bias_of(b2, 0, H2, B2)[None, :], KIND)
    LAST: tl.constexpr = H1 if H2 == 0 else H2
    BLAST: tl.constexpr = B1 if H2 == 0 else B2
    y = dot(h, transposed_weight(w3, 0, LAST, OUT, BLAST, BO), "fp32") + bias_of(b3, 0, OUT, BO)[None, :]
    o = tl.arange(0, BO)
    inside = valid[:, None] & (o[None, :] < OUT)
    tl.store(out + r[:, None].to(tl.int64) * OUT + o[None, :], activated(y, OUT_KIND), mask=inside)
