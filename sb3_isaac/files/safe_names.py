"""What files of saved agents may name. Exact names, never whole modules: numpy.load and torch.hub.load are in modules, too.

None of these constructors runs what it is given, opens a file or starts a process. The files only ever name the classes of
``VALUES``; instances of the classes of ``INSTANCES`` are made without calling ``__init__``, and get attributes.
"""

from __future__ import annotations

from typing import Dict, Tuple

_ACTOR_CRITIC = "MlpPolicy CnnPolicy MultiInputPolicy"
_OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "adamax": "Adamax", "radam": "RAdam", "nadam": "NAdam", "sgd": "SGD",
               "rmsprop": "RMSprop", "adagrad": "Adagrad", "adadelta": "Adadelta", "asgd": "ASGD"}  # fmt: skip

ACTIVATIONS = (
    "CELU ELU GELU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid Mish PReLU RReLU ReLU ReLU6 SELU SiLU "
    "Sigmoid Softplus Softsign Tanh Tanhshrink"
)
"""Classes of torch.nn."""

BUFFERS = "ReplayBuffer RolloutBuffer DictReplayBuffer DictRolloutBuffer NStepReplayBuffer"

_VALUES: Dict[str, str] = {
    "builtins": "object",
    "numpy": "ndarray bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64",
    "torch": "float32 float64 float16 bfloat16 int8 int16 int32 int64 uint8 bool",
    "torch.nn.modules.activation": ACTIVATIONS,
    **{f"torch.optim.{module}": name for module, name in _OPTIMIZERS.items()},
    "stable_baselines3.common.sb2_compat.rmsprop_tf_like": "RMSpropTFLike",
    "stable_baselines3.common.policies": "ActorCriticPolicy ActorCriticCnnPolicy MultiInputActorCriticPolicy",
    "stable_baselines3.common.torch_layers": "FlattenExtractor NatureCNN CombinedExtractor",
    "stable_baselines3.dqn.policies": f"DQNPolicy {_ACTOR_CRITIC}",
    "stable_baselines3.td3.policies": f"TD3Policy {_ACTOR_CRITIC}",
    "stable_baselines3.sac.policies": f"SACPolicy {_ACTOR_CRITIC}",
    "sb3_contrib.tqc.policies": f"TQCPolicy {_ACTOR_CRITIC}",
    "sb3_contrib.qrdqn.policies": f"QRDQNPolicy {_ACTOR_CRITIC}",
    "sb3_contrib.crossq.policies": f"CrossQPolicy {_ACTOR_CRITIC}",
    "sb3_contrib.ars.policies": "ARSPolicy ARSLinearPolicy",
    "sb3_contrib.common.recurrent.policies": (
        "RecurrentActorCriticPolicy RecurrentActorCriticCnnPolicy RecurrentMultiInputActorCriticPolicy"
    ),
    "sb3_contrib.common.maskable.policies": (
        "MaskableActorCriticPolicy MaskableActorCriticCnnPolicy MaskableMultiInputActorCriticPolicy"
    ),
    "sb3_contrib.common.recurrent.buffers": "RecurrentRolloutBuffer RecurrentDictRolloutBuffer",
    "sb3_contrib.common.maskable.buffers": "MaskableRolloutBuffer MaskableDictRolloutBuffer",
}

_INSTANCES: Dict[str, str] = {
    "gymnasium.spaces.box": "Box",
    "gymnasium.spaces.discrete": "Discrete",
    "gymnasium.spaces.multi_discrete": "MultiDiscrete",
    "gymnasium.spaces.multi_binary": "MultiBinary",
    "gymnasium.spaces.dict": "Dict",
    "gymnasium.spaces.tuple": "Tuple",
    "stable_baselines3.common.vec_env.vec_normalize": "VecNormalize",
    "stable_baselines3.common.running_mean_std": "RunningMeanStd",
    "stable_baselines3.common.noise": "NormalActionNoise OrnsteinUhlenbeckActionNoise VectorizedActionNoise",
    "stable_baselines3.common.utils": "ConstantSchedule LinearSchedule FloatSchedule",
    "stable_baselines3.common.type_aliases": "TrainFreq",
    "stable_baselines3.common.buffers": BUFFERS,
    "stable_baselines3.her.her_replay_buffer": "HerReplayBuffer",
    "rl_zoo3.utils": "SimpleLinearSchedule",
    "sb3_isaac.buffers": "DeviceReplayBuffer DeviceRolloutBuffer RolloutTensors ReplaySamples",
    "sb3_isaac.buffers.replay_buffer": "DeviceReplayBuffer",
    "sb3_isaac.buffers.rollout_buffer": "DeviceRolloutBuffer RolloutTensors",
    "sb3_isaac.replay_buffer": "DeviceReplayBuffer",
}

_ENUMS = {
    "stable_baselines3.common.type_aliases": "TrainFrequencyUnit",
    "stable_baselines3.her.goal_selection_strategy": "GoalSelectionStrategy",
}

Names = Dict[Tuple[str, str], bool]


def _pairs(table: Dict[str, str]) -> Names:
    return {(module, name): True for module, names in table.items() for name in names.split()}


VALUES, INSTANCES, ENUMS = _pairs(_VALUES), _pairs(_INSTANCES), _pairs(_ENUMS)
"""(module, name) of what a file may name, of what it may make instances of, and of enumerations."""

STORAGES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool", "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128",
}  # fmt: skip
"""Classes of torch, and the dtypes of their elements."""

WRAPPERS = {
    "gymnasium.wrappers": (
        "ClipAction ClipReward DelayObservation DtypeObservation FilterObservation FlattenObservation FrameStackObservation "
        "GrayscaleObservation MaxAndSkipObservation NormalizeObservation NormalizeReward RescaleAction RescaleObservation "
        "ReshapeObservation ResizeObservation StickyAction TimeAwareObservation TimeLimit"
    ),
    "gymnasium.wrappers.transform_observation": "GrayscaleObservation ResizeObservation FlattenObservation",
    "gymnasium.wrappers.time_limit": "TimeLimit",
    "stable_baselines3.common.atari_wrappers": "AtariWrapper ClipRewardEnv EpisodicLifeEnv MaxAndSkipEnv WarpFrame",
    "stable_baselines3.common.vec_env": "VecFrameStack VecTransposeImage VecCheckNan VecExtractDictObs",
    "sb3_contrib.common.wrappers": "TimeFeatureWrapper",
    "rl_zoo3.wrappers": (
        "ActionNoiseWrapper ActionSmoothingWrapper DelayedRewardWrapper FrameSkip HistoryWrapper HistoryWrapperObsDict "
        "MaskVelocityWrapper TimeFeatureWrapper TruncatedOnSuccessWrapper YAMLCompatResizeObservation"
    ),
    "sb3_isaac": "VecFrameStack VecNormalize",
}
"""Wrappers of environments that a run's config.yml may name."""
CALLBACKS = {
    "sb3_isaac.reward_log": "RewardLog",
    "sb3_isaac.evaluation": "RewardLog BatchedEvalCallback",
    "sb3_isaac.evaluation.callbacks": "RewardLog BatchedEvalCallback",
    "rl_zoo3.callbacks": "ParallelTrainCallback",
}
"""Callbacks that the hyperparameters of a study may name."""


def listed(dotted: str) -> bool:
    """Whether a class is one of those above, or of the values, by its dotted name."""
    module, _, name = dotted.rpartition(".")
    known = f"{WRAPPERS.get(module, '')} {CALLBACKS.get(module, '')}".split()
    return name in known or (module, name) in VALUES or (module, name) in INSTANCES
