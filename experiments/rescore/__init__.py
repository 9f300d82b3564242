"""rescore: the completions that a run has kept, under another reward; no model of the run is loaded."""

from experiments.rescore.command import RescoreConfig, rescore

__all__ = ["RescoreConfig", "rescore"]
