"""A strict stand-in for Isaac Lab 3's DirectRLEnv, written from its source (isaaclab/envs/direct_rl_env.py).

Its task: the observation is (position, steps since the reset), the action moves the position, beyond 1 it has failed. What
Isaac Lab does to its users is done here, too: one simulator in a process, buffers that the next step overwrites, the last
observation kept from earlier steps, ``terminated`` and ``truncated`` both true, metrics that are told once and lie there on.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import gymnasium as gym
import torch as th

from isaaclab.envs.utils.spaces import spec_to_gym_space


class Scene:
    """One articulation with one joint for each environment."""

    def __init__(self, num_envs):
        self.origins = 4.0 * th.arange(num_envs, dtype=th.float32)
        joint = SimpleNamespace(torch=th.zeros(num_envs, 2))
        velocity = SimpleNamespace(torch=th.zeros(num_envs, 2))
        names = ["cart_to_pole", "slider_to_cart"]
        self.velocity_target = th.zeros(num_envs, 2)
        targets = {f"joint_{name}_target": SimpleNamespace(torch=th.zeros(num_envs, 2)) for name in ("pos", "effort")}
        targets["joint_vel_target"] = SimpleNamespace(torch=self.velocity_target)
        data = SimpleNamespace(joint_pos=joint, joint_vel=velocity, **targets)
        setters = {f"set_joint_{name}_target_index": self._keep for name in ("position", "effort")}
        setters["set_joint_velocity_target_index"] = self._set_velocity_target
        self.articulations = {"cartpole": SimpleNamespace(joint_names=names, data=data, **setters)}
        self.num_envs = num_envs

    @property
    def position(self):
        return self.articulations["cartpole"].data.joint_pos.torch

    def _keep(self, target, env_ids):
        assert (target == 0).all() and env_ids.dtype == th.int32

    def _set_velocity_target(self, target, env_ids):
        self.velocity_target[env_ids.long()] = target

    def write_data_to_sim(self):
        assert (self.velocity_target == 0).all(), "the cart is pulled along"

    def get_state(self, is_relative=False):
        root = self.origins.clone() if not is_relative else th.zeros(self.num_envs)
        return {"articulation": {"cartpole": {"joint_position": self.position.clone(), "root_pose": root}}, "rigid_object": {}}

    def reset_to(self, state, env_ids=None, is_relative=False):
        assert is_relative and env_ids.dtype == th.int32
        assert (state["articulation"]["cartpole"]["root_pose"] == 0).all()
        self.position[env_ids.long()] = state["articulation"]["cartpole"]["joint_position"]
        self.velocity_target[env_ids.long()] = 1.0  # as Isaac Lab's, which takes the state for the target


class DirectRLEnv(gym.Env):
    there_is_one = False
    metadata = {"render_modes": [None, "human", "rgb_array"]}

    def __init__(self, cfg, render_mode=None):
        if DirectRLEnv.there_is_one:
            raise RuntimeError("Simulation context already exists. Cannot create a new one.")
        DirectRLEnv.there_is_one = True
        self.cfg, self.device, self.num_envs = cfg, cfg.sim.device, cfg.scene.num_envs
        self.scene, self.sim = Scene(self.num_envs), SimpleNamespace(forward=self._forward)
        self._is_forwarded = True
        if cfg.seed is not None:
            self.seed(cfg.seed)
        self.single_observation_space = gym.spaces.Dict({"policy": spec_to_gym_space(cfg.observation_space)})
        if cfg.state_space:
            self.single_observation_space["critic"] = spec_to_gym_space(cfg.state_space)
        self.single_action_space = spec_to_gym_space(cfg.action_space)
        self.episode_length_buf = th.zeros(self.num_envs, dtype=th.long)
        self.reset_terminated, self.reset_time_outs = (th.zeros(self.num_envs, dtype=th.bool) for _ in range(2))
        self.moved = th.zeros(self.num_envs, 1)
        self.extras = {}
        self._policy, self._critic, self.reward_buf = th.zeros(self.num_envs, 2), th.zeros(self.num_envs, 1), None

    def _forward(self):
        self._is_forwarded = True

    @property
    def max_episode_length(self):
        return math.ceil(self.cfg.episode_length_s / (self.cfg.sim.dt * self.cfg.decimation))

    @staticmethod
    def seed(seed=-1):
        th.manual_seed(seed)
        return seed

    def _observations(self):
        self._policy[:, 0], self._policy[:, 1] = self.scene.position[:, 1], self.episode_length_buf
        self._critic[:, 0] = self.moved[:, 0]
        return {"policy": self._policy, "critic": self._critic} if self.cfg.state_space else {"policy": self._policy}

    def _reset_idx(self, env_ids):
        self.extras.setdefault("log", {})["Metrics/success_rate"] = self.reset_time_outs[env_ids].float().mean()
        self.scene.position[env_ids, 1] = 0.5 * th.rand(len(env_ids)) - 0.25
        self.scene.position[env_ids, 0] = 0.0
        self.episode_length_buf[env_ids] = 0

    def reset(self, seed=None, options=None):
        self._reset_idx(th.arange(self.num_envs))
        return self._observations(), self.extras

    def step(self, action):
        assert self._is_forwarded
        self.scene.write_data_to_sim()
        assert isinstance(action, th.Tensor) and action.shape == (self.num_envs, 1) and action.dtype == th.float32
        assert (action.abs() <= self.cfg.max_action).all(), action
        self.moved = action  # kept: whoever writes over his tensor later changes the simulation
        self.scene.position[:, 1] += 0.5 * self.moved[:, 0]
        self.episode_length_buf += 1
        self.reset_terminated[:] = self.scene.position[:, 1].abs() > 1.0
        self.reset_time_outs[:] = self.episode_length_buf >= self.max_episode_length
        self.reward_buf = 1.0 - self.scene.position[:, 1].abs().double()
        env_ids = (self.reset_terminated | self.reset_time_outs).nonzero().flatten()
        if len(env_ids) > 0:
            if getattr(self.cfg, "compute_final_obs", False):  # version 2 has no such thing
                self.extras["final_obs"] = {name: value.clone() for name, value in self._observations().items()}
            self._reset_idx(env_ids)
        return self._observations(), self.reward_buf, self.reset_terminated, self.reset_time_outs, self.extras

    def close(self):
        DirectRLEnv.there_is_one = False
        del self.scene
