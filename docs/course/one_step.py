"""One step of many cartpoles, and what it returns."""

# --8<-- [start:step]
import torch

import sb3_isaac

torch.set_printoptions(precision=3, sci_mode=False)
env = sb3_isaac.make_vec_env("IsaacGymCartpole-v0", n_envs=1024, seed=0, device="cpu")
obs = env.reset_tensor()
actions = torch.zeros(1024, 1)  # no force
result = env.step_tensor(actions)
for name, tensor in [("obs before", obs), ("actions", actions), *zip(result._fields, result)]:
    print(f"{name:11s} {str(tuple(tensor.shape)):10s} {str(tensor.dtype):14s} {tensor[0]}")
# --8<-- [end:step]
