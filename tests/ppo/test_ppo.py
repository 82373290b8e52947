"""sb3_isaac.PPO as a drop-in for SB3's: rollouts, callbacks, extra options, and that it learns."""

from __future__ import annotations

import pickle
import textwrap
import warnings
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecMonitor

from sb3_isaac import PPO, DeviceRolloutBuffer, VecNormalize, evaluate
from sb3_isaac.backends.torch_cartpole import TorchCartpole
from sb3_isaac.device import host
from sb3_isaac.device.host import HostView, Views, to_host
from sb3_isaac.envs import IsaacVecEnv
from sb3_isaac.ppo import rollout, update
from tests.conftest import CONTINUOUS, DISCRETE, SyncGuard, difference, make_env, parameters, run_python
from tests.ppo.conftest import OwnExtractor, make_model

FIELDS = ("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns")


# -- rollouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", [CONTINUOUS, DISCRETE])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("extractor", [FlattenExtractor, OwnExtractor])
def test_rollout_equals_sb3(env_id: str, normalize: bool, extractor: type) -> None:
    """Two rollouts with failures and time-outs fill the buffer as SB3's collect_rollouts does with the same actions."""
    buffers: List[Dict[str, np.ndarray]] = []
    for cls in (stable_baselines3.PPO, PPO):
        env = make_env(env_id, max_episode_length=9, reset_dist=0.6)
        if normalize:
            env = VecNormalize(env, gamma=0.9)
        model = make_model(cls, env, gamma=0.9, gae_lambda=0.8, policy_kwargs={"features_extractor_class": extractor})
        model.train = lambda: None
        th.manual_seed(0)
        model.learn(2 * 8 * 16)
        assert isinstance(model.rollout_buffer, DeviceRolloutBuffer) == (cls is PPO)
        buffers.append({name: np.asarray(getattr(model.rollout_buffer, name), dtype=np.float64) for name in FIELDS})
        buffers[-1].update(last_obs=model._last_obs, last_starts=model._last_episode_starts)
        buffers[-1]["episodes"] = np.array([[e["r"], e["l"]] for e in model.ep_info_buffer])
    for name, expected in buffers[0].items():
        assert np.allclose(buffers[1][name], expected, atol=2e-5), name
    starts, lengths = buffers[0]["episode_starts"], buffers[0]["episodes"][:, 1]
    assert starts[1:].sum() > 8 and (lengths == 8).any() and (lengths < 8).any()


def test_time_limits_bootstrap_with_the_final_observation() -> None:
    """Not with the first observation of the next episode, and failures not at all."""
    env = make_env(max_episode_length=6, reset_dist=0.5)
    model = make_model(env=env, gamma=0.9)
    model.train = lambda: None
    seen: List[Any] = []
    step_tensor = env.step_tensor

    def spy(actions: th.Tensor) -> Any:
        result = step_tensor(actions)
        seen.append([x.clone() for x in result])
        return result

    env.step_tensor = spy
    model.learn(8 * 16)
    obs, reward, terminated, truncated, final_obs = (th.stack(column) for column in zip(*seen))
    assert terminated.any() and truncated.any()
    with th.no_grad():
        right, wrong = (model.policy.predict_values(x.flatten(0, 1)).view(16, 8) for x in (final_obs, obs))
    stored = model.rollout_buffer.tensors.rewards
    assert th.allclose(stored, reward + 0.9 * right * truncated, atol=1e-6)
    assert not th.allclose(stored[truncated], (reward + 0.9 * wrong)[truncated], atol=1e-3)
    assert not th.allclose(right[terminated], th.zeros(1), atol=1e-3)


@pytest.mark.parametrize("env_id", [CONTINUOUS, DISCRETE])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"adaptive_lr_kl": 0.01},
        # SGD, because torch's Adam looks at its step count, which is on the CPU on a GPU machine, too
        {"policy_kwargs": {"features_extractor_class": OwnExtractor, "optimizer_class": th.optim.SGD}},
    ],
)
def test_one_host_read_per_rollout_and_per_update(env_id: str, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(env=VecNormalize(make_env(env_id, max_episode_length=9)), **options)
    model.learn(8 * 16)  # the first of everything may look at what it likes
    reads: List[int] = []

    def counted(tensor: th.Tensor) -> np.ndarray:
        reads.append(tensor.numel())
        return to_host(tensor)

    def refused(*args: Any) -> Any:
        raise AssertionError("the host waits for the device")

    for module in (rollout, update):
        monkeypatch.setattr(module, "to_host", counted)
    # SB3's multinomial, in the general path, is one kernel on a GPU
    with SyncGuard():
        for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__"):
            monkeypatch.setattr(th.Tensor, name, refused)
        model.learn(8 * 16, reset_num_timesteps=False)
        monkeypatch.undo()
    assert len(reads) == 2 and reads[0] == 3 * 16 * 8 + 8 * 4 + 1


def test_same_seed_same_result() -> None:
    results = []
    for _ in range(2):
        model = make_model(env=VecNormalize(make_env(seed=None)), seed=7, adaptive_lr_kl=0.01, spread_time_limits=True)
        model.learn(3 * 8 * 16)
        results.append((parameters(model), model.rollout_buffer.tensors.observations, model._last_obs))
    assert all(np.array_equal(one, other) for one, other in zip(*results))
    model = make_model(env=VecNormalize(make_env(seed=None)), seed=8, adaptive_lr_kl=0.01, spread_time_limits=True)
    model.learn(3 * 8 * 16)
    assert not np.array_equal(parameters(model), results[0][0])


# -- callbacks and logs ----------------------------------------------------------------------------------------------


class Spy(BaseCallback):
    """Looks at ``locals`` as callbacks written for SB3 do."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.episodes, self.rewards = 0, 0, 0.0

    def _on_step(self) -> bool:
        n = self.training_env.num_envs
        infos, dones = self.locals["infos"], self.locals["dones"]
        self.steps += n
        assert self.num_timesteps == self.steps == self.model.num_timesteps
        assert len(infos) == len(dones) == n and self.locals["new_obs"].shape == (n, 4)
        assert np.sum(dones) == sum("episode" in info for info in infos)
        assert [i for i, done in enumerate(dones) if done] == np.flatnonzero(dones).tolist()
        assert np.abs(self.locals["clipped_actions"]).max() <= 1.0 and self.locals["actions"][0].shape == (1,)
        self.episodes += int(np.sum(dones))
        self.rewards += float(self.locals["rewards"].sum())
        return True


def test_callbacks_see_what_sb3_shows_them(tmp_path: Path) -> None:
    spy = Spy()
    model = make_model(env=make_env(max_episode_length=9, monitor_dir=str(tmp_path)), tensorboard_log=None)
    model.learn(3 * 8 * 16, callback=spy)
    assert spy.steps == 3 * 8 * 16 and spy.episodes == len(model.ep_info_buffer) > 8
    lines = (tmp_path / "0.monitor.csv").read_text().splitlines()
    assert len(lines) - 2 == spy.episodes
    logged = model.logger.name_to_value
    assert logged["train/n_updates"] == 6 and logged["time/update"] > 0.0

    model = make_model(env=make_env(max_episode_length=9), n_steps=64)
    model.learn(10**6, callback=StopTrainingOnMaxEpisodes(max_episodes=2))
    assert model.num_timesteps == 2 * 8 * 8 and len(model.ep_info_buffer) == 2 * 8
    # Training goes on where it was stopped, in the middle of a rollout
    before = model._last_obs
    assert np.array_equal(before, model.env.obs_tensor.numpy())
    dones = model._last_episode_starts
    assert dones.any()
    model.learn(8, reset_num_timesteps=False)
    assert np.array_equal(model.rollout_buffer.observations[0], before)
    assert np.array_equal(model.rollout_buffer.episode_starts[0], dones)


def test_host_view_is_an_array() -> None:
    tensor = th.arange(6.0).view(3, 2)
    view, array = HostView("x", tensor, Views()), tensor.numpy().copy()
    assert np.array_equal(view, array) and np.array_equal(view + view, 2 * array) and (view > 2.0).sum() == 3
    assert view.shape == (3, 2) and len(view) == 3 and view[1, 1] == 3.0 and [float(row[0]) for row in view] == [0.0, 2.0, 4.0]
    assert np.asarray(view, dtype=np.int64).dtype == np.int64 and np.max(view) == 5.0 and "HostView" in repr(view)
    tensor.zero_()  # the next step
    assert np.asarray(view)[2, 1] == 5.0 and not view.changed()
    view += 1.0
    view[0, 0] = -1.0
    assert view[2, 1] == 6.0 and view.changed() and not HostView("x", th.zeros(1, dtype=th.bool), Views())
    with pytest.raises(AttributeError):
        view.no_such_method()
    views = Views()
    never_looked_at, views.ended = HostView("dones", tensor, views), True
    with pytest.raises(RuntimeError, match="'dones'. was kept from an earlier step"):
        np.asarray(never_looked_at)


# -- options ---------------------------------------------------------------------------------------------------------


def test_a_value_that_is_looked_at_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: List[int] = []
    monkeypatch.setattr(host, "to_host", lambda tensor: reads.append(1) or to_host(tensor))
    view = HostView("rewards", th.ones(3), Views())
    assert view.tolist() == [1.0] * 3 and len(reads) == 1
    assert pickle.loads(pickle.dumps(view)).tolist() == [1.0] * 3


def test_new_noise_of_gsde_does_not_wait_for_the_device() -> None:
    model = make_model(env=make_env(), use_sde=True)
    with SyncGuard():
        model._reset_noise()


def test_bounds_of_float64() -> None:
    env = IsaacVecEnv(TorchCartpole(4, seed=0), action_space=spaces.Box(-0.5, 0.5, (1,), np.float64))
    model = PPO("MlpPolicy", env, seed=0, device="cpu", n_steps=8, batch_size=32).learn(32)
    assert model.path.startswith("in tensors")
    assert evaluate(model, env, n_episodes=4).returns.shape == (4,)


@pytest.mark.skipif(not hasattr(th, "set_default_device"), reason="torch 2")
@pytest.mark.parametrize("compiled", [False, True])
def test_the_default_device_and_dtype_of_a_program_are_not_ours(compiled: bool) -> None:
    """SB3 itself advises to train PPO on the CPU of a machine with a GPU."""
    code = f"""
        import torch as th
        from sb3_isaac import PPO, make_vec_env
        th.set_default_device("meta")  # in the place of "cuda"
        env = make_vec_env("IsaacGymCartpole-v0", 4, device="cpu", seed=0)
        env.reset()
        env.tensor_env.compile() if {compiled} else None
        for _ in range(3):
            result = env.step_tensor(th.zeros(4, 1, device="cpu"))
        assert result.obs.device.type == "cpu"
        th.set_default_dtype(th.float64)
        env = make_vec_env("IsaacGymCartpole-v0", 4, device="cpu", seed=0)
        env.tensor_env.compile() if {compiled} else None
        env.reset()
        assert all(x.dtype == th.float32 for x in env.step_tensor(th.zeros(4, 1, device="cpu", dtype=th.float32))[:2])
    """
    child = run_python("-c", textwrap.dedent(code))
    assert child.returncode == 0, child.stdout


def test_n_minibatches() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # SB3 must not warn of a batch size that is not used
        model = PPO("MlpPolicy", make_env(n_envs=6), 3e-4, 10, n_minibatches=4, device="cpu", n_epochs=1)
    assert model.batch_size == 15 and model.n_steps == 10
    model.learn(60)
    assert model.policy.optimizer.state_dict()["state"][0]["step"] == 4
    for wrong, words in ((0, "must be a whole number of at least 1"), (7, "=7 does not divide")):
        with pytest.raises(ValueError, match=f"n_minibatches.*{words}"):
            make_model(n_minibatches=wrong)


def test_options_out_of_range() -> None:
    for options in ({"adaptive_lr_kl": 0.0}, {"adaptive_lr_factor": 1.0}, {"adaptive_lr_min": 0.1}):
        with pytest.raises(ValueError, match="adaptive_lr"):
            make_model(**options)
    with pytest.raises(TypeError):
        make_model(no_such_option=1)


def test_spread_time_limits() -> None:
    class Ages(BaseCallback):
        def _on_rollout_start(self) -> None:
            ages.append(self.training_env.tensor_env.progress.clone())  # type: ignore[attr-defined]

        def _on_step(self) -> bool:
            return True

    for spread in (False, True):
        ages: List[th.Tensor] = []
        model = make_model(env=make_env(n_envs=64), n_steps=2, spread_time_limits=spread, gamma=0.9)
        model.learn(64 * 2 * 2, callback=Ages())
        assert (len(ages[0].unique()) > 30) == spread
        assert (ages[1] > ages[0]).float().mean() > 0.9  # and not again at the next rollout
        assert int(ages[0].max()) < 499


def test_what_has_no_tensor_path_is_named() -> None:
    with pytest.warns(UserWarning, match="VecMonitor has no tensor path.*leave it out"):
        make_model(env=VecMonitor(make_env())).learn(10)
    with pytest.warns(UserWarning, match="rollout_buffer_class=OwnBuffer works in numpy"):
        make_model(rollout_buffer_class=type("OwnBuffer", (RolloutBuffer,), {})).learn(10)
    with pytest.raises(ValueError, match="compile needs .* training in tensors, but VecMonitor has no tensor path"):
        make_model(env=VecMonitor(make_env()), compile=True).learn(10)
    elsewhere = make_model()
    elsewhere.device = th.device("meta")
    with pytest.raises(ValueError, match="environment is on cpu and the model on meta"):
        elsewhere.learn(10)
    for option in ("spread_time_limits", "compile"):
        model = make_model(env=sb3_make_vec_env("CartPole-v1", 2), **{option: True})
        with pytest.raises(ValueError, match=f"{option} needs an IsaacVecEnv"):
            model.learn(10)


def test_other_environments_train_as_with_sb3() -> None:
    models = []
    for cls in (stable_baselines3.PPO, PPO):
        models.append(make_model(cls, sb3_make_vec_env("CartPole-v1", 4, seed=0), seed=0))
        before = parameters(models[-1])
        models[-1].learn(200)
        assert type(models[-1].rollout_buffer) is RolloutBuffer
    # Not bit for bit: how MKL rounds depends on where numpy happens to put the observations
    assert difference(*models) < 1e-6 and (parameters(models[-1]) - before).abs().max() > 1e-3
    # The options that do not need tensors work there too
    model = make_model(env=sb3_make_vec_env("CartPole-v1", 4, seed=0), n_minibatches=2, adaptive_lr_kl=1e3)
    model.learn(200)
    assert model.batch_size == 32 and model.adapted_lr > 3e-4


# -- learning --------------------------------------------------------------------------------------------------------


def mean_return(model: Any, normalize: VecNormalize) -> float:
    """Mean return of one episode in each of 64 environments, without exploration noise."""
    env = make_env(n_envs=64, seed=1000)
    obs, returns, running = env.reset_tensor(), th.zeros(64), th.ones(64, dtype=th.bool)
    for _ in range(499):
        action, _ = model.predict(normalize.normalize_obs_tensor(obs).numpy(), deterministic=True)
        obs, reward, terminated, truncated, _ = env.step_tensor(th.as_tensor(action))
        returns += reward * running
        running &= ~(terminated | truncated)
    return float(returns.mean())


def test_it_solves_the_task() -> None:
    """With the settings of hyperparams/ppo.yml and twice the steps they need: another processor is as good as another seed."""
    env = VecNormalize(make_env(n_envs=128, seed=0))
    model = PPO(
        "MlpPolicy", env, learning_rate=3.6e-3, adaptive_lr_kl=0.01, n_steps=16, n_minibatches=1, n_epochs=8, vf_coef=1.0,
        max_grad_norm=1.0, policy_kwargs={"net_arch": {"pi": [32], "vf": [64, 64]}}, seed=0, device="cpu",
    )  # fmt: skip
    assert isinstance(model.action_space, spaces.Box)
    assert mean_return(model, env) < 200.0
    model.learn(40 * 128 * 16)
    assert mean_return(model, env) >= 475.0
