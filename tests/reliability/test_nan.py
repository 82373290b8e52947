"""NaN and infinity, put in where they come in: training ends and says where they began, and no file has any of it."""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any, Dict, List, Optional

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_isaac import DDPG, DQN, PPO, StepResult, TensorEnv, VecNormalize, evaluate
from sb3_isaac.buffers import DeviceReplayBuffer
from sb3_isaac.envs.last_finite import merged
from sb3_isaac.envs.vec_env import IsaacVecEnv
from sb3_isaac.evaluation.callbacks import BatchedEvalCallback

N_ENVS = 4
FIRST_BAD_STEP, BAD_ENV = 75, 2
"""Where the environments begin to go wrong: in the fifth rollout of PPO, and when DQN and DDPG have trained a while."""
KINDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
ALGORITHMS: Dict[str, Any] = {"ppo": PPO, "dqn": DQN, "ddpg": DDPG}
SETTINGS: Dict[str, Dict[str, Any]] = {
    "ppo": {"n_steps": 16, "batch_size": 32, "n_epochs": 2},
    "dqn": {"learning_starts": 40, "train_freq": 2, "batch_size": 16, "buffer_size": 2000, "target_update_interval": 40},
    "ddpg": {"learning_starts": 40, "train_freq": 2, "batch_size": 16, "buffer_size": 2000},
}


class Faulty(TensorEnv):
    """A walk on a line, one of whose environments gives ``value`` in the place of an observation or reward from a step on.

    :param place: "observation", "final observation" (of an episode whose reset repairs it), "reward", "reset" or "" (nowhere)
    """

    obs_dim, action_dim, max_episode_length = 3, 1, 30

    def __init__(self, n_envs: int, device: th.device, seed: int, place: str = "", value: float = math.nan) -> None:
        self.n_envs, self.device, self.place, self.value = n_envs, device, place, value
        self.progress = th.zeros(n_envs, dtype=th.int64)
        self.generator = th.Generator().manual_seed(seed)
        self.n_steps = 0

    def seed(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    def reset(self) -> th.Tensor:
        self.progress.zero_()
        self.state = th.randn(self.n_envs, 3, generator=self.generator)
        if self.place == "reset":
            self.state[BAD_ENV, 1] = self.value
        return self.state.clone()

    def step(self, actions: th.Tensor) -> StepResult:
        self.n_steps += 1
        self.progress += 1
        bad = self.n_steps >= FIRST_BAD_STEP
        self.state = 0.9 * self.state + 0.1 * actions
        reward = -self.state.square().sum(1)
        if bad and self.place == "reward":
            reward[BAD_ENV] = self.value
        truncated = self.progress >= self.max_episode_length
        final = self.state.clone()
        if bad and self.place == "observation":
            final[BAD_ENV, 1] = self.value
        if bad and self.place == "final observation":
            truncated[BAD_ENV] = True
            final[BAD_ENV, 1] = self.value
        fresh = th.randn(self.n_envs, 3, generator=self.generator)
        obs = th.where(truncated.unsqueeze(1), fresh, final)
        self.state = th.where(truncated.unsqueeze(1), fresh, self.state)
        self.progress.masked_fill_(truncated, 0)
        return StepResult(obs, reward, th.zeros_like(truncated), truncated, final)


class FaultyGym(gym.Env):
    """The same as one environment of Gymnasium."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)

    def __init__(self, action_space: spaces.Space, place: str = "", value: float = math.nan) -> None:
        self.action_space, self.discrete = action_space, isinstance(action_space, spaces.Discrete)
        self.task = Faulty(N_ENVS, th.device("cpu"), 0, place, value)

    def reset(self, *, seed: Optional[int] = None, options: Any = None) -> Any:
        return self.task.reset()[BAD_ENV].numpy(), {}

    def step(self, action: Any) -> Any:
        action = float(action) - 1.0 if self.discrete else float(action[0])
        result = self.task.step(th.full((N_ENVS, 1), action))
        row = [x[BAD_ENV] for x in result]
        return row[4].numpy(), float(row[1]), False, bool(row[3]), {}


def make_env(algo: str, normalized: bool, kind: str, place: str = "", value: float = math.nan) -> Any:
    """:param kind: "tensors", "gpu" (as on a GPU, where nobody looks at each step), or "single" (a list of environments)"""
    if algo == "dqn":
        space: spaces.Space = spaces.Discrete(3)
    else:
        space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    if kind == "single":
        env: Any = DummyVecEnv([lambda i=i: FaultyGym(space, place if i == 1 else "", value) for i in range(2)])
    else:
        env = IsaacVecEnv(Faulty(N_ENVS, th.device("cpu"), 0, place, value), action_space=space)
        env._looks_at_steps = kind != "gpu"
    return VecNormalize(env) if normalized else env


class Poison(BaseCallback):
    """Puts a value into the model from a step on.

    :param where: "parameter", "optimizer", "statistics" or "reward" (in ``locals``)
    """

    def __init__(self, where: str, value: float) -> None:
        super().__init__()
        self.where, self.value = where, value

    def _on_step(self) -> bool:
        if self.n_calls < FIRST_BAD_STEP:
            return True
        policy: Any = self.model.policy
        if self.where == "parameter":
            with th.no_grad():
                next(iter(policy.parameters())).view(-1)[0] = self.value
        elif self.where == "optimizer":
            optimizer = policy.actor.optimizer if isinstance(self.model, DDPG) else policy.optimizer
            for state in optimizer.state.values():
                state["exp_avg"].view(-1)[0] = self.value
        elif self.where == "statistics":
            normalize: Any = self.model.get_vec_normalize_env()
            mean = np.array(normalize.obs_rms.mean)
            mean[0] = self.value
            normalize.obs_rms.mean = mean
        else:
            self.locals["rewards"][0] = self.value
        return True


def not_finite_in(path: Path) -> List[str]:
    """What a file holds that is NaN or infinite."""
    found: List[str] = []
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".pth"):
                    saved = th.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=False)
                    found += [f"{path.name}/{name}"] * (not all_finite(saved))
        model: Any = next(cls for cls in ALGORITHMS.values()).__mro__[1]
        data = model.load.__func__.__globals__["load_from_zip_file"](path, load_data=True)[0]
        found += [f"{path.name}: {key}" for key in ("_last_obs", "ep_info_buffer") if not all_finite(data.get(key))]
    elif path.suffix == ".pkl":
        saved = pickle.loads(path.read_bytes())
        saved = {key: value for key, value in vars(saved).items() if "space" not in key}
        found += [f"{path.name}: {key}" for key, value in saved.items() if not all_finite(value)]
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            found += [f"{path.name}: {key}" for key in arrays if not all_finite(arrays[key])]
    return found


def all_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(all_finite, value.values()))
    if isinstance(value, th.Tensor):
        return not value.is_floating_point() or bool(th.isfinite(value).all())
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return bool(np.isfinite(value).all())
    if isinstance(value, float):
        return math.isfinite(value)
    if type(value).__name__ in ("list", "tuple", "deque"):
        return all(map(all_finite, value))
    return all_finite(vars(value)) if type(value).__name__ == "RunningMeanStd" else True


def train(tmp_path: Path, algo: str, env: Any, eval_env: Any, callback: Optional[BaseCallback] = None, **more: Any) -> Any:
    """Train with checkpoints of everything and evaluations. Returns model and error."""
    settings = {**SETTINGS[algo], **more}
    model = ALGORITHMS[algo]("MlpPolicy", env, seed=0, device="cpu", **settings)
    callbacks: List[BaseCallback] = [] if callback is None else [callback]
    callbacks += [
        CheckpointCallback(25, str(tmp_path), save_replay_buffer=True, save_vecnormalize=True),
        BatchedEvalCallback(
            eval_env, n_eval_episodes=2, eval_freq=50, log_path=str(tmp_path), best_model_save_path=str(tmp_path)
        ),
    ]
    error = None
    try:
        model.learn(200 * env.num_envs, callback=callbacks)
    except (FloatingPointError, ValueError) as raised:
        error = raised
    return model, error


def check_all_is_finite(tmp_path: Path, model: Any, at_least: int = 3) -> None:
    """Nothing non-finite in the model or in a file; the model, saved at the end, trains on."""
    model.save(tmp_path / "final")
    if hasattr(model, "save_replay_buffer"):
        model.save_replay_buffer(tmp_path / "final_buffer.pkl")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= at_least
    assert [found for path in files for found in not_finite_in(path)] == []
    assert all_finite(dict(model.policy.state_dict()))


INPUTS = [
    (algo, place, value, kind, normalized)
    for number, (algo, place) in enumerate(
        (algo, place) for algo in ALGORITHMS for place in ("observation", "final observation", "reward")
    )
    for value, kind, normalized in (
        [("nan", "tensors", True), ("-inf", "gpu", False), ("inf", "single", True)]
        if number % 2
        else [("inf", "tensors", False), ("nan", "gpu", True), ("-inf", "single", False)]
    )
]


@pytest.mark.parametrize(("algo", "place", "value", "kind", "normalized"), INPUTS)
def test_input(tmp_path: Path, algo: str, place: str, value: str, kind: str, normalized: bool) -> None:
    env = make_env(algo, normalized, kind, place, KINDS[value])
    model, error = train(tmp_path, algo, env, make_env(algo, normalized, kind))
    if normalized and kind == "single" and (place, value) == ("final observation", "inf"):
        check_all_is_finite(tmp_path, model)  # which VecNormalize has clipped before anybody could see it
        return
    assert isinstance(error, FloatingPointError)
    # SB3's VecEnvs hand out the last observation of an episode in infos only; a VecNormalize may make NaN of infinity
    first_of_all = "observation" if kind == "single" or algo != "ppo" else place
    assert place.split()[-1] in str(error) or first_of_all in str(error)
    assert f"environment {1 if kind == 'single' else BAD_ENV} " in str(error)
    assert "Training ended after" in str(error)
    check_all_is_finite(tmp_path, model)


@pytest.mark.parametrize("kind", ["tensors", "single"])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_first_observation(tmp_path: Path, algo: str, kind: str) -> None:
    model, error = train(tmp_path, algo, make_env(algo, True, kind, "reset"), make_env(algo, True, kind))
    assert isinstance(error, FloatingPointError)
    assert "observation" in str(error)
    assert "after the reset" in str(error)
    check_all_is_finite(tmp_path, model, at_least=1)


MODELS = [
    (algo, autograd, where)
    for algo, autograd in (("ppo", False), ("ppo", True), ("dqn", False), ("ddpg", False), ("ddpg", True))
    # With VecNormalize a replay buffer keeps the environment's rewards, whatever callbacks do, as in SB3
    for where in ("parameter", "optimizer", "statistics", *(["reward"] if algo == "ppo" else []))
]


@pytest.mark.parametrize(("algo", "autograd", "where"), MODELS)
def test_model(tmp_path: Path, algo: str, autograd: bool, where: str) -> None:
    callback = Poison(where, math.nan)
    more = {"policy_kwargs": {"optimizer_class": th.optim.AdamW}} if autograd else {}
    model, error = train(tmp_path, algo, make_env(algo, True, "tensors"), make_env(algo, True, "tensors"), callback, **more)
    assert isinstance(error, FloatingPointError)
    words = {"parameter": "policy", "optimizer": "exp_avg", "statistics": "VecNormalize", "reward": "reward"}
    assert words[where] in str(error) or "action" in str(error) or "loss" in str(error)
    check_all_is_finite(tmp_path, model)


@pytest.mark.parametrize("kind", ["tensors", "single"])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_loss(tmp_path: Path, algo: str, kind: str) -> None:
    """A learning rate so large that the parameters explode."""
    env = make_env(algo, False, kind)
    model, error = train(tmp_path, algo, env, make_env(algo, False, kind), learning_rate=1e30)
    if isinstance(error, FloatingPointError):
        assert "lower the learning rate" in str(error)
    else:  # SB3's PPO, whose normal distribution has become too narrow
        assert "scale" in str(error)
    check_all_is_finite(tmp_path, model, at_least=1)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_predict_and_files(tmp_path: Path, algo: str) -> None:
    """No action for an observation that is not finite, and no file of a model that is not, over one that is."""
    env = make_env(algo, True, "tensors")
    model = ALGORITHMS[algo]("MlpPolicy", env, seed=0, device="cpu", **SETTINGS[algo])
    model.learn(64 * N_ENVS)
    for value in KINDS.values():
        with pytest.raises(ValueError, match=f"observation holds {value} at index \\(1, 2\\)"):
            model.predict(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, value]], dtype=np.float32))
    model.save(tmp_path / "model")
    saves = [(lambda: model.save(tmp_path / "model"), next(iter(model.policy.parameters())).data)]
    saves.append((lambda: env.save(tmp_path / "statistics.pkl"), env._state.moments.mean))
    if algo != "ppo":
        saves.append((lambda: model.save_replay_buffer(tmp_path / "buffer.pkl"), model.replay_buffer.rewards))
    for save, tensor in saves:
        save()
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        kept = tensor.clone()
        tensor.view(-1)[0] = math.nan
        with pytest.raises(FloatingPointError, match="finite"):
            save()
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        tensor.copy_(kept)
    with th.no_grad():
        next(iter(model.policy.parameters())).fill_(math.nan)
    with pytest.raises(FloatingPointError, match="nothing to evaluate"):
        evaluate(model, env, 2)


@pytest.mark.parametrize("n_added", [3, 8, 11])
def test_steps_are_dropped_from_a_replay_buffer(n_added: int) -> None:
    space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    buffer = DeviceReplayBuffer(16, space, space, device="cpu", n_envs=2)
    for step in range(n_added):
        row = th.full((2, 1), float(step))
        buffer.add_tensors(row, row + 1, row, row[:, 0], th.zeros(2, dtype=th.bool), th.zeros(2, dtype=th.bool))
    assert th.cat(buffer.newest_rows(3))[:, 0, 0].tolist() == [n_added - 3.0, n_added - 2.0, n_added - 1.0]
    buffer.drop_newest(2)
    kept = [float(step) for step in range(max(n_added - 8, 0), n_added - 2)]
    assert buffer.rewards[: buffer.size(), 0].tolist() == kept and not buffer.full
    assert buffer.dones[buffer.newest].tolist() == [-1.0, -1.0]  # cut: no n-step return goes on over the gap
    assert float(buffer.rewards[buffer.size() :].abs().sum()) == 0.0


@pytest.mark.parametrize("buffer_size", [20 * N_ENVS, 2000])
def test_the_step_is_named_where_the_replay_buffer_is_small(buffer_size: int) -> None:
    """It holds fewer steps than were taken since the last look."""
    env = make_env("ddpg", False, "gpu", "reward")
    model = DDPG("MlpPolicy", env, seed=0, device="cpu", buffer_size=buffer_size, learning_starts=10_000, batch_size=16)
    at = FIRST_BAD_STEP + 10
    env.tensor_env.n_steps = FIRST_BAD_STEP - at  # the 85th step of a hundred
    with pytest.raises(
        FloatingPointError, match=f"reward of environment {BAD_ENV} was nan in the step that ended at {4 * at:,} "
    ):
        model.learn(400)
    assert model.replay_buffer.size() == (at - 1 if buffer_size == 2000 else 20 - 16)


@pytest.mark.parametrize("step", [15, 16])
def test_the_step_is_named_that_led_to_the_newest_observation(step: int) -> None:
    class Late(VecNormalize):
        """Makes observations NaN that are finite in the environment."""

        n_steps = 0

        def step_tensor(self, actions: th.Tensor) -> StepResult:
            result = super().step_tensor(actions)
            self.n_steps += 1
            return result._replace(obs=result.obs * math.nan) if self.n_steps == step else result

    late = Late(make_env("ppo", False, "tensors"), training=False, norm_reward=False)
    model = PPO("MlpPolicy", late, seed=0, device="cpu", n_steps=16, batch_size=32)
    with pytest.raises(FloatingPointError, match=f"in the step that ended at {4 * step} timesteps"):
        model.learn(64)


def test_an_empty_parameter_may_come_first() -> None:
    parts = [th.zeros(0), th.ones(3)]
    assert [part.tolist() for part in merged(parts)] == [[], [1.0, 1.0, 1.0]]
