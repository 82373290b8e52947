"""Wrappers around the environment and buffer classes, SB3's and the user's own."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common import vec_env as sb3
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper

from sb3_isaac import DeviceReplayBuffer, DeviceRolloutBuffer
from sb3_isaac.envs import CartpoleEnv
from tests.drop_in.side_by_side import ALL, N_STEP, OFF_POLICY, Row, compare, table

# -- wrappers --------------------------------------------------------------------------------------------------------


class ScaledReward(VecEnvWrapper):
    """As users write it: numpy only."""

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        obs, rewards, dones, infos = self.venv.step_wait()
        return obs, 0.1 * rewards, dones, infos


class FewerObs(VecEnvWrapper):
    """Another observation space."""

    def __init__(self, venv):
        super().__init__(venv, observation_space=spaces.Box(-np.inf, np.inf, (2,), np.float32))

    def reset(self):
        return self.venv.reset()[:, :2]

    def step_wait(self):
        obs, rewards, dones, infos = self.venv.step_wait()
        for i in np.flatnonzero(dones):
            infos[i]["terminal_observation"] = infos[i]["terminal_observation"][:2]
        return obs[:, :2], rewards, dones, infos


class OwnInfos(VecEnvWrapper):
    """With a success in the infos."""

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        obs, rewards, dones, infos = self.venv.step_wait()
        infos = [dict(info, is_success=bool(i % 2)) for i, info in enumerate(infos)]
        return obs, rewards, dones, infos


class HalfActions(VecEnvWrapper):
    """Another action space."""

    def __init__(self, venv):
        super().__init__(venv, action_space=spaces.Box(-2.0, 2.0, (1,), np.float32))

    def reset(self):
        return self.venv.reset()

    def step_async(self, actions):
        self.venv.step_async(0.5 * actions)

    def step_wait(self):
        return self.venv.step_wait()


def both(name, **kwargs):
    """The library's own class."""
    return lambda env, lib: getattr(lib, name)(env, **kwargs)


def stock(name, *args, **kwargs):
    """SB3's class."""
    return lambda env, lib: getattr(sb3, name)(env, *args, **kwargs)


def chain(*wraps):
    def wrap(env, lib):
        for one in wraps:
            env = one(env, lib)
        return env

    return wrap


def singles(*wrappers, n=4, discrete=False):
    """Single environments in SB3's DummyVecEnv: no tensors at all."""

    def wrap(env, lib):
        def make(seed):
            def function():
                single = CartpoleEnv(discrete=discrete, device="cpu", max_episode_length=5)
                for wrapper in wrappers:
                    single = wrapper(single)
                return Monitor(single)

            return function

        vec_env = DummyVecEnv([make(i) for i in range(n)])
        vec_env.seed(3)
        return vec_env

    return wrap


def subclass(name, *args, **methods):
    """A subclass of the library's own wrapper, whose methods get the parent's first."""

    def wrap(env, lib):
        base = getattr(lib, name)

        def method(name, function):
            return lambda self, *given: function(getattr(super(Sub, self), name), *given)

        Sub = type("Sub", (base,), {name: method(name, function) for name, function in methods.items()})
        return Sub(env, *args)

    return wrap


def patched(name, function):
    """A method of the environment itself is replaced."""

    def wrap(env, lib):
        parent = getattr(env, name)
        setattr(env, name, lambda *given: function(parent, *given))
        return env

    return wrap


def without_reward(parent):
    obs, rewards, dones, infos = parent()
    return obs, 0.0 * rewards, dones, infos


def statistics(model, notes):
    """Of a VecNormalize."""
    normalize = model.get_vec_normalize_env()
    notes.append(
        [
            normalize.obs_rms.mean,
            normalize.obs_rms.var,
            normalize.obs_rms.count,
            normalize.ret_rms.var,
            np.array(normalize.returns),
        ]
    )


def freeze_statistics(model, notes):
    model.get_vec_normalize_env().training = False


def original_of(model, notes):
    env = model.get_vec_normalize_env()
    notes.append(
        [
            np.array(env.get_original_obs()),
            np.array(env.get_original_reward()),
            env.normalize_obs(np.ones((2, 4), np.float32)),
            env.unnormalize_obs(np.ones((2, 4), np.float32)),
        ]
    )


# -- buffers ---------------------------------------------------------------------------------------------------------


class OwnRolloutBuffer(RolloutBuffer):
    """Rewards less one."""

    def add(self, obs, action, reward, *args, **kwargs):
        super().add(obs, action, reward - 1.0, *args, **kwargs)


class EmptyRolloutBuffer(RolloutBuffer):
    pass


class KwargsRolloutBuffer(RolloutBuffer):
    def __init__(self, *args, factor=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.factor = factor

    def add(self, obs, action, reward, *args, **kwargs):
        super().add(obs, action, self.factor * reward, *args, **kwargs)


class OwnDeviceRolloutBuffer(DeviceRolloutBuffer):
    """A subclass of ours that changes what is learned from."""

    def compute_returns_and_advantage(self, last_values, dones):
        super().compute_returns_and_advantage(last_values, dones)
        self.tensors.advantages.mul_(0.5)


class OwnGet(DeviceRolloutBuffer):
    """Each minibatch twice."""

    def get(self, batch_size=None):
        for samples in super().get(batch_size):
            yield samples
            yield samples


class OwnReplayBuffer(ReplayBuffer):
    """Rewards less one."""

    def add(self, obs, next_obs, action, reward, done, infos):
        super().add(obs, next_obs, action, reward - 1.0, done, infos)


class OwnSample(ReplayBuffer):
    """The newest only."""

    def sample(self, batch_size, env=None):
        rows = np.full(batch_size, self.pos - 1)
        return self._get_samples(rows, env=env)


class KwargsReplayBuffer(ReplayBuffer):
    def __init__(self, *args, factor=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.factor = factor

    def add(self, obs, next_obs, action, reward, done, infos):
        super().add(obs, next_obs, action, self.factor * reward, done, infos)


class OwnDeviceSample(DeviceReplayBuffer):
    """A subclass of ours: rewards are halved when they are drawn."""

    def sample(self, batch_size, env=None):
        samples = super().sample(batch_size, env)
        return samples._replace(rewards=0.5 * samples.rewards)


class OwnDeviceAdd(DeviceReplayBuffer):
    def add(self, obs, next_obs, action, reward, done, infos):
        super().add(obs, next_obs, action, 0.0 * reward, done, infos)


NUMPY = {"stock_buffer": True}


def half(parent, value):
    return 0.5 * parent(value)


def half_of_none(parent):
    return 0.5 * parent()


ROWS = [
    # methods that are written or replaced
    Row("normalize_reward of a subclass", ALL, wrap=subclass("VecNormalize", normalize_reward=half), stock_buffer=True),
    Row("normalize_obs of a subclass", ALL, wrap=subclass("VecNormalize", normalize_obs=half), stock_buffer=True),
    Row("step_wait of a subclass", ALL, wrap=subclass("VecNormalize", step_wait=without_reward), stock_buffer=True),
    Row("reset of a subclass", ALL, wrap=subclass("VecFrameStack", 2, reset=half_of_none), stock_buffer=True),
    Row("step_wait of the env replaced", ALL, wrap=patched("step_wait", without_reward), stock_buffer=True),
    Row("reset of the env replaced", ALL, wrap=patched("reset", half_of_none), stock_buffer=True),
    Row("step_wait of the env replaced, in a wrapper", ALL, wrap=chain(patched("step_wait", without_reward), both("VecNormalize")), stock_buffer=True),
    # VecNormalize and VecFrameStack of both
    Row("VecNormalize", ALL, wrap=both("VecNormalize"), after=statistics),
    Row("VecNormalize(norm_obs=False)", ALL, wrap=both("VecNormalize", norm_obs=False)),
    Row("VecNormalize(norm_reward=False)", ALL, wrap=both("VecNormalize", norm_reward=False)),
    Row("VecNormalize(training=False)", ALL, wrap=both("VecNormalize", training=False), after=statistics),
    Row("VecNormalize(gamma=0.5, clip_reward=1, epsilon=0.1)", ALL, wrap=both("VecNormalize", gamma=0.5, clip_reward=1.0, epsilon=0.1), after=statistics),
    Row("VecNormalize(clip_obs=1)", "ppo", wrap=both("VecNormalize", clip_obs=1.0), after=statistics),
    Row("VecNormalize(clip_obs=1)", OFF_POLICY, wrap=both("VecNormalize", clip_obs=1.0), inexact="SB3 stores the last observation of an episode as it is after clipping"),
    Row("VecNormalize frozen between", ALL, wrap=both("VecNormalize"), between=freeze_statistics, after=statistics),
    Row("VecNormalize: original values", ALL, wrap=both("VecNormalize"), after=original_of),
    Row("VecNormalize with one environment", ALL, env={"n_envs": 1}, wrap=both("VecNormalize"), learn={"total_timesteps": 12}, after=statistics),
    Row("VecFrameStack", ALL, wrap=both("VecFrameStack", n_stack=3)),
    Row("VecFrameStack inside VecNormalize", ALL, wrap=chain(both("VecFrameStack", n_stack=2), both("VecNormalize")), after=statistics),
    Row("VecNormalize inside VecFrameStack", "ppo", wrap=chain(both("VecNormalize"), both("VecFrameStack", n_stack=2))),
    # stock's wrappers: trained as in SB3
    Row("stock's VecNormalize", ALL, wrap=stock("VecNormalize"), after=statistics, **NUMPY),
    Row("stock's VecFrameStack", ALL, wrap=stock("VecFrameStack", 2), **NUMPY),
    Row("stock's VecNormalize inside VecFrameStack", "ppo", wrap=chain(stock("VecNormalize"), stock("VecFrameStack", 2)), **NUMPY),
    Row("VecMonitor", ALL, wrap=stock("VecMonitor"), **NUMPY),
    Row("VecMonitor around VecNormalize", ALL, wrap=chain(both("VecNormalize"), stock("VecMonitor")), **NUMPY),
    Row("VecCheckNan", ALL, wrap=stock("VecCheckNan", raise_exception=True), **NUMPY),
    # the user's own
    Row("own wrapper of rewards", ALL, wrap=lambda env, lib: ScaledReward(env), **NUMPY),
    Row("own wrapper of observations", ALL, wrap=lambda env, lib: FewerObs(env), **NUMPY),
    Row("own wrapper of actions", ("ppo", "ddpg"), wrap=lambda env, lib: HalfActions(env), **NUMPY),
    Row("own wrapper of infos with successes", ALL, wrap=lambda env, lib: OwnInfos(env), **NUMPY),
    Row("own wrapper inside VecNormalize", ALL, wrap=chain(lambda env, lib: ScaledReward(env), both("VecNormalize")), **NUMPY),
    Row("own wrapper around VecNormalize", ALL, wrap=chain(both("VecNormalize"), lambda env, lib: ScaledReward(env)), **NUMPY),
    Row("own wrapper, two learns", ALL, wrap=lambda env, lib: ScaledReward(env), between=lambda m, n: None, **NUMPY),
    # single environments
    Row("DummyVecEnv", ("ppo", "ddpg"), wrap=singles(), **NUMPY),
    Row("DummyVecEnv", "dqn", wrap=singles(discrete=True), **NUMPY),
    Row("gymnasium's TransformReward in DummyVecEnv", ("ppo", "ddpg"), wrap=singles(lambda e: gym.wrappers.TransformReward(e, lambda r: r + 5.0)), **NUMPY),
    Row("gymnasium's RescaleAction in DummyVecEnv", ("ppo", "ddpg"), wrap=singles(lambda e: gym.wrappers.RescaleAction(e, np.float32(-2.0), np.float32(2.0))), **NUMPY),
    Row("VecNormalize of ours around DummyVecEnv", ("ppo", "ddpg"), wrap=chain(singles(), stock("VecNormalize")), **NUMPY),
    # rollout buffers
    Row("rollout_buffer_class=RolloutBuffer", options={"rollout_buffer_class": RolloutBuffer}, inexact="minibatches drawn in numpy and in torch"),
    Row("rollout_buffer_class=DeviceRolloutBuffer", options={"rollout_buffer_class": DeviceRolloutBuffer}),
    Row("empty subclass of RolloutBuffer", options={"rollout_buffer_class": EmptyRolloutBuffer}, **NUMPY),
    Row("own RolloutBuffer", options={"rollout_buffer_class": OwnRolloutBuffer}, **NUMPY),
    Row("own RolloutBuffer, two learns", options={"rollout_buffer_class": OwnRolloutBuffer}, between=lambda m, n: None, **NUMPY),
    Row("own RolloutBuffer with rollout_buffer_kwargs", options={"rollout_buffer_class": KwargsRolloutBuffer, "rollout_buffer_kwargs": {"factor": 0.1}}, **NUMPY),
    Row("subclass of DeviceRolloutBuffer", options={"rollout_buffer_class": OwnDeviceRolloutBuffer}),
    Row("subclass of DeviceRolloutBuffer with its own get", options={"rollout_buffer_class": OwnGet}),
    # replay buffers
    Row("replay_buffer_class=ReplayBuffer", OFF_POLICY, {"replay_buffer_class": ReplayBuffer, "gradient_steps": 0}),
    Row("own ReplayBuffer", OFF_POLICY, {"replay_buffer_class": OwnReplayBuffer}, **NUMPY),
    Row("own ReplayBuffer.sample", OFF_POLICY, {"replay_buffer_class": OwnSample}, **NUMPY),
    Row("own ReplayBuffer, two learns", OFF_POLICY, {"replay_buffer_class": OwnReplayBuffer}, between=lambda m, n: None, **NUMPY),
    Row("own ReplayBuffer with replay_buffer_kwargs", OFF_POLICY, {"replay_buffer_class": KwargsReplayBuffer, "replay_buffer_kwargs": {"factor": 0.1}}, **NUMPY),
    Row("own ReplayBuffer and VecNormalize", OFF_POLICY, {"replay_buffer_class": OwnReplayBuffer}, wrap=both("VecNormalize"), **NUMPY),
    Row("subclass of DeviceReplayBuffer with its own sample", OFF_POLICY, {"replay_buffer_class": OwnDeviceSample}, inexact="each draws from torch's generator between other draws"),
    Row("subclass of DeviceReplayBuffer with its own add", OFF_POLICY, {"replay_buffer_class": OwnDeviceAdd, "gradient_steps": 0}),
    Row("optimize_memory_usage as in stock", OFF_POLICY, {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}, "gradient_steps": 0}, stock_buffer=True, skip_keys=("buffer",)),
    Row("stored transitions as stock stores them", OFF_POLICY, {"gradient_steps": 0}, stock_buffer=True),
    Row("stored transitions of a full buffer", OFF_POLICY, {"gradient_steps": 0, "buffer_size": 20}, stock_buffer=True),
    Row("stored transitions, n_steps=3", N_STEP, {"gradient_steps": 0, "n_steps": 3}, stock_buffer=True),
]  # fmt: skip


@table(ROWS)
def test_wrapper_or_buffer(row: Row, algo: str, tmp_path: Path) -> None:
    compare(row, algo, tmp_path)
