"""Pictures: the right signs, legible text, no display needed."""

from __future__ import annotations

import sys
import time
from typing import Any, Callable, Dict

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_isaac.backends.physics import integrate

pygame = pytest.importorskip("pygame", reason="pictures need the extra 'plots'")
from sb3_isaac.envs import cartpole_renderer  # noqa: E402
from sb3_isaac.envs.cartpole_renderer import CartpoleRenderer, tile_size  # noqa: E402
from tests.conftest import DISCRETE, make_env  # noqa: E402


def state(n_envs: int = 1, x: float = 0.0, angle: float = 0.0, force: float = 0.0, step: int = 7) -> Dict[str, Any]:
    return {
        "dof_state": np.tile(np.array([x, 0.0, angle, 0.0], dtype=np.float32), (n_envs, 1)),
        "force": np.full(n_envs, force, dtype=np.float32),
        "progress": np.full(n_envs, step),
        "max_effort": 400.0,
        "reset_dist": 3.0,
    }


def returns(n_envs: int = 1, value: float = 12.5) -> np.ndarray:
    return np.full(n_envs, value)


def columns(image: np.ndarray, color: Any) -> np.ndarray:
    """The x of all pixels that are nearly of this colour."""
    near = np.abs(image.astype(int) - np.array(color)).sum(axis=-1) < 30
    return near.nonzero()[1]


def draw(**kwargs: Any) -> np.ndarray:
    (image,) = CartpoleRenderer(1).images(state(**kwargs), returns())
    return image


def test_upright_pole_stands_over_its_cart() -> None:
    image = draw()
    middle = (image.shape[1] - 1) / 2
    for color in (cartpole_renderer.POLE, cartpole_renderer.CART):
        assert columns(image, color).size > 100
        assert columns(image, color).mean() == pytest.approx(middle, abs=1.5)
    assert columns(image, cartpole_renderer.ARROW).size == 0


@pytest.mark.parametrize("side", [-1, 1])
def test_signs(side: int) -> None:
    """Physics decides: a push to the positive side moves the cart there and leaves the pole's tip behind."""
    start, force = th.zeros(1, 4), th.full((1,), side * 400.0)
    after = start
    for _ in range(3):
        after = integrate(after, force)
    x, _, angle, _ = after[0].tolist()
    assert x * side > 0 and angle * side > 0
    before, image = draw(), draw(x=x, angle=angle, force=side * 400.0)
    cart = columns(image, cartpole_renderer.CART).mean()
    assert (cart - columns(before, cartpole_renderer.CART).mean()) * side > 2, "the cart has moved to the side of the force"
    assert (columns(image, cartpole_renderer.ARROW).mean() - cart) * side > 20, "the arrow points to the side of the force"
    assert (columns(image, cartpole_renderer.POLE).mean() - cart) * side < -2, "the tip stays behind"


def test_angle_is_true_to_scale() -> None:
    image = draw(angle=0.5)
    y, x = (np.abs(image.astype(int) - np.array(cartpole_renderer.POLE)).sum(axis=-1) < 30).nonzero()
    slope = np.polyfit(y, x, 1)[0]
    assert np.arctan(slope) == pytest.approx(0.5, abs=0.03)


def test_a_larger_force_has_a_longer_arrow() -> None:
    sizes = [columns(draw(force=force), cartpole_renderer.ARROW).size for force in (0.0, 4.0, 100.0, 400.0)]
    assert sizes[0] == 0
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("side", [-1, 1])
def test_the_arrow_of_a_push_points_where_the_tip_goes(side: int) -> None:
    pushed = integrate(th.tensor([[0.0, 0.0, 0.0, 1.5 * side]]), th.zeros(1))[0, 2].item()
    before, after = draw(), draw(angle=pushed * 5)
    tip = columns(before, cartpole_renderer.POLE).mean()
    moved = columns(after, cartpole_renderer.POLE).mean() - tip
    (image,) = CartpoleRenderer(1).images({**state(), "push": np.array([1.5 * side])}, returns())
    arrow = columns(image, cartpole_renderer.PUSH)
    widest = np.bincount(arrow).argmax()  # where the head begins
    assert moved * (tip - arrow.mean()) > 0, "it comes from the other side"
    assert moved * (widest - arrow.mean()) > 0, "its head is in front"
    assert columns(before, cartpole_renderer.PUSH).size == 0
    (fresh,) = CartpoleRenderer(1).images({**state(step=0), "push": np.array([1.0])}, returns())
    assert columns(fresh, cartpole_renderer.PUSH).size == 0, "a push does not outlive its episode"


def test_captions_and_key() -> None:
    renderer = CartpoleRenderer(1)
    assert renderer.caption(320, "trained").shape == (32, 320, 3)
    assert (renderer.caption(320, "trained") != renderer.caption(320, "")).any()
    for width in (400, 480, 560, 640, 1608):
        alone, with_push = renderer.key(width, 3.0), renderer.key(width, 3.0, pushes=True)
        assert alone.shape == (32, width, 3) and with_push.shape == (32 if width >= 560 else 64, width, 3)
        explained = [cartpole_renderer.ARROW, cartpole_renderer.LIMIT, cartpole_renderer.RAIL]
        assert all(columns(strip, color).size > 20 for strip in (alone, with_push) for color in explained)
        assert columns(alone, cartpole_renderer.PUSH).size == 0 and columns(with_push, cartpole_renderer.PUSH).size > 20
        for strip in (alone, with_push):
            margin = np.abs(strip[:, [0, -1]].astype(int) - np.array(cartpole_renderer.BACKGROUND)).max()
            assert margin == 0, "nothing is cut off"
    assert (renderer.key(640, 3.0) != renderer.key(640, 2.0)).any()


def test_text_shows_step_and_return() -> None:
    renderer = CartpoleRenderer(1)
    strip = [renderer.images(state(step=s), returns(value=r))[0][-50:] for s, r in ((7, 12.5), (8, 12.5), (7, 13.5))]
    left, right = np.s_[:, :320], np.s_[:, 320:]
    assert (strip[0][left] != strip[1][left]).any() and (strip[0][right] == strip[1][right]).all()
    assert (strip[0][left] == strip[2][left]).all() and (strip[0][right] != strip[2][right]).any()
    for n_envs in (1, 16):  # legible in the smallest pictures too: digits at least 9 pixels high
        image = CartpoleRenderer(16).images(state(n_envs), returns(n_envs))[0]
        dark = (np.abs(image.astype(int) - np.array(cartpole_renderer.TEXT)).sum(axis=-1) < 60)[-image.shape[0] // 5 :]
        assert np.ptp(dark.any(axis=1).nonzero()[0]) >= 9


def test_edges_are_smooth() -> None:
    colors = np.unique(draw(angle=0.3).reshape(-1, 3), axis=0)
    assert len(colors) > 50  # eight without antialiasing


def test_after_a_reset_nothing_is_left_of_the_old_episode() -> None:
    image = draw(force=400.0, step=0)
    assert columns(image, cartpole_renderer.ARROW).size == 0
    (expected,) = CartpoleRenderer(1).images(state(step=0), returns(value=0.0))
    assert (image == expected).all()


@pytest.mark.parametrize("n_envs, n_tiles, grid", [(1, 1, (320, 640)), (3, 3, (480, 960)), (40, 16, (640, 1280))])
def test_sizes(n_envs: int, n_tiles: int, grid: Any) -> None:
    renderer = CartpoleRenderer(16)
    images = renderer.images(state(n_envs), returns(n_envs))
    width, height = tile_size(n_tiles)
    assert [(image.shape, image.dtype) for image in images] == [((height, width, 3), np.dtype(np.uint8))] * n_tiles
    frame = renderer.grid(state(n_envs), returns(n_envs))
    assert frame.shape == (*grid, 3)
    assert grid[0] % 2 == grid[1] % 2 == 0, "video codecs want even sizes"


def test_a_grid_of_16_is_fast() -> None:
    """A few times what smoothing its pictures takes, which has to be done: a bound in seconds would hang on the machine."""
    renderer, canvas = CartpoleRenderer(16), pygame.Surface((640, 320))
    arguments = state(16, angle=0.3, force=100.0), returns(16)

    def seconds(function: Callable[[], Any], times: int) -> float:
        start = time.process_time()
        for _ in range(times):
            function()
        return time.process_time() - start

    renderer.grid(*arguments)  # makes what is made once
    rounds = [
        (seconds(lambda: renderer.grid(*arguments), 3), seconds(lambda: pygame.transform.smoothscale(canvas, (320, 160)), 48))
        for _ in range(5)
    ]
    drawing, smoothing = (min(column) for column in zip(*rounds))
    assert drawing < 8 * smoothing


def test_vec_env_and_single_env_render() -> None:
    env = make_env(n_envs=4, render_mode="rgb_array")
    env.reset()
    first = env.render()
    assert first is not None and first.shape == (480, 960, 3)
    kept = first.copy()
    env.step(np.ones((4, 1), dtype=np.float32))
    second = env.render()
    assert (first == kept).all() and (first != second).any()
    env.close()
    single = gym.make(DISCRETE, render_mode="rgb_array", device="cpu")
    single.reset(seed=0)
    single.step(2)
    assert np.asarray(single.render()).shape == (320, 640, 3)
    single.close()


def test_window_without_display_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    env = make_env(render_mode="human")
    env.reset()
    with pytest.raises(RuntimeError, match="Cannot open a window .*use render_mode='rgb_array'"):
        env.render()
    env.close()


def test_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    renderer = CartpoleRenderer(4)
    renderer.show(state(4), returns(4), fps=1000)
    shown = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
    assert (shown == renderer.grid(state(4), returns(4))).all()
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    with pytest.raises(KeyboardInterrupt):  # closing the window stops the program
        renderer.show(state(4), returns(4), fps=1000)
    assert pygame.display.get_surface() is None
    renderer.close()


def test_without_pygame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(ImportError, match=r"extra 'plots': pip install pygame"):
        CartpoleRenderer(1)
