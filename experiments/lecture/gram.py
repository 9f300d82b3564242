"""Scalar products of the gradients of log pi(a|s), over all states and actions: any variance is a sum of them.

A policy gradient is sum c(s, a) grad log pi(a|s); its squared norm is c . gram . c, whatever the parameters are.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from agents.policy import TransformerPolicy
from agents.verification import Enumeration
from textenv.exact import Tree


def tabular_gram(completions: Enumeration) -> Tensor:
    """With respect to the logits of a table, [S V, S V]: zero between different states."""
    probs = torch.as_tensor(np.exp(completions.evaluation.log_probs))
    states, vocab = probs.shape
    scores = torch.zeros(states, vocab, states, vocab, dtype=torch.float64)
    here = torch.arange(states)
    scores[here, :, here] = torch.eye(vocab, dtype=torch.float64) - probs[:, None]
    flat = scores.view(states * vocab, states * vocab)
    return flat @ flat.T


def parameter_gram(policy: TransformerPolicy, tree: Tree) -> Tensor:
    """With respect to the policy's weights, [S V, S V]; for a tree without masked actions."""
    log_probs = policy.next_token_logits(*tree.observations(slice(None))).log_softmax(dim=1)
    parameters = list(policy.model.parameters())
    scores = [
        torch.cat([g.flatten() for g in torch.autograd.grad(log_prob, parameters, retain_graph=True)])
        for log_prob in log_probs.flatten()
    ]
    stacked = torch.stack(scores).double()
    return stacked @ stacked.T
