"""What scripts change in a policy: functions of a model and the notes, for ``Row.before``, ``between`` and callbacks."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any, Callable, List

import torch as th
from torch import nn
from torch.nn.utils import prune as pruning


def first_layer(model: Any) -> nn.Linear:
    """The first layer of the network that acts."""
    return main_net(model)[0]


def last_layer(model: Any) -> nn.Linear:
    """The last layer of the network that acts."""
    policy = model.policy
    return policy.action_net if hasattr(policy, "action_net") else [m for m in main_net(model) if isinstance(m, nn.Linear)][-1]


def main_net(model: Any) -> nn.Sequential:
    """The network that acts."""
    policy = model.policy
    if hasattr(policy, "mlp_extractor"):
        return policy.mlp_extractor.policy_net
    return policy.q_net.q_net if hasattr(policy, "q_net") else policy.actor.mu


def optimizers(model: Any) -> List[Any]:
    policy = model.policy
    return [policy.actor.optimizer, policy.critic.optimizer] if hasattr(policy, "actor") else [policy.optimizer]


def set_optimizers(model: Any, make: Callable[[nn.Module], Any]) -> None:
    """Give the policy the optimizers that ``make`` makes of the module to train."""
    policy = model.policy
    if hasattr(policy, "actor"):
        policy.actor.optimizer, policy.critic.optimizer = make(policy.actor), make(policy.critic)
    else:
        policy.optimizer = make(policy.q_net if hasattr(policy, "q_net") else policy)


# -- layers and parameters -------------------------------------------------------------------------------------------


def freeze_first(model: Any, notes: Any) -> None:
    first_layer(model).requires_grad_(False)


def unfreeze_first(model: Any, notes: Any) -> None:
    first_layer(model).requires_grad_(True)


def freeze_last_bias(model: Any, notes: Any) -> None:
    last_layer(model).bias.requires_grad = False


def freeze_all(model: Any, notes: Any) -> None:
    for p in model.policy.parameters():
        p.requires_grad = False


def freeze_critic(model: Any, notes: Any) -> None:
    policy = model.policy
    (policy.critic if hasattr(policy, "critic") else policy.value_net).requires_grad_(False)


def other_weights(model: Any, notes: Any) -> None:
    """New values in place."""
    with th.no_grad():
        for p in main_net(model).parameters():
            p.mul_(0.5).add_(0.01)


def other_data(model: Any, notes: Any) -> None:
    """New values by ``.data``."""
    for p in main_net(model).parameters():
        p.data = p.data * 0.5 + 0.01


def new_parameter(model: Any, notes: Any) -> None:
    """A new Parameter that the optimizer does not know."""
    layer = last_layer(model)
    layer.weight = nn.Parameter(layer.weight.detach() * 0.5)


def new_last_layer(model: Any, notes: Any) -> None:
    """Transfer learning: a new head, known to a new optimizer."""
    old = last_layer(model)
    th.manual_seed(11)
    new = nn.Linear(old.in_features, old.out_features)
    if hasattr(model.policy, "action_net"):
        model.policy.action_net = new
    else:
        net = main_net(model)
        net[[i for i, m in enumerate(net) if m is old][0]] = new
    set_optimizers(model, lambda module: th.optim.Adam(module.parameters(), lr=1e-3))


def new_last_layer_unknown(model: Any, notes: Any) -> None:
    """A new head that no optimizer knows."""
    kept = [o for o in optimizers(model)]
    new_last_layer(model, notes)
    if hasattr(model.policy, "actor"):
        model.policy.actor.optimizer, model.policy.critic.optimizer = kept
    else:
        model.policy.optimizer = kept[0]


def insert(module: Callable[[int], nn.Module], targets: bool = False) -> Callable[[Any, Any], None]:
    """Put a module behind the first activation, in the target networks as well if they exist."""

    def change(model: Any, notes: Any) -> None:
        for net in nets(model):
            th.manual_seed(3)
            net[1] = nn.Sequential(net[1], module(net[0].out_features))
        # eps: behind a batch norm some gradients are only rounding, which Adam would blow up
        set_optimizers(model, lambda m: th.optim.Adam(m.parameters(), lr=1e-3, eps=1e-3))

    return change


def share_layers(model: Any, notes: Any) -> None:
    """Two networks with one first layer."""
    policy = model.policy
    if hasattr(policy, "mlp_extractor"):
        policy.mlp_extractor.value_net[0] = policy.mlp_extractor.policy_net[0]
    elif hasattr(policy, "q_net"):
        policy.q_net.q_net = nn.Sequential(*policy.q_net.q_net[:2], nn.Linear(8, 8), nn.Tanh(), policy.q_net.q_net[2])
        policy.q_net.q_net[2].weight = nn.Parameter(th.eye(8))
        policy.q_net.q_net.append(nn.Identity())
        policy.q_net_target.q_net = nn.Sequential(
            *policy.q_net_target.q_net[:2], policy.q_net.q_net[2], nn.Tanh(), policy.q_net_target.q_net[2]
        )
    else:
        policy.actor_target.mu[0] = policy.actor.mu[0]
    set_optimizers(model, lambda m: th.optim.Adam(m.parameters(), lr=1e-3))


def tie_target(model: Any, notes: Any) -> None:
    """Target networks that are the trained ones."""
    policy = model.policy
    if hasattr(policy, "q_net"):
        policy.q_net_target = policy.q_net
    else:
        policy.critic_target = policy.critic
    model._create_aliases()


def double(model: Any, notes: Any) -> None:
    """Weights that are not float32 in a part that converts."""
    net = main_net(model)
    layer = net[0].double()
    layer.forward = lambda x: nn.functional.linear(x.double(), layer.weight, layer.bias).float()


def nets(model: Any) -> List[nn.Sequential]:
    """The network that acts, and its target network: Polyak's average needs the same parameters in both."""
    policy = model.policy
    more = [policy.q_net_target.q_net] if hasattr(policy, "q_net_target") else []
    more += [policy.actor_target.mu] if hasattr(policy, "actor_target") else []
    return [main_net(model), *more]


def to_first_layers(change: Callable[[nn.Linear], Any]) -> Callable[[Any, Any], None]:
    """Change the first layers, and train what they consist of then."""

    def apply(model: Any, notes: Any) -> None:
        for net in nets(model):
            th.manual_seed(4)
            change(net[0])
        set_optimizers(model, lambda m: th.optim.Adam(m.parameters(), lr=1e-3))

    return apply


spectral_norm = to_first_layers(lambda layer: th.nn.utils.parametrizations.spectral_norm(layer))
weight_norm = to_first_layers(lambda layer: th.nn.utils.weight_norm(layer))
prune = to_first_layers(lambda layer: pruning.l1_unstructured(layer, "weight", amount=0.5))


def script(model: Any, notes: Any) -> None:
    """torch.jit.script of the network that acts."""
    policy = model.policy
    if hasattr(policy, "mlp_extractor"):
        policy.mlp_extractor.policy_net = th.jit.script(policy.mlp_extractor.policy_net)
    elif hasattr(policy, "q_net"):
        policy.q_net.q_net = th.jit.script(policy.q_net.q_net)
    else:
        policy.actor.mu = th.jit.script(policy.actor.mu)
    set_optimizers(model, lambda m: th.optim.Adam(m.parameters(), lr=1e-3))


# -- optimizers ------------------------------------------------------------------------------------------------------


def over_last_layer(model: Any, notes: Any) -> None:
    last = last_layer(model)
    if hasattr(model.policy, "actor"):
        model.policy.actor.optimizer = th.optim.Adam(last.parameters(), lr=1e-3)
    else:
        model.policy.optimizer = th.optim.Adam(last.parameters(), lr=1e-3)


def other_order(model: Any, notes: Any) -> None:
    set_optimizers(model, lambda m: th.optim.Adam(list(m.parameters())[::-1], lr=1e-3))


def two_groups(model: Any, notes: Any) -> None:
    """Both get the rate of the schedule in SB3; the betas differ."""

    def make(module: nn.Module) -> Any:
        first, *rest = module.parameters()
        return th.optim.Adam([{"params": [first], "betas": (0.5, 0.9)}, {"params": rest}], lr=1e-3)

    set_optimizers(model, make)


def change_betas(model: Any, notes: Any) -> None:
    for optimizer in optimizers(model):
        optimizer.param_groups[0]["betas"] = (0.5, 0.6)


def change_eps(model: Any, notes: Any) -> None:
    for optimizer in optimizers(model):
        optimizer.param_groups[0]["eps"] = 0.1


def add_weight_decay(model: Any, notes: Any) -> None:
    for optimizer in optimizers(model):
        optimizer.param_groups[0]["weight_decay"] = 0.1


def maximize(model: Any, notes: Any) -> None:
    for optimizer in optimizers(model):
        optimizer.param_groups[0]["maximize"] = True


def clear_state(model: Any, notes: Any) -> None:
    for optimizer in optimizers(model):
        optimizer.state = defaultdict(dict)


def clear_state_in_place(model: Any, notes: Any) -> None:
    for optimizer in optimizers(model):
        optimizer.state.clear()


def zero_averages(model: Any, notes: Any) -> None:
    for optimizer in optimizers(model):
        for state in optimizer.state.values():
            state["exp_avg"].zero_()


def replace_averages(model: Any, notes: Any) -> None:
    for optimizer in optimizers(model):
        for state in optimizer.state.values():
            state["exp_avg"] = th.zeros_like(state["exp_avg"])
            state["exp_avg_sq"] = state["exp_avg_sq"] * 2


def set_step(model: Any, notes: Any) -> None:
    for optimizer in optimizers(model):
        for state in optimizer.state.values():
            state["step"] = th.tensor(100.0)


def fill_step(model: Any, notes: Any) -> None:
    for optimizer in optimizers(model):
        for state in optimizer.state.values():
            state["step"].fill_(100.0)


def reload_state(model: Any, notes: Any) -> None:
    for optimizer in optimizers(model):
        optimizer.load_state_dict(optimizer.state_dict())


def older_state(model: Any, notes: Any) -> None:
    """The state from before the last training, as after a failed experiment."""
    for optimizer in optimizers(model):
        saved = optimizer.state_dict()
        for state in saved["state"].values():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = state[name] * 0.1
        optimizer.load_state_dict(saved)


def new_adam(model: Any, notes: Any) -> None:
    set_optimizers(model, lambda m: th.optim.Adam(m.parameters(), lr=1e-3))


def new_sgd(model: Any, notes: Any) -> None:
    set_optimizers(model, lambda m: th.optim.SGD(m.parameters(), lr=1e-3))


class LazyAdam(th.optim.Adam):
    """Moves parameters at every second step only."""

    def step(self, closure: Any = None) -> Any:
        self.calls = getattr(self, "calls", 0) + 1
        return super().step(closure) if self.calls % 2 == 0 else None


def lazy_adam(model: Any, notes: Any) -> None:
    set_optimizers(model, lambda m: LazyAdam(m.parameters(), lr=1e-3))


def grads_to_none(model: Any, notes: Any) -> None:
    model.policy.zero_grad(set_to_none=True)


def lr_scheduler(model: Any, notes: Any) -> None:
    """torch's scheduler, which patches optimizer.step to count."""
    model.schedulers = [th.optim.lr_scheduler.StepLR(o, 1) for o in optimizers(model)]


# -- hooks and patches -----------------------------------------------------------------------------------------------


class Calls(dict):
    """How often things were called while the policy trained, and whether at all while it acted: acting is batched otherwise."""

    def __init__(self, notes: Any) -> None:
        super().__init__()
        notes.append(self)

    def note(self, name: str, training: bool = True) -> None:
        if training:
            self[name] = self.get(name, 0) + 1
        else:
            self[f"{name} while acting"] = True


def forward_hook(model: Any, notes: Any) -> None:
    calls = Calls(notes)
    first_layer(model).register_forward_hook(lambda m, i, o: calls.note("forward hook", m.training))


def forward_pre_hook(model: Any, notes: Any) -> None:
    calls = Calls(notes)
    first_layer(model).register_forward_pre_hook(lambda m, i: calls.note("pre hook", m.training))


def hook_that_changes(model: Any, notes: Any) -> None:
    first_layer(model).register_forward_hook(lambda m, i, o: o * 0.5)


def hook_removed(model: Any, notes: Any) -> None:
    first_layer(model).register_forward_hook(lambda m, i, o: o * 0.5).remove()


def backward_hook(model: Any, notes: Any) -> None:
    calls = Calls(notes)
    last_layer(model).register_full_backward_hook(lambda m, i, o: calls.note("backward hook"))


def gradient_hook(model: Any, notes: Any) -> None:
    calls = Calls(notes)
    first_layer(model).weight.register_hook(lambda grad: calls.note("gradient hook"))


def gradient_hook_that_changes(model: Any, notes: Any) -> None:
    first_layer(model).weight.register_hook(lambda grad: grad * 0.1)


def shrink(p: Any) -> None:
    p.grad.mul_(0.1)


def post_accumulate_hook(model: Any, notes: Any) -> None:
    weight = first_layer(model).weight
    if hasattr(weight, "register_post_accumulate_grad_hook"):
        weight.register_post_accumulate_grad_hook(shrink)


def optimizer_pre_hook(model: Any, notes: Any) -> None:
    calls = Calls(notes)
    for o in optimizers(model):
        if hasattr(o, "register_step_pre_hook"):
            o.register_step_pre_hook(lambda *args: calls.note("step"))


def optimizer_post_hook(model: Any, notes: Any) -> None:
    """Weights are kept small after every step."""

    def clip(*args: Any) -> None:
        with th.no_grad():
            first_layer(model).weight.clamp_(-0.1, 0.1)

    for o in optimizers(model):
        if hasattr(o, "register_step_post_hook"):
            o.register_step_post_hook(clip)


def patch(owner: Callable[[Any], Any], name: str, on_class: bool = False) -> Callable[[Any, Any], None]:
    """Replace a method by one that counts and calls it."""

    def change(model: Any, notes: Any) -> None:
        calls, target = Calls(notes), owner(model)
        original = getattr(target, name)

        def patched(*args: Any, **kwargs: Any) -> Any:
            calls.note(name, getattr(model.policy, "training", True))
            return original(*args, **kwargs)

        setattr(target, name, patched)

    return change


def patch_that_changes(
    owner: Callable[[Any], Any], name: str, change_result: Callable[[Any], Any]
) -> Callable[[Any, Any], None]:
    """Replace a method by one that gives something else."""

    def change(model: Any, notes: Any) -> None:
        target = owner(model)
        original = getattr(target, name)
        setattr(target, name, lambda *args, **kwargs: change_result(original(*args, **kwargs)))

    return change


def new_policy(model, notes):
    th.manual_seed(3)
    kwargs = dict(model.policy_kwargs, use_sde=model.use_sde) if hasattr(model, "n_epochs") else model.policy_kwargs
    model.policy = model.policy_class(model.observation_space, model.action_space, model.lr_schedule, **kwargs)
    if hasattr(model, "_create_aliases"):
        model._create_aliases()


def other_target(model, notes):
    """Of the model alone: the policy keeps its own, as SB3's aliases allow."""
    replace_network(model, "q_net_target" if hasattr(model, "q_net") else "critic_target")


def other_trained(model, notes):
    replace_network(model, "q_net" if hasattr(model, "q_net") else "actor")


def replace_network(model, name):
    network = copy.deepcopy(getattr(model, name))
    with th.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.5)
    setattr(model, name, network)
