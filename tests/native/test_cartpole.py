"""The cartpole's step in C against PhysX, and against the plain path."""

from __future__ import annotations

from typing import Any, Dict

import pytest
import torch as th

from sb3_isaac.backends.fused_cartpole import advance_in_c, why_not_in_c
from sb3_isaac.backends.torch_cartpole import TorchCartpole, advance
from tests.backends.same_cartpole import TASKS, check_cartpoles, check_physx
from tests.conftest import make_env
from tests.native.conftest import needs_a_compiler
from tests.ppo.conftest import make_model

pytestmark = needs_a_compiler


def test_one_step_of_physx() -> None:
    check_physx(advance_in_c)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("n_envs", [1, 13, 64])
def test_steps_are_the_plain_ones_to_rounding(task: str, n_envs: int) -> None:
    """From the same states, through failures, the rail's end, time limits and resets."""
    given = dict(TASKS[task], seed=3, max_episode_length=40)
    plain, in_c = TorchCartpole(n_envs, **given), TorchCartpole(n_envs, **given)
    in_c.compile()
    assert in_c._in_c and not plain._in_c
    ends = check_cartpoles(plain, in_c, task == "spinning")
    if n_envs == 64:
        assert ends[1] > 0 and ends[2 if task == "spinning" else 0] > 0


def test_each_step_has_tensors_of_its_own() -> None:
    env = TorchCartpole(5, seed=0)
    env.compile()
    env.reset()
    first = env.step(th.zeros(5, 1))
    kept = [tensor.clone() for tensor in first]
    env.step(th.ones(5, 1))
    assert all(th.equal(one, other) for one, other in zip(first, kept))


def test_a_nan_stays_with_its_environment() -> None:
    env = TorchCartpole(20, seed=0)
    env.compile()
    env.reset()
    actions = th.zeros(20, 1)
    actions[3] = th.nan
    result = env.step(actions)
    assert result.final_obs.isnan().any(1).nonzero().tolist() == [[3]]
    state, progress = env.dof_state.clone(), env.progress.clone()
    expected, _ = advance(state, progress, actions, th.zeros(20, 4), env.reset_width, env.task)
    assert expected.final_obs.isnan().any(1).nonzero().tolist() == [[3]]


@pytest.mark.parametrize(
    "task",
    [
        {"reward": lambda obs, actions, terminated, task: obs[:, 0]},
        {"termination": lambda obs, actions, task: obs[:, 0] > 1},
        {"randomize": {"pole_mass": (0.5, 2.0)}},
    ],
)
def test_tasks_with_functions_or_randomisation_stay_in_pytorch(task: Dict[str, Any]) -> None:
    env = TorchCartpole(4, seed=0, **task)
    env.compile()
    assert not env._in_c and "of its own" in str(why_not_in_c(env.task))
    env.reset()
    env.step(th.zeros(4, 1))


@pytest.mark.parametrize(
    "actions", [th.full((3, 1), 0.5, dtype=th.float64), th.ones(3, 1, dtype=th.int64), th.full((1, 1), 0.5)]
)
def test_actions_of_another_kind(actions: th.Tensor) -> None:
    plain, in_c = TorchCartpole(3, seed=0), TorchCartpole(3, seed=0)
    in_c.compile()
    for env in (plain, in_c):
        env.reset()
        env.step(actions)
    assert th.allclose(in_c.force, plain.force.float())
    for wrong in (th.zeros(3), th.zeros(2, 1)):
        with pytest.raises((IndexError, RuntimeError)):
            in_c.step(wrong)


def test_back_to_the_plain_step() -> None:
    """A model without ``compile`` on an environment that one with it has trained on."""
    env = make_env()
    for compiled in (True, False):
        make_model(env=env, compile=compiled).learn(128)
        assert env.tensor_env._in_c == compiled
