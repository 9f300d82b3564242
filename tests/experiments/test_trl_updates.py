"""The reward function and the schedule that agents of TRL hand to its trainers; none of these needs TRL."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import get_scheduler

from agents.policy import TransformerPolicy
from agents.sampling import Rollout, collect, new_generator
from experiments.trl_updates import Updates
from tests.helpers.trl_tasks import count_a, word_task
from textenv import get_mdp
from textenv.shaping import missing_eos_penalty


class Counter(SimpleNamespace):
    """What `Updates` needs of an agent."""

    num_timesteps, num_generations, n_epochs, lr_schedule = 0, 4, 1, "linear"

    def count(self, tokens: int) -> None:
        """Counts tokens."""
        self.num_timesteps += tokens


def updates_of(env: Any, goal: int = 100, **settings: Any) -> tuple[Updates, Counter]:
    """The callbacks of an agent, and the agent."""
    agent = Counter(mdp=get_mdp(env), **settings)
    return Updates(agent, None, goal, None, lambda: None), agent


def rows_of(rollout: Rollout) -> dict[str, Any]:
    """The arguments of a reward function of TRL."""
    ids = [tokens[mask].tolist() for tokens, mask in zip(rollout.tokens, rollout.mask, strict=True)]
    return {"prompts": rollout.prompts, "completions": [], "completion_ids": ids, "index": rollout.prompt.tolist()}


def test_the_reward_is_score_and_shaping_of_the_task() -> None:
    """With several functions and weights. Equal to the return of `collect` with beta = 0; end tokens are counted."""
    lengths = lambda prompts, completion_ids, **_: [0.1 * len(ids) for ids in completion_ids]  # noqa: E731
    env = word_task(
        reward=[count_a, lengths], reward_weights=[2.0, -1.0], shaping=missing_eos_penalty(1.5), kl_coef=0.0,
        gold_reward=count_a,
    )  # fmt: skip
    policy = TransformerPolicy.for_env(env)
    rollout = collect(env, policy, 32, num_generations=4, generator=new_generator("cpu", 0), values=False)
    updates, agent = updates_of(env)
    found = updates.score(**rows_of(rollout))
    assert found == pytest.approx(rollout.rewards.sum(dim=1).tolist(), abs=1e-5)
    assert agent.num_timesteps == updates.tokens == int(rollout.mask.sum())
    assert updates.sampled["objective/scores"] == pytest.approx(float(rollout.scores.mean()), abs=1e-5)
    assert updates.sampled["objective/gold_scores"] == pytest.approx(float(rollout.gold_scores.mean()), abs=1e-5)
    stopped = float(rollout.stopped.double().mean())
    assert updates.sampled["completions/clipped_ratio"] == pytest.approx(1 - stopped) and 0.1 < stopped < 0.99
    assert updates.sampled["completions/mean_length"] == float(rollout.mask.sum(dim=1).double().mean())


def test_a_completion_that_is_skipped_has_no_score() -> None:
    """None, which TRL leaves out; the means are without it."""

    def fails(prompts: Any, completions: list[str], **_: Any) -> list[float]:
        if any("b" in completion for completion in completions):
            raise ValueError("b")
        return [1.0] * len(completions)

    env = word_task(reward=fails, on_reward_error="skip", reward_tries=1)
    updates, _ = updates_of(env, num_generations=2)
    with pytest.warns(UserWarning, match="are skipped"):
        found = updates.score(prompts=[], completions=[], completion_ids=[[1, 0], [2]], index=[0, 0])
    assert found == [1.0, None]
    assert updates.sampled["objective/scores"] == 1.0 and updates.sampled["groups/equal_scores_ratio"] == 1.0


@pytest.mark.parametrize(("schedule", "half"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
def test_the_schedule_is_that_of_trl_over_tokens(schedule: str, half: float) -> None:
    """With batches of equal length: after step k of n it is what transformers has, 1 - k / n for linear."""
    updates, agent = updates_of(word_task(), goal=100, n_epochs=4, lr_schedule=schedule)
    factors = [updates.rate_factor(0)]
    for step in range(1, 21):
        if step % 4 == 1:  # a batch of 20 tokens is sampled before its first step
            updates.tokens = 20
            agent.count(20)
        factors.append(updates.rate_factor(step))
    theirs = get_scheduler(schedule, torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0), 0, 20)
    expected = []
    for _ in range(21):
        expected.append(theirs.get_last_lr()[0])
        theirs.optimizer.step()
        theirs.step()
    assert factors == pytest.approx(expected, abs=1e-9)
    assert factors[10] == pytest.approx(half)
