"""As isaaclab_tasks/utils/parse_cfg.py: the config of a task."""

from types import SimpleNamespace

import gymnasium as gym

REMOTE = "https://assets.example.com/Isaac/IsaacLab/Robots/Classic/Cartpole/cartpole.usd"


def parse_env_cfg(task_name, device=None, num_envs=None):
    print("[INFO]: Parsing configuration from: somewhere")
    gym.spec(task_name)
    joint_pos = {"slider_to_cart": 0.0, "cart_to_pole": 0.0} if "Cartpole" in task_name else {"arm": 0.0}
    robot = SimpleNamespace(spawn=SimpleNamespace(usd_path=REMOTE), init_state=SimpleNamespace(joint_pos=joint_pos))
    return SimpleNamespace(
        observation_space=2,
        action_space=1,
        state_space=0,
        decimation=2,
        episode_length_s=0.5,
        seed=None,
        compute_final_obs=False,
        max_action=1.0,
        action_scale=100.0,
        max_cart_pos=3.0,
        sim=SimpleNamespace(dt=0.05, device=device),
        scene=SimpleNamespace(num_envs=num_envs, robot=robot, ground=SimpleNamespace(spawn=SimpleNamespace())),
    )
