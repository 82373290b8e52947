"""The updates of DQN and DDPG against SB3's own, on the same minibatches and weights."""

from __future__ import annotations

import pytest
import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_isaac.buffers.sb3_buffer import SB3_HAS_N_STEPS
from sb3_isaac.off_policy import algorithm as off_policy
from tests.conftest import parameters
from tests.off_policy.conftest import ALGOS, STOCK, assert_close, feed, make_model, random_samples, start

pytestmark = pytest.mark.parametrize("algo", ["dqn", "ddpg"])


class Doubling(BaseFeaturesExtractor):
    """A features extractor that the hand-written passes do not know."""

    def __init__(self, observation_space):
        super().__init__(observation_space, features_dim=8)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8))

    def forward(self, obs):
        return self.net(obs)


POLICIES = {
    "relu": dict(net_arch=[16, 8]),
    "tanh": dict(net_arch=[16, 8], activation_fn=nn.Tanh),
    "elu": dict(net_arch=[12], activation_fn=nn.ELU),
    "linear": dict(net_arch=[]),
    "custom": dict(net_arch=[16, 8], features_extractor_class=Doubling),
    "rmsprop": dict(net_arch=[16, 8], optimizer_class=th.optim.RMSprop),
    "silu": dict(net_arch=[16, 8], activation_fn=nn.SiLU),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("discounts", [False] + [True] * SB3_HAS_N_STEPS)
def test_update_equals_sb3(algo, policy, discounts):
    steps, batch = 7, 24
    samples = random_samples(algo, steps * batch, discounts=discounts)
    options = dict(policy_kwargs=dict(POLICIES[policy]), learning_rate=lambda progress: 3e-3, tau=0.1)
    ours = start(make_model(algo, **options))
    stock = start(make_model(algo, cls=STOCK[algo], **options))
    assert (ours._fast is None) == (policy in ("custom", "rmsprop", "silu"))
    assert th.equal(parameters(ours), parameters(stock))
    before = parameters(ours)
    for model in (ours, stock):
        feed(model, samples, batch)
        model.train(gradient_steps=5, batch_size=batch)
        if algo == "dqn":
            for _ in range(5):
                model._on_step()
        if model is ours:  # learn() again: the optimizers' state, step count included, goes on
            sampling = model.replay_buffer.sample_tensors
            start(model)
            assert model.replay_buffer.sample_tensors is sampling
        model.train(gradient_steps=2, batch_size=batch)
    assert_close(ours, stock)
    assert not th.equal(before, parameters(ours))
    assert ours._n_updates == stock._n_updates == 7
    # The optimizers agree too, so that training can go on elsewhere
    for name, state in ours.get_parameters().items():
        if name.endswith("optimizer"):
            theirs = stock.get_parameters()[name]["state"]
            for key, value in state["state"].items():
                for field in value:
                    assert th.allclose(th.as_tensor(value[field]), th.as_tensor(theirs[key][field]), atol=1e-5), field


def test_large_batches_in_pieces_equal_sb3(algo, monkeypatch):
    monkeypatch.setattr(off_policy, "CHUNK", 1000)
    batch = 3500  # more than one piece, and not a multiple
    samples = random_samples(algo, 2 * batch)
    ours, stock = start(make_model(algo)), start(make_model(algo, cls=STOCK[algo]))
    for model in (ours, stock):
        feed(model, samples, batch)
        model.train(gradient_steps=2, batch_size=batch)
    assert_close(ours, stock)


def test_logged_losses_equal_sb3(algo):
    samples = random_samples(algo, 4 * 16)
    logged = []
    for cls in (ALGOS[algo], STOCK[algo]):
        model = start(make_model(algo, cls=cls))
        feed(model, samples, 16)
        model.train(gradient_steps=4, batch_size=16)
        if cls is ALGOS[algo]:
            model._run.log.read_if_due(model, None, force=True)
        logged.append({key: value for key, value in model.logger.name_to_value.items() if "loss" in key or "n_upd" in key})
    assert logged[0].keys() == logged[1].keys()
    for key in logged[0]:
        assert logged[0][key] == pytest.approx(logged[1][key], rel=1e-4), key


def test_reward_scale_scales_the_rewards_of_the_update_only(algo):
    samples = random_samples(algo, 32)
    scaled = start(make_model(algo, reward_scale=0.25))
    plain = start(make_model(algo))
    feed(scaled, samples, 32)
    feed(plain, samples._replace(rewards=samples.rewards * 0.25), 32)
    for model in (scaled, plain):
        model.train(1, 32)
    assert_close(scaled, plain)
    model = make_model(algo, reward_scale=0.25)
    model.learn(80)
    assert model.replay_buffer.rewards[:5].max() > 0.9  # a reward of a cartpole that stands is nearly 1
