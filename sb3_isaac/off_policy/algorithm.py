"""What DQN and DDPG share: when they train in tensors, and how they collect transitions then."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, cast

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutReturn, TrainFreq, TrainFrequencyUnit

from sb3_isaac.buffers.replay_buffer import DeviceReplayBuffer, ReplaySamples
from sb3_isaac.buffers.sb3_buffer import SB3_HAS_N_STEPS, STANDARD_BUFFERS, use_device_buffer
from sb3_isaac.device.cuda_graph import CudaGraph, check_compile
from sb3_isaac.device.host import HostView, same_device
from sb3_isaac.envs.tensor_path import supports_tensors, wrapper_without_tensors
from sb3_isaac.off_policy.rollout import TensorRun

CHUNK = 8192
"""Rows of a large batch that a CPU works through at once: their activations stay in its cache."""
SAMPLE_ROWS = 4096
"""Small batches are drawn from the replay buffer together, up to so many transitions."""


# -- where training runs ---------------------------------------------------------------------------------------------


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
    in_the_way = wrapper_without_tensors(model.env)
    if in_the_way is not None:
        raise ValueError(in_the_way)
    if supports_tensors(model.env):
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
    if model.compile:
        model.env.tensor_env.compile()
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
    """Draws minibatches and has gradient steps done on them, on a GPU also in a CUDA graph.

    :param model: its replay buffer is a DeviceReplayBuffer
    :param update: from transitions and the number of minibatches that they are; must be safe to capture
    :param captured: whether in a CUDA graph
    """

    def __init__(self, model: OffPolicyAlgorithm, update: Callable[[ReplaySamples, int], None], captured: bool) -> None:
        self._model, self._update, self._may_capture = model, update, captured
        self._graphs: Dict[Any, Optional[CudaGraph]] = {}
        self._places: Dict[Any, th.Tensor] = {}
        self._newest = th.zeros((), dtype=th.int64, device=model.device)

    def run(self, gradient_steps: int, batch_size: int) -> None:
        """``gradient_steps`` steps on minibatches of ``batch_size`` transitions."""
        buffer = cast(DeviceReplayBuffer, self._model.replay_buffer)
        for steps in pieces(gradient_steps, max(1, SAMPLE_ROWS // batch_size)):
            n = steps.stop - steps.start
            if self._may_capture and same_device(buffer.storage_device, self._model.device):
                self._run_captured(buffer, n, n * batch_size)
            else:
                self._update(buffer.sample_tensors(n * batch_size, env=self._model._vec_normalize_env), n)

    def _run_captured(self, buffer: DeviceReplayBuffer, n: int, n_samples: int) -> None:
        key = (n, n_samples, buffer)
        places = buffer.draw(n_samples)
        if key in self._graphs:
            self._places[key].copy_(places)
        else:
            self._places[key] = places
        static = self._places[key]
        self._newest.fill_(buffer.newest)

        def update() -> None:
            self._update(buffer.at(static, env=self._model._vec_normalize_env, newest=self._newest), n)

        if key not in self._graphs:  # once without a graph, which initialises CUDA's libraries
            self._graphs[key] = None
            update()
            return
        graph = self._graphs[key]
        if graph is None:
            graph = self._graphs[key] = CudaGraph(update)
        graph()
