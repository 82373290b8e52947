"""Checkpoints of a training, from which it goes on as if it had not been interrupted. docs/resume.md tells the user's side.

A checkpoint is taken between an update and the next rollout, where least is under way. Asked for within a rollout, it waits.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import os
import warnings
from typing import IO, Any, Callable, Dict, Iterator, List, Optional, Tuple

import gymnasium as gym
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_isaac.device import ranks
from sb3_isaac.envs.checkpoint_state import all_callbacks, model_state, read_model_state, restore, set_counters
from sb3_isaac.envs.env_state import NO_STATE, can_go_on, layers_inside_out, set_env_state
from sb3_isaac.envs.portable_pickle import PortablePickler
from sb3_isaac.envs.vec_normalize import SETTINGS, VecNormalize
from sb3_isaac.files import checkpoint as files
from sb3_isaac.files import plain_state
from sb3_isaac.files.full_disk import training_goes_on
from sb3_isaac.files.plain_state import Packer, Unpacker
from sb3_isaac.settings.check import check

OLD_FILE = (
    "{path} is a model without a checkpoint's other files: training goes on with its parameters, its optimizer and its count "
    "of timesteps. Missing are the state of the environments, random numbers, running statistics, the replay buffer and what "
    "callbacks knew: it will not be what it would have been. model.save_checkpoint writes all."
)


class Checkpoints:
    """What a model keeps for its checkpoints. Never saved.

    :param logs_rollouts: whether ``log_interval`` counts rollouts, from 0 in each ``learn`` (SB3's on-policy algorithms)
    """

    def __init__(self, logs_rollouts: bool) -> None:
        self._logs_rollouts = logs_rollouts
        self.active = False
        """Whether the model learns"""
        self._stop = False
        self.ends = False
        """Whether training ends at the next boundary as all ranks have agreed, see data_parallel"""
        self.at_end: Optional[Callable[[], Any]] = None
        """What a signal has a rank write; the others write it too"""
        self.callback: Optional[BaseCallback] = None
        self.resumed: Optional[Dict[str, Any]] = None
        """What is to be put back before the first rollout"""
        self._wanted: List[Callable[[], Any]] = []
        self._same_learn = False
        self._log_interval: Optional[int] = None
        self._rollouts = 0
        self._rollouts_before = 0

    def __reduce__(self) -> Any:
        """A copy of the model begins with none of it: its callback knows the whole training."""
        return Checkpoints, (self._logs_rollouts,)

    def ask(self, write: Callable[[], Any]) -> None:
        """Call ``write`` at the next boundary, which is now if the model does not learn."""
        self._wanted.append(write)
        if not self.active:
            self._serve()

    def end(self, write: Callable[[], Any]) -> None:
        """End training at the next boundary, as Ctrl-C does, after a call of ``write``. A signal's handler may call it."""
        if self.active:
            self.at_end, self._stop = write, True

    @property
    def wants_to_end(self) -> bool:
        """Whether :meth:`end` was called."""
        return self._stop

    def _serve(self) -> None:
        wanted, self._wanted = self._wanted, []
        for write in wanted:
            write()

    @contextlib.contextmanager
    def learning(self, learn: Any, args: Any, kwargs: Any) -> Iterator[Dict[str, Any]]:
        """Around ``learn``. Yields the arguments to call it with."""
        signature = inspect.signature(learn)
        arguments = dict(signature.bind_partial(*args, **kwargs).arguments)
        self._rollouts = self._rollouts_before = 0
        if self.resumed is not None:
            self._go_on(arguments)
        self._log_interval = arguments.get("log_interval", signature.parameters["log_interval"].default)
        if self._logs_rollouts and self._rollouts_before > 0 and self._log_interval is not None:
            arguments["log_interval"] = 1  # SB3 counts rollouts from 0 again, see logs_now
        self.active, self.callback, self._stop, self.ends = True, None, False, False
        try:
            yield arguments
            self._serve()
            if self._stop and self.at_end is not None:
                self.at_end()
        finally:
            self.active = False
            self._wanted = []

    def _go_on(self, arguments: Dict[str, Any]) -> None:
        """Let SB3's ``learn`` go on to where the resumed one was to end."""
        assert self.resumed is not None
        counters, learning = self.resumed["model"], self.resumed.get("learning")
        self._same_learn = "reset_num_timesteps" not in arguments
        if not self._same_learn:  # another learn, as SB3's
            if arguments["reset_num_timesteps"]:
                self.resumed = None
            return
        check("learn", {"total_timesteps": arguments.get("total_timesteps", 0)})  # -1 would become 0 here
        total = counters["_total_timesteps"]
        if "total_timesteps" in arguments:
            total = counters["_num_timesteps_at_start"] + arguments["total_timesteps"]
        arguments["total_timesteps"] = max(total - counters["num_timesteps"], 0)
        arguments["reset_num_timesteps"] = False
        if learning is not None:
            arguments.setdefault("log_interval", learning["log_interval"])
            self._rollouts = self._rollouts_before = learning["rollouts"]

    def at_boundary(self, model: Any, callback: BaseCallback) -> None:
        """Before each rollout: put back what was resumed, write what was asked for.

        :raises KeyboardInterrupt: training is to end here, see :meth:`end`
        """
        if self.resumed is not None:
            state, self.resumed = self.resumed, None
            restore(model, state, callback, self._same_learn)
        self.callback = callback
        self._serve()
        if self.ends or (self._stop and ranks.world_size() == 1):
            if self.at_end is not None:
                self.at_end()
            raise KeyboardInterrupt
        self._rollouts += 1

    def logs_now(self, rollouts: int) -> Optional[int]:
        """How many rollouts there were, if SB3 is to log them now, given its own count, which begins anew when resumed."""
        total = rollouts + self._rollouts_before
        if self._rollouts_before > 0 and self._log_interval is not None and total % self._log_interval != 0:
            return None
        return total

    def learning_state(self) -> Optional[Dict[str, Any]]:
        return {"rollouts": self._rollouts, "log_interval": self._log_interval} if self.active else None


# -- writing -----------------------------------------------------------------------------------------------------------


def write_checkpoint(model: Any, path: Any, replay_buffer: bool = True) -> files.Checkpoint:
    """Write a checkpoint now. For the arguments see ``DQN.save_checkpoint``.

    :raises OSError: a file cannot be written
    """
    return prepare_checkpoint(model, path, replay_buffer)()


def prepare_checkpoint(
    model: Any, path: Any, replay_buffer: bool = True, snapshot: bool = False
) -> Callable[[], files.Checkpoint]:
    """What writes a checkpoint.

    :param snapshot: of how things stand now, so that another thread can write it while training goes on
    """
    missing: List[str] = []
    state = model_state(model, missing)
    first = ranks.rank() == 0
    path = files.of_rank(path, ranks.rank())
    writers: Dict[str, files.Writer] = {"model": model.save} if first else {}
    normalize = unwrap_vec_normalize(model.env) if first else None
    if normalize is not None:
        writers["statistics"] = lambda file: PortablePickler(file).dump(normalize)
    if snapshot:
        writers = {key: _bytes_of(writer) for key, writer in writers.items()}
    writers["state"] = functools.partial(plain_state.save, state)
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None and replay_buffer:
        saved = _buffer_state(buffer, missing)
        if snapshot:  # else the rows are the buffer's own
            saved = {name: value.clone() if isinstance(value, th.Tensor) else value for name, value in saved.items()}
        writers["replay_buffer"] = functools.partial(plain_state.save, saved)
    elif buffer is not None:
        missing.append("the replay buffer")
    info = {
        "algo": _algo(type(model)),
        "num_timesteps": model.num_timesteps,
        "total_timesteps": model._total_timesteps,
        "missing": missing,
        "logs": _logs(model) if first else {},
    }
    if ranks.world_size() > 1:
        info["ranks"] = ranks.world_size()
    return functools.partial(files.write, path, writers, info, make_folder=not first)


def _bytes_of(writer: files.Writer) -> files.Writer:
    """What writes again what ``writer`` writes now."""
    memory = io.BytesIO()
    writer(memory)

    def write(file: IO[bytes]) -> None:
        file.write(memory.getbuffer())

    return write


def _logs(model: Any) -> Dict[str, int]:
    """Sizes of files that training appends to: what comes after the checkpoint can be taken from them."""
    callback = model._checkpoints.callback
    paths = [getattr(one, "appends_to", None) for one in ([] if callback is None else all_callbacks(callback))]
    writer = getattr(model.env.unwrapped, "results_writer", None)
    if writer is not None:
        with training_goes_on("episode log", writer.file_handler.name):
            writer.file_handler.flush()
        paths.append(writer.file_handler.name)
    return {path: os.path.getsize(path) for path in paths if path is not None and os.path.isfile(path)}


def _algo(cls: type) -> str:
    """The name of the algorithm of this package that a class is, or is derived from."""
    return next((base.__name__ for base in cls.__mro__ if base.__module__.startswith("sb3_isaac.")), cls.__name__)


def _buffer_state(buffer: Any, missing: List[str]) -> Dict[str, Any]:
    if hasattr(buffer, "state_dict"):
        state: Dict[str, Any] = buffer.state_dict()
        return state
    packer = Packer(NO_STATE)
    state = packer.attributes(buffer)
    missing += packer.missing
    return state


# -- reading -----------------------------------------------------------------------------------------------------------


def newest(folder: Any, warn: Callable[[str], Any]) -> Optional[files.Checkpoint]:
    """The newest complete checkpoint in a folder; None: there is none.

    Of several ranks all must call it. It is then the newest that is complete on each of them, or, if there is none, that of
    the first.

    :param warn: is told of those that do not count
    """
    if ranks.world_size() == 1:
        return files.newest(folder, warn)
    for name in ranks.from_first([name for name, _ in files.all_in(folder)]):
        try:
            found = files.read(name)
        except files.IncompleteCheckpoint:
            found = None
        if all(ranks.gather(found is not None and own_part(found) is not None)):
            return found
    return files.newest(folder, warn)


def own_part(found: files.Checkpoint) -> Optional[files.Checkpoint]:
    """What this rank has of a checkpoint; None: that is missing, or another number of ranks has written it."""
    if found.info.get("ranks", 1) != ranks.world_size():
        return None
    if ranks.rank() == 0:
        return found
    try:
        own = files.read(files.of_rank(found.name, ranks.rank()))
    except files.IncompleteCheckpoint:
        return None
    return own if own is not None and own.num_timesteps == found.num_timesteps else None


def find(path: Any) -> Tuple[Optional[files.Checkpoint], str]:
    """The checkpoint at a path, or the newest one in a folder, and the path of its model.

    :return: no checkpoint, if there is only a model's file
    :raises FileNotFoundError: there is nothing
    :raises ValueError: the checkpoint is not complete
    """
    if os.path.isdir(path):
        found = newest(path, lambda text: warnings.warn(text, stacklevel=4))
        found = files.read(path) if found is None else found  # or the folder stands beside a checkpoint of its name
        if found is None:
            raise FileNotFoundError(f"There is no complete checkpoint in {path}: model.save_checkpoint writes one.")
        return found, found.files["model"]
    found = files.read(path)
    if found is not None:
        return found, found.files["model"]
    name = files.set_name(path) + files.SUFFIXES["model"]
    if not os.path.isfile(name):
        raise FileNotFoundError(f"There is no checkpoint at {path}: give the path that it was saved to, or its folder.")
    return None, name


def resume_model(cls: Any, /, path: Any, env: VecEnv, device: Any = "auto", **kwargs: Any) -> Any:
    """A model that goes on from a checkpoint as the interrupted one would have: on the CPU bit for bit.

    ``model.learn()``, with the same callbacks as before, goes on to the planned number of timesteps; given
    ``total_timesteps``, it is as if the interrupted ``learn`` had been given it. Random numbers of the whole process are
    put back when it begins. Warns of what is missing.

    :param path: what ``save_checkpoint`` was given, or a folder, of which the newest complete checkpoint is taken
    :param env: made as the environment of the interrupted training was, with or without VecNormalize around it
    :param device: torch device
    :param kwargs: more arguments of ``load``
    :raises FileNotFoundError: there is no checkpoint
    :raises TypeError: there is no environment
    :raises ValueError: it is not complete, of another algorithm or another kind of environment
    """
    if not isinstance(env, (VecEnv, gym.Env)):
        raise TypeError(f"{cls.__name__}.resume takes the environment, made as it was, as its second argument, got {env!r}.")
    ranks.join()
    found, model_file = find(path)
    if found is None:
        warnings.warn(OLD_FILE.format(path=model_file), stacklevel=2)
        model = cls.load(model_file, env=env, device=device, **kwargs)
        packed = Packer().attributes(model, ("num_timesteps", "_total_timesteps", "_num_timesteps_at_start"))
        model._checkpoints.resumed = {"model": packed}
        return model
    if found.info.get("algo") != _algo(cls):
        raise ValueError(f"{found.name} is a checkpoint of {found.info.get('algo')}: use {found.info.get('algo')}.resume.")
    own = own_part(found)
    parts = found.files if own is None else own.files
    if "model" not in found.files or "state" not in parts:
        raise ValueError(f"{found.name}.json is no manifest of a checkpoint: it lists no model and state. Use another one.")
    state = read_model_state(parts["state"])
    env = _in_vec_normalize(env, state["env"])
    missing = list(found.info.get("missing", ()))
    goes_on = state["env"]["goes_on"] and can_go_on(env)
    if not all(ranks.gather(own is not None)):
        then, now = found.info.get("ranks", 1), ranks.world_size()
        what = f"it is of {then} ranks, here are {now}" if then != now else "files are missing"
        missing.append(f"environments, random numbers and replay buffers of other ranks than the first ({what})")
    if own is None and ranks.rank() > 0:  # new episodes, and random numbers of its own
        goes_on, state["random"] = False, None
    on = getattr(env.unwrapped, "device", th.device("cpu")).type
    if goes_on and on != state["env"]["device"]:
        missing.append(f"random numbers and rounding of {state['env']['device']}, as this is {on}")
    elif state["random"] is not None and state["random"]["cuda"] and not th.cuda.is_available():
        missing.append("random numbers of the GPU")
    model = cls.load(model_file, env=env, device=device, force_reset=False, **kwargs)
    model.env.reset()
    set_counters(model, state)
    if goes_on:
        set_env_state(model.env, state["env"])
    else:
        model._last_obs = None  # SB3 begins new episodes
        _set_wrappers(model.env, state["env"])
    state["goes_on"] = goes_on
    if "replay_buffer" in parts:
        saved = plain_state.load(parts["replay_buffer"])
        buffer = model.replay_buffer
        buffer.load_state_dict(saved) if hasattr(buffer, "load_state_dict") else Unpacker().attributes(buffer, saved)
    model._checkpoints.resumed = state
    total = state["model"]["_total_timesteps"]
    if missing:
        warnings.warn(
            f"Training goes on at {model.num_timesteps:,} of {total:,} timesteps, but not exactly as it would have: the "
            f"checkpoint {found.name} is without {'; '.join(missing)}.",
            stacklevel=2,
        )
    elif model.verbose >= 1:
        others = ", ".join(sorted(set(kwargs) - {"tensorboard_log", "verbose"}))
        how = f"with {others} as given now" if others else "as if it had not been interrupted"
        print(f"Training goes on at {model.num_timesteps:,} of {total:,} timesteps, {how}")
    return model


def _in_vec_normalize(env: VecEnv, saved: Dict[str, Any]) -> VecEnv:
    """Wrap an environment as the checkpoint's was, if VecNormalize is all that is missing."""
    outermost = saved["layers"][-1]
    if outermost["class"] == "VecNormalize" and len(layers_inside_out(env)) == len(saved["layers"]) - 1:
        state = outermost["state"]
        return VecNormalize(env, **{name: state[name] for name in SETTINGS})
    return env


def _set_wrappers(env: VecEnv, saved: Dict[str, Any]) -> None:
    """Restore what does not depend on the running episodes: the statistics of VecNormalize."""
    for layer, entry in zip(layers_inside_out(env), saved["layers"]):
        if entry["class"] == "VecNormalize" and isinstance(layer, VecNormalize) and layer.state_dict() is not None:
            layer.load_state_dict(entry["state"])
        elif entry["class"] == type(layer).__name__ == "VecNormalize":
            Unpacker().attributes(layer, entry["state"])
