"""Train PPO on the cartpole with rl_zoo3's command, then evaluate the saved model and say in one line how well it stands."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ENV_ID = "IsaacGymCartpole-v0"
TRAIN = f"-m rl_zoo3.train --algo ppo --env {ENV_ID} --gym-packages sb3_isaac.zoo --seed 0 -f logs"
N_ENVS = 64


def main() -> None:
    start = time.perf_counter()
    print(f"python {TRAIN}", flush=True)
    subprocess.run([sys.executable, *TRAIN.split()], check=True)
    seconds = time.perf_counter() - start

    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import VecNormalize

    import sb3_isaac
    from sb3_isaac.evaluation.curves import find_runs
    from sb3_isaac.evaluation.measure import evaluate

    run = Path(find_runs("logs", "ppo", ENV_ID)[-1])
    model = PPO.load(run / f"{ENV_ID}.zip", device="cpu")
    env = VecNormalize.load(
        str(run / ENV_ID / "vecnormalize.pkl"), sb3_isaac.make_vec_env(ENV_ID, N_ENVS, device="cpu", seed=1)
    )
    env.training = env.norm_reward = False
    result = evaluate(model, env, n_episodes=N_ENVS)
    print(
        f"\n{run}: mean return {result.mean:.1f} (at most 499), mean episode length {result.mean_length:.1f} of 499 steps, "
        f"over {N_ENVS} episodes; trained in {seconds:.1f} seconds, start-up included."
    )


if __name__ == "__main__":
    main()
