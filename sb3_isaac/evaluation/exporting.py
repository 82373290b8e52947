"""A trained policy as one file for a robot: ONNX, or TorchScript for libtorch.

What goes in are the environment's own observations, what comes out are the actions that it takes: the statistics of
VecNormalize, the clipping or scaling to the action bounds and the choice of the best discrete action are in the file.

SB3's page on it: https://stable-baselines3.readthedocs.io/en/master/guide/export.html
"""

from __future__ import annotations

import copy
import inspect
import io
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize
from torch import nn

from sb3_isaac.envs.last_finite import check_model, check_statistics
from sb3_isaac.envs.tensor_path import scale_actions
from sb3_isaac.files.atomic import replacing, write

OBS, ACTION = "obs", "action"
"""What input and output are called."""
OPSET = 17
"""Of ONNX: what runtimes of the last years know."""
N_CHECKED = 512
"""Observations on which a file is compared with ``predict`` before it is written."""
TOLERANCE = 1e-4
"""How far actions may lie from those of ``predict``: a share of their range, or of the value of a discrete action."""


Format = Tuple[Callable[[nn.Module, th.Tensor], bytes], Callable[[bytes, np.ndarray], np.ndarray]]


class Exported(NamedTuple):
    """What :func:`export` has written."""

    path: str
    n_bytes: int
    n_parameters: int
    """Of the networks that act"""
    obs_shape: Tuple[int, ...]
    """Of one observation"""
    action_shape: Tuple[int, ...]
    """Of one action: () if it is discrete"""
    difference: float
    """The largest from an action of ``predict``"""


class PolicyModule(nn.Module):
    """Observations (N, *obs_shape) to actions (N, *action_shape), or (N,) int64: what ``predict`` does, in torch.

    :param policy: of an SB3 model
    :param normalize: the VecNormalize that its observations went through, or None
    """

    def __init__(self, policy: BasePolicy, normalize: Optional[VecNormalize]) -> None:
        super().__init__()
        self.policy = policy
        space = policy.action_space
        self.low: th.Tensor
        self.high: th.Tensor
        self.mean: th.Tensor
        self.std: th.Tensor
        self._squashed, self._box = policy.squash_output, isinstance(space, spaces.Box)
        if isinstance(space, spaces.Box):
            self.register_buffer("low", th.as_tensor(space.low.astype(np.float32)))
            self.register_buffer("high", th.as_tensor(space.high.astype(np.float32)))
        self._clip = 0.0
        if normalize is not None:
            rms: Any = normalize.obs_rms
            self._clip = float(normalize.clip_obs)
            self.register_buffer("mean", th.as_tensor(np.array(rms.mean, dtype=np.float32)))
            std = np.sqrt(np.asarray(rms.var) + normalize.epsilon)
            self.register_buffer("std", th.as_tensor(std.astype(np.float32)))

    def forward(self, obs: th.Tensor) -> th.Tensor:
        if self._clip > 0.0:
            obs = ((obs - self.mean) / self.std).clamp(-self._clip, self._clip)
        actions: th.Tensor = self.policy._predict(obs, deterministic=True)  # type: ignore[arg-type]
        if not self._box:
            return actions
        low, high = self.low, self.high
        actions = actions.reshape(-1, *low.shape)
        if self._squashed:
            return scale_actions(actions, (low, high))
        return th.min(th.max(actions, low), high)


def export(model: Any, path: Any, vec_normalize: Optional[VecNormalize] = None) -> Exported:
    """Write a model's deterministic policy to a file that needs neither this package nor SB3.

    The input ``obs`` is (N, *obs_shape) float32, N free; the output ``action`` (N, *action_shape) float32, or (N,) int64 for
    discrete actions. What the file computes is compared with ``model.predict`` on random observations before it is written.

    :param model: a model of SB3 or of this package, with Box observations (no images) and Box or Discrete actions
    :param path: ends in ".onnx" (needs the extra ``export``), or in ".pt" or ".ts" for TorchScript
    :param vec_normalize: whose statistics go into the file; default: that of the model's environment, or the one that
        :func:`sb3_isaac.load` has found beside the model
    :raises TypeError: no model, or no VecNormalize
    :raises ValueError: another suffix, spaces or a policy that cannot be exported, missing statistics, or a file whose actions
        are not those of ``predict``
    :raises ImportError: onnx or onnxruntime is missing
    :raises FileNotFoundError: no such folder
    :raises NotFiniteError: a parameter is NaN or infinite
    """
    if isinstance(model, (str, os.PathLike)):
        raise ValueError(f"export takes a model, not a path: sb3_isaac.export(sb3_isaac.load({os.fspath(model)!r}), path).")
    if not hasattr(model, "observation_space"):
        raise TypeError(f"export takes a model, such as sb3_isaac.load('cartpole') gives, got {model!r}.")
    if vec_normalize is not None and not hasattr(vec_normalize, "obs_rms"):
        raise TypeError(f"export takes a VecNormalize for vec_normalize, got {vec_normalize!r}.")
    path = os.fspath(path)
    suffix = check_path(path)
    _check_spaces(model)
    check_model(model, "it is not exported.")
    normalize = _statistics(model, vec_normalize)
    if normalize is not None:
        check_statistics(normalize)
    observations = _some_observations(model, normalize)
    # Normalised as predict's caller does it, in numpy
    given: Any = observations if normalize is None else normalize.normalize_obs(observations)
    wanted, _ = model.predict(given, deterministic=True)
    policy = copy.deepcopy(model.policy).to("cpu")  # the model's own stays where it is
    policy.set_training_mode(False)
    module = PolicyModule(policy, normalize).eval()
    content, found = _made(FORMATS[suffix], module, observations, type(policy).__name__)
    difference = _compare(policy, given, np.asarray(wanted), found, path)
    with replacing(path) as temporary:
        write(temporary, content)
    acting = [p for name, p in policy.named_parameters() if _acts(name)]
    shape = () if wanted.ndim == 1 else wanted.shape[1:]
    return Exported(path, len(content), sum(p.numel() for p in acting), observations.shape[1:], shape, difference)


def check_path(path: str) -> str:
    """Whether a policy can be exported to a file of this name. Returns its suffix, a key of :data:`FORMATS`.

    :raises ValueError: another suffix
    :raises FileNotFoundError: no such folder
    :raises ImportError: onnx or onnxruntime is missing
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"Cannot export to {path!r}: the name must end in {', '.join(FORMATS)}.")
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"Cannot export to {path!r}: there is no folder {folder}.")
    if suffix == ".onnx":
        _check_onnx()
    return suffix


def _acts(name: str) -> bool:
    """Whether a parameter of that name is needed to act: neither the critic's nor the noise's."""
    return "target" not in name and not name.startswith(("critic", "value_net", "mlp_extractor.value_net", "vf_", "log_std"))


def _check_spaces(model: Any) -> None:
    obs, action = model.observation_space, model.action_space
    if not isinstance(obs, spaces.Box) or is_image_space(obs):
        raise ValueError(f"Only policies with Box observations that are no images can be exported, here they are {obs}.")
    if not isinstance(action, (spaces.Box, spaces.Discrete)):
        raise ValueError(f"Only policies with Box or Discrete actions can be exported, here they are {action}.")


def _statistics(model: Any, given: Optional[VecNormalize]) -> Optional[VecNormalize]:
    """The VecNormalize whose statistics belong to the model's observations."""
    found = given
    if found is None and model.env is not None:
        found = unwrap_vec_normalize(model.env)
    if found is None:
        found = getattr(model, "vec_normalize", None)
    if found is None and getattr(model, "observations_are_normalized", False):
        raise ValueError(
            "The model was trained on observations normalised by VecNormalize, and its statistics are missing: load it with "
            "sb3_isaac.load(path), or give export(..., vec_normalize=...)."
        )
    if found is None or not found.norm_obs:
        return None
    rms: Any = found.obs_rms
    shape = np.shape(rms.mean)
    if shape != model.observation_space.shape:
        raise ValueError(
            f"The statistics of VecNormalize are of observations of shape {shape}, the policy takes "
            f"{model.observation_space.shape}: only a VecNormalize around everything else can be exported."
        )
    return found


def _some_observations(model: Any, normalize: Optional[VecNormalize]) -> np.ndarray:
    """(N_CHECKED, *obs_shape) float32, wider than what the policy has seen."""
    rng = np.random.default_rng(0)
    shape = (N_CHECKED, *model.observation_space.shape)
    obs = 3.0 * rng.standard_normal(shape)
    if normalize is not None:
        rms: Any = normalize.obs_rms
        obs = np.asarray(rms.mean) + np.sqrt(np.asarray(rms.var)) * obs
    return obs.astype(np.float32)


def _made(format_: Format, module: nn.Module, observations: np.ndarray, name: str) -> Tuple[bytes, np.ndarray]:
    """The file's content, and the actions that it gives for the observations.

    :raises ValueError: torch cannot export it, or what it has exported does not run
    """
    make, run = format_
    checks = th.distributions.Distribution._validate_args
    th.distributions.Distribution.set_default_validate_args(False)  # which would become part of what is exported
    try:
        with warnings.catch_warnings(), th.no_grad():
            warnings.simplefilter("ignore")  # of TorchScript's future, and of branches that a policy takes by its settings
            content = make(module, th.as_tensor(observations[:2]))
        return content, run(content, observations)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"The policy {name} cannot be exported ({type(error).__name__}: {reason}).") from error
    finally:
        th.distributions.Distribution.set_default_validate_args(checks)


def _compare(policy: Any, given: np.ndarray, wanted: np.ndarray, found: np.ndarray, path: str) -> float:
    """The largest difference of actions.

    :raises ValueError: it is more than rounding explains
    """
    if found.shape != wanted.shape:
        raise ValueError(f"{path} is not written: its actions have the shape {found.shape}, those of predict {wanted.shape}.")
    space = policy.action_space
    if isinstance(space, spaces.Box):
        difference = float(np.abs(found - wanted).max())
        allowed = TOLERANCE * float(np.clip(space.high - space.low, 1.0, 1e6).max())
        wrong = not difference <= allowed
    else:
        # Two actions may be worth the same, but for rounding
        other = np.flatnonzero(found != wanted)
        difference, wrong = float(len(other)), False
        worth = _worth(policy, th.as_tensor(given[other])) if len(other) else None
        if worth is not None:
            rows = np.arange(len(other))
            gap = worth[rows, wanted[other]] - worth[rows, found[other]]
            wrong = bool((gap > TOLERANCE * (1.0 + np.abs(worth).max(1))).any())
    if wrong:
        raise ValueError(
            f"{path} is not written: its actions differ from those of predict by {difference:g}. The policy does something "
            "that its file would not do, such as drawing random numbers or choosing by what it has seen before."
        )
    return difference


def _worth(policy: Any, obs: th.Tensor) -> np.ndarray:
    """(n, n_actions): by what a policy chooses a discrete action."""
    with th.no_grad():
        if hasattr(policy, "q_net"):
            return np.asarray(policy.q_net(obs))
        if hasattr(policy, "get_distribution"):
            return np.asarray(policy.get_distribution(obs).distribution.logits)
    return np.asarray(np.eye(policy.action_space.n)[policy._predict(obs, deterministic=True).numpy()])


def _check_onnx() -> None:
    missing: List[str] = []
    for name in ("onnx", "onnxruntime"):
        try:
            __import__(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise ImportError(
            f"Exporting to ONNX needs {' and '.join(missing)}: pip install 'sb3_isaac[export]'. A file that ends in .pt "
            "(TorchScript) needs nothing more."
        )


def _to_onnx(module: nn.Module, example: th.Tensor) -> bytes:
    file: Any = io.BytesIO()
    options: Dict[str, Any] = {"dynamic_axes": {OBS: {0: "n"}, ACTION: {0: "n"}}, "opset_version": OPSET}
    if "dynamo" in inspect.signature(th.onnx.export).parameters:
        options["dynamo"] = False  # the new exporter needs onnxscript, and gains nothing for an MLP
    th.onnx.export(module, (example,), file, input_names=[OBS], output_names=[ACTION], **options)
    return bytes(file.getvalue())


def _run_onnx(content: bytes, obs: np.ndarray) -> np.ndarray:
    import onnxruntime  # type: ignore[import-not-found,import-untyped,unused-ignore]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([ACTION], {OBS: obs})[0])


def _to_torchscript(module: nn.Module, example: th.Tensor) -> bytes:
    file = io.BytesIO()
    traced = th.jit.freeze(th.jit.trace(module, example, check_trace=False))  # type: ignore[no-untyped-call]  # without the critic
    th.jit.save(traced, file)  # type: ignore[no-untyped-call]
    # Without the names of this machine's files
    bare = io.BytesIO()
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(bare, "w") as target:
        for name in source.namelist():
            if not name.endswith(".debug_pkl"):
                target.writestr(name, source.read(name))
    return bare.getvalue()


def _run_torchscript(content: bytes, obs: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings(), th.no_grad():
        warnings.simplefilter("ignore")
        loaded: Any = th.jit.load(io.BytesIO(content), map_location="cpu")  # type: ignore[no-untyped-call]
        return np.asarray(loaded(th.as_tensor(obs)))


FORMATS: Dict[str, Format] = {
    ".onnx": (_to_onnx, _run_onnx),
    ".pt": (_to_torchscript, _run_torchscript),
    ".ts": (_to_torchscript, _run_torchscript),
}
"""By the suffix of the file: what makes it, and what runs it."""
