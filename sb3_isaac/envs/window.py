"""A window that shows pictures as they come, with pygame."""

from __future__ import annotations

import os
from typing import Any, Tuple

import numpy as np


def import_pygame() -> Any:
    """:raises ImportError: pygame is missing"""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import pygame
    except ImportError as error:
        raise ImportError("Pictures need pygame, which comes with the extra 'plots': pip install pygame.") from error
    return pygame


class Window:
    """Opened with the first picture, and closed by :meth:`close` or by the user.

    :raises ImportError: pygame is missing
    """

    def __init__(self, caption: str) -> None:
        self._pygame = import_pygame()
        self.caption = caption
        self._window: Any = None
        self._clock: Any = None

    def show(self, picture: np.ndarray, fps: int = 60) -> None:
        """Show a picture (height, width, 3) uint8, at most ``fps`` times a second.

        :raises RuntimeError: this machine has no display
        :raises KeyboardInterrupt: the window was closed, which stops the program as Ctrl-C does
        """
        pygame = self._pygame
        frame = picture.swapaxes(0, 1)
        if self._window is None:
            self._window = self._open(frame.shape[:2])
            self._clock = pygame.time.Clock()
        pygame.surfarray.blit_array(self._window, frame)
        pygame.display.flip()
        if any(event.type == pygame.QUIT for event in pygame.event.get()):
            self.close()
            raise KeyboardInterrupt
        self._clock.tick(fps)

    def close(self) -> None:
        """Close the window. Calling it twice is allowed."""
        if self._window is not None:
            self._pygame.display.quit()
            self._window = None

    def _open(self, size: Tuple[int, int]) -> Any:
        pygame = self._pygame
        problem = None
        try:
            pygame.display.init()
            # Where there is no display SDL silently draws to nowhere; that is right only for those who asked for it.
            if pygame.display.get_driver() in ("offscreen", "dummy") and "SDL_VIDEODRIVER" not in os.environ:
                problem = "there is no display"
        except pygame.error as error:
            problem = str(error)
        if problem is not None:
            pygame.display.quit()
            raise RuntimeError(
                f"Cannot open a window ({problem}): use render_mode='rgb_array', 'sb3-isaac video', or --no-render with enjoy."
            )
        window = pygame.display.set_mode(size)
        pygame.display.set_caption(self.caption)
        return window
