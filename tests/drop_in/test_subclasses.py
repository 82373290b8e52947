"""Subclasses of the algorithms, and methods that are replaced in a model."""

from __future__ import annotations

import copy
import inspect
import textwrap
from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3.common import off_policy_algorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.td3.policies import TD3Policy

from sb3_isaac.buffers.replay_buffer import DeviceReplayBuffer, as_sb3
from tests.drop_in.side_by_side import ALL, OFF_POLICY, Row, compare, table
from tests.drop_in.test_callbacks import at, at_third_end


def counting(*names):
    """A subclass that counts calls of methods and calls its parent's."""

    def make(base, notes):
        calls = {}
        notes.append(calls)

        def method(name):
            def call(self, *args, **kwargs):
                calls[name] = calls.get(name, 0) + 1
                return getattr(super(Sub, self), name)(*args, **kwargs)

            return call

        Sub = type("Sub", (base,), {name: method(name) for name in names})
        return Sub

    return make


def overriding(**methods):
    """A subclass whose methods get the parent's as their first argument."""

    def make(base, notes):
        def method(name, function):
            def call(self, *args, **kwargs):
                return function(getattr(super(Sub, self), name), self, *args, **kwargs)

            return call

        Sub = type("Sub", (base,), {name: method(name, function) for name, function in methods.items()})
        return Sub

    return make


def half_gamma(parent, self, *args, **kwargs):
    gamma, self.gamma = self.gamma, 0.5
    try:
        return parent(*args, **kwargs)
    finally:
        self.gamma = gamma


def fixed_rate(parent, self, optimizers):
    parent(optimizers)
    for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
        for group in optimizer.param_groups:
            group["lr"] = 0.02


def no_training(parent, self, *args, **kwargs):
    return None


def zeros(parent, self, *args, **kwargs):
    actions, state = parent(*args, **kwargs)
    return np.zeros_like(actions), state


def zero_actions(parent, self, *args, **kwargs):
    actions, buffer_actions = parent(*args, **kwargs)
    return np.zeros_like(actions), np.zeros_like(buffer_actions)


def scaled_reward(parent, self, replay_buffer, buffer_action, new_obs, reward, dones, infos):
    return parent(replay_buffer, buffer_action, new_obs, 0.1 * reward, dones, infos)


def twice(parent, self, *args, **kwargs):
    """As many as SB3's REDQ-like recipes do."""
    parent(*args, **kwargs)
    parent(*args, **kwargs)


def own_progress(parent, self, *args, **kwargs):
    parent(*args, **kwargs)
    self._current_progress_remaining = 0.5


def more_of_a_log(parent, self, *args, **kwargs):
    self.logger.record("own/x", 1.0)
    return parent(*args, **kwargs)


def no_episodes(parent, self, infos, dones=None):
    return None


def excluded(parent, self):
    return [*parent(), "own"]


def with_own(model, notes):
    model.own, model.other = object(), 3


def saved(model, notes):
    path = notes.folder / "model.zip"
    model.save(path)
    loaded = type(model).load(path, device="cpu")
    notes.append([hasattr(loaded, "own"), loaded.other, loaded.num_timesteps])


def patched(name, function):
    """Replace a method of the model itself."""

    def change(model, notes):
        original = getattr(model, name)
        setattr(model, name, lambda *args, **kwargs: function(original, model, *args, **kwargs))

    return change


def with_lambda(parent, self, *args, **kwargs):
    result = parent(*args, **kwargs)
    self.logger.record("own/after", 2.0)
    return result


def at_start(change):
    return at(start=lambda callback: change(callback.model, callback.notes))


def other_buffer(model, notes):
    model.replay_buffer = copy.deepcopy(model.replay_buffer)
    model.replay_buffer.rewards[:] *= 0.5


class HalfRewards(DeviceReplayBuffer):
    def add(self, obs, next_obs, action, reward, *rest):
        super().add(obs, next_obs, action, 0.5 * reward, *rest)


def half_rewards(model, notes):
    model.replay_buffer = HalfRewards(400, model.observation_space, model.action_space, "cpu", 4)
    model.replay_buffer.generator = th.Generator().manual_seed(7)


def own_buffer(model, notes):
    class Halved(ReplayBuffer):
        def add(self, obs, next_obs, action, reward, *rest):
            super().add(obs, next_obs, action, 0.5 * reward, *rest)

    old = model.replay_buffer
    model.replay_buffer = new = Halved(200, model.observation_space, model.action_space, "cpu", 4)
    for name in ("observations", "next_observations", "actions", "rewards"):
        getattr(new, name)[: old.pos] = np.asarray(getattr(old, name)[: old.pos]).reshape(
            old.pos, *getattr(new, name).shape[1:]
        )
    new.pos = old.pos
    np.random.seed(0)  # from here on both draw from it


def into_another_buffer(base, notes):
    """Demonstrations go elsewhere."""

    class Sub(base):
        def collect_rollouts(self, env, callback, train_freq, replay_buffer, *args, **kwargs):
            return super().collect_rollouts(env, callback, train_freq, self.demonstrations, *args, **kwargs)

    return Sub


def with_demonstrations(model, notes):
    model.demonstrations = DeviceReplayBuffer(200, model.observation_space, model.action_space, "cpu", 4)


def note_demonstrations(model, notes):
    notes.append([model.demonstrations.size(), model.demonstrations.rewards.numpy().copy()])


def with_another_noise(base, notes):
    class Sub(base):
        def collect_rollouts(self, env, callback, train_freq, replay_buffer, action_noise=None, **kwargs):
            noise = VectorizedActionNoise(NormalActionNoise(np.array([0.3]), np.zeros(1)), 4)
            return super().collect_rollouts(env, callback, train_freq, replay_buffer, noise, **kwargs)

    return Sub


def own_loop(base, notes):
    """SB3's loop, copied into a class of the user's."""
    names = dict(vars(off_policy_algorithm))
    exec(textwrap.dedent(inspect.getsource(off_policy_algorithm.OffPolicyAlgorithm.collect_rollouts)), names)
    return type("Sub", (base,), {"collect_rollouts": names["collect_rollouts"]})


class HalfActions(TD3Policy):
    def unscale_action(self, scaled_action):
        return 0.5 * super().unscale_action(scaled_action)


PATCHES = {"predict": zeros, "_sample_action": zero_actions, "_store_transition": scaled_reward}
ROWS = [
    Row("empty", ALL, subclass=counting()),
    Row("train counted", ALL, subclass=counting("train")),
    Row("collect_rollouts counted", ALL, subclass=counting("collect_rollouts")),
    Row("_on_step counted", OFF_POLICY, subclass=counting("_on_step")),
    Row("predict counted", ("ppo",), subclass=counting("predict")),
    Row("_update_learning_rate counted", ALL, subclass=counting("_update_learning_rate")),
    Row("_update_current_progress_remaining counted", ALL, subclass=counting("_update_current_progress_remaining")),
    Row("_setup_model counted", ALL, subclass=counting("_setup_model")),
    Row("_setup_learn counted", ALL, subclass=counting("_setup_learn")),
    Row("_sample_action counted", OFF_POLICY, subclass=counting("_sample_action"), stock_buffer=True),
    Row("_store_transition counted", OFF_POLICY, subclass=counting("_store_transition"), stock_buffer=True),
    Row("_update_info_buffer counted", "ppo", subclass=counting("_update_info_buffer")),
    Row("_update_info_buffer counted", OFF_POLICY, subclass=counting("_update_info_buffer"), stock_buffer=True),
    Row("dump_logs counted", ("ppo",), subclass=counting("dump_logs")),
    Row("train in another gamma", ALL, subclass=overriding(train=half_gamma)),
    Row("train does nothing", ALL, subclass=overriding(train=no_training)),
    Row("train twice", ALL, subclass=overriding(train=twice)),
    Row("train logs", ALL, subclass=overriding(train=more_of_a_log)),
    Row("train of the model replaced", ALL, before=patched("train", half_gamma)),
    Row("train of the model replaced by nothing", ALL, before=patched("train", no_training)),
    Row("train logs, replaced", ALL, before=patched("train", with_lambda)),
    Row("collect_rollouts in another gamma", ALL, subclass=overriding(collect_rollouts=half_gamma)),
    Row("_update_learning_rate fixes the rate", ALL, subclass=overriding(_update_learning_rate=fixed_rate)),
    Row("_update_learning_rate of the model replaced", ALL, before=patched("_update_learning_rate", fixed_rate)),
    Row("predict changed", OFF_POLICY, subclass=overriding(predict=zeros), stock_buffer=True),
    Row("predict changed, which PPO does not use", subclass=overriding(predict=zeros)),
    Row("predict of the model replaced", OFF_POLICY, before=patched("predict", zeros)),
    Row("_sample_action changed", OFF_POLICY, subclass=overriding(_sample_action=zero_actions), stock_buffer=True),
    Row("_sample_action of the model replaced", OFF_POLICY, before=patched("_sample_action", zero_actions)),
    Row("_store_transition changed", OFF_POLICY, subclass=overriding(_store_transition=scaled_reward), stock_buffer=True),
    Row("_store_transition of the model replaced", OFF_POLICY, before=patched("_store_transition", scaled_reward)),
    Row("_on_step does nothing", "dqn", subclass=overriding(_on_step=no_training)),
    Row("_on_step logs", OFF_POLICY, subclass=overriding(_on_step=more_of_a_log)),
    Row("_on_step of the model replaced", "dqn", before=patched("_on_step", no_training)),
    Row("progress changed", ALL, {"learning_rate": lambda left: 1e-2 * left}, subclass=overriding(_update_current_progress_remaining=own_progress)),
    Row("_update_info_buffer does nothing", "ppo", subclass=overriding(_update_info_buffer=no_episodes)),
    Row("_update_info_buffer does nothing", OFF_POLICY, subclass=overriding(_update_info_buffer=no_episodes), stock_buffer=True),
    Row("excluded params", ALL, subclass=overriding(_excluded_save_params=excluded), before=with_own, after=saved),
    Row("replay_buffer.sample replaced", OFF_POLICY, before=lambda m, n: setattr(m.replay_buffer, "sample", fixed_sample(m))),
    Row("replay_buffer.add replaced", OFF_POLICY, before=lambda m, n: setattr(m.replay_buffer, "add", rewardless_add(m))),
    *[Row(f"{name} of the model replaced in a callback", OFF_POLICY, callback=at_third_end(patched(name, how))) for name, how in PATCHES.items()],
    *[Row(f"{name} of the model replaced when training starts", OFF_POLICY, callback=at_start(patched(name, how))) for name, how in PATCHES.items()],
    Row("replay_buffer.sample replaced in a callback", OFF_POLICY, callback=at_third_end(lambda m, n: setattr(m.replay_buffer, "sample", fixed_sample(m)))),
    Row("replay_buffer.add replaced in a callback", OFF_POLICY, callback=at_third_end(lambda m, n: setattr(m.replay_buffer, "add", rewardless_add(m)))),
    Row("replay_buffer replaced in a callback", OFF_POLICY, callback=at_third_end(other_buffer)),
    Row("own replay_buffer in a callback", OFF_POLICY, callback=at_third_end(own_buffer)),
    Row("collect_rollouts into another buffer", OFF_POLICY, {"gradient_steps": 0}, subclass=into_another_buffer, before=with_demonstrations, after=note_demonstrations),
    Row("collect_rollouts with another noise", "ddpg", subclass=with_another_noise),
    Row("a loop of its own", OFF_POLICY, subclass=own_loop),
    Row("a loop of its own, two learns", OFF_POLICY, subclass=own_loop, between=lambda m, n: None),
    Row("unscale_action of the policy changed", "ddpg", policy=HalfActions, stock_buffer=True),
    Row("a subclass of the device buffer is assigned", OFF_POLICY, before=half_rewards),
    Row("rollout_buffer.get replaced", before=lambda m, n: setattr(m.rollout_buffer, "get", ordered_get(m))),
    Row("rollout_buffer.compute_returns_and_advantage replaced", before=lambda m, n: setattr(m.rollout_buffer, "compute_returns_and_advantage", doubled_advantages(m))),
    Row("rollout_buffer.add replaced", before=lambda m, n: setattr(m.rollout_buffer, "add", rewardless_rollout_add(m))),
]  # fmt: skip


def fixed_sample(model):
    """The same rows always."""
    buffer = model.replay_buffer

    def sample(batch_size, env=None):
        rows = th.arange(batch_size) % (buffer.size() * buffer.n_envs)
        return as_sb3(buffer.at(rows, env))

    return sample


def rewardless_add(model):
    original = model.replay_buffer.add
    return lambda obs, next_obs, action, reward, done, infos: original(obs, next_obs, action, 0.0 * reward, done, infos)


def ordered_get(model):
    """Without shuffling."""
    buffer = model.rollout_buffer
    rows = np.arange(buffer.buffer_size * buffer.n_envs)

    def get(batch_size=None):
        for start in range(0, len(rows), batch_size):
            yield buffer._get_samples(rows[start : start + batch_size])

    return get


def doubled_advantages(model):
    buffer = model.rollout_buffer
    original = buffer.compute_returns_and_advantage

    def compute(last_values, dones):
        original(last_values, dones)
        buffer.tensors.advantages.mul_(2.0)

    return compute


def rewardless_rollout_add(model):
    original = model.rollout_buffer.add
    return lambda obs, action, reward, *rest: original(obs, action, 0.0 * reward, *rest)


@table(ROWS)
def test_subclass(row: Row, algo: str, tmp_path: Path) -> None:
    compare(row, algo, tmp_path)
