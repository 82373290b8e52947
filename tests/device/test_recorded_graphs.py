"""Training in CUDA graphs, recorded on a CPU (tests/recorded_graphs.py), against the same training without: bit for bit.

Whatever somebody does in between must reach the graphs, or make new ones.
"""

from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise

from sb3_isaac import DDPG, DQN, PPO, VecNormalize
from sb3_isaac.backends import TorchCartpole
from sb3_isaac.device.cuda_graph import Graphed
from tests.conftest import ENV_IDS, difference, make_env
from tests.recorded_graphs import record_graphs

pytestmark = pytest.mark.skipif(not hasattr(th.Tensor, "untyped_storage"), reason="recording needs torch 2")
N_ENVS, N_STEPS = 8, 6
TOTAL = N_ENVS * N_STEPS * 8
OFF_POLICY: Dict[str, Any] = dict(
    learning_rate=1e-2, buffer_size=400, batch_size=16, learning_starts=16, train_freq=2, gradient_steps=2
)  # fmt: skip
OPTIONS: Dict[str, Dict[str, Any]] = {
    "ppo": dict(n_steps=N_STEPS, batch_size=24, n_epochs=2),
    "dqn": dict(OFF_POLICY, target_update_interval=16, tau=0.5),
    "ddpg": dict(OFF_POLICY, action_noise=NormalActionNoise(np.zeros(1), 0.3 * np.ones(1))),
}
CLASSES: Dict[str, Any] = {"ppo": PPO, "dqn": DQN, "ddpg": DDPG}
ALGOS = tuple(CLASSES)


def env_for(algo: str, normalize: bool = True) -> Any:
    env = make_env(ENV_IDS.get(algo, ENV_IDS["ddpg"]), N_ENVS, max_episode_length=12)
    return VecNormalize(env) if normalize else env


def train(algo: str, normalize: bool, act: Callable[[Any], Any], **options: Any) -> Any:
    given: Dict[str, Any] = {**OPTIONS[algo], "policy_kwargs": {"net_arch": [8]}, "seed": 0, "device": "cpu", **options}
    model = CLASSES[algo]("MlpPolicy", env_for(algo, normalize), compile=True, **given)
    act(model)
    return model


@functools.lru_cache(maxsize=None)
def undisturbed(algo: str) -> Any:
    return train(algo, True, lambda model: model.learn(TOTAL))


def both(
    algo: str, act: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch, normalize: bool = True, **options: Any
) -> Tuple[Any, Any]:
    """Trained without graphs and with them: they must be alike. Returns the models."""
    models: List[Any] = []
    for graphs in (False, True):
        with monkeypatch.context() as patch:
            recordings = record_graphs(patch)
            if not graphs:
                patch.setattr(Graphed, "__call__", lambda graphed, *inputs: graphed.function(*inputs))
            models.append(train(algo, normalize, act, **options))
            assert (sum(recording.replays for recording in recordings) > 20) == graphs
    rows = [model.rollout_buffer.rows if algo == "ppo" else model.replay_buffer._storage for model in models]
    assert th.equal(*rows) and difference(*models) == 0.0
    return models[0], models[1]


class At(BaseCallback):
    """Does something at the beginning of the n-th rollout, or in the n-th step."""

    def __init__(self, what: Callable[[Any, int], None], steps: bool) -> None:
        super().__init__()
        self.what, self.steps, self.rollouts = what, steps, 0

    def _on_rollout_start(self) -> None:
        self.rollouts += 1
        if not self.steps:
            self.what(self, self.rollouts)

    def _on_step(self) -> bool:
        if self.steps:
            self.what(self, self.n_calls)
        return True


def with_callback(what: Callable[[Any, int], None], steps: bool = False) -> Callable[[Any], Any]:
    return lambda model: model.learn(TOTAL, callback=At(what, steps))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("algo", ALGOS)
def test_training(algo: str, normalize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    both(algo, lambda model: model.learn(TOTAL), monkeypatch, normalize)


SCHEDULES: List[Tuple[str, Dict[str, Any]]] = [
    ("ppo", {"learning_rate": lambda p: 1e-2 * p, "clip_range": lambda p: 0.1 + 0.1 * p, "clip_range_vf": lambda p: 0.01 + p}),
    ("ppo", {"adaptive_lr_kl": 0.01}),
    ("ppo", {"target_kl": 0.01}),
    ("dqn", {"learning_rate": lambda p: 1e-2 * p, "n_steps": 3, "double_q": True, "exploration_fraction": 0.9}),
    ("dqn", {"per_env_epsilon": (0.5, 0.01), "reward_scale": 0.3, "optimize_memory_usage": True}),
    ("ddpg", {"learning_rate": lambda p: 1e-2 * p, "n_steps": 3}),
]  # fmt: skip


@pytest.mark.parametrize("n", range(len(SCHEDULES)), ids=lambda n: f"{SCHEDULES[n][0]}-{n}")
def test_options(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    algo, options = SCHEDULES[n]
    if options.get("optimize_memory_usage"):
        options = {**options, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    both(algo, lambda model: model.learn(TOTAL), monkeypatch, **options)


def settings(callback: Any, n: int) -> None:
    model = callback.model
    if n == 2:
        model.gamma, model.ent_coef, model.tau = 0.9, 0.05, 0.1
    if n == 4:
        model.vf_coef, model.max_grad_norm, model.double_q, model.reward_scale = 0.1, 0.1, True, 0.3
    if n == 5:
        model.normalize_advantage, model.policy_delay = False, 2
    if n == 6:
        model.batch_size, model.n_epochs, model.gradient_steps, model.policy_delay = 12, 3, 3, 1


def limits(callback: Any, n: int) -> None:
    callback.training_env.clip_reward = 1.0 + 0.1 * n
    if n in (2, 4):
        callback.training_env.clip_obs = np.float32(3.0 / n)
    if n == 5:
        callback.training_env.training = False


def statistics(callback: Any, n: int) -> None:
    if n == 3:
        rms = callback.training_env.obs_rms.copy()
        rms.mean = rms.mean + 0.1
        callback.training_env.obs_rms = rms
        callback.training_env.epsilon = 1e-2


def parameters_set(callback: Any, n: int) -> None:
    if n == 4:
        given = callback.model.get_parameters()
        smaller = {k: v if "optim" in k else {a: 0.9 * b for a, b in v.items()} for k, v in given.items()}
        callback.model.set_parameters(smaller)


def parameters_moved(callback: Any, n: int) -> None:
    if n == 3:
        for parameter in callback.model.policy.parameters():
            parameter.data = parameter.data.clone()


def narrower(callback: Any, n: int) -> None:
    """The simulator's own tensors: where episodes begin."""
    if n == 3:
        callback.training_env.set_attr("reset_width", th.tensor([0.02, 0.05, 0.02, 0.05]))


def task(callback: Any, n: int) -> None:
    """A curriculum"""
    if n == 4:
        simulator = callback.training_env.unwrapped.tensor_env
        simulator.task = dataclasses.replace(simulator.task, max_episode_length=4, max_effort=10.0)


def generator(callback: Any, n: int) -> None:
    if n == 4:
        callback.training_env.unwrapped.tensor_env.generator = th.Generator().manual_seed(99)


def function(callback: Any, n: int) -> None:
    if n == 4:
        callback.training_env.normalize_reward_tensor = lambda reward: 0.1 * reward


def betas(callback: Any, n: int) -> None:
    if n == 4:
        policy = callback.model.policy
        for optimizer in (getattr(policy, "optimizer", None), *(getattr(net, "optimizer", None) for net in policy.children())):
            if optimizer is not None:
                optimizer.param_groups[0]["betas"] = (0.5, 0.9)


CHANGES = (settings, limits, statistics, parameters_set, parameters_moved, narrower, task, generator, function, betas)


@pytest.mark.parametrize("what", CHANGES, ids=lambda what: what.__name__)
@pytest.mark.parametrize("algo", ALGOS)
def test_changes_between_rollouts(algo: str, what: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = both(algo, with_callback(what), monkeypatch)
    assert what is parameters_moved or difference(model, undisturbed(algo)) > 1e-6


@pytest.mark.parametrize("what", CHANGES, ids=lambda what: what.__name__)
def test_changes_between_trainings(what: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As nobody looks at PPO's steps, all of a rollout are one graph."""

    def act(model: Any) -> None:
        for n in range(1, 9):
            what(SimpleNamespace(model=model, training_env=model.env), n)
            model.learn(N_ENVS * N_STEPS, reset_num_timesteps=False)

    _, model = both("ppo", act, monkeypatch)
    assert bool(model._run.rollout.graphed_steps.graphs) == (what is not limits)  # which change each time
    assert not model._run.rollout.graphed_step.graphs


def reset(callback: Any, n: int) -> None:
    if n == 20:
        callback.training_env.reset()


def stepped(callback: Any, n: int) -> None:
    if n in (20, 21, 22):
        space = callback.training_env.action_space
        callback.training_env.step(np.zeros((N_ENVS, *space.shape), dtype=space.dtype))


def rewards(callback: Any, n: int) -> None:
    callback.locals["rewards"][:] *= 0.5


@pytest.mark.parametrize("what", [reset, stepped, rewards], ids=lambda what: what.__name__)
@pytest.mark.parametrize("algo", ALGOS)
def test_what_callbacks_do_in_steps(algo: str, what: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    both(algo, with_callback(what, steps=True), monkeypatch, normalize=what is not rewards)


def thrice(model: Any) -> None:
    for again in (True, False, True):
        model.learn(TOTAL // 2, reset_num_timesteps=again)


def another_env(model: Any) -> None:
    model.learn(TOTAL // 2)
    model.set_env(env_for(type(model).__name__.lower()))
    model.learn(TOTAL // 2)


def another_env_within(model: Any) -> None:
    model.learn(TOTAL // 2)
    model.env.venv = env_for(type(model).__name__.lower(), normalize=False)
    model.env.reset()
    model.learn(TOTAL // 2)


def another_env_in_a_callback(callback: Any, n: int) -> None:
    if n == 3:
        env = callback.training_env
        env.venv = env_for(type(callback.model).__name__.lower(), normalize=False)
        env.reset()


@pytest.mark.parametrize("algo", ["dqn", "ddpg"])
def test_an_environment_swapped_in_a_callback(algo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    both(algo, with_callback(another_env_in_a_callback), monkeypatch)


@pytest.mark.parametrize("algo", ["dqn", "ddpg"])
def test_updates_of_an_environment_that_cannot_be_captured(algo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: VecNormalize's tensors of the last step are new ones each time, and none of the update's business."""
    recordings = record_graphs(monkeypatch)
    monkeypatch.setattr(TorchCartpole, "capturable", False)
    train(algo, True, lambda model: model.learn(TOTAL))
    assert len(recordings) == 1 and recordings[0].replays > 15


@pytest.mark.parametrize("act", [thrice, another_env, another_env_within], ids=lambda act: act.__name__)
@pytest.mark.parametrize("algo", ALGOS)
def test_learning_again(algo: str, act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    both(algo, act, monkeypatch)
