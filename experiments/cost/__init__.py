"""Cost: memory and time of an update, from equations, and how far off they are."""

from experiments.cost.equations import SHAPES, Device, Job, seconds
from experiments.cost.table import CostConfig, cost

__all__ = ["SHAPES", "CostConfig", "Device", "Job", "cost", "seconds"]
