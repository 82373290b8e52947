"""Train PPO on the cartpole until the task is solved, evaluate what was saved, and say what to do next."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path

import sb3_isaac
from sb3_isaac.cli import main as sb3_isaac_command

ENV_ID = "IsaacGymCartpole-v0"
N_EPISODES = 1000


def main() -> None:
    from sb3_isaac.evaluation.curves import find_runs

    start = time.perf_counter()
    train = f"train --algo ppo --env {ENV_ID} --seed 0 --until-solved --progress --verbose 0"
    print(f"sb3-isaac {train}", flush=True)
    status = sb3_isaac_command(train.split())
    if status != 0:
        sys.exit(status)
    seconds = time.perf_counter() - start
    run = Path(find_runs("logs", "ppo", ENV_ID)[-1])
    env = sb3_isaac.make_vec_env(ENV_ID, N_EPISODES, device="cpu", seed=1)
    model = sb3_isaac.load(run / ENV_ID, env, device="cpu")
    result = sb3_isaac.evaluate(model, model.get_env(), N_EPISODES)
    print(f"{run}: mean return {result.mean:.1f} of at most 499 over {N_EPISODES} new episodes; training took {seconds:.1f} s")
    installed = str(Path(sys.executable).with_name("sb3-isaac"))
    command = min(installed, os.path.relpath(installed), key=len)
    print("Next:")
    if not all(map(importlib.util.find_spec, ("matplotlib", "pygame", "imageio_ffmpeg"))):
        print(f"  {Path(command).with_name('python')} -m pip install -e '.[plots]'    # once, for the first two")
    for arguments in ("video", "plot -o curve.png", "evaluate"):
        name, *more = arguments.split()
        print(" ", command, name, "--algo ppo --env", ENV_ID, *more)


if __name__ == "__main__":
    main()
