"""One model trained by several processes: what its ranks agree on besides gradients. docs/howto/torchrun.md: the user's side.

Alone (see ``device/ranks.py``) everything here does nothing.
"""

from __future__ import annotations

import contextlib
from typing import Any, Dict, Iterator, NamedTuple, Tuple

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    ProgressBarCallback,
)
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import unwrap_vec_normalize
from torch.nn.modules.batchnorm import _BatchNorm

from sb3_isaac.device import ranks

SAME = (
    "n_envs n_steps batch_size n_epochs train_freq gradient_steps learning_starts target_update_interval policy_delay "
    "normalize_advantage target_kl adaptive_lr_kl double_q num_timesteps"
).split()
"""Attributes of models that decide when ranks talk to each other, or that all of them count by"""


class Said(NamedTuple):
    """What a rank tells the others."""

    returns: np.ndarray
    lengths: np.ndarray
    losses: Dict[str, float]
    stops: bool
    """A callback has ended training"""
    ends: bool
    """A signal has"""


class DataParallel:
    """What a model keeps of its training with others. Never saved."""

    def __init__(self) -> None:
        self._alone = True
        """Asked once in a training, not in each step"""
        self._stop = False
        """Whether a callback of this rank has ended training, which the others hear at the next :meth:`exchange`"""
        self.stops = False
        """Whether one of any rank has: agreed"""

    @contextlib.contextmanager
    def learning(self, model: Any, arguments: Dict[str, Any]) -> Iterator[None]:
        """Around ``learn``. All ranks must call it: they meet here, and begin with the parameters of the first.

        :param arguments: of ``learn``; those of other ranks than the first are silenced
        :raises ValueError: the training cannot be shared out, or the ranks would train different models
        :raises RankLost: another rank has died, or has ended because of an error
        """
        self._stop = self.stops = False
        self._alone = ranks.world_size() == 1 or model.env is None
        if self._alone:
            yield
            return
        ranks.join()
        try:
            self._begin(model, arguments)
            yield
        except KeyboardInterrupt as error:
            if not model._checkpoints.ends:  # agreed: the others end as well
                ranks.leave(error)
            raise
        except BaseException as error:
            ranks.leave(error)
            raise

    def _begin(self, model: Any, arguments: Dict[str, Any]) -> None:
        why_not = model._why_not_tensors()
        if why_not is not None:
            raise ValueError(f"Several ranks train in tensors only, start one process: {why_not}")
        if any(isinstance(module, _BatchNorm) for module in model.policy.modules()):
            raise ValueError(
                "BatchNorm normalises by the minibatch of one rank, which is not what one process would do: use LayerNorm, or "
                "start one process."
            )
        settings = {name: getattr(model, name) for name in SAME if hasattr(model, name)}
        settings.update(algorithm=type(model).__name__, total_timesteps=arguments.get("total_timesteps"))
        settings["the number of parameters"] = sum(parameter.numel() for parameter in model.policy.parameters())
        settings["the device"] = model.device.type
        ranks.check_alike(settings)
        ranks.meet_on(model.device)
        if model.seed is None:
            ranks.seed_apart()
        if ranks.rank() > 0:
            model.verbose = 0
            model.set_logger(Logger(None, []))
            arguments["progress_bar"] = False
        parameters, lr = ranks.from_first((_on_cpu(model.get_parameters()), getattr(model, "adapted_lr", None)))
        if ranks.rank() > 0:
            model.set_parameters(parameters, exact_match=True, device=model.device)
            if lr is not None:
                model.adapted_lr = lr
        normalize: Any = unwrap_vec_normalize(model.env)
        if normalize is not None:
            normalize.share()

    def on_step(self, callback: BaseCallback) -> bool:
        """Call a callback. Where ranks train together they stop together, at the next :meth:`exchange`."""
        if self._alone:
            return callback.on_step()
        self._stop = self._stop or not callback.on_step()
        return True

    def exchange(
        self, model: Any, returns: np.ndarray, lengths: np.ndarray, losses: Dict[str, float]
    ) -> Tuple[np.ndarray, np.ndarray, Dict[str, float]]:
        """Tell the others what has happened. All ranks must call it. Sets :attr:`stops`.

        :param returns: (episodes,) of this rank, likewise ``lengths``
        :param losses: by name, the same names on all ranks
        :return: the episodes of all ranks, and the means of the losses
        """
        if ranks.world_size() == 1:
            return returns, lengths, losses
        found = ranks.gather(Said(returns, lengths, losses, self._stop, model._checkpoints.wants_to_end))
        self.stops = any(said.stops for said in found)
        if any(said.ends for said in found):
            model._checkpoints.ends = True
        means = {name: float(np.mean([said.losses[name] for said in found])) for name in losses}
        return np.concatenate([said.returns for said in found]), np.concatenate([said.lengths for said in found]), means

    @staticmethod
    def merge_statistics(model: Any) -> None:
        """Let the statistics of VecNormalize know what all ranks have seen. All ranks must call it."""
        normalize: Any = unwrap_vec_normalize(model.env) if ranks.world_size() > 1 else None
        if normalize is not None:
            normalize.merge()


def callback_of_rank(callback: Any) -> Any:
    """What of the user's callbacks is called on this rank: on others than the first nothing that evaluates, saves as SB3 does
    or shows progress. What is the user's own is called on each."""
    if ranks.rank() == 0:
        return callback
    if isinstance(callback, (list, tuple)):
        return [callback_of_rank(one) for one in callback]
    if type(callback) is CallbackList:
        return CallbackList([callback_of_rank(one) for one in callback.callbacks])
    alone = isinstance(callback, (EvalCallback, ProgressBarCallback))
    alone = alone or isinstance(callback, CheckpointCallback) and not getattr(callback, "on_all_ranks", False)
    return CallbackList([]) if alone else callback


def _on_cpu(state: Any) -> Any:
    """A copy of nested dicts and lists with all tensors on the CPU."""
    if isinstance(state, dict):
        return {key: _on_cpu(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_on_cpu(value) for value in state)
    return state.detach().cpu() if isinstance(state, th.Tensor) else state
