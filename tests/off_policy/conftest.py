"""What the tests of DQN and DDPG share."""

from __future__ import annotations

import numpy as np
import stable_baselines3
import torch as th
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from sb3_isaac import DDPG, DQN
from sb3_isaac.buffers.replay_buffer import ReplaySamples
from sb3_isaac.buffers.sb3_buffer import SB3_HAS_N_STEPS
from tests.conftest import ENV_IDS, make_env, parameters

ALGOS = {"dqn": DQN, "ddpg": DDPG}
STOCK = {"dqn": stable_baselines3.DQN, "ddpg": stable_baselines3.DDPG}


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
    env = make_env(ENV_IDS[algo]) if env is None else env
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
        return ReplayBufferSamples(**names)

    name = "sample_tensors" if hasattr(model, "_run") else "sample"
    setattr(model.replay_buffer, name, sample)


def assert_close(one, other, atol=2e-6):
    """All parameters of two models, target networks included."""
    th.testing.assert_close(parameters(one), parameters(other), atol=atol, rtol=1e-4)
