"""DQN and DDPG with ``compile=True`` on a CPU against autograd and the plain path."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from sb3_isaac import DDPG, DQN, IsaacVecEnv
from sb3_isaac.backends.base import StepResult, TensorEnv
from sb3_isaac.ddpg.native import NativeActorCritics
from sb3_isaac.device.fast_mlp import parse_layers
from sb3_isaac.device.flat_adam import FlatAdam, share_storage, views_of
from sb3_isaac.dqn.native import NativeQNetworks
from tests.conftest import ENV_IDS, difference, make_env, parameters
from tests.native.conftest import needs_a_compiler
from tests.native.test_mlp import any_network, network, quickly
from tests.off_policy.conftest import make_model
from tests.ppo import conftest as ppo

pytestmark = needs_a_compiler


def targets_of(nets: Any) -> Any:
    """The networks' parameters as flat tensors keep them."""
    kept: Dict[Any, th.Tensor] = {}
    for net in nets:
        own = list(net.parameters())
        kept.update(zip(own, views_of(share_storage(own), own)))
    return kept


def autograd(loss: th.Tensor, *nets: nn.Module) -> th.Tensor:
    own = [p for net in nets for p in net.parameters()]
    return th.cat([grad.flatten() for grad in th.autograd.grad(loss, own)])


def check(grad: th.Tensor, expected: th.Tensor) -> None:
    assert float((grad - expected).norm()) <= 1e-5 * float(expected.norm()) + 1e-7


@quickly
@given(double_q=st.booleans(), n_parts=st.integers(1, 3), **any_network)
def test_q_networks(
    n_inputs: int, hidden: Any, n_outputs: int, activation: Any, n_rows: int, double_q: bool, n_parts: int
) -> None:
    th.manual_seed(0)
    online, target = (network(n_inputs, hidden, n_outputs, activation) for _ in range(2))
    adam = FlatAdam(th.optim.Adam(online.parameters()))
    layers: Any = [parse_layers([net]) for net in (online, target)]
    native = NativeQNetworks(*layers, adam, targets_of([target]))
    obs = th.randn(n_rows, n_inputs + 2)[:, :n_inputs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sb3_isaac.device.native_mlp._MOST_PARTS", n_parts)
        patch.setattr("sb3_isaac.device.native_mlp.PART_ROWS", 7)
        q = target(obs)
        best = (online(obs) if double_q else q).argmax(1, keepdim=True)
        assert th.allclose(native.next_values(obs, double_q), q.gather(1, best), atol=1e-5, rtol=1e-5)
        actions, targets = th.randint(n_outputs, (n_rows, 1)), 2.0 * th.randn(n_rows, 1)
        loss = nn.functional.smooth_l1_loss(online(obs).gather(1, actions), targets)
        loss_sum = th.full((), 3.0)
        with th.no_grad():
            native.gradients(obs, actions, targets, loss_sum)
    assert float(loss_sum) == pytest.approx(3.0 + loss.item(), abs=1e-5)
    check(adam.grad, autograd(loss, online))


def test_nan_among_q_values() -> None:
    """As torch's amax: NaN wins, wherever it is."""
    online, target = (network(2, [], 3, nn.Tanh) for _ in range(2))
    adam, layers = FlatAdam(th.optim.Adam(online.parameters())), [parse_layers([net]) for net in (online, target)]
    native: Any = NativeQNetworks(*layers, adam, targets_of([target]))  # type: ignore[arg-type]
    for i in range(3):
        with th.no_grad():
            target[0].bias.copy_(th.tensor([0.1, 5.0, -1.0]))
            target[0].bias[i] = th.nan
            assert native.next_values(th.zeros(4, 2), False).isnan().all()


@quickly
@given(
    n_critics=st.integers(1, 2), action_dim=st.integers(1, 5), noisy=st.booleans(), n_parts=st.integers(1, 3), **any_network
)
def test_actor_and_critics(
    n_inputs: int,
    hidden: Any,
    n_outputs: int,
    activation: Any,
    n_rows: int,
    n_critics: int,
    action_dim: int,
    noisy: bool,
    n_parts: int,
) -> None:
    th.manual_seed(0)
    actors = [network(n_inputs, hidden, action_dim, activation, nn.Tanh) for _ in range(2)]
    critics = [[network(n_inputs + action_dim, [n_outputs], 1, activation) for _ in range(n_critics)] for _ in range(2)]
    adams = [FlatAdam(th.optim.Adam(nn.ModuleList(nets).parameters())) for nets in ([actors[0]], critics[0])]
    parsed: Any = [parse_layers([net]) for net in actors], [[parse_layers([net]) for net in nets] for nets in critics]
    kept = targets_of([nn.ModuleList([actors[1]]), nn.ModuleList(critics[1])])
    native = NativeActorCritics(parsed[0][0], parsed[1][0], parsed[0][1], parsed[1][1], *adams, kept)
    obs, actions, targets = th.randn(n_rows, n_inputs + 2)[:, 1:-1], th.randn(n_rows, action_dim), th.randn(n_rows, 1)
    noise = th.randn(n_rows, action_dim) if noisy else None
    sums = th.full((2,), 3.0)
    with pytest.MonkeyPatch.context() as patch, th.no_grad():
        patch.setattr("sb3_isaac.device.native_mlp._MOST_PARTS", n_parts)
        patch.setattr("sb3_isaac.device.native_mlp.PART_ROWS", 7)
        chosen = actors[1](obs) if noise is None else (actors[1](obs) + noise).clamp(-1.0, 1.0)
        joined = th.cat((obs, chosen), 1)
        lowest = th.cat([critic(joined) for critic in critics[1]], 1).amin(1, keepdim=True)
        assert th.allclose(native.next_values(obs, noise), lowest, atol=1e-5, rtol=1e-5)
        native.critic_gradients(obs, actions, targets, sums[0])
        native.actor_gradients(obs, sums[1])
    joined = th.cat((obs, actions), 1)
    loss = sum((nn.functional.mse_loss(critic(joined), targets) for critic in critics[0]), start=th.zeros(()))
    check(adams[1].grad, autograd(loss, *critics[0]))
    actor_loss = -critics[0][0](th.cat((obs, actors[0](obs)), 1)).mean()
    check(adams[0].grad, autograd(actor_loss, actors[0]))
    assert sums.tolist() == pytest.approx([3.0 + loss.item(), 3.0 + actor_loss.item()], rel=1e-4, abs=1e-5)


CASES = [
    ("dqn", {"double_q": True, "n_steps": 3, "reward_scale": 0.2, "max_grad_norm": 0.5}),
    ("dqn", {"batch_size": 50, "policy_kwargs": {"net_arch": [32, 24], "activation_fn": nn.ELU}}),
    ("ddpg", {"n_steps": 3}),
    ("ddpg", {"batch_size": 50, "policy_kwargs": {"net_arch": {"pi": [20], "qf": [64, 64]}, "n_critics": 2}}),
]


@pytest.mark.parametrize("algo, options", CASES)
def test_training_stays_near_the_plain_path(algo: str, options: Dict[str, Any]) -> None:
    models = []
    for compiled in (False, True):
        env = make_env(ENV_IDS[algo], 16, max_episode_length=12)
        given_options = {"policy_kwargs": {"net_arch": [32, 32]}, **options, "compile": compiled}
        models.append(make_model(algo, env, **given_options))
    before = parameters(models[0])
    for model in models:
        th.manual_seed(5)
        model.learn(16 * 20)
    assert models[1].path == "in tensors, without autograd, in C"
    assert [model.replay_buffer.in_c for model in models] == [False, True]
    assert float((parameters(models[0]) - before).abs().max()) > 1e-3
    assert difference(*models) < 1e-4
    losses = [{k: v for k, v in model.logger.name_to_value.items() if "loss" in k} for model in models]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2, abs=1e-4) and losses[0]


@pytest.mark.parametrize("algo", ["dqn", "ddpg"])
def test_it_goes_on_from_a_checkpoint_bit_for_bit(algo: str, tmp_path: Path) -> None:
    def env() -> Any:
        return make_env(ENV_IDS[algo], 16, max_episode_length=12)

    whole = make_model(algo, env(), compile=True)
    whole.learn(16 * 20)
    whole.save_checkpoint(tmp_path / "saved")
    whole.learn(16 * 10, reset_num_timesteps=False)
    resumed: Any = {"dqn": DQN, "ddpg": DDPG}[algo].resume(tmp_path / "saved", env())
    resumed.learn(16 * 10, reset_num_timesteps=False)
    assert th.equal(parameters(whole), parameters(resumed))


def test_wide_layers_stay_in_pytorch() -> None:
    model = make_model("ddpg", compile=True, policy_kwargs={"net_arch": [512]})
    assert model.path == "in tensors, without autograd; networks not in C: a layer has more than 400 inputs or units"
    model.learn(200)


@pytest.mark.parametrize("algo", ["ppo", "dqn", "ddpg"])
def test_networks_with_autograd_are_said_to_be_elsewhere(algo: str) -> None:
    options: Dict[str, Any] = {"compile": True, "policy_kwargs": {"activation_fn": th.nn.GELU}}
    model = ppo.make_model(env=make_env(), **options) if algo == "ppo" else make_model(algo, **options)
    assert model.path.endswith("GELU; networks not in C"), model.path
    model.compile = False
    assert model.path.endswith("GELU"), model.path


def test_actions_that_there_are_not() -> None:
    """Of a buffer from another task: nothing is written where they would be."""
    model = make_model("dqn", make_env(ENV_IDS["dqn"], 16), compile=True)
    model.learn(16 * 20)
    for action in (100_000.0, -1.0):
        model.replay_buffer.actions[:] = action
        with pytest.raises(IndexError, match="none of the environment's"):
            model.train(1, 32)


def test_indices_of_another_kind() -> None:
    model = make_model("dqn", make_env(ENV_IDS["dqn"], 16), compile=True, n_steps=3)
    model.learn(16 * 20)
    index = th.arange(0, 160, 7)
    one, other = (model.replay_buffer.at(kind) for kind in (index, index.int()))
    assert model.replay_buffer.in_c and all(th.equal(x, y) for x, y in zip(one, other) if x is not None)


class Whole(TensorEnv):
    """Observations are whole numbers."""

    obs_dim, action_dim, max_episode_length = 5, 1, 10

    def __init__(self) -> None:
        self.n_envs, self.device = 8, th.device("cpu")
        self.progress, self.generator = th.zeros(8, dtype=th.int64), th.Generator()

    def seed(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    def reset(self) -> th.Tensor:
        self.progress.zero_()
        return self.drawn()

    def drawn(self) -> th.Tensor:
        return th.randint(-99, 99, (8, 5), generator=self.generator).float()

    def step(self, actions: th.Tensor) -> StepResult:
        self.progress += 1
        truncated, final_obs = self.progress >= 9, self.drawn()
        self.progress.masked_fill_(truncated, 0)
        obs = th.where(truncated.unsqueeze(1), self.drawn(), final_obs)
        return StepResult(obs, -actions.square().sum(1), th.zeros_like(truncated), truncated, final_obs)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
@pytest.mark.parametrize("algo", ["dqn", "ddpg"])
def test_observations_of_integers(algo: str, dtype: Any) -> None:
    """The buffer hands them out as integers; SB3 makes numbers of them before the networks. On both paths."""
    models = []
    for compiled in (False, True):
        space: Any = spaces.Discrete(2) if algo == "dqn" else None
        env = IsaacVecEnv(Whole(), observation_space=spaces.Box(-100, 100, (5,), dtype), action_space=space)
        env.seed(0)
        model = make_model(algo, env, compile=compiled, policy_kwargs={"net_arch": [16]})
        th.manual_seed(5)
        models.append(model.learn(8 * 30))
        assert (
            model.replay_buffer.sample(4).observations.dtype
            == {np.int8: th.int8, np.int32: th.int32, np.int64: th.int64}[dtype]
        )
    assert difference(*models) < 1e-4


class Moves(BaseCallback):
    """Does something to the policy in the middle of training."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        self.what = what

    def _on_step(self) -> bool:
        if self.n_calls % 7 == 0:
            self.what(self.model)
        return True


def to_double_and_back(model: Any) -> None:
    model.policy.double()
    model.policy.float()


@pytest.mark.parametrize("what", [to_double_and_back, lambda model: model.policy.share_memory()], ids=["double", "share"])
@pytest.mark.parametrize("algo", ["ppo", "dqn", "ddpg"])
def test_a_policy_that_moves(algo: str, what: Any) -> None:
    """``policy.to`` moves parameters and gradients, sharing among processes whole storages: in callbacks, between trainings.

    Both paths come to what an undisturbed training comes to.
    """
    models = []
    for compiled, moves in ((False, False), (False, True), (True, True)):
        if algo == "ppo":
            model = ppo.make_model(env=make_env(), compile=compiled)
        else:
            env = make_env(ENV_IDS[algo], 16, max_episode_length=12)
            model = make_model(algo, env, compile=compiled, policy_kwargs={"net_arch": [16]})
        th.manual_seed(5)
        for _ in range(2):
            model.learn(16 * 20, callback=Moves(what) if moves else None, reset_num_timesteps=False)
            if moves:
                what(model)
        models.append(model)
    assert difference(models[0], models[1]) < 1e-6
    assert difference(models[0], models[2]) < 1e-4
