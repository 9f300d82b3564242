"""Cost: memory and time of an update, estimated, and the error of the estimates."""

from experiments.cost.equations import SHAPES, Job
from experiments.cost.table import CostConfig, cost
from experiments.cost.times import estimate, measure_for

__all__ = ["SHAPES", "CostConfig", "Job", "cost", "estimate", "measure_for"]
