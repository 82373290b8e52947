"""Unbiased evaluation on many environments at once, in tensors where the environment offers them."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, Union

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecNormalize
from stable_baselines3.dqn.dqn import DQN  # not stable_baselines3.DQN, into whose place a program may put ours
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.td3.policies import TD3Policy
from tqdm import tqdm  # type: ignore[import-untyped]

from sb3_isaac.ddpg.fast_policy import FastTD3Policy
from sb3_isaac.device import threads
from sb3_isaac.device.fast_mlp import FastMLP, Layers, parse_layers
from sb3_isaac.dqn.fast_policy import FastDQNPolicy
from sb3_isaac.envs.last_finite import check_parameters
from sb3_isaac.envs.model_files import warn_without_statistics
from sb3_isaac.envs.tensor_path import TensorVecEnv, bounds_of, scale_actions, supports_tensors
from sb3_isaac.off_policy.algorithm import TensorOffPolicyAlgorithm
from sb3_isaac.ppo.fast_policy import FastActorCriticPolicy
from sb3_isaac.ppo.ppo import PPO
from sb3_isaac.settings.check import check_one
from sb3_isaac.settings.table import COUNT

PATIENCE = 2
"""How many times as many steps as the time limit allows are waited for the end of an episode"""
TensorPolicy = Callable[[th.Tensor], th.Tensor]


@dataclass(frozen=True)
class EvaluationResult:
    """What :func:`evaluate` measured, one entry per episode, in the order in which the episodes ended.

    Printed, it is one line with the numbers that matter.
    """

    returns: np.ndarray
    """(n_episodes,) float64, undiscounted and unnormalised."""
    lengths: np.ndarray
    """(n_episodes,) int64, in steps."""
    truncated: np.ndarray
    """(n_episodes,) bool: which episodes ended by the time limit. The others failed (or ended as the task says)."""
    seconds: float
    """Wall-clock time of the evaluation."""

    @property
    def n_episodes(self) -> int:
        return len(self.returns)

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Standard deviation of the returns (of the episodes, not of the mean), as SB3's ``evaluate_policy`` has it."""
        return float(self.returns.std())

    @property
    def mean_length(self) -> float:
        return float(self.lengths.mean())

    @property
    def time_outs(self) -> int:
        """How many episodes reached the time limit."""
        return int(self.truncated.sum())

    @property
    def failures(self) -> int:
        """How many episodes ended before the time limit."""
        return self.n_episodes - self.time_outs

    @property
    def confidence_interval(self) -> Tuple[float, float]:
        """95% interval of the mean return, see :func:`bootstrap_interval`."""
        low, high = bootstrap_interval(self.returns)
        return float(low), float(high)

    def __str__(self) -> str:
        low, high = self.confidence_interval
        return (
            f"mean return {self.mean:.2f} +/- {self.std:.2f} (95% interval of the mean {low:.2f} to {high:.2f}), "
            f"mean length {self.mean_length:.1f}, {self.failures} failures and {self.time_outs} time-outs "
            f"in {self.n_episodes} episodes, {self.seconds:.2f} s"
        )


def bootstrap_interval(values: np.ndarray, level: float = 0.95, n_resamples: int = 1000) -> Tuple[Any, Any]:
    """Percentile bootstrap interval of the mean of independent values; the same values always give the same interval.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    :param values: (n,), or (n, m) for the means of m columns
    :return: lower and upper end, a number or (m,)
    """
    rng = np.random.default_rng(0)
    means = [values[rng.integers(len(values), size=len(values))].mean(axis=0) for _ in range(n_resamples)]
    return tuple(np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0))


def evaluate(
    model: Any,
    env: Union[VecEnv, gym.Env],  # type: ignore[type-arg]
    n_episodes: int = 100,
    deterministic: bool = True,
    progress_bar: bool = False,
) -> EvaluationResult:
    """Play ``n_episodes`` episodes and measure their returns. Agrees with SB3's ``evaluate_policy``, episode by episode.

    How many episodes each environment plays is fixed before the first step, so that short episodes do not count more than
    long ones. As in SB3, ``n_episodes`` that the environments do not divide evenly are played by the last ones: 10 episodes on
    4 environments are 2, 2, 3, 3. So it is fastest with as many environments as episodes.

    An environment that supports tensors is stepped on its device; any other goes through SB3's ``evaluate_policy``. The model
    is not changed: the policy's training mode comes back as it was, and running statistics (``VecNormalize``) stand still.
    The environment is reset at the start, and stands somewhere in an episode afterwards.

    :param model: an SB3 model (stock or ours), or anything else with SB3's ``predict``
    :param env: any SB3 VecEnv or single Gymnasium environment
    :param n_episodes: how many episodes, exactly
    :param deterministic: whether the policy's most likely action is taken; otherwise it acts as in training (DQN: with its
        present exploration rate, tossed per environment)
    :param progress_bar: show the episodes played, with rate and time left
    :raises NotFiniteError: the model's parameters are not finite, or (on a CPU) what the environment returns
    :raises RuntimeError: episodes go on for twice the task's ``max_episode_length``: they would do so for ever
    :raises TypeError: no model
    :raises ValueError: n_episodes below 1, or the model was trained for other observations or actions
    """
    check_one("n_episodes", n_episodes, COUNT)
    if not hasattr(model, "predict"):
        raise TypeError(f"evaluate takes a model, such as sb3_isaac.load('cartpole') gives, got {model!r}.")
    if not isinstance(env, VecEnv):
        single = env
        env = DummyVecEnv([lambda: single])
    check_spaces(model, env)
    warn_without_statistics(model, env)
    start = time.perf_counter()
    if isinstance(model, BaseAlgorithm):
        check_parameters(model, "there is nothing to evaluate, load another model.")
    policy = tensor_policy(model, deterministic)
    bar = tqdm(total=n_episodes, unit="episode", disable=not progress_bar, leave=False)
    n_threads = th.get_num_threads()
    if isinstance(model, BaseAlgorithm):
        n_threads = threads.choose(model.policy, env.num_envs, model.device)
    with _left_as_it_was(model, env), threads.torch_threads(n_threads), bar:
        if policy is not None and supports_tensors(env):
            episodes = _play_in_tensors(policy, env, n_episodes=n_episodes, bar=bar)
        else:
            episodes = _play_in_numpy(model, env, n_episodes=n_episodes, deterministic=deterministic, bar=bar)
    return EvaluationResult(*episodes, seconds=time.perf_counter() - start)


def check_spaces(model: Any, env: VecEnv) -> None:
    """Whether the model can act in the environment.

    :raises ValueError: if not
    """
    bare = env
    while isinstance(bare, VecNormalize):  # one that was loaded from a file reports the action space of training
        bare = bare.venv
    for kind, given in (("action", bare.action_space), ("observation", env.observation_space)):
        trained = getattr(model, f"{kind}_space", None)
        needed, found = ((type(space), getattr(space, "shape", None), getattr(space, "n", None)) for space in (trained, given))
        if trained is not None and needed != found:
            raise ValueError(
                f"The model was trained for {kind}s {trained}, but this environment has {given}: "
                f"choose the environment id (and its n_bins) that the model was trained on."
            )


def tensor_policy(model: Any, deterministic: bool = True) -> Optional[TensorPolicy]:
    """What ``model.predict`` does, from observation tensor to action tensor, on the model's device.

    :return: None for models whose ``predict`` is not SB3's own (recurrent ones, for example)
    """
    if not isinstance(model, BaseAlgorithm) or type(model.policy).predict is not BasePolicy.predict:
        return None
    known = (BaseAlgorithm.predict, PPO.predict, TensorOffPolicyAlgorithm.predict)
    if type(model).predict not in known and not isinstance(model, DQN):
        return None
    policy, action_space, device = model.policy, model.action_space, model.device
    epsilon = float(model.exploration_rate) if isinstance(model, DQN) and not deterministic else 0.0
    bounds = bounds_of(action_space, device)
    plain = _plain_network(policy) if deterministic else None
    fast: Optional[FastMLP] = None

    @th.no_grad()
    def act(obs: th.Tensor) -> th.Tensor:
        nonlocal fast
        if plain is None:
            actions = policy._predict(obs.to(device), deterministic=deterministic)
        else:
            if fast is None:
                fast = FastMLP(plain, len(obs))
            actions = fast.forward(obs.to(device).flatten(1))
            actions = actions if isinstance(action_space, spaces.Box) else actions.argmax(1)
        if bounds is not None:
            # A squashed action lies in [-1, 1] and is scaled to the space; any other is clipped to it.
            return scale_actions(actions, bounds) if policy.squash_output else actions.clamp(*bounds)
        if epsilon > 0.0:
            random = th.randint(int(action_space.n), actions.shape, device=device)  # type: ignore[attr-defined]
            actions = th.where(th.rand(actions.shape, device=device) < epsilon, random, actions)
        return actions

    return act


def _plain_network(policy: Any) -> Optional[Layers]:
    """The network that makes deterministic actions, if it is SB3's own of plain layers."""
    modules: Optional[Tuple[Any, ...]] = None
    if type(policy) is ActorCriticPolicy and FastActorCriticPolicy.why_not(policy, trains=False) is None:
        modules = policy.mlp_extractor.policy_net, policy.action_net
    elif type(policy) is DQNPolicy and FastDQNPolicy.why_not(policy) is None:
        modules = (policy.q_net.q_net,)
    elif type(policy) is TD3Policy and FastTD3Policy.why_not(policy) is None:
        modules = (policy.actor.mu,)
    return None if modules is None else parse_layers(modules)


Episodes = Tuple[np.ndarray, np.ndarray, np.ndarray]


@th.no_grad()
def _play_in_tensors(policy: TensorPolicy, env: TensorVecEnv, *, n_episodes: int, bar: tqdm) -> Episodes:
    n_envs, device = env.num_envs, env.device
    # SB3's division of the episodes. Environment i writes its k-th episode to row first[i] + k; what does not count goes to
    # one row more, so that every step does the same work without asking which environments are done.
    targets = th.tensor([(n_episodes + i) // n_envs for i in range(n_envs)], device=device)
    first = targets.cumsum(0) - targets
    played = th.zeros_like(targets)
    episodes = th.zeros(n_episodes + 1, 4, dtype=th.float64, device=device)
    # Asking which are done waits for the device: on a GPU it is done rarely. On a CPU it saves noting that none is.
    check_every = 1 if device.type == "cpu" else 50
    obs, step = env.reset_tensor(), 0
    longest = getattr(env.tensor_env, "max_episode_length", math.inf)
    last_step = PATIENCE * (longest + 1) * int(targets.max())
    while step <= last_step:
        result = env.step_tensor(policy(obs).to(device))
        obs, step = result.obs, step + 1
        if check_every == 1 and not env.dones.any():
            continue
        counts = (result.terminated | result.truncated) & (played < targets)
        columns = (env.episode_returns, env.episode_lengths, result.truncated, th.full_like(env.episode_returns, step))
        rows = th.where(counts, first + played, n_episodes)
        episodes.index_copy_(0, rows, th.stack([column.double() for column in columns], dim=1))
        played += counts
        if step % check_every == 0:
            total = int(played.sum())
            bar.update(total - bar.n)
            if total == n_episodes:
                break
    total = int(played.sum())
    if total < n_episodes:
        raise RuntimeError(
            f"{total} of {n_episodes} episodes have ended in {step:,} steps, but max_episode_length is {longest}: "
            f"the step of {type(env.tensor_env).__name__} must set truncated then."
        )
    table = episodes[:-1].cpu().numpy()
    table = table[np.argsort(table[:, 3], kind="stable")]
    return table[:, 0], table[:, 1].astype(np.int64), table[:, 2].astype(bool)


def _play_in_numpy(model: Any, env: VecEnv, *, n_episodes: int, deterministic: bool, bar: tqdm) -> Episodes:
    truncated: List[bool] = []

    def note_ends(locals_: Dict[str, Any], globals_: Dict[str, Any]) -> None:
        info = locals_["info"]
        if locals_["done"] and ("episode" in info or not locals_["is_monitor_wrapped"]):
            truncated.append(bool(info.get("TimeLimit.truncated", False)))
            bar.update(1)

    returns, lengths = evaluate_policy(
        model, env, n_episodes, deterministic, callback=note_ends, return_episode_rewards=True, warn=False
    )
    return np.array(returns, dtype=np.float64), np.array(lengths, dtype=np.int64), np.array(truncated)


@contextlib.contextmanager
def _left_as_it_was(model: Any, env: VecEnv) -> Iterator[None]:
    """Policy in evaluation mode and wrappers' running statistics frozen, both as before afterwards."""
    policy = getattr(model, "policy", None)
    modules = {module: module.training for module in policy.modules()} if isinstance(policy, th.nn.Module) else {}
    wrappers: List[Tuple[Any, bool]] = []
    wrapper: Any = env
    while isinstance(wrapper, VecEnvWrapper):
        if "training" in vars(wrapper):
            wrappers.append((wrapper, vars(wrapper)["training"]))
        wrapper = wrapper.venv
    for wrapper, _ in wrappers:
        wrapper.training = False
    if isinstance(policy, BasePolicy):
        policy.set_training_mode(False)
    try:
        yield
    finally:
        for owner, training in [*modules.items(), *wrappers]:
            owner.training = training
