"""A simulator that is already there, as an environment for Stable-Baselines3: ``sb3_isaac.wrap_mjlab(env)``."""

from __future__ import annotations

from typing import Any

from sb3_isaac.backends.simulator_env import ActionBounds, Groups
from sb3_isaac.envs.vec_env import IsaacVecEnv


def wrap_mjlab(env: Any, obs_groups: Groups = "actor", action_bounds: ActionBounds = 1.0) -> IsaacVecEnv:
    """An mjlab ``ManagerBasedRlEnv`` as an :class:`~sb3_isaac.envs.vec_env.IsaacVecEnv`.

    ::

        import mjlab.tasks, sb3_isaac
        from mjlab.envs import ManagerBasedRlEnv
        from mjlab.tasks.registry import load_env_cfg

        cfg = load_env_cfg("Mjlab-Cartpole-Balance")
        cfg.scene.num_envs, cfg.auto_reset = 1024, False
        env = sb3_isaac.wrap_mjlab(ManagerBasedRlEnv(cfg, device="cuda:0"))
        model = sb3_isaac.PPO("MlpPolicy", env)

    :param env: made with ``cfg.auto_reset = False``: otherwise the last observation of each episode is lost
    :param obs_groups: the observation group that the policy sees, or several: ``("actor", "critic")``
    :param action_bounds: mjlab bounds no actions: here they are within +-1, +-``action_bounds``, or (low, high), each a number
        or one for every action
    :raises ValueError: ``auto_reset`` is on, no such group, observations that are no vectors, bounds that are none
    """
    from sb3_isaac.backends.mjlab import MjlabEnv

    return IsaacVecEnv(MjlabEnv(env, obs_groups, action_bounds))
