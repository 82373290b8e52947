"""Evaluation on many environments at once, callbacks, videos, learning curves, policies for robots."""

from __future__ import annotations

from sb3_isaac.evaluation.callbacks import BatchedEvalCallback, RewardLog, StopWhenSolved
from sb3_isaac.evaluation.exporting import export
from sb3_isaac.evaluation.load import load
from sb3_isaac.evaluation.measure import EvaluationResult, evaluate

__all__ = ["BatchedEvalCallback", "EvaluationResult", "RewardLog", "StopWhenSolved", "evaluate", "export", "load"]
