"""PPO's update without autograd against SB3's own train(), its statistics, the adaptive learning rate."""

from __future__ import annotations

from typing import Any, Dict, List

import numpy as np
import pytest
import stable_baselines3
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_isaac import PPO, DeviceRolloutBuffer, VecNormalize
from sb3_isaac.device import cuda_graph
from sb3_isaac.device.flat_adam import FlatAdam
from sb3_isaac.ppo import loss
from sb3_isaac.ppo.fast_policy import FastActorCriticPolicy
from sb3_isaac.ppo.loss import APPROX_KL, KL
from sb3_isaac.ppo.rollout import Rollout
from sb3_isaac.ppo.update import AdaptiveLR
from tests.conftest import CONTINUOUS, DISCRETE, StandInGraph, difference, make_env, parameters, stand_in_for_graphs
from tests.ppo.conftest import Looks, OwnExtractor, learn, make_model

N_ENVS, N_STEPS = 16, 16


def make(cls: Any, env_id: str, **kwargs: Any) -> Any:
    env = make_env(env_id, N_ENVS, max_episode_length=12)
    return make_model(cls, env, **{"n_epochs": 3, "learning_rate": 1e-3, **kwargs})


CASES: Dict[str, Dict[str, Any]] = {
    "tanh": {},
    "elu": {"policy_kwargs": {"activation_fn": nn.ELU, "net_arch": [32, 16]}, "ent_coef": 0.01},
    "relu": {"policy_kwargs": {"activation_fn": nn.ReLU, "net_arch": {"pi": [16], "vf": [24, 8]}}, "max_grad_norm": 0.05},
    "clip_range_vf": {"clip_range_vf": 0.05, "ent_coef": 0.01},
    "target_kl": {"target_kl": 0.002},
    "schedules": {
        "learning_rate": lambda p: 1e-3 * p,
        "clip_range": lambda p: 0.05 + 0.05 * p,
        "clip_range_vf": lambda p: 0.05 + 0.1 * p,
    },
    "truncated_minibatch": {"batch_size": 100, "normalize_advantage": False, "vf_coef": 0.1},
    "own_extractor": {"policy_kwargs": {"features_extractor_class": OwnExtractor}, "clip_range_vf": 0.05, "ent_coef": 0.01},
    "sgd": {"policy_kwargs": {"optimizer_class": th.optim.SGD}, "target_kl": 0.1},
    "gsde": {"use_sde": True, "sde_sample_freq": 4, "policy_kwargs": {"squash_output": True}},
}
AUTOGRAD = ("own_extractor", "sgd", "gsde")


@pytest.mark.parametrize("env_id", [CONTINUOUS, DISCRETE])
@pytest.mark.parametrize("case", CASES)
def test_training_equals_sb3(case: str, env_id: str) -> None:
    """Three rollouts and updates: the same random numbers give the same parameters, losses and episodes as SB3's code."""
    if case == "gsde" and env_id == DISCRETE:
        with pytest.raises(ValueError, match="continuous"):
            make(PPO, env_id, **CASES[case])
        return
    # SB3's PPO with our buffer, which draws the minibatches: SB3's own draws them in numpy
    theirs = make(stable_baselines3.PPO, env_id, rollout_buffer_class=DeviceRolloutBuffer, **CASES[case])
    ours = make(PPO, env_id, **CASES[case])
    before = parameters(ours)
    for model in (theirs, ours):
        learn(model, 3)
    assert (ours._run.update.fast is None) == (case in AUTOGRAD)
    assert difference(ours, theirs) < 2e-6
    assert float((parameters(ours) - before).abs().max()) > 1e-4
    assert ours._n_updates == theirs._n_updates
    if case == "target_kl":
        assert ours._n_updates < 9
    logged, expected = ours.logger.name_to_value, theirs.logger.name_to_value
    for key in expected:
        assert logged[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-5), key
    assert set(logged) - set(expected) == {"time/update"}
    states = [model.policy.optimizer.state_dict()["state"] for model in (ours, theirs)]
    for key, state in states[1].items():
        for name in state:
            if state[name] is not None:
                assert th.allclose(th.as_tensor(states[0][key][name]), th.as_tensor(state[name]), rtol=1e-3, atol=1e-6)
    assert [episode["l"] for episode in ours.ep_info_buffer] == [episode["l"] for episode in theirs.ep_info_buffer]


@pytest.mark.parametrize("env_id", [CONTINUOUS, DISCRETE])
def test_update_equals_sb3_with_its_own_buffer(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SB3 with numpy buffers and numpy's permutations, ours on the same data with the same permutations."""
    theirs, ours = make(stable_baselines3.PPO, env_id), make(PPO, env_id)
    assert type(theirs.rollout_buffer) is RolloutBuffer
    rng = np.random.default_rng(0)
    orders: List[np.ndarray] = [rng.permutation(N_ENVS * N_STEPS) for _ in range(3)]
    in_numpy, in_torch = iter(orders), iter(orders)
    monkeypatch.setattr(np.random, "permutation", lambda n: next(in_numpy))
    monkeypatch.setattr(th, "randperm", lambda n, **kwargs: th.from_numpy(next(in_torch)))
    for model in (theirs, ours):
        learn(model, 1)
    assert difference(ours, theirs) < 2e-6


@pytest.mark.parametrize("cores", [1, 8])
@pytest.mark.parametrize("env_id", [CONTINUOUS, DISCRETE])
def test_pieces_of_minibatches_add_up(env_id: str, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"clip_range_vf": 0.05, "ent_coef": 0.01, "adaptive_lr_kl": 0.01}
    whole, pieces = make(PPO, env_id, **options), make(PPO, env_id, **options)
    learn(whole, 1)
    monkeypatch.setattr("sb3_isaac.device.fast_mlp.LANE_ROWS", 24)
    monkeypatch.setattr("sb3_isaac.device.fast_mlp._CORES", cores)
    learn(pieces, 1)
    assert len(pieces._run.update.fast._lanes) > 1
    assert difference(whole, pieces) < 2e-6
    assert whole.logger.name_to_value["train/loss"] == pytest.approx(pieces.logger.name_to_value["train/loss"], rel=1e-4)


@pytest.mark.parametrize("env_id", [CONTINUOUS, DISCRETE])
def test_exact_kl_divergence(env_id: str) -> None:
    model = make(PPO, env_id, adaptive_lr_kl=0.01)
    model.train = lambda: None  # the policy stays the one that acted
    adam = FlatAdam(model.policy.optimizer)
    model.learn(N_ENVS * N_STEPS)
    policy, loss_settings = model.policy, loss.LossSettings(0.2, None, 0.0, 0.5, True)
    rows = model.rollout_buffer.rows[:50]
    old_log_std = policy.log_std.detach().clone() if env_id == CONTINUOUS else None
    obs, fast, everything = rows[:, :4], FastActorCriticPolicy(policy, 20, adam), th.arange(50)
    with th.no_grad():
        old = policy.get_distribution(obs).distribution
        old = type(old)(**_parameters(old))
        assert float(fast.gradients(rows, everything, loss_settings, old_log_std)[KL]) == pytest.approx(0.0, abs=1e-5)
        for p in policy.parameters():
            p.add_(0.05 * th.randn_like(p))
        expected = float(th.distributions.kl_divergence(old, policy.get_distribution(obs).distribution).sum())
        assert expected > 0.1
        assert float(fast.gradients(rows, everything, loss_settings, old_log_std)[KL]) == pytest.approx(expected, rel=1e-3)
        without = fast.gradients(rows[:, :9].contiguous(), everything, loss_settings)
        assert float(without[KL]) == float(without[APPROX_KL])


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("env_id", [CONTINUOUS, DISCRETE])
def test_all_rows_at_once_give_the_same_as_lanes(env_id: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if compiled and not hasattr(th, "compile"):
        pytest.skip("needs torch 2")
    monkeypatch.setattr("sb3_isaac.device.fast_mlp.LANE_ROWS", 24)
    model = make(PPO, env_id, adaptive_lr_kl=0.01)
    model.train = lambda: None  # the ratios stay near one
    adam = FlatAdam(model.policy.optimizer)
    model.learn(N_ENVS * N_STEPS)
    rows, table, found = th.randperm(60), model.rollout_buffer.rows, []
    table[:, 5:] += 0.02 * th.randn_like(table[:, 5:])
    old_log_std = model.policy.log_std.detach() - 0.1 if env_id == CONTINUOUS else None
    settings = loss.LossSettings(0.02, 0.05, 0.01, 0.5, True)
    for at_once in (False, True):
        fast = FastActorCriticPolicy(model.policy, 60, adam)
        if compiled:
            fast.compile()
        with th.no_grad():
            sums = (fast._at_once if at_once else fast._in_lanes)(table, rows, settings, old_log_std)
        found.append([sums.clone(), *(p.grad.clone() for p in model.policy.parameters())])
    for lanes, once in zip(*found):
        assert float(lanes.abs().max()) > 0.0
        assert th.allclose(lanes, once, rtol=1e-4, atol=1e-6)


def _parameters(distribution: Any) -> Dict[str, th.Tensor]:
    if isinstance(distribution, th.distributions.Normal):
        return {"loc": distribution.loc.clone(), "scale": distribution.scale.clone()}
    return {"logits": distribution.logits.clone()}


def test_learning_rate_follows_the_divergence() -> None:
    rule = AdaptiveLR(target=0.01, factor=1.5, lowest=1e-4, highest=1e-2)
    lr = th.tensor(1e-3)
    for kl, expected in [
        (0.0, 1e-3),  # the policy has not moved: no change
        (0.0201, 1e-3 / 1.5),
        (0.0199, 1e-3 / 1.5),
        (0.0051, 1e-3 / 1.5),
        (0.0049, 1e-3),
        *[(0.001, 1e-2)] * 1,
    ]:
        for _ in range(20 if kl == 0.001 else 1):
            rule.adapt_(lr, th.tensor(kl))
        assert float(lr) == pytest.approx(expected, rel=1e-5)
    for _ in range(50):
        rule.adapt_(lr, th.tensor(1.0))
    assert float(lr) == pytest.approx(1e-4)


@pytest.mark.parametrize("extractor", [FlattenExtractor, OwnExtractor])
def test_adaptive_learning_rate_in_training(extractor: type) -> None:
    """A rate that moves the policy too far comes down, one too low goes up; it is logged, given to the optimizer and kept."""
    for target, expected in ((1e-7, 1e-4), (1e3, 1e-2)):
        model = make(PPO, CONTINUOUS, adaptive_lr_kl=target, policy_kwargs={"features_extractor_class": extractor})
        learn(model, 2)
        assert model.adapted_lr == pytest.approx(expected)
        assert model.logger.name_to_value["train/learning_rate"] == model.adapted_lr
        assert model.policy.optimizer.param_groups[0]["lr"] == model.adapted_lr
    model = make(PPO, CONTINUOUS, adaptive_lr_kl=1e3, policy_kwargs={"optimizer_class": th.optim.SGD})
    assert learn(model, 2).adapted_lr == model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2)


def test_nan_is_reported() -> None:
    model = make(PPO, CONTINUOUS, learning_rate=1e30, max_grad_norm=float("inf"))
    with pytest.raises(FloatingPointError, match="loss is NaN"):
        model.learn(N_ENVS * N_STEPS)
    model = make(PPO, CONTINUOUS)
    with th.no_grad():
        model.policy.log_std.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="log_std of the model is not finite: training does not begin"):
        model.learn(N_ENVS * N_STEPS)


def test_policies_with_more_than_an_mlp_are_recognised() -> None:
    def policy(**kwargs: Any) -> ActorCriticPolicy:
        return make(PPO, CONTINUOUS, policy_kwargs=kwargs).policy

    def why_not(policy: Any) -> str:
        return str(FastActorCriticPolicy.why_not(policy, trains=True))

    assert why_not(policy()) == why_not(policy(activation_fn=nn.LeakyReLU, net_arch=[])) == "None"
    assert "GELU" in why_not(policy(activation_fn=nn.GELU))
    assert "features_extractor is a OwnExtractor" in why_not(policy(features_extractor_class=OwnExtractor))
    frozen, hooked, replaced = policy(), policy(), policy()
    next(frozen.mlp_extractor.parameters()).requires_grad_(False)
    assert "frozen" in why_not(frozen)
    hooked.mlp_extractor.policy_net.register_forward_hook(lambda *args: None)
    assert "hooks" in why_not(hooked)
    replaced.evaluate_actions = lambda *args: None  # type: ignore[method-assign]
    assert "replaced" in why_not(replaced)
    own = type("OwnPolicy", (ActorCriticPolicy,), {})
    env = make_env(CONTINUOUS, 2)
    assert "OwnPolicy" in why_not(PPO(own, env, n_steps=4, batch_size=8, device="cpu").policy)


def test_compiled_update_equals_eager() -> None:
    # A clip range that falls to 0 would leave it to rounding which rows are clipped
    options = {
        "clip_range_vf": 0.05,
        "ent_coef": 0.01,
        "n_steps": 4,
        "n_minibatches": 1,
        "clip_range": lambda p: 0.1 + 0.1 * p,
    }
    eager, compiled = make(PPO, CONTINUOUS, **options), make(PPO, CONTINUOUS, compile=True, **options)
    simulators = [model.env.tensor_env for model in (eager, compiled)]
    compile_simulator, simulators[1].compile = simulators[1].compile, lambda: None
    for model in (eager, compiled):
        learn(model, 3)
    assert difference(eager, compiled) < 2e-6
    # The simulator, too, rounds in its own way when it is compiled: each step starts from the same state, and what is
    # compared is the physics, since rounding may decide whether a pole counts as fallen
    compile_simulator()
    for _ in range(15):
        simulators[1].set_state(simulators[0].get_state())
        eager_step, compiled_step = (simulator.step(th.ones(N_ENVS, 1)) for simulator in simulators)
        assert th.allclose(eager_step.final_obs, compiled_step.final_obs, atol=1e-4)


@pytest.mark.parametrize("looks", [True, False])
def test_graphs_of_rollouts_have_the_parameters_where_they_are(looks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first update makes the optimizer flat, which moves them: a graph from before would act with those of then."""

    class Recorded(StandInGraph):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.addresses = [p.data_ptr() for p in model.policy.parameters()]

    def capturing(self: Rollout, *args: Any) -> None:
        make_rollout(self, *args)
        self._may_capture = True

    make_rollout = Rollout.__init__
    monkeypatch.setattr(Rollout, "__init__", capturing)
    monkeypatch.setattr(cuda_graph, "CudaGraph", Recorded)
    model = make(PPO, CONTINUOUS)
    captured: List[Any] = []
    for _ in range(4):
        learn(model, 1, Looks() if looks else None)
        graphed = model._run.rollout.graphed_step if looks else model._run.rollout.graphed_steps
        captured.extend(graphed.graphs.values())
    assert captured[-1].addresses == [p.data_ptr() for p in model.policy.parameters()]
    if looks:
        assert captured[0].addresses != captured[-1].addresses
        assert captured[1] is captured[2] is captured[3]  # captured anew once
    else:  # of a whole rollout only when it is sure that the parameters stay
        assert len(captured) == 2 and captured[0] is captured[1]


def test_what_a_callback_changes_at_a_rollouts_start_is_seen_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_graphs(monkeypatch)

    class Freeze(BaseCallback):
        def _on_rollout_start(self) -> None:
            self.training_env.training = False

        def _on_step(self) -> bool:
            return True

    env = VecNormalize(make_env(CONTINUOUS, N_ENVS, max_episode_length=12))
    model = make_model(PPO, env, n_epochs=1)
    learn(model, 1)
    model._run.rollout._may_capture = True
    learn(model, 1, Looks())
    (before,) = model._run.rollout.graphed_step.graphs.values()
    th.manual_seed(5)
    model.learn(N_STEPS * N_ENVS, callback=Freeze())
    (after,) = model._run.rollout.graphed_step.graphs.values()
    assert after is not before


@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize("env_id", [CONTINUOUS, DISCRETE])
def test_captured_path_equals_eager(env_id: str, looks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code around CUDA graphs (test_ppo_gpu.py has the graphs): inputs, counters on the device, what voids them."""
    options = {"clip_range": lambda p: 0.1 + 0.1 * p, "batch_size": 100, "adaptive_lr_kl": 1e3, "adaptive_lr_max": 2e-3}
    eager, captured = make(PPO, env_id, **options), make(PPO, env_id, **options)
    for model in (eager, captured):
        learn(model, 1)
    stand_in_for_graphs(monkeypatch)
    run = captured._run
    run.rollout._may_capture = run.update._captures = True
    run.update.adam.steps = th.tensor(run.update.adam.steps)
    for model in (eager, captured):
        learn(model, 4, Looks() if looks else None)
    (step,) = (run.rollout.graphed_step if looks else run.rollout.graphed_steps).graphs.values()
    assert step.replays == (4 * N_STEPS - 1 if looks else 3)
    assert eager.num_timesteps == captured.num_timesteps and list(eager.ep_info_buffer) != []
    assert [g.replays for g in run.update.gradients.graphs.values()] == [4 * 3 * 2 - 1, 4 * 3 - 1]
    assert {n: g.replays for (n,), g in run.update.step.graphs.items()} == {100: 4 * 3 * 2 - 1, 56: 4 * 3 - 1}
    assert difference(eager, captured) < 1e-4 and captured.adapted_lr == pytest.approx(eager.adapted_lr)
    steps = [model.policy.optimizer.state_dict()["state"][0]["step"] for model in (eager, captured)]
    assert float(steps[0]) == float(steps[1]) == 5 * 3 * 3
    # Another loss, and a network that needs autograd, make the graphs void
    captured.vf_coef = 0.1
    before = list(run.update.gradients.graphs.values())
    learn(captured, 1)
    assert not set(before) & set(run.update.gradients.graphs.values())
    captured.policy.mlp_extractor.policy_net.register_forward_hook(lambda *args: None)
    learn(captured, 2)
    assert not run.rollout.graphed_step.graphs and not run.rollout.graphed_steps.graphs
    assert not run.update.gradients.graphs and not run.update.step.graphs
