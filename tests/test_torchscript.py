"""Calls of functions in TorchScript."""

from __future__ import annotations

import pytest
import torch as th

from sb3_isaac import _torchscript


def doubled(x: th.Tensor, out: th.Tensor) -> th.Tensor:
    out.copy_(x)
    return x * 2.0


@pytest.mark.parametrize("torch_has_the_guard", [True, False])
def test_gradients_flow_where_they_are_asked_for_and_only_there(
    torch_has_the_guard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch_has_the_guard:
        monkeypatch.setattr(_torchscript, "_BELOW_AUTOGRAD", None)
    function = _torchscript.as_script(doubled)
    x, out = th.ones(3, requires_grad=True), th.zeros(3)
    (gradient,) = th.autograd.grad(function(x, th.zeros(3)).sum(), x)
    assert gradient.tolist() == [2.0] * 3
    with th.no_grad():
        before = out._version
        result = function(x, out)
    assert not result.requires_grad and result.tolist() == [2.0] * 3
    assert out.tolist() == [1.0] * 3 and out._version > before  # who has saved it for a gradient is told that it changed
    # What came of it is like any other tensor
    result.add_(1.0)
    weight = th.ones(3, requires_grad=True)
    (result * weight).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [3.0] * 3


def test_without_torchscript_the_function_itself_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(function: object) -> None:
        raise RuntimeError("no TorchScript")

    def another(x: th.Tensor) -> th.Tensor:
        return x + 1.0

    monkeypatch.setattr(th.jit, "script", gone)
    assert _torchscript.as_script(another) is another
