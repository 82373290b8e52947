"""Frames of cartpoles under a trained policy, beside them some without one; a push now and then, and a key."""

from __future__ import annotations

import copy
from typing import List, NamedTuple, Sequence

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import tile_images

from sb3_isaac.backends.cartpole import CartpoleTensorEnv
from sb3_isaac.envs.cartpole_renderer import BACKGROUND, CartpoleRenderer, tile_size
from sb3_isaac.envs.vec_env import IsaacVecEnv

PUSH_SPEED = 1.5
"""What a push adds to the pole's angular velocity, to either side, in rad/s: what trained policies recover from as a rule."""
PUSH_FRAMES = 15
"""Frames that show the arrow of a push."""
GAP = 8
"""Pixels between the trained and the untrained. Even."""


class Tiles(NamedTuple):
    """One picture (height, width, 3) uint8 for each environment that is shown."""

    trained: List[np.ndarray]
    untrained: List[np.ndarray]


def n_rows(n_tiles: int) -> int:
    """Rows of the grid that SB3's ``tile_images`` makes of so many pictures."""
    return int(np.ceil(np.sqrt(n_tiles)))


def can_be_filmed(env: VecEnv) -> bool:
    """Whether the environments are cartpoles of this package in one batch: others cannot be pushed."""
    inner = env.unwrapped
    return isinstance(inner, IsaacVecEnv) and isinstance(inner.tensor_env, CartpoleTensorEnv)


class CartpoleFilm:
    """What happens to a batch of cartpoles while it is filmed, and how it looks. For :func:`~.video.play_frames`.

    The last ``n_untrained`` environments take uniformly random actions in the place of the model's. They stand in a column of
    their own; :func:`n_rows` tells how many make it as high as the grid of the others.

    :param env: cartpoles of this package, wrapped or not, of which the first ``env.num_envs - n_untrained`` are the model's
    :param caption: what is written over the model's
    :param n_untrained: how many, 0 or more
    :param push_every: every so many seconds (of the simulation) all poles are knocked, each to a side chosen by chance;
        0: never
    :param seed: of the random actions and the sides
    :raises ValueError: other environments, a number of untrained ones that leaves none to the model, a negative time
    """

    def __init__(
        self, env: VecEnv, caption: str = "trained", n_untrained: int = 0, push_every: float = 0.0, seed: int = 0
    ) -> None:
        inner = env.unwrapped
        if not isinstance(inner, IsaacVecEnv) or not isinstance(inner.tensor_env, CartpoleTensorEnv):
            raise ValueError(
                f"Only a batch of this package's cartpoles can be filmed with pushes or an untrained policy beside it, not "
                f"{type(inner).__name__}: play its frames without them."
            )
        if not 0 <= n_untrained < env.num_envs:
            raise ValueError(
                f"n_untrained must be from 0 to {env.num_envs - 1} of {env.num_envs} environments, got {n_untrained}."
            )
        if push_every < 0:
            raise ValueError(f"push_every must be 0 (never) or a number of seconds, got {push_every}.")
        self.env, self.tensor_env = inner, inner.tensor_env
        self.n_trained, self.n_untrained = env.num_envs - n_untrained, n_untrained
        self.push_every = max(round(push_every / self.tensor_env.task.dt), 1) if push_every > 0 else 0
        """Steps from one push to the next."""
        self.caption = caption
        self.n_steps = 0
        self.pushed = np.zeros(env.num_envs)
        """(N,): the sign of the last push, 0 before the first."""
        self._rng = np.random.default_rng(seed)
        self._action_space = copy.deepcopy(inner.action_space)
        self._action_space.seed(seed)
        self._renderer = CartpoleRenderer(env.num_envs)
        self._strips: List[np.ndarray] = []

    def before_step(self, actions: np.ndarray) -> np.ndarray:
        """Push if it is time, and return the actions (N, ...) to take, given the model's for all environments."""
        self.n_steps += 1
        if self.push_every and self.n_steps % self.push_every == 0:
            self.pushed = self._rng.choice([-1.0, 1.0], len(self.pushed))
            state = self.tensor_env.get_state()
            state["dof_state"][:, 3] += PUSH_SPEED * th.as_tensor(self.pushed, device=state["dof_state"].device)
            self.tensor_env.set_state(state)
        if self.n_untrained:
            actions = np.array(actions)
            actions[self.n_trained :] = [self._action_space.sample() for _ in range(self.n_untrained)]
        return actions

    def tiles(self) -> Tiles:
        """How each environment looks now."""
        state = self.tensor_env.render_state()
        # Not in an episode that began after the push
        age = self.n_steps % self.push_every if self.push_every else 0
        state["push"] = np.where((age < PUSH_FRAMES) & (state["progress"] > age), self.pushed, 0.0)
        returns = self.env.episode_returns.cpu().numpy()
        images = self._renderer.images(state, returns, tile_size(self.n_trained))
        return Tiles(images[: self.n_trained], images[self.n_trained :])

    def frame(self) -> np.ndarray:
        """All of them in one picture (height, width, 3) uint8, with captions and the key; height and width are even."""
        tiles = self.tiles()
        blocks = [np.asarray(tile_images(tiles.trained))]
        if tiles.untrained:
            blocks += [np.full((0, GAP, 3), BACKGROUND, dtype=np.uint8), np.concatenate(tiles.untrained)]
        picture = _side_by_side(blocks)
        if not self._strips:
            texts = [self.caption, "", "untrained: uniformly random actions"]
            captions = [self._renderer.caption(block.shape[1], text) for block, text in zip(blocks, texts)]
            self._strips = [_side_by_side(captions), self.key(picture.shape[1])]
        return np.concatenate([self._strips[0], picture, self._strips[1]])

    def key(self, width: int) -> np.ndarray:
        """What arrows and ticks mean, see :meth:`~sb3_isaac.envs.cartpole_renderer.CartpoleRenderer.key`."""
        return self._renderer.key(width, self.tensor_env.task.reset_dist, pushes=self.push_every > 0)


def _side_by_side(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures (height, width, 3) in one, from the left, lower ones filled up below."""
    height = max(len(block) for block in blocks)
    whole = np.full((height, sum(block.shape[1] for block in blocks), 3), BACKGROUND, dtype=np.uint8)
    left = 0
    for block in blocks:
        whole[: len(block), left : left + block.shape[1]] = block
        left += block.shape[1]
    return whole
