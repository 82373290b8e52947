"""IsaacGymEnvs tasks in SB3. The classes below behave as IsaacGymEnvs' do (isaacgymenvs/tasks/base/vec_task.py)."""

from __future__ import annotations

import re
import types
import warnings

import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces

import sb3_isaac
from sb3_isaac.backends.physics import integrate
from sb3_isaac.envs.vec_task import VecTaskEnv, wrap_vec_task

N = 32


class OldBox:
    """A Box of gym 0.23, which is not gymnasium's."""

    def __init__(self, low, high, shape):
        self.low, self.high = np.full(shape, low, np.float32), np.full(shape, high, np.float32)


class Gym:
    """The simulator behind the task: its own state, and a copy that a refresh fills."""

    def __init__(self, n):
        self.state, self.cache, self.force = th.zeros(n, 4), th.zeros(2 * n, 2), th.zeros(n)
        self.setters = 0

    def set_dof_state_tensor_indexed(self, states, env_ids):
        self.setters += 1
        assert self.setters == 1, "a setter was called twice between two simulates"
        self.state[env_ids.long()] = states.view(-1, 4)[env_ids.long()]

    def simulate(self):
        self.state = integrate(self.state, self.force)
        self.setters = 0

    def refresh_dof_state_tensor(self):
        self.cache.copy_(self.state.view(-1, 2))


class VecTask:
    """The base class: step in the order of the real one, reset_idx without effect, late resets."""

    def __init__(self, num_envs=N, clip_obs=5.0, clip_actions=1.0, max_episode_length=40, rl_device="cpu"):
        self.num_envs, self.num_obs, self.num_actions, self.num_agents = num_envs, 4, 1, 1
        self.device, self.rl_device = "cpu", rl_device
        self.clip_obs, self.clip_actions, self.max_episode_length = clip_obs, clip_actions, max_episode_length
        self.observation_space, self.action_space = OldBox(-np.inf, np.inf, (4,)), OldBox(-1.0, 1.0, (1,))
        self.dr_randomizations = {}
        self.obs_buf, self.rew_buf = th.zeros(num_envs, 4), th.zeros(num_envs)
        self.reset_buf = th.ones(num_envs, dtype=th.long)
        self.progress_buf = th.zeros(num_envs, dtype=th.long)
        self.extras, self.obs_dict = {}, {}
        self.gym = Gym(num_envs)
        self.dof_state = self.gym.cache

    def reset_idx(self, env_idx):
        pass

    def step(self, actions):
        self.pre_physics_step(th.clamp(actions, -self.clip_actions, self.clip_actions))
        self.gym.simulate()
        self.post_physics_step()
        self.extras["time_outs"] = (self.progress_buf >= self.max_episode_length - 1) & (self.reset_buf != 0)
        if self.dr_randomizations.get("observations"):
            self.obs_buf = self.dr_randomizations["observations"]["noise_lambda"](self.obs_buf)
        self.obs_dict["obs"] = th.clamp(self.obs_buf, -self.clip_obs, self.clip_obs).to(self.rl_device)
        return self.obs_dict, self.rew_buf.to(self.rl_device), self.reset_buf.to(self.rl_device), self.extras


class LateCartpole(VecTask):
    """A task that resets late and offers no way to do it at once."""

    def _reset_some(self, env_ids):
        width = th.tensor([0.2, 0.5, 0.2, 0.5])
        self.dof_state.view(-1, 4)[env_ids] = (th.rand(len(env_ids), 4) - 0.5) * width
        self.gym.set_dof_state_tensor_indexed(self.dof_state, env_ids)
        self.reset_buf[env_ids] = 0
        self.progress_buf[env_ids] = 0

    def _observe(self):
        self.gym.refresh_dof_state_tensor()
        self.obs_buf[:] = self.dof_state.view(-1, 4)

    def pre_physics_step(self, actions):
        self.gym.force = actions[:, 0] * 400.0

    def post_physics_step(self):
        self.progress_buf += 1
        env_ids = self.reset_buf.nonzero().squeeze(-1)
        if len(env_ids) > 0:
            self._reset_some(env_ids)
        self._observe()
        self._judge()

    def _judge(self):
        x, v, angle, w = self.obs_buf.unbind(-1)
        self.failed = (x.abs() > 3) | (angle.abs() > th.pi / 2)
        self.rew_buf[:] = th.where(self.failed, -2.0 * th.ones(()), 1 - angle**2 - 0.01 * v.abs() - 0.005 * w.abs())
        self.timed_out = self.progress_buf >= self.max_episode_length - 1
        self.reset_buf[:] = (self.failed | self.timed_out).long()


class Cartpole(LateCartpole):
    """As IsaacGymEnvs' cartpole: with the two methods that most tasks have."""

    def reset_idx(self, env_ids):
        self._reset_some(env_ids)

    def compute_observations(self, env_ids=None):
        self._observe()


class TwoArguments(Cartpole):
    """As IsaacGymEnvs' AllegroHand: reset_idx wants the goals, too."""

    def reset_idx(self, env_ids, goal_env_ids):
        self._reset_some(env_ids)


class LeavesAMark(Cartpole):
    """As IsaacGymEnvs' Anymal, whose reset_idx sets reset_buf."""

    def reset_idx(self, env_ids):
        self._reset_some(env_ids)
        self.reset_buf[env_ids] = 1


class AtOnce(Cartpole):
    """Resets what is done before it computes the observations."""

    def post_physics_step(self):
        self.progress_buf += 1
        self._observe()
        self._judge()
        done = self.reset_buf.clone()
        self.reset_now(done.nonzero().squeeze(-1))
        self.compute_observations()
        self.reset_buf[:] = done

    def reset_now(self, env_ids):
        self.reset_idx(env_ids)


class Inline(AtOnce):
    """Does so without a call of reset_idx."""

    def reset_now(self, env_ids):
        if len(env_ids) > 0:
            self._reset_some(env_ids)


class InlineTold(Inline):
    """Tells the time limits as they were before its reset."""

    def step(self, actions):
        obs, reward, done, extras = super().step(actions)
        return obs, reward, done, {"time_outs": self.timed_out}


class Legged:
    """As legged_gym's BaseTask and LeggedRobot: other names, five values, resets at once, time_outs told by reset_idx."""

    _observe = Cartpole._observe
    privileged = None

    def __init__(self, num_envs=N, clip_obs=5.0, max_episode_length=40):
        self.num_envs, self.num_obs, self.num_actions, self.device = num_envs, 4, 1, "cpu"
        self.max_episode_length = np.ceil(max_episode_length)
        normalization = types.SimpleNamespace(clip_observations=clip_obs, clip_actions=1.0)
        self.cfg = types.SimpleNamespace(normalization=normalization)
        self.obs_buf, self.rew_buf = th.zeros(num_envs, 4), th.zeros(num_envs)
        self.reset_buf = th.ones(num_envs, dtype=th.long)
        self.episode_length_buf = th.zeros(num_envs, dtype=th.long)
        self.time_out_buf = th.zeros(num_envs, dtype=th.bool)
        self.extras = {}
        self.gym = Gym(num_envs)
        self.dof_state = self.gym.cache

    def reset_idx(self, env_ids):
        if len(env_ids) == 0:
            return
        width = th.tensor([0.2, 0.5, 0.2, 0.5])
        self.dof_state.view(-1, 4)[env_ids] = (th.rand(len(env_ids), 4) - 0.5) * width
        self.gym.set_dof_state_tensor_indexed(self.dof_state, env_ids)
        self.episode_length_buf[env_ids] = 0
        self.reset_buf[env_ids] = 1
        self.extras["time_outs"] = self.time_out_buf

    def compute_observations(self):
        self._observe()

    def step(self, actions):
        self.gym.force = th.clip(actions, -1.0, 1.0)[:, 0] * 400.0
        self.gym.simulate()
        self.episode_length_buf += 1
        self._observe()
        self.failed = (self.obs_buf[:, 0].abs() > 3) | (self.obs_buf[:, 2].abs() > th.pi / 2)
        self.time_out_buf = self.episode_length_buf > self.max_episode_length
        self.reset_buf = self.failed | self.time_out_buf
        self.rew_buf[:] = th.where(self.failed, -2.0 * th.ones(()), th.ones(()))
        self.reset_idx(self.reset_buf.nonzero().flatten())
        self.compute_observations()
        clip = self.cfg.normalization.clip_observations
        self.obs_buf = th.clip(self.obs_buf, -clip, clip)
        return self.obs_buf, self.privileged, self.rew_buf, self.reset_buf, self.extras


class LeggedPrivileged(Legged):
    privileged = th.zeros(N, 7)


def random_actions(generator, n=N):
    return (th.rand(n, 1, generator=generator) * 2 - 1).sign()


def drive(env, steps=120, seed=0):
    """Step with random pushes; yields (obs before, actions, result)."""
    generator = th.Generator().manual_seed(seed)
    env.seed(seed)
    obs = env.reset().clone()
    for _ in range(steps):
        actions = random_actions(generator, env.n_envs)
        result = env.step(actions)
        yield obs, actions, result
        obs = result.obs.clone()


@pytest.mark.parametrize("make_task", [Cartpole, LeavesAMark, AtOnce, Legged, LeggedPrivileged])
def test_every_transition_happened(make_task):
    """The physics leads from each observation, with its action, to the true next one: no late reset in between."""
    env = VecTaskEnv(make_task(clip_obs=1000.0))
    ended = starts = limits = 0
    lengths = th.zeros(N, dtype=th.long)
    for obs, actions, result in drive(env):
        lengths += 1
        limit = lengths == (41 if isinstance(env.task, Legged) else 39)
        assert th.equal(result.truncated, limit)
        assert th.allclose(result.final_obs, integrate(obs, actions[:, 0] * 400.0), atol=1e-6)
        done = result.terminated | result.truncated
        failed = (result.final_obs[:, 0].abs() > 3) | (result.final_obs[:, 2].abs() > th.pi / 2)
        assert (result.terminated | ~failed | result.truncated).all() and (failed | ~result.terminated).all()
        assert th.equal(result.reward == -2.0, failed)
        assert th.equal(result.obs[~done], result.final_obs[~done])
        assert (result.obs[done].abs() <= th.tensor([0.1, 0.25, 0.1, 0.25])).all()
        assert (env.progress[done] == 0).all()
        ended += int(done.sum())
        starts += int((env.progress == 1).sum())
        limits += int(limit.sum())
        lengths[done] = 0
    assert ended > 100 and starts > 100 and limits > 0
    assert "reset_idx" not in vars(env.task)


@pytest.mark.parametrize("make_task", [Inline, InlineTold])
def test_a_task_that_resets_itself_out_of_reach(make_task):
    """What can be known is right, what is lost is said once: the last observation, for which the one before stands."""
    env, limits = VecTaskEnv(make_task(clip_obs=1000.0)), 0
    lengths = th.zeros(N, dtype=th.long)
    with pytest.warns(
        UserWarning, match=f"^{make_task.__name__} resets itself within its step .* Leave that reset out"
    ) as said:
        for obs, actions, result in drive(env):
            lengths += 1
            done, new = result.terminated | result.truncated, integrate(obs, actions[:, 0] * 400.0)
            assert th.equal(result.truncated, lengths == 39) and th.equal(env.task.failed & (lengths < 39), result.terminated)
            assert th.allclose(result.obs[~done], new[~done], atol=1e-6)
            assert (result.obs[done].abs() <= th.tensor([0.1, 0.25, 0.1, 0.25])).all()
            assert th.equal(result.final_obs[result.truncated], obs[result.truncated])
            assert th.equal(result.final_obs[~result.truncated], result.obs[~result.truncated])
            limits += int(result.truncated.sum())
            lengths[done] = 0
    assert limits > 0 and len(said) == 1


def test_a_counter_that_a_success_sets_back_is_no_reset():
    """As in IsaacGymEnvs' ShadowHand: the counter starts again at each success, and an end may fall on one."""

    class Hand(Cartpole):
        def post_physics_step(self):
            super().post_physics_step()
            self.progress_buf[self.obs_buf[:, 0] > 1.0] = 0

    env = VecTaskEnv(Hand(clip_obs=1000.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for obs, actions, result in drive(env):
            assert th.allclose(result.final_obs, integrate(obs, actions[:, 0] * 400.0), atol=1e-6)


def test_resets_that_wait_are_made_even_if_nothing_is_done():
    """A task may put back environments in silence; with more arguments its call is another one and does not wait."""

    class Silent(Cartpole):
        asked = ()

        def reset_idx(self, env_ids, hard=False):
            self.asked = (*self.asked, hard)
            self._reset_some(env_ids)

        def post_physics_step(self):
            super().post_physics_step()
            self.reset_idx(th.tensor([3], dtype=th.int32))
            self.gym.setters = 0
            self.reset_idx(th.tensor([4]), hard=True)
            self.gym.setters = 0

    env = VecTaskEnv(Silent(clip_obs=1000.0))
    env.reset()
    result = env.step(th.ones(N, 1))
    assert env.task.asked == (False, True, False)
    assert not result.terminated.any() and env.progress.tolist() == [1] * 3 + [0] * 2 + [1] * (N - 5)
    assert th.equal(result.obs, result.final_obs) and result.obs[3, 1].abs() <= 0.25 and result.obs[5, 1] > 1.0


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda o, r, d, x: (o["obs"], r, d), r"\(\(32, 4\), \(32,\), \(32,\)\)"),
        (lambda o, r, d, x: (o["obs"], r, d, d, x), r"\(32, 4\), \(32,\), \(32,\), \(32,\), a dict"),
        (lambda o, r, d, x: ({"policy": o["obs"]}, r, d, x), "a dict of 'policy': "),
        (lambda o, r, d, x: (o["obs"][:, :3], r, d, x), r"\(32, 3\)"),
        (lambda o, r, d, x: (o, r.unsqueeze(1), d, x), r"\(32, 1\)"),
        (lambda o, r, d, x: (o, r, d, None), "NoneType"),
        (lambda o, r, d, x: o["obs"], r"gave \(32, 4\)\."),
    ],
)
def test_a_step_that_gives_something_else(change, says):
    class Other(Cartpole):
        def step(self, actions):
            return change(*super().step(actions))

    env = VecTaskEnv(Other())
    env.reset()
    with pytest.raises(ValueError, match=r"^The step of Other gave .*Expected: \(observations, rewards") as error:
        env.step(th.zeros(N, 1))
    assert re.search(says, str(error.value))


@pytest.mark.parametrize("make_task", [Cartpole, Legged])
def test_observations_as_a_tensor(make_task):
    """The same steps as with {"obs": ...}, in float32 whatever the task gives."""

    class Tensor(make_task):
        def step(self, actions):
            obs, *others = super().step(actions)
            return (obs["obs"].double() if make_task is Cartpole else {"obs": obs}, *others)

    runs = [list(drive(VecTaskEnv(cls()), 60)) for cls in (make_task, Tensor)]
    for (_, _, a), (_, _, b) in zip(*runs):
        assert all(th.equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b))


def test_a_time_limit_that_the_task_changes():
    """For tasks that do not tell time_outs, the limit of now decides."""

    class Old(Cartpole):
        def step(self, actions):
            obs, reward, done, extras = super().step(actions)
            return obs, reward, done, {}

    env = VecTaskEnv(Old(max_episode_length=20))
    env.reset()
    env.task.max_episode_length = 5
    assert [bool(env.step(th.zeros(N, 1)).truncated.all()) for _ in range(4)] == [False, False, False, True]


def test_unwrapped_the_transition_is_spurious():
    """What the wrapper is for: driven directly, the step after the end leads from a dead state to a new start."""
    task = Cartpole(clip_obs=1000.0)
    generator = th.Generator().manual_seed(0)
    spurious, obs = 0, None
    for _ in range(120):
        actions = random_actions(generator)
        new_obs = task.step(actions)[0]["obs"].clone()
        if obs is not None:
            spurious += int(((new_obs - integrate(obs, actions[:, 0] * 400.0)).abs().amax(-1) > 1e-3).sum())
        obs = new_obs
    assert spurious > 100


def test_time_limit_and_failure():
    """Truncated after max_episode_length - 1 steps. time_outs cannot tell a failure in that step; ``failed`` can."""
    for failed, truncated_on_failure in ((None, True), (lambda task: task.failed, False)):
        env = VecTaskEnv(Cartpole(max_episode_length=10), failed=failed)
        env.reset()
        for step in range(1, 10):
            result = env.step(th.zeros(N, 1))
            assert not result.terminated.any()
            assert result.truncated.all() == (step == 9)
        env.progress.fill_(8)
        env.task.gym.state[:] = th.tensor([2.99, 50.0, 0.0, 0.0])
        result = env.step(th.zeros(N, 1))
        assert result.truncated.all() == truncated_on_failure and result.terminated.all() != truncated_on_failure
        assert not (result.truncated & result.terminated).any()


def test_terminate_in_extras():
    """IsaacGymEnvs' AMP tasks say which environments failed."""

    class Amp(Cartpole):
        def post_physics_step(self):
            super().post_physics_step()
            self.extras["terminate"] = self.failed.long()

    env = VecTaskEnv(Amp(max_episode_length=10))
    env.reset()
    env.progress.fill_(8)
    env.task.gym.state[:] = th.tensor([2.99, 50.0, 0.0, 0.0])
    assert env.step(th.zeros(N, 1)).terminated.all()


def test_tasks_without_time_outs():
    class Old(Cartpole):
        def step(self, actions):
            obs, reward, done, extras = super().step(actions)
            return obs, reward, done, {}

    env = VecTaskEnv(Old(max_episode_length=5))
    env.reset()
    assert [bool(env.step(th.zeros(N, 1)).truncated.all()) for _ in range(5)] == [False, False, False, True, False]


def test_results_are_not_overwritten_by_the_reset():
    env = VecTaskEnv(Cartpole(max_episode_length=3))
    env.reset()
    env.step(th.ones(N, 1))
    result = env.step(th.ones(N, 1))
    assert result.truncated.all()
    assert (result.final_obs[:, 1] > 1.0).all() and (result.obs[:, 1] < 0.3).all()
    reward = result.reward.clone()
    env.step(th.ones(N, 1))
    assert th.equal(result.reward, reward)


def test_reset_right_after_a_reset():
    """The simulator's setters may be called once between two simulates (the task's simulator here insists on it)."""
    env = VecTaskEnv(Cartpole(max_episode_length=3, clip_obs=1000.0))
    for _ in range(3):
        obs = env.reset()
        assert (obs.abs() <= th.tensor([0.1, 0.25, 0.1, 0.25])).all() and not env.progress.any()
    env.step(th.zeros(N, 1))
    assert env.step(th.zeros(N, 1)).truncated.all()
    obs = env.reset().clone()
    assert th.allclose(env.step(th.ones(N, 1)).final_obs, integrate(obs, th.full((N,), 400.0)), atol=1e-6)


@pytest.mark.parametrize(
    "make_task, functions, message",
    [
        (LateCartpole, [], "no reset_idx(env_ids) and no compute_observations(): pass reset= and observe= to wrap_vec_task."),
        (LateCartpole, ["observe"], "no reset_idx(env_ids): pass reset= to wrap_vec_task."),
        (LateCartpole, ["reset"], "no compute_observations(): pass observe= to wrap_vec_task."),
        (TwoArguments, [], "no reset_idx(env_ids): pass reset= to wrap_vec_task."),
    ],
)
def test_a_task_that_cannot_be_reset_within_the_step(make_task, functions, message):
    given = {"reset": make_task._reset_some, "observe": make_task._observe}
    with pytest.raises(ValueError) as error:
        wrap_vec_task(make_task(), **{name: given[name] for name in functions})
    assert str(error.value) == f"{make_task.__name__} cannot be reset within the step, because it has {message}"


@pytest.mark.parametrize("make_task", [LateCartpole, TwoArguments])
def test_functions_in_place_of_missing_methods(make_task):
    nobody = th.zeros(0, dtype=th.long)
    functions = {
        LateCartpole: {"reset": lambda task, env_ids: task._reset_some(env_ids), "observe": lambda task: task._observe()},
        TwoArguments: {"reset": lambda task, env_ids: task.reset_idx(env_ids, nobody)},
    }[make_task]
    ended = 0
    for obs, actions, result in drive(VecTaskEnv(make_task(clip_obs=1000.0), **functions), steps=60):
        assert th.allclose(result.final_obs, integrate(obs, actions[:, 0] * 400.0), atol=1e-6)
        ended += int((result.terminated | result.truncated).sum())
    assert ended > 50


def test_clip_settings_and_spaces():
    env = wrap_vec_task(Cartpole(clip_obs=0.05, clip_actions=0.5))
    assert isinstance(env, sb3_isaac.IsaacVecEnv)
    assert isinstance(env.observation_space, spaces.Box) and isinstance(env.action_space, spaces.Box)
    assert env.observation_space.shape == (4,) and env.observation_space.high[0] == np.float32(0.05)
    assert (env.action_space.low, env.action_space.high) == (-0.5, 0.5) and env.action_space.dtype == np.float32
    assert np.abs(env.reset()).max() <= 0.05 + 1e-7
    assert np.isinf(wrap_vec_task(Cartpole(clip_obs=np.inf)).observation_space.high).all()
    # an action beyond the space is clipped as the task's own action is
    one, huge = (VecTaskEnv(Cartpole(clip_obs=1000.0, clip_actions=100.0)) for _ in range(2))
    for tensor_env in (one, huge):
        tensor_env.seed(0)
        tensor_env.reset()
    assert th.equal(one.step(th.ones(N, 1)).obs, huge.step(th.full((N, 1), 50.0)).obs)


def test_observation_noise_reaches_new_starts():
    task = Cartpole(max_episode_length=3, clip_obs=1000.0)
    task.dr_randomizations["observations"] = {"noise_lambda": lambda obs: obs + 10.0}
    env = VecTaskEnv(task)
    assert (env.reset() > 9.0).all()
    env.step(th.zeros(N, 1))
    result = env.step(th.zeros(N, 1))
    assert result.truncated.all() and (result.obs > 9.0).all() and (result.obs < 11.0).all()


def test_seeds():
    def run(seed):
        return [result.obs.clone() for _, _, result in drive(VecTaskEnv(Cartpole()), steps=30, seed=seed)]

    assert all(th.equal(a, b) for a, b in zip(run(3), run(3)))
    assert not th.equal(run(3)[0], run(4)[0])


def test_what_cannot_be_wrapped():
    task = Cartpole()
    del task.max_episode_length, task.progress_buf
    lacks = "^Cartpole is no task of .*: it has no progress_buf or episode_length_buf, max_episode_length.$"
    with pytest.raises(ValueError, match=lacks):
        wrap_vec_task(task)
    task = Cartpole()
    task.num_agents = 2
    with pytest.raises(ValueError, match="2 agents"):
        wrap_vec_task(task)
    task = Cartpole()
    task.observation_space = {"obs": task.observation_space}
    with pytest.raises(ValueError, match="only a Box is supported"):
        wrap_vec_task(task)
    env = VecTaskEnv(Cartpole())
    for call in (env.get_state, lambda: env.set_state({})):
        with pytest.raises(NotImplementedError, match="Cartpole cannot tell its whole state"):
            call()


def test_with_stock_sb3():
    env = wrap_vec_task(Cartpole())
    model = stable_baselines3.PPO("MlpPolicy", env, n_steps=64, batch_size=512, n_epochs=1, seed=0, device="cpu")
    model.learn(2 * 64 * N)
    assert len(model.ep_info_buffer) == 100
    assert all(1 < episode["l"] <= 39 for episode in model.ep_info_buffer)


@pytest.mark.parametrize("make_task", [Cartpole, Legged])
@pytest.mark.parametrize("algorithm", ["PPO", "DDPG"])
def test_with_our_algorithms(algorithm, make_task):
    env = wrap_vec_task(make_task())
    settings = {"PPO": {"n_steps": 16, "batch_size": 128}, "DDPG": {"learning_starts": 64, "buffer_size": 5_000}}[algorithm]
    model = getattr(sb3_isaac, algorithm)("MlpPolicy", env, seed=0, device="cpu", **settings)
    model.learn(48 * N)
    actions, _ = model.predict(env.reset(), deterministic=True)
    assert actions.shape == (N, 1) and model.num_timesteps >= 48 * N


class OmniCartpole(LateCartpole):
    """As OmniIsaacGymEnvs' RLTask: other names, time limits one step later, resets before the next step."""

    num_observations = 4

    def __init__(self):
        super().__init__(clip_obs=1e3)
        self._max_episode_length = self.max_episode_length
        del self.max_episode_length, self.num_obs

    def pre_physics_step(self, actions):
        env_ids = self.reset_buf.nonzero().squeeze(-1)
        if len(env_ids) > 0:
            self.reset_idx(env_ids)
        super().pre_physics_step(actions)

    def reset_idx(self, env_ids):
        self._reset_some(env_ids)

    def get_observations(self):
        self._observe()
        return {"cartpole_view": {"obs_buf": self.obs_buf}}

    def post_physics_step(self):
        self.progress_buf += 1
        self.get_observations()
        self.max_episode_length = self._max_episode_length + 1
        self._judge()
        del self.max_episode_length


class OmniEnv:
    """As VecEnvRLGames."""

    def __init__(self):
        self._task = OmniCartpole()
        self.num_envs = self._task.num_envs

    def step(self, actions):
        task = self._task
        task.pre_physics_step(th.clamp(actions, -task.clip_actions, task.clip_actions))
        task.gym.simulate()
        task.post_physics_step()
        obs = {"obs": th.clamp(task.obs_buf, -task.clip_obs, task.clip_obs), "states": th.zeros(task.num_envs, 0)}
        return obs, task.rew_buf, task.reset_buf, task.extras


def test_omni_isaac_gym_envs():
    inner = OmniEnv()
    env = wrap_vec_task(inner).tensor_env
    n_failed = n_timed_out = 0
    before = th.zeros(N, dtype=th.long)
    for obs, actions, result in drive(env):
        expected = integrate(obs, 400.0 * actions[:, 0])
        assert (result.final_obs - expected).abs().max() < 1e-4
        failed = (result.final_obs[:, 0].abs() > 3) | (result.final_obs[:, 2].abs() > th.pi / 2)
        assert th.equal(result.terminated, failed & (before + 1 < 40))
        assert th.equal(result.truncated | result.terminated, failed | (before + 1 >= 40))
        done = result.truncated | result.terminated
        before = th.where(done, 0, before + 1)
        n_failed, n_timed_out = n_failed + int(result.terminated.sum()), n_timed_out + int(result.truncated.sum())
    assert n_failed > 10 and n_timed_out > 10
    inner._task = None
    with pytest.raises(ValueError, match="The task of OmniEnv has no num_envs, .*set it with set_task"):
        wrap_vec_task(inner)


def test_legged_gyms_metrics():
    class Telling(Legged):
        def reset_idx(self, env_ids):
            super().reset_idx(env_ids)
            if len(env_ids) > 0:
                self.extras["episode"] = {"rew_alive": th.tensor(float(len(env_ids)))}

    env = VecTaskEnv(Telling())
    counts = [int((result.terminated | result.truncated).sum()) for _, _, result in drive(env, 60)]
    ended = [count for count in counts if count > 0]
    assert env.pop_metrics() == {"rew_alive": pytest.approx(np.mean(ended))} and len(ended) < 60
