"""What an Isaac Lab task depends on, copied out of the simulator and put back: bodies, joints and the task's own tensors."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Mapping, Set, Tuple

import torch as th

TARGETS = (
    ("joint_pos_target", "set_joint_position_target_index"),
    ("joint_vel_target", "set_joint_velocity_target_index"),
    ("joint_effort_target", "set_joint_effort_target_index"),
)
"""What the drives of a robot's joints are told: where Isaac Lab has it, and what sets it."""
OWN_STATE = ("isaaclab.managers", "isaaclab.envs.mdp", "isaaclab.utils.buffers")
"""Modules whose objects keep state of the task, beside the environment itself."""


def get_state(core: Any, n_envs: int) -> Dict[str, th.Tensor]:
    """Copies of what the first ``n_envs`` environments depend on: the scene's bodies and joints, and the tensors of the task.

    :param core: Isaac Lab's environment
    """
    state = {f"task/{path}": tensor[:n_envs].clone() for path, tensor in task_tensors(core)}
    for kind, entities in core.scene.get_state(is_relative=True).items():
        for entity, parts in entities.items():
            # a gripper is a tensor, all else a dict of them
            for part, tensor in (parts if isinstance(parts, Mapping) else {"": parts}).items():
                state[f"scene/{kind}/{entity}/{part}"] = tensor[:n_envs].clone()
    for entity, robot in core.scene.articulations.items():
        for name, _ in TARGETS:
            state[f"targets/{entity}/{name}"] = getattr(robot.data, name).torch[:n_envs].clone()
    return state


def set_state(core: Any, state: Dict[str, th.Tensor], n_envs: int) -> None:
    """Restore what :func:`get_state` returned, perhaps in a simulator of more environments."""
    scene: Dict[str, Dict[str, Any]] = {}
    for path, tensor in state.items():
        if path.startswith("scene/"):
            _, kind, entity, part = path.split("/", 3)
            entities = scene.setdefault(kind, {})
            if part:
                entities.setdefault(entity, {})[part] = tensor
            else:
                entities[entity] = tensor
    env_ids = th.arange(n_envs, dtype=th.int32, device=core.device)
    core.scene.reset_to(scene, env_ids=env_ids, is_relative=True)
    # That makes the state the target of the joints' drives: a damped cart would be pulled along at its velocity
    for entity, robot in core.scene.articulations.items():
        for name, setter in TARGETS:
            getattr(robot, setter)(target=state[f"targets/{entity}/{name}"], env_ids=env_ids)
    core.scene.write_data_to_sim()
    core.sim.forward()
    for path, tensor in task_tensors(core):
        if f"task/{path}" in state:
            tensor[:n_envs].copy_(state[f"task/{path}"])


def task_tensors(core: Any) -> Iterator[Tuple[str, th.Tensor]]:
    """Tensors of one row for each environment that the task and its managers keep, by where they are."""
    seen: Set[int] = set()
    waiting: List[Tuple[str, Any]] = [("", core)]
    while waiting:
        path, owner = waiting.pop()
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        values = owner if isinstance(owner, (dict, list, tuple)) else vars(owner)
        items = values.items() if isinstance(values, dict) else enumerate(values)
        for name, value in items:
            where = f"{path}.{name}" if path else str(name)
            if isinstance(value, th.Tensor):
                if value.ndim > 0 and len(value) == core.num_envs and value.stride(0) != 0:
                    yield where, value
            elif isinstance(value, (dict, list, tuple)) or _keeps_state(value):
                waiting.append((where, value))


def _keeps_state(value: Any) -> bool:
    return hasattr(value, "__dict__") and any(kind.__module__.startswith(OWN_STATE) for kind in type(value).__mro__)
