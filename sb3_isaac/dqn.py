"""DQN (https://arxiv.org/abs/1312.5602) as Stable-Baselines3 has it, at tensor speed."""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import stable_baselines3
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import RolloutReturn
from torch.nn import functional as F

from sb3_isaac import off_policy
from sb3_isaac.buffers import ReplaySamples
from sb3_isaac.exploration import epsilon_greedy, spread
from sb3_isaac.fast_mlp import FastMLP, parse_layers
from sb3_isaac.flat_adam import FlatAdam, share_storage

CHUNK = 2048
"""Rows of a batch that are worked through at once: their activations stay in the processor's cache."""


class FastQNetworks:
    """Q-network and target network of plain layers, without autograd.

    :param model: a DQN for which :meth:`supports` is true
    """

    def __init__(self, model: DQN) -> None:
        self.adam = FlatAdam(model.policy.optimizer)
        self.target_flat = share_storage(model.q_net_target.parameters())
        self.n_actions = int(model.action_space.n)  # type: ignore[attr-defined]
        online, target = (parse_layers(net.q_net) for net in (model.q_net, model.q_net_target))
        assert online is not None and target is not None
        self.acting = FastMLP(online, model.n_envs)
        self.online = FastMLP(online, CHUNK)
        self.target = FastMLP(target, CHUNK)
        self._grad = self.target_flat.new_zeros(CHUNK, self.n_actions)

    @staticmethod
    def supports(model: DQN) -> bool:
        """The networks are Linear layers and known activations on flat observations, the optimizer is plain Adam."""
        flat = all(type(net.features_extractor) is FlattenExtractor for net in (model.q_net, model.q_net_target))
        return flat and parse_layers(model.q_net.q_net) is not None and FlatAdam.supports(model.policy.optimizer)

    def next_values(self, next_obs: th.Tensor, double_q: bool) -> th.Tensor:
        """(B,), what the target network thinks of the next observations, for the best action.

        :param double_q: best in the eyes of the online network (https://arxiv.org/abs/1509.06461)
        """
        values = next_obs.new_empty(len(next_obs))
        for rows in off_policy.pieces(len(next_obs), CHUNK):
            q = self.target.forward(next_obs[rows])
            if double_q:
                best = self.online.forward(next_obs[rows]).argmax(1, keepdim=True)
                values[rows] = q.gather(1, best).squeeze(1)
            else:
                th.amax(q, 1, out=values[rows])
        return values

    def gradient_step(
        self, obs: th.Tensor, actions: th.Tensor, targets: th.Tensor, max_grad_norm: float, loss_sum: th.Tensor
    ) -> None:
        """One step of Adam on the Huber loss, whose mean is added to ``loss_sum``.

        :param obs: (B, obs_dim)
        :param actions: (B, 1) int64
        :param targets: (B, 1)
        """
        batch = len(obs)
        for rows in off_policy.pieces(batch, CHUNK):
            q = self.online.forward(obs[rows])
            chosen, target = q.gather(1, actions[rows]), targets[rows]
            loss_sum.add_(F.smooth_l1_loss(chosen, target, reduction="sum"), alpha=1.0 / batch)
            error = chosen.sub_(target).clamp_(-1.0, 1.0).mul_(1.0 / batch)  # the Huber loss's derivative
            grad = self._grad[: len(q)].zero_().scatter_(1, actions[rows], error)
            self.online.backward(grad, accumulate=rows.start > 0)
        self.adam.clip_grad_norm_(max_grad_norm)
        self.adam.step()

    def update_target(self, tau: float) -> None:
        """Polyak's average: the target network goes ``tau`` of the way to the online one."""
        self.target_flat.lerp_(self.adam.flat, tau)


class DQN(stable_baselines3.DQN):
    """Stable-Baselines3's DQN, trained in tensors where the environment is an IsaacVecEnv.

    Everything that SB3's DQN takes means the same; here is what is different or new. With any other environment it is
    SB3's DQN, and the options marked * raise an error.

    With thousands of environments: ``learning_starts``, ``target_update_interval``, ``exploration_fraction`` and
    ``total_timesteps`` count transitions of all environments, ``train_freq`` counts steps of all environments at once.
    So ``target_update_interval = n_envs`` updates the target at every step, and smaller values cannot do more.
    ``gradient_steps=-1`` would mean ``n_envs`` updates for each step: use a small number. ``log_interval`` (episodes) is
    looked at once in 100 steps, when statistics and losses are read from the device.

    :param n_steps: rewards to sum before bootstrapping; SB3's own option from 2.7 on, here for every version
    :param double_q: Double DQN, https://arxiv.org/abs/1509.06461 *
    :param per_env_epsilon: constant epsilons, spread geometrically between the first and the last environment, e.g.
        (1.0, 0.01), in place of the exploration schedule (Ape-X, https://arxiv.org/abs/1803.00933) *
    :param reward_scale: factor on the rewards of the update, not on those that are logged or stored *
    :param spread_time_limits: begin with episodes of random age, so that time-outs do not come all at once *
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
        **kwargs: Any,
    ) -> None:
        self.double_q = double_q
        self.per_env_epsilon = per_env_epsilon
        self.reward_scale = reward_scale
        self.spread_time_limits = spread_time_limits
        self.n_steps = n_steps
        self._run: Optional[off_policy.TensorRun] = None
        self._fast: Optional[FastQNetworks] = None
        self._epsilon: Any = None
        if off_policy.SB3_HAS_N_STEPS:
            kwargs["n_steps"] = n_steps
        super().__init__(policy, env, *args, **kwargs)

    def _setup_model(self) -> None:
        if off_policy.on_tensor_path(self):
            off_policy.use_device_buffer(self)
        super()._setup_model()

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: Any = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> Tuple[int, BaseCallback]:
        self._run = self._fast = None
        args = (total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        extras = {
            "n_steps (before SB3 2.7)": self.n_steps > 1 and not off_policy.SB3_HAS_N_STEPS,
            "double_q": self.double_q,
            "per_env_epsilon": self.per_env_epsilon is not None,
            "reward_scale": self.reward_scale != 1.0,
            "spread_time_limits": self.spread_time_limits,
        }
        if not off_policy.check_tensor_path(self, extras):
            return super()._setup_learn(*args)
        with off_policy.starting(self, reset_num_timesteps):
            result = super()._setup_learn(*args)
        self._run = off_policy.TensorRun(self, ("loss",))
        self._fast = FastQNetworks(self) if FastQNetworks.supports(self) else None
        if self.per_env_epsilon is not None:
            self._epsilon = spread("per_env_epsilon", self.per_env_epsilon, self.n_envs, self.device, most=1.0)
            self._mean_epsilon = float(self._epsilon.mean())
        return result

    @th.no_grad()
    def _act(self, obs: th.Tensor, random: bool) -> Tuple[th.Tensor, th.Tensor]:
        """(N,) int64 actions for observations (N, obs_dim), for the env and (the same) for the replay buffer."""
        n_actions = int(self.action_space.n)  # type: ignore[attr-defined]
        if random:
            actions = th.randint(n_actions, (len(obs),), device=obs.device)
        else:
            q = self._fast.acting.forward(obs) if self._fast is not None else self.q_net(obs)
            epsilon = self.exploration_rate if self.per_env_epsilon is None else self._epsilon
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
        return off_policy.collect_rollouts(
            self, self._run, self._act, callback, train_freq, learning_starts, log_interval
        )

    def _on_step(self) -> None:
        if self._fast is None:
            super()._on_step()
        else:
            self._n_calls += 1
            if self._n_calls % max(self.target_update_interval // self.n_envs, 1) == 0:
                self._fast.update_target(self.tau)
            self.exploration_rate = self.exploration_schedule(self._current_progress_remaining)
        if self._run is not None:
            if self.per_env_epsilon is not None:
                self.exploration_rate = self._mean_epsilon
            self.logger.record("rollout/exploration_rate", self.exploration_rate)

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        if self._run is None:
            super().train(gradient_steps, batch_size)
            return
        self._update_learning_rate(self.policy.optimizer)
        with self._run.timed("update"):
            at_once = max(1, off_policy.SAMPLE_ROWS // batch_size)
            for rows in off_policy.pieces(gradient_steps, at_once):
                n = rows.stop - rows.start
                samples = self.replay_buffer.sample_tensors(n * batch_size, env=self._vec_normalize_env)  # type: ignore[union-attr]
                self._update(samples, n)
        self._n_updates += gradient_steps
        self._run.loss_counts[0] += gradient_steps
        self._run.note_update(self, gradient_steps, batch_size, self.train_freq)  # type: ignore[arg-type]

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
        batch = len(samples.observations) // gradient_steps
        if not self.double_q:
            # The target network stays as it is during the series, so that all targets can be had at once
            with th.no_grad():
                targets = self._targets(samples)
        actions = samples.actions.long()
        for i in range(gradient_steps):
            rows = slice(i * batch, (i + 1) * batch)
            if self.double_q:
                part = ReplaySamples(*(None if x is None else x[rows] for x in samples))  # type: ignore[arg-type]
                with th.no_grad():
                    target = self._targets(part)
            else:
                target = targets[rows]
            if self._fast is not None:
                with th.no_grad():
                    obs = samples.observations[rows].flatten(1)
                    self._fast.gradient_step(obs, actions[rows], target, self.max_grad_norm, self._run.loss_sums[0])
                continue
            self.policy.set_training_mode(True)
            chosen = self.q_net(samples.observations[rows]).gather(1, actions[rows])
            loss = F.smooth_l1_loss(chosen, target)
            self.policy.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
            self._run.loss_sums[0].add_(loss.detach())

    # -- saved files -------------------------------------------------------------------------------------------------

    def set_parameters(self, *args: Any, **kwargs: Any) -> None:
        super().set_parameters(*args, **kwargs)
        if self._fast is not None:
            self._fast.adam.refresh()

    def get_parameters(self) -> Dict[str, Dict[str, Any]]:
        if self._fast is not None:
            self._fast.adam.sync()
        return super().get_parameters()

    def save(self, path: Any, exclude: Optional[Iterable[str]] = None, include: Optional[Iterable[str]] = None) -> None:
        with off_policy.portable(self, self._run):
            super().save(path, exclude, include)

    def _excluded_save_params(self) -> List[str]:
        return [*super()._excluded_save_params(), "_run", "_fast", "_epsilon", "_mean_epsilon"]

    def save_replay_buffer(self, path: Any) -> None:
        """Save the replay buffer as SB3's own, which stock SB3 loads too."""
        with off_policy.stock_buffer(self):
            super().save_replay_buffer(path)

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        super().load_replay_buffer(path, truncate_last_traj)
        if off_policy.on_tensor_path(self):
            off_policy.use_device_buffer(self)
