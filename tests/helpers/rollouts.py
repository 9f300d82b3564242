"""Rollouts in which every number differs, for tests against definitions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from agents.sampling import Rollout, collect, new_generator
from tests.helpers.policies import random_policy
from tests.helpers.tasks import golden, make, random_reference, words

COUNT, GROUP = 8, 4  # completions, and completions of one prompt


def task(**arguments: Any) -> Any:
    """A task with masks, prompts of different lengths and a gold reward."""
    reference = random_reference(4, 7, sparse=True)
    return make(words(4, reference=reference, max_new_tokens=4, gold_reward=golden) | arguments)


def uneven_rollout(
    env: Any, seed: int = 0, spread: float = 0.4, count: int = COUNT, num_generations: int = GROUP
) -> Rollout:
    """Completions of different lengths, from another policy than the one to train: padding on both sides.

    Every token has a reward, an old value and a ratio of its own; `spread` is the standard deviation of the log-ratio.
    """
    rollout = collect(
        env,
        random_policy(env, seed=3, scale=0.1),
        count,
        num_generations=num_generations,
        generator=new_generator("cpu", seed),
    )
    generator = new_generator("cpu", seed)
    noise = [torch.randn(rollout.mask.shape, generator=generator) for _ in range(3)]
    lengths = rollout.mask.sum(dim=1)
    assert len(set(lengths.tolist())) > 2 and not rollout.stopped.all() and rollout.stopped.any()
    on_policy = random_policy(env).evaluate_actions(
        rollout.input_ids, rollout.attention_mask, rollout.num_tokens, rollout.action_mask, values=False
    )
    return replace(
        rollout,
        log_probs=torch.where(rollout.mask, on_policy.log_probs.detach() + spread * noise[0], 0.0),
        rewards=rollout.rewards + torch.where(rollout.mask, noise[1], 0.0),
        values=torch.where(rollout.mask, noise[2], 0.0),
    )


def skipping(rollout: Rollout, *rows: int) -> Rollout:
    """The rollout as `collect` returns it where the rewards of these completions failed."""
    skipped = torch.zeros(len(rollout), dtype=torch.bool)
    skipped[list(rows)] = True
    assert rollout.values is not None and rollout.gold_scores is not None
    tokens = {
        name: torch.where(skipped[:, None], 0.0, getattr(rollout, name))
        for name in ("log_probs", "ref_log_probs", "rewards", "values")
    }
    scores = {name: torch.where(skipped, torch.nan, getattr(rollout, name)) for name in ("scores", "gold_scores")}
    lengths = rollout.mask.sum(dim=1)
    return replace(rollout, mask=rollout.mask & ~skipped[:, None], lengths=lengths, **tokens, **scores)
