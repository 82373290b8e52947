"""Videos, learning curves, the commands that make them, and rl_zoo3's own scripts on our logs."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any, Iterator, List, Tuple

import numpy as np
import pytest
import torch as th
import yaml
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import ResultsWriter

import sb3_isaac

pytest.importorskip("pygame", reason="pictures need the extra 'plots'")
imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="videos need the extra 'plots'")
pytest.importorskip("matplotlib", reason="plots need the extra 'plots'").use("Agg")
from matplotlib import pyplot  # noqa: E402

import sb3_isaac.zoo  # noqa: E402
from sb3_isaac.cli import commands, dispatch  # noqa: E402
from sb3_isaac.envs.cartpole_renderer import PUSH  # noqa: E402
from sb3_isaac.evaluation import curves, video  # noqa: E402
from sb3_isaac.evaluation import film as film_module  # noqa: E402
from sb3_isaac.evaluation.callbacks import RewardLog  # noqa: E402
from sb3_isaac.evaluation.film import CartpoleFilm  # noqa: E402
from sb3_isaac.evaluation.video import play_frames, write_video  # noqa: E402
from sb3_isaac.files import atomic  # noqa: E402
from tests.conftest import CONTINUOUS, DATA, DISCRETE, make_env, run_python  # noqa: E402
from tests.evaluation.conftest import balancing_model  # noqa: E402


def make_runs(folder: Path, n_runs: int, algo: str = "ppo", env_id: str = CONTINUOUS) -> List[Path]:
    """Folders as rl_zoo3 leaves them: model, settings, 300 training episodes and 5 evaluations each."""
    env = make_env(env_id, 2)
    model = balancing_model(env) if env_id == CONTINUOUS else PPO("MlpPolicy", env, device="cpu")
    runs = [folder / algo / f"{env_id}_{i + 1}" for i in range(n_runs)]
    for i, run in enumerate(runs):
        (run / env_id).mkdir(parents=True)
        model.save(run / f"{env_id}.zip")
        (run / env_id / "config.yml").write_text("n_envs: 2\nnormalize: false\n")
        arguments = yaml.dump({"env": env_id, "seed": i, "env_kwargs": {"max_episode_length": 100}})
        (run / env_id / "args.yml").write_text(arguments)
        writer = ResultsWriter(str(run / "0"), header={"t_start": 1000.0, "env_id": env_id})
        for k in range(300):
            writer.write_row({"r": k + 10.0 * i, "l": 10 + k, "t": 0.1 * (k + 1)})
        writer.close()
        results = 100.0 * np.arange(5)[:, None] + i + np.zeros((5, 8))
        rows = "".join(f"{100 * k},{100 * k + 99},{k / 50},2\n" for k in range(50))
        (run / "reward_rate.csv").write_text("window_first_step,window_last_step,mean_reward,n_envs\n" + rows)
        np.savez(run / "evaluations.npz", timesteps=1000 * np.arange(1, 6), results=results, ep_lengths=results.astype(int))
    return runs


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    make_runs(folder, 3)
    return folder


def read_video(path: Path) -> Tuple[Tuple[int, int], List[np.ndarray]]:
    frames = imageio_ffmpeg.read_frames(str(path))
    width, height = next(frames)["size"]
    return (height, width), [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in frames]


def squares(n: int = 30) -> Iterator[np.ndarray]:
    for i in range(n):
        frame = np.full((64, 96, 3), 240, dtype=np.uint8)
        frame[20:40, 2 * i : 2 * i + 20] = (30, 60, 200)
        yield frame


# -- videos ----------------------------------------------------------------------------------------------------------


def test_mp4_and_gif_hold_the_frames(tmp_path: Path) -> None:
    paths = [tmp_path / "new" / name for name in ("a.mp4", "a.gif")]
    assert write_video([str(path) for path in paths], squares(), fps=60) == 30
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["a.gif", "a.mp4"]
    (size, movie), (gif_size, gif) = read_video(paths[0]), read_video(paths[1])
    assert size == gif_size == (64, 96)
    assert len(movie) == 30 and len(gif) == 15, "a gif has every second frame, so that it plays at the same speed"
    for frame, original in zip(movie, squares()):
        assert np.abs(frame.astype(int) - original).mean() < 6
    assert np.abs(gif[7].astype(int) - list(squares())[14]).mean() < 6


def test_a_grid_of_16(tmp_path: Path) -> None:
    env = make_env(n_envs=16, render_mode="rgb_array")
    write_video(str(tmp_path / "grid.mp4"), play_frames(balancing_model(env), env, 30))
    size, frames = read_video(tmp_path / "grid.mp4")
    assert size == (640, 1280) and len(frames) == 30
    assert np.abs(frames[0].astype(int) - frames[29]).max() > 100, "it moves"


def test_missing_codec_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(video.FFMPEG_OPTIONS, ".mp4", {**video.FFMPEG_OPTIONS[".mp4"], "codec": "no_such_codec"})
    path = tmp_path / "a.mp4"
    path.write_bytes(b"an older video")
    with pytest.raises(RuntimeError, match="could not write .*a.mp4 with the codec no_such_codec .*try the other format"):
        write_video(str(path), squares())
    assert path.read_bytes() == b"an older video"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EACCES])
def test_where_nothing_can_be_written_no_codec_is_blamed(
    kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: Path
) -> None:
    def refuse(name: str, *args: Any) -> Any:
        raise OSError(kind, os.strerror(kind), name)

    path = tmp_path / "a.gif"
    path.write_bytes(b"an older video")
    monkeypatch.setattr(atomic, "open", refuse, raising=False)
    with pytest.raises(OSError, match=os.strerror(kind)) as raised:
        write_video(str(path), squares())
    assert raised.value.filename == str(path)
    agent = ["--env", CONTINUOUS, "-f", str(logs), "--device", "cpu"]
    for command, name in ((commands.video, "a.gif"), (commands.export, "a.pt")):
        with pytest.raises(OSError, match=f"^Cannot write .*{name}: {os.strerror(kind)}.* Name another file with -o.$"):
            command([*agent, "-o", str(tmp_path / name)])
    assert path.read_bytes() == b"an older video" and [entry.name for entry in tmp_path.iterdir()] == ["a.gif"]


def test_a_disk_that_gets_full_while_ffmpeg_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: List[str] = []

    def check_place(path: str) -> None:
        calls.append(path)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    monkeypatch.setitem(video.FFMPEG_OPTIONS, ".mp4", {**video.FFMPEG_OPTIONS[".mp4"], "codec": "no_such_codec"})
    monkeypatch.setattr(video, "check_place", check_place)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        write_video(str(tmp_path / "a.mp4"), squares())


def test_interrupted_video_keeps_the_old_file(tmp_path: Path) -> None:
    def interrupted() -> Iterator[np.ndarray]:
        yield from squares(3)
        raise KeyboardInterrupt

    path = tmp_path / "a.gif"
    path.write_bytes(b"an older video")
    with pytest.raises(KeyboardInterrupt):
        write_video(str(path), interrupted())
    assert path.read_bytes() == b"an older video"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.gif"]


def test_video_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"must end in \.mp4 or \.gif"):
        write_video("a.avi", squares())
    with pytest.raises(ValueError, match="No frames"):
        write_video(str(tmp_path / "a.mp4"), [])
    env = make_env(n_envs=2)
    with pytest.raises(ValueError, match="trained for actions Box"):
        discrete = make_env(DISCRETE, 2, render_mode="rgb_array")
        next(play_frames(balancing_model(env), discrete, 1))
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="make it with render_mode='rgb_array', not None"):
        next(play_frames(balancing_model(env), env, 1))
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: (_ for _ in ()).throw(RuntimeError("No ffmpeg exe")))
    with pytest.raises(RuntimeError, match="install ffmpeg, or set IMAGEIO_FFMPEG_EXE"):
        video.check_video_path("a.mp4")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ImportError, match="extra 'plots': pip install imageio-ffmpeg"):
        video.check_video_path("a.mp4")


# -- commands --------------------------------------------------------------------------------------------------------


def test_evaluate_prints_a_table(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--env", CONTINUOUS, "-f", str(logs), "--exp-id", "2", "--device", "cpu"]
    assert commands.evaluate([*flags, "--n-episodes", "30"]) == 0
    table = {line[:26].strip(): line[26:] for line in capsys.readouterr().out.splitlines()}
    assert table["model"].endswith(f"{CONTINUOUS}_2/{CONTINUOUS}.zip") and table["environment"] == f"{CONTINUOUS}, 30 at once"
    assert (table["episodes"], table["failures"], table["time-outs"]) == ("30", "0", "30")
    assert table["mean length"] == "99.0 steps", "max_episode_length is that of the training run"
    assert 98 < float(table["mean return"].split()[0]) < 99
    low, high = (float(number) for number in table["95% interval of the mean"].split(" to "))
    assert 98 < low < high < 99
    assert (
        commands.evaluate([*flags, "-n", "4", "--n-envs", "2", "--env-kwargs", "max_episode_length:50", "--stochastic"]) == 0
    )
    out = capsys.readouterr().out
    assert "2 at once" in out and "stochastic" in out


def test_video_writes_both_formats_beside_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = make_runs(tmp_path, 1)
    flags = ["--env", CONTINUOUS, "-f", str(tmp_path), "--device", "cpu", "--n-envs", "4"]
    assert commands.video([*flags, "-n", "12"]) == 0
    written = sorted(path.name for path in (run / "videos").iterdir())
    assert written == [f"final-model-ppo-{CONTINUOUS}.gif", f"final-model-ppo-{CONTINUOUS}.mp4"]
    assert capsys.readouterr().out.count("Wrote ") == 2
    size, frames = read_video(run / "videos" / written[1])
    assert size == (32 + 480 + 32, 960 + 8 + 480) and len(frames) == 12, "two by two, and a column of two without training"
    assert commands.video([*flags, "-n", "4", "-o", str(tmp_path / "own.gif")]) == 0
    assert (tmp_path / "own.gif").is_file()
    for command in (["-n", "0"], ["-o", "movie.avi"], ["--push", "-1"], ["--push", "nan"]):
        with pytest.raises(ValueError, match="at least 1|must end in|--push must be a number of at least 0"):
            commands.video([*flags, *command])


def test_what_the_video_command_films(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_runs(tmp_path, 1)
    films: List[Any] = []
    monkeypatch.setattr(commands, "play_frames", lambda *args, film, **kwargs: films.append(film) or iter(()))
    monkeypatch.setattr(commands, "write_video", lambda *args: 0)
    flags = ["--env", CONTINUOUS, "-f", str(tmp_path), "--device", "cpu", "-o", "a.mp4"]
    for more in ([], ["--n-envs", "1", "--push", "0.5"], ["--n-envs", "99", "--push", "0", "--no-untrained", "--stochastic"]):
        assert commands.video([*flags, *more]) == 0
        said = "The video shows 16 environments, not 99: there is no room for more.\n"
        assert (said in capsys.readouterr().out) == ("99" in more)
    assert [(film.n_trained, film.n_untrained) for film in films] == [(16, 4), (1, 1), (16, 0)]
    assert [film.push_every for film in films] == [120, 30, 0], "steps of 0.0166 s"
    assert films[0].caption == "trained: PPO" and films[2].caption == "trained: PPO, stochastic"


# -- films -----------------------------------------------------------------------------------------------------------


def test_a_film_pushes_the_poles_and_leaves_the_last_to_chance() -> None:
    env = make_env(n_envs=5)
    taken, velocities = [], []
    step = env.tensor_env.step

    def remember(actions: th.Tensor) -> Any:
        taken.append(actions.clone())
        velocities.append(env.tensor_env.dof_state[:, 3].clone())
        return step(actions)

    env.tensor_env.step = remember
    film = CartpoleFilm(env, "trained", n_untrained=2, push_every=0.083, seed=3)
    assert film.push_every == 5
    before, frames = [], []
    for frame in play_frames(balancing_model(env), env, 11, film=film):
        before.append(env.tensor_env.dof_state[:, 3].clone())
        frames.append(frame)
    actions = th.stack(taken)
    obs_independent = actions[:, 3:]
    assert obs_independent.min() < -0.5 and obs_independent.max() > 0.5 and obs_independent.unique().numel() == 22
    assert actions[:, :3].abs().max() < 0.5, "the controller is gentle, even when it was pushed"
    changes = th.stack([now - then for now, then in zip(velocities[1:], before)])  # between two steps
    pushed = changes.abs().max(dim=1).values > 0
    assert pushed.nonzero().flatten().tolist() == [3, 8], "before the fifth and the tenth step"
    assert th.allclose(changes[3].abs(), th.full((5,), film_module.PUSH_SPEED)), "every pole, to one of the sides"
    assert frames[0].shape == (32 + 480 + 32, 960 + 8 + 480, 3) and frames[0].dtype == np.uint8
    purple = [(np.abs(frame[32:-32].astype(int) - np.array(PUSH)).sum(axis=-1) < 30).sum() for frame in frames]
    assert purple[3] == 0 and min(purple[4:]) > 300, "the arrow is seen from the push on"


def test_without_pushes_a_film_changes_nothing() -> None:
    observed = []
    for filmed in (True, False):
        env = make_env(n_envs=2, render_mode="rgb_array")
        film = CartpoleFilm(env) if filmed else None
        frames = list(play_frames(balancing_model(env), env, 5, film=film))
        observed.append((env.obs_tensor.clone(), frames))
    assert th.equal(observed[0][0], observed[1][0])
    with_strips, bare = (frames[-1] for _, frames in observed)
    assert (with_strips[32:-32] == bare).all(), "the same picture between caption and key"


def test_films_of_one_seed_are_alike_and_normalised_observations_do_not_matter() -> None:
    last = []
    for _ in range(2):
        env = sb3_isaac.VecNormalize(make_env(DISCRETE, n_envs=3), training=False)
        film = CartpoleFilm(env, n_untrained=1, push_every=0.05, seed=7)
        last = [*last, list(play_frames(PPO("MlpPolicy", env, device="cpu", seed=0), env, 12, film=film))[-1]]
    assert (last[0] == last[1]).all()


def test_film_mistakes() -> None:
    env = make_env(n_envs=2)
    for arguments in ({"n_untrained": 2}, {"n_untrained": -1}, {"push_every": -1.0}):
        with pytest.raises(ValueError, match="must be"):
            CartpoleFilm(env, **arguments)
    other = make_vec_env("CartPole-v1", 1)
    assert film_module.can_be_filmed(env) and not film_module.can_be_filmed(other)
    with pytest.raises(ValueError, match="Only a batch of this package's cartpoles can be filmed .* not DummyVecEnv"):
        CartpoleFilm(other)


@pytest.mark.parametrize("main", [commands.evaluate, commands.video])
def test_missing_models(main: Any, logs: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere/ppo folder was not found: train one first, or name another"):
        main(["--env", CONTINUOUS, "-f", "nowhere"])
    with pytest.raises(FileNotFoundError, match="No model found for ppo"):
        main(["--env", CONTINUOUS, "-f", str(logs), "--load-best"])
    with pytest.raises(FileNotFoundError, match="No model found for ppo"):
        main(["--env", DISCRETE, "-f", str(logs)])
    with pytest.raises(ValueError, match="--n-envs must be a whole number of at least 1"):
        main(["--env", CONTINUOUS, "-f", str(logs), "--n-envs", "0"])


def test_model_of_the_other_action_space(logs: Path) -> None:
    with pytest.raises(ValueError, match=r"trained for actions Box.* has Discrete\(3\)"):
        commands.evaluate(["--env", CONTINUOUS, "-f", str(logs), "--env-kwargs", "discrete:True", "--device", "cpu"])


def test_zoos_record_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("moviepy", reason="rl_zoo3.record_video needs moviepy")
    (run,) = make_runs(tmp_path, 1)
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert dispatch.main(["record_video", "--env", CONTINUOUS, "-f", str(tmp_path), "--n-envs", "4", "-n", "10"]) == 0
    (path,) = (run / "videos").iterdir()
    size, frames = read_video(path)
    assert size == (480, 960) and len(frames) >= 10


# -- curves ----------------------------------------------------------------------------------------------------------


def test_band_is_the_mean_over_seeds_with_its_interval(logs: Path) -> None:
    runs = curves.find_runs(str(logs), "ppo", CONTINUOUS)
    assert [Path(run).name for run in runs] == [f"{CONTINUOUS}_{i}" for i in (1, 2, 3)]
    band = curves.band([curves.evaluation_curve(run) for run in runs])
    assert len(runs) == 3 and band.x[0] == 1000 and band.x[-1] == 5000
    np.testing.assert_allclose(band.mean, 0.1 * (band.x - 1000) + 1.0)  # the seeds add 0, 1 and 2
    half = 4.302653 / 3**0.5  # Student's t for three, whose standard deviation is 1
    np.testing.assert_allclose(band.low, band.mean - half, rtol=1e-6)
    np.testing.assert_allclose(band.high, band.mean + half, rtol=1e-6)
    one = curves.band([curves.evaluation_curve(runs[0])])
    assert (one.low == one.mean).all() and (one.high == one.mean).all()


def test_the_interval_of_few_seeds_has_the_mean_as_often_as_it_says() -> None:
    """A bootstrap of two has it half of the time."""
    rng, x = np.random.default_rng(0), np.array([0.0, 1.0])
    bands = [curves.band([(x, rng.normal(size=2)) for _ in range(2)]) for _ in range(400)]
    assert 0.91 < np.mean([band.low[0] < 0.0 < band.high[0] for band in bands]) < 0.985


def test_the_band_of_two_seeds_leaves_the_curves_to_be_seen() -> None:
    figure, axes = pyplot.subplots()
    curves.draw(axes, [(np.array([0.0, 1.0]), np.array([0.0, y])) for y in (100.0, 200.0)], "PPO")
    assert axes.get_ylim() == pytest.approx((-10.0, 210.0)), "the band is from -485 to 785 at the end"
    pyplot.close(figure)


def test_runs_of_one_seed_or_of_other_settings_are_no_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: List[Any] = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    runs = make_runs(tmp_path, 3)
    config, args = (runs[1] / CONTINUOUS / name for name in ("config.yml", "args.yml"))

    def label(*flags: str) -> str:
        assert commands.plot([f"ppo:{CONTINUOUS}", "-f", str(tmp_path), "-o", str(tmp_path / "a.png"), *flags]) == 0
        return legend(drawn.pop().axes[0])[0]

    assert label() == "PPO (3 seeds)" and "differ" not in capsys.readouterr().out
    config.write_text("n_envs: 2\nnormalize: true\nuntil_solved: true\nlearning_rate: 0.1\n")
    args.write_text(args.read_text().replace("seed: 1", "seed: 0"))
    assert label() == "PPO (3 runs)"
    said = f"different settings: {runs[0]} and {runs[1]} differ in learning_rate, normalize (--exp-id N draws one run)\n"
    assert said in capsys.readouterr().out
    assert label("--exp-id", "2") == "PPO (1 seed)" and "differ" not in capsys.readouterr().out
    assert label("--exp-id", "0") == "PPO (1 seed)"
    config.unlink(), args.unlink()
    assert label() == "PPO (3 runs)" and "differ" not in capsys.readouterr().out, "who knows"
    with pytest.raises(FileNotFoundError, match="No run 7 .*--exp-id takes one of 1, 2, 3, or 0 for the latest"):
        label("--exp-id", "7")


def test_training_curves(logs: Path) -> None:
    (run, *_) = curves.find_runs(str(logs), "ppo", CONTINUOUS)
    x, y = curves.training_curve(run, "steps", window=100)
    lengths = 10 + np.arange(300)
    np.testing.assert_allclose(y, np.arange(300)[99:] - 49.5)
    np.testing.assert_allclose(x, np.cumsum(lengths)[99:])
    seconds, _ = curves.training_curve(run, "seconds", window=100)
    np.testing.assert_allclose(seconds, 0.1 * np.arange(100, 301), atol=1e-6)


@pytest.mark.parametrize("algorithm, wrapped", [("PPO", False), ("PPO", True), ("DDPG", False)])
def test_reward_log(algorithm: str, wrapped: bool, tmp_path: Path) -> None:
    env: Any = make_env(n_envs=4, max_episode_length=12, monitor_dir=str(tmp_path))
    rewards: List[np.ndarray] = []
    step = env.tensor_env.step

    def remember(actions: th.Tensor) -> Any:
        result = step(actions)
        rewards.append(result.reward.clone().numpy())
        return result

    env.tensor_env.step = remember
    if wrapped:
        env = sb3_isaac.VecNormalize(env)
    options = {"n_steps": 20, "batch_size": 80} if algorithm == "PPO" else {"learning_starts": 4000}
    model = getattr(sb3_isaac, algorithm)("MlpPolicy", env, device="cpu", seed=0, **options)
    model.learn(4 * 60, callback=RewardLog(window=20))
    assert len(rewards) == 60
    x, y = curves.reward_rate_curve(str(tmp_path / "reward_rate.csv"))
    np.testing.assert_allclose(y, np.array(rewards).reshape(3, -1).mean(axis=1), atol=2e-6)
    assert list(x) == [4 * 10, 4 * 30, 4 * 50]


def test_reward_log_elsewhere() -> None:
    env = make_env(n_envs=2)
    balancing_model(env).learn(32, callback=RewardLog(window=2))  # no monitor file, nothing to write
    model = PPO("MlpPolicy", "CartPole-v1", device="cpu", n_steps=8, batch_size=8)
    with pytest.raises(ValueError, match="RewardLog needs an IsaacVecEnv, not DummyVecEnv"):
        model.learn(8, callback=RewardLog())


def test_reference_curves() -> None:
    x, y = curves.reward_rate_curve(str(DATA / "seed_curve_ppo.csv"))
    assert x[0] == 50 * 128 and y[0] == 0.61275
    x, y = curves.reward_rate_curve(str(DATA / "seed_curve_dqn.csv"))
    assert x[0] == 150 * 128 and y[0] == 0.24185, "the first window has no value"


@pytest.mark.parametrize(
    "flags", [[], ["-x", "seconds"], ["--curve", "train"], ["--reference", str(DATA / "seed_curve_ppo.csv")]]
)
def test_plot(flags: List[str], logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: List[Any] = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    path = tmp_path / "new" / "curve.png"
    path.parent.mkdir()
    path.write_bytes(b"an older plot")
    assert commands.plot(["-e", CONTINUOUS, "-f", str(logs), "-o", str(path), *flags]) == 0
    assert path.read_bytes().startswith(b"\x89PNG") and [entry.name for entry in path.parent.iterdir()] == ["curve.png"]
    (axes,) = drawn[0].axes
    assert legend(axes) == [
        "PPO (3 seeds)",
        *(["Isaac Gym: seed_curve_ppo"] if "--reference" in flags else []),
        "95% interval of the mean",
        "each run",
    ], "no line where it is solved: the runs had episodes of 99 steps"
    assert len(axes.lines) == 4 + ("--reference" in flags) and len(axes.collections) == 1
    assert axes.get_xlabel() == ("seconds" if "seconds" in flags else "environment steps")


def legend(axes: Any) -> List[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def with_full_episodes(runs: List[Path]) -> None:
    for run in runs:
        for arguments in run.glob("*/args.yml"):
            arguments.write_text(f"env_kwargs: null\nseed: {run.name[-1]}\n")


def test_pairs_of_different_environments_in_one_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: List[Any] = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    monkeypatch.chdir(tmp_path)
    with_full_episodes([*make_runs(Path("logs"), 2), *make_runs(Path("logs"), 3, "dqn", DISCRETE)])
    flags = [f"ppo:{CONTINUOUS}", f"dqn:{DISCRETE}"]
    for argv in ([*flags, "-o", "a.png"], ["-f", "logs", *flags, "-o", "a.png"], [flags[0], "-o", "a.png", flags[1]]):
        assert commands.plot(argv) == 0
        figure = drawn.pop()
        (axes,) = figure.axes
        curve_labels = [f"PPO {CONTINUOUS} (2 seeds)", f"DQN {DISCRETE} (3 seeds)"]
        assert legend(axes) == [*curve_labels, "solved: 475", "95% interval of the mean", "each run"]
        (solved,) = [line for line in axes.lines if line.get_label() == "solved: 475"]
        assert list(solved.get_ydata()) == [475, 475] and solved.is_dashed()
        figure.canvas.draw()
        box = axes.get_legend().get_window_extent()
        assert box.y0 >= axes.get_window_extent().y1 - 1 and box.x0 >= 0 and box.x1 <= figure.bbox.x1, "above the curves"
    assert commands.plot([flags[0], "--curve", "reward-rate", "-o", "a.png"]) == 0
    assert "solved: 475" not in legend(drawn.pop().axes[0]), "not a return"
    Path("logs", "ppo", f"{CONTINUOUS}_7").mkdir()  # as a search leaves it
    assert commands.plot([flags[0], "-o", "a.png"]) == 0
    assert f"Left out, as there is no such curve: {Path('logs', 'ppo', CONTINUOUS)}_7" in capsys.readouterr().out
    assert "(2 seeds)" in legend(drawn.pop().axes[0])[0]
    for argv, error, message in (
        (["ppo", "-o", "a.png"], ValueError, "named ALGO:ENV, such as ppo:IsaacGymCartpole-v0, not 'ppo'"),
        ([":x", "-o", "a.png"], ValueError, "named ALGO:ENV"),
        ([f"ppp:{CONTINUOUS}", "-o", "a.png"], FileNotFoundError, f"No run of ppp .*logs: dqn:{DISCRETE}, ppo:{CONTINUOUS}"),
        ([*flags, "-l", "one", "-o", "a.png"], ValueError, "2 curves need as many --labels"),
    ):
        with pytest.raises(error, match=message):
            commands.plot(argv)
    with pytest.raises(SystemExit) as stop:
        commands.plot(["-o", "a.png"])
    assert stop.value.code == 2


def test_where_a_curve_counts_as_solved(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 2)
    assert curves.solved_return(CONTINUOUS, [str(run) for run in runs]) is None, "at most 99 in their episodes"
    with_full_episodes(runs)
    assert curves.solved_return(CONTINUOUS, [str(run) for run in runs]) == 475.0
    (runs[1] / CONTINUOUS / "config.yml").write_text("env_kwargs: {max_episode_length: 100}\n")
    assert curves.solved_return(CONTINUOUS, [str(run) for run in runs]) is None
    assert curves.solved_return("CartPole-v1", []) == 475.0 and curves.solved_return("NoSuchEnv-v0", []) is None
    x, y = np.array([10.0, 20.0, 30.0, 40.0]), np.array([100.0, 475.0, 300.0, 499.0])
    assert curves.first_solved((x, y), 475.0) == 20.0 and curves.first_solved((x, y), 499.5) is None
    figure, axes = pyplot.subplots()
    curves.draw_solved(axes, [475.0, None])
    curves.draw_solved(axes, [475.0, 195.0])
    assert not axes.lines, "one line is for all curves or for none"
    pyplot.close(figure)


def test_plot_mistakes(logs: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.png"
    output.write_bytes(b"an older plot")
    flags = ["-e", CONTINUOUS, "-f", str(logs), "-o", str(output)]
    (bare,) = make_runs(tmp_path, 1, "dqn", DISCRETE)
    (bare / "evaluations.npz").unlink()
    (bare / "0.monitor.csv").unlink()
    (bare / "reward_rate.csv").unlink()
    bad_csv = tmp_path / "bad.csv"
    bad_csv.write_text("step,reward\n1,2\n")
    discrete = ["-e", DISCRETE, "-f", str(tmp_path), "-a", "dqn", "-o", str(output)]
    for wrong, error, message in (
        ([*flags, "-a", "ddpg"], FileNotFoundError, "No run of ddpg on"),
        (["-e", CONTINUOUS, "-f", "nowhere", "-o", str(output)], FileNotFoundError, "No run of ppo on"),
        (discrete, FileNotFoundError, "has no evaluations.npz"),
        ([*discrete, "--curve", "train"], FileNotFoundError, "has no monitor file"),
        ([*flags, "--reference", str(bad_csv)], ValueError, "no curve of rewards"),
        ([*flags, "--reference", "nowhere.csv"], FileNotFoundError, "There is no nowhere.csv"),
        ([*discrete, "--curve", "reward-rate"], FileNotFoundError, "reward_rate.csv: train with RewardLog"),
        ([*flags, "--curve", "eval", "-x", "seconds"], ValueError, "has no times"),
        ([*flags, "--curve", "train", "--reference", str(bad_csv)], ValueError, "use --curve reward-rate"),
        ([*flags, "-l", "one", "two"], ValueError, "as many --labels"),
        ([*flags, "-w", "-3"], ValueError, "--window must be a whole number of at least 1"),
        ([*flags[:4], "-o", str(tmp_path / "a.nope")], ValueError, "nope"),
    ):
        with pytest.raises(error, match=message):
            commands.plot(wrong)
    pyplot.close("all")
    assert output.read_bytes() == b"an older plot"


def test_plot_without_display_or_matplotlib(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(RuntimeError, match="no display to show the plot on: write it to a file with --output"):
        commands.plot(["-e", CONTINUOUS, "-f", str(logs)])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="extra 'plots': pip install matplotlib"):
        commands.plot(["-e", CONTINUOUS, "-f", str(logs), "-o", "a.png"])


def test_runs_that_cannot_be_averaged() -> None:
    early, late = (np.array([0.0, 10.0]), np.zeros(2)), (np.array([20.0, 30.0]), np.zeros(2))
    with pytest.raises(ValueError, match="no timesteps in common"):
        curves.band([early, late])


@pytest.mark.slow
def test_zoos_plots_read_our_logs(logs: Path, tmp_path: Path) -> None:
    """In a process of their own: they change matplotlib's settings. One process for all three: importing them is slow."""
    pytest.importorskip("rliable", reason="rl_zoo3's plots need the extra 'plots'")
    code = f"""
import sys, matplotlib
matplotlib.use("Agg")
from matplotlib import pyplot as plt
from rl_zoo3.plots import all_plots, plot_from_file, plot_train
for x_axis in ("steps", "time"):
    sys.argv = ["plot_train", "-a", "ppo", "-e", {CONTINUOUS!r}, "-f", {str(logs)!r}, "-x", x_axis]
    plot_train()
    assert len(plt.gca().lines) == (3 if x_axis == "steps" else 6), plt.gca().lines
sys.argv = ["all_plots", "-a", "ppo", "-e", {CONTINUOUS!r}, "-f", {str(logs)!r}, "-o", {str(tmp_path / "post")!r}]
all_plots()
sys.argv = ["plot_from_file", "-i", {str(tmp_path / "post")!r}, "-b"]
plot_from_file()
"""
    done = run_python("-W", "ignore", "-c", code)
    assert done.returncode == 0, done.stdout
    assert "401 +/- 0" in done.stdout and (tmp_path / "post.pkl").is_file()
