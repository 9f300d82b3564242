"""Launching: workers on one machine, a Ray cluster, ranks of one training run."""

from experiments.launch.calls import Ended, Failure, Progress, Report
from experiments.launch.cluster import run_on_ray
from experiments.launch.ranks import is_launched, process_group
from experiments.launch.workers import STOP_SECONDS, run_in_workers

__all__ = [
    "STOP_SECONDS",
    "Ended",
    "Failure",
    "Progress",
    "Report",
    "is_launched",
    "process_group",
    "run_in_workers",
    "run_on_ray",
]
