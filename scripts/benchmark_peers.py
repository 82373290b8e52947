"""PPO of other libraries on our simulator, for scripts/benchmark.py.

Tried with skrl 2.1.1, rl-games 1.6.5 and rsl-rl-lib 5.5.1 (their names on PyPI), side by side on torch 2.13.

All do the work of our own rows: 16 steps per environment and iteration, 8 epochs, minibatches of 8192, two networks of 64-64
with ELU, a fixed learning rate, Gaussian actions with a learned standard deviation, bootstrapped time limits, nothing
normalised but advantages. Each library does it its own way: rl_games does not shuffle; at a time limit rl_games and rsl_rl
take the value of the observation before the step, skrl that after the reset. Networks are compiled where the library
offers it (rl_games, its default, and rsl_rl). No logs, no checkpoints; the adapters pass the simulator's own tensors.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any, Callable, Dict, List, Tuple

import sb3_isaac  # isort: skip  # before torch, see benchmark.py
import torch as th
from benchmark_timing import EPOCHS, HORIZON, MINIBATCH, rate

LEARNING_RATE, GAMMA, GAE_LAMBDA, CLIP_RANGE, VALUE_COEF, MAX_GRAD_NORM = 3e-4, 0.99, 0.95, 0.2, 0.5, 0.5

PACKAGES: Dict[str, str] = {"skrl": "skrl", "rl_games": "rl_games", "rsl_rl": "rsl_rl"}
"""Name of each library's row, and the module that must be importable."""

Peer = Tuple["Adapter", Callable[[], Any], List[th.nn.Parameter]]
"""The environment, what runs one iteration (a rollout and its updates), and the parameters that it trains."""


class Adapter:
    """What the three environment interfaces share. ``steps`` counts control steps of all environments together."""

    def __init__(self, vec_env: Any) -> None:
        self.env = vec_env.tensor_env
        self.num_envs: int = self.env.n_envs
        self.device: th.device = self.env.device
        self.observation_space, self.action_space = vec_env.observation_space, vec_env.action_space
        self.minibatches = max(1, self.num_envs * HORIZON // MINIBATCH)
        self.obs: th.Tensor = self.env.reset()
        self.steps = 0

    def reset(self) -> Any:
        return self.obs  # the libraries reset before they train; the episodes go on

    def advance(self, actions: th.Tensor) -> Any:
        result = self.env.step(actions)
        self.obs = result.obs.clone()  # they read it once more after the next step, which may overwrite it
        self.steps += 1
        return result


class SkrlEnv(Adapter):
    """https://skrl.readthedocs.io/en/latest/api/envs/wrapping.html"""

    state_space = None

    def reset(self) -> Any:
        return self.obs, {}

    def state(self) -> None:
        return None

    def step(self, actions: th.Tensor) -> Any:
        result = self.advance(actions)
        columns = (x.unsqueeze(-1) for x in (result.reward, result.terminated, result.truncated))
        return (self.obs, *columns, {})


def make_skrl(vec_env: Any, folder: str) -> Peer:
    from skrl.agents.torch.ppo import PPO
    from skrl.memories.torch import RandomMemory
    from skrl.trainers.torch import SequentialTrainer
    from skrl.utils.model_instantiators.torch import deterministic_model, gaussian_model

    env = SkrlEnv(vec_env)
    common = dict(observation_space=env.observation_space, action_space=env.action_space, device=env.device)
    network = [{"name": "net", "input": "OBSERVATIONS", "layers": [64, 64], "activations": "elu"}]
    models = {
        "policy": gaussian_model(**common, network=network, output="ACTIONS"),
        "value": deterministic_model(**common, network=network, output="ONE"),
    }
    for model in models.values():
        model.init_state_dict()
    cfg: Dict[str, Any] = dict(rollouts=HORIZON, learning_epochs=EPOCHS, mini_batches=env.minibatches)
    cfg.update(discount_factor=GAMMA, gae_lambda=GAE_LAMBDA, learning_rate=LEARNING_RATE, ratio_clip=CLIP_RANGE)
    cfg.update(value_loss_scale=VALUE_COEF, value_clip=0.0, grad_norm_clip=MAX_GRAD_NORM, time_limit_bootstrap=True)
    cfg.update(experiment={"directory": folder, "write_interval": 0, "checkpoint_interval": 0})
    memory = RandomMemory(memory_size=HORIZON, num_envs=env.num_envs, device=env.device)
    agent = PPO(models=models, memory=memory, cfg=cfg, **common)
    options = {"timesteps": HORIZON, "headless": True, "disable_progressbar": True, "close_environment_at_exit": False}
    train = SequentialTrainer(env=env, agents=agent, cfg=options).train
    return env, train, [p for model in models.values() for p in model.parameters()]


class RlGamesEnv(Adapter):
    """https://github.com/Denys88/rl_games/blob/master/rl_games/common/ivecenv.py"""

    def set_train_info(self, frames: int, *args: Any) -> None:
        """Called before every rollout."""

    def step(self, actions: th.Tensor) -> Any:
        result = self.advance(actions)
        return self.obs, result.reward, result.terminated | result.truncated, {"time_outs": result.truncated}


def make_rl_games(vec_env: Any, folder: str) -> Peer:
    from rl_games.common.algo_observer import AlgoObserver
    from rl_games.torch_runner import Runner

    env = RlGamesEnv(vec_env)
    # fixed_sigma: one learned value for all observations
    space = {"mu_activation": "None", "mu_init": {"name": "default"}, "sigma_activation": "None", "fixed_sigma": True}
    space["sigma_init"] = {"name": "const_initializer", "val": 0.0}
    network = {"name": "actor_critic", "separate": True, "space": {"continuous": space}}
    network["mlp"] = {"units": [64, 64], "activation": "elu", "initializer": {"name": "default"}}
    cfg: Dict[str, Any] = dict(name="cartpole", env_name="cartpole", vec_env=env, num_actors=env.num_envs)
    cfg.update(env_info={"observation_space": env.observation_space, "action_space": env.action_space})
    cfg.update(horizon_length=HORIZON, mini_epochs=EPOCHS, minibatch_size=env.num_envs * HORIZON // env.minibatches)
    cfg.update(gamma=GAMMA, tau=GAE_LAMBDA, e_clip=CLIP_RANGE, clip_value=False, entropy_coef=0.0, reward_shaper={})
    cfg.update(critic_coef=2 * VALUE_COEF, bound_loss_type="none", bounds_loss_coef=0.0)  # it halves the squared error
    cfg.update(learning_rate=LEARNING_RATE, lr_schedule="constant", schedule_type="standard")
    cfg.update(truncate_grads=True, grad_norm=MAX_GRAD_NORM, device=str(env.device), train_dir=folder, print_stats=False)
    cfg.update(normalize_advantage=True, normalize_input=False, normalize_value=False)
    params = {"seed": 1, "torch_threads": 0, "config": cfg, "network": network}
    params.update(algo={"name": "a2c_continuous"}, model={"name": "continuous_a2c_logstd"})
    runner = Runner(AlgoObserver())
    runner.load_config(params)
    agent = runner.algo_factory.create(runner.algo_name, base_name="run", params=runner.params)
    agent.writer.close()
    parameters = list(agent.model.parameters())
    agent.model = th.compile(agent.model)  # as Runner.run_train does
    agent.init_tensors()
    agent.obs = agent.env_reset()

    def iterate() -> None:  # the loop of agent.train() without its log
        agent.update_epoch()
        agent.train_epoch()

    return env, iterate, parameters


class RslRlEnv(Adapter):
    """https://github.com/leggedrobotics/rsl_rl/blob/main/rsl_rl/env/vec_env.py"""

    def __init__(self, vec_env: Any) -> None:
        super().__init__(vec_env)
        self.num_actions, self.cfg = self.env.action_dim, None

    def get_observations(self) -> Any:
        from tensordict import TensorDict

        return TensorDict({"policy": self.obs}, batch_size=[self.num_envs], device=self.device)

    def step(self, actions: th.Tensor) -> Any:
        result = self.advance(actions)
        return self.get_observations(), result.reward, result.terminated | result.truncated, {"time_outs": result.truncated}


def make_rsl_rl(vec_env: Any, folder: str) -> Peer:
    from rsl_rl.runners import OnPolicyRunner

    env = RslRlEnv(vec_env)
    network = {"class_name": "MLPModel", "hidden_dims": [64, 64], "activation": "elu"}
    ppo: Dict[str, Any] = dict(class_name="PPO", num_learning_epochs=EPOCHS, num_mini_batches=env.minibatches)
    ppo.update(gamma=GAMMA, lam=GAE_LAMBDA, clip_param=CLIP_RANGE, entropy_coef=0.0, value_loss_coef=VALUE_COEF)
    ppo.update(use_clipped_value_loss=False, learning_rate=LEARNING_RATE, schedule="fixed", max_grad_norm=MAX_GRAD_NORM)
    cfg: Dict[str, Any] = dict(algorithm=ppo, critic=network, obs_groups={"actor": ["policy"], "critic": ["policy"]})
    cfg["actor"] = {**network, "distribution_cfg": {"class_name": "GaussianDistribution", "init_std": 1.0}}
    cfg.update(num_steps_per_env=HORIZON, check_for_nan=False, torch_compile_mode="default")
    runner = OnPolicyRunner(env, cfg, log_dir=None, device=str(env.device))
    return env, lambda: runner.learn(1), [*runner.alg.actor.parameters(), *runner.alg.critic.parameters()]


def ppo_rate(args: argparse.Namespace, name: str, n_envs: int) -> float:
    """Environment steps per second of whole training: rollouts and updates."""
    make: Callable[[Any, str], Peer] = {"skrl": make_skrl, "rl_games": make_rl_games, "rsl_rl": make_rsl_rl}[name]
    th.manual_seed(0)
    vec_env = sb3_isaac.make_vec_env("IsaacGymCartpole-v0", n_envs, device=args.device, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        env, iterate, parameters = make(vec_env, folder)
        before = [p.detach().clone() for p in parameters]
        for _ in range(3):
            steps = env.steps
            iterate()
        if any(th.equal(old, new) for old, new in zip(before, parameters)):
            raise RuntimeError(f"{name} left some of its parameters as they were: it does not train.")
        units, seconds = (env.steps - steps) * n_envs, 2.0 if args.quick else 6.0
        return rate(iterate, units=units, seconds=seconds, device=args.device, warm_up=0)
