"""Cost: memory and time of an update, estimated from equations, and the error of the estimates."""

from experiments.cost.equations import SHAPES, Device, Job, seconds
from experiments.cost.table import CostConfig, cost

__all__ = ["SHAPES", "CostConfig", "Device", "Job", "cost", "seconds"]
