"""VecNormalize, the replay buffer and the episodes' statistics in C against the plain path."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any, Dict, Tuple

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_isaac import DeviceReplayBuffer, VecNormalize
from sb3_isaac.backends.base import StepResult
from sb3_isaac.device.finite import NotFiniteError
from sb3_isaac.envs.running_mean_std import RunningMoments
from sb3_isaac.envs.tensor_path import compile_step
from tests.conftest import DISCRETE, difference, make_env, run_python
from tests.envs.same_step import NORMALIZE, both, check_steps
from tests.native.conftest import needs_a_compiler
from tests.off_policy.conftest import make_model as make_off_policy
from tests.ppo.conftest import learn, make_model

pytestmark = needs_a_compiler
SPACES = spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Discrete(2)


@pytest.mark.parametrize("n_rows", [1, 3, 64])
def test_updates(n_rows: int) -> None:
    """Of columns of different size, one of them with NaN and infinity now and then."""
    plain, in_c = (RunningMoments(5, th.device("cpu"), 1e-8) for _ in range(2))
    in_c.in_c = True
    generator = th.Generator().manual_seed(0)
    factors = th.tensor([1.0, 1e-3, 1e6, 1.0, 0.0], dtype=th.float64).unsqueeze(1)
    for step in range(30):
        batch = th.randn(5, n_rows, dtype=th.float64, generator=generator) * factors + factors
        if step % 7 == 3:
            batch[3, 0] = th.nan if step % 2 else th.inf
        for moments in (plain, in_c):
            moments.update(batch.clone())
        for name in ("mean", "var", "count", "scale", "offset"):
            th.testing.assert_close(getattr(in_c, name), getattr(plain, name), rtol=1e-6, atol=1e-12)
    assert in_c.columns(slice(1, 3)).in_c and in_c.var[3].isfinite()


def in_c_too(make: Any) -> Tuple[Any, Any]:
    return both(make, compiled=True)


@pytest.mark.parametrize("options", NORMALIZE, ids=str)
@pytest.mark.parametrize("n_envs", [1, 13])
def test_a_step(options: Dict[str, Any], n_envs: int) -> None:
    check_steps(*in_c_too(lambda: VecNormalize(make_env(n_envs=n_envs, max_episode_length=9), **options)))


def test_other_tensors_of_a_task() -> None:
    """Not in a piece: C gets copies."""

    def other(result: StepResult) -> StepResult:
        obs = result.obs.t().contiguous().t()
        final_obs = result.final_obs.repeat_interleave(2, dim=1)[:, ::2]
        return result._replace(obs=obs, final_obs=final_obs, reward=result.reward.repeat_interleave(2)[::2])

    plain, in_c = in_c_too(lambda: VecNormalize(make_env(n_envs=5)))
    for env in (plain, in_c):
        env.step_tensor(th.zeros(5, 1))  # the first one is held against the contract
    step = in_c.tensor_env.step
    in_c.tensor_env.step = lambda actions: other(step(actions))
    for _ in range(3):
        expected, found = (env.step_tensor(th.zeros(5, 1)) for env in (plain, in_c))
        for name, want in expected._asdict().items():
            th.testing.assert_close(getattr(found, name), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"final_obs": th.zeros(3, 4)}, {"obs": th.zeros(20)}, {"reward": th.zeros(5, 1)}], ids=str)
def test_shapes_that_change(wrong: Dict[str, th.Tensor]) -> None:
    """After the first step, too, on both paths."""
    for env in in_c_too(lambda: VecNormalize(make_env(n_envs=5))):
        env.step_tensor(th.zeros(5, 1))
        step = env.tensor_env.step
        env.tensor_env.step = lambda actions, step=step: step(actions)._replace(**wrong)
        with pytest.raises(ValueError, match=f"TorchCartpole.step returned .* as {next(iter(wrong))}: it must be "):
            env.step_tensor(th.zeros(5, 1))


def test_statistics_of_another_type_are_left_to_pytorch() -> None:
    """C would write behind their ends."""
    plain, in_c = in_c_too(lambda: make_env(n_envs=5, max_episode_length=9))
    for env in (plain, in_c):
        env.episode_lengths = env.episode_lengths.int()
    for _ in range(12):
        for env in (plain, in_c):
            env.step_tensor(th.ones(5, 1))
        assert th.equal(plain.episode_lengths, in_c.episode_lengths) and in_c.episode_lengths.dtype is th.int32
    before = th.get_default_dtype()
    try:
        th.set_default_dtype(th.float64)
        env = VecNormalize(make_env())
    finally:
        th.set_default_dtype(before)
    assert env.episode_returns.dtype is env.obs_tensor.dtype is env._state.moments.scale.dtype is th.float32


def test_a_pickled_environment_where_there_is_no_compiler(tmp_path: Path) -> None:
    try:
        pickle.dumps(th.Generator())
    except TypeError:
        pytest.skip("this torch cannot pickle a random generator, which the simulator has")
    env = make_env(n_envs=8)
    compile_step(env, True)
    env.reset()
    (tmp_path / "env.pkl").write_bytes(pickle.dumps(env))
    code = (
        "import pickle, torch; env = pickle.load(open('env.pkl', 'rb')); env.step_tensor(torch.zeros(8, 1)); print(env._in_c)"
    )
    for more, in_c in (({}, "True"), ({"CC": "/nowhere/cc", "XDG_CACHE_HOME": str(tmp_path)}, "False")):
        assert run_python("-c", code, cwd=tmp_path, **more).stdout.split() == [in_c]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["obs", "final_obs", "reward"])
def test_not_a_number(where: str, value: float) -> None:
    """Nothing has taken it in when it is found, and huge numbers are none."""
    for env in in_c_too(lambda: VecNormalize(make_env(n_envs=5))):
        step = env.tensor_env.step

        def with_(value: float, step: Any = step) -> Any:
            def stepped(actions: th.Tensor) -> StepResult:
                result = step(actions)
                column = getattr(result, where).clone()
                column.view(-1)[-1] = value
                return result._replace(**{where: column})

            return stepped

        env.tensor_env.step = with_(3e38)
        env.step_tensor(th.zeros(5, 1))
        before = env.state_dict(), env.unwrapped.state_dict()
        obs = env.unwrapped.obs_tensor
        env.tensor_env.step = with_(value)
        with pytest.raises(NotFiniteError, match=f"of environment 4 was {value} in step 2"):
            env.step_tensor(th.zeros(5, 1))
        for name in ("mean", "var", "count", "returns"):
            assert th.equal(env.state_dict()[name], before[0][name])
        for name in ("dones", "episode_returns", "episode_lengths"):
            assert th.equal(env.unwrapped.state_dict()[name], before[1][name])
        assert env.unwrapped.obs_tensor is obs


class Halves(VecNormalize):
    """Somebody's own."""

    def normalize_obs_tensor(self, obs: th.Tensor) -> th.Tensor:
        return super().normalize_obs_tensor(obs) * 0.5


def test_a_class_of_somebodys_own_is_asked() -> None:
    """On both paths, for the observations it acts on and those that it learns from."""
    models = []
    for compiled in (False, True):
        th.manual_seed(5)
        model = make_off_policy("dqn", Halves(make_env(DISCRETE, 4)), compile=compiled)
        models.append(model.learn(400))
        assert model.env.factors() is None
        index = th.arange(40)
        obs = [model.replay_buffer.at(index, normalize).observations for normalize in (model.env, None)]
        assert th.equal(obs[0], VecNormalize.normalize_obs_tensor(model.env, obs[1]) * 0.5)
    assert difference(*models) < 1e-4


@pytest.mark.parametrize("n_steps", [1, 4])
@pytest.mark.parametrize("options", NORMALIZE, ids=str)
def test_normalised_samples(options: Dict[str, Any], n_steps: int) -> None:
    env = VecNormalize(make_env(n_envs=4, max_episode_length=6), **options)
    env.reset_tensor()
    buffer = DeviceReplayBuffer(40 * 4, env.observation_space, env.action_space, "cpu", 4, n_steps=n_steps)
    for _ in range(50):
        obs, actions = env.get_original_obs_tensor(), th.rand(4, 1) * 2.0 - 1.0
        result = env.step_tensor(actions)
        next_obs, reward = env.get_original_final_obs_tensor(), env.get_original_reward_tensor()
        buffer.add_tensors(obs, next_obs, actions, reward, result.terminated, result.truncated)
    index = th.randperm(160)
    for normalize in (env, None):
        samples = []
        for buffer.in_c in (False, True):
            samples.append(buffer.at(index, normalize))
        for name, want in samples[0]._asdict().items():
            found = getattr(samples[1], name)
            assert (found is None) == (want is None)
            if want is not None:
                th.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)
                assert found.shape == want.shape and found.dtype == want.dtype


class Negative(DeviceReplayBuffer):
    """Somebody's own."""

    def _observations(self, obs: th.Tensor, env: Any) -> th.Tensor:
        return -super()._observations(obs, env)


def test_what_c_does_not_know_is_left_to_pytorch() -> None:
    env = VecNormalize(make_env(n_envs=4))
    wide = spaces.Box(-1.0, 1.0, (7,))
    buffers = [
        Negative(40, env.observation_space, env.action_space, "cpu", 4),
        DeviceReplayBuffer(40, env.observation_space, env.action_space, "cpu", 4),
    ]
    for buffer in buffers:
        buffer.in_c = True
        buffer.observations[:] = 1.0
        buffer.pos = 5
    index = th.arange(8)
    assert (buffers[0].at(index).observations == -1.0).all()
    env.clip_obs = th.tensor([0.5, 1.0, 1.0, 1.0])
    assert buffers[1].at(index, env).observations.shape == (8, 4)
    env.clip_obs = 10.0
    env.normalize_obs_tensor = lambda obs: obs * 3.0
    assert (buffers[1].at(index, env).observations == 3.0).all()
    del env.normalize_obs_tensor
    with pytest.raises(RuntimeError, match="must match"):  # of another task
        other = DeviceReplayBuffer(40, wide, env.action_space, "cpu", 4)
        other.in_c, other.pos = True, 5
        other.at(index, env)
    for indices in (index.view(2, 4), index.float(), [1, 2]):
        found = []
        for buffers[1].in_c in (False, True):
            with pytest.raises(Exception) as raised:
                buffers[1].at(indices)
            found.append(type(raised.value))
        assert found[0] is found[1]


@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_two_models_of_one_environment(algo: str) -> None:
    """Each steps it as it was made to."""
    env = VecNormalize(make_env(DISCRETE, 4))
    make: Any = make_model if algo == "ppo" else lambda **options: make_off_policy("dqn", **options)
    models = [make(env=env, compile=compiled) for compiled in (True, False)]
    for n in (0, 1, 0, 0, 1):
        models[n].learn(64, reset_num_timesteps=False)
        assert env.unwrapped._in_c == env._state.moments.in_c == env.tensor_env._in_c == models[n].compile
    models[0].compile = False
    models[0].learn(64)
    assert not env.unwrapped._in_c


def test_indices_that_there_are_not() -> None:
    buffer = DeviceReplayBuffer(40, *SPACES, "cpu", 4)
    buffer.in_c = True
    for index in (40, -1):
        with pytest.raises(IndexError, match="1 of 2 indices are out of range"):
            buffer.at(th.tensor([3, index]))


@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_compile_asks_for_it(algo: str) -> None:
    models = []
    for compiled in (False, True):
        if algo == "ppo":
            model = learn(make_model(env=VecNormalize(make_env()), compile=compiled), 2)
        else:
            model = make_off_policy("dqn", VecNormalize(make_env(DISCRETE)), compile=compiled)
            model.learn(100)
        models.append(model)
    assert [model.env._state.moments.in_c for model in models] == [False, True]
    assert [model.env.unwrapped._in_c for model in models] == [False, True]
    for name in ("mean", "var", "count"):
        one, other = (getattr(model.env.obs_rms, name) for model in models)
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
