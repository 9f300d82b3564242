"""What a loss climbs, exactly: its gradient in expectation over every batch of a toy, beside the gradient of J."""

from agents.verification.agent_gradient import AgentLoss, agent_loss
from agents.verification.batches import TooManyBatches
from agents.verification.behaviours import (
    SAMPLERS,
    OtherSampler,
    bfloat16,
    older,
    reference,
    rounded,
    temperature,
    top_k,
    top_p,
    unchanged,
)
from agents.verification.cases import DISTANCES
from agents.verification.entry import DEFAULT_TOY, verify
from agents.verification.enumeration import Enumeration, random_log_probs
from agents.verification.findings import Finding
from agents.verification.loss import Loss
from agents.verification.measure import Measured
from agents.verification.report import Report, Results

__all__ = [
    "DEFAULT_TOY",
    "DISTANCES",
    "SAMPLERS",
    "AgentLoss",
    "Enumeration",
    "Finding",
    "Loss",
    "Measured",
    "OtherSampler",
    "Report",
    "Results",
    "TooManyBatches",
    "agent_loss",
    "bfloat16",
    "older",
    "random_log_probs",
    "reference",
    "rounded",
    "temperature",
    "top_k",
    "top_p",
    "unchanged",
    "verify",
]
