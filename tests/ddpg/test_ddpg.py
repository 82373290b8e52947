"""DDPG: noise, TD3's options and learning."""

from __future__ import annotations

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)

from sb3_isaac import IsaacVecEnv
from sb3_isaac.backends.torch_cartpole import TorchCartpole
from sb3_isaac.off_policy.exploration import DeviceNoise
from tests.conftest import CONTINUOUS, make_env
from tests.off_policy.conftest import STOCK, assert_close, feed, make_model, random_samples, start

CPU = th.device("cpu")


def normal(mean=(0.1, -0.2), sigma=(0.2, 0.4)):
    return NormalActionNoise(np.array(mean), np.array(sigma))


def ou(**kwargs):
    return OrnsteinUhlenbeckActionNoise(np.array([0.1, -0.2]), np.array([0.2, 0.4]), theta=3.0, dt=0.05, **kwargs)


def series(noise, steps, reset=None):
    """(steps, N, A) of what is added to actions of 0; far within the clipping range."""
    out = []
    for step in range(steps):
        if callable(getattr(noise, "add_to", None)):
            out.append(noise.add_to(th.zeros(noise._mean.shape)).numpy())
            if reset == step:
                noise.reset(th.arange(len(noise._mean)) % 2 == 0)
        else:
            out.append(noise())
            if reset == step:
                noise.reset(indices=range(0, noise.n_envs, 2))
    return np.stack(out)


@pytest.mark.parametrize("kind", [normal, ou])
def test_noise_has_sb3s_distribution(kind):
    np.random.seed(0)
    th.manual_seed(0)
    n = 3000
    noise = kind() if kind is normal else kind(initial_noise=np.array([0.3, 0.3]))
    ours = series(DeviceNoise(noise, n, 2, CPU), 8, reset=4)
    theirs = series(VectorizedActionNoise(noise, n), 8, reset=4)
    for some in (slice(0, None, 2), slice(1, None, 2)):  # the envs that were reset and the others
        a, b = ours[:, some], theirs[:, some]
        assert np.allclose(a.mean(1), b.mean(1), atol=0.05)
        assert np.allclose(a.std(1), b.std(1), atol=0.03)
        for t in range(1, 8):  # from step to step
            for k in range(2):
                assert np.corrcoef(a[t, :, k], a[t - 1, :, k])[0, 1] == pytest.approx(
                    np.corrcoef(b[t, :, k], b[t - 1, :, k])[0, 1], abs=0.1
                )
    assert abs(np.corrcoef(ours[3, :-1, 0], ours[3, 1:, 0])[0, 1]) < 0.08  # independent for each env


def test_different_noise_for_each_environment():
    vectorized = VectorizedActionNoise(normal(), 3)
    for i, one in enumerate(vectorized.noises):
        one._sigma = np.full(2, 0.01 * 10**i)
    std = series(DeviceNoise(vectorized, 3, 2, CPU), 2000).std(0)[:, 0]
    assert std[:2] == pytest.approx([0.01, 0.1], rel=0.1)
    with pytest.raises(ValueError, match="made for 3 environments"):
        DeviceNoise(vectorized, 4, 2, CPU)


def test_shared_noise_and_per_env_scale():
    shared = series(DeviceNoise(ou(), 5, 2, CPU, shared=True), 20, reset=4)
    assert np.ptp(shared, axis=1).max() < 1e-6 and shared.std(0).min() > 0.01
    scale = th.tensor([1.0, 0.1, 0.01])
    for noise in (None, normal((0.0, 0.0), (1.0, 1.0))):
        std = series(DeviceNoise(noise, 3, 2, CPU, scale), 3000).std(0)
        assert std[1:, 0] == pytest.approx([0.1, 0.01], rel=0.1)


def test_noise_is_clipped_and_added_to_random_actions_too():
    model = start(make_model("ddpg", make_env(CONTINUOUS, 4000), action_noise=None, per_env_noise=(5.0, 5.0)))
    actions = model._act(model.env.obs_tensor, False)
    assert actions.abs().max() == 1.0 and actions.std() > 0.7
    actions = model._act(model.env.obs_tensor, True)
    assert (actions.abs() == 1.0).float().mean() > 0.5
    model = start(make_model("ddpg", make_env(CONTINUOUS, 4000), action_noise=None))
    actions = model._act(model.env.obs_tensor, True)
    assert actions.mean().item() == pytest.approx(0.0, abs=0.05)
    assert actions.std().item() == pytest.approx(3**-0.5, abs=0.03)
    greedy = model._act(model.env.obs_tensor, False)
    assert np.allclose(greedy.numpy(), model.predict(model.env.obs_tensor.numpy())[0], atol=1e-6)


def test_any_noise_works():
    class Mine(ActionNoise):
        def __call__(self):
            return np.zeros(1)

    with pytest.warns(UserWarning, match="action_noise of type Mine is drawn in numpy"):
        model = make_model("ddpg", action_noise=Mine())
        model.learn(100)
    first = model.replay_buffer.actions[0]
    assert model.replay_buffer.size() > 10 and first.abs().max() <= 1.0
    with pytest.raises(ValueError, match="action_noise of type Mine cannot be scaled"):
        make_model("ddpg", action_noise=Mine(), per_env_noise=(1.0, 0.1)).learn(100)


def test_sb3s_noise_object_stays_as_it_was(tmp_path):
    noise = OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.3 * np.ones(1))
    model = make_model("ddpg", action_noise=noise)
    model.learn(160)
    assert model.action_noise is noise
    model.save(tmp_path / "model")
    assert type(STOCK["ddpg"].load(tmp_path / "model", device="cpu").action_noise) is OrnsteinUhlenbeckActionNoise


def test_actions_are_scaled_to_the_action_space():
    tensor_env = TorchCartpole(8, "cpu", seed=0)
    space = spaces.Box(np.array([-0.5], np.float32), np.array([1.5], np.float32))
    model = start(make_model("ddpg", IsaacVecEnv(tensor_env, action_space=space), action_noise=None))
    step = model._run.rollout.step(random=True)
    stored = step.buffer_actions
    assert th.allclose(step.actions, 0.5 + stored) and stored.abs().max() <= 1.0


@pytest.mark.parametrize("n_critics", [1, 2])
@pytest.mark.parametrize("policy_delay", [1, 3])
def test_several_critics_and_delayed_actor_equal_sb3(n_critics, policy_delay):
    policy_kwargs = dict(net_arch=dict(pi=[8], qf=[16, 12]), n_critics=n_critics, activation_fn=th.nn.Tanh)
    samples = random_samples("ddpg", 7 * 16)
    models = [start(make_model("ddpg", policy_kwargs=policy_kwargs, cls=cls, tau=0.2)) for cls in (None, STOCK["ddpg"])]
    for model in models:
        model.policy_delay = policy_delay
        feed(model, samples, 16)
        model.train(7, 16)
    assert models[0]._run.fast is not None
    assert_close(models[0], models[1])


def test_target_noise():
    model = start(make_model("ddpg"))
    assert model._target_noise(th.zeros(3, 1)) is None  # as DDPG sets TD3's options
    model.target_noise_clip, model.target_policy_noise = 0.5, 0.4
    noise = model._target_noise(th.zeros(5000, 1))
    assert noise.abs().max() <= 0.5 and noise.std().item() == pytest.approx(0.33, abs=0.03)
    obs = th.randn(7, 4)
    with th.no_grad():
        plain, moved = (model._run.fast.next_values(obs, x).clone() for x in (None, th.full((7, 1), 0.3)))
    assert (plain != moved).all()


def test_it_learns():
    model = make_model(
        "ddpg", make_env(CONTINUOUS, 32), learning_rate=7e-3, gamma=0.98, n_steps=5, buffer_size=30_000, batch_size=128,
        train_freq=2, gradient_steps=2, learning_starts=1280, tau=0.067, action_noise=None, per_env_noise=(1.0, 0.1),
        reward_scale=0.3, policy_kwargs=dict(net_arch=[32, 32], activation_fn=th.nn.Tanh),
    )  # fmt: skip
    model.learn(40_000)
    obs = model.env.reset()
    alive = np.ones(32, dtype=bool)
    for _ in range(200):
        obs, _, dones, _ = model.env.step(model.predict(obs, deterministic=True)[0])
        alive &= ~dones
    assert alive.mean() > 0.5
