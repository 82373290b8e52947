"""The updates of DQN and DDPG against SB3's own, on the same minibatches and weights."""

from __future__ import annotations

import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_isaac.buffers.sb3_buffer import SB3_HAS_N_STEPS
from sb3_isaac.device.fast_mlp import FastMLP
from sb3_isaac.envs.vec_normalize import VecNormalize
from sb3_isaac.off_policy import update
from tests.conftest import ENV_IDS, difference, make_env, parameters, stand_in_for_graphs
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
    assert (ours._run.fast is None) == (policy in ("custom", "rmsprop", "silu"))
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
    monkeypatch.setattr(update, "CHUNK", 1000)
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
            model._read_log(model._run.log, None)
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


def capture(model, monkeypatch):
    """What compile=True does on a GPU, with stand-ins for graphs."""
    stand_in_for_graphs(monkeypatch)
    run = start(model)._run
    run.rollout.captures = run.updates.captures = True
    run.lrs, run.exploration = [th.zeros(()) for _ in model._optimizers()], model._make_exploration(True)
    for adam in run.fast.adams:
        adam.steps = th.tensor(adam.steps)
    return run


def iterate(model, n):
    callback = model._init_callback(None)
    for _ in range(n):
        given = (model.train_freq, model.replay_buffer, model.action_noise, model.learning_starts, None)
        model.collect_rollouts(model.env, callback, *given)
        if model.num_timesteps > model.learning_starts:
            model.train(2, 32)


@pytest.mark.parametrize("policy", ["relu", "tanh", "elu"])
@pytest.mark.parametrize("extra", [False, True])
def test_small_minibatches_in_one_function_equal_pieces_to_the_last_bit(algo, policy, extra, monkeypatch):
    """On a GPU, and for large minibatches, passes and loss are pieces."""
    policy_kwargs = dict(POLICIES[policy])
    options = {}
    if extra and algo == "dqn":
        options = dict(double_q=True)
    elif extra:
        policy_kwargs["n_critics"] = 2
    trained = []
    for small in (True, False):
        if not small:
            monkeypatch.setattr(FastMLP, "small", lambda *args: None)
        model = start(make_model(algo, policy_kwargs=policy_kwargs, tau=0.1, **options))
        if extra and algo == "ddpg":
            model.target_noise_clip, model.target_policy_noise = 0.5, 0.4
        assert (model._run.fast.acting.small(th.zeros(3, 4), False) is not None) == small
        feed(model, random_samples(algo, 7 * 24), 24)
        th.manual_seed(1)
        model.train(gradient_steps=5, batch_size=24)
        trained.append((parameters(model), model._run.log.loss_sums.clone()))
    assert th.equal(trained[0][0], trained[1][0]) and th.equal(trained[0][1], trained[1][1])
    assert trained[0][1].abs().min() > 0.0


@pytest.mark.parametrize("normalized", [False, True])
def test_captured_path_equals_eager(algo, normalized, monkeypatch):
    """The code around CUDA graphs (the GPU tests have the graphs): inputs, counters and rates on the device."""
    models = []
    for captured in (False, True):  # one after the other: both are seeded when they are made
        env = make_env(ENV_IDS[algo], max_episode_length=9)
        model = make_model(algo, VecNormalize(env) if normalized else env, n_steps=3)
        run = capture(model, monkeypatch) if captured else start(model)._run
        iterate(model, 7)
        model.env.reset()  # seen by graphs, too
        iterate(model, 7)
        models.append(model)
    (random, step), (update_graph,) = run.rollout.graphed_step.graphs.values(), run.updates.graphed_update.graphs.values()
    assert (random.replays, step.replays, update_graph.replays) == (4, 8, 8)
    eager, captured = models
    assert eager.num_timesteps == captured.num_timesteps and eager._n_updates == captured._n_updates == 18
    assert th.allclose(eager.replay_buffer._storage, captured.replay_buffer._storage, atol=1e-4)
    assert_close(eager, captured, atol=1e-4)


@pytest.mark.parametrize("setting", ["gamma", "tau", "reward_scale", "max_grad_norm", "norm_obs", "clip_reward", "betas"])
def test_a_changed_setting_voids_the_graphs(algo, setting, monkeypatch):
    if setting == ("tau" if algo == "dqn" else "max_grad_norm"):
        return  # not read by this algorithm's update
    vec_normalize = VecNormalize(make_env(ENV_IDS[algo]))
    model = make_model(algo, vec_normalize)
    run = capture(model, monkeypatch)
    iterate(model, 10)
    graphs = run.updates.graphed_update.graphs
    before = list(graphs.values())
    iterate(model, 2)
    assert list(graphs.values()) == before and len(before) == 1
    if setting == "betas":
        model._optimizers()[0].param_groups[0]["betas"] = (0.8, 0.99)
    else:
        owner = vec_normalize if hasattr(vec_normalize, setting) and setting != "gamma" else model
        setattr(owner, setting, False if setting == "norm_obs" else 0.5 * getattr(owner, setting))
    iterate(model, 1)
    assert not graphs
    iterate(model, 1)
    assert len(graphs) == 1 and list(graphs.values()) != before


def test_networks_that_somebody_has_moved_are_brought_back(algo):
    """``policy.to("cpu")`` and back, on a GPU: the online networks and the targets go on where training has them."""

    class Move(BaseCallback):
        def _on_rollout_start(self):
            for parameter in self.model.policy.parameters():
                parameter.data = parameter.data.clone()

        def _on_step(self):
            return True

    models = [make_model(algo, learning_starts=8, train_freq=2) for _ in range(2)]
    for model, callback in zip(models, (None, Move())):
        th.manual_seed(5)
        model.learn(200, callback=callback)
    assert th.equal(*(parameters(model) for model in models))


def test_settings_of_the_buffer_are_not_those_of_the_graph(algo, monkeypatch):
    model = make_model(algo, n_steps=3)
    run = capture(model, monkeypatch)
    iterate(model, 12)
    before = set(run.updates.graphed_update.graphs.values())
    model.replay_buffer.gamma = 0.5
    iterate(model, 3)
    assert before and not before & set(run.updates.graphed_update.graphs.values())


def test_each_optimizer_has_its_own_learning_rate_in_graphs(algo, monkeypatch):
    class Own(ALGOS[algo]):
        def _update_learning_rate(self, optimizers):
            for n, optimizer in enumerate(optimizers, 1):
                optimizer.param_groups[0]["lr"] = n * 1e-3

    models = [make_model(algo, cls=Own) for _ in range(2)]
    capture(models[1], monkeypatch)
    start(models[0])
    for model in models:
        th.manual_seed(5)
        iterate(model, 8)
    assert difference(*models) < 1e-5
