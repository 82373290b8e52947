"""Search spaces for thousands of environments: what ``-optimize`` tries with PPO, DQN and DDPG of this package.

rl_zoo3's own spaces are made for 1 to 8 environments: with 4096 they would draw rollouts of 16 million transitions and
minibatches of 4. Here every trial costs about the same: rollouts are short, minibatches large, and the number of samples
replayed for each transition is bounded, so that ``-n`` bounds the time of a trial.

Each space is a function of an Optuna trial. It names its parameters as rl_zoo3 >= 2.6 does (``n_steps_pow``,
``one_minus_gamma``, ...) and returns plain values as hyperparams/*.yml has them, whatever the version of rl_zoo3. They are
rounded to three digits, so that the best trial can be written down exactly.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, NamedTuple, Tuple

NET_ARCHS = {"32-32": [32, 32], "64-32": [64, 32], "64-64": [64, 64], "128-128": [128, 128]}
ACTIVATIONS = ["tanh", "relu", "elu"]
MIN_UPDATES = 10
"""Rollouts of a PPO trial, at least (where ``-n`` is not too small for that)."""
MIN_BATCH = 128
"""Smaller minibatches take longer, for the same number of samples, than they gain."""
WARMUP_STEPS = 40
"""Steps of the environments before DQN and DDPG learn."""


class Regime(NamedTuple):
    """What is given in a search, and bounds the space."""

    n_envs: Tuple[int, ...]
    """Numbers of environments to choose from; usually one."""
    n_timesteps: int
    """Transitions of a trial."""
    continuous: bool
    """Whether the actions are continuous."""


def _log_float(trial: Any, name: str, *, low: float, high: float) -> float:
    return float(f"{trial.suggest_float(name, low, high, log=True):.3g}")


def power_of_two(trial: Any, name: str, *, low: int, high: int) -> int:
    """A power of two from low to high; just the lowest where high is below low."""
    first, last = math.ceil(math.log2(low)), int(math.log2(max(high, low)))
    return int(2 ** trial.suggest_int(f"{name}_pow", first, max(first, last)))


def _n_envs(trial: Any, regime: Regime) -> int:
    return int(regime.n_envs[0] if len(regime.n_envs) == 1 else trial.suggest_categorical("n_envs", list(regime.n_envs)))


def _gamma(trial: Any) -> float:
    return round(1.0 - _log_float(trial, "one_minus_gamma", low=0.003, high=0.05), 6)


def sample_ppo(trial: Any, regime: Regime) -> Dict[str, Any]:
    """Horizon, minibatches, epochs, learning rate (adaptive or not), discounts, clipping, networks, first noise."""
    n_envs = _n_envs(trial, regime)
    longest = regime.n_timesteps // (MIN_UPDATES * max(regime.n_envs))
    n_steps = power_of_two(trial, "n_steps", low=8, high=min(longest, 128))
    # The bound is that of the smallest rollout: the space must be the same in every trial.
    n_minibatches = power_of_two(trial, "n_minibatches", low=1, high=min(8 * min(regime.n_envs) // MIN_BATCH, 16))
    net_arch = NET_ARCHS[trial.suggest_categorical("net_arch", list(NET_ARCHS))]
    policy_kwargs: Dict[str, Any] = {
        "net_arch": {"pi": net_arch, "vf": list(net_arch)},
        "activation_fn": trial.suggest_categorical("activation_fn", ACTIVATIONS),
    }
    if regime.continuous:
        policy_kwargs["log_std_init"] = round(trial.suggest_float("log_std_init", -1.5, 0.5), 2)
    # 0 stands for a constant learning rate.
    adaptive_lr_kl = trial.suggest_categorical("adaptive_lr_kl", [0.0, 0.005, 0.01, 0.02])
    return {
        "n_envs": n_envs,
        "n_steps": n_steps,
        "n_minibatches": n_minibatches,
        "n_epochs": trial.suggest_int("n_epochs", 2, 12),
        "learning_rate": _log_float(trial, "learning_rate", low=3e-4, high=1e-2),
        "adaptive_lr_kl": adaptive_lr_kl or None,
        "gamma": _gamma(trial),
        "gae_lambda": round(1.0 - _log_float(trial, "one_minus_gae_lambda", low=0.01, high=0.2), 6),
        "clip_range": trial.suggest_categorical("clip_range", [0.1, 0.2, 0.3]),
        "max_grad_norm": _log_float(trial, "max_grad_norm", low=0.5, high=5.0),
        "policy_kwargs": policy_kwargs,
    }


def update_schedule(replay_ratio: float, batch_size: int, n_envs: int) -> Tuple[int, int]:
    """``train_freq`` and ``gradient_steps`` that replay each transition ``replay_ratio`` times, updating as often as possible.

    >>> update_schedule(4.0, 128, 32), update_schedule(0.5, 4096, 128), update_schedule(8.0, 256, 4096)
    ((1, 1), (64, 1), (1, 128))
    """
    steps_per_update = batch_size / (replay_ratio * n_envs)
    if steps_per_update >= 1.0:
        return round(steps_per_update), 1
    return 1, round(1.0 / steps_per_update)


def _sample_off_policy(trial: Any, regime: Regime) -> Dict[str, Any]:
    """What the spaces of DQN and DDPG have in common."""
    n_envs = _n_envs(trial, regime)
    batch_size = power_of_two(trial, "batch_size", low=MIN_BATCH, high=min(regime.n_timesteps // 20, 4096))
    train_freq, gradient_steps = update_schedule(2.0 ** trial.suggest_int("replay_ratio_pow", -1, 3), batch_size, n_envs)
    net_arch = NET_ARCHS[trial.suggest_categorical("net_arch", list(NET_ARCHS))]
    learning_rate: Any = _log_float(trial, "learning_rate", low=3e-4, high=1e-2)
    if trial.suggest_categorical("lr_schedule", ["constant", "linear"]) == "linear":
        learning_rate = f"lin_{learning_rate}"  # zoo's way to write: falls to 0 at the end of training
    return {
        "n_envs": n_envs,
        "batch_size": batch_size,
        "train_freq": train_freq,
        "gradient_steps": gradient_steps,
        "learning_starts": max(batch_size, min(WARMUP_STEPS * n_envs, regime.n_timesteps // 10)),
        "buffer_size": power_of_two(trial, "buffer_size", low=max(2**14, 32 * max(regime.n_envs)), high=2**17),
        "learning_rate": learning_rate,
        "gamma": _gamma(trial),
        "n_steps": trial.suggest_int("n_steps", 1, 12),
        "tau": _log_float(trial, "tau", low=0.002, high=0.1),
        "reward_scale": _log_float(trial, "reward_scale", low=0.03, high=1.0),
        "normalize": {"norm_obs": True, "norm_reward": False}
        if trial.suggest_categorical("norm_obs", [False, True])
        else False,
        "policy_kwargs": {"net_arch": net_arch, "activation_fn": trial.suggest_categorical("activation_fn", ACTIVATIONS)},
    }


def sample_dqn(trial: Any, regime: Regime) -> Dict[str, Any]:
    """Replay ratio, learning rate, n-step returns, target update, epsilons of the environments, double Q, networks."""
    hyperparams = _sample_off_policy(trial, regime)
    highest = _log_float(trial, "epsilon_max", low=0.2, high=1.0)
    lowest = _log_float(trial, "epsilon_min", low=0.003, high=0.1)
    return {
        **hyperparams,
        "target_update_interval": hyperparams["n_envs"],  # every step of the environments: tau says how fast
        "per_env_epsilon": [highest, lowest],
        "double_q": trial.suggest_categorical("double_q", [False, True]),
    }


def sample_ddpg(trial: Any, regime: Regime) -> Dict[str, Any]:
    """Replay ratio, learning rate, n-step returns, target update, noise scales of the environments, networks."""
    hyperparams = _sample_off_policy(trial, regime)
    highest = _log_float(trial, "noise_max", low=0.2, high=2.0)
    spread = _log_float(trial, "noise_spread", low=1.0, high=50.0)
    return {**hyperparams, "per_env_noise": [highest, float(f"{highest / spread:.3g}")]}


SPACES: Dict[str, Callable[[Any, Regime], Dict[str, Any]]] = {"ppo": sample_ppo, "dqn": sample_dqn, "ddpg": sample_ddpg}

REPLACED = "batch_size exploration_fraction exploration_initial_eps exploration_final_eps noise_type noise_std".split()
"""Keys of a hyperparameter file that the spaces have other means for."""


def sample(algo: str, trial: Any, regime: Regime, *, entry: Dict[str, Any]) -> Dict[str, Any]:
    """A complete set of hyperparameters, plain values only.

    :param algo: "ppo", "dqn" or "ddpg"
    :param entry: the hyperparameter file's, from which everything comes that is not searched
    """
    sampled = SPACES[algo](trial, regime)
    kept = {key: value for key, value in entry.items() if key not in REPLACED}
    policy_kwargs = {**(kept.get("policy_kwargs") or {}), **sampled["policy_kwargs"]}
    return {**kept, **sampled, "policy_kwargs": policy_kwargs, "n_timesteps": regime.n_timesteps}
