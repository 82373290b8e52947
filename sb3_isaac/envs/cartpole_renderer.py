"""Pictures of cartpoles, drawn with pygame's software surfaces: no display and no OpenGL needed.

pygame is what Gymnasium's own classic control draws with (https://gymnasium.farama.org/environments/classic_control).
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import tile_images

from sb3_isaac.envs.window import Window, import_pygame

BACKGROUND, BORDER, TEXT = (250, 249, 246), (226, 224, 217), (70, 74, 82)
RAIL, LIMIT, WHEEL = (150, 153, 160), (201, 92, 78), (58, 62, 70)
CART, POLE, JOINT, ARROW = (74, 105, 145), (217, 146, 84), (246, 236, 220), (62, 140, 118)
PUSH = (140, 82, 168)

SUPERSAMPLING = 2
"""Shapes are drawn this many times larger and then scaled down, which smooths their edges."""
MARGIN = 0.45
"""Metres of rail that a picture shows beyond ``reset_dist``."""
PICTURE_HEIGHT = 2.15
"""Metres of cart and pole that the picture's height shows. Along the rail a metre is shorter, so that all of the rail fits in
and the cart can still be seen. Angles are true."""
RAIL_HEIGHT = 0.74
"""The rail's place in the picture, from the top."""
POLE_LENGTH, POLE_WIDTH, CART_LENGTH, CART_HEIGHT = 0.97, 0.07, 0.36, 0.2
"""Metres (the pole's tip is 0.97 m above its joint in Isaac Gym's cartpole.urdf)."""
STRIP_HEIGHT = 32
"""Pixels of a caption or of the key. Even, as video codecs want it."""


def tile_size(n_tiles: int) -> Tuple[int, int]:
    """Width and height in pixels of one environment's picture, so that a grid of them fits on a screen. Both even."""
    return (640, 320) if n_tiles == 1 else (480, 240) if n_tiles <= 4 else (320, 160)


class CartpoleRenderer:
    """Draws the first environments of a batch: rail, cart, pole, force on the cart, step and return.

    The positive side of the rail is on the right: a positive force pushes to the right, a positive angle leans the pole to
    the left (the pole turns about +x while the cart moves along +y, so its tip moves towards -y).

    :param max_envs: how many environments are drawn at most
    :raises ImportError: pygame is missing
    """

    def __init__(self, max_envs: int) -> None:
        pygame = import_pygame()
        pygame.font.init()
        self._pygame = pygame
        self.max_envs = max_envs
        self._window = Window("Isaac Gym cartpole")
        self._scenes: Dict[Tuple[int, int, float], Tuple[Any, Any, Any]] = {}

    def images(
        self, render_state: Mapping[str, Any], returns: np.ndarray, size: Optional[Tuple[int, int]] = None
    ) -> List[np.ndarray]:
        """One (height, width, 3) uint8 RGB picture per environment.

        :param render_state: host copies from :meth:`~sb3_isaac.backends.base.TensorEnv.render_state`: dof_state (N, 4),
            force (N,) in newtons, progress (N,), max_effort, reset_dist, pole_length (or (N,) of them); and push (N,) where
            poles are knocked: the sign of the change of the pole's velocity, else 0
        :param returns: (N,), of the running episodes
        :param size: width and height of a picture, both even; default: :func:`tile_size`
        """
        n_tiles = min(len(render_state["dof_state"]), self.max_envs)
        return [self._draw(i, size or tile_size(n_tiles), render_state, returns) for i in range(n_tiles)]

    def grid(self, render_state: Mapping[str, Any], returns: np.ndarray) -> np.ndarray:
        """All pictures in one, tiled as SB3 tiles them: (height, width, 3) uint8."""
        return np.asarray(tile_images(self.images(render_state, returns)))

    def caption(self, width: int, text: str) -> np.ndarray:
        """A strip with a line of text in its middle: (STRIP_HEIGHT, width, 3) uint8."""
        strip = self._pygame.Surface((width, STRIP_HEIGHT))
        strip.fill(BACKGROUND)
        label = self._pygame.font.Font(None, 24).render(text, True, TEXT)
        strip.blit(label, ((width - label.get_width()) // 2, (STRIP_HEIGHT - label.get_height()) // 2))
        return self._pixels(strip)

    def key(self, width: int, reset_dist: float, pushes: bool = False) -> np.ndarray:
        """A strip that says what arrows and ticks mean: (STRIP_HEIGHT, width, 3) uint8, or two where it is narrow.

        :param width: in pixels, at least 400
        :param reset_dist: see :meth:`images`
        :param pushes: whether the arrow of a push is explained, too
        """
        entries = [(ARROW, "force on the cart"), (LIMIT, f"episode ends ({reset_dist:g} m)"), (RAIL, "1 m")]
        if pushes:
            entries.insert(1, (PUSH, "push on the pole"))
        lines = [entries[:2], entries[2:]] if pushes and width < 560 else [entries]
        return np.concatenate([self._key_line(width, line) for line in lines])

    def _key_line(self, width: int, entries: Sequence[Tuple[Tuple[int, int, int], str]]) -> np.ndarray:
        """A strip with what each colour stands for."""
        pygame = self._pygame
        font, icon, space = pygame.font.Font(None, 20), 34, 6
        labels = [font.render(text, True, TEXT) for _, text in entries]
        used = sum(icon + space + label.get_width() for label in labels)
        gap = min((width - used) // (len(labels) + 1), 40)
        lefts = [(width - used - gap * (len(labels) - 1)) // 2]
        for label in labels[:-1]:
            lefts.append(lefts[-1] + icon + space + label.get_width() + gap)

        large = pygame.Surface((width * SUPERSAMPLING, STRIP_HEIGHT * SUPERSAMPLING))
        large.fill(BACKGROUND)
        for left, (color, _) in zip(lefts, entries):
            start, end = left * SUPERSAMPLING, (left + icon) * SUPERSAMPLING
            middle, y = (start + end) / 2, STRIP_HEIGHT * SUPERSAMPLING / 2
            if color in (ARROW, PUSH):
                self._draw_arrow(large, color, start, end, y, head=7 * SUPERSAMPLING)
            else:  # a piece of rail with one tick, as in the pictures
                thick = 2.7 * SUPERSAMPLING
                pygame.draw.rect(large, RAIL, _rect(start, y - thick / 2, end - start, thick))
                above = 2.0 * thick if color is LIMIT else 0.0
                pygame.draw.rect(large, color, _rect(middle - thick / 2, y - above, thick, above + 2.5 * thick))
        strip = pygame.transform.smoothscale(large, (width, STRIP_HEIGHT))
        for left, label in zip(lefts, labels):
            strip.blit(label, (left + icon + space, (STRIP_HEIGHT - label.get_height()) // 2))
        return self._pixels(strip)

    def show(self, render_state: Mapping[str, Any], returns: np.ndarray, fps: int = 60) -> None:
        """Show the grid in a window, see :meth:`~sb3_isaac.envs.window.Window.show`."""
        self._window.show(self.grid(render_state, returns), fps)

    def close(self) -> None:
        """Close the window. Calling it twice is allowed."""
        self._window.close()

    def _draw(self, i: int, size: Tuple[int, int], render_state: Mapping[str, Any], returns: np.ndarray) -> np.ndarray:
        pygame = self._pygame
        position, _, angle, _ = (float(value) for value in render_state["dof_state"][i])
        # After a reset the force and the return still belong to the episode that ended.
        fresh = int(render_state["progress"][i]) == 0
        force = 0.0 if fresh else float(render_state["force"][i]) / float(render_state["max_effort"])
        episode_return = 0.0 if fresh else float(returns[i])
        push = float(render_state["push"][i]) if "push" in render_state and not fresh else 0.0

        reset_dist = float(render_state["reset_dist"])
        canvas, empty_rail, font = self._scene(size, reset_dist)
        canvas.blit(empty_rail, (0, 0))
        width, height = canvas.get_size()
        metre = width / (2 * (reset_dist + MARGIN))
        lengths = render_state.get("pole_length", 1.0)
        length = POLE_LENGTH * float(lengths if np.ndim(lengths) == 0 else lengths[i])
        self._draw_cartpole(canvas, width / 2 + position * metre, RAIL_HEIGHT * height, angle, force, push, length)
        tile = pygame.transform.smoothscale(canvas, size)

        for text, anchor in ((f"step {int(render_state['progress'][i])}", "left"), (f"return {episode_return:.1f}", "right")):
            label = font.render(text, True, TEXT)
            x = 8 if anchor == "left" else size[0] - 8 - label.get_width()
            tile.blit(label, (x, size[1] - 4 - label.get_height()))
        return self._pixels(tile)

    def _pixels(self, surface: Any) -> np.ndarray:
        width, height = surface.get_size()
        # faster than pygame.surfarray, which is column by column
        pixels = bytearray(self._pygame.image.tostring(surface, "RGB"))
        return np.frombuffer(pixels, dtype=np.uint8).reshape(height, width, 3)

    def _draw_arrow(self, canvas: Any, color: Tuple[int, int, int], start: float, tip: float, y: float, head: float) -> None:
        """A horizontal arrow from pixel (start, y) to (tip, y) with a head of that half height."""
        side = math.copysign(1.0, tip - start)
        shaft = (start, y - head / 4, tip - side * head - start, head / 2)
        self._pygame.draw.rect(canvas, color, _rect(*shaft))
        barb = tip - side * 1.3 * head
        self._pygame.draw.polygon(canvas, color, [(tip, y), (barb, y - head), (barb, y + head)])

    def _draw_cartpole(self, canvas: Any, x: float, y: float, angle: float, force: float, push: float, length: float) -> None:
        """Cart at pixel (x, y), pole of ``length`` metres at ``angle`` from upright.

        Arrows for ``force`` in [-1, 1] and the sign of ``push``.
        """
        pygame = self._pygame
        metre = canvas.get_height() / (PICTURE_HEIGHT * max(length / POLE_LENGTH, 1.0))  # a longer pole makes all smaller
        half_length, cart_height = CART_LENGTH / 2 * metre, CART_HEIGHT * metre
        top = y - cart_height
        if abs(force) > 0.0025:
            # The square root shows both the 400 N of a beginner and the few newtons of a trained policy.
            side, strength = math.copysign(1.0, force), math.sqrt(abs(force))
            start, tip = x + side * half_length, x + side * (half_length + metre * (0.1 + 0.65 * strength))
            self._draw_arrow(canvas, ARROW, start, tip, y - cart_height / 2, head=0.11 * metre)
        for wheel_x in (x - 0.6 * half_length, x + 0.6 * half_length):
            pygame.draw.circle(canvas, WHEEL, (wheel_x, y), 0.045 * metre)
        cart = _rect(x - half_length, top, 2 * half_length, cart_height - 0.02 * metre)
        pygame.draw.rect(canvas, CART, cart, border_radius=int(0.05 * metre))
        # The joint sits in the cart's upper half; a positive angle leans the pole to the left.
        joint_y, radius = top + cart_height / 3, POLE_WIDTH / 2 * metre
        up, along = (-math.sin(angle), -math.cos(angle)), (math.cos(angle), -math.sin(angle))
        tip_x, tip_y = x + up[0] * length * metre, joint_y + up[1] * length * metre
        corners = [(x, joint_y, -1), (x, joint_y, 1), (tip_x, tip_y, 1), (tip_x, tip_y, -1)]
        outline = [(cx + side * radius * along[0], cy + side * radius * along[1]) for cx, cy, side in corners]
        pygame.draw.polygon(canvas, POLE, outline)
        pygame.draw.circle(canvas, POLE, (tip_x, tip_y), radius)
        pygame.draw.circle(canvas, JOINT, (x, joint_y), radius)
        if push != 0.0:  # more velocity to the positive side turns the tip to the left
            side = -math.copysign(1.0, push)
            end = tip_x - side * 1.5 * radius
            self._draw_arrow(canvas, PUSH, end - side * 0.42 * metre, end, tip_y, head=0.11 * metre)

    def _scene(self, size: Tuple[int, int], reset_dist: float) -> Tuple[Any, Any, Any]:
        """A canvas to draw on and the empty rail to start from, both SUPERSAMPLING times the size, and a font; made once."""
        key = (*size, reset_dist)
        if key not in self._scenes:
            pygame = self._pygame
            width, height = size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING
            rail = pygame.Surface((width, height))
            rail.fill(BACKGROUND)
            pygame.draw.rect(rail, BORDER, rail.get_rect(), width=SUPERSAMPLING)
            y, thick = RAIL_HEIGHT * height, height / 60
            pygame.draw.rect(rail, RAIL, _rect(0, y, width, thick))
            metre = width / (2 * (reset_dist + MARGIN))
            for metres in range(-int(reset_dist), int(reset_dist) + 1):
                pygame.draw.rect(rail, RAIL, _rect(width / 2 + metres * metre - thick / 4, y, thick / 2, 2 * thick))
            for side in (-1, 1):
                x = width / 2 + side * reset_dist * metre
                pygame.draw.rect(rail, LIMIT, _rect(x - thick / 2, y - 2 * thick, thick, 5 * thick))
            font = pygame.font.Font(None, size[1] // 8)  # the one that comes with pygame
            self._scenes[key] = (pygame.Surface((width, height)), rail, font)
        return self._scenes[key]


def _rect(x: float, y: float, width: float, height: float) -> Tuple[int, int, int, int]:
    """A rectangle in whole pixels; a negative width extends to the left."""
    left, right = sorted((round(x), round(x + width)))
    return left, round(y), max(right - left, 1), max(round(height), 1)
