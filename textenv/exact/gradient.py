"""The exact policy gradient of a toy.

    grad J = sum_s d(s) sum_a pi(a|s) A(s, a) grad log pi(a|s)        (Sutton et al. 2000; A includes the KL)

with d(s) the probability that an episode visits s. That r contains log pi adds no term: E[grad log pi] = 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from textenv.exact.evaluation import evaluate
from textenv.tree import BATCH, MAX_COMPLETIONS, Enumerable, Tree, enumerate_tree


def policy_gradient(env: Enumerable, policy: Any, max_completions: int = MAX_COMPLETIONS) -> dict[str, Any]:
    """Computes the exact gradient of J, by parameter name.

    Args:
        env: an environment or its `Tree`.
        policy: a torch module with `next_token_logits(input_ids, attention_mask)` that keeps gradients.
        max_completions: as in `enumerate_tree`.

    Returns:
        `{name: gradient}` of the parameters that require one; zeros where J does not depend on the parameter.
    """
    import torch

    tree = env if isinstance(env, Tree) else enumerate_tree(env, max_completions)
    evaluation = evaluate(tree, policy)
    probs = np.exp(evaluation.log_probs)
    weights = evaluation.occupancy[:, None] * probs * np.where(probs > 0, evaluation.advantages, 0.0)
    named = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    with torch.enable_grad():
        for start in range(0, len(tree.prompt), BATCH):
            rows = slice(start, start + BATCH)
            logits = policy.next_token_logits(*tree.observations(rows))
            allowed = torch.as_tensor(tree.child[rows] != -2, device=logits.device)
            log_probs = logits.masked_fill(~allowed, -torch.inf).log_softmax(dim=-1).masked_fill(~allowed, 0.0)
            weight = torch.as_tensor(weights[rows], dtype=log_probs.dtype, device=log_probs.device)
            gradients = torch.autograd.grad((weight * log_probs).sum(), list(named.values()), allow_unused=True)
            for name, gradient in zip(named, gradients, strict=True):
                if gradient is not None:
                    total[name] += gradient
    return total
