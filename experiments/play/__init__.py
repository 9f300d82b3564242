"""play: a person generates a completion token by token, beside the reference and the exact optimum."""

from experiments.play.command import PlayConfig, play

__all__ = ["PlayConfig", "play"]
