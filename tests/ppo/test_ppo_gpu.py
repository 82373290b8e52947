"""PPO on a GPU: no host synchronisation, CUDA graphs that change nothing, files that go to machines without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from sb3_isaac import PPO, DeviceRolloutBuffer, VecNormalize
from sb3_isaac.device.host import to_host
from sb3_isaac.ppo import rollout, update
from tests.conftest import CONTINUOUS, DISCRETE, difference, make_env, parameters
from tests.ppo.conftest import Looks, learn, make_model

pytestmark = pytest.mark.skipif(not th.cuda.is_available(), reason="needs an NVIDIA GPU")

N_ENVS, N_STEPS = 64, 16


def make(cls: Any = PPO, env_id: str = CONTINUOUS, normalize: bool = False, **kwargs: Any) -> Any:
    env = make_env(env_id, N_ENVS, device="cuda", max_episode_length=40)
    settings = {"batch_size": 400, "n_epochs": 3, "device": "cuda", "policy_kwargs": {"activation_fn": nn.ELU}}
    return make_model(cls, VecNormalize(env) if normalize else env, **{**settings, **kwargs})


@pytest.mark.parametrize("env_id", [CONTINUOUS, DISCRETE])
@pytest.mark.parametrize("options", [{}, {"clip_range_vf": 0.05, "ent_coef": 0.01, "target_kl": 0.01}])
def test_training_equals_sb3(env_id: str, options: Any) -> None:
    theirs = learn(make(stable_baselines3.PPO, env_id, rollout_buffer_class=DeviceRolloutBuffer, **options), 2)
    ours = learn(make(PPO, env_id, **options), 2)
    assert ours._n_updates == theirs._n_updates
    assert difference(ours, theirs) < 2e-5
    for key, value in theirs.logger.name_to_value.items():
        if key.startswith("train/"):
            assert ours.logger.name_to_value[key] == pytest.approx(value, rel=1e-2, abs=1e-4), key


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("env_id", [CONTINUOUS, DISCRETE])
@pytest.mark.parametrize("options", [{}, {"normalize": True, "adaptive_lr_kl": 0.01, "clip_range": lambda p: 0.1 + 0.1 * p}])
def test_graphs_change_nothing(env_id: str, options: Any, looks: bool) -> None:
    callback = Looks() if looks else None
    eager, graphs = (learn(make(env_id=env_id, compile=one, **options), 5, callback) for one in (False, True))
    rollout = graphs._run.rollout
    assert (rollout.graphed_step if looks else rollout.graphed_steps).graphs and len(graphs._run.update.gradients.graphs) == 2
    # Rounding differences of compiled kernels grow: a pole falls, and minibatches feed on each other
    buffers = [model.rollout_buffer.tensors for model in (eager, graphs)]
    assert th.allclose(buffers[0].observations, buffers[1].observations, atol=1e-2)
    assert difference(eager, graphs) < 1e-3
    assert eager.policy.optimizer.state_dict()["state"][0]["step"] == graphs.policy.optimizer.state_dict()["state"][0]["step"]
    for key in ("train/loss", "train/value_loss", "train/explained_variance", "rollout/ep_len_mean", "train/learning_rate"):
        assert graphs.logger.name_to_value[key] == pytest.approx(eager.logger.name_to_value[key], rel=0.02, abs=1e-3), key


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("env_id", [CONTINUOUS, DISCRETE])
def test_one_host_read_per_rollout_and_per_update(env_id: str, compile: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(env_id=env_id, normalize=True, adaptive_lr_kl=0.01, compile=compile)
    learn(model, 3)
    _, callback = model._setup_learn(10**6, reset_num_timesteps=False)
    reads = []

    def allowed(tensor: th.Tensor) -> np.ndarray:
        th.cuda.set_sync_debug_mode("default")
        reads.append(tensor.numel())
        array = to_host(tensor)
        th.cuda.set_sync_debug_mode("error")
        return array

    for module in (rollout, update):
        monkeypatch.setattr(module, "to_host", allowed)
    th.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            model.collect_rollouts(model.env, callback, model.rollout_buffer, N_STEPS)
            model.train()
    finally:
        th.cuda.set_sync_debug_mode("default")
    assert len(reads) == 6


@pytest.mark.parametrize("compile", [False, True])
def test_same_seed_same_result(compile: bool) -> None:
    one, other = (learn(make(normalize=True, adaptive_lr_kl=0.01, compile=compile), 4) for _ in range(2))
    assert th.equal(parameters(one), parameters(other))
    assert th.equal(one.rollout_buffer.tensors.observations, other.rollout_buffer.tensors.observations)


class Look(BaseCallback):
    def __init__(self) -> None:
        super().__init__()
        self.episodes = 0

    def _on_step(self) -> bool:
        dones, infos = self.locals["dones"], self.locals["infos"]
        assert np.sum(dones) == sum("episode" in info for info in infos)
        assert self.locals["new_obs"].shape == (N_ENVS, 4) and np.isfinite(self.locals["rewards"]).all()
        self.episodes += int(np.sum(dones))
        return True


def test_callbacks_and_changes_between_rollouts() -> None:
    """What happens outside the captured graphs is seen by them: resets, new parameters, other settings."""
    look, model = Look(), make(compile=True)
    model.learn(4 * N_STEPS * N_ENVS, callback=look)
    assert look.episodes > N_ENVS / 2
    other = learn(make(seed=4), 2)
    model.set_parameters(other.get_parameters())
    assert th.equal(parameters(model), parameters(other))
    model.env.reset()
    model.vf_coef = 0.25
    step = float(model.policy.optimizer.state_dict()["state"][0]["step"])
    model.learn(3 * N_STEPS * N_ENVS)
    assert float(model.policy.optimizer.state_dict()["state"][0]["step"]) == step + 3 * 3 * 3
    assert np.array_equal(model._last_obs, model.env.obs_tensor.cpu().numpy())
    assert not th.equal(parameters(model), parameters(other))


def test_saved_on_the_gpu_loaded_without_one(tmp_path: Path) -> None:
    model = learn(make(compile=True, adaptive_lr_kl=0.01), 3)
    model.save(tmp_path / "model.zip")
    data, _, _ = stable_baselines3.common.save_util.load_from_zip_file(tmp_path / "model.zip", device="cpu")
    assert not any(isinstance(value, th.Tensor) for value in data.values())
    stock = stable_baselines3.PPO.load(tmp_path / "model.zip", device="cpu")
    obs = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    assert np.allclose(stock.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0], atol=1e-5)
    env = make_env(CONTINUOUS, N_ENVS)
    ours = PPO.load(tmp_path / "model.zip", env, device="cpu", compile=False)
    ours.learn(N_STEPS * N_ENVS, reset_num_timesteps=False)
    assert not th.equal(parameters(ours), parameters(model).cpu())
    with pytest.raises(ValueError, match="environment is on cuda.* and the model on cpu"):
        PPO.load(tmp_path / "model.zip", model.env, device="cpu").learn(10)
