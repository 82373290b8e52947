"""Every argument of the constructors of SB3's PPO, DQN and DDPG, off its default."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from torch import nn

from tests.conftest import run_python
from tests.drop_in.side_by_side import ALL, N_STEP, OFF_POLICY, Row, compare, table


def constant(mu, kind=NormalActionNoise, **kwargs):
    """Noise without randomness: it can be compared."""
    return kind(np.array([mu]), np.zeros(1), **kwargs)


ROWS = [
    Row("defaults of the suite", ALL),
    Row("discrete actions", discrete=True),
    Row("one environment", ALL, env={"n_envs": 1}, learn={"total_timesteps": 24}),
    Row("learning_rate=3e-2", ALL, {"learning_rate": 3e-2}),
    Row("learning_rate is an int", ALL, {"learning_rate": 1}, learn={"total_timesteps": 32}, inexact="it diverges", skip_keys=("parameters",)),
    Row("learning_rate is a function", ALL, {"learning_rate": lambda left: 1e-2 * left + 1e-4}),
    Row("gamma=0.5", ALL, {"gamma": 0.5}),
    Row("gamma=1", ALL, {"gamma": 1}),
    Row("gamma=0", ALL, {"gamma": 0}),
    Row("seed=17", ALL, {"seed": 17}),
    Row("net_arch=[]", ALL, {"policy_kwargs": {"net_arch": []}}),
    Row("net_arch=[8, 4]", ALL, {"policy_kwargs": {"net_arch": [8, 4]}}),
    Row("activation_fn=ReLU", ALL, {"policy_kwargs": {"activation_fn": nn.ReLU}}),
    Row("activation_fn=Tanh", ALL, {"policy_kwargs": {"activation_fn": nn.Tanh}}),
    Row("activation_fn=ELU", ALL, {"policy_kwargs": {"activation_fn": nn.ELU}}),
    Row("activation_fn=LeakyReLU", ALL, {"policy_kwargs": {"activation_fn": nn.LeakyReLU}}),
    Row("activation_fn=SiLU", "ppo", {"policy_kwargs": {"activation_fn": nn.SiLU}}),
    Row("activation_fn=GELU", "dqn", {"policy_kwargs": {"activation_fn": nn.GELU}}),
    Row("activation_fn=PReLU", "ddpg", {"policy_kwargs": {"activation_fn": nn.PReLU}}),
    Row("activation_fn=Softplus", "ppo", {"policy_kwargs": {"activation_fn": nn.Softplus}}),
    # PPO
    Row("n_steps=5", options={"n_steps": 5, "batch_size": 20}, learn={"total_timesteps": 40}),
    Row("n_steps=2", options={"n_steps": 2, "batch_size": 8}, learn={"total_timesteps": 40}),
    Row("batch_size that leaves a rest", options={"batch_size": 6}),
    Row("batch_size that leaves a single row", options={"batch_size": 15}),
    Row("batch_size=1000", options={"batch_size": 1000}),
    Row("batch_size=2", options={"batch_size": 2, "n_epochs": 1}),
    Row("batch_size is a numpy number", options={"batch_size": np.int64(8)}),
    Row("n_steps is a numpy number", options={"n_steps": np.int64(4)}),
    Row("n_epochs is a numpy number", options={"n_epochs": np.int32(2)}),
    Row("clip_range is a numpy number", options={"clip_range": np.float64(0.1), "clip_range_vf": np.float64(0.5)}),
    Row("gamma and gae_lambda are numpy numbers", options={"gamma": np.float64(0.9), "gae_lambda": np.float32(0.8)}),
    Row("learning_rate is a numpy number", ALL, {"learning_rate": np.float64(1e-3)}),
    Row("coefficients are numpy numbers", options={"ent_coef": np.float32(0.1), "vf_coef": np.float64(0.3), "max_grad_norm": np.float32(0.2)}),
    Row("n_epochs=2", options={"n_epochs": 2}),
    Row("n_epochs=5", options={"n_epochs": 5}),
    Row("gae_lambda=0.5", options={"gae_lambda": 0.5}),
    Row("gae_lambda=1", options={"gae_lambda": 1.0}),
    Row("gae_lambda=0", options={"gae_lambda": 0.0}),
    Row("clip_range=0.01", options={"clip_range": 0.01}),
    Row("clip_range is a function", options={"clip_range": lambda left: 0.1 + 0.1 * left}),
    Row("clip_range_vf=0.01", options={"clip_range_vf": 0.01}),
    Row("clip_range_vf is a function", options={"clip_range_vf": lambda left: 0.1 + 0.1 * left}),
    Row("normalize_advantage=False", options={"normalize_advantage": False}),
    Row("ent_coef=0.1", options={"ent_coef": 0.1}),
    Row("ent_coef=0.1, discrete", options={"ent_coef": 0.1}, discrete=True),
    Row("ent_coef < 0", options={"ent_coef": -0.1}),
    Row("vf_coef=2", options={"vf_coef": 2.0}),
    Row("vf_coef=0", options={"vf_coef": 0.0}),
    Row("max_grad_norm=0.01", options={"max_grad_norm": 0.01}),
    Row("max_grad_norm=inf", options={"max_grad_norm": float("inf")}),
    Row("use_sde", options={"use_sde": True}),
    Row("use_sde, sde_sample_freq=3", options={"use_sde": True, "sde_sample_freq": 3}),
    Row("use_sde, squash_output", options={"use_sde": True, "policy_kwargs": {"squash_output": True}}),
    Row("use_sde, full_std=False, use_expln", options={"use_sde": True, "policy_kwargs": {"full_std": False, "use_expln": True}}),
    Row("rollout_buffer_kwargs={}", options={"rollout_buffer_kwargs": {}}),
    Row("target_kl=1e-4", options={"target_kl": 1e-4, "learning_rate": 1e-2}),
    Row("target_kl=1e-4, discrete", options={"target_kl": 1e-4, "learning_rate": 1e-2}, discrete=True),
    Row("target_kl=10", options={"target_kl": 10.0}),
    Row("stats_window_size=2", ("ppo", "dqn"), {"stats_window_size": 2}),
    Row("log_std_init=-2", options={"policy_kwargs": {"log_std_init": -2.0}}),
    Row("ortho_init=False", options={"policy_kwargs": {"ortho_init": False}}),
    Row("net_arch for pi and vf", options={"policy_kwargs": {"net_arch": {"pi": [8], "vf": [4, 4]}}}),
    Row("net_arch for vf only", options={"policy_kwargs": {"net_arch": {"vf": [8]}}}),
    Row("share_features_extractor=False", options={"policy_kwargs": {"share_features_extractor": False}}),
    # DQN and DDPG
    Row("buffer_size=20", OFF_POLICY, {"buffer_size": 12}),
    Row("buffer_size=30, not a multiple of n_envs", OFF_POLICY, {"buffer_size": 30}),
    Row("buffer_size=1", OFF_POLICY, {"buffer_size": 1}),
    Row("learning_starts=8", OFF_POLICY, {"learning_starts": 8}, inexact="random actions: gymnasium's generator and torch's"),
    Row("batch_size=3", OFF_POLICY, {"batch_size": 3}),
    Row("batch_size is a numpy number", OFF_POLICY, {"batch_size": np.int64(8)}),
    Row("tau=1", OFF_POLICY, {"tau": 1.0}),
    Row("tau=0.01", OFF_POLICY, {"tau": 0.01}),
    Row("tau=0", OFF_POLICY, {"tau": 0.0}),
    Row("train_freq=3", OFF_POLICY, {"train_freq": 3}),
    Row("train_freq=(2, step)", OFF_POLICY, {"train_freq": (2, "step")}),
    Row("train_freq=(1, episode)", OFF_POLICY, {"train_freq": (1, "episode")}, env={"n_envs": 1}, learn={"total_timesteps": 20}),
    Row("train_freq=(2, episode), gradient_steps=-1", OFF_POLICY, {"train_freq": (2, "episode"), "gradient_steps": -1}, env={"n_envs": 1}, learn={"total_timesteps": 24}),
    Row("gradient_steps=3", OFF_POLICY, {"gradient_steps": 3}),
    Row("gradient_steps=0", OFF_POLICY, {"gradient_steps": 0}),
    Row("gradient_steps=-1", OFF_POLICY, {"gradient_steps": -1}, learn={"total_timesteps": 24}),
    Row("n_steps=3", N_STEP, {"n_steps": 3}),
    Row("n_steps=3, buffer_size=20", N_STEP, {"n_steps": 3, "buffer_size": 12}),
    Row("optimize_memory_usage", OFF_POLICY, {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}),
    Row("handle_timeout_termination=False", OFF_POLICY, {"replay_buffer_kwargs": {"handle_timeout_termination": False}}),
    Row("replay_buffer_kwargs with n_steps", N_STEP, {"replay_buffer_kwargs": {"n_steps": 2, "gamma": 0.9}, "gamma": 0.9}),
    Row("optimizer Adam with betas", ALL, {"policy_kwargs": {"optimizer_kwargs": {"betas": (0.8, 0.9), "eps": 1e-3}}}),
    # DQN
    Row("target_update_interval=1", "dqn", {"target_update_interval": 1}),
    Row("target_update_interval=20", "dqn", {"target_update_interval": 20}),
    Row("target_update_interval=10000", "dqn", {"target_update_interval": 10000}),
    Row("max_grad_norm=0.01", "dqn", {"max_grad_norm": 0.01}),
    Row("epsilon=1", "dqn", {"exploration_initial_eps": 1.0, "exploration_final_eps": 1.0}, inexact="a coin for each environment"),
    Row("exploration_fraction=0.9", "dqn", {"exploration_initial_eps": 0.9, "exploration_fraction": 0.9, "exploration_final_eps": 0.2}, inexact="a coin for each environment"),
    # DDPG
    Row("constant action_noise", "ddpg", lambda: {"action_noise": constant(0.3)}),
    Row("constant action_noise that leaves the range", "ddpg", lambda: {"action_noise": constant(1.7)}),
    Row("Ornstein-Uhlenbeck action_noise", "ddpg", lambda: {"action_noise": constant(0.3, OrnsteinUhlenbeckActionNoise, theta=5.0, dt=0.1)}),
    Row("Ornstein-Uhlenbeck with initial_noise", "ddpg", lambda: {"action_noise": constant(0.3, OrnsteinUhlenbeckActionNoise, initial_noise=np.ones(1))}),
    Row("VectorizedActionNoise", "ddpg", lambda: {"action_noise": VectorizedActionNoise(constant(0.3), 4)}),
    Row("normal action_noise", "ddpg", lambda: {"action_noise": NormalActionNoise(np.zeros(1), np.ones(1))}, inexact="noise of numpy and of torch"),
    Row("n_critics=2", "ddpg", {"policy_kwargs": {"n_critics": 2}}),
    Row("share_features_extractor=True", "ddpg", {"policy_kwargs": {"share_features_extractor": True}}),
    Row("net_arch for pi and qf", "ddpg", {"policy_kwargs": {"net_arch": {"pi": [8], "qf": [4, 4]}}}),
    # optimizers
    Row("optimizer AdamW", ALL, {"policy_kwargs": {"optimizer_class": th.optim.AdamW}}),
    Row("optimizer Adam with weight decay", ALL, {"policy_kwargs": {"optimizer_kwargs": {"weight_decay": 0.1}}}),
    Row("optimizer Adam with amsgrad", ALL, {"policy_kwargs": {"optimizer_kwargs": {"amsgrad": True}}}),
    Row("optimizer SGD with momentum", ALL, {"policy_kwargs": {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}}}),
    Row("optimizer RMSprop", ALL, {"policy_kwargs": {"optimizer_class": th.optim.RMSprop}}),
]  # fmt: skip


@table(ROWS)
def test_argument(row: Row, algo: str, tmp_path: Path) -> None:
    compare(row, algo, tmp_path)


@pytest.mark.slow
def test_our_classes_in_the_place_of_sb3s() -> None:
    """In a process of its own, as a program would do it: before the rest of this package is imported."""
    code = """
import stable_baselines3 as sb3
import sb3_isaac

stock_dqn = sb3.DQN
env_ids = {"PPO": "IsaacGymCartpole-v0", "DQN": "IsaacGymCartpoleDiscrete-v0", "DDPG": "IsaacGymCartpole-v0"}
for name in env_ids:
    setattr(sb3, name, getattr(sb3_isaac, name))
envs = {name: sb3_isaac.make_vec_env(env_id, 4, backend="torch", device="cpu", seed=0) for name, env_id in env_ids.items()}
models = [
    sb3.PPO("MlpPolicy", envs["PPO"], 3e-4, 8, n_minibatches=2, device="cpu"),
    sb3.PPO("MlpPolicy", envs["PPO"], n_steps=8, batch_size=16, device="cpu"),
    sb3.DQN("MlpPolicy", envs["DQN"], device="cpu"),
    sb3.DDPG("MlpPolicy", envs["DDPG"], device="cpu"),
]
assert models[0].learning_rate == 3e-4 and models[0].n_steps == 8 and models[0].batch_size == 16
for model in models:
    model.learn(32)
    assert isinstance(model.path, str)

from sb3_isaac.evaluation.measure import tensor_policy

assert tensor_policy(stock_dqn("MlpPolicy", envs["DQN"], device="cpu")) is not None
"""
    done = run_python("-W", "ignore", "-c", code)
    assert done.returncode == 0, done.stdout
