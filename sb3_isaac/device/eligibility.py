"""Whether a network is plain enough for a stand-in without autograd, and whether it is still what it was."""

from __future__ import annotations

from itertools import chain
from operator import attrgetter
from types import FunctionType
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import torch as th
from torch import nn

from sb3_isaac.device.fast_mlp import ACTIVATIONS, parse_layers
from sb3_isaac.device.flat_adam import FlatAdam

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.Flatten, nn.Linear)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = [hooks for name, hooks in vars(nn.modules.module).items() if name.startswith("_global") and hooks == {}]

_HOOKS_OF_PARAMETERS = [name for name in ("_backward_hooks", "_post_accumulate_grad_hooks") if hasattr(th.Tensor, name)]
_OF_PARAMETERS = attrgetter("requires_grad", "dtype", *_HOOKS_OF_PARAMETERS)
OPTIMIZER_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
SETTINGS = ("betas", "eps", "weight_decay", "amsgrad", "maximize")


def package_of(thing: Any) -> str:
    """The package that a class, a function or an object's class is from, such as "sb3_isaac"."""
    return str(getattr(thing, "__module__", None) or type(thing).__module__).partition(".")[0]


def is_patched(owner: object) -> bool:
    """Whether somebody has put a function in the place of one of the object's methods, but for one that only guards it."""
    functions = [value for name, value in vars(owner).items() if callable(value) and hasattr(type(owner), name)]
    return any(not getattr(function, "guards", False) for function in functions)


def why_not_fast(
    root: nn.Module,
    own: Sequence[type],
    nets: Iterable[Iterable[nn.Module]],
    more: Sequence[nn.Parameter] = (),
    optimizers: Sequence[Tuple[th.optim.Optimizer, nn.Module]] = (),
) -> Optional[str]:
    """What a stand-in without autograd would not see; None: nothing. The one question of all algorithms, for SB3's classes.

    :param root: the policy
    :param own: SB3's classes that the stand-in knows
    :param nets: the networks that it computes
    :param more: parameters that it knows besides those of the networks
    :param optimizers: those that it steps itself, each with the module whose parameters it must be over
    """
    for name, module in root.named_modules():
        kind = type(module)
        if kind not in own and kind not in CONTAINERS and kind not in ACTIVATIONS:
            return f"{name or 'the policy'} is a {kind.__name__}"
        if is_patched(module):
            return f"methods of {name or 'the policy'} were replaced"
        if any(isinstance(f, FunctionType) and f.__module__ != kind.__module__ for f in vars(kind).values()):
            return f"methods of {kind.__name__} were replaced"
        if any(getattr(module, hooks, None) for hooks in HOOKS) or any(GLOBAL_HOOKS):
            return f"{name or 'the policy'} has hooks"
    layers = [parse_layers(net) for net in nets]
    if any(net is None for net in layers):
        return "its networks are not Linear layers with tanh, ReLU, ELU or LeakyReLU"
    linears = [linear for net in layers for linear, _ in net or ()]
    if len({id(linear.weight) for linear in linears}) < len(linears):
        return "its layers share weights"
    known = {id(p) for linear in linears for p in (linear.weight, linear.bias)} | {id(p) for p in more}
    for name, p in root.named_parameters():
        if id(p) not in known:
            return f"its parameter {name} is not part of SB3's networks"
        if p.dtype != th.float32 or any(getattr(p, hooks) for hooks in _HOOKS_OF_PARAMETERS):
            return f"its parameter {name} is not float32, or has hooks"
    for optimizer, module in optimizers:
        if not all(p.requires_grad for p in module.parameters()):
            return "some parameters are frozen"
        if not FlatAdam.supports(optimizer):
            return "its optimizer is not plain Adam"
        if [id(p) for p in optimizer.param_groups[0]["params"]] != [id(p) for p in module.parameters()]:
            return "its optimizer is not over all parameters, in their order"
    return None


class Watch:
    """Notices when a policy is no longer what it was: layers, parameters, hooks, methods or optimizers were changed.

    Asked at every rollout and update, so it takes a few microseconds: one pass in C over what the last full look found.

    :param root: the policy
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self._modules: List[nn.Module] = []
        self._attributes: List[Dict[str, Any]] = []
        self._contents: List[Dict[str, Any]] = []
        self._hooks: List[Any] = []
        self._slopes: List[Tuple[Dict[str, Any], str]] = []
        self._parameters: List[nn.Parameter] = []
        self._seen: Any = None

    def changed(self, optimizers: Sequence[th.optim.Optimizer] = (), more: Sequence[object] = ()) -> bool:
        """Whether anything has changed since the last call. True at the first.

        :param optimizers: of the policy
        :param more: other objects that it works with
        """
        if self._seen is not None and self._look(optimizers, more) == self._seen:
            return False
        self._modules = list(self.root.modules())
        self._attributes = [vars(module) for module in self._modules]
        contents = [attributes.get(name) for attributes in self._attributes for name in ("_modules", "_parameters")]
        self._contents = [content for content in contents if isinstance(content, dict)]  # TorchScript has none
        self._hooks = [attributes[name] for attributes in self._attributes for name in HOOKS if name in attributes]
        names = ("negative_slope", "alpha")  # of LeakyReLU and ELU
        self._slopes = [(attributes, name) for attributes in self._attributes for name in names if name in attributes]
        self._parameters = list(self.root.parameters())
        self._seen = self._look(optimizers, more)
        return True

    def _look(self, optimizers: Sequence[th.optim.Optimizer], more: Sequence[object]) -> Any:
        settings = [
            (
                id(optimizer),
                len(vars(optimizer)),
                [*map(id, group["params"])],
                [group.get(name) for name in SETTINGS],
                [bool(vars(optimizer).get(name)) for name in OPTIMIZER_HOOKS],
            )
            for optimizer in optimizers
            for group in optimizer.param_groups
        ]
        return (
            [*map(type, self._modules)],
            [*map(len, self._attributes)],
            [*map(id, chain.from_iterable(map(dict.values, self._contents)))],
            any(self._hooks) or any(GLOBAL_HOOKS),
            [attributes.get(name) for attributes, name in self._slopes],
            [*map(_OF_PARAMETERS, self._parameters)],
            settings,
            [(id(one), len(vars(one))) for one in more],
        )
