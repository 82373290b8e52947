"""The cartpole's step in Triton's kernel against PhysX, and against the plain path."""

from __future__ import annotations

import pickle
from typing import Any, Dict

import pytest
import torch as th

from sb3_isaac.backends.fused_cartpole import advance_in_triton, numbers
from sb3_isaac.backends.torch_cartpole import TorchCartpole
from tests.backends.same_cartpole import TASKS, check_cartpoles, check_physx
from tests.conftest import make_env
from tests.ppo.conftest import make_model
from tests.triton.conftest import DEVICE


def test_one_step_of_physx() -> None:
    check_physx(advance_in_triton, DEVICE)


@pytest.mark.parametrize("task, n_envs", [*((task, 64) for task in TASKS), ("default", 1), ("other", 300)])
def test_steps_are_the_plain_ones_to_rounding(task: str, n_envs: int) -> None:
    given: Dict[str, Any] = dict(TASKS[task], seed=3, max_episode_length=40, device=DEVICE)
    plain, in_triton = TorchCartpole(n_envs, **given), TorchCartpole(n_envs, **given)
    in_triton.in_triton = True
    ends = check_cartpoles(plain, in_triton, task == "spinning", n_steps=80)
    if n_envs >= 64:
        assert ends[1] > 0 and ends[2 if task == "spinning" else 0] > 0


def test_whole_numbers() -> None:
    """Which are the same task to Python, and another type to Triton."""
    numbers.cache_clear()
    whole: Dict[str, Any] = dict(max_pole_speed=8, max_cart_speed=1, max_effort=400, track_limit=4, reset_dist=3, gravity=10)
    for task in (whole, {name: float(value) for name, value in whole.items()}):
        given: Dict[str, Any] = dict(task, seed=3, max_episode_length=40, device=DEVICE)
        plain, in_triton = TorchCartpole(20, **given), TorchCartpole(20, **given)
        in_triton.in_triton = True
        check_cartpoles(plain, in_triton, False, n_steps=20)


def test_a_nan_stays_with_its_environment() -> None:
    env = TorchCartpole(20, seed=0, device=DEVICE)
    env.in_triton = True
    env.reset()
    actions = th.zeros(20, 1, device=DEVICE)
    actions[3] = th.nan
    result = env.step(actions)
    assert result.final_obs.isnan().any(1).nonzero().tolist() == [[3]]
    assert not (result.terminated | result.truncated).any()


@pytest.mark.parametrize("task", [{}, {"randomize": {"pole_mass": (0.5, 2.0)}}])
def test_training_asks_for_it(task: Dict[str, Any]) -> None:
    """But not for what the kernel does not know. A model without ``precision`` goes back to the plain step."""
    env = make_env(n_envs=8, device=DEVICE, **task)
    for precision in ("fp32", None):
        make_model(env=env, precision=precision, device=DEVICE, n_steps=4, batch_size=32).learn(32)
        assert env.tensor_env.in_triton == (precision is not None)
        assert env.tensor_env._in_kernel == (precision is not None and not task)
    env.tensor_env.in_triton = True
    assert not pickle.loads(pickle.dumps(env)).tensor_env.in_triton  # there may be no Triton where it is read
