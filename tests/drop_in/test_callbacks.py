"""What callbacks see, keep, change and stop, and how often they are called."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.vec_env import VecNormalize

import sb3_isaac
from tests.conftest import CONTINUOUS, DISCRETE, make_env
from tests.drop_in import changes as do
from tests.drop_in.side_by_side import ALL, DEFAULTS, ENV, OFF_POLICY, Row, compare, table


class At(BaseCallback):
    """Calls functions of the callback where SB3 calls it, and counts these calls."""

    def __init__(self, notes, step=None, start=None, end=None, rollout_start=None, rollout_end=None, stop_after=None):
        super().__init__()
        self.notes, self.stop_after = notes, stop_after
        self.functions = {"step": step, "start": start, "end": end, "rollout_start": rollout_start, "rollout_end": rollout_end}
        self.calls = dict.fromkeys(self.functions, 0)
        notes.append(self.calls)

    def _call(self, name):
        self.calls[name] += 1
        return None if self.functions[name] is None else self.functions[name](self)

    def _on_training_start(self):
        self._call("start")

    def _on_rollout_start(self):
        self._call("rollout_start")

    def _on_step(self):
        self._call("step")
        return self.stop_after is None or self.n_calls < self.stop_after

    def _on_rollout_end(self):
        self._call("rollout_end")

    def _on_training_end(self):
        self._call("end")


def at(**functions):
    return lambda notes: At(notes, **functions)


def on_third(name, change):
    """Change the model when the callback is called so for the third time."""

    def function(callback):
        if callback.calls[name] == 3:
            change(callback.model, callback.notes)

    return function


def on_third_step(change):
    return on_third("step", change)


def at_third_end(change):
    """Of a rollout."""
    return at(rollout_end=on_third("rollout_end", change))


def read(*names):
    """Note what is called so in locals, as arrays."""

    def function(callback):
        callback.notes.append({name: np.array(callback.locals[name]) for name in names if name in callback.locals})

    return function


def keep(*names):
    """Keep the objects of all steps, and note them at the end."""

    def step(callback):
        callback.kept = getattr(callback, "kept", [])
        callback.kept.append({name: callback.locals[name] for name in names if name in callback.locals})

    def end(callback):
        callback.notes.append([{name: np.array(value) for name, value in kept.items()} for kept in callback.kept])

    return at(step=step, end=end)


def keep_infos(callback):
    callback.kept = [*getattr(callback, "kept", []), callback.locals["infos"]]


def note_infos(callback):
    callback.notes.append([[info_of(info) for info in infos] for infos in callback.kept])


def info_of(info):
    """Of an info, what does not depend on the clock."""
    found = {name: value for name, value in info.items() if name != "episode"}
    if "episode" in info:
        found["episode"] = {name: info["episode"][name] for name in ("r", "l")}
    return found


def names_of_locals(callback):
    """Which names there are. Ours may have more."""
    callback.notes.append({name: True for name in callback.locals if not name.startswith("_") and name in SB3_LOCALS})


SB3_LOCALS = """self env callback train_freq replay_buffer action_noise learning_starts log_interval num_collected_steps
num_collected_episodes continue_training actions buffer_actions new_obs rewards dones infos rollout_buffer n_rollout_steps
n_steps obs_tensor values log_probs clipped_actions total_timesteps tb_log_name reset_num_timesteps progress_bar iteration
""".split()


def kinds(callback):
    found = {name: isinstance(callback.locals[name], np.ndarray) for name in ("actions", "new_obs", "rewards", "dones")}
    found["dtypes"] = [str(np.asarray(callback.locals[name]).dtype) for name in ("new_obs", "rewards", "dones")]
    callback.notes.append(found)


def add_to(name, what):
    """``locals[name] += what`` in place."""

    def step(callback):
        callback.locals[name] += what

    return step


def assign(name, index, what):
    def step(callback):
        callback.locals[name][index] = what

    return step


def out(name):
    """numpy's ``out=``."""

    def step(callback):
        np.multiply(callback.locals[name], 0.5, out=callback.locals[name])

    return step


def through_torch(callback):
    """torch.from_numpy shares the memory."""
    th.from_numpy(callback.locals["rewards"]).mul_(0.5)


def to_torch(callback):
    tensors = [th.as_tensor(callback.locals[name]) for name in ("new_obs", "rewards", "dones", "actions")]
    callback.notes.append([tensor.float().clone() for tensor in tensors])


def truth(callback):
    callback.notes.append(
        [bool(callback.locals["dones"]), bool(callback.locals["rewards"]), 1 if callback.locals["dones"] else 0]
    )


def numpy_methods(callback):
    rewards, dones, obs = (callback.locals[name] for name in ("rewards", "dones", "new_obs"))
    callback.notes.append(
        [
            rewards.sum(),
            rewards.mean(),
            dones.any(),
            dones.all(),
            obs.max(axis=0),
            rewards.tolist(),
            obs.shape,
            obs.ndim,
            obs.size,
            len(obs),
        ]
    )
    callback.notes.append(
        [obs[:, 0], obs[0], obs[dones], rewards[dones.astype(bool)], obs.copy(), obs.T, obs.reshape(-1), np.stack([obs, obs])]
    )
    callback.notes.append(
        [
            rewards + 1,
            1 - rewards,
            rewards * 2.0,
            -rewards,
            rewards > 1,
            rewards @ rewards,
            np.where(dones, 0.0, rewards),
            float(rewards[0]),
        ]
    )
    callback.notes.append(
        [bool(x) for x in ~dones] + [bool(dones[0]), float(np.mean(rewards)), int(np.sum(dones)), np.argmax(rewards)]
    )


def overwrite_next_obs(callback):
    callback.locals["new_obs"][:, 0] = 0.0


def change_info(callback):
    for info in callback.locals["infos"]:
        info["TimeLimit.truncated"] = False


def info_for_every_env(callback):
    callback.notes.append([[i, info_of(info)] for i, info in enumerate(callback.locals["infos"])])


def info_types(callback):
    infos = callback.locals["infos"]
    callback.notes.append(
        [
            isinstance(infos[0], dict),
            len(infos),
            infos[-1] == infos[len(infos) - 1],
            [info.get("episode") is None for info in infos],
        ]
    )


def set_model(name, value):
    """``model.name = value`` halfway."""

    def step(callback):
        if callback.n_calls == 3:
            setattr(callback.model, name, value() if callable(value) and name == "action_noise" else value)

    return step


def zero_last_obs(model, notes):
    model._last_obs = np.zeros_like(np.asarray(model._last_obs))


def other_train_freq(model, notes):
    model.train_freq = 2
    model._convert_train_freq()


def normalized(env, lib):
    return lib.VecNormalize(env)


def other_statistics(model, notes):
    model.get_vec_normalize_env().obs_rms.mean = np.full(4, 0.3)


def set_lr(callback):
    """Of the optimizers: SB3 overwrites it with the schedule's at the next update."""
    for optimizer in do.optimizers(callback.model):
        optimizer.param_groups[0]["lr"] = 0.5


def set_schedule(callback):
    if callback.n_calls == 3:
        callback.model.lr_schedule = lambda left: 0.03


def set_learning_rate(callback):
    """As users try: it changes nothing before _setup_lr_schedule."""
    if callback.n_calls == 3:
        callback.model.learning_rate = 0.03
        callback.model._setup_lr_schedule()


def set_clip_range(callback):
    if callback.n_calls == 3:
        callback.model.clip_range = lambda left: 0.01


def set_epsilon(callback):
    if callback.n_calls == 3:
        callback.model.exploration_schedule = lambda left: 0.25


def calm_noise(callback):
    """What model.action_noise is by now: one object for each environment."""
    noise = callback.model.action_noise
    if callback.n_calls == 3:
        for one in getattr(noise, "noises", [noise]):
            one._mu = np.array([-0.2])


def predict(callback):
    callback.notes.append(callback.model.predict(np.array(callback.locals["new_obs"]), deterministic=True)[0])


def sample(callback):
    """Acting in between with its own random numbers."""
    state = th.get_rng_state()
    callback.model.predict(np.array(callback.locals["new_obs"]))
    th.set_rng_state(state)


def buffer_size(callback):
    buffer = callback.model.replay_buffer if hasattr(callback.model, "replay_buffer") else callback.model.rollout_buffer
    callback.notes.append([buffer.pos, buffer.full, buffer.size()])


def counters(callback):
    model = callback.model
    callback.notes.append(
        [callback.num_timesteps, callback.n_calls, model.num_timesteps, model._n_updates, model._current_progress_remaining]
    )


def last_obs(callback):
    callback.notes.append([np.array(callback.model._last_obs), np.array(callback.locals["new_obs"])])


def logs(callback):
    callback.logger.record("own/value", callback.n_calls)
    callback.logger.record_mean("own/mean", callback.n_calls)


def change_rollout_rewards(callback):
    callback.model.rollout_buffer.rewards += 1.0


def change_rollout_advantages(callback):
    buffer = callback.model.rollout_buffer
    buffer.advantages += 1.0
    buffer.returns[:] = buffer.advantages + buffer.values


def replace_advantages(callback):
    """The attribute set to another array."""
    buffer = callback.model.rollout_buffer
    buffer.advantages = np.ones_like(np.asarray(buffer.advantages))


def compute_again(callback):
    """Intrinsic rewards: advantages once more, from changed rewards."""
    buffer = callback.model.rollout_buffer
    buffer.rewards *= 0.5
    buffer.compute_returns_and_advantage(th.zeros(buffer.n_envs), np.zeros(buffer.n_envs, bool))


def change_replay_rewards(callback):
    buffer = callback.model.replay_buffer
    buffer.rewards[: buffer.pos] *= 0.5


def evaluation_env(model_env_id=CONTINUOUS, **kwargs):
    return make_env(model_env_id, **{**ENV, "reset_dist": 0.2, "seed": 5, **kwargs})


def evaluate(notes, **kwargs):
    discrete = kwargs.pop("discrete", False)
    env = evaluation_env(DISCRETE if discrete else CONTINUOUS)
    settings = {
        "eval_freq": 4,
        "n_eval_episodes": 4,
        "verbose": 0,
        "log_path": str(notes.folder / "eval"),
        "best_model_save_path": str(notes.folder),
        **kwargs,
    }
    return EvalCallback(env, **settings)


class Watched(CallbackList):
    """Notes what an EvalCallback came to."""

    def __init__(self, notes, inner):
        super().__init__([inner])
        self.notes, self.inner = notes, inner

    def _on_training_end(self):
        super()._on_training_end()
        self.notes.append(
            [self.inner.last_mean_reward, self.inner.best_mean_reward, self.inner.evaluations_timesteps, self.inner.n_calls]
        )


def files(model, notes):
    """Which there are, without the statistics that ours keeps beside a model."""
    found = (os.path.relpath(os.path.join(d, f), notes.folder) for d, _, fs in os.walk(notes.folder) for f in fs)
    notes.append(sorted(name for name in found if not name.endswith("_vecnormalize.pkl")))


def plain_function(notes):
    def function(locals_, globals_):
        notes.append([locals_["self"].num_timesteps, np.array(locals_["rewards"]), "__name__" in globals_])
        return locals_["self"].num_timesteps < 16

    return function


def convert(notes):
    return ConvertCallback(lambda locals_, globals_: notes.append(np.array(locals_["new_obs"])) is None)


def none_of_an_on_step(notes):
    class Silent(BaseCallback):
        """SB3: None is not False... but it is falsy, so training stops."""

        def _on_step(self):
            notes.append(self.n_calls)

    return Silent()


def write_into_last_obs(model, notes):
    """By two looks at the attribute, which are one array."""
    model._last_obs[0] = 0.1
    model._last_obs[1] = 0.2


def train_another_net(callback):
    """As curiosity and discriminators do."""
    net = th.nn.Linear(4, 1)
    loss = net(th.as_tensor(np.array(callback.locals["new_obs"]))).pow(2).mean()
    loss.backward()
    callback.notes.append(bool(th.isfinite(net.weight.grad).all()))


def other_n_steps(n):
    """SB3's recipe."""

    def change(model, notes):
        model.n_steps = model.rollout_buffer.buffer_size = n
        model.rollout_buffer.reset()

    return change


def steeper(model, notes):
    for module in model.policy.modules():
        if isinstance(module, th.nn.LeakyReLU):
            module.negative_slope = 0.3
        if isinstance(module, th.nn.ELU):
            module.alpha = 2.0


def freezing_schedule(model, notes):
    def schedule(left):
        if left < 0.6:
            do.freeze_first(model, notes)
        return 1e-3

    model.learning_rate = schedule
    model._setup_lr_schedule()


def reset_when_done(callback):
    if callback.locals["dones"][0]:
        callback.model._last_obs = callback.training_env.reset()


def pickled_locals(callback):
    callback.notes.append(pickle.loads(pickle.dumps({**callback.locals}["rewards"])))


EXACT_LOCALS = ("actions", "new_obs", "rewards", "dones")
PPO_LOCALS = ("clipped_actions", "values", "log_probs", "obs_tensor")

# At a stop ours keeps the last transition, which has happened. SB3 forgets it, and would act on the observation before it.
STOPS = ("last_obs", "episode_starts", "buffer", "episodes", "episode_num", "logged names", "progress", "n_calls", "logged")
IN_PLACE = "changed locals.* in place"
INFOS = "changed TimeLimit.truncated in locals"

ROWS = [
    # calls
    Row("counts of calls", ALL, callback=at()),
    Row("counts of calls with two learns", ALL, callback=at(), between=lambda m, n: None),
    Row("counters", ALL, callback=at(step=counters, rollout_start=counters, rollout_end=counters)),
    Row("stop at once", ALL, callback=at(stop_after=1), skip_keys=STOPS),
    Row("stop in the middle", ALL, callback=at(stop_after=3), skip_keys=STOPS),
    Row("stop at the end of a rollout", ALL, callback=at(stop_after=4), skip_keys=STOPS),
    Row("stop and go on", ALL, callback=at(stop_after=2), between=lambda m, n: None, skip_keys=STOPS, inexact="ours goes on where it stopped, SB3 one observation before"),
    Row("_on_step returns None", ALL, callback=none_of_an_on_step, skip_keys=STOPS),
    Row("a list of callbacks", ALL, callback=lambda n: [At(n), At(n, stop_after=6)], skip_keys=STOPS),
    Row("CallbackList", ALL, callback=lambda n: CallbackList([At(n), At(n)])),
    Row("nested CallbackList", ALL, callback=lambda n: CallbackList([CallbackList([At(n, step=read("rewards"))]), At(n)])),
    Row("a plain function", ALL, callback=plain_function, skip_keys=STOPS),
    Row("ConvertCallback", ALL, callback=convert),
    # values of locals
    *[Row(f"locals[{name}]", ALL, callback=at(step=read(name))) for name in EXACT_LOCALS],
    *[Row(f"locals[{name}]", callback=at(step=read(name))) for name in PPO_LOCALS],
    Row("locals[buffer_actions]", OFF_POLICY, callback=at(step=read("buffer_actions"))),
    Row("locals of discrete PPO", callback=at(step=read(*EXACT_LOCALS, *PPO_LOCALS)), discrete=True),
    Row("locals at the end of a rollout", ALL, callback=at(rollout_end=read("new_obs", "rewards", "dones", "values", "n_steps")), env={"max_episode_length": 500}),
    Row("names in locals", ALL, callback=at(step=names_of_locals)),
    Row("names in locals at the start", ALL, callback=at(start=names_of_locals)),
    Row("names in locals at the end of a rollout", ALL, callback=at(rollout_end=names_of_locals)),
    Row("locals are numpy arrays", ALL, callback=at(step=kinds)),
    Row("truth value with one environment", ALL, env={"n_envs": 1}, callback=at(step=truth), learn={"total_timesteps": 12}),
    Row("numpy methods", ALL, callback=at(step=numpy_methods)),
    Row("torch.as_tensor", ALL, callback=at(step=to_torch)),
    Row("infos of all", ALL, callback=at(step=info_for_every_env)),
    Row("infos are dicts", ALL, callback=at(step=info_types)),
    Row("counts in locals", ("ppo",), callback=at(step=lambda c: c.notes.append([c.locals["n_steps"], c.locals["n_rollout_steps"]]))),
    Row("counts in locals", OFF_POLICY, callback=at(step=lambda c: c.notes.append([c.locals["num_collected_steps"], c.locals["num_collected_episodes"], c.locals["learning_starts"]]))),
    # values that are kept
    # SB3's PPO adds the value of the last observation to what a callback kept of rewards: not where there are no time limits
    *[Row(f"locals[{name}] kept", ALL, callback=keep(name), env={"max_episode_length": 500}) for name in EXACT_LOCALS],
    *[Row(f"locals[{name}] kept", callback=keep(name)) for name in PPO_LOCALS],
    Row("infos kept", ALL, callback=at(step=keep_infos, end=note_infos)),
    # changes in place
    Row("rewards += 1", ALL, callback=at(step=add_to("rewards", 1.0))),
    Row("rewards *= 0 where done", ALL, callback=at(step=lambda c: c.locals["rewards"].__setitem__(c.locals["dones"], -5.0))),
    Row("rewards[0] = 7", ALL, callback=at(step=assign("rewards", 0, 7.0))),
    Row("out=rewards", ALL, callback=at(step=out("rewards"))),
    Row("torch.from_numpy(rewards)", ALL, callback=at(step=through_torch)),
    Row("new_obs[:, 0] = 0", ALL, callback=at(step=overwrite_next_obs), refused=IN_PLACE),
    Row("dones[0] = True", ALL, callback=at(step=assign("dones", 0, True)), refused=IN_PLACE),
    Row("actions *= 0.5", ("ppo",), callback=at(step=out("actions")), refused=IN_PLACE),
    Row("buffer_actions *= 0.5", ("ddpg",), callback=at(step=out("buffer_actions")), refused=IN_PLACE),
    Row("infos changed", "ppo", callback=at(step=change_info), refused=INFOS),
    Row("infos changed", OFF_POLICY, {"gradient_steps": 0}, learn={"total_timesteps": 32}, stock_buffer=True, callback=at(step=change_info), refused=INFOS),
    Row("rollout_buffer.rewards += 1", callback=at(rollout_end=change_rollout_rewards)),
    Row("rollout_buffer.advantages += 1", callback=at(rollout_end=change_rollout_advantages)),
    Row("rollout_buffer.advantages replaced", callback=at(rollout_end=replace_advantages)),
    Row("compute_returns_and_advantage again", callback=at(rollout_end=compute_again)),
    Row("replay_buffer.rewards *= 0.5", OFF_POLICY, callback=at(rollout_end=change_replay_rewards)),
    # changes of the model
    Row("gamma in a callback", ALL, callback=at(step=set_model("gamma", 0.5))),
    Row("batch_size in a callback", ALL, callback=at(step=set_model("batch_size", 4))),
    Row("tau in a callback", OFF_POLICY, callback=at(step=set_model("tau", 0.9))),
    Row("gradient_steps in a callback", OFF_POLICY, callback=at(step=set_model("gradient_steps", 2))),
    Row("learning_starts in a callback", OFF_POLICY, {"learning_starts": 0}, callback=at(step=set_model("learning_starts", 20)), inexact="random actions from then on"),
    Row("target_update_interval in a callback", "dqn", callback=at(step=set_model("target_update_interval", 4))),
    Row("max_grad_norm in a callback", ("ppo", "dqn"), callback=at(step=set_model("max_grad_norm", 0.01))),
    Row("n_epochs in a callback", callback=at(step=set_model("n_epochs", 3))),
    Row("ent_coef in a callback", callback=at(step=set_model("ent_coef", 0.5))),
    Row("vf_coef in a callback", callback=at(step=set_model("vf_coef", 0.1))),
    Row("target_kl in a callback", options={"learning_rate": 1e-2}, callback=at(step=set_model("target_kl", 1e-7))),
    Row("gae_lambda of the buffer in a callback", callback=at(step=lambda c: setattr(c.model.rollout_buffer, "gae_lambda", 0.3))),
    Row("gamma of the buffer in a callback", callback=at(step=lambda c: setattr(c.model.rollout_buffer, "gamma", 0.3))),
    Row("normalize_advantage in a callback", callback=at(step=set_model("normalize_advantage", False))),
    Row("clip_range in a callback", callback=at(step=set_clip_range)),
    Row("clip_range_vf in a callback", callback=at(step=set_model("clip_range_vf", lambda left: 0.01))),
    Row("lr of the optimizer in a callback", ALL, callback=at(step=set_lr)),
    Row("lr of the optimizer at the end of a rollout", ALL, callback=at(rollout_end=set_lr)),
    Row("lr_schedule in a callback", ALL, callback=at(step=set_schedule)),
    Row("learning_rate in a callback", ALL, callback=at(step=set_learning_rate)),
    Row("exploration_rate in a callback", "dqn", callback=at(step=set_model("exploration_rate", 0.0)), options={"exploration_initial_eps": 0.0, "exploration_final_eps": 0.0}),
    Row("exploration_schedule in a callback", "dqn", callback=at(step=set_epsilon), inexact="a coin for each environment"),
    Row("action_noise calmed in a callback", "ddpg", lambda: {"action_noise": NormalActionNoise(np.array([0.3]), np.zeros(1))}, callback=at(step=calm_noise)),
    Row("action_noise replaced in a callback", "ddpg", callback=at(step=set_model("action_noise", lambda: VectorizedActionNoise(NormalActionNoise(np.array([0.3]), np.zeros(1)), 4)))),
    Row("action_noise removed in a callback", "ddpg", lambda: {"action_noise": NormalActionNoise(np.array([0.3]), np.zeros(1))}, callback=at(step=set_model("action_noise", None))),
    Row("weights changed in a callback", ALL, callback=at(step=on_third_step(do.other_weights))),
    Row("last layer replaced in a callback", ALL, callback=at(rollout_end=lambda c: do.new_last_layer(c.model, c.notes))),
    Row("policy replaced in a callback", ALL, callback=at_third_end(do.new_policy)),
    Row("target network replaced in a callback", OFF_POLICY, callback=at_third_end(do.other_target)),
    Row("trained network replaced in a callback", OFF_POLICY, callback=at_third_end(do.other_trained)),
    Row("_last_obs set at the end of a rollout", ALL, callback=at_third_end(zero_last_obs)),
    Row("_last_obs set at the start of a rollout", ALL, callback=at(rollout_start=on_third("rollout_start", zero_last_obs))),
    Row("_last_obs written into at the end of a rollout", ALL, callback=at_third_end(write_into_last_obs)),
    Row("_last_obs written into at the start of a rollout", ALL, callback=at(rollout_start=on_third("rollout_start", write_into_last_obs))),
    Row("_last_obs written into between two learns", ALL, between=write_into_last_obs),
    Row("last layer replaced at the start of a rollout", ALL, callback=at(rollout_start=on_third("rollout_start", do.new_last_layer))),
    Row("hook added at the start of a rollout", ALL, callback=at(rollout_start=on_third("rollout_start", do.hook_that_changes))),
    Row("another network trained in a callback", ALL, callback=at(step=train_another_net)),
    Row("locals pickled", ALL, callback=at(step=pickled_locals)),
    *[Row(f"n_steps={n} of the buffer between two learns", between=other_n_steps(n)) for n in (2, 8)],
    Row("_last_obs set between two learns", ALL, between=zero_last_obs),
    Row("ent_coef is a tensor in a callback", callback=at(step=set_model("ent_coef", th.tensor(0.5)))),
    Row("slope of LeakyReLU in a callback", ALL, {"policy_kwargs": {"activation_fn": th.nn.LeakyReLU}}, callback=at_third_end(steeper)),
    Row("alpha of ELU in a callback", ALL, {"policy_kwargs": {"activation_fn": th.nn.ELU}}, callback=at_third_end(steeper)),
    Row("a schedule freezes a layer", ALL, before=freezing_schedule),
    Row("_last_episode_starts written into", callback=at_third_end(lambda m, n: m._last_episode_starts.__setitem__(slice(None), True))),
    Row("_last_episode_starts set", callback=at_third_end(lambda m, n: setattr(m, "_last_episode_starts", np.ones(4, dtype=bool)))),
    Row("num_timesteps set in a callback", ALL, callback=at_third_end(lambda m, n: setattr(m, "num_timesteps", m.num_timesteps + 8))),
    Row("_total_timesteps set in a callback", ALL, {"learning_rate": lambda left: 1e-2 * left}, callback=at_third_end(lambda m, n: setattr(m, "_total_timesteps", 1000))),
    Row("_n_updates set in a callback", ALL, callback=at_third_end(lambda m, n: setattr(m, "_n_updates", 100))),
    Row("rollout_buffer replaced in a callback", callback=at_third_end(lambda m, n: setattr(m, "rollout_buffer", copy.deepcopy(m.rollout_buffer)))),
    Row("rollout_buffer reset in a callback", callback=at(rollout_start=lambda c: c.model.rollout_buffer.reset())),
    Row("replay_buffer reset in a callback", OFF_POLICY, callback=at(rollout_start=on_third("rollout_start", lambda m, n: m.replay_buffer.reset()))),
    Row("train_freq in a callback", OFF_POLICY, callback=at_third_end(other_train_freq)),
    Row("use_sde noise", options={"use_sde": True}, callback=at(step=on_third_step(lambda m, n: m.policy.reset_noise(4)))),
    Row("VecNormalize stopped in a callback", ALL, wrap=normalized, callback=at_third_end(lambda m, n: setattr(m.get_vec_normalize_env(), "training", False))),
    Row("VecNormalize norm_reward off in a callback", ALL, wrap=normalized, callback=at_third_end(lambda m, n: setattr(m.get_vec_normalize_env(), "norm_reward", False))),
    Row("VecNormalize norm_obs off in a callback", ALL, wrap=normalized, callback=at_third_end(lambda m, n: setattr(m.get_vec_normalize_env(), "norm_obs", False))),
    Row("VecNormalize clip_obs in a callback", wrap=normalized, callback=at_third_end(lambda m, n: setattr(m.get_vec_normalize_env(), "clip_obs", 0.1))),
    Row("VecNormalize clip_obs in a callback", OFF_POLICY, wrap=normalized, inexact="SB3 stores the last observation of an episode as it is after clipping", callback=at_third_end(lambda m, n: setattr(m.get_vec_normalize_env(), "clip_obs", 0.1))),
    Row("VecNormalize gamma in a callback", ALL, wrap=normalized, callback=at_third_end(lambda m, n: setattr(m.get_vec_normalize_env(), "gamma", 0.5))),
    Row("VecNormalize statistics in a callback", ALL, wrap=normalized, callback=at_third_end(other_statistics)),
    Row("train_freq and gradient_steps in a callback", OFF_POLICY, callback=at_third_end(lambda m, n: (other_train_freq(m, n), setattr(m, "gradient_steps", -1)))),
    Row("layer frozen in a callback", ALL, callback=at(step=on_third_step(do.freeze_first))),
    # torch 1.13 counts steps of gradients that are zero, where others have none
    Row("layer frozen at the end of a rollout", ALL, callback=at(rollout_end=lambda c: do.freeze_first(c.model, c.notes)), skip_keys=("optimizers",)),
    Row("optimizer state cleared in a callback", ALL, callback=at(step=on_third_step(do.clear_state))),
    Row("optimizer replaced in a callback", ALL, callback=at(step=on_third_step(do.new_adam))),
    Row("betas changed in a callback", ALL, callback=at(step=on_third_step(do.change_betas))),
    Row("hook added in a callback", OFF_POLICY, callback=at(step=on_third_step(do.hook_that_changes))),
    Row("hook added at the end of a rollout", ALL, callback=at(rollout_end=lambda c: do.hook_that_changes(c.model, c.notes))),
    Row("set_parameters in a callback", ALL, callback=at(rollout_end=lambda c: c.model.set_parameters(c.model.get_parameters()))),
    Row("predict in a callback", ALL, callback=at(step=predict)),
    Row("stochastic predict in a callback", ("ppo",), callback=at(step=sample)),
    Row("buffer in a callback", ALL, callback=at(rollout_start=buffer_size, rollout_end=buffer_size)),
    Row("buffer in each step", ALL, callback=at(step=buffer_size)),
    Row("model._last_obs in a callback", ALL, callback=at(step=last_obs)),
    Row("logger in a callback", ALL, callback=at(step=logs)),
    # SB3's own
    Row("EveryNTimesteps", ALL, callback=lambda n: EveryNTimesteps(8, At(n, step=counters))),
    Row("CheckpointCallback", ALL, callback=lambda n: CheckpointCallback(3, str(n.folder)), after=files),
    Row("CheckpointCallback with buffer and VecNormalize", OFF_POLICY, callback=lambda n: CheckpointCallback(3, str(n.folder), save_replay_buffer=True, save_vecnormalize=True), wrap=lambda env, lib: lib.VecNormalize(env), after=files),
    Row("EvalCallback", ("ppo", "ddpg"), callback=lambda n: Watched(n, evaluate(n)), after=files),
    Row("EvalCallback", "dqn", callback=lambda n: Watched(n, evaluate(n, discrete=True)), after=files),
    Row("EvalCallback with VecNormalize", callback=lambda n: Watched(n, EvalCallback(n.lib.VecNormalize(evaluation_env(), training=False), eval_freq=2, n_eval_episodes=3, verbose=0, warn=False)), wrap=lambda env, lib: lib.VecNormalize(env)),
    Row("EvalCallback on stock's VecNormalize", callback=lambda n: Watched(n, EvalCallback(VecNormalize(evaluation_env(), training=False), eval_freq=2, n_eval_episodes=3, verbose=0, warn=False)), wrap=lambda env, lib: lib.VecNormalize(env)),
    Row("StopTrainingOnRewardThreshold", ("ppo", "ddpg"), callback=lambda n: Watched(n, evaluate(n, eval_freq=2, callback_on_new_best=StopTrainingOnRewardThreshold(-1e9))), skip_keys=STOPS),
    Row("StopTrainingOnNoModelImprovement", ("ppo", "ddpg"), callback=lambda n: Watched(n, evaluate(n, eval_freq=1, callback_after_eval=StopTrainingOnNoModelImprovement(0, 1))), skip_keys=STOPS),
    Row("StopTrainingOnMaxEpisodes", ALL, callback=lambda n: StopTrainingOnMaxEpisodes(1), skip_keys=STOPS),
    Row("ProgressBarCallback", ALL, callback=lambda n: ProgressBarCallback()),
    Row("progress_bar=True", ALL, learn={"progress_bar": True}),
]  # fmt: skip


@table([Row("train_freq in episodes, reset by a callback", OFF_POLICY)])
def test_episodes_that_a_callback_ends_count(row: Row, algo: str, tmp_path: Path) -> None:
    options = {"train_freq": (2, "episode")}
    row = row._replace(
        options=options, env={"n_envs": 1}, callback=at(step=reset_when_done), inexact="SB3 acts once on the old one"
    )
    compare(row, algo, tmp_path)


@pytest.mark.parametrize("algo", ALL)
def test_what_a_step_has_told_stays_when_the_environment_is_reset(algo: str) -> None:
    told, firsts = [], []

    class Resets(BaseCallback):
        def _on_step(self) -> bool:
            self.training_env.reset()
            return True

    class Looks(BaseCallback):
        def _on_step(self) -> bool:
            infos = [dict(info.get("episode", {}), t=0) for info in self.locals["infos"]]
            told.append((self.locals["dones"].tolist(), infos))
            return True

    for callbacks in ([Looks()], [Resets(), Looks()]):
        options = {**DEFAULTS[algo], "n_steps": 4} if algo == "ppo" else {**DEFAULTS[algo], "learning_starts": 1000}
        env = make_env(DISCRETE if algo == "dqn" else CONTINUOUS, **{**ENV, "max_episode_length": 2})
        getattr(sb3_isaac, algo.upper())("MlpPolicy", env, seed=0, device="cpu", **options).learn(4, callback=callbacks)
        firsts.append(told[0])
        told.clear()
    (dones, infos), after_a_reset = firsts
    assert (dones, infos) == after_a_reset and all(dones) and infos[0]["l"] == 1


@table(ROWS)
def test_callback(row: Row, algo: str, tmp_path: Path) -> None:
    compare(row, algo, tmp_path)
