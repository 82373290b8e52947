"""Compiles the kernels for a GPU that need not be there: Triton brings its own assembler. Run by test_ppo.py.

What the interpreter lets pass, the compiler may refuse.
"""

from __future__ import annotations

import sys
from typing import Any, Dict

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from sb3_isaac.ddpg import kernels as ddpg
from sb3_isaac.dqn import kernels as dqn
from sb3_isaac.ppo import kernels as ppo

POINTERS = (
    "table moments params old_log_std clips parts grad clipped exp_avg exp_avg_sq steps lr going log "
    "next_obs online target values obs targets noise actor critics".split()
)  # fmt: skip
WHOLE = (
    "columns n_rows stride n_params log_std actor_w1 actor_b1 actor_w2 actor_b2 actor_w3 actor_b3 "
    "critic_w1 critic_b1 critic_w2 critic_b2 critic_w3 critic_b3 critic_size part w1 b1 w2 b2 w3 b3".split()
)  # fmt: skip


def kind(name: str, constants: Dict[str, Any]) -> str:
    if name in constants:
        return "constexpr"
    return (
        "*i64"
        if name in ("order", "actions") and not constants.get("ACT")
        else "*fp32"
        if name in (*POINTERS, "actions")
        else "i32"
        if name in WHOLE
        else "fp32"
    )


def check(kernel: Any, capability: int, constants: Dict[str, Any]) -> None:
    names = kernel.arg_names
    signature = {name: kind(name, constants) for name in names}
    source = ASTSource(kernel, signature, constexprs={(names.index(name),): value for name, value in constants.items()})
    compiled = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    assert compiled.asm["cubin"]
    print(kernel.__name__, constants.get("PRECISION", ""), "compiled for", capability)


if __name__ == "__main__":
    shape: Dict[str, Any] = {"OBS": 4, "OUT": 3, "ACTOR_H1": 16, "ACTOR_H2": 0, "CRITIC_H1": 16, "CRITIC_H2": 16, "ROWS": 16}
    shape.update(dict.fromkeys(("BI", "BO", "BA1", "BA2", "BC1", "BC2"), 16))
    for n, precision in enumerate(("fp32", "tf32", "bf16")):
        branches = {"KIND": n + 1, "DISCRETE": n == 1, "OLD": n < 2, "CLIP_VF": n != 1, "PRECISION": precision}
        check(ppo.minibatch_gradients, int(sys.argv[1]), {**shape, **branches})
    check(ppo.clip_and_step, int(sys.argv[1]), {"CLIPS": True, "STOPS": True, "ADAPTS": True, "BLOCK": 1024})
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
    check(dqn.next_values, int(sys.argv[1]), {**net, "PRECISION": "fp32", "DOUBLE": True})
    check(dqn.huber_gradients, int(sys.argv[1]), {**net, "PRECISION": "tf32", "H2": 0})
    both: Dict[str, Any] = {"IN": 4, "ACT": 2, "CH1": 16, "CH2": 16, "ROWS": 32, "KIND": 2}
    both.update(dict.fromkeys(("BI", "BA", "BC1", "BC2"), 16))
    actor = {"AH1": 16, "AH2": 0, "BA1": 16, "BA2": 16, "OUT_KIND": 1}
    check(ddpg.next_values, int(sys.argv[1]), {**both, **actor, "PRECISION": "bf16", "N_CRITICS": 2, "NOISE": True})
    check(ddpg.critic_gradients, int(sys.argv[1]), {**both, "PRECISION": "fp32"})
    check(ddpg.actor_gradients, int(sys.argv[1]), {**both, **actor, "CH2": 0, "PRECISION": "tf32"})
