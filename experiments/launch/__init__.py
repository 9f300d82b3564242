"""Launching: workers on one machine, a Ray cluster, ranks of one training run."""

from experiments.launch.cluster import ray_queue, ray_workers, run_on_ray
from experiments.launch.ranks import is_launched, process_group
from experiments.launch.workers import resume_hint, run_in_workers, worker_queue

__all__ = [
    "is_launched",
    "process_group",
    "ray_queue",
    "ray_workers",
    "resume_hint",
    "run_in_workers",
    "run_on_ray",
    "worker_queue",
]
