"""Files, predictions, evaluation, seeds, loggers, devices, and training that goes on elsewhere."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import stable_baselines3
import torch as th
from stable_baselines3.common import vec_env as sb3
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.utils import set_random_seed

import sb3_isaac
from tests.conftest import CONTINUOUS, DISCRETE, make_env
from tests.drop_in import changes as do
from tests.drop_in.side_by_side import ALL, ENV, N_STEP, OFF_POLICY, Row, compare, table
from tests.drop_in.test_callbacks import at_third_end

OBS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def new_env(model, n_envs=4, seed=9):
    discrete = not hasattr(model.action_space, "low")
    return make_env(DISCRETE if discrete else CONTINUOUS, **{**ENV, "reset_dist": 0.2, "n_envs": n_envs, "seed": seed})


def load(model, notes, **kwargs):
    """Save and load with the class at hand."""
    path = notes.folder / "model.zip"
    model.save(path)
    kwargs = {"device": "cpu", **kwargs}
    loaded = type(model).load(path, **kwargs)
    loaded.set_logger(model.logger)
    if hasattr(model, "replay_buffer"):
        loaded.replay_buffer.generator = th.Generator().manual_seed(8)
    return loaded


def loaded_with(**kwargs):
    """Goes on with a loaded model in a new environment."""
    return lambda model, notes: load(model, notes, env=new_env(model), **kwargs)


def loaded_without_reset(model, notes):
    """Acts on the observation of the file first, as SB3's; ours refuse steps of environments that nobody has reset."""
    env = new_env(model)
    env.reset()
    return load(model, notes, env=env, force_reset=False)


def crossed(model, notes):
    """The other library's class loads the file, and its file goes on here."""
    cls = type(model).__name__
    path = notes.folder / "model.zip"
    model.save(path)
    other = getattr(stable_baselines3 if notes.lib.ours else sb3_isaac, cls).load(path, device="cpu")
    notes.append([other.predict(OBS, deterministic=True)[0], other.num_timesteps, other._n_updates])
    other.save(notes.folder / "other.zip")
    loaded = type(model).load(notes.folder / "other.zip", env=new_env(model), device="cpu")
    loaded.set_logger(model.logger)
    spaces = (loaded.observation_space, loaded.action_space, "cpu")
    if hasattr(loaded, "replay_buffer"):
        loaded.replay_buffer = sb3_isaac.DeviceReplayBuffer(loaded.buffer_size, *spaces, n_envs=4)
        loaded.replay_buffer.generator = th.Generator().manual_seed(8)
    else:
        loaded.rollout_buffer = sb3_isaac.DeviceRolloutBuffer(
            loaded.n_steps, *spaces, loaded.gae_lambda, loaded.gamma, n_envs=4
        )
    return loaded


def data_of_file(model, notes):
    """Names in the archive and in its data."""
    path = notes.folder / "model.zip"
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        notes.append(sorted(archive.namelist()))
        notes.append({name: True for name in json.loads(archive.read("data")) if name not in OWN})
    data, parameters, variables = load_from_zip_file(path, device="cpu")
    # what stock's runs need here for the sake of the comparison is left out
    plain = {
        k: v for k, v in data.items() if isinstance(v, (int, float, str, bool, type(None))) and k not in (*OWN, "start_time")
    }
    notes.append({**plain, "parameters": sorted(parameters), "variables": sorted(variables or {})})


OWN = """n_minibatches adaptive_lr_kl adaptive_lr_factor adaptive_lr_min adaptive_lr_max adapted_lr spread_time_limits compile precision n_steps
double_q per_env_epsilon reward_scale per_env_noise shared_noise rollout_buffer_class replay_buffer_class replay_buffer_kwargs
_stats_window_size _last_original_obs""".split()


def exclude_and_include(model, notes):
    path = notes.folder / "model.zip"
    model.save(path, exclude=["gamma"])
    data = load_from_zip_file(path)[0]
    notes.append(["gamma" in data, "tau" in data, "env" in data])
    model.save(path, include=["_last_obs"])
    notes.append("_last_obs" in load_from_zip_file(path)[0])


def save_to_buffer(model, notes):
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    notes.append(type(model).load(file, device="cpu").predict(OBS, deterministic=True)[0])


def parameters_there_and_back(model, notes):
    saved = model.get_parameters()
    notes.append({name: sorted(part) for name, part in saved.items()})
    do.other_weights(model, notes)
    model.set_parameters(saved)


def parameters_of_other(model, notes):
    """From the start once more, with an optimizer that is new."""
    other = load(model, notes)
    do.other_weights(other, notes)
    do.new_adam(other, notes)
    model.set_parameters(other.get_parameters())


def parameters_from_file(model, notes):
    path = notes.folder / "model.zip"
    model.save(path)
    do.other_weights(model, notes)
    model.set_parameters(str(path), device="cpu")


def policy_only(model, notes):
    model.set_parameters({"policy": model.policy.state_dict()}, exact_match=False)


def policy_file(model, notes):
    path = notes.folder / "policy.pt"
    model.policy.save(path)
    policy = type(model.policy).load(path, device="cpu")
    notes.append(policy.predict(OBS, deterministic=True)[0])


def load_policy_state(model, notes):
    state = {name: value * 0.5 for name, value in model.policy.state_dict().items()}
    model.policy.load_state_dict(state)


def other_env(n_envs=4):
    def change(model, notes):
        model.set_env(new_env(model, n_envs))

    return change


def other_env_without_reset(model, notes):
    env = new_env(model)
    env.reset()
    model.set_env(env, force_reset=False)


def monitored(model, notes):
    """No tensor path: from then on training runs in numpy."""
    model.env = sb3.VecMonitor(model.env)


def normalized_without_reset(model, notes):
    env = notes.lib.VecNormalize(new_env(model))
    env.reset()
    model.set_env(env, force_reset=False)


def loaded_with_other_n_envs(model, notes):
    return load(model, notes, env=new_env(model, 6))


def wrapped_env(model, notes):
    model.set_env(notes.lib.VecNormalize(new_env(model)))


def replay_file(model, notes):
    """Written and read by the same library, and looked into in stock."""
    path = notes.folder / "replay.pkl"
    model.save_replay_buffer(path)
    loaded = load(model, notes, env=new_env(model))
    loaded.load_replay_buffer(path)
    loaded.replay_buffer.generator = th.Generator().manual_seed(8)
    return loaded


def replay_file_of_stock(model, notes):
    """A buffer of SB3's own, with known contents."""
    cls = getattr(stable_baselines3, type(model).__name__)
    other = cls(
        "MlpPolicy", new_env(model), buffer_size=400, device="cpu", seed=4, learning_starts=0, policy_kwargs={"net_arch": [8]}
    )
    other.policy.load_state_dict(model.policy.state_dict())
    if hasattr(other, "exploration_rate"):
        other.exploration_schedule = lambda left: 0.0
        other.exploration_rate = 0.0
    other.gradient_steps = 0
    other.learn(40)
    path = notes.folder / "stock.pkl"
    other.save_replay_buffer(path)
    model.load_replay_buffer(path)
    buffer = model.replay_buffer
    notes.append([buffer.pos, buffer.full, np.array(buffer.rewards[:10]), np.array(buffer.dones[:10]) > 0])


def replay_file_in_stock(model, notes):
    """What stock reads of the file."""
    path = notes.folder / "replay.pkl"
    model.save_replay_buffer(path)
    cls = getattr(stable_baselines3, type(model).__name__)
    other = cls("MlpPolicy", new_env(model), buffer_size=model.buffer_size, device="cpu")
    other.load_replay_buffer(path)
    buffer = other.replay_buffer
    rows = buffer.size()
    notes.append(
        [
            buffer.pos,
            buffer.full,
            np.array(buffer.observations[:rows]),
            np.array(buffer.rewards[:rows]),
            np.array(buffer.dones[:rows]),
            np.array(buffer.timeouts[:rows]),
        ]
    )
    samples = buffer._get_samples(np.arange(rows))
    notes.append([list(samples.observations.shape), str(samples.actions.dtype), str(samples.dones.dtype)])


def normalize_file(model, notes):
    path = notes.folder / "vec_normalize.pkl"
    model.get_vec_normalize_env().save(path)
    loaded = notes.lib.VecNormalize.load(str(path), new_env(model))
    notes.append([loaded.obs_rms.mean, loaded.obs_rms.var, loaded.ret_rms.var, loaded.normalize_obs(OBS)])
    other = (sb3.VecNormalize if notes.lib.ours else sb3_isaac.VecNormalize).load(str(path), new_env(model))
    notes.append([other.obs_rms.mean, other.normalize_obs(OBS), other.normalize_reward(np.ones(4))])


def sync(model, notes):
    for cls in (sb3.VecNormalize, sb3_isaac.VecNormalize):
        env = cls(new_env(model), training=False)
        sb3.sync_envs_normalization(model.get_vec_normalize_env(), env)
        notes.append([env.obs_rms.mean, env.ret_rms.var, env.normalize_obs(OBS)])


def predictions(model, notes):
    for deterministic in (True,) if not hasattr(model, "exploration_rate") else (True, False):
        actions, state = model.predict(OBS, deterministic=deterministic)
        notes.append([actions, state, actions.shape, str(actions.dtype)])
    single, state = model.predict(OBS[0], deterministic=True)
    notes.append([single, np.shape(single), str(np.asarray(single).dtype), isinstance(single, np.ndarray), state])
    notes.append(model.predict(OBS[:1], deterministic=True)[0])
    notes.append(model.predict(OBS, state=None, episode_start=np.ones(6, bool), deterministic=True)[0])
    notes.append(model.predict(OBS.astype(np.float64), deterministic=True)[0])
    notes.append(model.predict(OBS[::-1], deterministic=True)[0])
    notes.append(model.policy.predict(OBS, deterministic=True)[0])
    for wrong in (OBS[:, :3], OBS[None]):
        try:
            model.predict(wrong)
        except Exception as error:
            notes.append(type(error).__name__)


def stochastic_predictions(model, notes):
    th.manual_seed(1)
    notes.append([model.predict(OBS)[0] for _ in range(3)])


def parts_of_policy(model, notes):
    obs = th.from_numpy(OBS)
    policy = model.policy
    with th.no_grad():
        if hasattr(policy, "predict_values"):
            distribution = policy.get_distribution(obs)
            notes.append(
                [
                    policy.predict_values(obs),
                    distribution.mode(),
                    distribution.log_prob(distribution.mode()),
                    policy.extract_features(obs) if False else 0,
                ]
            )
            notes.append(list(policy.evaluate_actions(obs, distribution.mode())))
        elif hasattr(policy, "q_net"):
            notes.append([policy.q_net(obs), policy.q_net_target(obs)])
        else:
            actions = policy.actor(obs)
            notes.append([actions, *policy.critic(obs, actions), *policy.critic_target(obs, actions)])


def evaluated(model, notes):
    rewards, lengths = evaluate_policy(model, new_env(model), n_eval_episodes=6, return_episode_rewards=True, warn=False)
    notes.append([np.array(rewards), lengths])
    notes.append(list(evaluate_policy(model, new_env(model), n_eval_episodes=6, warn=False)))
    notes.append(list(evaluate_policy(model.policy, new_env(model, 1), n_eval_episodes=2, warn=False)))


def seeded(model, notes):
    model.set_random_seed(4)
    notes.append([float(th.rand(())), float(np.random.rand())])
    notes.append(model.action_space.sample())


def global_seed(model, notes):
    set_random_seed(7)


def csv_logger(model, notes):
    model.set_logger(configure(str(notes.folder), ["csv", "json"]))


def csv_files(model, notes):
    lines = (notes.folder / "progress.csv").read_text().splitlines()
    notes.append(sorted(name for name in lines[0].split(",") if not name.startswith("time/")))
    notes.append(len(lines))


def printed(model, notes):
    """The table of verbose=1, without what depends on the clock."""
    model.verbose = 1
    out = io.StringIO()
    model._custom_logger = False
    with contextlib.redirect_stdout(out):
        model.learn(32, log_interval=1, reset_num_timesteps=False)
    names = {part.strip() for line in out.getvalue().splitlines() for part in line.split("|")[1:2] if part.strip()}
    notes.append(
        {name: True for name in names if name not in ("rollout", "env", "update", "replay_ratio", "fps", "time_elapsed")}
    )


def attributes(model, notes):
    names = "n_envs device verbose seed gamma batch_size learning_rate num_timesteps use_sde sde_sample_freq policy_class _episode_num"
    notes.append({name: str(getattr(model, name)) for name in names.split() if name != "_episode_num"})
    notes.append(
        [
            str(model.observation_space),
            str(model.action_space),
            model.get_env() is model.env,
            len(model.ep_info_buffer),
            len(model.ep_success_buffer),
        ]
    )
    notes.append(
        [model.get_vec_normalize_env() is None, isinstance(model, getattr(stable_baselines3, type(model).__mro__[0].__name__))]
    )


def nothing(model, notes):
    return None


STALE = "SB3 acts once on the observation before the reset, ours does not"
TWICE = {"between": nothing}
COPYABLE = OFF_POLICY if hasattr(th, "set_default_device") else ()
"""Torch 1 cannot copy generators, which environments have; stock PPO cannot be copied once it has trained"""
ROWS = [
    # going on
    Row("two learns", ALL, **TWICE),
    Row("two learns, reset_num_timesteps=True", ALL, learn={"reset_num_timesteps": True}, **TWICE),
    Row("two learns with a falling rate", ALL, {"learning_rate": lambda left: 1e-2 * left}, **TWICE),
    Row("total_timesteps that is no multiple", ALL, learn={"total_timesteps": 27}, **TWICE),
    Row("total_timesteps is a float", ALL, learn={"total_timesteps": 32.0}),
    Row("total_timesteps=1", ALL, learn={"total_timesteps": 1}),
    Row("total_timesteps=0", ALL, learn={"total_timesteps": 0}),
    Row("log_interval=3", ("ppo",), learn={"log_interval": 3, "total_timesteps": 96}),
    Row("log_interval=None", OFF_POLICY, learn={"log_interval": None}),
    Row("tb_log_name", ALL, learn={"tb_log_name": "x"}),
    Row("a deep copy goes on", COPYABLE, between=lambda m, n: copy.deepcopy(m)),
    Row("env replaced", ALL, between=other_env()),
    Row("env replaced without a reset", "ppo", between=other_env_without_reset),
    Row("env replaced without a reset", OFF_POLICY, between=other_env_without_reset, inexact=STALE),
    Row("env replaced in a callback", ALL, callback=at_third_end(other_env_without_reset)),
    Row("env replaced in a callback, n-step returns", N_STEP, {"n_steps": 3}, callback=at_third_end(other_env_without_reset), inexact="SB3's returns go on into the other environment"),
    Row("env wrapped in a callback", ALL, callback=at_third_end(monitored)),
    Row("env normalized in a callback", "ppo", callback=at_third_end(normalized_without_reset)),
    Row("env normalized in a callback", OFF_POLICY, callback=at_third_end(normalized_without_reset), inexact="SB3 stores once what it acted on before that"),
    Row("env reset in between", ALL, between=lambda m, n: m.env.reset() is None, inexact=STALE),
    Row("env stepped in between", ("ppo",), between=lambda m, n: m.env.step(np.zeros((4, 1), np.float32)) is None),
    Row("env wrapped in VecNormalize in between", ("ppo",), between=wrapped_env),
    Row("noise replaced in between", "ddpg", between=lambda m, n: setattr(m, "action_noise", NormalActionNoise(np.array([0.3]), np.zeros(1)))),
    Row("noise of another kind in between", "ddpg", lambda: {"action_noise": NormalActionNoise(np.array([0.3]), np.zeros(1))}, between=lambda m, n: setattr(m, "action_noise", OrnsteinUhlenbeckActionNoise(np.array([0.3]), np.zeros(1)))),
    Row("noise removed in between", "ddpg", lambda: {"action_noise": NormalActionNoise(np.array([0.3]), np.zeros(1))}, between=lambda m, n: setattr(m, "action_noise", None)),
    Row("train_freq replaced in between", OFF_POLICY, between=lambda m, n: (setattr(m, "train_freq", 2), m._convert_train_freq())[1]),
    Row("buffer reset in between", OFF_POLICY, between=lambda m, n: m.replay_buffer.reset()),
    # files
    Row("loaded", ALL, between=loaded_with()),
    Row("loaded, without an env", ALL, after=lambda m, n: n.append(load(m, n).predict(OBS, deterministic=True)[0])),
    Row("loaded with another learning_rate", ALL, between=loaded_with(learning_rate=2e-2)),
    Row("loaded with a learning_rate in custom_objects", ALL, between=loaded_with(custom_objects={"learning_rate": 2e-2, "lr_schedule": lambda left: 2e-2})),
    Row("loaded with another gamma", ALL, between=loaded_with(gamma=0.5)),
    Row("loaded with another batch_size", ALL, between=loaded_with(batch_size=4)),
    Row("loaded with another n_epochs", between=loaded_with(n_epochs=1)),
    Row("loaded with another clip_range", between=loaded_with(clip_range=0.01)),
    Row("loaded with another n_steps", between=loaded_with(n_steps=6)),
    Row("loaded with another ent_coef", between=loaded_with(ent_coef=0.3)),
    Row("loaded with another target_kl", between=loaded_with(target_kl=1e-8)),
    Row("loaded with another tau", OFF_POLICY, between=loaded_with(tau=1.0)),
    Row("loaded with another seed", ALL, between=loaded_with(seed=5)),
    Row("loaded with another train_freq and gradient_steps", OFF_POLICY, between=loaded_with(train_freq=2, gradient_steps=3)),
    Row("loaded with another buffer_size", OFF_POLICY, between=loaded_with(buffer_size=24)),
    Row("loaded with force_reset=False", ALL, between=loaded_without_reset),
    Row("loaded with six environments", ("ppo",), between=loaded_with_other_n_envs),
    Row("loaded with another policy_kwargs", ALL, after=lambda m, n: n.append(refusal(lambda: load(m, n, policy_kwargs={"net_arch": [4]})))),
    Row("loaded twice, by the other library in between", ALL, between=crossed),
    Row("names in a file", ALL, after=data_of_file),
    Row("exclude and include", OFF_POLICY, after=exclude_and_include),
    Row("a file in memory", ALL, after=save_to_buffer),
    Row("get_parameters and set_parameters", ALL, between=parameters_there_and_back),
    Row("set_parameters from another model", ALL, between=parameters_of_other),
    Row("set_parameters from a file", ALL, between=parameters_from_file),
    Row("set_parameters of the policy only", ALL, between=policy_only),
    Row("policy.load_state_dict", ALL, between=load_policy_state),
    Row("policy.save", ALL, after=policy_file),
    Row("save_replay_buffer and load_replay_buffer", OFF_POLICY, between=replay_file),
    Row("load_replay_buffer of stock's file", OFF_POLICY, {"buffer_size": 400}, between=replay_file_of_stock, stock_buffer=True, inexact="minibatches drawn in numpy and in torch"),
    Row("save_replay_buffer, read by stock", OFF_POLICY, {"gradient_steps": 0}, after=replay_file_in_stock, stock_buffer=True),
    Row("save_replay_buffer, full, read by stock", OFF_POLICY, {"gradient_steps": 0, "buffer_size": 20}, after=replay_file_in_stock, stock_buffer=True),
    Row("save_replay_buffer, handle_timeout_termination=False, read by stock", OFF_POLICY, {"gradient_steps": 0, "replay_buffer_kwargs": {"handle_timeout_termination": False}}, after=replay_file_in_stock, stock_buffer=True),
    Row("VecNormalize.save", ALL, wrap=lambda env, lib: lib.VecNormalize(env), after=normalize_file),
    Row("sync_envs_normalization", ALL, wrap=lambda env, lib: lib.VecNormalize(env), after=sync),
    Row("loaded with VecNormalize", ALL, wrap=lambda env, lib: lib.VecNormalize(env), between=lambda m, n: load(m, n, env=n.lib.VecNormalize(new_env(m)))),
    # predictions
    Row("predict", ALL, after=predictions),
    Row("stochastic predict", ("ppo",), after=stochastic_predictions),
    Row("stochastic predict, discrete", ("ppo",), discrete=True, after=stochastic_predictions),
    Row("predict, discrete", ("ppo",), discrete=True, after=predictions),
    Row("parts of the policy", ALL, after=parts_of_policy),
    Row("evaluate_policy", ALL, after=evaluated),
    # the rest
    Row("set_random_seed of the model", ALL, between=seeded),
    Row("set_random_seed", ALL, between=global_seed),
    Row("csv and json logger", ("ppo",), before=csv_logger, after=csv_files),
    Row("tables that are printed", ALL, after=printed),
    Row("verbose=2", ALL, {"verbose": 2}),
    Row("attributes", ALL, after=attributes),
    Row("device=torch.device", ALL, {"device": th.device("cpu")}),
    Row("device='auto'", ALL, {"device": "auto"}),
    Row("tensorboard_log=None", ALL, {"tensorboard_log": None}),
]  # fmt: skip


def refusal(function):
    """Which error comes."""
    try:
        function()
    except Exception as error:
        return type(error).__name__
    return None


@table(ROWS)
def test_file_or_other(row: Row, algo: str, tmp_path: Path) -> None:
    compare(row, algo, tmp_path)


@table([Row("same seed", ALL)])
def test_the_same_seed_gives_the_same(row: Row, algo: str, tmp_path: Path) -> None:
    """And another one something else: the comparison can fail."""
    from tests.drop_in.side_by_side import OURS, differences, run

    first, again = (run(row, algo, OURS, tmp_path) for _ in range(2))
    other = run(row._replace(options={"seed": 1}), algo, OURS, tmp_path)
    assert not differences(first, again, "")
    assert len(differences(first, other, "")) > 5
    assert len(differences(first, run(row._replace(options={"gamma": 0.98}), algo, OURS, tmp_path), "")) > 2
