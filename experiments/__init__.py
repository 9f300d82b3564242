"""Experiments: train agents with several seeds on one environment and compare them."""
