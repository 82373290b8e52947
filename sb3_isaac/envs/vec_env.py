"""IsaacVecEnv: Stable-Baselines3's VecEnv (numpy) and, on the same object, the tensor step."""

from __future__ import annotations

import time
from typing import Any, Dict, Iterable, List, Optional, Sequence, Set, Tuple, Type

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn, tile_images

from sb3_isaac._for_c import dense, is_dense
from sb3_isaac._native import in_c, library
from sb3_isaac.backends.base import StepResult, TensorEnv, check_result, check_values
from sb3_isaac.device.eligibility import package_of
from sb3_isaac.device.finite import NotFiniteError, advice, first_not_finite, is_finite
from sb3_isaac.device.fused import in_triton
from sb3_isaac.envs.cartpole_renderer import CartpoleRenderer
from sb3_isaac.envs.fused import note_step
from sb3_isaac.envs.infos import Infos
from sb3_isaac.envs.last_finite import check_obs
from sb3_isaac.envs.window import Window
from sb3_isaac.files.full_disk import training_goes_on

CLOSED = "has been closed: make another one with make_vec_env"
LOOKS = 1000
"""So many steps of somebody's own task are looked at more closely, on a CPU, see :func:`check_values`"""
MAX_RENDERED_ENVS = 16
"""A picture shows at most this many environments: more would be too small to see."""


class IsaacVecEnv(VecEnv):
    """SB3's vectorised environment over a batched simulator.

    ``reset`` and ``step`` are SB3's, in numpy; ``reset_tensor`` and ``step_tensor`` are the same steps without leaving
    the device. numpy results are copies: they never change later.

    Source of the interface: https://stable-baselines3.readthedocs.io/en/master/guide/vec_envs.html

    :param tensor_env: the simulator
    :param observation_space: default: an unbounded Box of shape (obs_dim,)
    :param action_space: Box of shape (action_dim,) within the simulator's ``action_bounds`` (default), which are [-1, 1]
        unless it says otherwise, or Discrete(n) for n evenly spaced values of a one-dimensional action, from the lowest to the
        highest (n=3: -1, 0, 1)
    :param render_mode: None, "rgb_array" or "human"
    :raises ValueError: for an action space that the simulator cannot serve
    """

    tensor_path = True
    _in_c = _in_triton = False
    """See :meth:`compile_bookkeeping`"""

    def __init__(
        self,
        tensor_env: TensorEnv,
        observation_space: Optional[spaces.Space[Any]] = None,
        action_space: Optional[spaces.Space[Any]] = None,
        render_mode: Optional[str] = None,
    ) -> None:
        self.tensor_env = tensor_env
        self.device = tensor_env.device
        self.render_mode = render_mode
        self.spec: Optional[Any] = None
        if observation_space is None:
            observation_space = spaces.Box(-np.inf, np.inf, (tensor_env.obs_dim,), np.float32)
        low, high = (np.broadcast_to(np.float32(bound), (tensor_env.action_dim,)) for bound in tensor_env.action_bounds)
        if action_space is None:
            action_space = spaces.Box(low, high, dtype=np.float32)
        self.action_values: Optional[th.Tensor] = None
        if isinstance(action_space, spaces.Discrete):
            if tensor_env.action_dim != 1:
                raise ValueError(
                    f"A Discrete action space needs a task with one action, this one has {tensor_env.action_dim}."
                )
            self.action_values = th.linspace(float(low[0]), float(high[0]), int(action_space.n), device=self.device).unsqueeze(
                -1
            )
        _check_shapes(tensor_env, observation_space, action_space)
        super().__init__(tensor_env.n_envs, observation_space, action_space)
        self.metadata: Dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": tensor_env.render_fps}
        self.t_start = time.time()
        self.results_writer: Optional[ResultsWriter] = None
        """Where finished episodes are logged, in the format of SB3's Monitor."""
        self.obs_tensor = th.zeros(self.num_envs, tensor_env.obs_dim, dtype=th.float32, device=self.device)
        self.dones = th.zeros(self.num_envs, dtype=th.bool, device=self.device)
        self.episode_returns = th.zeros(self.num_envs, dtype=th.float32, device=self.device)
        self.episode_lengths = th.zeros(self.num_envs, dtype=th.int64, device=self.device)
        self._actions: Optional[th.Tensor] = None
        self._renderer: Optional[CartpoleRenderer] = None
        self._window: Optional[Window] = None
        self._looks_at_steps = self.device.type == "cpu"
        self.needs_reset: Optional[str] = "has not been reset: call reset() before step()"
        """Why there is no step to be taken; None: there is. Whoever brings back a saved state says so here."""
        self._checked: Set[str] = set()
        """What has been held against the contract: the first reset and the first step. Of later steps shapes and dtypes are
        looked at. A set, as another number or flag here would void a CUDA graph."""
        obs, number, flag = ((self.num_envs, tensor_env.obs_dim), th.float32), (self.num_envs,), ((self.num_envs,), th.bool)
        self._kinds: List[Any] = [obs, (number, th.float32), flag, flag, obs]
        self._looks_left = LOOKS if self._looks_at_steps and package_of(tensor_env) != "sb3_isaac" else 0
        """Steps of somebody's own task whose values are still held against the contract"""

    # -- the tensor path ---------------------------------------------------------------------------------------------

    def reset_tensor(self) -> th.Tensor:
        """Reset all environments. Returns obs (N, obs_dim) float32 on :attr:`device`.

        :raises NotFiniteError: on a CPU, an observation is NaN or infinite
        :raises RuntimeError: after :meth:`close`
        """
        if self.needs_reset == CLOSED:
            self._refuse()
        obs = self.tensor_env.reset()
        self.needs_reset = None
        self._check_once("reset", obs)
        if self._looks_at_steps:
            check_obs(obs.numpy(), "after the reset")
        self.obs_tensor = obs
        for statistic in (self.dones, self.episode_returns, self.episode_lengths):
            statistic.zero_()
        return self.obs_tensor

    def step_tensor(self, actions: th.Tensor) -> StepResult:
        """One step on the device, see :meth:`~sb3_isaac.envs.tensor_path.TensorVecEnv.step_tensor`.

        Afterwards :attr:`obs_tensor` is the observation to act on, :attr:`dones` tells which episodes ended and
        :attr:`episode_returns` / :attr:`episode_lengths` hold their returns and lengths, until the next step.

        :raises NotFiniteError: on a CPU, an observation or reward is NaN or infinite. On a GPU looking would have to wait for
            the device: there the algorithms look when they read it.
        :raises RuntimeError: before the first reset, and after :meth:`close`
        """
        if self.needs_reset is not None:
            self._refuse()
        if self.action_values is not None:
            actions = self.action_values[actions.reshape(-1)]
        result = self.tensor_env.step(actions)
        self._check_once("step", result)
        if not (self._in_c and self._note_in_c(result)):
            if self._looks_at_steps:
                self._check_finite(actions, result)
            self._note(result)
        if self._looks_left > 0 and self._looks_at_steps:
            self._looks_left -= 1
            if check_values(self.tensor_env, result, self.episode_lengths):
                self._looks_left = 0  # one warning is enough
        self.obs_tensor = result.obs
        return result

    def compile_bookkeeping(self, compiled: bool, precision: Optional[str] = None) -> None:
        """How what :meth:`step_tensor` keeps of a step is done.

        :param compiled: in C, on a CPU that has a compiler
        :param precision: an algorithm's; None: not in Triton
        """
        self._in_triton = in_triton(precision, self.device)
        self._in_c = in_c(compiled, self.device) and not self._in_triton

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.compile_bookkeeping(self._in_c)  # this machine may have no compiler

    def _note(self, result: StepResult) -> None:
        """Keep of a step what somebody may read until the next one."""
        kept = self.dones, self.episode_returns, self.episode_lengths
        if self._in_triton and self._are_ours(kept):
            note_step(result, *kept)
            return
        # What the previous step left for the reader is cleared first: so the finished values need no second buffer.
        self.episode_returns.masked_fill_(self.dones, 0.0).add_(result.reward)
        self.episode_lengths.masked_fill_(self.dones, 0).add_(1)
        th.logical_or(result.terminated, result.truncated, out=self.dones)

    def _are_ours(self, kept: Iterable[th.Tensor]) -> bool:
        """Whether ``dones`` and the episodes' statistics are like those that were made here, and not somebody's own."""
        return all(is_dense(x, self.num_envs, dtype) for x, dtype in zip(kept, (th.bool, th.float32, th.int64)))

    def _note_in_c(self, result: StepResult) -> bool:
        """The rest of :meth:`step_tensor`, see ``episodes.c``; False: there may be NaN or infinity in it, nothing is done."""
        n, columns = self.num_envs, self.tensor_env.obs_dim
        kept = self.dones, self.episode_returns, self.episode_lengths
        if not self._are_ours(kept):
            return False
        floats = dense(result.obs, n * columns), dense(result.final_obs, n * columns), dense(result.reward, n)
        ends = [dense(column, n, dtype=th.bool) for column in (result.terminated, result.truncated)]
        return bool(library().note_step(n, columns, *(x.data_ptr() for x in (*floats, *ends, *kept))))

    def _refuse(self) -> None:
        """:raises RuntimeError: always, to say why there is no step"""
        raise RuntimeError(f"This environment {self.needs_reset}.")

    def state_dict(self) -> Dict[str, th.Tensor]:
        """Copies of what :meth:`step_tensor` depends on, without the simulator's own state."""
        names = ("obs_tensor", "dones", "episode_returns", "episode_lengths")
        return {name: getattr(self, name).clone() for name in names}

    def load_state_dict(self, state: Dict[str, th.Tensor]) -> None:
        """Restore what :meth:`state_dict` returned. All but the observations keep their address."""
        self.obs_tensor = state["obs_tensor"].to(self.device)
        for name in ("dones", "episode_returns", "episode_lengths"):
            getattr(self, name).copy_(state[name])

    def _check_once(self, method: str, result: Any) -> None:
        """:raises ValueError: what the simulator returned is not what the contract says"""
        if method in self._checked and method == "step":
            kinds = [
                (getattr(value, "shape", None), getattr(value, "dtype", None))
                for value in (result if isinstance(result, tuple) else ())
            ]
            if kinds == self._kinds:
                return
        check_result(self.tensor_env, method, result)
        self._checked.add(method)

    def _check_finite(self, actions: th.Tensor, result: StepResult) -> None:
        """:raises NotFiniteError: an observation or reward is NaN or infinite"""
        # In numpy, which takes a microsecond where torch takes five
        obs, reward, final_obs = result.obs.numpy(), result.reward.numpy(), result.final_obs.numpy()
        if is_finite(reward) and is_finite(final_obs) and is_finite(obs):
            return
        columns = [("action", actions), ("final observation", final_obs), ("reward", reward), ("observation", obs)]
        origin = first_not_finite([(name, th.as_tensor(values).reshape(1, self.num_envs, -1)) for name, values in columns])
        if origin is not None:
            name, length = origin.name, int(self.episode_lengths.masked_fill(self.dones, 0)[origin.env]) + 1
            if name == "final observation" and not result.terminated[origin.env] and not result.truncated[origin.env]:
                name = "observation"
            raise NotFiniteError(
                f"The {name} of environment {origin.env} was {origin.value} in step {length} of its episode: {advice(name)}"
            )

    def make_infos(self, result: StepResult) -> Infos:
        """SB3's infos for the step just taken. Free until somebody reads them."""
        return Infos(result, self.episode_returns, self.episode_lengths, self.t_start)

    def log_episodes(self, returns: Iterable[float], lengths: Iterable[int]) -> None:
        """Write finished episodes to the monitor file, if there is one. All get the present time."""
        if self.results_writer is not None:
            t = round(time.time() - self.t_start, 6)
            rows = ({"r": round(float(r), 6), "l": int(n), "t": t} for r, n in zip(returns, lengths))
            with training_goes_on("episode log", self.results_writer.file_handler.name):
                self.results_writer.logger.writerows(rows)
                self.results_writer.file_handler.flush()

    def spread_time_limits(self, generator: Optional[th.Generator] = None) -> None:
        """Give every episode a random age, so that the time-outs of the first episodes do not come all at once.

        Source: ``init_at_random_ep_len`` of rsl_rl (https://github.com/leggedrobotics/rsl_rl).
        """
        # --8<-- [start:spread]
        age = th.rand(self.num_envs, generator=generator, device=self.device) * (self.tensor_env.max_episode_length - 1)
        self.tensor_env.progress.copy_(age.long())
        # --8<-- [end:spread]

    # -- SB3's VecEnv ------------------------------------------------------------------------------------------------

    def reset(self) -> VecEnvObs:
        obs = np.array(self.reset_tensor().cpu().numpy())
        check_obs(obs, "after the reset")
        self._reset_seeds()
        self._reset_options()
        return obs

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = self._check_actions(actions)

    @th.no_grad()
    def step_wait(self) -> VecEnvStepReturn:
        if self._actions is None:
            raise RuntimeError("step_wait() was called before step_async(): call step(actions) instead.")
        result = self.step_tensor(self._actions)
        self._actions = None
        infos = self.make_infos(result)
        # One transfer for everything that SB3 reads at every step.
        columns = (result.obs, result.reward.unsqueeze(-1), self.dones.unsqueeze(-1))
        packed = th.cat(columns, dim=-1).cpu().numpy()
        obs, reward, dones = packed[:, :-2].copy(), packed[:, -2].copy(), packed[:, -1] != 0.0
        # SB3 may keep the infos beyond the next step: what they need is copied here.
        episodes = [info["episode"] for info in infos.filled.values()]
        self.log_episodes([episode["r"] for episode in episodes], [episode["l"] for episode in episodes])
        return obs, reward, dones, infos  # type: ignore[return-value]  # a lazy sequence in place of a list

    def _check_actions(self, actions: np.ndarray) -> th.Tensor:
        """Actions from outside as a tensor on the device.

        :raises ValueError: wrong shape, NaN, or (Discrete) an action that does not exist
        """
        if isinstance(self.action_space, spaces.Discrete):
            actions = np.asarray(actions)
            if actions.shape not in ((self.num_envs,), (self.num_envs, 1)):
                raise ValueError(
                    f"Expected {self.num_envs} actions, one per environment, got an array of shape {actions.shape}."
                )
            n = int(self.action_space.n)
            if not np.issubdtype(actions.dtype, np.integer) or actions.min() < 0 or actions.max() >= n:
                raise ValueError(
                    f"Actions must be whole numbers from 0 to {n - 1}, got {actions.dtype} values {np.unique(actions)[:5]}."
                )
            return th.as_tensor(actions.reshape(-1), dtype=th.int64, device=self.device)
        actions = np.asarray(actions, dtype=np.float32)
        shape = (self.num_envs, *(self.action_space.shape or ()))
        if actions.shape != shape:
            raise ValueError(f"Expected actions of shape {shape}, got {actions.shape}.")
        if np.isnan(actions).any():
            first = int(np.isnan(actions).reshape(self.num_envs, -1).any(axis=1).argmax())
            raise ValueError(
                f"Actions contain NaN (first in environment {first}): the policy has diverged or its input is NaN."
            )
        return th.as_tensor(actions, device=self.device)

    def seed(self, seed: Optional[int] = None) -> Sequence[Optional[int]]:
        """Seed the reset states of all environments, from the next reset on. Returns one number per environment, as SB3."""
        seeds = super().seed(seed)
        self.tensor_env.seed(int(seeds[0] or 0))
        return seeds

    def close(self) -> None:
        """Free what the simulator holds. There are no steps after that."""
        self.needs_reset = CLOSED
        self.tensor_env.close()
        if self.results_writer is not None:
            with training_goes_on("episode log", self.results_writer.file_handler.name):
                self.results_writer.close()
            self.results_writer = None
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if self._window is not None:
            self._window.close()
            self._window = None

    def _owner(self, name: str) -> Any:
        """Which of our objects has the attribute: the VecEnv, the simulator or the task."""
        for owner in (self, self.tensor_env, getattr(self.tensor_env, "task", None)):
            if hasattr(owner, name):
                return owner
        raise AttributeError(f"Neither {type(self).__name__} nor {type(self.tensor_env).__name__} has an attribute {name!r}.")

    def _indices(self, indices: VecEnvIndices) -> List[int]:
        """:raises IndexError: for an environment that does not exist"""
        return [range(self.num_envs)[index] for index in self._get_indices(indices)]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> List[Any]:
        """The attribute, which all environments share, once for each index."""
        return [getattr(self._owner(attr_name), attr_name)] * len(self._indices(indices))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute that all environments share. As in SB3, it need not exist before.

        :raises ValueError: for some of the environments only (they are one batch), or for a parameter of the task, with
            which the simulator has been built
        """
        if len(set(self._indices(indices))) != self.num_envs:
            raise ValueError(f"{attr_name!r} is shared by all {self.num_envs} environments: set it without indices.")
        if hasattr(getattr(self.tensor_env, "task", None), attr_name):
            raise ValueError(
                f"{attr_name!r} is built into the simulator: make another one, make_vec_env(..., {attr_name}=...)."
            )
        owner = self.tensor_env if hasattr(self.tensor_env, attr_name) and not hasattr(self, attr_name) else self
        setattr(owner, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> List[Any]:
        """Call a method once, for all environments; its result is repeated for each index."""
        count = len(self._indices(indices))
        return [getattr(self._owner(method_name), method_name)(*method_args, **method_kwargs)] * count

    def env_is_wrapped(self, wrapper_class: Type[gym.Wrapper], indices: VecEnvIndices = None) -> List[bool]:
        """True for SB3's Monitor, whose work (``info["episode"]``) is done here; False for every other gym wrapper."""
        return [wrapper_class is Monitor] * len(self._indices(indices))

    # -- pictures ----------------------------------------------------------------------------------------------------

    def get_images(self) -> Sequence[Optional[np.ndarray]]:
        """One RGB picture (height, width, 3) uint8 of each of the first environments, at most 16.

        :raises NotImplementedError: the task draws none
        """
        if self._is_cartpole():
            return self._cartpole_renderer().images(self.tensor_env.render_state(), self.episode_returns.cpu().numpy())
        n = min(self.num_envs, MAX_RENDERED_ENVS)
        given: Any = self.tensor_env.render(n)
        images = [] if given is None else list(given)
        kinds: Set[Tuple[Any, str]] = {
            (getattr(image, "shape", ()), str(getattr(image, "dtype", type(image).__name__))) for image in images
        }
        right = all(len(shape) == 3 and shape[2] == 3 and dtype == "uint8" for shape, dtype in kinds)
        if len(images) not in (1, n) or len(kinds) != 1 or not right:
            found = ", ".join(sorted(f"{shape} {dtype}" for shape, dtype in kinds)) or "nothing"
            raise ValueError(
                f"{type(self.tensor_env).__name__}.render({n}) returned {len(images)} pictures, {found}: it must be {n} "
                "arrays (height, width, 3) uint8 RGB, of one size, or one of them all."
            )
        return images

    def render(self, mode: Optional[str] = None) -> Optional[np.ndarray]:
        """A grid of the first environments: returned ("rgb_array") or shown in a window ("human")."""
        if (mode or self.render_mode) != "human":
            return super().render(mode)
        if self._is_cartpole():
            self._cartpole_renderer().show(self.tensor_env.render_state(), self.episode_returns.cpu().numpy())
            return None
        images: Any = self.get_images()
        if self._window is None:
            self._window = Window(type(self.tensor_env).__name__)
        self._window.show(np.asarray(tile_images(images)), self.tensor_env.render_fps)
        return None

    def _is_cartpole(self) -> bool:
        """Whether the pictures are the cartpole's, and not the task's own."""
        kind = type(self.tensor_env)
        return kind.render is TensorEnv.render and kind.render_state is not TensorEnv.render_state

    def _cartpole_renderer(self) -> CartpoleRenderer:
        if self._renderer is None:
            self._renderer = CartpoleRenderer(MAX_RENDERED_ENVS)
        return self._renderer


def _check_shapes(tensor_env: TensorEnv, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """:raises ValueError: spaces that do not fit the simulator's tensors"""
    wanted = [("observation", observation_space, tensor_env.obs_dim), ("action", action_space, tensor_env.action_dim)]
    for what, space, size in wanted:
        if isinstance(space, spaces.Discrete) and what == "action":
            continue
        if not isinstance(space, spaces.Box) or space.shape != (size,):
            raise ValueError(
                f"{type(tensor_env).__name__} has {what}s of {size} numbers, and the {what} space is {space}: make it a Box "
                f"of shape ({size},)" + (", or Discrete if there is one action." if what == "action" else ".")
            )
