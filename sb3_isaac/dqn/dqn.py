"""DQN (https://arxiv.org/abs/1312.5602) as Stable-Baselines3 has it, at tensor speed."""

from __future__ import annotations

import itertools
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import stable_baselines3
import torch as th
from stable_baselines3.common.utils import polyak_update
from torch.nn import functional as F

from sb3_isaac.buffers.replay_buffer import ReplaySamples
from sb3_isaac.device import ranks
from sb3_isaac.dqn.fast_policy import FastDQNPolicy
from sb3_isaac.off_policy.algorithm import TensorOffPolicyAlgorithm, TensorRun
from sb3_isaac.off_policy.exploration import EpsilonGreedy, spread


class DQN(TensorOffPolicyAlgorithm, stable_baselines3.DQN):
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
    :param precision: "fp32", "tf32" or "bf16": act with and update MLP policies of one or two hidden layers of at most 64
        units in Triton's kernels, see :class:`sb3_isaac.PPO`. Experimental: not yet run on a GPU.
    :param reward_scale: factor on the rewards of the update, not on those that are logged or stored *
    :param spread_time_limits: begin with episodes of random age, so that time-outs do not come all at once *
    :param compile: on a GPU, capture acting, stepping and updates in CUDA graphs and compile the simulator's step with
        torch.compile (needs torch 2.4). On a CPU do it in C, which the machine's C compiler makes at
        the first use, in a few seconds; networks that are no small MLPs stay in PyTorch, and so does all where there is no
        compiler: :attr:`path` says why. The results are the same to rounding. *
    :raises ValueError: for an option marked * with an environment that has no tensor interface
    """

    only_in_tensors = {**TensorOffPolicyAlgorithm.only_in_tensors, "double_q": False, "per_env_epsilon": None}
    algo = "dqn"
    loss_names = ("loss",)
    aliases = ("q_net", "q_net_target")

    def __init__(
        self,
        policy: Any,
        env: Any,
        *args: Any,
        double_q: bool = False,
        per_env_epsilon: Optional[Sequence[float]] = None,
        **kwargs: Any,
    ) -> None:
        self.double_q = double_q
        self.per_env_epsilon = per_env_epsilon
        super().__init__(policy, env, *args, **kwargs)

    def _optimizers(self) -> List[th.optim.Optimizer]:
        return [self.policy.optimizer]

    def _why_not_fast_policy(self) -> Optional[str]:
        return FastDQNPolicy.why_not(self.policy)

    def _make_fast_policy(self) -> FastDQNPolicy:
        return FastDQNPolicy(
            self.policy, n_envs=self.n_envs, batch_size=self.batch_size, compiled=self.compile, precision=self.precision
        )

    def _trained_nets(self) -> List[Any]:
        return [self.q_net.q_net]

    # -- acting ------------------------------------------------------------------------------------------------------

    def _make_exploration(self, captures: bool) -> EpsilonGreedy:
        n_actions = int(self.action_space.n)  # type: ignore[attr-defined]
        if self.per_env_epsilon is None:
            return EpsilonGreedy(n_actions, self.exploration_rate, self.device, on_device=captures)
        epsilon = spread("per_env_epsilon", self.per_env_epsilon, self.n_envs, self.device, most=1.0)
        exploration = EpsilonGreedy(n_actions, epsilon, self.device)
        self.exploration_rate = exploration.mean
        return exploration

    def _look_again(self, run: TensorRun) -> None:
        super()._look_again(run)
        if self.per_env_epsilon is None:
            run.exploration.set(self.exploration_rate)

    def _set_run_state(self, unpacker: Any, state: Dict[str, Any], same_learn: bool) -> None:
        epsilon = None if self._run is None else self._run.exploration.epsilon
        super()._set_run_state(unpacker, state, same_learn)
        if self._run is not None and self.per_env_epsilon is None:
            self._run.exploration.keep_kind(epsilon)

    @th.no_grad()
    def _act(self, obs: th.Tensor, random: bool) -> th.Tensor:
        """(N,) int64 actions for observations (N, *obs_shape)."""
        assert self._run is not None
        exploration, fast = self._run.exploration, self._run.fast
        if random:
            actions: th.Tensor = exploration.random_actions(len(obs))
            return actions
        if fast is None:
            greedy = self.policy._predict(obs, deterministic=False)  # type: ignore[arg-type]
        else:
            greedy = fast.acting.forward(obs.flatten(1)).argmax(1)
        actions = exploration.explore(greedy)
        return actions

    def _on_step(self) -> None:
        run = self._run
        n_ranks = ranks.world_size()
        if run is None or (run.fast is None and n_ranks == 1):
            super()._on_step()
        else:
            self._n_calls += 1
            if self._n_calls % max(self.target_update_interval // (self.n_envs * n_ranks), 1) == 0:
                if run.fast is not None:
                    with th.no_grad():
                        run.fast.update_target(self.tau)
                else:  # SB3's does not know of other ranks' environments
                    polyak_update(self.q_net.parameters(), self.q_net_target.parameters(), self.tau)
            self.exploration_rate = self.exploration_schedule(self._current_progress_remaining)
        if run is not None:
            if self.per_env_epsilon is not None:
                self.exploration_rate = run.exploration.mean
            else:
                run.exploration.set(self.exploration_rate)
            self.logger.record("rollout/exploration_rate", self.exploration_rate)

    # -- the update --------------------------------------------------------------------------------------------------

    def _constants(self) -> Tuple[Any, ...]:
        return self.double_q, self.max_grad_norm

    @th.no_grad()
    def _targets(self, next_obs: th.Tensor, discounts: th.Tensor, rewards: th.Tensor) -> th.Tensor:
        """(B, 1) returns, bootstrapped from the target network.

        :param discounts: (B, 1), 0 where the episode has ended
        """
        assert self._run is not None
        # --8<-- [start:targets]
        fast = self._run.fast
        if fast is not None:
            values = fast.next_values(next_obs.flatten(1).float(), self.double_q)
        else:
            q = self.q_net_target(next_obs)
            best = self.q_net(next_obs).argmax(1, keepdim=True) if self.double_q else q.argmax(1, keepdim=True)
            values = q.gather(1, best)
        targets: th.Tensor = (values * discounts).add_(rewards, alpha=self.reward_scale)
        return targets
        # --8<-- [end:targets]

    def _update(self, samples: ReplaySamples, gradient_steps: int) -> None:
        assert self._run is not None
        run, loss_sum = self._run, self._run.log.loss_sums[0]
        discounts = (1.0 - samples.dones) * (self.gamma if samples.discounts is None else samples.discounts)
        returns = samples.next_observations, discounts, samples.rewards
        targets: Iterable[th.Tensor]
        if self.double_q:  # one after the other, as the online network changes with each step
            targets = itertools.starmap(self._targets, zip(*(column.chunk(gradient_steps) for column in returns)))
        else:  # the target network stays as it is during the series
            targets = self._targets(*returns).chunk(gradient_steps)
        columns = samples.observations.chunk(gradient_steps), samples.actions.long().chunk(gradient_steps)
        for obs, actions, target in zip(*columns, targets):
            if run.fast is not None:
                run.fast.gradient_step(obs.flatten(1).float(), actions, target, self.max_grad_norm, run.lrs[0], loss_sum)
                continue
            loss = F.smooth_l1_loss(self.q_net(obs).gather(1, actions), target)
            self.policy.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            ranks.mean_gradients(self.policy.parameters())
            th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
            loss_sum.add_(loss.detach())
