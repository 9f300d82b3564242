"""Scalar products of gradients of log pi."""

from __future__ import annotations

import torch

from agents.verification import Enumeration
from experiments.lecture import log_derivative
from experiments.lecture.gram import parameter_gram
from tests.helpers.lecture import toy
from tests.helpers.policies import random_policy
from textenv import exact


def test_the_gram_of_a_transformer_has_the_products_of_its_gradients() -> None:
    """Its entries are the scalar products of grad log pi(a|s), taken here by autograd from single states."""
    env = toy(max_new_tokens=2)
    policy = random_policy(env)
    completions = Enumeration.of(exact.evaluate(env, policy))
    gram = parameter_gram(policy, completions.tree)
    scores = []
    for state in range(len(completions.tree.prompt)):
        log_probs = policy.next_token_logits(*completions.tree.observations([state]))[0].double().log_softmax(dim=0)
        for log_prob in log_probs:
            gradients = torch.autograd.grad(log_prob, list(policy.model.parameters()), retain_graph=True)
            scores.append(log_derivative.flat(gradients))
    expected = torch.stack(scores)
    torch.testing.assert_close(gram, expected @ expected.T, rtol=1e-3, atol=1e-3 * float(gram.abs().max()))
