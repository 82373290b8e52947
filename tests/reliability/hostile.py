"""Files that want to run something, each in another way. What they run is ``os.mkdir(marker)``."""

from __future__ import annotations

import base64
import importlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple

import cloudpickle
import numpy as np
import torch as th

import sb3_isaac
from sb3_isaac.envs.model_files import statistics_path
from tests.conftest import CONTINUOUS, DISCRETE, make_env

# -- pickles, written by hand: a pickler would not write most of them --------------------------------------------------


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def named(module: str, name: str) -> bytes:
    """STACK_GLOBAL, whose name may have dots."""
    return text(module) + text(name) + b"\x93"


def call(function: bytes, *args: bytes) -> bytes:
    return function + b"(" + b"".join(args) + b"tR"


def pickled(body: bytes) -> bytes:
    return b"\x80\x04" + body + b"."


def data(value: Any) -> bytes:
    """A plain value within a pickle."""
    return pickle.dumps(value, 2)[2:-1].replace(b"q\x00", b"") if not isinstance(value, str) else text(value)


MKDIR = named("os", "mkdir")


class Evil:
    """Unpickled, it makes the marker."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (self.marker,)


class Local(Evil):
    """Evil that is called when used, not when read."""

    def __call__(self, *args: Any) -> float:
        if not os.path.exists(self.marker):
            os.mkdir(self.marker)
        return 0.0

    def __reduce__(self) -> Any:
        return Local, (self.marker,)


def helper(marker: str, name: str, content: bytes) -> str:
    """Another file of the attacker's, beside the marker."""
    path = Path(marker).with_name(name)
    path.write_bytes(content)
    return str(path)


def _npy(marker: str) -> str:
    stream = io.BytesIO()
    np.save(stream, np.array([Evil(marker)], dtype=object), allow_pickle=True)
    return helper(marker, "evil.npy", stream.getvalue())


def _torch(marker: str, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    th.save({"w": Evil(marker)}, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def _old_text(marker: str) -> bytes:
    return b"cos\nmkdir\n(V" + marker.encode() + b"\ntR."


PYTHON = "__import__('os').mkdir({!r})"

PICKLES: Dict[str, Callable[[str], bytes]] = {
    "call": lambda m: pickled(call(MKDIR, text(m))),
    "protocol 0": _old_text,
    "INST opcode": lambda m: b"(V" + m.encode() + b"\nios\nmkdir\n.",
    "OBJ opcode": lambda m: b"(cos\nmkdir\nV" + m.encode() + b"\no.",
    "dotted name": lambda m: pickled(call(named("stable_baselines3.common.utils", "os.mkdir"), text(m))),
    "dotted name of a listed class": lambda m: pickled(
        call(
            call(
                named("builtins", "getattr"),
                call(
                    named("stable_baselines3.common.running_mean_std", "RunningMeanStd.__init__.__globals__.get"), text("np")
                ),
                text("load"),
            ),
            text(_npy(m)),
            b"N",
            b"\x88",
        )
    ),
    "eval": lambda m: pickled(call(named("builtins", "eval"), text(PYTHON.format(m)))),
    "exec": lambda m: pickled(call(named("builtins", "exec"), text(PYTHON.format(m)))),
    "getattr": lambda m: pickled(
        call(call(named("builtins", "getattr"), call(named("importlib", "import_module"), text("os")), text("mkdir")), text(m))
    ),
    "a process": lambda m: pickled(call(named("subprocess", "check_call"), _list("mkdir", m))),
    "os.system": lambda m: pickled(call(named("os", "system"), text(f"mkdir {m}"))),
    "numpy.load": lambda m: pickled(call(named("numpy", "load"), text(_npy(m)), b"N", b"\x88")),
    "runstring": lambda m: pickled(call(named("numpy.testing", "runstring"), text(PYTHON.format(m)), data({}))),
    "torch storage": lambda m: pickled(call(named("torch.storage", "_load_from_bytes"), _bytes(_torch(m)))),
    "old torch storage": lambda m: pickled(call(named("torch.storage", "_load_from_bytes"), _bytes(_torch(m, legacy=True)))),
    "pickle in a pickle": lambda m: pickled(call(named("pickle", "loads"), _bytes(_old_text(m)))),
    "SB3's load_from_pkl": lambda m: pickled(
        call(named("stable_baselines3.common.save_util", "load_from_pkl"), text(helper(m, "evil.pkl", _old_text(m))))
    ),
    "our load_pickle": lambda m: pickled(
        call(named("sb3_isaac.envs.portable_pickle", "load_pickle"), text(helper(m, "evil.pkl", _old_text(m))), b"\x88")
    ),
    "run_path": lambda m: pickled(call(named("runpy", "run_path"), text(helper(m, "evil.py", PYTHON.format(m).encode())))),
    "our load_entry": lambda m: pickled(call(call(named("sb3_isaac.envs.task_env", "load_entry"), text("os:mkdir")), text(m))),
    "partial": lambda m: pickled(call(call(named("functools", "partial"), MKDIR, text(m)))),
    "operator": lambda m: pickled(
        call(
            call(named("operator", "methodcaller"), text("mkdir"), text(m)),
            call(named("importlib", "import_module"), text("os")),
        )
    ),
    "a random generator": lambda m: pickled(call(named("numpy.random._pickle", "__generator_ctor"), text(m), MKDIR)),
    "a function by value": lambda m: pickled(call(named("cloudpickle", "loads"), _bytes(cloudpickle.dumps(Evil(m))))),
    "in an array": lambda m: pickle.dumps(np.array([Evil(m)], dtype=object)),
    "a key of a dict": lambda m: pickle.dumps({"a": [{("b", Evil(m)): 1}]}),
}


def _list(*words: str) -> bytes:
    return b"](" + b"".join(map(text, words)) + b"e"


def _bytes(value: bytes) -> bytes:
    return b"B" + len(value).to_bytes(4, "little") + value


# -- run folders --------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """A run's folder, as rl_zoo3 writes it."""

    logs: Path
    algo: str
    env_id: str
    folder: Path
    settings: Path

    @property
    def zip(self) -> Path:
        return self.folder / f"{self.env_id}.zip"


def make_run(logs: Path, algo: str) -> Run:
    env_id = DISCRETE if algo == "dqn" else CONTINUOUS
    folder = logs / algo / f"{env_id}_1"
    settings = folder / env_id
    settings.mkdir(parents=True)
    env = sb3_isaac.VecNormalize(make_env(env_id, n_envs=2))
    of_algo: Dict[str, Any] = {"n_steps": 4} if algo == "ppo" else {"learning_starts": 4, "buffer_size": 100, "n_steps": 1}
    policy_kwargs = {"net_arch": [4]}
    model = getattr(sb3_isaac, algo.upper())(
        "MlpPolicy", env, batch_size=8, device="cpu", policy_kwargs=policy_kwargs, **of_algo
    )
    model.learn(16)
    model.save(folder / f"{env_id}.zip")
    env.save(str(settings / "vecnormalize.pkl"))
    if algo != "ppo":
        model.save_replay_buffer(folder / "replay_buffer.pkl")
    (settings / "config.yml").write_text(
        "!!python/object/apply:collections.OrderedDict\n- - - n_envs\n    - 2\n  - - normalize\n    - dict(norm_obs=True)\n"
    )
    (settings / "args.yml").write_text(
        f"!!python/object/apply:collections.OrderedDict\n- - - env\n    - {env_id}\n  - - env_kwargs\n    - null\n"
    )
    np.savez(folder / "evaluations.npz", timesteps=np.arange(3), results=np.ones((3, 2)))
    return Run(logs, algo, env_id, folder, settings)


def rewrite(run: Run, entries: Dict[str, Any], members: Dict[str, bytes] = {}) -> None:  # noqa: B006
    """Change entries of the model's ``data``, or whole members of its zip. Bytes among the entries are pickles."""
    with zipfile.ZipFile(run.zip) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    attributes = json.loads(content["data"])
    for key, value in entries.items():
        encoded = {":type:": "x", ":serialized:": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
        attributes[key] = encoded
    content["data"] = json.dumps(attributes).encode()
    content.update(members)
    with zipfile.ZipFile(run.zip, "w") as archive:
        for name, value in content.items():
            archive.writestr(name, value)


def with_config(run: Run, **entries: Any) -> None:
    """Write config.yml with these entries: strings are YAML as they are."""
    everything = {"n_envs": 2, "normalize": True, **entries}
    lines = [f"{key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in everything.items()]
    (run.settings / "config.yml").write_text("\n".join(lines) + "\n")


def with_args(run: Run, env_kwargs: str) -> None:
    (run.settings / "args.yml").write_text(f"env: {run.env_id}\nenv_kwargs: {env_kwargs}\n")


def evil_module(marker: str) -> str:
    """A module that can be imported here, and has no business being so."""
    name = f"evil_{abs(hash(marker))}"
    helper(marker, f"{name}.py", PYTHON.format(marker).encode())
    importlib.invalidate_caches()
    return name


APPLY = "!!python/object/apply:os.mkdir [{!r}]"
SHELL = "[pydoc.pipepager: {{cmd: mkdir {}}}]"


def _value(m: str) -> bytes:
    return pickle.dumps(Evil(m))


Attack = Callable[[Run, str], None]

RUNS: Dict[str, Attack] = {
    # the model
    **{
        f"zip: {key}": lambda run, m, key=key: rewrite(run, {key: _value(m)})
        for key in "policy_class policy_kwargs observation_space action_space n_steps ep_info_buffer unheard_of".split()
    },
    "zip: a function called when used": lambda run, m: rewrite(
        run, {"policy_kwargs": pickle.dumps({"net_arch": [4], "activation_fn": Local(m)})}
    ),
    "zip: a function by value": lambda run, m: rewrite(
        run, {"policy_kwargs": cloudpickle.dumps({"net_arch": [4], "activation_fn": lambda: os.mkdir(m) or th.nn.Tanh()})}
    ),
    "zip: any class as the policy": lambda run, m: rewrite(run, {"policy_class": cloudpickle.dumps(_policy(m))}),
    "zip: parameters": lambda run, m: rewrite(run, {}, {"policy.pth": _torch(m)}),
    "zip: optimizer, old format": lambda run, m: rewrite(run, {}, {"policy.optimizer.pth": _torch(m, legacy=True)}),
    "zip: variables": lambda run, m: rewrite(run, {}, {"pytorch_variables.pth": _torch(m)}),
    "zip: the name of an environment": lambda run, m: rewrite(run, {"env": f"{evil_module(m)}:Env-v0"}),
    # its settings
    "config: all of it": lambda run, m: (run.settings / "config.yml").write_text(APPLY.format(m)) and None,
    "config: a value": lambda run, m: with_config(run, learning_rate=APPLY.format(m)),
    "config: a process": lambda run, m: with_config(
        run, callback=f"!!python/object/apply:subprocess.check_call [[mkdir, {m!r}]]"
    ),
    "config: a module": lambda run, m: with_config(run, callback=f"!!python/module:{evil_module(m)}"),
    "config: a name": lambda run, m: with_config(run, callback=f"!!python/name:{evil_module(m)}.x"),
    "config: normalize": lambda run, m: with_config(run, normalize=json.dumps(PYTHON.format(m))),
    "config: normalize, hidden": lambda run, m: with_config(
        run, normalize=json.dumps(f"dict(norm_obs=True, clip_obs=[10.0, {PYTHON.format(m)}][0])")
    ),
    "config: a wrapper": lambda run, m: with_config(run, env_wrapper=SHELL.format(m)),
    "config: a wrapper's module": lambda run, m: with_config(run, env_wrapper=f"{evil_module(m)}.Wrapper"),
    "config: a wrapper of all": lambda run, m: with_config(run, vec_env_wrapper=f"{evil_module(m)}.Wrapper"),
    "config: the reward": lambda run, m: with_config(run, env_kwargs=f"{{reward: '{evil_module(m)}:reward'}}"),
    "args: a value": lambda run, m: with_args(run, APPLY.format(m)),
    "args: the reward": lambda run, m: with_args(run, f"{{termination: '{evil_module(m)}:reward'}}"),
    # its statistics
    "statistics: within": lambda run, m: _statistics(run, m),
    "statistics: all of it": lambda run, m: statistics_path(run.zip).write_bytes(_value(m)) and None,
    "statistics: of the run": lambda run, m: _statistics_of_run(run, m),
}
"""Attacks on whoever evaluates, watches or films the agent of a run."""


def _of_args(**entries: Any) -> Attack:
    """Change entries of args.yml, which become flags of the command that goes on with the run. ``CODE`` in them is Python."""

    def attack(run: Run, m: str) -> None:
        text = json.dumps(entries).replace("CODE", PYTHON.format(m).replace('"', "'")).replace("MODULE", evil_module(m))
        (run.settings / "args.yml").write_text(json.dumps({"algo": run.algo, "env": run.env_id, **json.loads(text)}))

    return attack


def _other_env(run: Run, m: str) -> None:
    _of_args(env="Pendulum-v1")(run, m)
    rewrite(run, {"policy_class": _value(m)})


RESUMED: Dict[str, Attack] = {
    **{
        f"args: {key} as {kind}": _of_args(**{key: value})
        for key in ("env_kwargs", "eval_env_kwargs")
        for kind, value in {"names": {"x:CODE#": 1}, "a text": "x:CODE", "a list": ["x:CODE"]}.items()
    },
    "args: the reward of evaluations": _of_args(eval_env_kwargs={"reward": "MODULE:reward"}),
    "args: an abbreviated flag": _of_args(hyperparam="x:CODE"),
    "args: an abbreviated flag of modules": _of_args(gym_package=["MODULE"]),
    "args: modules": _of_args(gym_packages=["MODULE"]),
    "args: a flag among words": _of_args(wandb_tags=["-params", "x:CODE"]),
    "args: an environment of others": _other_env,
}
"""Attacks on whoever goes on with a run."""
PTH = [way for way in RUNS if way in ("zip: parameters", "zip: optimizer, old format", "zip: variables")]
"""What newer versions of SB3 do not run, either."""


def _policy(m: str) -> Any:
    from stable_baselines3.common.policies import ActorCriticPolicy

    class Policy(ActorCriticPolicy):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if not os.path.exists(m):
                os.mkdir(m)

    Policy.__module__ = "__main__"  # by value
    return Policy


def _statistics(run: Run, m: str) -> None:
    env = sb3_isaac.VecNormalize(make_env(run.env_id, n_envs=2))
    env.clip_obs = Evil(m)  # type: ignore[assignment]
    env.save(str(statistics_path(run.zip)))


def _statistics_of_run(run: Run, m: str) -> None:
    """As rl_zoo3 has them; read where there are none beside the model."""
    statistics_path(run.zip).unlink()
    (run.settings / "vecnormalize.pkl").write_bytes(_value(m))


def flags(run: Run, command: str) -> List[str]:
    """The command line that opens a run."""
    common = [command, "--algo", run.algo, "--env", run.env_id, "-f", str(run.logs)]
    if command == "evaluate":
        return [*common, "-n", "2", "--n-envs", "2", "--device", "cpu"]
    if command == "enjoy":
        return [*common, "-n", "2", "--n-envs", "2", "--device", "cpu", "--no-render"]
    if command == "export":
        return [*common, "--device", "cpu", "-o", str(run.folder / "policy.pt")]
    if command == "video":
        return [*common, "-n", "1", "--n-envs", "1", "--device", "cpu", "-o", str(run.folder / "film.gif")]
    if command == "record_video":
        return [*common, "-n", "1", "--n-envs", "1", "-o", str(run.folder / "videos")]
    raise ValueError(command)
