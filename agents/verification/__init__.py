"""What a loss climbs, exactly: its gradient in expectation over every batch of a toy, beside the gradient of J."""

from agents.verification.agent_loss import AgentLoss, agent_loss
from agents.verification.batches import TooManyBatches
from agents.verification.cases import DISTANCES
from agents.verification.enumeration import Enumeration, random_log_probs
from agents.verification.measure import Measured
from agents.verification.report import Report
from agents.verification.verify import verify

__all__ = [
    "DISTANCES",
    "AgentLoss",
    "Enumeration",
    "Measured",
    "Report",
    "TooManyBatches",
    "agent_loss",
    "random_log_probs",
    "verify",
]
