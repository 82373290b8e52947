"""VecNormalize: SB3's, and over an environment with a tensor path in tensors."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any, Dict, List, Optional, Tuple, Union

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env import VecNormalize as SB3VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_isaac._for_c import dense, pointer
from sb3_isaac._native import in_c, library
from sb3_isaac.backends.base import StepResult
from sb3_isaac.device import ranks
from sb3_isaac.device.fused import MOST_UNITS, in_triton
from sb3_isaac.envs.fused import normalize_step
from sb3_isaac.envs.last_finite import check_statistics
from sb3_isaac.envs.portable_pickle import PortablePickler, load_pickle
from sb3_isaac.envs.running_mean_std import LiveRunningMeanStd, RunningMoments
from sb3_isaac.envs.tensor_path import FORWARDED, TensorVecEnv, forward_tensor_path, supports_tensors
from sb3_isaac.files.atomic import write
from sb3_isaac.settings.check import check, defaults_of

SETTINGS = ("training", "norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon")


class _TensorState:
    """What the tensor path keeps beside SB3's attributes, all at fixed addresses. Never saved.

    :param venv: the environment inside
    :param n_obs: how many entries of an observation have statistics
    :param epsilon: see :class:`VecNormalize`
    """

    def __init__(self, venv: TensorVecEnv, n_obs: int, epsilon: float) -> None:
        self.venv = venv
        # One column per observation entry, the last for the discounted return: updated together, in half the kernels.
        self.moments = RunningMoments(n_obs + 1, venv.device, epsilon)
        self.obs_moments = self.moments.columns(slice(0, -1))
        self.return_moments = self.moments.columns(slice(-1, None))
        self.batch = th.zeros(n_obs + 1, venv.num_envs, dtype=th.float64, device=venv.device)
        self.obs_rows, self.returns = self.batch[:-1], self.batch[-1]
        self.in_triton = False
        self.gamma = th.zeros((), dtype=th.float64, device=venv.device)
        """What Triton discounts by: a number among a kernel's arguments would be float32"""
        self.rebase()

    def rebase(self) -> None:
        """Take the present statistics for those of all ranks: what comes on top of them is this rank's own."""
        self.base = th.stack((self.moments.mean, self.moments.var, self.moments.count))

    def live(self, name: str, rms: RunningMeanStd) -> LiveRunningMeanStd:
        """``obs_rms`` or ``ret_rms`` as an object over the tensors, with the numbers of ``rms``."""
        moments, shape = (self.obs_moments, (len(self.obs_rows),)) if name == "obs_rms" else (self.return_moments, ())
        live = LiveRunningMeanStd(moments, shape)
        live.assign(rms)
        self.rebase()
        return live


class VecNormalize(SB3VecNormalize):
    """SB3's VecNormalize: the same arguments, attributes and files.

    Over an environment with a tensor path it has one too (``reset_tensor``, ``step_tensor``, ``obs_tensor``, ...): the
    running statistics live on the device and are updated without a host synchronisation. ``reset`` and ``step`` run
    SB3's own code on the same statistics, so both paths can be mixed. Over any other environment it is SB3's class.

    ``obs_rms`` and ``ret_rms`` are SB3's RunningMeanStd objects, read from the device when looked at; assigning to them
    (as ``sync_envs_normalization`` does) writes to the device. What ``save`` writes is a stock VecNormalize in numpy.

    Who captures ``step_tensor`` in a CUDA graph captures the present ``training``, ``norm_obs``, ``norm_reward``,
    ``gamma`` and clipping ranges with it; the statistics may change.

    :raises ValueError: for observations that cannot be normalised, or a number out of range
    """

    tensor_path = True
    _state: Optional[_TensorState] = None
    device: th.device
    dones: th.Tensor
    obs_tensor: th.Tensor
    """(N, obs_dim) float32: the current observation, normalised."""

    def __init__(
        self,
        venv: VecEnv,
        training: bool = True,
        norm_obs: bool = True,
        norm_reward: bool = True,
        clip_obs: float = 10.0,
        clip_reward: float = 10.0,
        gamma: float = 0.99,
        epsilon: float = 1e-8,
        norm_obs_keys: Optional[List[str]] = None,
    ) -> None:
        given = {"training": training, "norm_obs": norm_obs, "norm_reward": norm_reward, "clip_obs": clip_obs}
        given.update(clip_reward=clip_reward, gamma=gamma, epsilon=epsilon)
        check("normalize", given, where="VecNormalize's arguments", defaults=defaults_of(VecNormalize))
        super().__init__(venv, training, norm_obs, norm_reward, clip_obs, clip_reward, gamma, epsilon, norm_obs_keys)
        self._start_tensor_path()

    def _start_tensor_path(self) -> None:
        """Move the statistics to the device of the environment, if it has a tensor path."""
        venv = self.venv
        if not supports_tensors(venv):
            return
        if not isinstance(self.observation_space, spaces.Box):
            raise ValueError(f"In tensors VecNormalize needs Box observations, not {self.observation_space}.")
        forward_tensor_path(self)
        # With room for statistics of observations also if there are none: they may be assigned later
        state = _TensorState(venv, self.observation_space.shape[0], self.epsilon)
        for name in ("obs_rms", "ret_rms"):
            if name in self.__dict__:
                self.__dict__[name] = state.live(name, self.__dict__[name])
        # What a step assigns anew are attributes of the wrapper itself: there CudaGraph looks for such tensors.
        self._original_reward = th.zeros(self.num_envs, device=self.device)
        self._original_final_obs = venv.obs_tensor
        self._state = state
        self.obs_tensor = self.normalize_obs_tensor(venv.obs_tensor)

    def compile_bookkeeping(self, compiled: bool, precision: Optional[str] = None) -> None:
        """How a step is taken from now on. Results are the same to rounding.

        :param compiled: in C, on a CPU that has a compiler
        :param precision: an algorithm's; None: not in Triton
        """
        if self._state is not None:
            narrow = len(self._state.obs_rows) <= MOST_UNITS
            self._state.in_triton = narrow and in_triton(precision, self.device)
            self._state.moments.in_c = in_c(compiled, self.device) and not self._state.in_triton

    def _end_tensor_path(self) -> None:
        """Back to SB3's objects, with the same numbers."""
        statistics: Dict[str, Any] = {
            name: self.__dict__[name].copy() for name in ("obs_rms", "ret_rms") if name in self.__dict__
        }
        self.__dict__.update(statistics, returns=self.returns.copy(), _state=None)

    # -- the tensor path ---------------------------------------------------------------------------------------------

    def reset_tensor(self) -> th.Tensor:
        """Reset all environments. Returns obs (N, obs_dim) float32, normalised."""
        state = self._tensor_state()
        obs = state.venv.reset_tensor()
        state.returns.zero_()
        if self.training and self.norm_obs:
            self._check_statistics()
            state.obs_rows.copy_(obs.t())
            state.obs_moments.update(state.obs_rows)
        self.obs_tensor = self.normalize_obs_tensor(obs)
        return self.obs_tensor

    def step_tensor(self, actions: th.Tensor) -> StepResult:
        """One step on the device; ``obs``, ``final_obs`` and ``reward`` of the result are normalised.

        As in SB3, the statistics take in ``obs`` (after the resets) and not ``final_obs``, and the reward is scaled with
        the statistics that already know it.
        """
        state = self._tensor_state()
        result = state.venv.step_tensor(actions)
        self._original_reward, self._original_final_obs = result.reward, result.final_obs
        if (state.moments.in_c or state.in_triton) and self._is_plain():
            return self._finish_in_c(state, result) if state.moments.in_c else self._finish_in_triton(state, result)
        if self.training:
            th.add(result.reward, state.returns, alpha=self.gamma, out=state.returns)
            if self.norm_obs:
                self._check_statistics()
                state.obs_rows.copy_(result.obs.t())
                state.moments.update(state.batch)
            else:
                state.return_moments.update(state.returns.unsqueeze(0))
        state.returns.masked_fill_(self.dones, 0.0)
        self.obs_tensor = self.normalize_obs_tensor(result.obs)
        return result._replace(
            obs=self.obs_tensor,
            reward=self.normalize_reward_tensor(result.reward),
            final_obs=self.normalize_obs_tensor(result.final_obs),
        )

    def _finish_in_c(self, state: _TensorState, result: StepResult) -> StepResult:
        """The rest of :meth:`step_tensor` in one call, see ``moments.c``."""
        if self.norm_obs:
            self._check_statistics()
        n, columns, moments = self.num_envs, len(state.obs_rows), state.moments
        obs, final_obs = (dense(x, n * columns) for x in (result.obs, result.final_obs))
        reward, dones = dense(result.reward, n), dense(self.dones, n, dtype=th.bool)
        finished = result  # what it stays, or where C writes
        if self.norm_obs:
            new_obs, new_final_obs = obs.new_empty(2, n, columns).unbind(0)
            finished = finished._replace(obs=new_obs, final_obs=new_final_obs)
        if self.norm_reward:
            finished = finished._replace(reward=reward.new_empty(n))
        written = (finished.obs, finished.final_obs) if self.norm_obs else (None, None)
        settings = (bool(self.training), float(self.gamma), float(self.clip_obs), float(self.clip_reward))
        statistics = (moments.mean, moments.var, moments.count, moments.epsilon, moments.scale, moments.offset)
        library().normalize_step(
            *(n, columns, *map(pointer, (obs, final_obs, reward, dones)), *settings),
            *map(pointer, (state.batch, *statistics, *written, finished.reward if self.norm_reward else None)),
        )
        self.obs_tensor = finished.obs
        return finished

    def _finish_in_triton(self, state: _TensorState, result: StepResult) -> StepResult:
        """The rest of :meth:`step_tensor` in two kernels."""
        if self.norm_obs:
            self._check_statistics()
        state.gamma.fill_(float(self.gamma))
        switches = bool(self.training), bool(self.norm_obs), bool(self.norm_reward)
        clips = float(self.clip_obs), float(self.clip_reward)
        dones = dense(self.dones, self.num_envs, dtype=th.bool)
        finished = normalize_step(result, dones, state.returns, state.moments, state.gamma, *switches, *clips)
        self.obs_tensor = finished.obs
        return finished

    def _is_plain(self) -> bool:
        """Whether observations and rewards are normalised as this class does it, by numbers."""
        own = vars(self)
        if type(self) is not VecNormalize or "normalize_obs_tensor" in own or "normalize_reward_tensor" in own:
            return False
        return all(isinstance(number, (int, float, np.number)) for number in (self.gamma, self.clip_obs, self.clip_reward))

    def factors(self) -> Optional[Tuple[Any, ...]]:
        """What C normalises by: observations' scale, offset and largest number, rewards' scale and largest number; None for
        what stays as it is. None: there is no tensor path, or it may do something else."""
        if self._state is None or not self._is_plain():
            return None
        of_obs, of_reward = self._state.obs_moments, self._state.return_moments
        if self.norm_obs:
            self._check_statistics()
        obs = (of_obs.scale, of_obs.offset, float(self.clip_obs)) if self.norm_obs else (None, None, 0.0)
        return (*obs, of_reward.scale, float(self.clip_reward)) if self.norm_reward else (*obs, None, 0.0)

    def normalize_obs_tensor(self, obs: th.Tensor) -> th.Tensor:
        """:meth:`normalize_obs` for a tensor (..., obs_dim) on any device, for example a replay sample."""
        if not self.norm_obs:
            return obs
        self._check_statistics()
        moments = self._moments_of(self.obs_rms) if self._state is None else self._state.obs_moments
        scale, offset = moments.scale, moments.offset
        if obs.device != scale.device:
            scale, offset = scale.to(obs.device), offset.to(obs.device)
        return th.addcmul(offset, obs, scale).clamp_(-self.clip_obs, self.clip_obs)

    def normalize_reward_tensor(self, reward: th.Tensor) -> th.Tensor:
        """:meth:`normalize_reward` for a tensor of any shape on any device."""
        if not self.norm_reward:
            return reward
        moments = self._moments_of(self.ret_rms) if self._state is None else self._state.return_moments
        return (reward * moments.scale.to(reward.device)).clamp_(-self.clip_reward, self.clip_reward)

    def get_original_obs_tensor(self) -> th.Tensor:
        """(N, obs_dim): the current observation as the environment gave it."""
        return self._tensor_state().venv.obs_tensor

    def get_original_reward_tensor(self) -> th.Tensor:
        """(N,): the rewards of the last step as the environment gave them."""
        self._tensor_state()
        return self._original_reward

    def get_original_final_obs_tensor(self) -> th.Tensor:
        """(N, obs_dim): ``final_obs`` of the last ``step_tensor`` as the environment gave it, for a replay buffer."""
        self._tensor_state()
        return self._original_final_obs

    def state_dict(self) -> Optional[Dict[str, Any]]:
        """Settings, statistics and running returns; None: there is no tensor path."""
        if self._state is None:
            return None
        moments = self._state.moments
        tensors = {"mean": moments.mean, "var": moments.var, "count": moments.count, "returns": self._state.returns}
        return {
            **{name: getattr(self, name) for name in SETTINGS},
            **{name: tensor.detach().cpu().clone() for name, tensor in tensors.items()},
            "obs": self.obs_tensor.cpu().clone(),
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        own = self._tensor_state()
        for name in SETTINGS:
            setattr(self, name, state[name])
        for name in ("mean", "var", "count"):
            getattr(own.moments, name).copy_(state[name])
        own.moments.refresh()
        own.rebase()
        own.returns.copy_(state["returns"])
        self.obs_tensor = state["obs"].to(self.device)

    def share(self) -> None:
        """Take over the statistics of the first rank, see ``device/ranks.py``. All ranks must call it."""
        own = self._tensor_state()
        names = ("mean", "var", "count")
        told = ranks.from_first({name: getattr(own.moments, name).cpu() for name in names})
        for name in names:
            getattr(own.moments, name).copy_(told[name])
        own.moments.refresh()
        own.rebase()

    def merge(self) -> None:
        """Take in what all ranks have seen since the last time: the statistics are then the same, those of one process that
        has seen it all. All ranks must call it."""
        own = self._tensor_state()
        own.moments.merge(own.base)
        own.rebase()

    def _tensor_state(self) -> _TensorState:
        if self._state is None:
            raise RuntimeError(f"{type(self.unwrapped).__name__} has no tensor path: use reset() and step().")
        return self._state

    def _check_statistics(self) -> None:
        """:raises ValueError: if observations are to be normalised of which there are no statistics"""
        if "obs_rms" not in self.__dict__:
            raise ValueError(
                "VecNormalize was made with norm_obs=False and has no statistics of observations: assign obs_rms, for "
                "example with sync_envs_normalization, or make it with norm_obs=True."
            )

    def _moments_of(self, rms: Any) -> RunningMoments:
        """SB3's numpy statistics (there is no tensor path) as tensors."""
        if not isinstance(rms, RunningMeanStd):
            raise ValueError("Dict observations cannot be normalised as one tensor: use normalize_obs.")
        moments = RunningMoments(int(np.size(rms.mean)), th.device("cpu"), self.epsilon)
        LiveRunningMeanStd(moments, np.shape(rms.mean)).assign(rms)
        return moments

    # -- SB3's VecNormalize ------------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        state = self._state
        if state is not None:
            if name in ("obs_rms", "ret_rms"):
                if isinstance(value, LiveRunningMeanStd) and value is not self.__dict__.get(name):
                    warnings.warn(
                        f"{name} of another VecNormalize was assigned: its numbers are copied and will not follow the "
                        "other's, as they would in SB3. Call sync_envs_normalization whenever they should.",
                        stacklevel=2,
                    )
                self.__dict__[name] = state.live(name, value)  # into the tensors, which keep their address
                return
            if name == "venv":
                self._end_tensor_path()
                super().__setattr__(name, value)
                self._start_tensor_path()
                return
            if name == "epsilon":
                state.moments.epsilon.fill_(value)
                state.moments.refresh()
        super().__setattr__(name, value)

    @property
    def returns(self) -> np.ndarray:
        """(N,) float64: discounted returns of the running episodes."""
        if self._state is not None:
            # On a CPU the tensor's own memory, because SB3 writes into it.
            self.__dict__["returns"] = self._state.returns.cpu().numpy()
        return self.__dict__["returns"]  # type: ignore[no-any-return]

    @returns.setter
    def returns(self, value: np.ndarray) -> None:
        self.__dict__["returns"] = value
        if self._state is not None:
            everywhere = np.broadcast_to(np.asarray(value, dtype=np.float64), (self.num_envs,))
            self._state.returns.copy_(th.from_numpy(everywhere.copy()))

    def reset(self) -> Union[np.ndarray, Dict[str, np.ndarray]]:
        obs: Union[np.ndarray, Dict[str, np.ndarray]] = super().reset()
        if self._state is not None:
            self.obs_tensor = self.normalize_obs_tensor(self._state.venv.obs_tensor)
        return obs

    def step_wait(self) -> VecEnvStepReturn:
        step: VecEnvStepReturn = super().step_wait()
        if self._state is not None:
            self._state.returns.masked_fill_(self.dones, 0.0)
            self._original_reward = th.from_numpy(self.old_reward).to(self.device)
            self.obs_tensor = self.normalize_obs_tensor(self._state.venv.obs_tensor)
        return step

    def get_original_obs(self) -> Union[np.ndarray, Dict[str, np.ndarray]]:
        if self._state is None:
            return super().get_original_obs()
        return np.array(self.get_original_obs_tensor().cpu().numpy())

    def get_original_reward(self) -> np.ndarray:
        if self._state is None:
            return super().get_original_reward()
        return np.array(self.get_original_reward_tensor().cpu().numpy())

    # -- files -------------------------------------------------------------------------------------------------------

    def __getstate__(self) -> Dict[str, Any]:
        # Stock SB3 has neither tensors nor what is forwarded.
        state = {name: value for name, value in super().__getstate__().items() if not isinstance(value, th.Tensor)}
        for name in ("_state", *FORWARDED):
            state.pop(name, None)
        if self._state is not None:
            state.update({name: state[name].copy() for name in ("obs_rms", "ret_rms") if name in state})
        return state

    def __reduce__(self) -> Any:
        # Pickled, this is a stock VecNormalize: whoever reads it need not have sb3_isaac.
        return object.__new__, (SB3VecNormalize,), self.__getstate__()

    def __deepcopy__(self, memo: Dict[int, Any]) -> VecNormalize:
        # Of the same class, and without the environment, as SB3's
        env = type(self).__new__(type(self))
        env.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return env

    def set_venv(self, venv: VecEnv) -> None:
        super().set_venv(venv)
        self._start_tensor_path()

    def save(self, save_path: str) -> None:
        """Write a file that stock SB3 loads too, with numpy 1 and numpy 2, on any machine.

        An older file stays until the new one is complete.

        :raises NotFiniteError: the statistics are not finite; a file that is there stays as it is
        """
        check_statistics(self)
        file = io.BytesIO()
        PortablePickler(file).dump(self)
        write(save_path, file.getbuffer())

    @staticmethod
    def load(load_path: str, venv: VecEnv, trust: bool = False) -> VecNormalize:
        """Load what this class or stock SB3 has saved.

        :param load_path: the file
        :param venv: the environment to wrap
        :param trust: whether the file may hold objects of any class, whose code is run
        :raises UntrustedFileError: without ``trust``, if it holds some
        :raises ValueError: if the file holds something else
        """
        saved = load_pickle(load_path, trust)
        if not isinstance(saved, SB3VecNormalize):
            raise ValueError(f"{load_path} holds a {type(saved).__name__}, not a VecNormalize.")
        env = VecNormalize.__new__(VecNormalize)
        vars(env).update(vars(saved))
        env.set_venv(venv)
        return env
