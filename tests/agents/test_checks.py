"""A policy without weights to train is refused where an agent is made, and not by autograd in its first update."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

import agents.checks as checks
from agents import PPO, REINFORCE, RLOO, ActorCritic
from tests.helpers.agents import task
from tests.helpers.policies import random_policy

KINDS = [REINFORCE, ActorCritic, PPO, RLOO]


def frozen_policy(env: Any, separate_critic: bool, model: bool, critic: bool) -> Any:
    """A policy that trains its model, and its value head and separate critic, or not."""
    policy = random_policy(env, scale=0.1, separate_critic=separate_critic).float().requires_grad_(critic)
    policy.model.requires_grad_(model)
    return policy


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("separate_critic", [False, True], ids=["shared", "separate"])
def test_a_policy_without_weights_to_train_is_refused(
    kind: Any, separate_critic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly those with which an update would fail; without an environment none. Control: the others train."""
    env, refused = task(), 0
    for model, critic in product((False, True), repeat=2):
        policy = frozen_policy(env, separate_critic, model, critic)
        try:
            kind(policy, env, n_episodes=16, seed=0).learn(1)
        except ValueError as error:
            assert "must have weights to train" in str(error) and "requires_grad_(True)" in str(error)
            refused += 1
            with monkeypatch.context() as patched:
                patched.setattr(checks, "check_trainable", lambda *_: None)
                with pytest.raises(RuntimeError, match="does not require grad"):
                    kind(policy, env, n_episodes=16, seed=0).learn(1)
        kind(policy, None)
    expected = (3 if separate_critic else 1) if kind in (ActorCritic, PPO) else 2  # of 4 policies
    assert refused == expected
