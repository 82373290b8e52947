"""Film a policy at four moments of its training, for README.md: docs/images/learning.gif.

    python scripts/film_learning.py

All four meet the same initial state. Training is PPO's with the settings of README's Python example.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, Iterator, List

import numpy as np

import sb3_isaac
from sb3_isaac.envs.cartpole_renderer import CartpoleRenderer
from sb3_isaac.evaluation.video import write_video

ROOT = Path(__file__).resolve().parents[1]
ENV_ID = "IsaacGymCartpole-v0"
N_ENVS, N_STEPS = 128, 16
SETTINGS: Dict[str, Any] = dict(n_minibatches=1, n_epochs=8, learning_rate=3e-3, adaptive_lr_kl=0.02)
STAGES = (0, 4, 8, 20)
"""Rollouts of training before each picture."""
SIZE = (320, 160)


def film(model: Any, n_frames: int, seed: int) -> Iterator[np.ndarray]:
    """Pictures (height, width, 3) of one cartpole under a model's deterministic policy; they stop changing at its end."""
    env = sb3_isaac.make_vec_env(ENV_ID, n_envs=1, seed=seed, device="cpu")
    renderer, obs, done, picture = CartpoleRenderer(1), env.reset(), False, None
    for _ in range(n_frames):
        if picture is None or not done:
            state = env.tensor_env.render_state()
            (picture,) = renderer.images(state, env.episode_returns.cpu().numpy(), SIZE)
            action, _ = model.predict(model.env.normalize_obs(obs), deterministic=True)
            obs, _, dones, _ = env.step(action)
            done = bool(dones[0])
        yield picture
    env.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", "--output", default=str(ROOT / "docs" / "images" / "learning.gif"))
    parser.add_argument("--frames", type=int, default=360, help="60 are a second")
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()

    env = sb3_isaac.VecNormalize(sb3_isaac.make_vec_env(ENV_ID, n_envs=N_ENVS, seed=args.seed, device="cpu"))
    model = sb3_isaac.PPO("MlpPolicy", env, n_steps=N_STEPS, seed=args.seed, device="cpu", **SETTINGS)
    captions = CartpoleRenderer(1)
    films: List[List[np.ndarray]] = []
    for stage in STAGES:
        steps = stage * N_STEPS * N_ENVS
        if steps > model.num_timesteps:
            model.learn(steps - model.num_timesteps, reset_num_timesteps=model.num_timesteps == 0)
        title = captions.caption(SIZE[0], "untrained" if steps == 0 else f"after {model.num_timesteps:,} steps")
        films.append([np.concatenate([title, picture]) for picture in film(model, args.frames, args.seed + 1)])
    pictures = (np.concatenate([np.concatenate([a, b], 1), np.concatenate([c, d], 1)]) for a, b, c, d in zip(*films))
    n_frames = write_video(args.output, (picture for i, picture in enumerate(pictures) if i % 3 == 0), fps=20)
    print(f"{args.output}: {n_frames} frames")


if __name__ == "__main__":
    main()
