"""Checkpoints of a training, from which it goes on as if it had not been interrupted. docs/resume.md tells the user's side.

A checkpoint is taken between an update and the next rollout, where least is under way. Asked for within a rollout, it waits.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import os
import random
import time
import warnings
from typing import IO, Any, Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, ProgressBarCallback
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_isaac.device import ranks
from sb3_isaac.envs.env_state import NO_STATE, can_go_on, env_state, layers_inside_out, set_env_state
from sb3_isaac.envs.portable_pickle import PortablePickler
from sb3_isaac.envs.vec_normalize import SETTINGS, VecNormalize
from sb3_isaac.files import checkpoint as files
from sb3_isaac.files import plain_state
from sb3_isaac.files.full_disk import training_goes_on
from sb3_isaac.files.plain_state import Packer, Unpacker

COUNTERS = (
    "num_timesteps _total_timesteps _num_timesteps_at_start _episode_num _n_updates _n_calls _current_progress_remaining "
    "ep_info_buffer ep_success_buffer _last_episode_starts exploration_rate adapted_lr"
).split()
"""What algorithms count and remember, by SB3's names"""
OLD_FILE = (
    "{path} is a model without a checkpoint's other files: training goes on with its parameters, its optimizer and its count "
    "of timesteps. Missing are the state of the environments, random numbers, running statistics, the replay buffer and what "
    "callbacks knew: it will not be what it would have been. model.save_checkpoint writes all."
)


HOLDERS = ("RootCallback", "CallbackList", "ConvertCallback")
"""Callbacks that hold others"""


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
            _restore(model, state, callback, self._same_learn)
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
    state = _state(model, missing)
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
    paths = [getattr(one, "appends_to", None) for one in ([] if callback is None else _callbacks(callback))]
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


def _state(model: Any, missing: List[str]) -> Dict[str, Any]:
    """Everything that the zip does not hold, and the counters once more."""
    packer = Packer(NO_STATE)
    checkpoints: Checkpoints = model._checkpoints
    learning = checkpoints.learning_state()
    last_obs, original = model._last_obs, None
    if getattr(model, "_run", None) is not None and hasattr(model._run, "log"):
        last_obs, original = model._run.rollout.last_obs(False)
    elif unwrap_vec_normalize(model.env) is not None:
        original = model._last_original_obs
    state: Dict[str, Any] = {
        "model": packer.attributes(model, COUNTERS),
        "observations": {"obs": packer.pack(last_obs), "original": packer.pack(original)},
        "seconds": time.time() - model.start_time / 1e9,
        "env": env_state(model.env, missing),
        "spaces": [packer.pack(getattr(owner.action_space, "_np_random", None)) for owner in (model, model.env)],
        "learning": learning,
        "run": model._run_state(packer),
        "random": _random_state(packer),
    }
    if learning is not None:
        names = ("name_to_value", "name_to_count", "name_to_excluded")
        state["log"] = packer.attributes(model.logger, names)
        if checkpoints.callback is not None:
            state["callbacks"] = [_callback_state(one, missing) for one in _callbacks(checkpoints.callback)]
    missing += packer.missing
    return state


def _random_state(packer: Packer) -> Dict[str, Any]:
    cuda: Any = th.cuda
    return {
        "torch": th.get_rng_state(),
        "cuda": cuda.get_rng_state_all() if cuda.is_available() and cuda.is_initialized() else [],
        "numpy": packer.pack(np.random.get_state(legacy=False)),
        "python": packer.pack(random.getstate()),
    }


def _callbacks(root: BaseCallback) -> List[BaseCallback]:
    """A callback and all below it, in a fixed order."""
    found = [root]
    for name, value in sorted(vars(root).items()):
        below = value if name == "callbacks" else [value]
        if name != "parent" and isinstance(below, list):
            found += [one for child in below if isinstance(child, BaseCallback) for one in _callbacks(child)]
    return found


def _settings(callback: BaseCallback) -> List[str]:
    """Attributes that are no state: of SB3's, rl_zoo3's and our callbacks those that are named as arguments are."""
    names = ["model", "parent", "locals", "globals", "callbacks", "verbose", *getattr(callback, "no_state", ())]
    names += [name for name, value in vars(callback).items() if getattr(value, "guards", False)]  # see files/full_disk.py
    if type(callback).__module__.split(".")[0] in ("stable_baselines3", "rl_zoo3", "sb3_isaac"):
        for cls in type(callback).__mro__:
            names += inspect.signature(cls.__init__).parameters if "__init__" in vars(cls) else ()  # type: ignore[misc]
    return names


def _callback_state(callback: BaseCallback, missing: List[str]) -> Dict[str, Any]:
    packer = Packer((*NO_STATE, BaseCallback, str), descend=False)
    saved: Dict[str, Any] = {"class": type(callback).__name__, "state": {}, "envs": {}}
    if not isinstance(callback, ProgressBarCallback):
        saved["state"] = packer.attributes(callback, but=_settings(callback))
    for name, value in vars(callback).items():
        if isinstance(value, VecEnv) and value is not callback.model.env:
            saved["envs"][name] = env_state(value, missing)
    missing += packer.missing
    return saved


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
    :raises ValueError: it is not complete, of another algorithm or another kind of environment
    """
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
    state = plain_state.load(parts["state"])
    env = _in_vec_normalize(env, state["env"])
    missing = list(found.info["missing"])
    goes_on = state["env"]["goes_on"] and can_go_on(env)
    if own is None:
        then, now = found.info.get("ranks", 1), ranks.world_size()
        what = f"it is of {then} ranks" if then != now else "files of another rank are missing"
        missing.append(f"environments, random numbers and replay buffers of all ranks but the first ({what}, here are {now})")
        if ranks.rank() > 0:  # new episodes, and random numbers of its own
            goes_on, state["random"] = False, None
    on = getattr(env.unwrapped, "device", th.device("cpu")).type
    if goes_on and on != state["env"]["device"]:
        missing.append(f"random numbers and rounding of {state['env']['device']}, as this is {on}")
    elif state["random"] is not None and state["random"]["cuda"] and not th.cuda.is_available():
        missing.append("random numbers of the GPU")
    model = cls.load(model_file, env=env, device=device, force_reset=False, **kwargs)
    model.env.reset()
    _set_counters(model, state)
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
        print(f"Training goes on at {model.num_timesteps:,} of {total:,} timesteps, as if it had not been interrupted")
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


def _set_counters(model: Any, state: Dict[str, Any]) -> None:
    saved, unpacker = dict(state["model"]), Unpacker()
    model.__dict__.update({name: unpacker.unpack(value) for name, value in saved.items() if name in vars(model)})
    for name in ("ep_info_buffer", "ep_success_buffer"):
        entries = getattr(model, name)
        if entries is not None:
            setattr(model, name, type(entries)(entries, maxlen=model._stats_window_size))
    observations = state["observations"]
    model._last_obs = unpacker.unpack(observations["obs"])
    model._last_original_obs = unpacker.unpack(observations["original"])


def _restore(model: Any, state: Dict[str, Any], callback: BaseCallback, same_learn: bool) -> None:
    """Put everything back as it was at the boundary, after SB3 has begun to learn."""
    if "env" not in state:  # an old file
        return
    unpacker = Unpacker()
    planned, now = model._total_timesteps, (model._num_timesteps_at_start, model.start_time)
    last_obs = model._last_obs
    _set_counters(model, state)
    model._total_timesteps = planned
    if state["goes_on"]:
        set_env_state(model.env, state["env"])
    else:
        model._last_obs = last_obs
        if hasattr(model.env, "get_original_obs"):
            model._last_original_obs = model.env.get_original_obs()
        model._last_episode_starts = np.ones(model.env.num_envs, dtype=bool)
    for owner, saved in zip((model, model.env), state["spaces"]):
        if saved is not None:
            unpacker.unpack(saved, owner.action_space.np_random)
    same_learn = same_learn and state["learning"] is not None
    model._set_run_state(unpacker, state["run"], same_learn)
    if same_learn:
        model.start_time = int((time.time() - state["seconds"]) * 1e9)
        unpacker.attributes(model.logger, state["log"])
        _restore_callbacks(callback, state.get("callbacks", []))
    else:
        model._num_timesteps_at_start, model.start_time = now
    saved = state["random"]
    if saved is None:
        return
    random.setstate(unpacker.unpack(saved["python"]))
    np.random.set_state(unpacker.unpack(saved["numpy"]))
    th.set_rng_state(saved["torch"])
    if saved["cuda"] and th.cuda.is_available():
        th.cuda.set_rng_state_all(saved["cuda"][: th.cuda.device_count()])


def _restore_callbacks(root: BaseCallback, saved: List[Dict[str, Any]]) -> None:
    """Give callbacks what those of the same classes knew, in their order."""
    left = list(saved)
    unpacker = Unpacker()
    for callback in _callbacks(root):
        entry = next((one for one in left if one["class"] == type(callback).__name__), None)
        if entry is None:
            continue
        left.remove(entry)
        unpacker.attributes(callback, entry["state"])
        for name, state in entry["envs"].items():
            env = getattr(callback, name, None)
            if isinstance(env, VecEnv) and state["goes_on"] and can_go_on(env):
                set_env_state(env, state)
    lost = [entry["class"] for entry in left if entry["state"].get("n_calls", 0) > 0 and entry["class"] not in HOLDERS]
    if lost:
        warnings.warn(
            f"The interrupted training had callbacks that this one has not: {', '.join(lost)}. Give learn the same ones.",
            stacklevel=2,
        )
