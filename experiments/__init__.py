"""Experiments: train agents with several seeds on one environment and compare them."""

__all__: list[str] = []  # other packages import nothing from here
