"""Trainings that are interrupted and resumed, and what they are compared by."""

from __future__ import annotations

import csv
import sys
import warnings
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise

from sb3_isaac import DDPG, DQN, PPO, VecFrameStack, VecNormalize
from sb3_isaac.evaluation.callbacks import BatchedEvalCallback
from tests.conftest import ENV_IDS, make_env

ALGOS: Dict[str, Any] = {"ppo": PPO, "dqn": DQN, "ddpg": DDPG}
OPTIONS: Dict[str, Dict[str, Any]] = {
    "ppo": {"n_steps": 16, "batch_size": 32, "n_epochs": 2, "learning_rate": lambda left: 1e-3 * left},
    "dqn": {"buffer_size": 1000, "batch_size": 32, "learning_starts": 64, "train_freq": 4, "target_update_interval": 48,
            "learning_rate": lambda left: 1e-3 * left, "exploration_fraction": 0.9, "n_steps": 3},
    "ddpg": {"buffer_size": 1000, "batch_size": 32, "learning_starts": 64, "train_freq": 4, "n_steps": 2},
}  # fmt: skip
TOTAL = {"ppo": 16 * 8 * 7, "dqn": 1600, "ddpg": 1600}


class Ask(BaseCallback):
    """Saves a checkpoint when so many timesteps are done, and draws random numbers as callbacks of users do."""

    def __init__(self, path: Optional[Path], after: int, draws: bool = True) -> None:
        super().__init__()
        self.draws = draws
        self.path, self.after = path, after
        self.seen: List[float] = []

    def _on_step(self) -> bool:
        if self.draws:
            self.seen.append(float(np.random.rand() + th.rand(()).item()))
        if self.path is not None and self.num_timesteps == self.after:
            self.model.save_checkpoint(self.path)
        return True


def vec_env(algo: str, wrapped: str = "", seed: int = 1, n_envs: int = 8, evaluates: bool = False) -> Any:
    env = make_env(ENV_IDS[algo], n_envs, seed=seed, max_episode_length=40)
    if "stacked" in wrapped:
        env = VecFrameStack(env, 2)
    if "normalized" in wrapped:
        env = VecNormalize(env, training=not evaluates, norm_reward=not evaluates)
    return env


def make(algo: str, wrapped: str = "", env: Any = None, **options: Any) -> Any:
    options = {**OPTIONS[algo], "policy_kwargs": {"net_arch": [16]}, "seed": 0, "device": "cpu", **options}
    if algo == "ddpg":
        options.setdefault("action_noise", OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.3 * np.ones(1)))
    return ALGOS[algo]("MlpPolicy", vec_env(algo, wrapped) if env is None else env, **options)


def callbacks(algo: str, wrapped: str, folder: Path, after: int, ask: bool) -> List[BaseCallback]:
    evaluation: EvalCallback = BatchedEvalCallback(
        vec_env(algo, wrapped, seed=5, n_envs=4, evaluates=True), eval_freq=37, n_eval_episodes=8, log_path=str(folder),
        deterministic=False, verbose=0,
    )  # fmt: skip
    return [Ask(folder / "saved" if ask else None, after), evaluation]


def learn(model: Any, algo: str, wrapped: str, folder: Path, after: int, ask: bool, *args: Any, **kwargs: Any) -> Any:
    """Train, with a log in ``folder``. Returns the callbacks."""
    model.set_logger(configure(str(folder), ["csv"]))
    used = callbacks(algo, wrapped, folder, after, ask)
    model.learn(*args, callback=used, **kwargs)
    model.logger.close()
    return used


def rows(folder: Path, after: int) -> List[Dict[str, str]]:
    """What was logged after so many timesteps, without times."""
    with open(folder / "progress.csv") as file:
        table = list(csv.DictReader(file))
    kept = [row for row in table if int(row["time/total_timesteps"]) > after]
    timed = ("time/fps", "time/time_elapsed", "time/rollout", "time/env", "time/update")
    return [{key: value for key, value in row.items() if key not in timed and value != ""} for row in kept]


def everything(model: Any) -> Dict[str, Any]:
    """What two trainings that are the same have in common."""
    found: Dict[str, Any] = {"timesteps": model.num_timesteps, "updates": model._n_updates, "obs": model._last_obs}
    for name, parameters in model.get_parameters().items():
        for key, value in parameters.items():
            if isinstance(value, th.Tensor):
                found[f"{name}.{key}"] = value
            elif key == "state":
                found.update({f"{name}.{i}.{k}": v for i, entry in value.items() for k, v in entry.items()})
            elif key == "param_groups":
                found[f"{name}.lr"] = [group["lr"] for group in value]
    found["episodes"] = [(info["r"], info["l"]) for info in model.ep_info_buffer]
    found["random"] = th.get_rng_state()
    found["numpy"] = np.random.get_state()[1]
    simulator = model.env.unwrapped.tensor_env
    found.update({f"env.{key}": value for key, value in simulator.get_state().items()})
    found["returns"] = model.env.unwrapped.episode_returns
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        found.update(mean=normalize.obs_rms.mean, var=normalize.ret_rms.var, running=normalize.returns.copy())
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        found.update(rows=buffer._storage, pos=buffer.pos, full=buffer.full)
    return found


def differences(one: Dict[str, Any], other: Dict[str, Any]) -> List[str]:
    """The names of what is not the same to the last bit."""
    assert set(one) == set(other)

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, (th.Tensor, np.ndarray)):
            return bool(np.array_equal(np.asarray(a), np.asarray(b)))
        return bool(a == b)

    return [name for name in one if not same(one[name], other[name])]


def main(algo: str, wrapped: str, folder: str, after: int) -> None:
    """In a fresh process: resume the checkpoint of ``folder``, train to the end, write down what came of it."""
    path = Path(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = ALGOS[algo].resume(path / "saved", vec_env(algo, wrapped, seed=99), device="cpu")
    learn(model, algo, wrapped, path / "resumed", after, False)
    th.save(everything(model), path / "resumed.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
