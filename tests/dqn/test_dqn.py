"""DQN: exploration, targets and learning."""

from __future__ import annotations

import numpy as np
import pytest
import torch as th
from torch.nn import functional as F

from sb3_isaac.files.plain_state import Packer, Unpacker
from sb3_isaac.off_policy.exploration import EpsilonGreedy, spread
from tests.conftest import DISCRETE, make_env
from tests.off_policy.conftest import assert_close, feed, make_model, random_samples, start


def test_epsilon_tosses_a_coin_for_each_environment():
    """SB3 tosses one for all: then every step is either all greedy or all random."""
    model = start(make_model("dqn", make_env(DISCRETE, 2048)))
    model.exploration_rate = 0.6
    model._look_again(model._run)
    with th.no_grad():
        model.q_net.q_net[-1].weight.zero_()
        model.q_net.q_net[-1].bias.copy_(th.tensor([0.0, 1.0, 0.0]))
    for _ in range(5):
        actions = model._act(model.env.obs_tensor, False)
        assert actions.dtype == th.int64
        assert (actions == 1).float().mean().item() == pytest.approx(0.4 + 0.2, abs=0.06)
        assert (actions == 0).float().mean().item() == pytest.approx(0.2, abs=0.05)


def test_random_actions_before_learning_starts():
    model = start(make_model("dqn", make_env(DISCRETE, 3000)))
    actions = model._act(model.env.obs_tensor, True)
    assert np.bincount(actions.numpy(), minlength=3) == pytest.approx([1000] * 3, abs=120)


def test_per_env_epsilon():
    model = start(make_model("dqn", make_env(DISCRETE, 6), per_env_epsilon=[1.0, 1e-5]))
    assert th.allclose(model._run.exploration.epsilon, 10.0 ** -th.arange(6.0))
    with th.no_grad():
        model.q_net.q_net[-1].weight.zero_()
        model.q_net.q_net[-1].bias.copy_(th.tensor([0.0, 1.0, 0.0]))
    actions = th.stack([model._act(model.env.obs_tensor, False) for _ in range(600)])
    others = (actions != 1).float().mean(0)
    assert others[0].item() == pytest.approx(2 / 3, abs=0.08)
    assert 0.02 < others[1].item() < 0.13 and others[4:].sum().item() <= 2 / 600
    model.learn(80)
    assert model.logger.name_to_value["rollout/exploration_rate"] == pytest.approx(
        model._run.exploration.epsilon.mean().item()
    )


@pytest.mark.parametrize("ends", [(1.0, 0.0), (2.0, 0.1), (0.5,), "ab", 0.3])
def test_bad_per_env_epsilon(ends):
    with pytest.raises(ValueError, match="per_env_epsilon must be two numbers"):
        start(make_model("dqn", per_env_epsilon=ends))


def test_epsilon_zero_is_greedy_and_one_is_random():
    greedy = th.full((5000,), 2)
    assert th.equal(EpsilonGreedy(3, 0.0, greedy.device).explore(greedy), greedy)
    assert (EpsilonGreedy(3, 1.0, greedy.device).explore(greedy) == 2).float().mean().item() == pytest.approx(1 / 3, abs=0.03)
    assert th.allclose(spread("x", (4.0, 1.0), 3, th.device("cpu")), th.tensor([4.0, 2.0, 1.0]))
    assert spread("x", (4.0, 1.0), 1, th.device("cpu")).tolist() == [2.0]


def test_exploration_schedule_is_sb3s():
    model = make_model("dqn", exploration_fraction=0.5, exploration_initial_eps=0.8, exploration_final_eps=0.2)
    model.learn(800)
    assert model.exploration_rate == pytest.approx(0.2)
    seen = []
    model.learn(800, callback=lambda local, _: seen.append(local["self"].exploration_rate if "self" in local else 0) or True)
    assert model.exploration_rate == pytest.approx(0.2)


@pytest.mark.parametrize("interval, every", [(1, 1), (8, 1), (17, 2), (40, 5)])
def test_target_update_interval_counts_transitions(interval, every):
    """SB3's unit: max(target_update_interval // n_envs, 1) steps of all environments."""
    model = start(make_model("dqn", target_update_interval=interval, tau=0.25))
    with th.no_grad():
        for p in model.q_net.parameters():
            p.fill_(1.0)
        for p in model.q_net_target.parameters():
            p.fill_(0.0)
    value = 0.0
    for step in range(1, 11):
        model._on_step()
        if step % every == 0:
            value += 0.25 * (1.0 - value)
        for p in model.q_net_target.parameters():
            assert th.allclose(p, th.full_like(p, value), atol=1e-6)


@pytest.mark.parametrize("activation", [th.nn.ReLU, th.nn.SiLU])  # by hand, and through autograd
def test_double_q(activation):
    """Against a plain implementation of https://arxiv.org/abs/1509.06461."""
    policy_kwargs = dict(net_arch=[16], activation_fn=activation)
    options = dict(double_q=True, learning_rate=1e-2, policy_kwargs=policy_kwargs)
    model, reference = start(make_model("dqn", **options)), start(make_model("dqn", **options))
    samples = random_samples("dqn", 3 * 20, discounts=True)
    feed(model, samples, 20)
    generator = th.Generator().manual_seed(1)
    for one in (model, reference):
        generator.manual_seed(1)
        with th.no_grad():
            for p in one.q_net_target.parameters():
                p.add_(th.randn(p.shape, generator=generator))
    model.train(3, 20)
    optimizer = th.optim.Adam(reference.q_net.parameters(), lr=1e-2)
    for i in range(3):
        s = [x[20 * i : 20 * (i + 1)] for x in samples]
        with th.no_grad():
            best = reference.q_net(s[2]).argmax(1, keepdim=True)
            target = s[4] + s[5] * (1 - s[3]) * reference.q_net_target(s[2]).gather(1, best)
        loss = F.smooth_l1_loss(reference.q_net(s[0]).gather(1, s[1]), target)
        optimizer.zero_grad()
        loss.backward()
        th.nn.utils.clip_grad_norm_(reference.q_net.parameters(), reference.max_grad_norm)
        optimizer.step()
    assert_close(model, reference)


def test_max_grad_norm_limits_the_gradient():
    samples = random_samples("dqn", 16)
    samples = samples._replace(rewards=samples.rewards * 1e4)
    model = start(make_model("dqn", max_grad_norm=0.5))
    feed(model, samples, 16)
    model.train(1, 16)
    assert th.linalg.vector_norm(model._run.fast.adam.grad).item() <= 0.5 + 1e-4


def test_it_learns():
    model = make_model(
        "dqn", make_env(DISCRETE, 64), learning_rate=3e-3, n_steps=10, buffer_size=20_000, batch_size=128, train_freq=2,
        gradient_steps=2, learning_starts=1280, target_update_interval=64, tau=0.03, per_env_epsilon=(1.0, 0.01),
        reward_scale=0.1, policy_kwargs=dict(net_arch=[64, 64]),
    )  # fmt: skip
    model.learn(45_000)
    obs = model.env.reset()
    alive = np.ones(64, dtype=bool)
    for _ in range(200):
        obs, _, dones, _ = model.env.step(model.predict(obs, deterministic=True)[0])
        alive &= ~dones
    assert alive.mean() > 0.5


def test_per_env_epsilon_with_a_custom_network():
    model = make_model("dqn", per_env_epsilon=(0.5, 0.5), policy_kwargs=dict(activation_fn=th.nn.SiLU))
    model.learn(80)
    assert model._run.fast is None and model.exploration_rate == 0.5
    assert model.logger.name_to_value["rollout/exploration_rate"] == 0.5


@pytest.mark.parametrize("saved_on_device", [False, True])
@pytest.mark.parametrize("on_device", [False, True])
def test_a_resumed_epsilon_is_of_the_kind_that_the_run_needs(saved_on_device, on_device):
    """A checkpoint of a CPU, resumed on a GPU with compile=True: the graph goes on reading its tensor. And the reverse."""
    saved, model = start(make_model("dqn")), start(make_model("dqn"))
    for one, kind, rate in ((saved, saved_on_device, 0.25), (model, on_device, 0.75)):
        one.exploration_rate = rate
        one._run.exploration = one._make_exploration(kind)
    epsilon = model._run.exploration.epsilon
    model._set_run_state(Unpacker(), saved._run_state(Packer()), same_learn=True)
    assert float(model._run.exploration.epsilon) == model._run.exploration.mean == 0.25
    assert model._run.exploration.epsilon is epsilon if on_device else isinstance(model._run.exploration.epsilon, float)
