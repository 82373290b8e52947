"""Videos of a policy at work: mp4 and gif, written by the ffmpeg that imageio-ffmpeg brings along. No display needed."""

from __future__ import annotations

import contextlib
import itertools
import os
from typing import Any, Callable, Dict, Iterable, Iterator, Optional, Sequence, Tuple, Union

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_isaac.evaluation.film import CartpoleFilm
from sb3_isaac.evaluation.measure import check_spaces
from sb3_isaac.files.atomic import check_place, replacing

GIF_FPS = 30
"""Viewers slow down gifs that are faster than this; frames are left out to keep the speed of the motion."""

# yuv420p is what every player understands. A gif has 256 colours: they are chosen from the first frames only, so that ffmpeg
# need not hold the whole film in memory.
FFMPEG_OPTIONS: Dict[str, Dict[str, Any]] = {
    ".mp4": {"codec": "libx264", "pix_fmt_out": "yuv420p", "output_params": ["-preset", "veryfast", "-f", "mp4"]},
    ".gif": {
        "codec": "gif",
        "pix_fmt_out": "pal8",
        "output_params": [
            "-filter_complex",
            f"fps={GIF_FPS},split[a][b];[a]trim=end_frame=20,palettegen[p];[b][p]paletteuse=dither=none",
            *("-f", "gif"),
        ],
    },
}


def check_video_path(path: str) -> None:
    """Whether a video can be written there.

    :raises ValueError: the name ends neither in .mp4 nor in .gif
    :raises ImportError: imageio-ffmpeg is missing
    :raises RuntimeError: it has found no ffmpeg
    """
    if os.path.splitext(path)[1].lower() not in FFMPEG_OPTIONS:
        raise ValueError(f"Cannot write a video to {path!r}: the name must end in {' or '.join(FFMPEG_OPTIONS)}.")
    try:
        import imageio_ffmpeg  # type: ignore[import-untyped]

        imageio_ffmpeg.get_ffmpeg_exe()
    except ImportError as error:
        raise ImportError(
            "Videos need imageio-ffmpeg, which comes with the extra 'plots': pip install imageio-ffmpeg."
        ) from error
    except RuntimeError as error:
        raise RuntimeError(
            "Writing videos needs ffmpeg, and none was found: install ffmpeg, or set IMAGEIO_FFMPEG_EXE to its path."
        ) from error


def write_video(paths: Union[str, Sequence[str]], frames: Iterable[np.ndarray], fps: int = 60) -> int:
    """Encode frames as they come. Files that are already there are replaced only by complete new ones.

    :param paths: one file or several, ending in .mp4 or .gif; folders are made where needed
    :param frames: (height, width, 3) uint8, all of one size, height and width even
    :param fps: frames per second
    :return: the number of frames
    :raises ValueError: no frame at all, or see :func:`check_video_path`
    :raises OSError: a file cannot be written
    :raises RuntimeError: ffmpeg fails, for example without the codec
    """
    paths = [paths] if isinstance(paths, str) else paths
    for path in paths:
        check_video_path(path)
        check_place(path)
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"No frames to write to {', '.join(paths)}.")
    n_frames = 0
    with contextlib.ExitStack() as stack:
        encoders = [stack.enter_context(_encoder(path, first.shape, fps)) for path in paths]
        for frame in itertools.chain([first], frames):
            for encode in encoders:
                encode(frame)
            n_frames += 1
    return n_frames


@contextlib.contextmanager
def _encoder(path: str, shape: Tuple[int, ...], fps: int) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that takes the frames of one file, each of the given shape (height, width, 3)."""
    import imageio_ffmpeg

    options = FFMPEG_OPTIONS[os.path.splitext(path)[1].lower()]
    with replacing(path) as temporary:
        settings = {"fps": fps, "macro_block_size": 2, "ffmpeg_log_level": "error", **options}
        writer = imageio_ffmpeg.write_frames(temporary, (shape[1], shape[0]), **settings)
        writer.send(None)

        def encode(frame: np.ndarray) -> None:
            with _ffmpeg_errors(path, options["codec"]):
                writer.send(frame)

        try:
            yield encode
            with _ffmpeg_errors(path, options["codec"]):
                writer.close()
                if os.path.getsize(temporary) == 0:
                    raise OSError("no output")
        finally:
            writer.close()


@contextlib.contextmanager
def _ffmpeg_errors(path: str, codec: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        check_place(path)  # the disk may have become full, which ffmpeg alone would know
        raise RuntimeError(
            f"ffmpeg could not write {path} with the codec {codec} (its own message stands above): try the other format "
            "(.mp4 or .gif), or another ffmpeg by setting IMAGEIO_FFMPEG_EXE to its path."
        ) from error


def play_frames(
    model: Any, env: VecEnv, n_frames: int, deterministic: bool = True, film: Optional[CartpoleFilm] = None
) -> Iterator[np.ndarray]:
    """Reset the environments, let the model act, and yield a picture of them after each step.

    :param model: anything with SB3's ``predict``
    :param env: made with ``render_mode="rgb_array"``
    :param n_frames: how many steps, one picture each
    :param film: of the same environments: an untrained policy beside the model, pushes, captions and a key; the
        environments need no ``render_mode`` then
    :raises ValueError: the model was trained for other observations or actions
    :raises RuntimeError: the environment does not render to arrays
    """
    check_spaces(model, env)
    obs: Any = env.reset()
    state, starts = None, np.ones(env.num_envs, dtype=bool)
    for _ in range(n_frames):
        actions, state = model.predict(obs, state=state, episode_start=starts, deterministic=deterministic)
        if film is not None:
            actions = film.before_step(actions)
        obs, _, starts, _ = env.step(actions)
        frame = env.render() if film is None else film.frame()
        if not isinstance(frame, np.ndarray):
            raise RuntimeError(
                f"The environment returns no pictures: make it with render_mode='rgb_array', not {env.render_mode!r}."
            )
        yield frame
