"""The tensor contract of sb3_isaac/backends/base.py, line by line.

Runs on the embedded simulator here, and once more on the Isaac Gym backend over the stand-in: see test_isaacgym_backend.py,
which starts this file in a child process with SB3_ISAAC_TEST_BACKEND=isaacgym. SB3_ISAAC_TEST_DEVICE=cuda runs it on a GPU.
"""

from __future__ import annotations

import os

import pytest
import torch as th

from sb3_isaac import backends
from sb3_isaac.backends.base import StepResult, TensorEnv
from sb3_isaac.backends.cartpole import default_reward, default_termination
from tests.conftest import QuietGym, SyncGuard

BACKEND = os.environ.get("SB3_ISAAC_TEST_BACKEND", "torch")
DEVICE = os.environ.get("SB3_ISAAC_TEST_DEVICE", "cpu")
N = 64


def make(n_envs: int = N, seed: int = 0, **task: object) -> TensorEnv:
    return backends.make(BACKEND, n_envs, DEVICE, seed, **task)


@pytest.fixture(scope="module", autouse=True)
def one_simulator():
    """Isaac Gym's one simulator must be large enough for every environment of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SB3_ISAAC_SIM_ENVS", str(N))
        yield


def put(env: TensorEnv, dof_state=None, progress=None) -> None:
    state = env.get_state()
    if dof_state is not None:
        state["dof_state"] = th.as_tensor(dof_state, dtype=th.float32, device=env.device).expand(env.n_envs, 4).clone()
    if progress is not None:
        state["progress"].fill_(progress)
    env.set_state(state)


def random_actions(env: TensorEnv, generator: th.Generator) -> th.Tensor:
    return (th.rand(env.n_envs, env.action_dim, generator=generator) * 2 - 1).to(env.device)


def copied(result: StepResult) -> StepResult:
    return StepResult(*(tensor.clone() for tensor in result))


@pytest.mark.parametrize("n_envs", [1, N])
def test_shapes_dtypes_and_device(n_envs):
    env = make(n_envs)
    assert (env.n_envs, env.obs_dim, env.action_dim, env.max_episode_length) == (n_envs, 4, 1, 500)
    assert isinstance(env.device, th.device)
    obs = env.reset()
    result = env.step(th.zeros(n_envs, 1, device=DEVICE))
    for name, tensor in [("reset", obs), *result._asdict().items()]:
        bools = name in ("terminated", "truncated")
        assert tensor.dtype == (th.bool if bools else th.float32), name
        assert tensor.shape == ((n_envs,) if bools or name == "reward" else (n_envs, 4)), name
        assert tensor.device == env.device, name
    assert env.progress.shape == (n_envs,) and env.progress.dtype == th.int64 and env.progress.device == env.device
    env.close()


def test_same_step_reset():
    """Done environments are reset within the step: obs is a new start, final_obs what the physics returned."""
    env = make()
    env.reset()
    generator = th.Generator().manual_seed(1)
    n_done = 0
    previous = env.get_state()["dof_state"]
    for _ in range(60):
        result = env.step(random_actions(env, generator).sign())
        done = result.terminated | result.truncated
        n_done += int(done.sum())
        assert th.equal(result.obs[~done], result.final_obs[~done])
        assert (result.obs[done].abs() <= th.tensor([0.1, 0.25, 0.1, 0.25], device=DEVICE)).all()
        failed = (result.final_obs[:, 0].abs() > 3) | (result.final_obs[:, 2].abs() > th.pi / 2)
        assert th.equal(failed, result.terminated)
        assert (result.reward[failed] == -2.0).all() and (result.reward[~failed] > -2.0).all()
        assert (env.progress[done] == 0).all() and (env.progress[~done] > 0).all()
        # final_obs belongs to the episode that ended: one step of at most 8.3 m/s (and the pole's 8 rad/s) away
        assert ((result.final_obs - previous)[:, 2].abs() < 0.2).all()
        previous = env.get_state()["dof_state"]
        assert th.equal(previous, result.obs)
    assert n_done > N


def test_reset_goes_on_from_what_was_returned():
    """The step after a reset starts from the returned obs, not from the state before the reset."""
    env = make()
    env.reset()
    put(env, dof_state=[0.0, 0.0, 1.57, 8.0])
    result = copied(env.step(th.zeros(N, 1, device=DEVICE)))
    assert result.terminated.all()
    after = env.step(th.zeros(N, 1, device=DEVICE))
    assert not after.terminated.any()
    # at 2 x 8.3 ms and no force, the angle changes by its velocity times the time, and a little gravity
    expected = result.obs[:, 2] + 0.0166 * result.obs[:, 3]
    assert (after.obs[:, 2] - expected).abs().max() < 0.005


def test_time_limit():
    """Truncated when progress reaches max_episode_length - 1."""
    env = make(max_episode_length=4)
    env.reset()
    for step in (1, 2, 3, 4):
        result = env.step(th.zeros(N, 1, device=DEVICE))
        assert not result.terminated.any()
        assert result.truncated.all() if step == 3 else not result.truncated.any()
        assert (env.progress == (0 if step == 3 else step % 3)).all()


def test_a_time_out_is_a_reset():
    """The step after a time-out goes on from the new start."""
    env = make(max_episode_length=2)
    env.reset()
    put(env, dof_state=[1.0, 0.0, 0.0, 0.0])
    result = copied(env.step(th.zeros(N, 1, device=DEVICE)))
    assert result.truncated.all() and (result.final_obs[:, 0] > 0.9).all()
    after = env.step(th.zeros(N, 1, device=DEVICE))
    assert (after.final_obs - result.obs).abs().max() < 0.2


def test_never_both():
    """A failure on the very last step is a failure only."""
    env = make()
    env.reset()
    put(env, dof_state=[2.99, 50.0, 0.0, 0.0], progress=env.max_episode_length - 2)
    result = env.step(th.zeros(N, 1, device=DEVICE))
    assert result.terminated.all() and not result.truncated.any()
    put(env, dof_state=[0.0, 0.0, 0.0, 0.0], progress=env.max_episode_length - 2)
    result = env.step(th.zeros(N, 1, device=DEVICE))
    assert result.truncated.all() and not result.terminated.any()
    assert (result.reward > 0.99).all()


def test_progress_may_be_written_in_place():
    env = make()
    env.reset()
    address = env.progress.data_ptr()
    env.step(th.zeros(N, 1, device=DEVICE))
    env.progress.copy_(th.arange(N, device=DEVICE))
    env.step(th.zeros(N, 1, device=DEVICE))
    assert th.equal(env.progress, th.arange(N, device=DEVICE) + 1)
    env.progress[3] = env.max_episode_length - 2
    result = env.step(th.zeros(N, 1, device=DEVICE))
    assert result.truncated.nonzero().view(-1).tolist() == [3]
    env.reset()
    assert env.progress.data_ptr() == address and not env.progress.any()


def test_rewriting_progress_keeps_the_reset():
    """Ages spread just after a step must not hide which environments that step has reset."""
    env = make()
    env.reset()
    put(env, dof_state=[0.0, 0.0, 1.57, 8.0])
    started = env.step(th.zeros(N, 1, device=DEVICE)).obs.clone()
    env.progress.fill_(17)
    assert (env.step(th.zeros(N, 1, device=DEVICE)).obs - started).abs().max() < 0.2


def test_actions_are_clipped():
    one, huge = make(seed=5), make(seed=5)
    one.reset(), huge.reset()
    for sign in (1.0, -1.0):
        a, b = copied(one.step(th.full((N, 1), sign, device=DEVICE))), huge.step(th.full((N, 1), 7.5 * sign, device=DEVICE))
        for x, y in zip(a, b):
            assert th.equal(x, y)
    # and an action of 1 is max_effort: 400 N on 2 kg (with the pole's reaction) for 16.6 ms
    assert one.reset()[0, 1].abs() < 0.25
    assert one.step(th.ones(N, 1, device=DEVICE)).obs[0, 1] > 2.0


def test_actions_are_not_changed():
    env = make()
    env.reset()
    actions = th.full((N, 1), 3.0, device=DEVICE)
    env.step(actions)
    assert (actions == 3.0).all()


def test_seeds():
    """A seed takes effect at the next reset; equal seeds give equal episodes, resets included."""
    first, second, other = make(seed=3), make(seed=3), make(seed=4)
    assert th.equal(first.reset(), second.reset())
    assert not th.equal(first.reset(), other.reset())
    first.seed(11), second.seed(11)
    assert th.equal(first.reset(), second.reset())
    generator = th.Generator().manual_seed(2)
    ended = 0
    for _ in range(40):
        actions = random_actions(first, generator).sign()
        a, b = copied(first.step(actions)), second.step(actions)
        ended += int(a.terminated.sum())
        assert th.equal(a.obs, b.obs)
    assert ended > 0
    before = first.get_state()["dof_state"]
    first.seed(11)
    assert th.equal(first.get_state()["dof_state"], before)


def test_without_a_seed_every_environment_differs():
    a, b = backends.make(BACKEND, 8, DEVICE), backends.make(BACKEND, 8, DEVICE)
    assert not th.equal(a.reset(), b.reset())


def test_start_states_fill_their_ranges():
    obs = th.cat([make(seed=seed).reset() for seed in range(20)])
    half = th.tensor([0.1, 0.25, 0.1, 0.25], device=DEVICE)
    assert (obs.abs() <= half).all()
    assert (obs.abs().amax(0) > 0.98 * half).all() and (obs.mean(0).abs() < 0.1 * half).all()


def test_state_round_trip():
    """After set_state the following steps repeat exactly, random resets included; get_state returns copies."""
    env = make()
    env.reset()
    generator = th.Generator().manual_seed(7)
    script = [random_actions(env, generator).sign() for _ in range(60)]
    for actions in script[:20]:
        env.step(actions)
    saved = env.get_state()
    assert set(saved) == {"dof_state", "progress", "generator"}
    frozen = {name: tensor.clone() for name, tensor in saved.items()}
    first = [copied(env.step(actions)) for actions in script[20:]]
    assert all(th.equal(saved[name], frozen[name]) for name in saved)
    assert any(result.terminated.any() for result in first)
    for target in (env, make(seed=99)):  # also into another environment
        target.set_state(saved)
        for actions, expected in zip(script[20:], first):
            for x, y in zip(target.step(actions), expected):
                assert th.equal(x, y)
    assert all(th.equal(saved[name], frozen[name]) for name in saved)


def test_environments_do_not_touch_each_other():
    """Interleaved environments go the way they go alone; their results stay what they were."""
    alone = {}
    generator = th.Generator().manual_seed(0)
    sizes = {"train": N, "eval": 16, "one": 1}
    script = {name: [(th.rand(n, 1, generator=generator) * 2 - 1).to(DEVICE) for _ in range(80)] for name, n in sizes.items()}
    for name, n_envs in sizes.items():
        env = make(n_envs, seed=n_envs)
        env.reset()
        alone[name] = [copied(env.step(actions)) for actions in script[name]]
        env.close()
    together = {name: make(n_envs, seed=n_envs) for name, n_envs in sizes.items()}
    for env in together.values():
        env.reset()
    position = dict.fromkeys(sizes, 0)
    for turn in range(200):
        name = ("train", "train", "eval", "one", "train", "eval")[turn % 6]
        if position[name] == 80:
            continue
        result = together[name].step(script[name][position[name]])
        kept = copied(result)
        other = "eval" if name == "train" else "train"
        if position[other] < 80:
            expected = alone[other][position[other]]
            for x, y in zip(together[other].step(script[other][position[other]]), expected):
                assert th.equal(x, y), (other, position[other])
            position[other] += 1
        for x, y, z in zip(result, alone[name][position[name]], kept):
            assert th.equal(x, y), (name, position[name])
            assert th.equal(x, z), "another environment's step has overwritten the result"
        position[name] += 1


def test_a_step_does_not_wait_for_the_device():
    """No host synchronisation; for Isaac Gym one, which its API forces: it must be told how many environments are reset."""
    env = make()
    env.reset()
    env.step(th.zeros(N, 1, device=DEVICE))
    generator = th.Generator().manual_seed(3)
    script = [random_actions(env, generator).sign() for _ in range(40)]
    guard = SyncGuard(allowed=["nonzero"] if BACKEND == "isaacgym" else [])
    simulator = None
    if BACKEND == "isaacgym":
        from sb3_isaac.backends import isaacgym_cartpole

        simulator = isaacgym_cartpole._simulator
        gym, simulator.gym = simulator.gym, QuietGym(simulator.gym, guard)
    try:
        with guard:
            for actions in script:
                env.step(actions)
    finally:
        if simulator is not None:
            simulator.gym = gym
    assert guard.kernels["nonzero"] == (len(script) if BACKEND == "isaacgym" else 0)
    assert guard.kernels["_to_copy"] <= guard.kernels["nonzero"]  # to int32, not to the host
    assert sum(guard.kernels.values()) > 100


def test_state_stays_at_its_address():
    env = make()
    env.reset()
    env.step(th.zeros(N, 1, device=DEVICE))
    addresses = (env.dof_state.data_ptr(), env.progress.data_ptr())
    for _ in range(30):
        env.step(th.ones(N, 1, device=DEVICE))
    env.reset()
    put(env, dof_state=[0.0, 0.0, 0.0, 0.0])
    assert (env.dof_state.data_ptr(), env.progress.data_ptr()) == addresses


def test_render_state_is_a_copy():
    env = make(4)
    env.reset()
    env.step(th.full((4, 1), 0.5, device=DEVICE))
    picture = env.render_state()
    assert picture["dof_state"].shape == (4, 4) and (picture["force"] == 200.0).all()
    assert (picture["max_effort"], picture["reset_dist"]) == (400.0, 3.0)
    before = picture["dof_state"].copy()
    env.step(th.ones(4, 1, device=DEVICE))
    assert (picture["dof_state"] == before).all()


def test_close_twice():
    env = make(4)
    env.reset()
    env.step(th.zeros(4, 1, device=DEVICE))
    env.close()
    env.close()
    again = make(4, seed=1)
    again.reset()
    assert again.step(th.zeros(4, 1, device=DEVICE)).obs.isfinite().all()


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"n_envs": 0}, ValueError, "n_envs must be a whole number of at least 1"),
        ({"n_envs": True}, ValueError, "n_envs"),
        ({"max_effort": -1.0}, ValueError, "max_effort must be a number greater than 0"),
        ({"max_episode_length": 1}, ValueError, "max_episode_length must be a whole number from 2"),
        ({"wind": 1.6}, TypeError, "Unknown task parameter wind"),
        ({"gravity": 0.0}, ValueError, r"gravity must be a number greater than 0 \(m/s\^2\), got 0.0"),
        ({"angular_damping": -0.1}, ValueError, "angular_damping must be a number of at least 0"),
        ({"pole_inertia": "small"}, ValueError, "pole_inertia must be a number"),
        ({"reward": 3}, ValueError, "reward must be a function or 'module:function', got 3"),
        ({"reward": "math:no_such"}, ValueError, "names no function, as 'module:function' does: .*no_such"),
        ({"termination": "nowhere:f"}, ValueError, "termination='nowhere:f' names no function"),
        ({"termination": "f"}, ValueError, "termination='f' names no function"),
        (
            {"reward": lambda obs, *_: obs[:, :1]},
            ValueError,
            r"reward= returned a tensor \(4, 1\) of float32 .* tensor \(4,\) of",
        ),
        ({"reward": lambda obs, *_: obs[:, 0].double()}, ValueError, "of float64 on .* must return a tensor .* of float32"),
        ({"reward": lambda *_: 1.0}, ValueError, "reward= returned float 1.0"),
        ({"termination": lambda obs, *_: obs[:, 0]}, ValueError, "termination= returned .* of float32 .* of bool"),
        ({"reward": lambda obs, *_: obs.abs_()[:, 0]}, ValueError, "reward= has changed its arguments in place"),
    ],
)
def test_bad_input(kwargs, error, message):
    with pytest.raises(error, match=message):
        make(**{"n_envs": 4, **kwargs})


def far_reward(obs, actions, terminated, task):
    return obs[:, 0] + task.max_effort * actions[:, 0] - 5.0 * terminated


def test_own_reward_and_termination():
    """They see the state before the reset and the clipped action; a termination goes before the time limit, as ever."""
    env = make(
        reward=f"{__name__}:far_reward",
        termination=lambda obs, actions, task: obs[:, 1] > 1.0,
        max_effort=10.0,
        max_episode_length=3,
    )
    env.reset()
    states = th.zeros(N, 4)
    states[: N // 2] = th.tensor([3.5, 2.0, 0.0, 0.0])  # too fast; too far does not count
    states[N // 2 :, 0] = 3.5
    for step in (1, 2):
        put(env, dof_state=states, progress=step - 1)
        result = env.step(th.full((N, 1), 7.0, device=DEVICE))
        assert result.terminated.tolist() == [True] * (N // 2) + [False] * (N // 2)
        assert result.truncated.tolist() == [False] * (N // 2) + [step == 2] * (N // 2)
        expected = result.final_obs[:, 0] + 10.0 - 5.0 * result.terminated
        assert th.equal(result.reward, expected) and (result.final_obs[:, 0] > 3.4).all()
    plain, same = make(seed=3), make(seed=3, reward=default_reward, termination=default_termination)
    plain.reset(), same.reset()
    for actions in (th.ones(N, 1, device=DEVICE), -th.ones(N, 1, device=DEVICE)) * 20:
        for x, y in zip(copied(plain.step(actions)), same.step(actions)):
            assert th.equal(x, y)


def test_task_parameters_take_effect():
    env = make(reset_dist=0.5, max_effort=40.0)
    env.reset()
    put(env, dof_state=[0.49, 3.0, 0.0, 0.0])
    assert env.step(th.zeros(N, 1, device=DEVICE)).terminated.all()
    put(env, dof_state=[0.0, 0.0, 0.0, 0.0])
    assert env.step(th.ones(N, 1, device=DEVICE)).obs[0, 1] < 0.6
