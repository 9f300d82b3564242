"""Scalar products of the gradients of log pi(a|s), over all states and actions: with them any variance is a sum.

A policy gradient is sum c(s, a) grad log pi(a|s); its squared norm is c . gram . c, whatever the parameters are.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from agents import TransformerPolicy
from experiments.lecture.answers import Answers


def tabular_gram(answers: Answers) -> Tensor:
    """By the logits of a table, [S V, S V]: zero between different states."""
    probs = torch.as_tensor(np.exp(answers.evaluation.log_probs))
    states, vocab = probs.shape
    scores = torch.zeros(states, vocab, states, vocab, dtype=torch.float64)
    here = torch.arange(states)
    scores[here, :, here] = torch.eye(vocab, dtype=torch.float64) - probs[:, None]
    flat = scores.view(states * vocab, states * vocab)
    return flat @ flat.T


def parameter_gram(policy: TransformerPolicy, answers: Answers) -> Tensor:
    """By the policy's own weights, [S V, S V]."""
    ids, attention = answers.texts()
    log_probs = policy.evaluate_actions(ids, attention, answers.mask.shape[1], values=False).log_probs
    parameters = list(policy.model.parameters())
    scores: dict[int, Tensor] = {}
    for row, t in torch.nonzero(answers.mask).tolist():
        if (edge := int(answers.edges[row, t])) not in scores:
            gradients = torch.autograd.grad(log_probs[row, t], parameters, retain_graph=True)
            scores[edge] = torch.cat([gradient.flatten() for gradient in gradients])
    stacked = torch.stack([scores[edge] for edge in range(answers.tree.child.size)]).double()
    return stacked @ stacked.T
