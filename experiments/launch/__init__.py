"""Launching: workers on one machine, a Ray cluster, ranks of one training run."""

from experiments.launch.calls import Call, Ended, Failure, Progress, Report
from experiments.launch.cluster import run_on_ray
from experiments.launch.ranks import Wrap, is_launched, process_group
from experiments.launch.workers import STOP_SECONDS, run_in_workers

__all__ = [
    "STOP_SECONDS",
    "Call",
    "Ended",
    "Failure",
    "Progress",
    "Report",
    "Wrap",
    "is_launched",
    "process_group",
    "run_in_workers",
    "run_on_ray",
]
