"""Simulators that are already there, as environments for Stable-Baselines3: ``wrap_isaaclab(env)``, ``wrap_mjlab(env)``."""

from __future__ import annotations

from typing import Any, Optional

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


def wrap_isaaclab(
    env: Any, obs_groups: Groups = "policy", action_bounds: ActionBounds = 1.0, n_envs: Optional[int] = None
) -> IsaacVecEnv:
    """An Isaac Lab environment, of the direct or the manager-based workflow, as an
    :class:`~sb3_isaac.envs.vec_env.IsaacVecEnv`.

    ::

        import gymnasium as gym, isaaclab_tasks, sb3_isaac
        from isaaclab.app.sim_launcher import launch_simulation
        from isaaclab_tasks.utils.parse_cfg import parse_env_cfg

        cfg = parse_env_cfg("Isaac-Cartpole-Direct", device="cuda:0", num_envs=4096)
        cfg.compute_final_obs = True
        with launch_simulation(cfg, {"headless": True}):
            env = sb3_isaac.wrap_isaaclab(gym.make("Isaac-Cartpole-Direct", cfg=cfg))
            eval_env = sb3_isaac.wrap_isaaclab(env.tensor_env.env, n_envs=64)  # on the same simulator
            model = sb3_isaac.PPO("MlpPolicy", env)

    Isaac Lab has one simulator in a process. Each call makes another view on it, which keeps its own episodes: training and
    evaluation take turns.

    :param env: made with ``cfg.compute_final_obs = True``: otherwise the last observation of each episode is lost
    :param obs_groups: the observation group that the policy sees, or several: ``("policy", "critic")``
    :param action_bounds: Isaac Lab bounds no actions: here they are within +-1, +-``action_bounds``, or (low, high), each a
        number or one for every action
    :param n_envs: the first so many environments of the simulator; None: all
    :raises ValueError: ``compute_final_obs`` is off, no such group, observations that are no vectors, bounds that are none
    """
    from sb3_isaac.backends.isaaclab import view_of

    return IsaacVecEnv(view_of(env, obs_groups, action_bounds, n_envs))
