"""rl-zoo3 with our environments: importing this module is all that it takes.

``python -m rl_zoo3.train --algo ppo --env IsaacGymCartpole-v0 --gym-packages sb3_isaac.zoo`` and rl_zoo3's other commands
then use batched environments, our hyperparameter files and our algorithms for the environments of this package. Runs on
other environments stay as they were. The hooks are in :mod:`sb3_isaac.zoo.hooks`.
"""

from __future__ import annotations

from sb3_isaac.zoo.late_plots import import_manager

import_manager()  # before anything else does

from sb3_isaac.zoo.batched_vec_env import batched_vec_env  # noqa: E402
from sb3_isaac.zoo.entry_files import hyperparams_dir  # noqa: E402
from sb3_isaac.zoo.hooks import install  # noqa: E402
from sb3_isaac.zoo.manager import ALGOS, IsaacExperimentManager  # noqa: E402

BatchedVecEnv = batched_vec_env
"""For ``vec_env_cls`` of SB3's make_vec_env."""

__all__ = ["ALGOS", "BatchedVecEnv", "IsaacExperimentManager", "hyperparams_dir"]

install()
