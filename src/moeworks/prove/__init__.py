"""Proof that a plan does what is claimed: metrics, controls, damage, mechanism, and a verdict."""

from moeworks.prove.choose import choose_amount
from moeworks.prove.evaluate import evaluate
from moeworks.prove.metrics import METRICS
from moeworks.prove.tasks import evaluate_tasks
from moeworks.prove.tune import tune
from moeworks.prove.verdict import Limits

__all__ = ["METRICS", "Limits", "choose_amount", "evaluate", "evaluate_tasks", "tune"]
