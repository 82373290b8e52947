"""What people mistype, and files that are not what they should be: each gets one sentence (what, where, what to do).

Nothing is made or written before that: no folder, no simulator. A row is a command and words of its sentence ("|" between).
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any, Callable, Iterator, List, Set, Tuple

import numpy as np
import pytest
import torch as th

import sb3_isaac
from sb3_isaac.cli import dispatch
from sb3_isaac.envs.vec_normalize import VecNormalize
from tests.conftest import CONTINUOUS, DISCRETE, make_env
from tests.reliability import broken_files

PPO = f"train --algo ppo --env {CONTINUOUS}"
DQN = f"train --algo dqn --env {DISCRETE}"
DDPG = f"train --algo ddpg --env {CONTINUOUS}"
AGENT = f"--algo ppo --env {CONTINUOUS}"
SEARCH = f"optimize --algo ppo --env {CONTINUOUS} --n-trials 1 -n 500"

# -- values of hyperparameters: NAME:VALUE, and words -------------------------------------------------------------------

PPO_PARAMS = [
    ("gamma:2", "gamma must be a number from 0 to 1, got 2|ppo.yml or -params|the default is 0.99"),
    ("gamma:-0.1", "gamma must be a number from 0 to 1"),
    ("gamma:float('nan')", "gamma must be a number|got nan"),
    ("gamma:float('inf')", "gamma must be a number|got inf"),
    ("gamma:high", "gamma must be a number|got 'high'"),
    ("gamma:'0.9'", "gamma must be a number|which is a word: write it without quotes"),
    ("gamma:[0.9]", "gamma must be a number|got [0.9]"),
    ("gamma:None", "gamma must be a number|got None"),
    ("gamma:True", "gamma must be a number|got True"),
    ("gae_lambda:1.5", "gae_lambda must be a number from 0 to 1, got 1.5|default is 0.95"),
    ("gae_lambda:-1", "gae_lambda must be a number from 0 to 1"),
    ("learning_rate:-0.001", "learning_rate must be a number of at least 0|schedule|got -0.001"),
    ("learning_rate:fast", "learning_rate must be|lin_0.001|got 'fast'"),
    ("learning_rate:'lin_'", "learning_rate must be|got 'lin_'"),
    ("learning_rate:lin_fast", "learning_rate must be|got 'lin_fast'"),
    ("learning_rate:'lin_-0.1'", "learning_rate must be|got 'lin_-0.1'"),
    ("learning_rate:'cos_0.1'", "learning_rate must be|lin_0.001|got 'cos_0.1'"),
    ("learning_rate:'1e-3'", "learning_rate must be|which is a word"),
    ("learning_rate:[0.1]", "learning_rate must be|got [0.1]"),
    ("learning_rate:None", "learning_rate must be|got None"),
    ("learning_rate:float('nan')", "learning_rate must be|got nan"),
    ("learning_rate:float('inf')", "learning_rate must be|got inf"),
    ("n_steps:0", "n_steps must be a whole number of at least 1, got 0"),
    ("n_steps:-16", "n_steps must be a whole number of at least 1, got -16"),
    ("n_steps:2.5", "n_steps must be a whole number|got 2.5"),
    ("n_steps:many", "n_steps must be a whole number|got 'many'"),
    ("n_steps:[16]", "n_steps must be a whole number|got [16]"),
    ("n_steps:{}", "n_steps must be a whole number|got {}"),
    ("n_steps:10**12", "GB|are free|rollouts of 1000000000000 steps|lower n_steps or n_envs"),
    ("n_epochs:0", "n_epochs must be a whole number of at least 1, got 0"),
    ("n_epochs:1.5", "n_epochs must be a whole number|got 1.5"),
    ("n_minibatches:0", "n_minibatches must be a whole number of at least 1|batch_size says it"),
    ("n_minibatches:3", "n_minibatches=3 does not divide the rollout of n_steps * n_envs = 16 * 128"),
    ("batch_size:0", "batch_size must be a whole number of at least 1"),
    ("batch_size:many", "batch_size must be a whole number|got 'many'"),
    ("batch_size:1", "single advantage|batch_size 1|normalize_advantage: false"),
    ("batch_size:64 n_minibatches:1", "n_minibatches=1 and batch_size=64 contradict"),
    ("n_envs:1 n_steps:1", "single advantage cannot be normalised|n_steps * n_envs is 1"),
    ("clip_range:-0.2", "clip_range must be a number of at least 0|got -0.2"),
    ("clip_range:float('nan')", "clip_range must be|got nan"),
    ("clip_range:wide", "clip_range must be|got 'wide'"),
    ("clip_range_vf:0", "clip_range_vf must be a number greater than 0|None (no clipping)"),
    ("clip_range_vf:-1", "clip_range_vf must be a number greater than 0"),
    ("ent_coef:float('nan')", "ent_coef must be a number that is finite, got nan"),
    ("ent_coef:auto", "ent_coef must be a number|got 'auto'"),
    ("vf_coef:-1", "vf_coef must be a number of at least 0"),
    ("max_grad_norm:0", "max_grad_norm must be a number greater than 0"),
    ("max_grad_norm:-1", "max_grad_norm must be a number greater than 0"),
    ("max_grad_norm:None", "max_grad_norm must be a number|got None"),
    ("normalize_advantage:maybe", "normalize_advantage must be True or False, got 'maybe'"),
    ("use_sde:2", "use_sde must be True or False, got 2"),
    ("sde_sample_freq:-2", "sde_sample_freq must be a whole number|-1 or 0"),
    ("target_kl:-0.1", "target_kl must be a number of at least 0|None (no early stopping)"),
    ("adaptive_lr_kl:0", "adaptive_lr_kl must be a number greater than 0"),
    ("adaptive_lr_kl:-1", "adaptive_lr_kl must be a number greater than 0"),
    ("adaptive_lr_factor:1", "adaptive_lr_factor must be a number greater than 1"),
    ("adaptive_lr_min:1.0", "adaptive_lr_min (1.0) is greater than adaptive_lr_max (0.01)"),
    ("compile:yes", "compile must be True or False, got 'yes'"),
    ("spread_time_limits:3", "spread_time_limits must be True or False"),
    ("stats_window_size:-1", "stats_window_size must be a whole number of at least 0"),
    ("n_envs:0", "n_envs must be a whole number of at least 1, got 0|-params"),
    ("n_envs:-4", "n_envs must be a whole number of at least 1"),
    ("n_envs:2.5", "n_envs must be a whole number|got 2.5"),
    ("n_envs:many", "n_envs must be a whole number|got 'many'"),
    ("n_envs:None", "n_envs must be a whole number|got None"),
    ("n_envs:[4]", "n_envs must be a whole number|got [4]"),
    ("n_envs:True", "n_envs must be a whole number|got True"),
    ("n_envs:10**9", "GB on cpu|are free|1000000000 environments|lower n_steps or n_envs"),
    ("n_envs:10**15", "needs more than 1,000,000 GB|are free|lower n_steps or n_envs"),
    ("n_envs:10**30", "n_envs must be a whole number|which is more than torch can count (2**63)"),
    ("n_timesteps:0", "n_timesteps must be a whole number of at least 1"),
    ("n_timesteps:-5", "n_timesteps must be a whole number of at least 1"),
    ("n_timesteps:1.5", "n_timesteps must be a whole number|got 1.5"),
    ("n_timesteps:float('inf')", "n_timesteps must be a whole number|got inf"),
    ("n_timesteps:many", "n_timesteps must be a whole number|got 'many'"),
    ("frame_stack:0", "frame_stack must be a whole number of at least 1"),
    ("frame_stack:2.5", "frame_stack must be a whole number"),
    ("frame_stack:10**9", "GB|are free|rollouts"),
    ("normalize:3", "normalize must be a mapping|True or False|got 3"),
    ("normalize:yes", "normalize must be|True or False|got 'yes'"),
    ("normalize:dict(norm_ob=True)", "normalize in|has the key 'norm_ob'|norm_obs"),
    ("normalize:dict(clip_obs=-1)", "clip_obs must be a number greater than 0|normalize of"),
    ("normalize:dict(gamma=2)", "gamma must be a number from 0 to 1|normalize of"),
    ("normalize:'dict('", "or -params|in its entry 'normalize'|is no Python"),
    ("policy:Mlp", "policy 'Mlp'|is unknown|did you mean MlpPolicy?"),
    ("policy:zzz", "policy 'zzz'|choose one of|MlpPolicy"),
    ("policy:3", "policy must be a word, got 3"),
    ("policy:None", "policy must be a word, got None"),
    ("policy:'no.such.Policy'", "The entry in|cannot be used|No module named 'no'"),
    ("policy_kwargs:[64]", "policy_kwargs must be a mapping|got [64]"),
    ("policy_kwargs:3", "policy_kwargs must be a mapping|got 3"),
    ("policy_kwargs:'dict(net_arch=['", "or -params|in its entry 'policy_kwargs'|is no Python"),
    ("policy_kwargs:dict(net_arch=[0])", "net_arch of policy_kwargs must be a list of whole numbers from 1|got [0]"),
    ("policy_kwargs:dict(net_arch=big)", "no Python value|NameError"),
    ("policy_kwargs:dict(net_arch='big')", "net_arch of policy_kwargs must be a list|got 'big'"),
    ("policy_kwargs:dict(net_arch='[64]')", "got '[64]' in|which is a word: write it without quotes."),
    ("policy_kwargs:dict(net_arch={'pi':'[64]'})", "got {'pi': '[64]'} in|which is a word: write it without quotes."),
    ("policy_kwargs:dict(net_arch=[2.5])", "net_arch of policy_kwargs must be a list of whole numbers"),
    ("policy_kwargs:dict(net_arch=[10**9])", "net_arch of policy_kwargs must be a list of whole numbers from 1 to 1000000"),
    ("policy_kwargs:dict(net_arch=[10**6,10**6])", "GB|are free|make net_arch smaller"),
    ("policy_kwargs:dict(activation_fn='elo')", "Unknown activation_fn 'elo'|choose one of"),
    ("policy_kwargs:dict(neurons=3)", "policy_kwargs in|make no policy|neurons"),
    ("policy_kwargs:dict(optimizer_class='adam')", "policy_kwargs in|make no policy"),
    ("policy_kwargs:dict(log_std_init='low')", "policy_kwargs in|make no policy"),
    ("callback:Nothing", "callback must be the name of a class, module.Class|got 'Nothing'"),
    ("callback:3", "callback must be the name of a class"),
    ("callback:'no.such.Callback'", "The entry in|cannot be used|No module named 'no'"),
    ("callback:'os.path.Callback'", "The entry in|cannot be used|Callback"),
    ("env_wrapper:'nowhere.Wrapper'", "The entry in|cannot be used|No module named 'nowhere'"),
    ("env_wrapper:Wrapper", "env_wrapper must be the name of a class"),
    ("vec_env_wrapper:'nowhere.Wrapper'", "cannot be used|No module named 'nowhere'"),
    ("env_kwargs:3", "env_kwargs must be a mapping"),
    ("env_kwargs:dict(gravity=-1)", "gravity must be a number greater than 0 (m/s^2)"),
    ("monitor_kwargs:3", "monitor_kwargs must be a mapping"),
    ("noise_type:normal noise_std:0.1", "noise_type and noise_std|are for DDPG"),
    ("until_solved:maybe", "until_solved must be True or False"),
    ("reward_threshold:high", "reward_threshold must be a number"),
    ("until_solved:True reward_threshold:float('nan')", "reward_threshold must be a number that is finite|got nan"),
    ("seed:3", "seed in|is no hyperparameter: use --seed"),
    ("device:'cpu'", "device in|is no hyperparameter: use --device"),
    ("verbose:1", "verbose in|is no hyperparameter: use --verbose"),
    ("lerning_rate:0.1", "Unknown hyperparameter 'lerning_rate'|did you mean 'learning_rate'?"),
    ("zzz:1", "Unknown hyperparameter 'zzz'|remove it"),
    ("buffer_size:100", "Unknown hyperparameter 'buffer_size' for ppo"),
    ("trial_timeout:5", "Unknown hyperparameter 'trial_timeout'"),
    ("gamma", "argument -params/--hyperparams: 'gamma' must be NAME:VALUE"),
    ("gamma:", "'gamma:' must be NAME:VALUE"),
    (":0.9", "':0.9' must be NAME:VALUE"),
    ("gamma=0.9", "'gamma=0.9' must be NAME:VALUE"),
    ("gamma:(1", "the value of 'gamma:(1' is no Python value (SyntaxError"),
    ("gamma:1/0", "no Python value (ZeroDivisionError"),
    ("gamma:a.b", "no Python value (NameError"),
    ("gamma:2**'a'", "no Python value (TypeError"),
    ("n_steps:10**10**10", "'n_steps:10**10**10' has a power that takes too long to compute: write the number"),
    ("batch_size:1<<10**10", "a power that takes too long to compute"),
]

DQN_PARAMS = [
    ("buffer_size:-1", "buffer_size must be a whole number of at least 1 (transitions), got -1|dqn.yml or -params|1000000"),
    ("buffer_size:0", "buffer_size must be a whole number of at least 1"),
    ("buffer_size:1.5", "buffer_size must be a whole number|got 1.5"),
    ("buffer_size:float('nan')", "buffer_size must be a whole number|got nan"),
    ("buffer_size:big", "buffer_size must be a whole number|got 'big'"),
    ("buffer_size:10**12", "GB|are free|a replay buffer of 1000000000000 transitions|lower buffer_size"),
    ("learning_starts:-1", "learning_starts must be a whole number of at least 0"),
    ("learning_starts:soon", "learning_starts must be a whole number|got 'soon'"),
    ("tau:-1", "tau must be a number from 0 to 1, got -1"),
    ("tau:1.1", "tau must be a number from 0 to 1"),
    ("tau:float('nan')", "tau must be a number|got nan"),
    ("train_freq:0", "train_freq must be a whole number of at least 1 (steps)|got 0"),
    ("train_freq:-1", "train_freq must be a whole number of at least 1"),
    ("train_freq:2.5", "train_freq must be a whole number|got 2.5"),
    ("train_freq:often", "train_freq must be|got 'often'"),
    ("train_freq:[4,'day']", "train_freq must be|(1, 'episode')|got [4, 'day']"),
    ("train_freq:[0,'step']", "train_freq must be|got [0, 'step']"),
    ("train_freq:[4]", "train_freq must be|got [4]"),
    ("train_freq:[1,'episode']", "train_freq in episodes needs n_envs: 1|n_envs is 64|count in steps"),
    ("gradient_steps:-2", "gradient_steps must be a whole number of at least 0, or -1"),
    ("gradient_steps:1.5", "gradient_steps must be a whole number"),
    ("target_update_interval:0", "target_update_interval must be a whole number of at least 1"),
    ("exploration_fraction:0", "exploration_fraction must be a number greater than 0 and at most 1"),
    ("exploration_fraction:2", "exploration_fraction must be a number greater than 0 and at most 1"),
    ("exploration_initial_eps:2", "exploration_initial_eps must be a number from 0 to 1"),
    ("exploration_final_eps:-0.1", "exploration_final_eps must be a number from 0 to 1"),
    ("double_q:maybe", "double_q must be True or False"),
    ("per_env_epsilon:[1.0]", "per_env_epsilon must be two numbers (of the first and the last environment)|got [1.0]"),
    ("per_env_epsilon:[2,0.1]", "per_env_epsilon must be two numbers|at most 1"),
    ("per_env_epsilon:0.5", "per_env_epsilon must be two numbers|got 0.5"),
    ("per_env_epsilon:['a','b']", "per_env_epsilon must be two numbers"),
    ("reward_scale:0", "reward_scale must be a number greater than 0"),
    ("reward_scale:float('nan')", "reward_scale must be a number|got nan"),
    ("n_steps:0", "n_steps must be a whole number of at least 1"),
    ("batch_size:-1", "batch_size must be a whole number of at least 1"),
    ("gamma:1.01", "gamma must be a number from 0 to 1"),
    ("optimize_memory_usage:True", "optimize_memory_usage|handle_timeout_termination: false"),
    ("replay_buffer_kwargs:3", "replay_buffer_kwargs must be a mapping"),
    ("replay_buffer_kwargs:dict(size=3)", "replay_buffer_kwargs in|has the key 'size': it may have n_steps"),
    ("replay_buffer_kwargs:dict(n_steps=0)", "n_steps must be a whole number of at least 1|replay_buffer_kwargs of"),
    ("replay_buffer_kwargs:dict(n_steps=3)", "n_steps is 11, and 3 in replay_buffer_kwargs"),
    ("noise_type:normal noise_std:0.1", "noise_type and noise_std|are for DDPG"),
    ("clip_range:0.2", "Unknown hyperparameter 'clip_range' for dqn"),
    ("policy_kwargs:dict(net_arch=dict(pi=[8]))", "policy_kwargs in|make no policy"),
]

DDPG_PARAMS = [
    ("per_env_noise:[0,1]", "per_env_noise must be two numbers|greater than 0|got [0, 1]"),
    ("per_env_noise:loud", "per_env_noise must be two numbers|got 'loud'"),
    ("noise_type:pink noise_std:0.1", "noise_type|must be one of normal, ornstein-uhlenbeck, got 'pink'"),
    ("noise_type:normal", "noise_type and noise_std|noise_std is missing"),
    ("noise_std:0.1", "noise_type and noise_std|noise_type is missing"),
    ("noise_type:normal noise_std:-0.1", "noise_std must be a number of at least 0"),
    ("noise_type:normal noise_std:float('nan')", "noise_std must be a number|got nan"),
    ("noise_type:3 noise_std:0.1", "noise_type must be a word"),
    ("shared_noise:loud", "shared_noise must be True or False"),
    ("tau:2", "tau must be a number from 0 to 1"),
    ("buffer_size:-1", "buffer_size must be a whole number of at least 1"),
]

ENV_KWARGS = [
    ("gravity:-1", "gravity must be a number greater than 0 (m/s^2), got -1|the default is 9.81"),
    ("gravity:0", "gravity must be a number greater than 0"),
    ("gravity:float('nan')", "gravity must be a number|got nan"),
    ("gravity:float('inf')", "gravity must be a number|got inf"),
    ("gravity:heavy", "gravity must be a number|got 'heavy'"),
    ("gravity:[1]", "gravity must be a number|got [1]"),
    ("pole_length:0", "pole_length must be a number greater than 0 (m)"),
    ("cart_mass:-1", "cart_mass must be a number greater than 0 (kg)"),
    ("angular_damping:-0.1", "angular_damping must be a number of at least 0"),
    ("dt:-0.01", "dt must be a number greater than 0 (s)"),
    ("substeps:0", "substeps must be a whole number from 1 to 10000"),
    ("substeps:10**9", "substeps must be a whole number from 1 to 10000"),
    ("substeps:1.5", "substeps must be a whole number"),
    ("max_effort:None", "max_effort must be a number|got None"),
    ("max_episode_length:1", "max_episode_length must be a whole number from 2"),
    ("max_episode_length:2.5", "max_episode_length must be a whole number"),
    ("max_episode_length:10**30", "max_episode_length must be a whole number"),
    ("reset_dist:-3", "reset_dist must be a number greater than 0 (m)"),
    ("n_bins:5", "n_bins needs Discrete actions"),
    ("discrete:True n_bins:1", "n_bins must be a whole number from 2"),
    ("wind:1", "Unknown task parameter wind: the cartpole has"),
    ("reward:3", "reward must be a function or 'module:function'"),
    ("reward:'nowhere:f'", "reward='nowhere:f' names no function"),
    ("termination:'math:nothing'", "names no function"),
    ("backend:mujoco", "Unknown backend 'mujoco': choose one of"),
    ("render_mode:ansi", "Unknown render_mode 'ansi'"),
    ("gravity", "argument --env-kwargs: 'gravity' must be NAME:VALUE"),
    ("gravity:(1", "no Python value (SyntaxError"),
    ("gravity:9**9**9", "a power that takes too long to compute"),
]

FLAGS = [
    (f"{PPO} -n 0", "--n-timesteps must be a whole number of at least 1, or -1"),
    (f"{PPO} -n -5", "--n-timesteps must be a whole number of at least 1"),
    (f"{PPO} -n many", "argument -n/--n-timesteps: invalid int value: 'many'"),
    (f"{PPO} -n 1.5", "argument -n/--n-timesteps: invalid int value: '1.5'"),
    (f"{PPO} -n", "argument -n/--n-timesteps: expected one argument"),
    (f"{PPO} --eval-freq often", "argument --eval-freq: invalid int value"),
    (f"{PPO} --save-freq often", "argument --save-freq: invalid int value"),
    (f"{PPO} --eval-episodes 0", "--eval-episodes must be a whole number of at least 1"),
    (f"{PPO} --n-eval-envs 0", "--n-eval-envs must be a whole number of at least 1"),
    (f"{PPO} --n-eval-envs -1", "--n-eval-envs must be a whole number of at least 1"),
    (f"{PPO} --n-eval-envs 1000000000", "GB|1000000000 of evaluation"),
    (f"{PPO} --num-threads 0", "--num-threads must be a whole number of at least 1, or -1"),
    (f"{PPO} --num-threads -2", "--num-threads must be a whole number"),
    (f"{PPO} --seed 4294967296", "--seed must be a whole number of at most 4294967295"),
    (f"{PPO} --seed x", "argument --seed: invalid int value"),
    (f"{PPO} --log-interval 0", "--log-interval must be a whole number of at least 1, or -1 or -2"),
    (f"{PPO} --verbose -1", "--verbose must be a whole number of at least 0"),
    (f"{PPO} --device gpu", "Device 'gpu' cannot be used; devices found here: cpu"),
    (f"{PPO} --device cuda:99", "Device 'cuda:99' cannot be used"),
    (f"{PPO} --vec-env fast", "argument --vec-env: invalid choice: 'fast'"),
    (f"{PPO} --sed 3 --what", "unrecognized arguments: --sed 3 --what"),
    (f"{PPO} surplus", "unrecognized arguments: surplus"),
    (f"{PPO} -f taken", "-f taken cannot be used|is a file|Choose another folder"),
    (f"{PPO} -f taken/below", "-f taken/below cannot be used|is a file"),
    (f"{PPO} -f empty.yml", "-f empty.yml cannot be used|is a file"),
    (f"{PPO} -tb taken", "-tb taken|cannot be used|is a file"),
    (f"{PPO} --gym-packages nowhere", "No module named 'nowhere'"),
    (f"{PPO} --trial-id 3", "--trial-id"),
    (f"{PPO} --trial-id -3", "--trial-id"),
    (f"{PPO} --eval-env-kwargs gravity:-1", "gravity must be a number greater than 0"),
    (f"{PPO} --eval-env-kwargs wind:1", "Unknown task parameter wind"),
    (f"{PPO} --until-solved --eval-freq -1", "--until-solved needs evaluations"),
    (f"train --algo pppo --env {CONTINUOUS}", "argument --algo: invalid choice: 'pppo'"),
    ("train --algo ppo --env IsaacGymCartpol-v0", "not found in gym registry, you maybe meant IsaacGymCartpole-v0?"),
    ("train --algo ppo --env My-v0", "name the module: --gym-packages my_task"),
    ("evaluate --algo ppo --env My-v0", "name the module: --gym-packages my_task"),
    ("enjoy --algo ppo --env My-v0", "name the module: --gym-packages my_task"),
    ("train --algo ppo --env", "argument --env: expected one argument"),
    (f"train --algo dqn --env {CONTINUOUS}", "dqn needs discrete actions|use --env IsaacGymCartpoleDiscrete-v0"),
    (f"train --algo ddpg --env {DISCRETE}", "ddpg needs continuous actions|use --env IsaacGymCartpole-v0"),
    (f"train --resume -i good.zip {AGENT}", "--resume and --trained-agent exclude each other"),
    (f"train --resume -conf list.yml {AGENT}", "--resume and --conf-file exclude each other|-params NAME:VALUE"),
    (f"train --resume --trial-id 3 {AGENT}", "--resume and --trial-id exclude each other"),
    (f"train --resume {AGENT}", "has no checkpoint to go on from: train with --save-freq N"),
    (f"train --resume \u00b2 {AGENT}", "there is no such folder, and it is no number of a run"),
    ("train --resume broken/args_text/ppo/IsaacGymCartpole-v0_1", "args.yml cannot be read|env_kwargs must be names"),
    ("train --resume broken/not_resumed/ppo/IsaacGymCartpole-v0_1", "rl_model_8_steps.json is no manifest|no model and state"),
    ("train --resume broken/not_resumed/ppo/IsaacGymCartpole-v0_1 --algo dqn", "--algo dqn: the run|is of ppo"),
    ("train --resume broken/no_state/ppo/IsaacGymCartpole-v0_1", "rl_model_8_steps_state.pt cannot be read as the state"),
    ("train --resume broken/infinite/ppo/IsaacGymCartpole-v0_1", "has no checkpoint to go on from"),
    ("trian", "unknown command 'trian'"),
    (f"{SEARCH} --n-trials 0", "--n-trials must be a whole number of at least 1"),
    (f"{SEARCH} --n-trials -1", "--n-trials must be a whole number of at least 1"),
    (f"{SEARCH} --n-trials few", "argument --n-trials: invalid int value"),
    (f"{SEARCH} --n-jobs 0", "--n-jobs must be a whole number of at least 1, or -1"),
    (f"{SEARCH} --n-startup-trials -1", "--n-startup-trials must be a whole number of at least 0"),
    (f"{SEARCH} --n-evaluations 0", "--n-evaluations must be a whole number of at least 1"),
    (f"{SEARCH} --max-total-trials 0", "--max-total-trials must be a whole number of at least 1"),
    (f"{SEARCH} --sampler cmaes", "argument --sampler: invalid choice: 'cmaes'"),
    (f"{SEARCH} --pruner no", "argument --pruner: invalid choice: 'no'"),
    (f"{SEARCH} --trial-timeout 0", "trial_timeout must be a number greater than 0 (seconds)"),
    (f"{SEARCH} --trial-timeout nan", "trial_timeout must be a number greater than 0"),
    (f"{SEARCH} --trial-timeout soon", "argument --trial-timeout: invalid float value"),
    (f"{SEARCH} --write-yaml nowhere/best.yml", "cannot be written to nowhere/best.yml"),
    (f"{SEARCH} --write-yaml list.yml", "cannot be written to list.yml|no hyperparameter file"),
    (f"{SEARCH} -params n_envs:[0]", "n_envs must be a whole number of at least 1, or a list"),
    (f"{SEARCH} -params n_envs:[]", "n_envs must be a whole number of at least 1, or a list"),
    (f"{SEARCH} -params n_envs:[4,10**10]", "GB|10000000000 environments"),
    (f"{SEARCH} -params gamma:2", "gamma must be a number from 0 to 1"),
    (f"{SEARCH} --optimization-log-path taken", "--optimization-log-path taken cannot be used"),
]

CONFIGS = [
    ("empty.yml", "empty.yml must hold entries by environment id|holds nothing"),
    ("comment.yml", "comment.yml must hold entries|holds nothing"),
    ("list.yml", "list.yml must hold entries|holds a list"),
    ("text.yml", "text.yml must hold entries|holds a str"),
    ("number.yml", "number.yml must hold entries|holds a int"),
    ("other.yml", "Hyperparameters not found for ppo-IsaacGymCartpole-v0 in other.yml"),
    ("null.yml", f"The entry {CONTINUOUS} of hyperparameter file null.yml must be a mapping|got 'None'"),
    ("entry_list.yml", "entry_list.yml must be a mapping"),
    ("entry_text.yml", "entry_text.yml must be a mapping|got 'n_envs 4'"),
    ("entry_empty.yml", "entry_empty.yml"),
    ("number_key.yml", "Hyperparameters not found for ppo-IsaacGymCartpole-v0 in number_key.yml"),
    ("number_name.yml", "number_name.yml must be a mapping of names"),
    ("tab.yml", "tab.yml is no YAML|a tab|line 2"),
    ("unclosed.yml", "unclosed.yml is no YAML|line"),
    ("indent.yml", "indent.yml is no YAML|line 3"),
    ("twice.yml", "twice.yml is no YAML|the key 'gamma' stands there twice|line 4"),
    ("entry_twice.yml", f"entry_twice.yml is no YAML|the key '{CONTINUOUS}' stands there twice"),
    ("alias.yml", "alias.yml is no YAML|undefined alias"),
    ("python.yml", "python.yml is no YAML|python/object/apply:os.getcwd"),
    ("date.yml", "date.yml"),
    ("exponent.yml", "gamma must be a number from 0 to 1, got '1e-1' in exponent.yml or -params, which is a word|1.0e-3"),
    ("no_timesteps.yml", "n_timesteps is missing for IsaacGymCartpole-v0 in no_timesteps.yml: add it, or pass -n"),
    ("no_policy.yml", "policy is missing in no_policy.yml|add policy: MlpPolicy"),
    ("null_value.yml", "gamma must be a number from 0 to 1, got None in null_value.yml"),
    ("latin1.yml", "latin1.yml is no YAML"),
    ("binary.yml", "binary.yml is no YAML"),
    ("folder.yml", "folder.yml is a folder"),
    ("missing.yml", "Hyperparameter file missing.yml does not exist"),
    ("missing.py", "Hyperparameter file missing.py does not exist"),
    ("raises.py", "cannot be read from raises.py (ZeroDivisionError"),
    ("syntax.py", "cannot be read from syntax.py (SyntaxError"),
    ("nothing.py", "nothing.py must hold entries|holds nothing"),
    ("nowhere", "cannot be read from nowhere (ModuleNotFoundError|NAME.yml"),
    ("math", "math must hold entries"),
]

MODELS = [
    ("missing.zip", "There is no model missing.zip|valid path to a .zip file"),
    ("taken", "There is no model taken|.zip"),
    ("folder.zip", "There is no model folder.zip"),
    ("empty.zip", "empty.zip is empty, and should be a model"),
    ("text.zip", "text.zip cannot be read as a model|not a zip file"),
    ("cut.zip", "cut.zip cannot be read as a model"),
    ("damaged.zip", "damaged.zip cannot be read as a model|damaged"),
    ("no_data.zip", "no_data.zip cannot be read as a model"),
    ("no_json.zip", "no_json.zip cannot be read as a model"),
    ("list.zip", "list.zip cannot be read as a model"),
    ("dqn.zip", "dqn.zip is a model of dqn, not of ppo"),
]

RUNS = [
    ("model_empty", "IsaacGymCartpole-v0.zip is empty"),
    ("model_cut", "IsaacGymCartpole-v0.zip cannot be read as a model"),
    ("model_damaged", "IsaacGymCartpole-v0.zip cannot be read as a model"),
    ("model_text", "IsaacGymCartpole-v0.zip cannot be read as a model|not a zip file"),
    ("model_missing", "No model found for ppo|train one first"),
    ("config_empty", "config.yml is empty, and should be the settings of a run"),
    ("config_cut", "config.yml cannot be read as the settings of a run"),
    ("config_list", "config.yml cannot be read as the settings of a run"),
    ("args_binary", "args.yml cannot be read as the settings of a run"),
    ("args_empty", "args.yml is empty"),
    ("stats_empty", "vecnormalize.pkl is empty, and should be the statistics of VecNormalize"),
    ("stats_cut", "vecnormalize.pkl cannot be read as the statistics of VecNormalize"),
    ("stats_text", "vecnormalize.pkl cannot be read as the statistics of VecNormalize"),
    ("stats_number", "vecnormalize.pkl|int"),
    ("stats_missing", "vecnormalize.pkl not found"),
]
PLOTS = [
    ("eval", "evaluations_empty", "evaluations.npz is empty, and should be a log of evaluations"),
    ("eval", "evaluations_cut", "evaluations.npz cannot be read as a log of evaluations"),
    ("eval", "evaluations_text", "evaluations.npz cannot be read as a log of evaluations"),
    ("eval", "evaluations_other", "evaluations.npz cannot be read as a log of evaluations|timesteps"),
    ("eval", "evaluations_none", "evaluations.npz cannot be read as a log of evaluations|0 timesteps"),
    ("eval", "evaluations_uneven", "evaluations.npz cannot be read as a log of evaluations|2 timesteps and 3 results"),
    ("train", "monitor_empty", "monitor_empty|monitor"),
    ("train", "monitor_text", "monitor_text|monitor"),
    ("train", "monitor_header", "monitor_header|monitor"),
    ("train", "monitor_columns", "monitor_columns|monitor"),
    ("reward-rate", "rewards_binary", "reward_rate.csv cannot be read as a curve of rewards"),
    ("reward-rate", "rewards_words", "reward_rate.csv"),
    ("reward-rate", "rewards_empty", "reward_rate.csv is no curve of rewards"),
]

OTHER_COMMANDS = [
    *((f"{command} {AGENT} -f broken/{run}{no_render}", words) for run, words in RUNS
      for command, no_render in (("evaluate", ""), ("enjoy", " --no-render"))),
    (f"video {AGENT} -f broken/model_cut", "IsaacGymCartpole-v0.zip cannot be read as a model"),
    (f"evaluate {AGENT} -f nowhere", "folder was not found|train one first"),
    (f"evaluate {AGENT} -f taken", "folder was not found"),
    (f"evaluate {AGENT} --exp-id 7", "folder was not found"),
    (f"evaluate {AGENT} --exp-id -2", "--exp-id must be a whole number of at least 1, or 0 or -1"),
    (f"evaluate {AGENT} --exp-id x", "argument --exp-id: invalid int value"),
    (f"evaluate {AGENT} -n 0", "--n-episodes must be a whole number of at least 1"),
    (f"evaluate {AGENT} -n -3", "--n-episodes must be a whole number of at least 1"),
    (f"evaluate {AGENT} -n few", "argument -n/--n-episodes: invalid int value"),
    (f"evaluate {AGENT} --n-envs 0", "--n-envs must be a whole number of at least 1"),
    (f"evaluate {AGENT} --n-envs 100000000000", "GB|100000000000 environments|lower --n-envs"),
    (f"evaluate {AGENT} --seed -1", "--seed must be a whole number from 0"),
    (f"evaluate {AGENT} --num-threads 0", "--num-threads must be a whole number"),
    (f"evaluate {AGENT} --device gpu", "Device 'gpu' cannot be used"),
    (f"evaluate {AGENT} --load-best", "No model found|best_model.zip"),
    (f"evaluate {AGENT} --load-checkpoint 5", "No model found|rl_model_5_steps.zip"),
    (f"evaluate {AGENT} --load-checkpoint -5", "--load-checkpoint must be a whole number of at least 0"),
    (f"evaluate {AGENT} --load-last-checkpoint", "No checkpoint found"),
    (f"evaluate {AGENT} --load-best --load-last-checkpoint", "not allowed with argument"),
    (f"evaluate {AGENT} --env-kwargs gravity:-1", "gravity must be a number greater than 0"),
    (f"evaluate {AGENT} --env-kwargs gravity", "'gravity' must be NAME:VALUE"),
    (f"evaluate {AGENT} --gym-packages nowhere", "No module named 'nowhere'"),
    (f"evaluate --algo dqn --env {DISCRETE}", "folder was not found"),
    (f"evaluate --algo pppo --env {CONTINUOUS}", "argument --algo: invalid choice"),
    ("evaluate --algo ppo", "the following arguments are required: --env"),
    ("evaluate --algo ppo --env Nowhere-v0", "Nowhere"),
    (f"enjoy {AGENT} --no-render -n 0", "--n-timesteps must be a whole number of at least 1"),
    (f"enjoy {AGENT} --no-render --n-envs 0", "--n-envs must be a whole number of at least 1"),
    (f"enjoy {AGENT} --no-render --n-envs 100000000000", "GB|lower --n-envs"),
    (f"enjoy {AGENT} --no-render --device gpu", "Device 'gpu' cannot be used"),
    (f"export {AGENT} -o a.pt b.bin", "Cannot export to 'b.bin': the name must end in .onnx, .pt, .ts"),
    (f"export {AGENT} -o nowhere/a.pt", "Cannot export to 'nowhere/a.pt': there is no folder nowhere"),
    (f"export {AGENT} -o folder.pt", "folder.pt|It is a folder, choose another name"),
    (f"export {AGENT} -o a.pt --stochastic", "--stochastic cannot be exported"),
    (f"evaluate {AGENT} -f broken/args_text", "args.yml cannot be read|env_kwargs must be names"),
    (f"video {AGENT} -n 0", "--n-timesteps must be a whole number of at least 1"),
    (f"video {AGENT} -n long", "argument -n/--n-timesteps: invalid int value"),
    (f"video {AGENT} --push -1", "--push must be a number of at least 0 (seconds)"),
    (f"video {AGENT} --push nan", "--push must be a number of at least 0"),
    (f"video {AGENT} -o film.avi", "Cannot write a video to 'film.avi'|.mp4"),
    (f"video {AGENT} --n-envs 0", "--n-envs must be a whole number of at least 1"),
    *((f"plot ppo:{CONTINUOUS} -f broken/{run} --curve {curve} -o curve.png", words) for curve, run, words in PLOTS),
    ("plot", "name at least one curve"),
    ("plot ppo -o x.png", "A curve is named ALGO:ENV"),
    (f"plot ppo:{CONTINUOUS} -f nowhere -o x.png", "No run of ppo|train one first"),
    (f"plot dqn:{DISCRETE} -o x.png", f"No run of dqn|ppo:{CONTINUOUS}"),
    (f"plot ppo:{CONTINUOUS} -w 0 -o x.png", "--window must be a whole number of at least 1"),
    (f"plot ppo:{CONTINUOUS} -max nan -o x.png", "--max-timesteps must be a number greater than 0"),
    (f"plot ppo:{CONTINUOUS} -l a b -o x.png", "1 curves need as many --labels, got 2"),
    (f"plot ppo:{CONTINUOUS} -x years -o x.png", "argument -x/--x-axis: invalid choice"),
    (f"plot ppo:{CONTINUOUS} -o x.doc", "x.doc"),
    (f"plot ppo:{CONTINUOUS} -o taken/x.png", "taken"),
    (f"plot ppo:{CONTINUOUS} --reference buffer.pkl -o x.png", "buffer.pkl cannot be read as a curve of rewards"),
    (f"plot ppo:{CONTINUOUS} -o folder.png", "folder.png|It is a folder, choose another name"),
    (f"plot ppo:{CONTINUOUS} --reference nowhere.csv -o x.png", "nowhere.csv"),
    ("compare --seeds 0", "--seeds must be a whole number of at least 1"),
    ("compare --jobs 0", "--jobs must be a whole number of at least 1"),
    ("compare -n 0", "--n-timesteps must be a whole number of at least 1"),
    ("compare pppo:x", "Unknown algorithm 'pppo'"),
    ("compare ppo:Nowhere-v0", "Nowhere"),
    ("check --backend mujoco", "argument --backend: invalid choice"),
    ("check --record out.npz", "--record needs --backend"),
    ("check --backend torch --device gpu", "Device 'gpu' cannot be used"),
]  # fmt: skip

COMMANDS: List[Tuple[str, str]] = [
    *((f"{PPO} -params {value}", words) for value, words in PPO_PARAMS),
    *((f"{DQN} -params {value}", words) for value, words in DQN_PARAMS),
    *((f"{DDPG} -params {value}", words) for value, words in DDPG_PARAMS),
    *((f"{PPO} --env-kwargs {value}", words) for value, words in ENV_KWARGS),
    *FLAGS,
    *((f"{PPO} -conf {config}", words) for config, words in CONFIGS),
    *((f"{PPO} -n 100 -i {model}", words) for model, words in MODELS),
    *OTHER_COMMANDS,
]

# -- calls from Python --------------------------------------------------------------------------------------------------


def ppo(**options: Any) -> Any:
    return sb3_isaac.PPO("MlpPolicy", make_env(n_envs=2), device="cpu", **{"n_steps": 4, "batch_size": 8, **options})


def dqn(**options: Any) -> Any:
    return sb3_isaac.DQN("MlpPolicy", make_env(DISCRETE, 2), device="cpu", **{"buffer_size": 10, **options})


def ddpg(**options: Any) -> Any:
    return sb3_isaac.DDPG("MlpPolicy", make_env(n_envs=2), device="cpu", **{"buffer_size": 10, **options})


def closed() -> Any:
    env = make_env(n_envs=2)
    env.reset()
    env.close()
    return env


def endless() -> Any:
    """Whoever wrote its task has forgotten the time limit."""
    env = make_env(n_envs=2, max_episode_length=5)
    step, never = env.tensor_env.step, th.zeros(2, dtype=th.bool)
    env.tensor_env.step = lambda actions: step(actions)._replace(terminated=never, truncated=never)
    return env


def policy_step(env: Any) -> Any:
    return env.step_tensor(th.zeros(2, 1))


ACTIONS = np.zeros((2, 1), dtype=np.float32)
BOX = (make_env(n_envs=1).observation_space, make_env(n_envs=1).action_space)
CALLS: List[Tuple[str, Callable[[], Any], type, str]] = [
    ("PPO(gamma=2)", lambda: ppo(gamma=2), ValueError, "gamma must be a number from 0 to 1, got 2"),
    ("PPO(n_steps=0)", lambda: ppo(n_steps=0), ValueError, "n_steps must be a whole number of at least 1"),
    ("PPO(n_steps=10**12)", lambda: ppo(n_steps=10**12), MemoryError, "GB|are free|lower n_steps or n_envs"),
    ("PPO(clip_range=-1)", lambda: ppo(clip_range=-1), ValueError, "clip_range must be a number"),
    ("PPO(learning_rate=nan)", lambda: ppo(learning_rate=float("nan")), ValueError, "learning_rate must be|got nan"),
    ("PPO(learning_rate='lin')", lambda: ppo(learning_rate="lin"), ValueError, "learning_rate must be|got 'lin'"),
    ("PPO(n_epochs=0)", lambda: ppo(n_epochs=0), ValueError, "n_epochs must be"),
    ("PPO(adaptive_lr_kl=-1)", lambda: ppo(adaptive_lr_kl=-1), ValueError, "adaptive_lr_kl must be"),
    ("PPO(seed=-1)", lambda: ppo(seed=-1), ValueError, "seed must be a whole number from 0"),
    ("PPO(policy_kwargs=3)", lambda: ppo(policy_kwargs=3), ValueError, "policy_kwargs must be a mapping"),
    ("DQN(tau=-1)", lambda: dqn(tau=-1), ValueError, "tau must be a number from 0 to 1"),
    ("DQN(buffer_size=-1)", lambda: dqn(buffer_size=-1), ValueError, "buffer_size must be"),
    ("DQN(buffer_size=10**13)", lambda: dqn(buffer_size=10**13), MemoryError, "GB|are free|lower buffer_size"),
    ("DQN(train_freq=0)", lambda: dqn(train_freq=0), ValueError, "train_freq must be a whole number of at least 1"),
    ("DQN(train_freq=(4, day))", lambda: dqn(train_freq=(4, "day")), ValueError, "train_freq must be"),
    ("DQN(per_env_epsilon=2)", lambda: dqn(per_env_epsilon=2), ValueError, "per_env_epsilon must be two numbers"),
    ("DQN(exploration_fraction=0)", lambda: dqn(exploration_fraction=0), ValueError, "exploration_fraction must be"),
    ("DDPG(per_env_noise=(0, 1))", lambda: ddpg(per_env_noise=(0, 1)), ValueError, "per_env_noise must be two numbers"),
    ("DDPG(reward_scale=nan)", lambda: ddpg(reward_scale=float("nan")), ValueError, "reward_scale must be"),
    ("DDPG(learning_starts=-1)", lambda: ddpg(learning_starts=-1), ValueError, "learning_starts must be"),
    *(
        (f"{make.__name__}.learn({steps})", lambda make=make, steps=steps: make().learn(steps), ValueError, words)
        for make in (ppo, dqn, ddpg)
        for steps, words in (
            (float("nan"), "total_timesteps must be a number of at least 0, got nan"),
            (-1, "total_timesteps must be a number of at least 0, got -1"),
            ("many", "total_timesteps must be a number|got 'many'"),
        )
    ),
    ("learn(log_interval=0)", lambda: ppo().learn(8, log_interval=0), ValueError, "log_interval must be a whole number"),
    ("step before reset", lambda: make_env(n_envs=2).step(ACTIONS), RuntimeError, "has not been reset: call reset()"),
    ("step_tensor before reset", lambda: policy_step(make_env(n_envs=2)), RuntimeError, "has not been reset"),
    ("step after close", lambda: closed().step(ACTIONS), RuntimeError, "has been closed: make another one"),
    ("step_tensor after close", lambda: policy_step(closed()), RuntimeError, "has been closed"),
    ("reset after close", lambda: closed().reset(), RuntimeError, "has been closed"),
    ("learn after close", lambda: sb3_isaac.PPO("MlpPolicy", closed(), n_steps=4, batch_size=8, device="cpu").learn(8),
     RuntimeError, "has been closed"),
    ("n_envs=0", lambda: make_env(n_envs=0), ValueError, "n_envs must be a whole number of at least 1"),
    ("n_envs=10**11", lambda: make_env(n_envs=10**11), MemoryError, "GB on cpu|100000000000 environments|lower n_envs"),
    ("env seed=-1", lambda: make_env(seed=-1), ValueError, "seed must be a whole number from 0"),
    ("max_episode_steps=0", lambda: make_env(max_episode_steps=0), ValueError, "max_episode_steps must be a whole number"),
    ("pole_length=nan", lambda: make_env(pole_length=float("nan")), ValueError, "pole_length must be a number"),
    ("VecNormalize(gamma=2)", lambda: VecNormalize(make_env(), gamma=2), ValueError, "gamma must be|VecNormalize"),
    ("VecNormalize(clip_obs=-1)", lambda: VecNormalize(make_env(), clip_obs=-1), ValueError, "clip_obs must be"),
    ("VecFrameStack(0)", lambda: sb3_isaac.VecFrameStack(make_env(), 0), ValueError, "frame_stack must be|n_stack"),
    ("DeviceReplayBuffer(0)", lambda: sb3_isaac.DeviceReplayBuffer(0, *BOX), ValueError, "buffer_size must be"),
    ("DeviceRolloutBuffer(0)", lambda: sb3_isaac.DeviceRolloutBuffer(0, *BOX), ValueError, "n_steps must be"),
    ("DeviceRolloutBuffer(gamma=2)", lambda: sb3_isaac.DeviceRolloutBuffer(2, *BOX, gamma=2), ValueError, "gamma must"),
    ("evaluate(n=0)", lambda: sb3_isaac.evaluate(ppo(), make_env(n_envs=2), 0), ValueError, "n_episodes must be"),
    ("evaluate(endless)", lambda: sb3_isaac.evaluate(ppo(), endless(), 4), RuntimeError,
     "0 of 4 episodes have ended in 25 steps|max_episode_length is 5|TorchCartpole must set truncated"),
    ("evaluate(path)", lambda: sb3_isaac.evaluate("good.zip", make_env()), TypeError, "evaluate takes a model|'good.zip'"),
    ("export(None)", lambda: sb3_isaac.export(None, "x.pt"), TypeError, "export takes a model|None"),
    ("export(statistics=3)", lambda: sb3_isaac.export(ppo(), "x.pt", 3), TypeError, "takes a VecNormalize for vec_normalize"),
    ("make_vec_env(None)", lambda: sb3_isaac.make_vec_env(None), TypeError, "takes the id of|sb3_isaac.register"),
    ("save(taken/x)", lambda: ppo().save("taken/x"), NotADirectoryError, "taken|It is a file where a folder must be"),
    ("save_checkpoint(taken/x)", lambda: ppo().save_checkpoint("taken/x"), NotADirectoryError, "taken|It is a file where"),
    ("PPO.resume(no env)", lambda: sb3_isaac.PPO.resume("x", None), TypeError, "takes the environment, made as it was"),
    ("PPO.resume(id)", lambda: sb3_isaac.PPO.resume("x", CONTINUOUS), TypeError, "takes the environment, made as it was"),
    ("PPO.load(gamma=2)", lambda: sb3_isaac.PPO.load("good.zip", gamma=2), ValueError, "gamma must be a number"),
    ("load(missing)", lambda: sb3_isaac.load("missing"), FileNotFoundError, "There is no model at missing"),
    *(
        (f"{name}({model})", lambda load=load, model=model: load(model), ValueError, f"{model}")
        for name, load in (("load", sb3_isaac.load), ("PPO.load", sb3_isaac.PPO.load), ("DQN.load", sb3_isaac.DQN.load))
        for model in ("empty.zip", "text.zip", "cut.zip", "damaged.zip", "no_data.zip", "no_json.zip", "list.zip")
    ),
    ("PPO.load(dqn.zip)", lambda: sb3_isaac.PPO.load("dqn.zip"), ValueError, "dqn.zip|dqn"),
    ("DQN.load(good.zip)", lambda: sb3_isaac.DQN.load("good.zip"), ValueError, "good.zip|ppo"),
    *(
        (f"VecNormalize.load({file})", lambda file=file: VecNormalize.load(file, make_env()), ValueError, file)
        for file in ("empty.pkl", "text.pkl", "number.pkl", "stats_cut.pkl")
    ),
    *(
        (f"load_replay_buffer({file})", lambda file=file: dqn().load_replay_buffer(file), ValueError, file)
        for file in ("empty.pkl", "text.pkl", "number.pkl", "buffer_cut.pkl")
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad_input")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        broken_files.fill(folder)
    return folder


@pytest.fixture(autouse=True)
def at_work(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    before = files(workplace)
    yield
    assert files(workplace) == before, "something was written"


def files(folder: Path) -> Set[str]:
    return {os.path.join(where, name) for where, folders, names in os.walk(folder) for name in folders + names
            if "__pycache__" not in name and "__pycache__" not in where}  # fmt: skip


def test_the_table_is_long_enough() -> None:
    assert len(COMMANDS) + len(CALLS) >= 250
    assert len({command for command, _ in COMMANDS}) == len(COMMANDS)


@pytest.mark.parametrize("command, words", COMMANDS, ids=[command for command, _ in COMMANDS])
def test_a_command_says_what_is_wrong(command: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = dispatch.main(command.split())
    except SystemExit as stop:
        status = stop.code  # type: ignore[assignment]
    err = capsys.readouterr().err.strip()
    assert status in (1, 2), err
    first = err.splitlines()[0] if command == "trian" else err  # which lists the commands
    assert len(first.splitlines()) == 1 and len(first) < 600, err
    assert first.startswith("sb3-isaac") and "Traceback" not in first
    for word in words.split("|"):
        assert word in first, first
    assert first.count("cannot be read") <= 1, "one sentence in another"


@pytest.mark.parametrize("name, call, error, words", CALLS, ids=[row[0] for row in CALLS])
@pytest.mark.filterwarnings("ignore")
def test_a_call_says_what_is_wrong(name: str, call: Callable[[], Any], error: type, words: str) -> None:
    with pytest.raises(error) as raised:
        call()
    sentence = str(raised.value)
    assert len(sentence.splitlines()) == 1
    for word in words.split("|"):
        assert word in sentence, sentence
