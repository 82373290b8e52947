"""Exploration on the device: one coin and one noise per environment, without a host synchronisation."""

from __future__ import annotations

import math
from typing import Any, List, Optional, Sequence, Union

import numpy as np
import torch as th
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)

from sb3_isaac.device.host import to_host


def spread(name: str, ends: Sequence[float], n_envs: int, device: th.device, most: float = math.inf) -> th.Tensor:
    """Values for N environments in geometric progression between two ends: some explore much, some hardly at all.

    Sources: Ape-X (https://arxiv.org/abs/1803.00933) for epsilon, PQL (https://arxiv.org/abs/2307.12983) for noise.

    :param name: what is spread, for the error message
    :param ends: value of the first and of the last environment, both in (0, most]
    :return: (N,) float32; for a single environment the geometric mean of the ends
    :raises ValueError: if ``ends`` are not two numbers in that range
    """
    try:
        first, last = (float(end) for end in ends)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be two numbers (first and last environment), got {ends!r}.") from None
    if not (0.0 < first <= most and 0.0 < last <= most) or math.isinf(first + last):
        limit = "" if math.isinf(most) else f" and at most {most:g}"
        raise ValueError(f"{name} must be two numbers greater than 0{limit}, got {ends!r}.")
    if n_envs == 1:
        return th.full((1,), math.sqrt(first * last), device=device)
    exponents = th.linspace(math.log(first), math.log(last), n_envs, dtype=th.float64)
    return exponents.exp().to(device=device, dtype=th.float32)


class EpsilonGreedy:
    """Epsilon-greedy exploration of N environments, with a coin for each.

    :param n_actions: number of discrete actions
    :param epsilon: a number, or (N,) float32 with one for each environment
    :param device: where the actions are
    :param on_device: keep a number in a tensor, where a CUDA graph reads it; elsewhere a number is faster
    """

    def __init__(self, n_actions: int, epsilon: Union[float, th.Tensor], device: th.device, on_device: bool = False) -> None:
        self.n_actions = n_actions
        self.mean = float(epsilon.mean()) if isinstance(epsilon, th.Tensor) else epsilon
        """The mean of all environments"""
        self.epsilon: Any = th.full((1,), self.mean, device=device) if on_device else epsilon
        self._device = device

    def set(self, epsilon: float) -> None:
        """Explore with another probability, the same for all environments."""
        if epsilon == self.mean:
            return
        self.mean = epsilon
        if isinstance(self.epsilon, th.Tensor):
            self.epsilon.fill_(epsilon)
        else:
            self.epsilon = epsilon

    def keep_kind(self, epsilon: Union[float, th.Tensor]) -> None:
        """Hold the probability as ``epsilon`` did before a checkpoint, perhaps of another device, was put in: a tensor that a
        CUDA graph reads stays that tensor."""
        self.epsilon = epsilon.fill_(self.mean) if isinstance(epsilon, th.Tensor) else self.mean

    def random_actions(self, n: int) -> th.Tensor:
        """(n,) int64, uniform."""
        return th.randint(self.n_actions, (n,), device=self._device)

    def explore(self, greedy: th.Tensor) -> th.Tensor:
        """Greedy actions (N,) int64, each replaced by a random one with probability epsilon."""
        # --8<-- [start:epsilon]
        explore = th.rand(greedy.shape, device=greedy.device) < self.epsilon
        return th.where(explore, self.random_actions(len(greedy)), greedy)
        # --8<-- [end:epsilon]


def noise_settings(noise: Optional[ActionNoise]) -> Any:
    """What a noise draws from, to be compared: callbacks anneal SB3's noises by writing into them."""
    if isinstance(noise, VectorizedActionNoise):
        return id(noise), [noise_settings(one) for one in noise.noises]
    mean, sigma = getattr(noise, "_mu", None), getattr(noise, "_sigma", None)
    more = (getattr(noise, "_theta", None), getattr(noise, "_dt", None))
    return id(noise), np.asarray(mean, dtype=object).tolist(), np.asarray(sigma, dtype=object).tolist(), more


class HostNoise:
    """Any other noise of SB3's interface, drawn in numpy as in SB3: an object for each environment.

    :param noise: an ActionNoise
    :param n_envs: N
    :param device: where the actions are
    """

    capturable = False

    def __init__(self, noise: ActionNoise, n_envs: int, device: th.device) -> None:
        vectorized = isinstance(noise, VectorizedActionNoise) or n_envs == 1
        self.noise = noise if vectorized else VectorizedActionNoise(noise, n_envs)
        self._device = device

    def add_to(self, actions: th.Tensor) -> th.Tensor:
        """``actions`` (N, A) in [-1, 1] plus the next noise, clipped to [-1, 1]."""
        noise = np.asarray(self.noise(), dtype=np.float32).reshape(actions.shape)
        return (actions + th.as_tensor(noise, device=self._device)).clamp_(-1.0, 1.0)

    def reset(self, dones: th.Tensor) -> None:
        """Tell the noises whose episodes have ended, ``dones`` (N,) bool."""
        ended = np.flatnonzero(to_host(dones)).tolist()
        if len(ended) > 0:
            self.noise.reset(ended) if isinstance(self.noise, VectorizedActionNoise) else self.noise.reset()


class DeviceNoise:
    """SB3's Gaussian or Ornstein-Uhlenbeck noise for N environments at once, in tensors.

    Equal in distribution to SB3's ``VectorizedActionNoise``: independent for each environment, and an
    Ornstein-Uhlenbeck process starts anew with the episode.

    :param noise: SB3's NormalActionNoise, OrnsteinUhlenbeckActionNoise or VectorizedActionNoise of these; None: Gaussian
        with standard deviation 1, for use with ``scale``
    :param n_envs: N
    :param action_dim: A
    :param scale: (N,) factors, one for each environment; None: 1
    :param shared: one draw for all environments. Its process then belongs to no episode and goes on when one ends.
    :raises ValueError: for another kind of noise, or one of a wrong size
    """

    def __init__(
        self,
        noise: Optional[ActionNoise],
        n_envs: int,
        action_dim: int,
        device: th.device,
        scale: Optional[th.Tensor] = None,
        shared: bool = False,
    ) -> None:
        self.shared = shared
        self._shape = (1 if shared else n_envs, action_dim)
        self._device = device
        noises: List[Any] = [noise] if noise is not None else [NormalActionNoise(np.zeros(action_dim), np.ones(action_dim))]
        if isinstance(noise, VectorizedActionNoise):
            noises = list(noise.noises)
        if len(noises) not in (1, n_envs):
            raise ValueError(f"action_noise was made for {len(noises)} environments, the training has {n_envs}.")
        if not self.supports(noise):
            raise ValueError(
                f"action_noise of type {type(noises[0]).__name__} cannot be scaled or shared: use SB3's NormalActionNoise or "
                "OrnsteinUhlenbeckActionNoise, or leave per_env_noise and shared_noise out."
            )
        kind = type(noises[0])

        def per_env(values: List[Any]) -> th.Tensor:
            """(N, A), scaled: the noise is linear in its mean, its scale and its start."""
            rows = [np.broadcast_to(np.asarray(value, dtype=np.float64), (action_dim,)) for value in values]
            table = th.as_tensor(np.broadcast_to(np.stack(rows), (n_envs, action_dim)).copy(), dtype=th.float32, device=device)
            return table if scale is None else table * scale.view(-1, 1)

        self._mean = per_env([one._mu for one in noises])
        self._sigma = per_env([one._sigma for one in noises])
        self._pull: Optional[float] = None  # how much of the way to the mean an OU process goes in a step
        if kind is OrnsteinUhlenbeckActionNoise:
            theta, dt = noises[0]._theta, noises[0]._dt
            if any(one._theta != theta or one._dt != dt for one in noises):
                raise ValueError("action_noise: theta and dt must be the same for all environments.")
            self._pull = float(theta * dt)
            self._sigma = self._sigma * math.sqrt(dt)
            self._start = per_env([np.zeros(action_dim) if one.initial_noise is None else one.initial_noise for one in noises])
            self._state = self._start.clone()

    @staticmethod
    def supports(noise: Optional[ActionNoise]) -> bool:
        """Whether ``noise`` is SB3's Gaussian or Ornstein-Uhlenbeck noise, for one environment or for each of several."""
        kinds = {type(one) for one in (noise.noises if isinstance(noise, VectorizedActionNoise) else [noise])}
        return len(kinds) == 1 and kinds <= {type(None), NormalActionNoise, OrnsteinUhlenbeckActionNoise}

    def become(self, other: DeviceNoise) -> bool:
        """Go on with the numbers of another noise, in the same tensors, which a CUDA graph reads. False: another kind."""
        if (self._pull is None) != (other._pull is None) or self._shape != other._shape:
            return False
        self._mean.copy_(other._mean)
        self._sigma.copy_(other._sigma)
        if self._pull is not None:
            self._start.copy_(other._start)
        return True

    def add_to(self, actions: th.Tensor) -> th.Tensor:
        """``actions`` (N, A) in [-1, 1] plus the next noise, clipped to [-1, 1]."""
        # --8<-- [start:noise]
        draw = th.randn(self._shape, device=self._device)
        if self._pull is None:
            return th.addcmul(actions + self._mean, self._sigma, draw).clamp_(-1.0, 1.0)
        self._state.lerp_(self._mean, self._pull).addcmul_(self._sigma, draw)
        return (actions + self._state).clamp_(-1.0, 1.0)
        # --8<-- [end:noise]

    def reset(self, dones: Optional[th.Tensor] = None) -> None:
        """Start the process anew where ``dones`` (N,) bool says so; None: everywhere."""
        if self._pull is None:
            return
        if dones is None:
            self._state.copy_(self._start)
        elif not self.shared:
            self._state.copy_(th.where(dones.unsqueeze(-1), self._start, self._state))
