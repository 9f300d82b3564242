"""Evaluations and tables with completions whose rewards failed, and the flags that allow it."""

from __future__ import annotations

import io
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.sampling import Rollout, collect, new_generator
from experiments import baselines
from experiments.baselines import best_of_n, sample_reference
from experiments.console import completions_table, plain_console
from experiments.env_flags import EnvFlags
from experiments.errors import FlagError
from experiments.evaluation import Evaluator, sample_completions
from tests.helpers.policies import random_policy
from tests.helpers.tasks import golden, letter_values, words
from textenv import TextMDP
from textenv.rewards import RewardError

pytestmark = pytest.mark.filterwarnings("ignore:.*completions are skipped")


class Partial:
    """`letter_values`, nan where a completion's last token is one of `bad`."""

    def __init__(self, *bad: int) -> None:
        self.bad = bad

    def __call__(self, prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
        """Scores completions."""
        scores = letter_values(prompts, completions, completion_ids)
        return [math.nan if ids[-1] in self.bad else score for ids, score in zip(completion_ids, scores, strict=True)]


def task(*bad: int) -> Any:
    """A batch of a task that skips completions that end with a token of `bad`."""
    arguments = words(reward=Partial(*bad), gold_reward=golden, on_reward_error="skip", reward_tries=1)
    return gym.make_vec("textenv/Text-v0", **arguments)


def test_an_evaluation_is_of_what_is_left() -> None:
    """Means and standard errors without the skipped completions, whose number is measured too."""
    env = task(2)
    evaluator, policy = Evaluator(env, 100, None), random_policy(env)
    measured = evaluator.measure(policy)
    healthy = Evaluator(task(), 100, None)
    kept = [rollout.input_ids[:, -rollout.num_tokens :] for rollout in healthy.rollouts(policy)]
    scores: dict[int, list[float]] = {}
    for rollout, ids in zip(healthy.rollouts(policy), kept, strict=True):
        last = ids.gather(1, rollout.mask.sum(dim=1, keepdim=True) - 1)[:, 0]
        for prompt, score in zip(rollout.prompt[last != 2].tolist(), rollout.scores[last != 2].tolist(), strict=True):
            scores.setdefault(prompt, []).append(score)
    left = [score for each in scores.values() for score in each]
    assert 1 < measured["skipped"] == 100 - len(left) < 90
    assert measured["score"] == pytest.approx(np.mean([np.mean(each) for each in scores.values()]), rel=1e-6)
    spread = sum(np.var(each, ddof=1) / len(each) for each in scores.values()) ** 0.5 / len(scores)
    assert measured["score_stderr"] == pytest.approx(spread, rel=1e-6)
    assert all(map(math.isfinite, measured.values()))
    assert "skipped" not in healthy.measure(policy) and healthy.measure(policy)["score"] != measured["score"]  # control


def test_an_evaluation_without_completions_fails() -> None:
    """A mean of nothing is an error with the cure, not a number."""
    env = task(0, 1, 2, 3)
    with pytest.raises(RewardError, match="all but 0 completions of an evaluation failed.*raise reward_tries"):
        Evaluator(env, 16, None).measure(random_policy(env))


def test_best_of_n_keeps_the_best_of_those_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A skipped completion is never kept; a prompt whose completions are all skipped is left out."""
    env = task(1, 2)
    reference = random_policy(env, scale=0.1)
    monkeypatch.setattr(baselines, "reference_policy", lambda env: reference)
    evaluator = Evaluator(env, 3, None)  # three prompts, three completions of each
    completions = sample_reference(evaluator, 3)
    found = best_of_n(evaluator, 3, completions)
    best = []
    for rewards, scores in zip(completions.rewards, completions.scores, strict=True):
        if kept := [(r, score) for r, score in zip(rewards, scores, strict=True) if math.isfinite(r)]:
            best.append(max(kept)[1])
    assert len(best) > 0 and np.isnan(completions.rewards).any()
    assert found["score"] == pytest.approx(np.mean(best), rel=1e-6)
    with pytest.raises(RewardError, match="all but 0 completions of the reference failed"):
        best_of_n(Evaluator(task(0, 1, 2, 3), 60, None), 3)


def test_samples_without_a_score_have_none() -> None:
    """None instead of a nan or of a log-ratio of 0: it is no number in JSON either."""
    env = task(2)
    rows = sample_completions(env, random_policy(env), [0, 1, 2, 3] * 8)
    skipped = [row for row in rows if row["score"] is None]
    assert 0 < len(skipped) < len(rows)
    assert all(row["kl"] is None and row["gold_score"] is None and row["completion"] for row in skipped)
    assert all(math.isfinite(row["score"] + row["kl"] + row["gold_score"]) for row in rows if row not in skipped)


def shown(rollout: Rollout) -> str:
    """The table of completions as text."""
    plain_console(width=100, file=(text := io.StringIO())).print(completions_table(rollout, 1))
    return text.getvalue()


def test_a_skipped_completion_is_shown_as_such() -> None:
    """In the table of completions, without a score and a log-ratio."""
    env = task(2)
    rollout = collect(env, random_policy(env), 64, generator=new_generator("cpu", 1))
    order = torch.argsort(rollout.valid.int(), stable=True)
    assert 0 < int((~rollout.valid).sum()) < 5
    text = shown(rollout[order])
    assert text.count("skipped") == int((~rollout.valid).sum()) and "nan" not in text
    assert "skipped" not in shown(rollout[order.flip(0)])  # control


def made(**arguments: Any) -> TextMDP:
    """A task for `EnvFlags`: `words` with these arguments."""
    return TextMDP(**words(**arguments))


def test_the_flags_are_arguments_of_the_task() -> None:
    """They reach the environment; left out, the task's own values hold; a task without them refuses them."""
    gym.register("Skips-v0", vector_entry_point="textenv.vector:make_vec", kwargs={"task": f"{__name__}:made"})
    try:
        flags = {"on_reward_error": "skip", "reward_tries": 7, "reward_wait": 0.25}
        reward = EnvFlags(env="Skips-v0", **flags).make_env().unwrapped.mdp.reward  # type: ignore[arg-type]
        assert (reward.on_error, reward.tries, reward.wait) == ("skip", 7, 0.25)
        reward = EnvFlags(env="Skips-v0").make_env().unwrapped.mdp.reward
        assert (reward.on_error, reward.tries, reward.wait) == ("raise", 3, 1.0)
        with pytest.raises(FlagError, match="reward_tries must be a whole number, at least 1, got 0"):
            EnvFlags(env="Skips-v0", reward_tries=0).make_env()
        with pytest.raises(FlagError, match="--reward-wait is for --on-reward-error retry and skip"):
            EnvFlags(env="Skips-v0", reward_wait=2.0).make_env()
    finally:
        gym.registry.pop("Skips-v0")
    with pytest.raises(FlagError, match="--on-reward-error: textenv/Toy-v0 takes only"):
        EnvFlags(env="textenv/Toy-v0", on_reward_error="skip").make_env()
