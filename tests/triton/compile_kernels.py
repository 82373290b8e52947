"""Compiles the kernels for a GPU that need not be there: Triton brings its own assembler. Run by test_ppo.py.

What the interpreter lets pass, the compiler may refuse.
"""

from __future__ import annotations

import sys
from typing import Any, Dict

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from sb3_isaac.backends import kernels as backends
from sb3_isaac.buffers import kernels as buffers
from sb3_isaac.ddpg import kernels as ddpg
from sb3_isaac.device import mlp_kernels
from sb3_isaac.dqn import kernels as dqn
from sb3_isaac.envs import kernels as envs
from sb3_isaac.ppo import kernels as ppo

KINDS = {
    "*fp32": "table moments params old_log_std clips parts grad clipped exp_avg exp_avg_sq steps lr going log next_obs online "
    "target values obs targets noise actor critics actions low high env_actions log_probs reward final_obs new_obs "
    "new_final_obs new_reward scale offset final_obs_log rewards truncated_log returns_log lengths_log returns last_values "
    "powers reward_scale discounts dof_state uniform reset_width force x out",
    "*fp64": "gamma mean var count epsilon",
    "*i64": "order step lengths index newest progress",
    "*i1": "dones terminated truncated",
    "i32": "columns n n_rows n_steps n_envs total width first stride n_params log_std actor_w1 actor_b1 actor_w2 actor_b2 "
    "actor_w3 actor_b3 critic_w1 critic_b1 critic_w2 critic_b2 critic_w3 critic_b3 critic_size part w1 b1 w2 b2 w3 b3 "
    "substeps max_episode_length",
}
"""Types by the names of arguments; what is not here is a number."""
OTHERS = {
    ("advantages", "gamma"): "fp32",
    **{("outputs", name): "*fp32" for name in ("w1", "b1", "w2", "b2", "w3", "b3")},
    ("huber_gradients", "actions"): "*i64",
    ("update_moments", "returns"): "*fp64",
    ("normalize_step", "returns"): "*fp64",
    ("replay_samples", "gamma"): "fp32",
    ("replay_samples", "dones"): "*fp32",
}


def kind(kernel: str, name: str, constants: Dict[str, Any]) -> str:
    if kernel == "act" and name == "actions" and constants["DISCRETE"]:
        return "*i64"
    return OTHERS.get((kernel, name)) or next((one for one, names in KINDS.items() if name in names.split()), "fp32")


SIZES = ("n", "n_rows", "n_envs", "n_steps", "total", "first", "substeps")
"""Of these numbers Triton takes 1 for a constant, which is no tensor in the kernel."""


def check(kernel: Any, capability: int, constants: Dict[str, Any]) -> None:
    names = kernel.arg_names
    ones = {name: 1 for name in SIZES if name in names and "ROWS" not in constants}
    for more in [{}, ones] if ones and capability == 90 else [{}]:  # for all GPUs alike, and it takes its time
        given = {**constants, **more}
        signature = {name: "constexpr" if name in given else kind(kernel.__name__, name, constants) for name in names}
        source = ASTSource(kernel, signature, constexprs={(names.index(name),): value for name, value in given.items()})
        compiled = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
        assert compiled.asm["cubin"]
    print(kernel.__name__, constants.get("PRECISION", ""), "compiled for", capability)


if __name__ == "__main__":
    shape: Dict[str, Any] = {"OBS": 4, "OUT": 3, "ACTOR_H1": 16, "ACTOR_H2": 0, "CRITIC_H1": 16, "CRITIC_H2": 16, "ROWS": 16}
    shape.update(dict.fromkeys(("BI", "BO", "BA1", "BA2", "BC1", "BC2"), 16))
    for n, precision in enumerate(("fp32", "tf32", "bf16")):
        branches = {"KIND": n + 1, "DISCRETE": n == 1, "OLD": n < 2, "CLIP_VF": n != 1, "PRECISION": precision}
        check(ppo.minibatch_gradients, int(sys.argv[1]), {**shape, **branches})
        acting = {key: value for key, value in {**shape, **branches}.items() if key not in ("CLIP_VF", "PRECISION")}
        check(ppo.act, int(sys.argv[1]), {**acting, "ROWS": 32})
    check(ppo.advantages, int(sys.argv[1]), {"VALUE": 5, "BLOCK": 128})
    check(ppo.store_step, int(sys.argv[1]), {"OBS": 4, "BI": 16, "BLOCK": 128})
    check(backends.cartpole_step, int(sys.argv[1]), {"BLOCK": 128})
    check(envs.note_step, int(sys.argv[1]), {"BLOCK": 128})
    check(envs.update_moments, int(sys.argv[1]), {"COLUMNS": 4, "BLOCK": 1024})
    switches = {"NORM_OBS": True, "NORM_REWARD": True}
    check(envs.normalize_step, int(sys.argv[1]), {**switches, "COLUMNS": 4, "BI": 16, "BLOCK": 128})
    check(ppo.clip_and_step, int(sys.argv[1]), {"CLIPS": True, "STOPS": True, "ADAPTS": True, "BLOCK": 1024})
    drawing = {"OBS": 4, "ACT": 1, "BI": 4, "BA": 1, "BLOCK": 64, **switches, "TIME_LIMITS": True, "HAS_NEXT_OBS": True}
    check(buffers.replay_samples, int(sys.argv[1]), drawing)
    net: Dict[str, Any] = {
        "IN": 4,
        "OUT": 3,
        "H1": 16,
        "H2": 16,
        "BI": 16,
        "BO": 16,
        "B1": 16,
        "B2": 16,
        "ROWS": 32,
        "KIND": 2,
    }
    check(mlp_kernels.outputs, int(sys.argv[1]), {**net, "OUT_KIND": 1})
    check(dqn.next_values, int(sys.argv[1]), {**net, "PRECISION": "fp32", "DOUBLE": True})
    check(dqn.huber_gradients, int(sys.argv[1]), {**net, "PRECISION": "tf32", "H2": 0})
    both: Dict[str, Any] = {"IN": 4, "ACT": 2, "CH1": 16, "CH2": 16, "ROWS": 32, "KIND": 2}
    both.update(dict.fromkeys(("BI", "BA", "BC1", "BC2"), 16))
    actor = {"AH1": 16, "AH2": 0, "BA1": 16, "BA2": 16, "OUT_KIND": 1}
    check(ddpg.next_values, int(sys.argv[1]), {**both, **actor, "PRECISION": "bf16", "N_CRITICS": 2, "NOISE": True})
    check(ddpg.critic_gradients, int(sys.argv[1]), {**both, "PRECISION": "fp32"})
    check(ddpg.actor_gradients, int(sys.argv[1]), {**both, **actor, "CH2": 0, "PRECISION": "tf32"})
