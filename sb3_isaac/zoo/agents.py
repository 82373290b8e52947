"""Trained agents from rl_zoo3's log folders, with the environment that they were trained in."""

from __future__ import annotations

import argparse
import importlib
import os
from typing import NamedTuple, Optional

import gymnasium as gym
import rl_zoo3.utils
from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import StoreDict, create_test_env
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from sb3_isaac import backends
from sb3_isaac.device import threads
from sb3_isaac.envs.make import is_isaac_env_id
from sb3_isaac.files.safe_model import NOT_FOR_ACTING, reading_safely
from sb3_isaac.settings.check import check_one
from sb3_isaac.settings.memory import check_envs
from sb3_isaac.settings.table import COUNT
from sb3_isaac.zoo import run_settings
from sb3_isaac.zoo.manager import ALGOS
from sb3_isaac.zoo.run_folders import TRAIN_FIRST, model_path

ALGO_NAMES = sorted(rl_zoo3.utils.ALGOS)
"""What ``--algo`` may be."""


class TrainedAgent(NamedTuple):
    """What :func:`load_agent` found."""

    model: BaseAlgorithm
    env: VecEnv
    name: str
    """Name of the model, for files made from it."""
    path: str
    """The model's zip file."""
    folder: str
    """The folder of its run."""


def add_agent_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``rl_zoo3.enjoy`` that say which agent, and where it runs."""
    parser.add_argument("--algo", help="RL algorithm (default: ppo)", default="ppo", choices=ALGO_NAMES, metavar="ALGO")
    parser.add_argument("--env", help="environment id", type=EnvironmentName, required=True)
    parser.add_argument("-f", "--folder", help="log folder (default: logs)", default="logs")
    parser.add_argument("--exp-id", help="experiment id (default: 0: latest, -1: no exp folder)", default=0, type=int)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--load-best", action="store_true", help="load the best model instead of the last one")
    which.add_argument("--load-checkpoint", type=int, metavar="STEPS", help="load the checkpoint of that many timesteps")
    which.add_argument("--load-last-checkpoint", action="store_true", help="load the last checkpoint")
    parser.add_argument("--n-envs", help="number of environments", type=int)
    parser.add_argument("--stochastic", action="store_true", help="act as in training, not deterministically")
    parser.add_argument("--seed", help="random generator seed (default: 0)", type=int, default=0)
    parser.add_argument("--device", help="torch device: cpu, cuda, auto", default="auto")
    parser.add_argument("--num-threads", help="threads of torch (-1: its default)", type=int, default=-1)
    parser.add_argument("--env-kwargs", nargs="+", action=StoreDict, help="arguments of the environment, as in training")
    parser.add_argument("--gym-packages", nargs="+", default=[], help="modules to import, which register environments")
    parser.add_argument("--trust", action="store_true", help="let the files of the run, whose maker you trust, run code")


def import_packages(args: argparse.Namespace) -> None:
    """Import the modules of ``--gym-packages``, which register environments."""
    for package in args.gym_packages:
        importlib.import_module(package)
    run_settings.named_packages.update(args.gym_packages)


def load_agent(args: argparse.Namespace, n_envs: int, render_mode: Optional[str] = None) -> TrainedAgent:
    """Load the model that the flags name, and make the environment it was trained in, statistics of VecNormalize included.

    :param args: parsed flags, see :func:`add_agent_arguments`
    :param n_envs: number of environments where ``--n-envs`` was not given
    :raises FileNotFoundError: no such model or log folder
    :raises UntrustedFileError: a file of the run wants to run something, and there was no ``--trust``
    :raises ValueError: a number of environments below 1, a device that does not exist, a file of the run that is damaged
    :raises MemoryError: more environments than there is memory for
    """
    import_packages(args)
    if args.num_threads > 0:
        threads.ask_for(args.num_threads)
    env_id = args.env.gym_id
    n_envs = n_envs if args.n_envs is None else args.n_envs
    check_one("--n-envs", n_envs, COUNT)
    device = backends.resolve_device(args.device)
    if is_isaac_env_id(env_id):
        check_envs(n_envs, device, "--n-envs")
    which = (args.load_best, args.load_checkpoint, args.load_last_checkpoint)
    gym.spec(env_id)  # an unknown id is an error that names the closest one
    try:
        name, path, folder = model_path(args.exp_id, args.folder, args.algo, args.env, *which)
    except (AssertionError, ValueError) as error:
        if is_isaac_env_id(env_id):
            raise
        raise FileNotFoundError(str(error) + TRAIN_FIRST) from error
    set_random_seed(args.seed)
    settings = os.path.join(folder, args.env)
    hyperparams, statistics = run_settings.settings_of(path, settings, norm_reward=False, test_mode=True)
    # As in the training run, from its hyperparameter entry and then its command line, unless told otherwise
    env_kwargs = dict(hyperparams.pop("env_kwargs", None) or {})
    saved_args = os.path.join(settings, "args.yml")
    if os.path.isfile(saved_args):
        env_kwargs.update(run_settings.saved_args(saved_args).get("env_kwargs") or {})
    env_kwargs.update(args.env_kwargs or {})
    if render_mode is not None:
        env_kwargs["render_mode"] = render_mode
    if is_isaac_env_id(env_id) and "device" not in gym.spec(env_id).kwargs:
        env_kwargs.setdefault("device", args.device)
    env = create_test_env(
        env_id, n_envs, statistics, args.seed, should_render=False, hyperparams=hyperparams, env_kwargs=env_kwargs
    )
    algorithm = {**rl_zoo3.utils.ALGOS, **ALGOS}[args.algo]
    unused = dict(NOT_FOR_ACTING)
    if issubclass(algorithm, OffPolicyAlgorithm):
        unused.update(buffer_size=1, optimize_memory_usage=False)
    with reading_safely():
        model = algorithm.load(path, custom_objects=unused, device=args.device, seed=args.seed)
    return TrainedAgent(model=model, env=env, name=name, path=path, folder=folder)
