"""What memory there is, and what a training would take of it at least."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Mapping, Optional

if TYPE_CHECKING:
    import torch as th

BYTES_PER_ENV = 300
"""What one environment takes at least: state, what a step returns, episode statistics. A million cartpoles took 380 each."""


def free_memory(device: th.device) -> Optional[int]:
    """Bytes that can still be allocated on ``device``, or None where nobody knows."""
    if device.type == "cuda":
        import torch as th  # commands look at their flags before it is loaded

        # What torch's allocator holds unused is free for us, though not for the driver
        cached = th.cuda.memory_reserved(device) - th.cuda.memory_allocated(device)
        return int(th.cuda.mem_get_info(device)[0]) + cached
    try:
        with open("/proc/meminfo") as file:  # os.sysconf would count the page cache as used
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def check_memory(needs: Mapping[str, float], device: th.device, what_to_do: str, where: str = "") -> None:
    """Whether there is room for what is going to be allocated.

    :param needs: bytes, by what takes them: {"1,000 environments": 200_000}
    :param what_to_do: the end of the sentence: "lower buffer_size"
    :param where: where the settings stand: "ppo.yml or -params"
    :raises MemoryError: there is not: what takes how much, how much is free, what to do
    """
    free = free_memory(device)
    total = sum(needs.values())
    if free is None or total <= free:
        return
    parts = ", ".join(f"{what} {_gigabytes(size)}" for what, size in needs.items())
    place = f" (set in {where})" if where else ""
    raise MemoryError(
        f"This needs {_gigabytes(total)} on {device}{place}, and {_gigabytes(free)} are free: {parts}; {what_to_do}."
    )


def check_envs(n_envs: Any, device: th.device, name: str = "n_envs", where: str = "") -> None:
    """:raises MemoryError: for more environments than there is room for, see :func:`check_memory`"""
    check_memory({f"{n_envs} environments": int(n_envs) * BYTES_PER_ENV}, device, f"lower {name}", where)


def rollout_bytes(n_steps: int, n_envs: int, obs_dim: int, action_dim: int, n_columns: int = 0) -> int:
    """What PPO's rollouts take, in bytes: float32 of observation, action, value, log-probability, advantage and return, and of
    reward, episode start and their like.

    :param n_columns: numbers that tell what an action was drawn from, kept with ``adaptive_lr_kl``
    """
    return 4 * n_steps * n_envs * (obs_dim + action_dim + 8 + n_columns)


def replay_bytes(n_transitions: int, obs_dim: int, action_dim: int) -> int:
    """What a replay buffer takes, in bytes: float32 of both observations, action, reward and how the transition ended.

    :param n_transitions: ``buffer_size``, of all environments
    """
    return 4 * n_transitions * (2 * obs_dim + action_dim + 2)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.2f} GB" if size < 1e15 else "more than 1,000,000 GB"
