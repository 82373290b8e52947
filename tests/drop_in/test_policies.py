"""Policies of the user's own, and what is done to SB3's policies and optimizers."""

from __future__ import annotations

from pathlib import Path

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, MlpExtractor
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from stable_baselines3.td3.policies import Actor, TD3Policy
from torch import nn

from tests.drop_in import changes as do
from tests.drop_in.side_by_side import ALL, OFF_POLICY, Row, compare, table


class Minus(nn.Module):
    def forward(self, x):
        return -x


class Extractor(BaseFeaturesExtractor):
    def __init__(self, observation_space, features_dim=6):
        super().__init__(observation_space, features_dim)
        self.net = nn.Sequential(nn.Linear(4, features_dim), nn.Tanh())

    def forward(self, observations):
        return self.net(observations)


class NormExtractor(Extractor):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU())


class BatchNormExtractor(Extractor):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 6), nn.ReLU())


class DropoutExtractor(Extractor):
    """p=1: no chance in it, but the modes differ."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(1.0))


class Doubled(FlattenExtractor):
    """SB3's extractor with a forward of the user's own."""

    def forward(self, observations):
        return 2.0 * super().forward(observations)


class NegatedQ(QNetwork):
    def forward(self, obs):
        return -super().forward(obs)


class Dueling(QNetwork):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.value = nn.Linear(self.features_dim, 1)

    def forward(self, obs):
        features = self.extract_features(obs, self.features_extractor)
        return self.q_net(features) + self.value(features)


def q_policy(net):
    class Policy(DQNPolicy):
        def make_q_net(self):
            return net(**self._update_features_extractor(self.net_args, features_extractor=None)).to(self.device)

    return Policy


class OwnPredictQ(DQNPolicy):
    def _predict(self, obs, deterministic=True):
        return 2 - super()._predict(obs, deterministic)


class OwnActor(Actor):
    def forward(self, obs):
        return -super().forward(obs)


class OwnActorPolicy(TD3Policy):
    def make_actor(self, features_extractor=None):
        return OwnActor(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)


class OwnPredictTD3(TD3Policy):
    def _predict(self, observation, deterministic=False):
        return -super()._predict(observation, deterministic)


class EmptySubclass(ActorCriticPolicy):
    pass


class OwnForward(ActorCriticPolicy):
    """Values of rollouts that are not those of evaluate_actions."""

    def forward(self, obs, deterministic=False):
        actions, values, log_prob = super().forward(obs, deterministic)
        return actions, values + 1.0, log_prob


class OwnValues(ActorCriticPolicy):
    def predict_values(self, obs):
        return super().predict_values(obs) + 1.0


class OwnEvaluate(ActorCriticPolicy):
    def evaluate_actions(self, obs, actions):
        values, log_prob, entropy = super().evaluate_actions(obs, actions)
        return values, log_prob, 2.0 * entropy


class NoEntropy(ActorCriticPolicy):
    def evaluate_actions(self, obs, actions):
        return (*super().evaluate_actions(obs, actions)[:2], None)


class FixedStd(ActorCriticPolicy):
    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        self.log_std.requires_grad = False
        self.optimizer = th.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=1e-3)


class Net(nn.Module):
    """As in SB3's guide on custom networks."""

    def __init__(self, feature_dim):
        super().__init__()
        self.latent_dim_pi = self.latent_dim_vf = 8
        self.policy_net = nn.Sequential(nn.Linear(feature_dim, 8), nn.ReLU())
        self.value_net = nn.Sequential(nn.Linear(feature_dim, 8), nn.ReLU())

    def forward(self, features):
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features):
        return self.policy_net(features)

    def forward_critic(self, features):
        return self.value_net(features)


class GuidePolicy(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        self.mlp_extractor = Net(self.features_dim)


class OwnExtractorClass(MlpExtractor):
    def forward_critic(self, features):
        return 0.5 * super().forward_critic(features)

    def forward(self, features):
        return self.forward_actor(features), self.forward_critic(features)


class MlpExtractorPolicy(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        self.mlp_extractor = OwnExtractorClass(self.features_dim, self.net_arch, self.activation_fn, self.device)


class TwoOptimizers(ActorCriticPolicy):
    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        actor = [*self.mlp_extractor.policy_net.parameters(), *self.action_net.parameters(), self.log_std]
        critic = [*self.mlp_extractor.value_net.parameters(), *self.value_net.parameters()]
        self.optimizer = th.optim.Adam([{"params": actor}, {"params": critic, "weight_decay": 0.1}], lr=1e-3)


def set_log_std(model, notes):
    model.policy.log_std.data.fill_(-1.5)


def new_log_std(model, notes):
    model.policy.log_std = nn.Parameter(th.tensor([-1.5]))


def new_log_std_known(model, notes):
    new_log_std(model, notes)
    do.new_adam(model, notes)


def log_std_is_no_parameter(model, notes):
    del model.policy.log_std
    model.policy.log_std = th.tensor([-1.5])


def extra_parameter(model, notes):
    model.policy.extra = nn.Parameter(th.ones(3))
    do.new_adam(model, notes)


def policy(model):
    return model.policy


def extractor(model):
    return model.policy.mlp_extractor


def trained(model):
    return model.policy.q_net if hasattr(model.policy, "q_net") else model.policy.actor


def target(model):
    return model.policy.q_net_target if hasattr(model.policy, "q_net_target") else model.policy.actor_target


def global_hook(model, notes):
    """Of torch.nn.modules.module, for all modules."""
    calls = do.Calls(notes)
    notes.handle = nn.modules.module.register_module_forward_hook(lambda m, i, o: calls.note(type(m).__name__, m.training))


def remove_global_hook(model, notes):
    notes.handle.remove()
    # ours computes targets of some steps at once, SB3 one by one
    notes[0] = {name: bool(count) for name, count in notes[0].items()}


def compiled(model, notes):
    """torch.compile in place, with a backend that costs nothing."""
    if hasattr(nn.Module, "compile"):
        do.first_layer(model).compile(backend="eager")


def inf_weights_in_target(model, notes):
    """Target networks that are changed by hand."""
    with th.no_grad():
        for p in target(model).parameters():
            p.mul_(3.0)


NETWORKS = {"target": do.other_target, "trained": do.other_trained}
ROWS = [
    # classes
    Row("empty subclass", policy=EmptySubclass),
    Row("own forward", policy=OwnForward),
    Row("own predict_values", policy=OwnValues),
    Row("own evaluate_actions", policy=OwnEvaluate, options={"ent_coef": 0.1}),
    Row("evaluate_actions without entropy", policy=NoEntropy, options={"ent_coef": 0.1}),
    Row("log_std that is not trained", policy=FixedStd),
    Row("mlp_extractor as in SB3's guide", policy=GuidePolicy),
    Row("mlp_extractor as in SB3's guide, discrete", policy=GuidePolicy, discrete=True),
    Row("subclass of MlpExtractor", policy=MlpExtractorPolicy),
    Row("two param groups in _build", policy=TwoOptimizers),
    Row("own Q-network", "dqn", policy=q_policy(NegatedQ)),
    Row("dueling Q-network", "dqn", policy=q_policy(Dueling)),
    Row("own _predict", OFF_POLICY, policy={"dqn": OwnPredictQ, "ddpg": OwnPredictTD3}),
    Row("own actor", "ddpg", policy=OwnActorPolicy),
    Row("own features extractor", ALL, {"policy_kwargs": {"features_extractor_class": Extractor, "features_extractor_kwargs": {"features_dim": 5}}}),
    Row("features extractor, shared in DDPG", "ddpg", {"policy_kwargs": {"features_extractor_class": Extractor, "share_features_extractor": True}}),
    Row("features extractor, not shared in PPO", "ppo", {"policy_kwargs": {"features_extractor_class": Extractor, "share_features_extractor": False}}),
    Row("features extractor with layer norm", ALL, {"policy_kwargs": {"features_extractor_class": NormExtractor}}),
    Row("features extractor with batch norm", ALL, {"policy_kwargs": {"features_extractor_class": BatchNormExtractor}}),
    Row("features extractor with dropout", ALL, {"policy_kwargs": {"features_extractor_class": DropoutExtractor}}),
    Row("subclass of FlattenExtractor", ALL, {"policy_kwargs": {"features_extractor_class": Doubled}}),
    # layers and parameters
    Row("frozen first layer", ALL, before=do.freeze_first),
    Row("frozen after training", ALL, between=do.freeze_first),
    Row("unfrozen after training", ALL, before=do.freeze_first, between=do.unfreeze_first),
    Row("frozen last bias", ALL, before=do.freeze_last_bias),
    Row("frozen critic", ("ppo",), before=do.freeze_critic),
    Row("weights changed in place", ALL, between=do.other_weights),
    Row("weights changed by .data", ALL, between=do.other_data),
    Row("new parameter that the optimizer does not know", ALL, between=do.new_parameter),
    Row("new last layer and optimizer", ALL, between=do.new_last_layer),
    Row("new last layer, old optimizer", ALL, between=do.new_last_layer_unknown),
    Row("module inserted", ALL, before=do.insert(lambda n: Minus())),
    Row("module inserted after training", ALL, between=do.insert(lambda n: Minus())),
    Row("dropout inserted", ALL, before=do.insert(lambda n: nn.Dropout(1.0))),
    Row("layer norm inserted", ALL, before=do.insert(nn.LayerNorm)),
    Row("batch norm inserted", ALL, before=do.insert(nn.BatchNorm1d)),
    Row("identity inserted", ALL, before=do.insert(lambda n: nn.Identity())),
    Row("layers shared", ALL, before=do.share_layers),
    Row("target network is the trained one", OFF_POLICY, before=do.tie_target),
    Row("target network changed by hand", OFF_POLICY, between=inf_weights_in_target),
    Row("a layer in float64", ALL, before=do.double),
    Row("log_std changed", between=set_log_std),
    Row("log_std changed at the start", before=set_log_std),
    Row("log_std replaced", between=new_log_std),
    Row("log_std replaced, new optimizer", between=new_log_std_known),
    Row("log_std is a plain tensor", before=log_std_is_no_parameter),
    Row("parameter that takes no part", ("ppo",), before=extra_parameter),
    Row("spectral_norm", ALL, before=do.spectral_norm),
    Row("spectral_norm after training", ALL, between=do.spectral_norm),
    Row("weight_norm", ALL, before=do.weight_norm),
    Row("pruned layer", ALL, before=do.prune),
    Row("torch.jit.script", ALL, before=do.script),
    Row("torch.jit.script after training", ALL, between=do.script),
    Row("module compiled in place", ALL, before=compiled),
    # optimizers
    Row("optimizer over the last layer", ALL, before=do.over_last_layer),
    Row("optimizer over the last layer after training", ALL, between=do.over_last_layer),
    Row("optimizer over the parameters in another order", ALL, before=do.other_order),
    Row("two param groups", ALL, before=do.two_groups),
    Row("new Adam after training", ALL, between=do.new_adam),
    Row("SGD after training", ALL, between=do.new_sgd),
    Row("subclass of Adam", ALL, before=do.lazy_adam),
    Row("subclass of Adam after training", ALL, between=do.lazy_adam),
    Row("betas changed", ALL, between=do.change_betas),
    Row("eps changed", ALL, between=do.change_eps),
    Row("weight decay added", ALL, between=do.add_weight_decay),
    Row("maximize switched on", ALL, between=do.maximize),
    Row("state replaced by an empty one", ALL, between=do.clear_state),
    *[Row(f"{name} network replaced {when}", OFF_POLICY, **{when: change}) for name, change in NETWORKS.items() for when in ("before", "between")],
    Row("policy replaced between", ALL, between=do.new_policy),
    Row("state cleared", ALL, between=do.clear_state_in_place),
    Row("averages zeroed in place", ALL, between=do.zero_averages),
    Row("averages replaced", ALL, between=do.replace_averages),
    Row("step count replaced", ALL, between=do.set_step),
    Row("step count filled in", ALL, between=do.fill_step),
    Row("state loaded again", ALL, between=do.reload_state),
    Row("other state loaded", ALL, between=do.older_state),
    Row("gradients set to None", ALL, between=do.grads_to_none),
    Row("torch's learning rate scheduler", ALL, before=do.lr_scheduler),
    # hooks
    Row("forward hook", ALL, before=do.forward_hook),
    Row("forward hook after training", ALL, between=do.forward_hook),
    Row("forward pre-hook", ALL, before=do.forward_pre_hook),
    Row("forward hook that changes the output", ALL, before=do.hook_that_changes),
    Row("forward hook that was removed", ALL, before=do.hook_removed),
    Row("backward hook", ALL, before=do.backward_hook),
    Row("gradient hook", ALL, before=do.gradient_hook),
    Row("gradient hook after training", ALL, between=do.gradient_hook),
    Row("gradient hook that changes it", ALL, before=do.gradient_hook_that_changes),
    Row("hook after accumulation", ALL, before=do.post_accumulate_hook),
    Row("hook after accumulation, after training", ALL, between=do.post_accumulate_hook),
    Row("hook before the optimizer's step", ALL, before=do.optimizer_pre_hook),
    Row("hook after the optimizer's step", ALL, before=do.optimizer_post_hook),
    Row("hook after the optimizer's step, after training", ALL, between=do.optimizer_post_hook),
    Row("hook of all modules", ALL, before=global_hook, after=remove_global_hook),
    # patches
    *[Row(f"patched policy.{name}", before=do.patch(policy, name)) for name in ("forward", "evaluate_actions", "extract_features", "_get_action_dist_from_latent")],
    *[Row(f"patched mlp_extractor.{name}", before=do.patch(extractor, name)) for name in ("forward", "forward_actor", "forward_critic")],
    Row("patched policy.predict_values", before=do.patch_that_changes(policy, "predict_values", lambda v: v + 1.0)),
    Row("patched action_net.forward", before=do.patch_that_changes(lambda m: m.policy.action_net, "forward", lambda x: 0.5 * x)),
    Row("patched action_dist", before=do.patch_that_changes(lambda m: m.policy.action_dist, "entropy", lambda x: 2.0 * x), options={"ent_coef": 0.1}),
    Row("patched mlp_extractor after training", between=do.patch_that_changes(extractor, "forward_actor", lambda x: 0.5 * x)),
    Row("patched network.forward", OFF_POLICY, before=do.patch_that_changes(trained, "forward", lambda x: 0.5 * x)),
    Row("patched network.forward after training", OFF_POLICY, between=do.patch_that_changes(trained, "forward", lambda x: 0.5 * x)),
    Row("patched target network.forward", OFF_POLICY, before=do.patch_that_changes(target, "forward", lambda x: 0.5 * x)),
    Row("patched network.extract_features", OFF_POLICY, before=do.patch(trained, "extract_features")),
    Row("patched optimizer.step", ALL, before=do.patch(lambda m: do.optimizers(m)[0], "step")),
    Row("patched optimizer.step after training", ALL, between=do.patch(lambda m: do.optimizers(m)[0], "step")),
    Row("patched optimizer.zero_grad", ALL, before=do.patch(lambda m: do.optimizers(m)[0], "zero_grad")),
    Row("patched policy.set_training_mode", ALL, before=do.patch(policy, "set_training_mode")),
    Row("patched policy.predict", OFF_POLICY, before=do.patch_that_changes(policy, "predict", lambda p: (p[0] * 0, p[1]))),
    Row("patched policy._predict", OFF_POLICY, before=do.patch_that_changes(policy, "_predict", lambda a: a * 0)),
]  # fmt: skip


@table(ROWS)
def test_policy(row: Row, algo: str, tmp_path: Path) -> None:
    compare(row, algo, tmp_path)
