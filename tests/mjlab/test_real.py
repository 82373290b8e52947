"""The adapter on mjlab itself, on the CPU: the contract, and a training that solves."""

from __future__ import annotations

import pytest
import torch as th

import sb3_isaac
from sb3_isaac.backends import mjlab
from sb3_isaac.backends.base import StepResult, check_result
from tests.real_simulators import check_in_stock_sb3, command, mean_return

BALANCE = "Mjlab-Cartpole-Balance"
HIGHEST = 50.0
"""The return of a thousand steps of 0.05 s, each with the highest reward."""
LENGTH, RAIL = 40, 0.3
"""Of the task below: steps of an episode, and where the cart has failed, in metres."""
N = 64


def off_the_rail(env):
    return env.scene["cartpole"].data.joint_pos[:, 0].abs() > RAIL


@pytest.fixture
def env():
    """Balance with shorter episodes, in which the cart may fail: mjlab's cartpoles cannot. As a user makes it."""
    mjlab.tasks()  # imports mjlab without its tables
    from mjlab.envs import ManagerBasedRlEnv
    from mjlab.managers.termination_manager import TerminationTermCfg
    from mjlab.tasks.registry import load_env_cfg

    cfg = load_env_cfg(BALANCE)
    cfg.scene.num_envs, cfg.seed, cfg.auto_reset, cfg.episode_length_s = N, 0, False, LENGTH * 0.05
    cfg.terminations["off_the_rail"] = TerminationTermCfg(func=off_the_rail)
    made = sb3_isaac.wrap_mjlab(ManagerBasedRlEnv(cfg, device="cpu"))
    yield made.tensor_env
    made.close()


def test_contract(env):
    check_result(env, "reset", env.reset())
    env.progress.copy_(th.arange(N) % LENGTH)  # time-outs at different times
    generator = th.Generator().manual_seed(0)
    push = 1.2 * (th.arange(N) % 2).unsqueeze(-1)  # every second cart runs away
    n_failed = n_timed_out = 0
    previous = None
    for _ in range(3 * LENGTH):
        before = env.progress.clone()
        result = env.step(0.4 * (2.0 * th.rand(N, 1, generator=generator) - 1.0) + push)
        check_result(env, "step", result)
        kept = StepResult(*(tensor.clone() for tensor in result))
        done = result.terminated | result.truncated
        assert not (result.terminated & result.truncated).any()
        assert th.equal(result.obs[~done], result.final_obs[~done])
        assert th.equal(result.final_obs[:, 0].abs() > RAIL, result.terminated)
        assert (result.obs[done, 0].abs() <= 0.1).all() and (result.obs[done, 3:].abs() <= 0.011).all()
        assert th.equal((before == LENGTH - 1) & ~result.terminated, result.truncated)
        assert th.equal(env.progress, th.where(done, 0, before + 1))
        if previous is not None:  # nothing of the step before is written over
            assert all(th.equal(now, then) for now, then in zip(*previous))
        previous = result, kept
        n_failed, n_timed_out = n_failed + int(result.terminated.sum()), n_timed_out + int(result.truncated.sum())
    assert n_failed > 10 and n_timed_out > 10
    metrics = env.pop_metrics()
    assert metrics["Episode_Termination/off_the_rail"] > 0 and "Episode_Reward/smooth_reward" in metrics


def test_the_last_observation_is_the_physics(env):
    """The same as of another simulator, in which no episode ends."""
    from mjlab.envs import ManagerBasedRlEnv

    cfg = env.env.cfg
    cfg.terminations = {}
    endless = ManagerBasedRlEnv(cfg, device="cpu")
    endless.reset()
    env.reset()
    joints = endless.scene["cartpole"].data
    env.env.scene["cartpole"].write_joint_state_to_sim(joints.joint_pos.clone(), joints.joint_vel.clone())
    ended = th.zeros(N, dtype=th.bool)
    action = th.full((N, 1), 0.8)
    for _ in range(LENGTH):
        expected = endless.step(action)[0]["actor"].clone()
        result = env.step(action)
        assert (result.final_obs[~ended] - expected[~ended]).abs().max() < 1e-3
        ended |= result.terminated
        if ended.all():
            break
    assert ended.all()


def test_bounds_are_kept(env):
    results = []
    for action in (1.0, 9.0):
        env.seed(5)
        env.reset()
        results.append(env.step(th.full((N, 1), action)).final_obs)
    assert th.equal(*results)


def test_seed(env):
    starts = []
    for seed in (1, 2, 1):
        env.seed(seed)
        starts.append(env.reset())
    assert th.equal(starts[0], starts[2]) and not th.equal(starts[0], starts[1])


def test_two_in_a_process():
    """Training and evaluation have a simulator each."""
    one, other = (mjlab.make(BALANCE, n, th.device("cpu"), 0, obs_groups=("actor", "critic")) for n in (4, 2))
    start = one.reset().clone()
    other.reset()
    other.step(th.ones(2, 1))
    assert th.equal(start[:, :5], start[:, 5:])  # this task's critic sees what the actor sees
    assert (one.step(th.zeros(4, 1)).obs[:, 0] - start[:, 0]).abs().max() < 0.01
    one.close()
    other.close()


def test_training_solves(tmp_path):
    """The shipped entry of PPO, by the command line; then the model in stock SB3."""
    env_id = f"mjlab:{BALANCE}"
    common = ["--algo", "ppo", "--env", env_id, "-f", str(tmp_path), "--device", "cpu"]
    command("train", *common, "--seed", "0", "--eval-freq", "-1")
    output = command("evaluate", *common, "-n", "64")
    assert mean_return(output) >= 0.9 * HIGHEST, output
    (path,) = tmp_path.glob(f"ppo/*/{BALANCE}.zip")
    check_in_stock_sb3(path, obs_dim=5)
