"""A model in training keeps its last finite state: where NaN or infinity come in, it goes back to that, and training ends."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.vec_env import unwrap_vec_normalize

from sb3_isaac.device.finite import NotFiniteError, Origin, advice, first_not_finite, is_finite
from sb3_isaac.device.flat_adam import views_of
from sb3_isaac.device.host import to_host

LOSS = f"the loss, or its gradient, was not, {advice('loss')}"
"""How parameters become so in training"""
Named = Tuple[str, th.Tensor]


def optimizers_of(model: Any) -> List[th.optim.Optimizer]:
    """All optimizers of an SB3 model."""
    names = [name for name in model._get_torch_save_params()[0] if name.endswith("optimizer")]
    return [recursive_getattr(model, name) for name in names]


def parameters_of(model: Any) -> Iterator[Named]:
    """The floating-point tensors that a model learns, target networks and batch-norm statistics included, by name."""
    named = itertools.chain(model.policy.named_parameters(), model.policy.named_buffers())
    return ((f"policy.{name}", tensor) for name, tensor in named if tensor.is_floating_point())


def statistics_of(normalize: Any) -> Dict[str, Any]:
    """Running means and variances of a VecNormalize (SB3's or ours): RunningMeanStd objects by name."""
    found: Dict[str, Any] = {}
    for name in ("obs_rms", "ret_rms"):
        rms = getattr(normalize, name, None)
        found.update({f"{name}[{key!r}]": rms[key] for key in rms} if isinstance(rms, dict) else {name: rms})
    return {name: rms for name, rms in found.items() if rms is not None}


def check_statistics(normalize: Any) -> None:
    """:raises NotFiniteError: statistics of a VecNormalize are not finite"""
    for name, rms in statistics_of(normalize).items():
        if not (is_finite(np.asarray(rms.mean)) and is_finite(np.asarray(rms.var))):
            raise NotFiniteError(
                f"The statistics {name} of VecNormalize are not finite: observations or rewards were not, start with new ones."
            )


def check_parameters(model: Any, problem: str) -> None:
    """:raises NotFiniteError: parameters are not finite; for ``problem`` see :func:`check_model`"""
    _check_tensors(parameters_of(model), "the model", problem)


def _check_tensors(named: Iterable[Named], owner: str, problem: str) -> None:
    named = list(named)
    # One read of the device, and a closer look only where that is not finite
    if named and not is_finite(to_host(th.stack([tensor.detach().sum().to(named[0][1]) for _, tensor in named]))):
        for name, tensor in named:
            if not bool(th.isfinite(tensor).all()):
                raise NotFiniteError(f"{name} of {owner} is not finite: {problem}")


def check_model(model: Any, problem: str) -> None:
    """Whether parameters, optimizers and statistics of VecNormalize are finite.

    :param problem: the end of the sentence that is raised: what follows, and what to do
    :raises NotFiniteError: if not
    """
    check_parameters(model, problem)
    for optimizer in optimizers_of(model):
        states = (state.items() for state in optimizer.state.values())
        named = (item for item in itertools.chain(*states) if isinstance(item[1], th.Tensor) and item[0] != "step")
        _check_tensors(named, "the model's optimizer", problem)
    normalize = None if model.env is None else unwrap_vec_normalize(model.env)
    if normalize is not None:
        check_statistics(normalize)


def merged(tensors: Iterable[th.Tensor]) -> List[th.Tensor]:
    """The tensors as flat ones, in the same order; those that follow one another in memory (as FlatAdam has them) as one."""
    parts: List[th.Tensor] = []
    for flat in (tensor.reshape(-1) for tensor in tensors):
        last = parts[-1] if parts else flat[:0]
        follows = last.data_ptr() + last.numel() * last.element_size() == flat.data_ptr()
        if parts and follows and _storage(last) == _storage(flat):
            parts[-1] = last.as_strided((last.numel() + flat.numel(),), (1,))
        else:
            parts.append(flat)
    return parts


def _storage(tensor: th.Tensor) -> int:
    """Where the memory begins that a tensor is a view of."""
    return int(getattr(tensor, "untyped_storage", tensor.storage)().data_ptr())  # torch 1 has the latter only


class LastFinite:
    """A copy of what training changes, from when it was finite: parameters, optimizers, statistics of VecNormalize.

    :param model: an SB3 model that is about to train
    :raises NotFiniteError: it is not finite now
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._now: Any = None
        self._groups: Any = None
        self._addresses: List[int] = []
        self.check("training does not begin with it, load another model.")

    def look(self) -> th.Tensor:
        """Copy the present state. Returns () on the device: finite if all of it is, or a false alarm (huge numbers)."""
        named = list(self._tensors())
        addresses = [tensor.data_ptr() for _, tensor in named]
        if addresses != self._addresses:
            # What is not contiguous is copied by merged(), so that must be done anew each time
            self._addresses = addresses if all(tensor.is_contiguous() for _, tensor in named) else []
            groups: Dict[Any, List[Tuple[Any, th.Tensor]]] = {}
            for item in named:
                groups.setdefault((item[1].dtype, item[1].device), []).append(item)
            self._groups = [(group, merged(tensor.detach() for _, tensor in group)) for group in groups.values()]
        copies = [(group, th.cat(parts)) for group, parts in self._groups]
        normalize = unwrap_vec_normalize(self._model.env)
        arrays = {} if normalize is None or _in_tensors(normalize) else _arrays(normalize)
        self._now = copies, arrays
        # Adam's step counts, which alone may be elsewhere than the parameters, are finite
        health = copies[0][1].sum()
        for _, copy in copies[1:]:
            if copy.device == health.device:
                health = health + copy.sum()
        return health if all(map(is_finite, arrays.values())) else health + np.nan

    def check(self, problem: str = LOSS) -> None:
        """Keep the present state. Waits for the device. For ``problem`` see :func:`check_model`.

        :raises NotFiniteError: it is not finite
        """
        self.accept(float(to_host(self.look())), problem)

    def accept(self, health: float, problem: str = LOSS) -> None:
        """Keep what :meth:`look` has copied.

        :param health: what it returned, read by the host
        :raises NotFiniteError: it is not finite
        """
        if not np.isfinite(health):
            check_model(self._model, problem)
        self._kept = self._now

    def restore(self) -> None:
        """Go back to the state that was kept last, in place."""
        copies, arrays = self._kept
        kept: Dict[Any, th.Tensor] = {}
        for group, copy in copies:
            kept.update(zip((key for key, _ in group), views_of(copy, (tensor for _, tensor in group))))
        with th.no_grad():
            for key, tensor in list(self._tensors()):
                if key in kept:
                    tensor.copy_(kept[key])
                elif not isinstance(key, str):  # an optimizer's first steps were made since
                    key[0].state.pop(key[1], None)
        normalize = unwrap_vec_normalize(self._model.env)
        if normalize is None:
            return
        if _in_tensors(normalize):
            normalize._state.moments.refresh()
        elif arrays:
            for name, rms in statistics_of(normalize).items():
                rms.mean, rms.var, rms.count = (arrays[name, what].copy() for what in ("mean", "var", "count"))
                rms.count = float(rms.count)
            normalize.returns = arrays["returns", ""].copy()
            normalize.old_obs, normalize.old_reward = np.array([]), np.array([])  # as in one that is new

    def _tensors(self) -> Iterator[Tuple[Any, th.Tensor]]:
        """What is kept: tensors by name, those of optimizers by (optimizer, parameter, name)."""
        yield from parameters_of(self._model)
        for optimizer in optimizers_of(self._model):
            for parameter, state in optimizer.state.items():
                for name, value in state.items():
                    if isinstance(value, th.Tensor):
                        yield (optimizer, parameter, name), value
        normalize = unwrap_vec_normalize(self._model.env)
        if normalize is not None and _in_tensors(normalize):
            state = normalize._state
            yield from (("mean", state.moments.mean), ("var", state.moments.var), ("count", state.moments.count))
            yield "returns", state.returns


def _in_tensors(normalize: Any) -> bool:
    """Whether the statistics are on a device (ours over a tensor path)."""
    return getattr(normalize, "_state", None) is not None


def _arrays(normalize: Any) -> Dict[Tuple[str, str], np.ndarray]:
    """Copies of statistics in numpy."""
    found = {("returns", ""): np.array(normalize.returns, dtype=np.float64)}
    for name, rms in statistics_of(normalize).items():
        found.update({(name, what): np.array(getattr(rms, what), dtype=np.float64) for what in ("mean", "var", "count")})
    return found


@contextlib.contextmanager
def finite_training(model: Any) -> Iterator[None]:
    """While a model trains it has a :class:`LastFinite`, ``model._last_finite``, and goes back to that if it is not finite.

    :raises NotFiniteError: something was not finite; the message says where it began
    """
    if model.env is None:  # SB3 says so
        yield
        return
    kept = model._last_finite = LastFinite(model)
    try:
        yield
        kept.check()
    except BaseException as error:
        origin, sentence = model._not_finite_input(), str(error)
        poisoned = origin is not None or isinstance(error, NotFiniteError)
        try:
            check_model(model, LOSS)
        except NotFiniteError as found:
            poisoned = True
            sentence = sentence if isinstance(error, NotFiniteError) else str(found)
        if poisoned:
            kept.restore()
            model._last_obs = None  # the environments are reset before training goes on
        if not poisoned or not isinstance(error, Exception):
            raise
        raise NotFiniteError(
            f"{origin or sentence} Training ended after {model.num_timesteps:,} timesteps, and the model is as it was when it "
            "was last seen to be finite."
        ) from error
    finally:
        model._last_finite = None


def said(origin: Optional[Origin], timesteps: int, n_envs: int) -> Optional[str]:
    """Where the first number began that is not finite, as a sentence.

    :param timesteps: of all environments, before the first step that ``origin`` counts
    """
    if origin is None:
        return None
    name, step, env, value = origin
    at = timesteps + (step + 1) * n_envs
    return f"The {name} of environment {env} was {value} in the step that ended at {at:,} timesteps: {advice(name)}"


def _parts(obs: Any) -> List[Any]:
    """Observations as a list of arrays, those of a dict one by one."""
    return list(obs.values()) if isinstance(obs, dict) else [obs]


def check_obs(obs: Any, when: str) -> None:
    """Whether observations, an array or a dict of arrays (N, ...), are finite.

    :param when: such as "after the reset"
    :raises NotFiniteError: if not
    """
    for part in _parts(obs):
        if isinstance(part, np.ndarray) and not is_finite(part):
            origin = first_not_finite([("observation", part[None])])
            if origin is not None:
                raise NotFiniteError(
                    f"The observation of environment {origin.env} is {origin.value} {when}: {advice('observation')}"
                )


def check_given(obs: Any) -> None:
    """Whether observations that somebody wants actions for, an array or a dict of arrays of any shape, are finite.

    :raises ValueError: if not
    """
    for part in _parts(obs):
        if isinstance(part, np.ndarray) and not is_finite(part):
            first = tuple(int(i) for i in np.argwhere(~np.isfinite(part))[0])
            raise ValueError(f"The observation holds {part[first]} at index {first}: no action can be predicted for it.")


def check_buffer(buffer: Any) -> None:
    """:raises NotFiniteError: a replay buffer (SB3's or ours) holds NaN or infinity"""
    names = ("observations", "next_observations", "actions", "rewards")
    for name in names if buffer is not None else ():
        values = getattr(buffer, name, None)  # a DeviceReplayBuffer may have no next_observations
        for part in values.values() if isinstance(values, dict) else [values]:
            tensor = None if part is None else th.as_tensor(part)
            if tensor is not None and tensor.is_floating_point() and not bool(th.isfinite(tensor.sum())):
                if not bool(th.isfinite(tensor).all()):
                    raise NotFiniteError(f"The {name} of the replay buffer are not finite: it is not saved.")


def look_first(callback: BaseCallback) -> CallbackList:
    """A callback that is initialised already, behind a :class:`FiniteCheck`."""
    both = CallbackList([FiniteCheck(), callback])
    both.model = both.callbacks[0].model = callback.model
    return both


class FiniteCheck(BaseCallback):
    """Stands before the user's callbacks where training runs in numpy: looks at each step before anything is made of it."""

    def _on_step(self) -> bool:
        found, n_envs = self.locals, self.training_env.num_envs
        columns = [("action", found["actions"])] if self.model.action_space.shape else []
        normalize: Any = self.model.get_vec_normalize_env()
        if normalize is not None and not _in_tensors(normalize):  # it makes NaN of infinity, in all environments
            columns += [("observation", part) for part in _parts(normalize.old_obs)] + [("reward", normalize.old_reward)]
        columns += [("observation", part) for part in _parts(found["new_obs"])]
        infos = found["infos"]
        for i in np.flatnonzero(found["dones"]) if isinstance(infos, (list, tuple)) else ():
            for part in _parts(infos[i].get("terminal_observation")):
                if isinstance(part, np.ndarray) and not is_finite(part):
                    columns.append(("final observation", np.where(np.arange(n_envs) == i, np.nan, 0.0)))
        columns = [(name, np.asarray(values)) for name, values in [*columns, ("reward", found["rewards"])]]
        if not all(is_finite(values) for _, values in columns):
            origin = first_not_finite([(name, values[None]) for name, values in columns])
            sentence = said(origin, self.num_timesteps - n_envs, n_envs)
            if sentence is not None:
                raise NotFiniteError(sentence)
        return True
