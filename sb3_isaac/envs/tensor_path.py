"""The tensor path of VecEnvs: what it offers, which wrappers have it, and what to do about the others."""

from __future__ import annotations

import functools
import time
import warnings
from typing import TYPE_CHECKING, Any, Iterable, List, Mapping, Optional, Protocol, Tuple, Type

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common import vec_env as sb3

from sb3_isaac.backends.base import StepResult, TensorEnv
from sb3_isaac.device.eligibility import package_of
from sb3_isaac.device.fused import in_triton
from sb3_isaac.device.host import same_device
from sb3_isaac.envs.infos import Infos

if TYPE_CHECKING:
    from typing_extensions import TypeIs


class Forwarded(Protocol):
    """The half of :class:`TensorVecEnv` that a wrapper hands on unchanged from the environment inside."""

    device: th.device
    """Where all tensors are."""
    tensor_env: TensorEnv
    """The simulator behind the VecEnv."""
    dones: th.Tensor
    """(N,) bool: which episodes ended in the last step. Updated in place."""
    episode_returns: th.Tensor
    """(N,) float32: returns of the episodes so far, of those that have just ended until the next step. Updated in place."""
    episode_lengths: th.Tensor
    """(N,) int64: their lengths, likewise."""
    t_start: float
    """When the environment was made, from ``time.time()``."""

    def make_infos(self, result: StepResult) -> Infos:
        """SB3's infos for the step just taken. Free until somebody reads them."""

    def log_episodes(self, returns: Iterable[float], lengths: Iterable[int]) -> None:
        """Write finished episodes to the monitor file, if there is one. All get the present time."""

    def spread_time_limits(self, generator: Optional[th.Generator] = None) -> None:
        """Give every episode a random age, so that the time-outs of the first episodes do not come all at once."""


class TensorVecEnv(Forwarded, Protocol):
    """A VecEnv of N environments that can be stepped in tensors: :class:`~sb3_isaac.IsaacVecEnv`, wrapped or not.

    ``tensor_path = True`` on a class says that it is one, see :func:`supports_tensors`.
    """

    num_envs: int
    """Number of environments N."""
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    obs_tensor: th.Tensor
    """(N, *obs_shape) float32: the observation to act on. Each step may put another tensor here."""

    def reset_tensor(self) -> th.Tensor:
        """Reset all environments. Returns obs (N, *obs_shape) float32."""

    def step_tensor(self, actions: th.Tensor) -> StepResult:
        """One step without leaving the device, without a host synchronisation and without a check of the actions.

        :param actions: (N, action_dim) float32 for a Box, (N,) int64 for a Discrete action space
        """


FORWARDED = tuple(name for name in (*Forwarded.__annotations__, *vars(Forwarded)) if not name.startswith("_"))
"""The names of what a wrapper hands on."""

WAYS_OUT: List[Tuple[Type[sb3.VecEnvWrapper], str]] = [
    (sb3.VecNormalize, "use sb3_isaac.VecNormalize, which has the same arguments and the same files"),
    (sb3.VecFrameStack, "use sb3_isaac.VecFrameStack, which has the same arguments"),
    (
        sb3.VecMonitor,
        "leave it out: the environment reports its episodes itself and make_vec_env(..., monitor_dir=...) writes monitor.csv",
    ),
    (sb3.VecCheckNan, "leave it out: the algorithms of sb3_isaac stop at NaN by themselves"),
    (sb3.VecVideoRecorder, "record a separate environment after training, or one that is only used for evaluation"),
    (sb3.VecTransposeImage, "leave it out: the observations are no images"),
    (sb3.VecExtractDictObs, "leave it out: the observations are no dicts"),
]
"""What to do about SB3's wrappers."""

IN_NUMPY = frozenset(
    "reset step step_async step_wait normalize_obs _normalize_obs normalize_reward _update_reward get_original_obs "
    "get_original_reward".split()
)
"""SB3's methods of VecEnvs and wrappers in whose place the tensor path has its own"""

OWN_WRAPPER = (
    "leave it out, or give its class tensor_path = True and the methods reset_tensor and step_tensor "
    "(sb3_isaac.VecFrameStack is a short example; capturable = True too, for compile=True, if it writes its tensors in place)"
)


def supports_tensors(env: Any) -> TypeIs[TensorVecEnv]:
    """Whether ``env``, with every wrapper on it, can be stepped in tensors."""
    # VecEnvWrapper passes unknown attributes on to the env inside: a wrapper must say for itself that it supports tensors.
    while isinstance(env, sb3.VecEnvWrapper):
        if not getattr(type(env), "tensor_path", False) or _not_followed(env) is not None:
            return False
        env = env.venv
    return bool(getattr(env, "tensor_path", False)) and _not_followed(env) is None


def has_tensors_inside(env: Any) -> bool:
    """Whether ``env``, without the wrappers on it, has a tensor path."""
    return bool(getattr(env.unwrapped if isinstance(env, sb3.VecEnv) else env, "tensor_path", False))


def _not_followed(layer: Any) -> Optional[str]:
    """The method of a VecEnv or wrapper that somebody has written or replaced and that the tensor path does not call; None."""
    patched = IN_NUMPY.intersection(vars(layer))
    return min(patched) if patched else _not_followed_of(type(layer))  # type: ignore[arg-type]


@functools.lru_cache(maxsize=None)
def _not_followed_of(kind: type) -> Optional[str]:
    for one in kind.__mro__:
        # A class that has a step in tensors says itself what that is
        if "step_tensor" in vars(one) or package_of(one) in ("stable_baselines3", "sb3_isaac"):
            return None
        written = IN_NUMPY.intersection(vars(one))
        if written:
            return min(written)
    return None


def wrapper_without_tensors(env: Any) -> Optional[str]:
    """Which wrapper forces an IsaacVecEnv onto SB3's slow path, and what to do about it.

    :param env: a VecEnv, wrapped or not
    :return: a sentence; None if no wrapper is in the way, or if there is no IsaacVecEnv inside
    """
    if supports_tensors(env) or not has_tensors_inside(env):
        return None
    while getattr(type(env), "tensor_path", False):
        method = _not_followed(env)
        if method is not None:
            return (
                f"{type(env).__name__}.{method} is not this package's, so it is called. Faster: leave it as it is, or write "
                "reset_tensor and step_tensor in the same class."
            )
        env = env.venv
    way_out = next((text for wrapper, text in WAYS_OUT if isinstance(env, wrapper)), OWN_WRAPPER)
    return f"{type(env).__name__} has no tensor path. Faster: {way_out}."


def why_not_tensors(env: Any, device: th.device) -> Optional[str]:
    """What keeps an algorithm on ``device`` from training on ``env`` in tensors; None: nothing does.

    :param env: a VecEnv, wrapped or not, or None
    """
    if not supports_tensors(env):
        return wrapper_without_tensors(env) or "The environment is no IsaacVecEnv (sb3_isaac.make_vec_env)."
    if not same_device(env.device, device):
        return f"The environment is on {env.device} and the model on {device}: give both the same device."
    return None


def overridden(owner: Any, base: type, names: Iterable[str], kind: Optional[type] = None) -> Optional[str]:
    """Which of the methods ``names`` of ``base`` are others in ``owner`` (an instance of ``kind``): a sentence, or None."""
    kind = kind or type(owner)
    for name in names:
        if getattr(kind, name, None) is not getattr(base, name) or name in getattr(owner, "__dict__", {}):
            return f"{kind.__name__}.{name} is not SB3's, so it is called. Faster: leave it as it is."
    return None


def patched_buffer(buffer: Any) -> Optional[str]:
    """Which of SB3's methods somebody has replaced on this one buffer: a sentence, or None."""
    names = [name for name in ("add", "extend", "sample", "get", "_get_samples") if name in getattr(buffer, "__dict__", {})]
    return f"{names[0]} of the buffer was replaced, so it is called. Faster: leave it as it is." if names else None


def check_tensors(env: Any, device: th.device, why_not: Optional[str], options: Mapping[str, bool]) -> bool:
    """Whether an algorithm on ``device`` trains in tensors, asked before it starts, when what cannot work has to be said.

    :param why_not: from :func:`why_not_tensors`, or what else keeps the algorithm from it. Training then runs in numpy as in
        SB3, with a warning if there is an IsaacVecEnv, which would be faster.
    :param options: those that exist in tensors only, and whether they are in use
    :raises ValueError: if one of ``options`` would be ignored, or the environment is on another device
    """
    if why_not is None:
        return True
    if supports_tensors(env) and not same_device(env.device, device):
        raise ValueError(why_not)
    inside = has_tensors_inside(env)
    used = [name for name, in_use in options.items() if in_use]
    if used:
        because = f", but {why_not}" if inside else ": leave it out elsewhere."
        raise ValueError(f"{', '.join(used)} needs an IsaacVecEnv (sb3_isaac.make_vec_env) and training in tensors{because}")
    if inside:
        warnings.warn(f"Training runs in numpy as in SB3, many times slower than it could: {why_not}", stacklevel=6)
    return False


def describe_path(why_not_tensors: Optional[str], why_not_fast: Optional[str]) -> str:
    """How training runs, from the reasons why not in a faster way."""
    if why_not_tensors is not None:
        return f"in numpy: {why_not_tensors}"
    return "in tensors, without autograd" if why_not_fast is None else f"in tensors, with autograd: {why_not_fast}"


def scale_actions(actions: th.Tensor, bounds: Tuple[th.Tensor, th.Tensor]) -> th.Tensor:
    """Actions (N, action_dim) in [-1, 1] to those between ``bounds``, see :func:`bounds_of`."""
    low, high = bounds
    return low + 0.5 * (actions + 1.0) * (high - low)


def bounds_of(space: spaces.Space[Any], device: th.device) -> Optional[Tuple[th.Tensor, th.Tensor]]:
    """Lowest and highest action (action_dim,) float32 of an action space; None: it is no Box."""
    if not isinstance(space, spaces.Box):
        return None
    low, high = (th.as_tensor(bound, dtype=th.float32, device=device) for bound in (space.low, space.high))
    return low, high


def layers(env: TensorVecEnv) -> List[Any]:
    """The wrappers, the VecEnv and the simulator: what a step of ``env`` changes."""
    found: List[Any] = [env]
    while isinstance(found[-1], sb3.VecEnvWrapper):
        found.append(found[-1].venv)
    return [*found, env.tensor_env]


def has_layers(env: TensorVecEnv, found: List[Any]) -> bool:
    """Whether :func:`layers` of ``env`` are still these objects."""
    now = layers(env)
    return len(now) == len(found) and all(one is other for one, other in zip(now, found))


def compile_step(env: TensorVecEnv, compiled: bool, precision: Optional[str] = None) -> None:
    """Let a compiler make a step faster, where it can: the simulator's, and what the layers around it keep of it.

    :param compiled: False: back to the plain step, where another model has had it compiled
    :param precision: of an algorithm, which asks for Triton's kernels
    """
    simulator: Any = env.tensor_env
    if hasattr(simulator, "in_triton"):
        simulator.in_triton = in_triton(precision, env.device)
    if compiled:
        env.tensor_env.compile()
    elif hasattr(env.tensor_env, "uncompile"):
        env.tensor_env.uncompile()
    for layer in layers(env):
        if hasattr(type(layer), "compile_bookkeeping"):
            layer.compile_bookkeeping(compiled, precision)


def capturable(env: TensorVecEnv) -> bool:
    """Whether a CUDA graph may hold a step of ``env``: its simulator says so, and each layer around that is of this package or
    has ``capturable = True`` on its class. A layer that replaces its tensors, or counts in Python, must not say so."""

    def may(layer: Any) -> bool:
        return package_of(layer) == "sb3_isaac" or bool(vars(type(layer)).get("capturable", False))

    *around, simulator = layers(env)
    return bool(simulator.capturable) and all(map(may, around))


def generators(env: TensorVecEnv) -> List[th.Generator]:
    """The random generators that a step of ``env`` draws from, besides torch's default."""
    generator = getattr(env.tensor_env, "generator", None)
    return [] if generator is None else [generator]


def note_episodes(env: TensorVecEnv, ep_info_buffer: Any, returns: np.ndarray, lengths: np.ndarray) -> None:
    """Put finished episodes where SB3 has them: in an algorithm's ``ep_info_buffer`` and the monitor file.

    :param ep_info_buffer: the algorithm's deque
    :param returns: (episodes,), in the order in which they ended
    :param lengths: (episodes,)
    """
    t = round(time.time() - env.t_start, 6)
    kept = ep_info_buffer.maxlen or len(returns)
    rows = zip(returns[-kept:], lengths[-kept:])
    ep_info_buffer.extend({"r": round(float(r), 6), "l": int(n), "t": t} for r, n in rows)
    env.log_episodes(returns, lengths)


def log_metrics(env: TensorVecEnv, logger: Any) -> None:
    """Give SB3's logger what the task has told of itself: by its own names, those without a group under ``env/``."""
    inner: Any = env
    simulator = getattr(inner.unwrapped, "tensor_env", None)  # other people's environments have none
    for name, value in (simulator.pop_metrics() if simulator is not None else {}).items():
        logger.record(name if "/" in name else f"env/{name}", value)


def forward_tensor_path(wrapper: sb3.VecEnvWrapper) -> None:
    """Give ``wrapper`` the :data:`FORWARDED` attributes of the environment inside.

    Not left to ``VecEnvWrapper.__getattr__``, which takes some 20 microseconds per access. They can be attributes
    because an environment on the tensor path updates ``dones`` and the episode statistics in place.
    """
    for name in FORWARDED:
        setattr(wrapper, name, getattr(wrapper.venv, name))
