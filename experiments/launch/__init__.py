"""Launching: workers on one machine, a Ray cluster, ranks of one training run."""

from experiments.launch.cluster import in_ray, ray_queue, ray_workers
from experiments.launch.ranks import is_launched, joined
from experiments.launch.workers import going_on, in_processes, process_queue

__all__ = ["going_on", "in_processes", "in_ray", "is_launched", "joined", "process_queue", "ray_queue", "ray_workers"]
