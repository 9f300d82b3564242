"""Experiments: agents x seeds on an environment, and which one is better."""
