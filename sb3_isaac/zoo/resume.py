"""Checkpoints of runs of the command line, and how a run goes on from one."""

from __future__ import annotations

import importlib
import math
import os
import reprlib
import shutil
import threading
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from huggingface_sb3 import EnvironmentName
from stable_baselines3.common.callbacks import CheckpointCallback as SB3CheckpointCallback

from sb3_isaac.device import ranks
from sb3_isaac.envs.checkpoints import newest, prepare_checkpoint
from sb3_isaac.envs.make import is_isaac_env_id
from sb3_isaac.envs.model_files import statistics_path
from sb3_isaac.evaluation.curves import run_ids
from sb3_isaac.files import checkpoint as files
from sb3_isaac.files.atomic import replacing, write
from sb3_isaac.files.full_disk import training_goes_on
from sb3_isaac.files.trust import UntrustedFileError, trusted
from sb3_isaac.zoo.run_settings import named_packages, saved_args

AGENTS = "torchrun.txt"
"""In the folder of a run: the torchruns that have started it, a line each"""
PREFIX = "rl_model"
"""rl_zoo3's, of names of checkpoints"""
MAX_BUFFER = 2**30
"""Bytes of a replay buffer up to which checkpoints have it unless told otherwise"""
NUMBERS = "n_timesteps num_threads log_interval eval_freq eval_episodes n_eval_envs save_freq seed verbose".split()
SWITCHES = "save_replay_buffer progress track".split()
WORDS = "algo env tensorboard_log vec_env device wandb_project_name wandb_entity wandb_group".split()
ENV_KWARGS = ("env_kwargs", "eval_env_kwargs")
GOES_ON_WITH: Dict[str, type] = {
    **dict.fromkeys(NUMBERS, int),
    **dict.fromkeys(SWITCHES, bool),
    **dict.fromkeys(WORDS, str),
    **dict.fromkeys(ENV_KWARGS, dict),
    "wandb_tags": list,
}
"""Arguments of rl_zoo3.train that a run goes on with. For the others the checkpoint, config.yml and the folder are in their
place, or they are of searches. What else a file of settings says becomes no flag: argparse takes flags abbreviated too."""
WATCHED = {"eval_freq": 25_000, "eval_episodes": 5, "n_eval_envs": 1}
"""Defaults of rl_zoo3 that mean something else where nobody typed them"""


class CheckpointCallback(SB3CheckpointCallback):
    """SB3's CheckpointCallback, of which a run goes on exactly: the same names, and more files of each.

    A checkpoint that cannot be written is told of once; training goes on. With algorithms of others it is SB3's callback.
    """

    on_all_ranks = True
    """Of several processes that train one model each writes its part"""
    no_state = ("keep", "whole_buffer", "_said", "_newest", "_thread", "_error")
    """What a checkpoint leaves out of this callback"""
    keep: Optional[int] = None
    """How many are kept; None: all"""
    whole_buffer = False
    """Whether replay buffers of any size are in them"""
    _said: Tuple[str, ...] = ()
    _newest: Optional[int] = None
    """Timesteps of the last one"""
    _thread: Optional[threading.Thread] = None
    _error: Optional[BaseException] = None
    """What the thread met"""

    def _on_step(self) -> bool:
        if not hasattr(self.model, "save_checkpoint"):
            return super()._on_step()
        if self.n_calls % self.save_freq == 0:
            model: Any = self.model
            model._checkpoints.ask(self.write)
        return True

    def write(self) -> None:
        """Write a checkpoint now, and remove the oldest ones."""
        if self._newest == self.model.num_timesteps:  # a signal came when it was time for one anyway
            return
        self._newest = self.num_timesteps = self.model.num_timesteps
        path = self._checkpoint_path(extension="zip")
        buffer: Any = getattr(self.model, "replay_buffer", None)
        size = getattr(buffer, "nbytes", 0)
        with_buffer = self.whole_buffer or size <= MAX_BUFFER
        if not with_buffer:
            self._say_once(
                f"Checkpoints are without the replay buffer ({size / 1e9:.1f} GB), and without it a run does not go on as it "
                "would have: add --save-replay-buffer."
            )
        self.wait()
        # Training waits for a snapshot only: files take their time
        commit = prepare_checkpoint(self.model, path, with_buffer, snapshot=True)
        self._thread = threading.Thread(target=self._commit, args=(commit, path))
        self._thread.start()

    def _commit(self, commit: Callable[[], Any], path: str) -> None:
        try:
            with training_goes_on("checkpoint", path):
                commit()
                if self.keep is not None:
                    # Of several ranks one may be behind: then the one before is the newest that all have
                    keep = self.keep + (ranks.world_size() > 1)
                    files.prune(os.path.dirname(files.of_rank(path, ranks.rank())), keep, f"{self.name_prefix}_")
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Until the last checkpoint is written.

        :raises Exception: it could not be written, for another reason than its disk
        """
        if self._thread is not None:
            self._thread.join()
            error, self._thread, self._error = self._error, None, None
            if error is not None:
                raise error

    def _on_training_end(self) -> None:
        self.wait()

    def _say_once(self, text: str) -> None:
        if text[:20] not in self._said:
            self._said = (*self._said, text[:20])
            print(text)


# -- which run -------------------------------------------------------------------------------------------------------


def find_run(run: Optional[str], algo: str, env_id: Optional[str], folder: str) -> Path:
    """The folder of a run: given it, its number, or the latest one.

    :raises FileNotFoundError: there is none
    :raises ValueError: it is not said of which environment
    """
    if run is not None and os.path.isdir(run):
        return Path(run) if Path(run).name not in ("", "..") else Path(run).resolve()  # its name and where it is are needed
    if env_id is None:
        raise ValueError("--resume needs --env, whose latest run goes on, or the folder of a run: --resume logs/ppo/ENV_1.")
    if run is not None and not run.isdecimal():
        raise FileNotFoundError(f"--resume {run}: there is no such folder, and it is no number of a run.")
    number = int(run) if run is not None else max(run_ids(os.path.join(folder, algo), EnvironmentName(env_id)), default=0)
    found = Path(folder, algo, f"{EnvironmentName(env_id)}_{number}")
    if not found.is_dir():
        what = f"no run {number}" if run is not None else "no run"
        raise FileNotFoundError(f"There is {what} of {algo} on {env_id} in {folder}: say where with -f, --algo and --env.")
    return found


def flags_of(run: Path, typed_now: Sequence[str] = ()) -> Optional[List[str]]:
    """rl_zoo3.train's flags with which a run goes on; None: it has finished.

    :param typed_now: flags that are given together with ``--resume``
    :raises FileNotFoundError: it has no checkpoint
    :raises UntrustedFileError: its args.yml wants something imported that was not named on this command line
    :raises ValueError: its args.yml says what is no argument, or it is of another package's environment
    """
    found = newest(run, print)
    settings = [path.parent for path in run.glob("*/args.yml")]
    if not settings:
        raise FileNotFoundError(f"{run} is no folder of a run: it has no args.yml.")
    if found is None:
        raise FileNotFoundError(f"{run} has no checkpoint to go on from: train with --save-freq N to have them.")
    if found.info.get("finished"):
        return None
    if not (settings[0] / "config.yml").is_file():
        raise FileNotFoundError(f"{settings[0]} has lost its config.yml, and with it the run's hyperparameters.")
    path = str(settings[0] / "args.yml")
    saved = saved_args(path)
    unnamed = sorted(set(map(str, saved.get("gym_packages") or ())) - named_packages)
    if unnamed and not trusted():
        raise UntrustedFileError(path, f"the module {unnamed[0]}, which --gym-packages {unnamed[0]} may name")
    for package in unnamed:
        importlib.import_module(package)
    if not is_isaac_env_id(str(saved.get("env"))):  # which rl_zoo3 would train by itself, and open everything of
        raise ValueError(
            f"{path} is of the environment {saved.get('env')!r}, which is none of sb3_isaac: --resume is for these."
        )
    if saved.get("track") and not (trusted() or "--track" in typed_now):
        raise UntrustedFileError(path, "Weights & Biases, which --track may name")
    typed = (settings[0] / "command.txt").read_text(errors="replace") if (settings[0] / "command.txt").is_file() else ""
    flags: List[str] = []
    for name, kind in GOES_ON_WITH.items():
        value = saved.get(name)
        flag = f"--{name.replace('_', '-')}"
        if value is None or value is False or value in ([], {}, ""):
            continue
        if not isinstance(value, kind):
            raise ValueError(
                f"{path} cannot be read: its {name} is {reprlib.repr(value)}, and should be of the kind {kind.__name__}."
            )
        if WATCHED.get(name) == value and flag not in typed:
            continue
        if name == "n_timesteps" and any(word.startswith("n_timesteps:") for word in typed_now):
            continue  # -n would go before -params
        if kind is bool:
            flags.append(flag)
        elif isinstance(value, dict):
            flags += [flag, *(f"{key}:{_literal(entry, path)}" for key, entry in value.items())]
        elif isinstance(value, list):
            flags += [flag, *(str(entry).lstrip("-") for entry in value)]
        else:
            flags.append(f"{flag}={value}")
    if ranks.rank() == 0:
        files.settle(found)
    ranks.from_first(None)  # the others wait for that
    return [*flags, "-f", os.fspath(run.parent.parent), "-i", found.name + files.SUFFIXES["model"]]


def _literal(value: Any, path: str) -> str:
    """Python's text of plain data, which rl_zoo3 evaluates.

    :raises ValueError: it is something else
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key, path)}: {_literal(entry, path)}" for key, entry in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        inside = ", ".join(_literal(entry, path) for entry in value)
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    if type(value) in (bool, int, float, str, type(None)):
        return repr(value)
    raise ValueError(f"{path} cannot be read: {reprlib.repr(value)} among its arguments of the environment is no plain value.")


def note_agents(folder: str) -> None:
    """Write down which torchrun has started a run, if one has. All ranks must call it."""
    if not ranks.launched():
        return
    agents = sorted(set(ranks.gather(ranks.agent())))
    if ranks.rank() == 0:
        write(os.path.join(folder, AGENTS), "\n".join(agents).encode())


def run_before_restart(folder: str, algo: str, env_id: str) -> Optional[str]:
    """The folder of the run that torchrun has started again, if it has a checkpoint to go on from. All ranks must call it."""
    agents, found = set(ranks.gather(ranks.agent())), None
    for number in run_ids(os.path.join(folder, algo), env_id) if ranks.rank() == 0 else ():
        run = Path(folder, algo, f"{env_id}_{number}")
        if (run / AGENTS).is_file() and agents & set((run / AGENTS).read_text(errors="replace").splitlines()):
            found = os.fspath(run) if files.newest(run) is not None else None
            break
    told: Optional[str] = ranks.from_first(found)
    return told


# -- going on --------------------------------------------------------------------------------------------------------


def cut_logs(model_file: str) -> None:
    """Take from the logs of a run what was written after a checkpoint: it comes again.

    :param model_file: of the checkpoint
    """
    found = files.read(model_file)
    logs = found.info.get("logs") if found is not None else None
    for name, size in logs.items() if isinstance(logs, dict) else ():
        path = os.path.join(os.path.dirname(model_file), os.path.basename(name))
        if isinstance(size, int) and size >= 0 and os.path.isfile(path) and os.path.getsize(path) > size:
            os.truncate(path, size)


def take_along_best(model_file: str, folder: str) -> None:
    """Copy the best model of the run that a checkpoint is of, which only a better one replaces."""
    for name in ("best_model.zip", statistics_path("best_model.zip").name):
        old, new = os.path.join(os.path.dirname(model_file), name), os.path.join(folder, name)
        if os.path.isfile(old) and not os.path.exists(new):
            with replacing(new) as temporary:
                shutil.copyfile(old, temporary)


def note_end(folder: str) -> None:
    """Let the newest checkpoint of a run know that the run has finished."""
    for name, _ in files.all_in(folder)[:1]:
        files.note(name, finished=True)
