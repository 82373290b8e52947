"""DQN (https://arxiv.org/abs/1312.5602) as Stable-Baselines3 has it, at tensor speed."""

from __future__ import annotations

import time
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import stable_baselines3
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import RolloutReturn
from torch.nn import functional as F

from sb3_isaac.buffers import sb3_buffer as replay_files
from sb3_isaac.buffers.replay_buffer import ReplaySamples
from sb3_isaac.dqn.fast_policy import FastQNetworks
from sb3_isaac.off_policy import algorithm as off_policy
from sb3_isaac.off_policy.exploration import epsilon_greedy, spread
from sb3_isaac.off_policy.rollout import TensorRun


class DQN(stable_baselines3.DQN):
    """Stable-Baselines3's DQN, trained in tensors where the environment is an IsaacVecEnv.

    Everything that SB3's DQN takes means the same; here is what is different or new. With any other environment it is
    SB3's DQN, and the options marked * raise an error.

    With thousands of environments: ``learning_starts``, ``target_update_interval``, ``exploration_fraction`` and
    ``total_timesteps`` count transitions of all environments, ``train_freq`` counts steps of all environments at once.
    So ``target_update_interval = n_envs`` updates the target at every step, and smaller values cannot do more.
    ``gradient_steps=-1`` would mean ``n_envs`` updates for each step: use a small number. ``log_interval`` (episodes) is
    looked at once in 100 steps, when statistics and losses are read from the device; losses are means since the last time.

    :param n_steps: rewards to sum before bootstrapping; SB3's own option from 2.7 on, here for every version
    :param double_q: Double DQN, https://arxiv.org/abs/1509.06461 *
    :param per_env_epsilon: constant epsilons, spread geometrically between the first and the last environment, e.g.
        (1.0, 0.01), in place of the exploration schedule (Ape-X, https://arxiv.org/abs/1803.00933) *
    :param reward_scale: factor on the rewards of the update, not on those that are logged or stored *
    :param spread_time_limits: begin with episodes of random age, so that time-outs do not come all at once *
    :param compile: compile the simulator's step with torch.compile; on a GPU, capture acting, stepping and updates in CUDA
        graphs, for MLP policies. Needs torch 2. The results are the same, but for rounding. *
    :raises ValueError: for an option marked * with an environment that has no tensor interface
    """

    def __init__(
        self,
        policy: Any,
        env: Any,
        *args: Any,
        n_steps: int = 1,
        double_q: bool = False,
        per_env_epsilon: Optional[Sequence[float]] = None,
        reward_scale: float = 1.0,
        spread_time_limits: bool = False,
        compile: bool = False,
        **kwargs: Any,
    ) -> None:
        self.n_steps = n_steps
        self.double_q = double_q
        self.per_env_epsilon = per_env_epsilon
        self.reward_scale = reward_scale
        self.spread_time_limits = spread_time_limits
        self.compile = compile
        self._run: Optional[TensorRun] = None  # not None: training runs in tensors
        self._fast: Optional[FastQNetworks] = None  # not None: the networks are updated without autograd
        if replay_files.SB3_HAS_N_STEPS:
            kwargs["n_steps"] = n_steps
        super().__init__(policy, env, *args, **kwargs)

    def _setup_model(self) -> None:
        if off_policy.on_tensor_path(self):
            replay_files.use_device_buffer(self)
        super()._setup_model()

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: Any = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> Tuple[int, BaseCallback]:
        if self._fast is not None:
            self._fast.adam.sync()
        self._run = self._fast = None
        args = (total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        extras = {"double_q": self.double_q, "per_env_epsilon": self.per_env_epsilon is not None}
        if not off_policy.check_tensor_path(self, extras):
            return super()._setup_learn(*args)
        with off_policy.starting(self, reset_num_timesteps):
            result = super()._setup_learn(*args)
        self._fast = FastQNetworks(self) if FastQNetworks.supports(self) else None
        captured = self.compile and self._fast is not None and self.device.type == "cuda"
        self._run = TensorRun(self, self._act, None, ("loss",), captured)
        self._updates = off_policy.Updates(self, self._update, captured)
        # Tensors on the device, because a captured graph reads them where they lie; a number is faster elsewhere
        self._lr = th.zeros((), device=self.device) if captured else None
        self._epsilon: Any = th.full((1,), self.exploration_rate, device=self.device) if captured else None
        if self.per_env_epsilon is not None:
            self._epsilon = spread("per_env_epsilon", self.per_env_epsilon, self.n_envs, self.device, most=1.0)
            self.exploration_rate = self._mean_epsilon = float(self._epsilon.mean())
        return result

    # -- the rollout -------------------------------------------------------------------------------------------------

    @th.no_grad()
    def _act(self, obs: th.Tensor, random: bool) -> Tuple[th.Tensor, th.Tensor]:
        """(N,) int64 actions for observations (N, obs_dim), for the env and (the same) for the replay buffer."""
        n_actions = int(self.action_space.n)  # type: ignore[attr-defined]
        if random:
            actions = th.randint(n_actions, (len(obs),), device=obs.device)
        else:
            q = self.q_net(obs) if self._fast is None else self._fast.acting.forward(obs)
            epsilon = self.exploration_rate if self._epsilon is None else self._epsilon
            actions = epsilon_greedy(q.argmax(1), n_actions, epsilon)
        return actions, actions

    def collect_rollouts(  # type: ignore[override]
        self,
        env: Any,
        callback: BaseCallback,
        train_freq: Any,
        replay_buffer: Any,
        action_noise: Any = None,
        learning_starts: int = 0,
        log_interval: Optional[int] = None,
    ) -> RolloutReturn:
        if self._run is None:
            return super().collect_rollouts(
                env, callback, train_freq, replay_buffer, action_noise, learning_starts, log_interval
            )
        if self._fast is None:
            self.policy.set_training_mode(False)
        return off_policy.collect_rollouts(self, self._run, callback, train_freq, learning_starts, log_interval)

    def _on_step(self) -> None:
        if self._fast is None:
            super()._on_step()
            if self._run is None or self.per_env_epsilon is None:
                return
            self.exploration_rate = self._mean_epsilon
        else:
            self._n_calls += 1
            if self._n_calls % max(self.target_update_interval // self.n_envs, 1) == 0:
                self._fast.update_target(self.tau)
            if self.per_env_epsilon is None:
                before = self.exploration_rate
                self.exploration_rate = self.exploration_schedule(self._current_progress_remaining)
                if self._epsilon is not None and self.exploration_rate != before:
                    self._epsilon.fill_(self.exploration_rate)
        self.logger.record("rollout/exploration_rate", self.exploration_rate)

    # -- the update --------------------------------------------------------------------------------------------------

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        if self._run is None:
            super().train(gradient_steps, batch_size)
            return
        start = time.perf_counter()
        self._update_learning_rate(self.policy.optimizer)
        if self._lr is not None:
            self._lr.fill_(self.policy.optimizer.param_groups[0]["lr"])
        if self._fast is None:
            self.policy.set_training_mode(True)
        self._updates.run(gradient_steps, batch_size)
        self._n_updates += gradient_steps
        self._run.log.loss_counts[0] += gradient_steps
        self._run.log.seconds["update"] += time.perf_counter() - start
        self._run.note_update(self, gradient_steps, batch_size)

    @th.no_grad()
    def _targets(self, samples: ReplaySamples) -> th.Tensor:
        """(B, 1) returns, bootstrapped from the target network."""
        next_obs = samples.next_observations
        if self._fast is not None:
            values = self._fast.next_values(next_obs.flatten(1), self.double_q).unsqueeze(1)
        else:
            q = self.q_net_target(next_obs)
            best = self.q_net(next_obs).argmax(1, keepdim=True) if self.double_q else q.argmax(1, keepdim=True)
            values = q.gather(1, best)
        discounts = self.gamma if samples.discounts is None else samples.discounts
        values = values * (1.0 - samples.dones) * discounts
        return values.add_(samples.rewards, alpha=self.reward_scale)

    def _update(self, samples: ReplaySamples, gradient_steps: int) -> None:
        """Gradient steps on the minibatches that ``samples`` consists of, one after the other."""
        assert self._run is not None
        loss_sum = self._run.log.loss_sums[0]
        # The target network stays as it is during the series: without double_q, all targets can be had at once
        targets = None if self.double_q else self._targets(samples)
        actions = samples.actions.long()
        for rows in off_policy.pieces(len(actions), len(actions) // gradient_steps):
            obs = samples.observations[rows]
            if targets is not None:
                target = targets[rows]
            else:
                target = self._targets(ReplaySamples(*(None if x is None else x[rows] for x in samples)))  # type: ignore[arg-type]
            if self._fast is not None:
                self._fast.gradient_step(obs.flatten(1), actions[rows], target, self.max_grad_norm, self._lr, loss_sum)
                continue
            loss = F.smooth_l1_loss(self.q_net(obs).gather(1, actions[rows]), target)
            self.policy.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
            loss_sum.add_(loss.detach())

    # -- files -------------------------------------------------------------------------------------------------------

    def set_parameters(self, *args: Any, **kwargs: Any) -> None:
        super().set_parameters(*args, **kwargs)
        if self._fast is not None:
            self._fast.adam.refresh()

    def get_parameters(self) -> Dict[str, Dict[str, Any]]:
        if self._fast is not None:
            self._fast.adam.sync()
        return super().get_parameters()

    def save(self, path: Any, exclude: Optional[Iterable[str]] = None, include: Optional[Iterable[str]] = None) -> None:
        with replay_files.portable(self, None if self._run is None else self._run.last_obs()):
            super().save(path, exclude, include)

    def _excluded_save_params(self) -> List[str]:
        return [*super()._excluded_save_params(), "_run", "_fast", "_updates", "_lr", "_epsilon", "_mean_epsilon"]

    def save_replay_buffer(self, path: Any) -> None:
        """Save the replay buffer as SB3's own, which stock SB3 loads too."""
        with replay_files.stock_buffer(self):
            super().save_replay_buffer(path)

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        super().load_replay_buffer(path, truncate_last_traj)
        if off_policy.on_tensor_path(self):
            replay_files.use_device_buffer(self)
