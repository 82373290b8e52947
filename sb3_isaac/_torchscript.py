"""Functions of tensors in TorchScript: the same operations with the same results, without Python between them."""

from __future__ import annotations

import functools
import warnings
from typing import Any, Callable

import torch as th

_BELOW_AUTOGRAD: Any = getattr(th._C, "_AutoDispatchBelowAutograd", None)
if not hasattr(_BELOW_AUTOGRAD, "__enter__"):  # torch 1.13
    _BELOW_AUTOGRAD = None


def made(make: Callable[[], Any]) -> Any:
    """What ``make`` makes in TorchScript, or None where there is no TorchScript."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated, in favour of compilers that users would have to have
            return make()
    except Exception:  # whatever a future torch or Python says: all works without
        return None


@functools.lru_cache(maxsize=None)
def scripted(function: Callable[..., Any]) -> Any:
    """A function in TorchScript, which runs without Python's lock, or None where there is no TorchScript."""
    return made(lambda: th.jit.script(function))


def as_script(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function in TorchScript, if it can be had."""
    script = scripted(function)
    return function if script is None else functools.partial(call, script)


def call(script: Any, *args: Any) -> Any:
    """Call what is in TorchScript."""
    # There is nothing to optimise, which would take a tenth of a second of the first calls
    with th.jit.optimized_execution(False):  # type: ignore[attr-defined, no-untyped-call]
        if _BELOW_AUTOGRAD is None or th.is_grad_enabled():
            return script(*args)
        # No gradients are asked for. That each operation finds this out by itself takes a seventh of a small one's time
        with _BELOW_AUTOGRAD():
            return script(*args)
