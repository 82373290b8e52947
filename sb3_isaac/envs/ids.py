"""The environment ids of this package. This is what ``import sb3_isaac`` needs, hence without torch and SB3.

Tasks of other people's simulators go by their own names: ``mjlab:Mjlab-Cartpole-Balance``, ``isaaclab:Isaac-Cartpole-Direct``.
:data:`SIMULATORS` says which function makes the tasks behind each prefix. What follows is the simulator's name of it,
of which nothing is known before the simulator is imported: such an id enters Gymnasium's registry when somebody uses it.
Gymnasium itself reads ``module:id`` as "import the module, which registers the id"; hence ``gym.make(gym.spec("mjlab:..."))``
and not ``gym.make("mjlab:...")``. rl_zoo3 asks the registry, and SB3 is given the spec by it.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, Optional, Tuple

import gymnasium as gym

ISAAC_GYM_DT = 1.0 / 60.0
"""Control step of the older public Isaac Gym cartpole repositories, in seconds (IsaacGymEnvs has 0.0166)."""


ENV_KWARGS: Dict[str, Dict[str, Any]] = {
    "IsaacGymCartpole-v0": {},
    "IsaacGymCartpoleDiscrete-v0": {"discrete": True},
    # The settings of public Isaac Gym runs, see hyperparams/*.yml.
    "IsaacGymCartpoleSeed-v0": {"dt": ISAAC_GYM_DT},
    "IsaacGymCartpoleSeedDiscrete-v0": {"dt": ISAAC_GYM_DT, "discrete": True},
    "IsaacGymCartpoleRlGames-v0": {},
}
"""The environment ids that this package registers, with what distinguishes them."""

REWARD_THRESHOLD = 475.0
"""The return from which on the task counts as solved, of at most 499 in as many steps: as Gymnasium has it for CartPole-v1."""


def register_envs() -> None:
    """Register the ids with Gymnasium. Done when :mod:`sb3_isaac` is imported."""
    for env_id, kwargs in ENV_KWARGS.items():
        if env_id not in gym.registry:
            gym.register(
                env_id,
                entry_point="sb3_isaac.envs:CartpoleEnv",
                vector_entry_point="sb3_isaac.envs:CartpoleVectorEnv",
                kwargs=kwargs,
                reward_threshold=REWARD_THRESHOLD,
            )


SIMULATORS: Dict[str, str] = {
    "isaaclab": "sb3_isaac.backends.isaaclab:make",
    "mjlab": "sb3_isaac.backends.mjlab:make",
}
"""By prefix: ``make(task, n_envs, device, seed, **task_kwargs)`` returns a :class:`~sb3_isaac.backends.base.TensorEnv`. It
imports the simulator within the function, which is the first time that anybody does. With ``max_episode_length`` among the
``task_kwargs`` episodes are truncated after that minus one steps; with ``render_mode`` given, the task is to be drawn."""

ENTRY_POINT, VECTOR_ENTRY_POINT = "sb3_isaac.envs:SimulatorTaskEnv", "sb3_isaac.envs:SimulatorTaskVectorEnv"


def split(env_id: str) -> Optional[Tuple[str, str]]:
    """Prefix and task of an id; None: it is an id of another kind."""
    simulator, colon, task = env_id.partition(":")
    return (simulator, task) if colon and task and simulator in SIMULATORS else None


def register_named(names: Iterable[str]) -> None:
    """Register those of ``names`` that are tasks of a simulator: words of a command line, or one id.

    :raises gymnasium.error.Error: Gymnasium takes no such id
    """
    for name in names:
        name = name.rpartition("=")[2]  # --env=ID
        found = split(name)
        if found is None or name in gym.registry:
            continue
        gym.register(
            name,
            entry_point=ENTRY_POINT,
            vector_entry_point=VECTOR_ENTRY_POINT,
            disable_env_checker=True,  # it would ask for the spaces before it is known how many environments are wanted
            kwargs={"simulator": found[0], "task": found[1]},
        )
