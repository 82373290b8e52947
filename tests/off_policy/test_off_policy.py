"""What DQN and DDPG have in common: rollouts against SB3's own, callbacks, logs, options."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import stable_baselines3
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env

from sb3_isaac import DeviceReplayBuffer, VecFrameStack, VecNormalize
from sb3_isaac.buffers.sb3_buffer import SB3_HAS_N_STEPS
from sb3_isaac.device.eligibility import Watch
from sb3_isaac.off_policy.training_log import STEPS_PER_READ
from tests.conftest import ENV_IDS, SyncGuard, difference, make_env, parameters
from tests.off_policy.conftest import ALGOS, STOCK, make_model, start

pytestmark = pytest.mark.parametrize("algo", ["dqn", "ddpg"])


# -- the rollout -----------------------------------------------------------------------------------------------------


class Recorder(BaseCallback):
    """Actions, and what SB3 gives to callbacks."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.actions, self.rewards, self.dones, self.infos, self.steps = [], [], [], [], []
        self.stop_after = stop_after

    def _on_step(self):
        self.actions.append(np.array(self.locals["actions"]))
        self.rewards.append(np.array(self.locals["rewards"]))
        self.dones.append(np.array(self.locals["dones"]))
        self.infos.append(list(self.locals["infos"]))
        self.steps.append(self.num_timesteps)
        return self.stop_after is None or len(self.steps) < self.stop_after


@pytest.mark.parametrize("normalized", [False, True])
def test_replay_buffer_equals_sb3s(algo, normalized):
    """Same actions, same resets and time-outs: the stored transitions are SB3's, final observations included."""
    recorder = Recorder()
    env = make_env(ENV_IDS[algo], max_episode_length=18, reset_dist=0.5)
    ours = make_model(algo, VecNormalize(env) if normalized else env, learning_starts=10**6)
    ours.learn(8 * 60, callback=recorder)
    env = make_env(ENV_IDS[algo], max_episode_length=18, reset_dist=0.5)
    stock = make_model(algo, stable_baselines3.common.vec_env.VecNormalize(env) if normalized else env, cls=STOCK[algo])
    start(stock)
    for actions in recorder.actions:
        obs, rewards, dones, infos = stock.env.step(actions)
        stock._store_transition(stock.replay_buffer, actions, obs, rewards, dones, infos)
    theirs, mine = stock.replay_buffer, ours.replay_buffer
    assert isinstance(mine, DeviceReplayBuffer) and mine.pos == theirs.pos == 60
    for name in ("observations", "next_observations", "actions", "rewards"):
        ours_column, their_column = getattr(mine, name).numpy(), getattr(theirs, name)
        assert np.allclose(ours_column, their_column.reshape(ours_column.shape), atol=1e-5), name
    flags = mine.dones.numpy()
    assert np.array_equal(flags != 0, theirs.dones > 0) and np.array_equal(flags == 2, theirs.timeouts > 0)
    assert (flags == 1).sum() > 5 and (flags == 2).sum() > 5, "the episodes must end in both ways"
    # The true final observation, not the one after the reset
    ended = flags[:59] != 0
    assert (np.abs(mine.next_observations[:59].numpy()[ended] - mine.observations[1:60].numpy()[ended]).max(-1) > 1e-3).all()
    assert np.array_equal(mine.next_observations[:59].numpy()[~ended], mine.observations[1:60].numpy()[~ended])


def test_samples_are_normalized_with_the_present_statistics(algo):
    env = VecNormalize(make_env(ENV_IDS[algo]))
    model = make_model(algo, env)
    model.learn(400)
    index = th.arange(300)
    samples = model.replay_buffer.at(index, env=model._vec_normalize_env)
    raw = model.replay_buffer.at(index)
    for name in ("observations", "next_observations"):
        expected = env.normalize_obs(getattr(raw, name).numpy())  # SB3's own code
        assert np.allclose(getattr(samples, name).numpy(), expected, atol=1e-4)
    assert np.allclose(samples.rewards.numpy(), env.normalize_reward(raw.rewards.numpy()), atol=1e-5)
    assert not th.allclose(samples.observations, raw.observations, atol=0.1)
    policy_obs = env.obs_tensor
    assert th.allclose(policy_obs, env.normalize_obs_tensor(env.get_original_obs_tensor()))


def test_stacked_frames(algo):
    model = make_model(algo, VecFrameStack(make_env(ENV_IDS[algo], max_episode_length=20), 3), n_steps=2)
    model.learn(400)
    assert model.replay_buffer.obs_shape == (12,) and model._run.fast is not None
    stored = model.replay_buffer
    assert th.equal(stored.observations[:40, :, 4:], stored.next_observations[:40, :, :8])


def test_time_limits_bootstrap_and_failures_do_not(algo):
    model = start(make_model(algo, n_steps=3))
    with th.no_grad():  # a value of 10 everywhere
        for p in (model.q_net_target if algo == "dqn" else model.critic_target).parameters():
            p.zero_()
            if p.shape == ((3,) if algo == "dqn" else (1,)):
                p.fill_(10.0)
    obs, action = th.zeros(8, 4), th.zeros(8, 1)
    ends = th.arange(8)  # env 0 fails at once, env 1 times out at once, the others go on
    for _ in range(3):
        model.replay_buffer.add_tensors(obs, obs, action, th.ones(8), ends == 0, ends == 1)
    samples = model.replay_buffer.at(th.arange(8))
    caught = []
    step = "gradient_step" if algo == "dqn" else "critic_step"
    setattr(model._run.fast, step, lambda obs, actions, targets, *others: caught.append(targets[:, 0]))
    model._update(samples, 1)
    targets = caught[0]
    g = 0.99
    expected = th.tensor([1.0, 1.0 + 10.0 * g] + [1.0 + g + g * g + 10.0 * g**3] * 6)
    assert th.allclose(targets, expected, atol=1e-4)


def test_nothing_crosses_to_the_host_between_reads(algo, monkeypatch):
    model = make_model(algo, n_steps=3, learning_starts=16)
    model.env.unwrapped._looks_at_steps = False  # as on a GPU
    reads = []
    cpu = th.Tensor.cpu
    monkeypatch.setattr(th.Tensor, "cpu", lambda self: reads.append(model.num_timesteps) or cpu(self))
    for name in ("numpy", "tolist"):
        method = getattr(th.Tensor, name)

        def count(self, method=method):
            reads.append(model.num_timesteps)
            return method(self)

        monkeypatch.setattr(th.Tensor, name, count)
    start(model)
    callback = model._init_callback(None)
    reads.clear()
    with SyncGuard() as guard:
        for _ in range(STEPS_PER_READ + 20):
            model.collect_rollouts(
                model.env, callback, model.train_freq, model.replay_buffer, model.action_noise,
                learning_starts=model.learning_starts, log_interval=4,
            )  # fmt: skip
            if model.num_timesteps > model.learning_starts:
                model.train(1, 32)
    assert guard.kernels["addmm"] > 100
    assert reads == [8 * STEPS_PER_READ] * 2  # .cpu().numpy(), once
    assert model._n_updates == STEPS_PER_READ + 18


def test_same_seed_same_result(algo):
    results = []
    for _ in range(2):
        model = make_model(algo, n_steps=3)
        model.learn(800)
        results.append((parameters(model), model.replay_buffer._storage.clone()))
    assert th.equal(results[0][0], results[1][0])
    assert th.equal(results[0][1], results[1][1])


def test_compile(algo, monkeypatch):
    calls = []
    model = make_model(algo, compile=True)
    monkeypatch.setattr(model.env.tensor_env, "compile", lambda: calls.append(model.num_timesteps))
    model.learn(100)
    assert calls == [0] and not model._run.rollout.graphed_step.enabled  # the simulator; there is no graph on a CPU


def test_other_environments_train_as_with_sb3(algo):
    models = []
    for cls in (ALGOS[algo], STOCK[algo]):
        env = sb3_make_vec_env("CartPole-v1" if algo == "dqn" else "Pendulum-v1", 2, seed=1)
        models.append(make_model(algo, env, cls=cls))
        before = parameters(models[-1])
        models[-1].learn(160)
    assert type(models[0].replay_buffer) is ReplayBuffer
    # Not bit for bit: how MKL rounds depends on where numpy happens to put the observations
    assert difference(*models) < 1e-6 and (parameters(models[-1]) - before).abs().max() > 1e-2


def test_single_environment_and_episodic_training(algo):
    model = make_model(algo, make_env(ENV_IDS[algo], 1, max_episode_length=20), train_freq=(2, "episode"), gradient_steps=-1)
    model.learn(200)
    assert model._episode_num % 2 == 0 and model._episode_num >= 10
    assert model._n_updates > 100
    with pytest.raises(ValueError, match="single environment"):
        make_model(algo, train_freq=(2, "episode")).learn(200)


def test_callbacks_see_every_step(algo):
    env = make_env(ENV_IDS[algo], max_episode_length=20)
    recorder = Recorder(stop_after=50)
    model = make_model(algo, env, learning_starts=10**6)
    model.learn(10**6, callback=recorder)
    assert recorder.steps == list(range(8, 408, 8))
    assert recorder.rewards[0].shape == (8,) and recorder.dones[0].dtype == bool
    ended = [info["episode"] for infos in recorder.infos for info in infos if "episode" in info]
    assert len(ended) == np.sum(recorder.dones) == model._episode_num > 10
    assert [e["l"] for e in ended[-100:]] == [e["l"] for e in model.ep_info_buffer]
    assert [e["r"] for e in ended[-100:]] == pytest.approx([e["r"] for e in model.ep_info_buffer], abs=1e-4)


@pytest.mark.slow
def test_sb3s_own_callbacks_and_progress_bar(algo):
    pytest.importorskip("tqdm")
    pytest.importorskip("rich")
    model = make_model(algo, make_env(ENV_IDS[algo], max_episode_length=20))
    callbacks = [StopTrainingOnMaxEpisodes(5), EvalCallback(make_env(ENV_IDS[algo], 1), eval_freq=5, verbose=0)]
    model.learn(8000, callback=callbacks, progress_bar=True)
    assert 5 * 8 <= model._episode_num < 5 * 8 + 8 and model.num_timesteps < 8000


def test_logs_and_monitor_file(algo, tmp_path):
    env = make_env(ENV_IDS[algo], max_episode_length=20, monitor_dir=str(tmp_path / "monitor"))
    model = make_model(algo, env, tensorboard_log=str(tmp_path / "tb"), stats_window_size=7)
    dumps = []
    start(model)  # makes the logger
    dump = model.logger.dump
    values = {}

    def spy(step=0):
        dumps.append(step)
        values.update(model.logger.name_to_value)
        dump(step)

    model.logger.dump = spy
    model.set_logger(model.logger)
    model.learn(8 * 250, log_interval=4)
    assert dumps == [8 * STEPS_PER_READ, 16 * STEPS_PER_READ, 2000]  # at most one log for each read
    for key in ("rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "time/rollout", "time/update", "train/learning_rate",
                "train/n_updates", "train/replay_ratio", "train/loss" if algo == "dqn" else "train/actor_loss"):  # fmt: skip
        assert key in values, key
    assert values["train/replay_ratio"] == 32 / 8
    assert len(model.ep_info_buffer) == 7
    rows = (tmp_path / "monitor" / "0.monitor.csv").read_text().strip().splitlines()
    assert len(rows) == 2 + model._episode_num
    assert list((tmp_path / "tb").iterdir())


def test_log_interval_counts_episodes(algo):
    model = make_model(algo, make_env(ENV_IDS[algo], max_episode_length=20), learning_starts=10**6)
    dumps = []
    start(model)
    model.logger.dump = lambda step=0: dumps.append(step)
    model.set_logger(model.logger)
    model.learn(8 * 450, log_interval=80)
    assert 2 <= len(dumps) <= 4 and model._episode_num > 160


def test_replay_ratio_is_logged_and_an_absurd_one_warned_about(algo):
    options = dict(gradient_steps=-1, batch_size=4, learning_starts=256, buffer_size=5000)
    model = make_model(algo, make_env(ENV_IDS[algo], 256), **options)
    with pytest.warns(UserWarning, match="256 gradient steps for each step of 256 environments") as caught:
        model.learn(256 * 4)
    assert sum("gradient steps for each" in str(w.message) for w in caught) == 1
    assert model._run.log.replay_ratio == 4.0 and model._n_updates == 3 * 256
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_model(algo).learn(160)


def test_nan_is_an_error(algo):
    model = make_model(algo)
    model.learn(160)
    with th.no_grad():
        next(model.policy.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite: training does not begin"):
        model.learn(160)


def test_spread_time_limits(algo):
    env = make_env(ENV_IDS[algo], 64)
    model = make_model(algo, env, spread_time_limits=True)
    model.learn(64)
    assert env.tensor_env.progress.unique().numel() > 30
    assert model.learn(64, reset_num_timesteps=False) is model  # no reset, no new ages


def test_learning_goes_on_without_a_reset(algo):
    env = make_env(ENV_IDS[algo])
    model = make_model(algo, env, n_steps=3)
    model.learn(80)
    at = model.replay_buffer.pos
    model.learn(80, reset_num_timesteps=False)
    assert model.num_timesteps == 160
    stored = model.replay_buffer
    ended = stored.dones[at - 1] != 0
    assert th.equal(stored.next_observations[at - 1][~ended], stored.observations[at][~ended])
    model.learn(80)  # resets: no n-step return may run over the cut
    assert (stored.dones[2 * at - 1] != 0).all()


# -- options that cannot work ----------------------------------------------------------------------------------------


def test_options_of_the_tensor_path_need_it(algo):
    env = sb3_make_vec_env("CartPole-v1" if algo == "dqn" else "Pendulum-v1", 2)
    extra = dict(double_q=True, per_env_epsilon=(1, 0.1)) if algo == "dqn" else dict(per_env_noise=(1, 0.1), shared_noise=True)
    for name, value in dict(extra, reward_scale=0.5, spread_time_limits=True).items():
        with pytest.raises(ValueError, match=f"{name} needs an IsaacVecEnv"):
            make_model(algo, env, **{name: value}).learn(100)
    if not SB3_HAS_N_STEPS:
        with pytest.raises(ValueError, match="n_steps .* needs an IsaacVecEnv"):
            make_model(algo, env, n_steps=3).learn(100)


def test_what_has_no_tensor_path_trains_in_numpy_with_a_warning(algo):
    with pytest.warns(UserWarning, match="in numpy as in SB3.*sb3_isaac.VecNormalize"):
        make_model(algo, stable_baselines3.common.vec_env.VecNormalize(make_env(ENV_IDS[algo]))).learn(100)

    with pytest.raises(ValueError, match="VecNormalize"):
        make_model(algo, VecFrameStack(VecNormalize(make_env(ENV_IDS[algo])), 2)).learn(100)

    class MyBuffer(ReplayBuffer):
        pass

    with pytest.warns(UserWarning, match="replay_buffer_class=MyBuffer"):
        model = make_model(algo, replay_buffer_class=MyBuffer)
        model.learn(100)
    assert type(model.replay_buffer) is MyBuffer and model.replay_buffer.size() > 10 and model._n_updates > 0
    with pytest.raises(ValueError, match="reward_scale needs .* but replay_buffer_class=MyBuffer"):
        make_model(algo, replay_buffer_class=MyBuffer, reward_scale=0.5).learn(100)


def test_replay_buffer_options(algo):
    for cls in (None, ReplayBuffer, DeviceReplayBuffer):
        model = make_model(algo, replay_buffer_class=cls, replay_buffer_kwargs=dict(n_steps=4, gamma=0.9))
        model.learn(80)
        assert type(model.replay_buffer) is DeviceReplayBuffer
        assert model.replay_buffer.n_steps == model.n_steps == 4 and model.replay_buffer.gamma == 0.9
    kwargs = dict(handle_timeout_termination=False)
    model = make_model(algo, optimize_memory_usage=True, replay_buffer_kwargs=kwargs)
    model.learn(400)
    assert model.replay_buffer.optimize_memory_usage and model._n_updates > 0
    with pytest.raises(ValueError, match="optimize_memory_usage"):
        make_model(algo, optimize_memory_usage=True)


def test_looks_again_only_where_somebody_may_have_changed_something(algo, monkeypatch):
    looks = []
    changed = Watch.changed
    monkeypatch.setattr(Watch, "changed", lambda self, *args, **kwargs: looks.append(1) or changed(self, *args, **kwargs))

    def count(model, callback=None):
        looks.clear()
        model.learn(20 * 8, callback=callback)
        return len(looks)

    def user_code(locals_, globals_):
        return True

    model = make_model(algo)
    evaluation = EvalCallback(make_env(ENV_IDS[algo]), eval_freq=5, n_eval_episodes=2, verbose=0)
    assert count(model) == count(model, [CheckpointCallback(10**9, "."), evaluation]) == 1
    assert count(model, user_code) > 20
    assert count(model, [StopTrainingOnMaxEpisodes(10**6), EveryNTimesteps(8, ConvertCallback(user_code))]) > 20
    model._on_step = model._on_step
    assert count(model) > 20


def test_a_stock_buffer_that_is_assigned_is_copied_with_a_word(algo):
    model = make_model(algo, make_env(ENV_IDS[algo]))
    assigned = model.replay_buffer = ReplayBuffer(400, model.observation_space, model.action_space, "cpu", model.n_envs)
    with pytest.warns(UserWarning, match="ReplayBuffer that was assigned is copied into a DeviceReplayBuffer"):
        model.learn(80)
    assert assigned.size() == 0 and isinstance(model.replay_buffer, DeviceReplayBuffer)


def test_a_model_that_made_its_buffer_itself_says_nothing(algo, tmp_path):
    model = make_model(algo, make_env(ENV_IDS[algo]))
    model.learn(80)
    model.save_replay_buffer(tmp_path / "buffer")
    model.save(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*was assigned")
        loaded = type(model).load(tmp_path / "model")
        loaded.load_replay_buffer(tmp_path / "buffer")
        loaded.set_env(make_env(ENV_IDS[algo]))
        loaded.learn(80)


def test_episodes_of_a_loop_of_ones_own_are_not_lost(algo):
    model = make_model(algo, make_env(ENV_IDS[algo], max_episode_length=5))
    _, callback = model._setup_learn(100)
    for _ in range(8):
        given = (model.train_freq, model.replay_buffer, model.action_noise)
        model.collect_rollouts(model.env, callback, *given, learning_starts=model.learning_starts, log_interval=1)
    model.learn(80, reset_num_timesteps=False)
    assert sum(episode["l"] for episode in model.ep_info_buffer) + 4 * model.n_envs > model.num_timesteps


def test_training_goes_on_after_a_loss_that_was_not_finite(algo):
    model = make_model(algo, make_env(ENV_IDS[algo]))
    weight = next(model.policy.parameters())

    class Spoil(BaseCallback):
        def _on_step(self):
            if self.num_timesteps > 60:
                weight.data[:] = float("nan")
            return True

    with pytest.raises(FloatingPointError):
        model.learn(400, callback=Spoil())
    model.learn(400, reset_num_timesteps=False)


def test_a_stock_buffer_that_a_callback_assigns_is_taken_without_an_update_between(algo):
    model = make_model(algo, make_env(ENV_IDS[algo]), learning_starts=10_000)

    class Assign(BaseCallback):
        def _on_step(self):
            if self.n_calls == 3:
                spaces = self.model.observation_space, self.model.action_space
                self.model.replay_buffer = ReplayBuffer(400, *spaces, "cpu", self.model.n_envs)
            return True

    with pytest.warns(UserWarning, match="was assigned is copied"):
        model.learn(160, callback=Assign())
    assert isinstance(model.replay_buffer, DeviceReplayBuffer) and model.replay_buffer.size() > 3
