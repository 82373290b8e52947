"""What DQN and DDPG share: when they train in tensors, and how they collect transitions then."""

from __future__ import annotations

import contextlib
import time
import warnings
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, cast

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutReturn, TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnvWrapper

from sb3_isaac import wrappers
from sb3_isaac.backends.base import StepResult
from sb3_isaac.buffers import DeviceReplayBuffer, ReplaySamples
from sb3_isaac.cuda_graph import CudaGraph, check_compile
from sb3_isaac.host import HostView, to_host
from sb3_isaac.replay_files import SB3_HAS_N_STEPS, STANDARD_BUFFERS, use_device_buffer
from sb3_isaac.training_log import TrainingLog
from sb3_isaac.vec_env import supports_tensors

CHUNK = 2048
"""Rows of a large batch that a CPU works through at once: their activations stay in its cache."""
SAMPLE_ROWS = 4096
"""Small batches are drawn from the replay buffer together, up to so many transitions."""
MAX_REPLAY_RATIO = 1000.0
MAX_UPDATES_PER_STEP = 100.0
"""More gradient samples per transition, or more gradient steps per vectorised step, draw a warning."""


# -- where training runs ---------------------------------------------------------------------------------------------


def same_device(a: Any, b: Any) -> bool:
    """Whether two torch devices are one ("cuda" is "cuda:0")."""
    a, b = th.device(a), th.device(b)
    return bool(a.type == b.type and (a.index or 0) == (b.index or 0))


def _obstacle(model: Any) -> Optional[str]:
    if not same_device(model.env.device, model.device):
        return f"the environment is on {model.env.device} and the model on {model.device}: give both the same device"
    if model.replay_buffer_class not in STANDARD_BUFFERS:
        name = model.replay_buffer_class.__name__
        return f"replay_buffer_class={name} works in numpy: leave it out, or use SB3's own algorithm"
    normalize = model.get_vec_normalize_env()
    if normalize is not None and normalize.observation_space.shape != model.observation_space.shape:
        return (
            "the replay buffer keeps observations as they are before VecNormalize: put VecNormalize outside the other wrapper"
        )
    return None


def on_tensor_path(model: OffPolicyAlgorithm) -> bool:
    """Whether ``model`` can train in tensors: its env supports them, on its device, with a standard replay buffer."""
    return model.env is not None and supports_tensors(model.env) and _obstacle(model) is None


def check_tensor_path(model: Any, extras: Dict[str, bool]) -> bool:
    """As :func:`on_tensor_path`, before training starts, when what cannot work has to be said.

    :param extras: options that exist on the tensor path only, and whether they are in use
    :raises ValueError: if an IsaacVecEnv would be trained on in numpy, many times slower, or one of ``extras`` be ignored
    :raises RuntimeError: if ``compile`` is asked for and torch is too old
    """
    if wrappers.check_tensor_path(model.env):
        why = _obstacle(model)
        if why is not None:
            raise ValueError(f"Training cannot run in tensors, because {why}.")
        if model.compile:
            check_compile(model.device)
        return True
    extras = {
        **extras,
        "reward_scale": model.reward_scale != 1.0,
        "spread_time_limits": model.spread_time_limits,
        "compile": model.compile,
        "n_steps (before SB3 2.7)": model.n_steps > 1 and not SB3_HAS_N_STEPS,
    }
    used = [name for name, in_use in extras.items() if in_use]
    if used:
        raise ValueError(f"{', '.join(used)} needs an IsaacVecEnv (sb3_isaac.make_vec_env): leave it out elsewhere.")
    return False


@contextlib.contextmanager
def starting(model: Any, reset_num_timesteps: bool) -> Iterator[None]:
    """Around SB3's ``_setup_learn`` on the tensor path."""
    use_device_buffer(model)
    envs_are_reset = reset_num_timesteps or model._last_obs is None
    # SB3 would make an object of the noise for each environment
    noise, model.action_noise = model.action_noise, None
    try:
        yield
    finally:
        model.action_noise = noise
    if envs_are_reset:
        if model.n_steps > 1:
            model.replay_buffer.end_trajectories()
        if model.spread_time_limits:
            model.env.spread_time_limits()


# -- the rollout -----------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """What happened in one step of all environments: tensors that the next step overwrites."""

    actions: th.Tensor
    result: StepResult
    row: th.Tensor
    """For the replay buffer, see :meth:`DeviceReplayBuffer.pack`"""
    episodes: th.Tensor
    """(2, N) float32, see :meth:`TrainingLog.note_episodes`"""


class TensorRun:
    """What training in tensors keeps besides SB3's attributes. Never saved.

    :param model: its env is on the tensor path, its replay buffer is a DeviceReplayBuffer
    :param act: from observations (N, obs_dim), and whether actions are to be random, to the actions for the env and those
        for the replay buffer
    :param after_step: called with ``dones`` (N,) after each step
    :param losses: names, see :class:`TrainingLog`
    :param compiled: on a GPU, capture a step in a CUDA graph, if the simulator can be captured
    """

    def __init__(
        self,
        model: OffPolicyAlgorithm,
        act: Callable[[th.Tensor, bool], Tuple[th.Tensor, th.Tensor]],
        after_step: Optional[Callable[[th.Tensor], None]],
        losses: Sequence[str],
        compiled: bool,
    ) -> None:
        self._model, self._act, self._after_step = model, act, after_step
        env: Any = model.env
        self.env = env
        self.log = TrainingLog(self.env, losses, model._episode_num)
        self._compiled = compiled and self.env.tensor_env.capturable
        self._warm = False
        self._graph: Optional[CudaGraph] = None
        self._graph_for: Any = None
        self._env_obs: th.Tensor = self.env.obs_tensor
        self._inputs: List[Tuple[Any, th.Tensor]] = []
        self._rebound: List[Tuple[Any, Dict[str, th.Tensor]]] = []
        self.warned = False

    def begin(self) -> None:
        """Before the steps of a rollout: see that a captured step still does what an uncaptured one would."""
        if not self._compiled:
            return
        settings = [
            {k: v for k, v in vars(layer).items() if isinstance(v, (bool, int, float, str))} for layer in self._layers()
        ]
        if settings != self._graph_for:
            self._graph, self._graph_for, self._warm = None, settings, False

    def step(self, random: bool) -> Step:
        """Act, step the environments and store what happened."""
        buffer: Any = self._model.replay_buffer
        if self._graph is not None and not random:
            step = self._replay()
        elif self._compiled and self._warm and not random:
            self._capture()
            step = self._replay()
        else:  # also once before a capture, which initialises CUDA's libraries
            step = self._step(random)
            self._warm = self._warm or not random
        buffer.add_row(step.row, self.env.valid)
        self.log.note_episodes(step.episodes)
        return step

    def _step(self, random: bool) -> Step:
        env, vec_normalize = self.env, cast(Any, self._model._vec_normalize_env)
        # The buffer keeps what VecNormalize saw, the policy acts on what it made of it: its statistics change
        obs = (env.obs_tensor if vec_normalize is None else vec_normalize.get_original_obs_tensor()).clone()
        actions, buffer_actions = self._act(env.obs_tensor, random)
        before = time.perf_counter()
        result = env.step_tensor(actions)
        self.log.seconds["env"] += time.perf_counter() - before
        next_obs, reward = result.final_obs, result.reward
        if vec_normalize is not None:
            next_obs = vec_normalize.get_original_final_obs_tensor()
            reward = vec_normalize.get_original_reward_tensor()
        buffer = cast(DeviceReplayBuffer, self._model.replay_buffer)
        row = buffer.pack(obs, next_obs, buffer_actions, reward, result.terminated, result.truncated)
        # A length of 0 marks the environments whose episode goes on
        episodes = th.stack((env.episode_returns, env.episode_lengths * env.dones))
        if self._after_step is not None:
            self._after_step(env.dones)
        return Step(actions, result, row, episodes)

    def _layers(self) -> List[Any]:
        """The wrappers, the env and the simulator."""
        layers = [self.env]
        while isinstance(layers[-1], VecEnvWrapper):
            layers.append(layers[-1].venv)
        return [*layers, self.env.tensor_env]

    def _capture(self) -> None:
        layers = self._layers()
        # What a layer holds at the start of a step must lie where it lay in the capture
        self._inputs = [(layer, layer.obs_tensor.clone()) for layer in layers if hasattr(layer, "obs_tensor")]

        def step() -> Step:
            for layer, obs in self._inputs:
                layer.obs_tensor = obs
            taken = self._step(False)
            for layer, obs in self._inputs:
                obs.copy_(layer.obs_tensor)
            return taken

        before = [dict(vars(layer)) for layer in layers]
        generator = getattr(self.env.tensor_env, "generator", None)
        self._graph = CudaGraph(step, [] if generator is None else [generator])
        # Attributes that a step assigns anew are to stay the graph's tensors
        self._rebound = [
            (layer, {k: v for k, v in vars(layer).items() if isinstance(v, th.Tensor) and old.get(k) is not v})
            for layer, old in zip(layers, before)
        ]
        self._env_obs = self.env.obs_tensor

    def _replay(self) -> Step:
        assert self._graph is not None
        if self.env.obs_tensor is not self._env_obs:  # somebody else stepped or reset the environments
            for layer, obs in self._inputs:
                obs.copy_(layer.obs_tensor)
        step: Step = self._graph()
        for owner, tensors in self._rebound:
            vars(owner).update(tensors)
        self._env_obs = self.env.obs_tensor
        return step

    def last_obs(self) -> Any:
        """(N, obs_dim) numpy array: what the agent acts on next."""
        return to_host(self.env.obs_tensor).copy()

    def note_update(self, model: OffPolicyAlgorithm, gradient_steps: int, batch_size: int) -> None:
        """Keep the replay ratio: gradient samples for each transition collected. Warns once where it makes no sense."""
        train_freq: Any = model.train_freq
        per_step = gradient_steps / train_freq.frequency
        ratio = self.log.replay_ratio = per_step * batch_size / model.n_envs
        if not self.warned and (ratio > MAX_REPLAY_RATIO or per_step > MAX_UPDATES_PER_STEP):
            self.warned = True
            why = " (gradient_steps=-1 means one per environment and step)" if model.gradient_steps < 0 else ""
            warnings.warn(
                f"{per_step:g} gradient steps for each step of {model.n_envs} environments{why}, a replay ratio of "
                f"{ratio:g}: training will be slow, set gradient_steps to a small number.",
                stacklevel=3,
            )


def collect_rollouts(
    model: OffPolicyAlgorithm,
    run: TensorRun,
    callback: BaseCallback,
    train_freq: TrainFreq,
    learning_starts: int,
    log_interval: Optional[int],
) -> RolloutReturn:
    """SB3's ``collect_rollouts`` in tensors. Callbacks find SB3's names in ``locals``, copied to the host if looked at."""
    env, log = run.env, run.log
    if env.num_envs > 1 and train_freq.unit == TrainFrequencyUnit.EPISODE:
        raise ValueError(f"train_freq in episodes needs a single environment, here are {env.num_envs}: count in steps.")
    num_collected_steps, num_collected_episodes = 0, 0
    progress, continue_training = 0, True
    start = time.perf_counter()
    run.begin()
    callback.on_rollout_start()
    with th.no_grad():
        while progress < train_freq.frequency:
            # SB3 stores transitions after the callback; but that may step the same simulator, which overwrites them
            step = run.step(random=model.num_timesteps < learning_starts)
            model.num_timesteps += env.num_envs
            num_collected_steps += 1
            actions, rewards, dones = HostView(step.actions), HostView(step.result.reward), HostView(env.dones)
            new_obs, infos = HostView(step.result.obs), env.make_infos(step.result)
            callback.update_locals(locals())
            continue_training = callback.on_step()
            if not continue_training:
                break
            model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)
            model._on_step()
            if train_freq.unit == TrainFrequencyUnit.EPISODE:
                num_collected_episodes += int(env.dones)
            progress = num_collected_steps if train_freq.unit == TrainFrequencyUnit.STEP else num_collected_episodes
            log.read_if_due(model, log_interval)
    log.seconds["rollout"] += time.perf_counter() - start
    log.read_if_due(model, log_interval, force=not continue_training or model.num_timesteps >= model._total_timesteps)
    if continue_training:
        callback.on_rollout_end()
    return RolloutReturn(num_collected_steps * env.num_envs, num_collected_episodes, continue_training)


# -- the update ------------------------------------------------------------------------------------------------------


def pieces(n: int, size: int) -> List[slice]:
    """Slices of at most ``size`` rows that cover ``n`` rows."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def chunk_rows(model: OffPolicyAlgorithm) -> int:
    """Rows that the networks work through at once."""
    return max(SAMPLE_ROWS, model.batch_size) if model.device.type == "cuda" else CHUNK


class Updates:
    """Draws minibatches and has gradient steps done on them; on a GPU, if compiled, in a CUDA graph.

    :param model: its replay buffer is a DeviceReplayBuffer
    :param update: from transitions and the number of minibatches that they are; must be safe to capture
    :param compiled: whether to capture
    """

    def __init__(
        self, model: OffPolicyAlgorithm, update: Callable[[ReplaySamples, int], None], compiled: bool
    ) -> None:
        self._model, self._update, self._compiled = model, update, compiled
        self._captured: Dict[Any, Optional[CudaGraph]] = {}
        self._places: Dict[Any, th.Tensor] = {}
        self._newest = th.zeros((), dtype=th.int64, device=model.device)

    def run(self, gradient_steps: int, batch_size: int) -> None:
        """``gradient_steps`` steps on minibatches of ``batch_size`` transitions."""
        buffer = cast(DeviceReplayBuffer, self._model.replay_buffer)
        for steps in pieces(gradient_steps, max(1, SAMPLE_ROWS // batch_size)):
            n = steps.stop - steps.start
            if self._compiled and same_device(buffer.storage_device, self._model.device):
                self._run_captured(buffer, n, n * batch_size)
            else:
                self._update(buffer.sample_tensors(n * batch_size, env=self._model._vec_normalize_env), n)

    def _run_captured(self, buffer: DeviceReplayBuffer, n: int, n_samples: int) -> None:
        key = (n, n_samples, buffer)
        places = buffer.draw(n_samples)
        if key in self._captured:
            self._places[key].copy_(places)
        else:
            self._places[key] = places
        static = self._places[key]
        self._newest.fill_(buffer.newest)

        def update() -> None:
            self._update(buffer.at(static, env=self._model._vec_normalize_env, newest=self._newest), n)

        if key not in self._captured:  # once without a graph, which initialises CUDA's libraries
            self._captured[key] = None
            update()
            return
        graph = self._captured[key]
        if graph is None:
            graph = self._captured[key] = CudaGraph(update)
        graph()
