"""What DQN and DDPG share: :class:`~sb3_isaac.off_policy.algorithm.TensorOffPolicy` and what it is made of."""
