"""How far agents get: the share of the way to the optimum, on toys and on a language model."""

from experiments.optimum.run import OptimumConfig, optimum

__all__ = ["OptimumConfig", "optimum"]
