"""What a loss climbs, exactly: its gradient in expectation over every batch of a toy, beside the gradient of J."""

from agents.verification.enumeration import Enumeration, random_log_probs

__all__ = ["Enumeration", "random_log_probs"]
