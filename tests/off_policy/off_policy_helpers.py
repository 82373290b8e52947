"""What the tests of DQN and DDPG share."""

from __future__ import annotations

import numpy as np
import stable_baselines3
import torch as th
from stable_baselines3.common.noise import NormalActionNoise

from sb3_isaac import make_vec_env
from sb3_isaac.buffers.replay_buffer import ReplaySamples
from sb3_isaac.buffers.sb3_buffer import SB3_HAS_N_STEPS
from sb3_isaac.ddpg.ddpg import DDPG
from sb3_isaac.dqn.dqn import DQN

ALGOS = {"dqn": DQN, "ddpg": DDPG}
STOCK = {"dqn": stable_baselines3.DQN, "ddpg": stable_baselines3.DDPG}
ENV_IDS = {"dqn": "IsaacGymCartpoleDiscrete-v0", "ddpg": "IsaacGymCartpole-v0"}


def make_env(algo, n_envs=8, seed=0, **kwargs):
    return make_vec_env(ENV_IDS[algo], n_envs, backend="torch", device="cpu", seed=seed, **kwargs)


def sb3_options(algo, **options):
    """Small and quick, with options that stock SB3 has too."""
    defaults = dict(
        learning_rate=1e-3, buffer_size=2000, batch_size=32, learning_starts=40, train_freq=1, gradient_steps=1,
        policy_kwargs=dict(net_arch=[16, 16]), seed=0, device="cpu",
    )  # fmt: skip
    if algo == "dqn":
        defaults.update(target_update_interval=40, tau=0.5)
    else:
        defaults.update(action_noise=NormalActionNoise(np.zeros(1), 0.3 * np.ones(1)))
    defaults.update(options)
    return defaults


def make_model(algo, env=None, cls=None, **options):
    env = make_env(algo) if env is None else env
    return (cls or ALGOS[algo])("MlpPolicy", env, **sb3_options(algo, **options))


def start(model):
    """What learn() does before its loop."""
    model._setup_learn(10**6)
    return model


def random_samples(algo, batch, obs_shape=(4,), discounts=False, seed=0):
    """Transitions, some of them terminated."""
    generator = th.Generator().manual_seed(seed)

    def rand(*shape):
        return th.rand(shape, generator=generator)

    actions = th.randint(3, (batch, 1), generator=generator) if algo == "dqn" else rand(batch, 1) * 2 - 1
    return ReplaySamples(
        observations=rand(batch, *obs_shape) - 0.5,
        actions=actions,
        next_observations=rand(batch, *obs_shape) - 0.5,
        dones=(rand(batch, 1) < 0.3).float(),
        rewards=rand(batch, 1) * 4,
        discounts=0.99 ** th.randint(1, 4, (batch, 1), generator=generator) if discounts else None,
    )


def feed(model, samples, batch_size):
    """Let the model draw the given transitions, in order, in place of random ones."""
    at = [0]

    def sample(n, env=None):
        part = [None if x is None else x[at[0] : at[0] + n] for x in samples]
        at[0] += n
        if hasattr(model, "_run"):
            return ReplaySamples(*part)
        names = dict(zip(ReplaySamples._fields, part))
        if not SB3_HAS_N_STEPS:
            del names["discounts"]
        from stable_baselines3.common.type_aliases import ReplayBufferSamples

        return ReplayBufferSamples(**names)

    model.replay_buffer.sample = model.replay_buffer.sample_tensors = sample


def parameters(model):
    return {name: p.detach().clone() for name, p in model.policy.state_dict().items()}


def assert_close(a, b, atol=2e-6):
    assert a.keys() == b.keys()
    for name in a:
        assert th.allclose(a[name], b[name], atol=atol, rtol=1e-4), (name, (a[name] - b[name]).abs().max())


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert th.equal(a[name], b[name]), name
