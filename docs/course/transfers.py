"""What crosses between the host and the device in a rollout of PPO and its update.

python docs/course/transfers.py
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import stable_baselines3
import torch as th
from torch.utils._python_dispatch import TorchDispatchMode

import sb3_isaac


class Count(NamedTuple):
    """In a rollout and its update."""

    waits: int
    """Times that the host needs something of the device, and so waits for it"""
    megabytes: float
    """Copied from one to the other"""


class Counter(TorchDispatchMode):
    """Counts within ``with``. It looks at what is called, so that it counts the same without a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.waits, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.waits += "_local_scalar_dense" in str(func)  # .item(), float(tensor), if tensor:
        return func(*args, **(kwargs or {}))

    def __enter__(self) -> Any:
        cpu = th.Tensor.cpu

        def to_host(tensor: th.Tensor) -> th.Tensor:
            self.waits += 1
            self.bytes += tensor.numel() * tensor.element_size()
            return cpu(tensor)

        def to_device(function: Any) -> Any:
            def count(data: Any, *args: Any, **kwargs: Any) -> Any:
                self.bytes += data.nbytes if isinstance(data, np.ndarray) else 0
                return function(data, *args, **kwargs)

            return count

        self.patches = [mock.patch.object(th.Tensor, "cpu", to_host)]
        self.patches += [mock.patch.object(th, name, to_device(getattr(th, name))) for name in ("tensor", "as_tensor")]
        for patch in self.patches:
            patch.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        for patch in self.patches:
            patch.stop()
        return super().__exit__(*error)


def count(algorithm: Any, n_envs: int = 1024, n_steps: int = 16, n_epochs: int = 8) -> Count:
    """One rollout and its update of ``algorithm``, a PPO."""
    n = n_envs * n_steps
    env = sb3_isaac.make_vec_env("IsaacGymCartpole-v0", n_envs, seed=0, device="cpu")
    model = algorithm("MlpPolicy", env, n_steps=n_steps, batch_size=n // 2, n_epochs=n_epochs, seed=0, device="cpu")
    model.learn(n)
    waits, megabytes = [], []
    for rollouts in (1, 2):  # their difference leaves out what learn() does once
        with Counter() as counter:
            model.learn(rollouts * n, reset_num_timesteps=False)
        waits.append(counter.waits)
        megabytes.append(counter.bytes / 1e6)
    env.close()
    return Count(waits[1] - waits[0], megabytes[1] - megabytes[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-envs", type=int, default=1024)
    parser.add_argument("--n-steps", type=int, default=16)
    args = vars(parser.parse_args())
    print("                 waits  megabytes")
    for name, algorithm in (("stock SB3", stable_baselines3.PPO), ("sb3_isaac", sb3_isaac.PPO)):
        found = count(algorithm, **args)
        print(f"{name:16s} {found.waits:5d}  {found.megabytes:9.2f}")


if __name__ == "__main__":
    main()
