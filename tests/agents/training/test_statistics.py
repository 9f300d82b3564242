"""Statistics of a batch against their definitions, in loops; also with skipped completions, and over two ranks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from agents import Rollout, collect
from agents.sampling import new_generator
from agents.training.statistics import batch_statistics, expected_ends
from tests.helpers.policies import random_policy
from tests.helpers.rollouts import COUNT, GROUP, skipping, task, uneven_rollout
from tests.helpers.tasks import make, words
from tests.helpers.threads import on_threads
from textenv import exact


def rollout_with(scores: list[float]) -> Rollout:
    """A rollout of COUNT completions in groups of GROUP, with these scores."""
    return replace(uneven_rollout(task()), scores=torch.tensor(scores))


def stderr(values: list[float]) -> float:
    """The standard error of a mean."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


@pytest.mark.parametrize("skipped", [(), (0,), (1, 6), (0, 1, 2)])
def test_the_standard_errors_are_those_of_the_means_over_completions(skipped: tuple[int, ...]) -> None:
    """Of log pi(y|x) - log pi_ref(y|x), and of the return; completions that are skipped do not count."""
    whole = uneven_rollout(task())
    kept = [i for i in range(COUNT) if i not in skipped]
    kl = [float((whole.log_probs[i] - whole.ref_log_probs[i])[whole.mask[i]].double().sum()) for i in kept]
    returns = [float(whole.rewards[i][whole.mask[i]].double().sum()) for i in kept]
    found = batch_statistics(skipping(whole, *skipped), GROUP)
    assert found["objective/kl_stderr"] == pytest.approx(stderr(kl), rel=1e-5)
    assert found["objective/rlhf_reward_stderr"] == pytest.approx(stderr(returns), rel=1e-5)


@pytest.mark.parametrize(
    ("scores", "size", "skipped", "expected"),
    [
        ([1, 1, 1, 1, 2, 2, 2, 2], 4, (), 1.0),
        ([1, 1, 1, 0, 2, 2, 2, 2], 4, (), 0.5),
        ([1, 1, 1, 0, 2, 2, 2, 2], 4, (3,), 1.0),
        ([1, 1, 1, 0, 2, 2, 2, 2], 4, (0, 1, 2), 1.0),  # one completion is left of the first group: nothing to compare
        ([1, 1, 1, 1, 2, 2, 2, 2], 1, (), 0.0),  # one completion per prompt: the batch is the group
        ([1] * 8, 1, (), 1.0),
        ([0, 1, 0, 1, 0, 1, 0, 1], 2, (), 0.0),
    ],
)
def test_the_share_of_groups_with_equal_scores(scores: Any, size: int, skipped: Any, expected: float) -> None:
    """Of the groups with at least two scores."""
    rollout = skipping(rollout_with([float(score) for score in scores]), *skipped)
    assert batch_statistics(rollout, size)["groups/equal_scores_ratio"] == expected


def test_the_noise_of_the_score_is_its_variance_among_identical_completions() -> None:
    """As a share of the variance in the batch: 0 for a function of the completion, about 1 for random numbers."""
    rng = np.random.default_rng(0)
    env = task()
    base = collect(env, random_policy(env), 96, num_generations=96, generator=new_generator("cpu", 0))
    different = list({text: row for row, text in enumerate(base.completions)}.values())[:3]
    base = base[torch.tensor(rng.choice(different, 96))]
    names = base.completions.copy()
    of_text = np.array([len(text) for text in base.completions]) + 0.5 * base.prompt.numpy()

    def noise(scores: np.ndarray) -> float:
        return batch_statistics(replace(base, scores=torch.tensor(scores).float()), 1)["objective/score_noise"]

    assert noise(of_text) == pytest.approx(0.0, abs=1e-6)
    random = rng.normal(size=96)
    groups = [random[names == text] for text in set(names)]
    assert len(groups) == 3
    within = sum(((group - group.mean()) ** 2).sum() for group in groups) / (96 - 3)
    assert noise(random) == pytest.approx(within / random.var(ddof=1), rel=1e-4) and noise(random) > 0.8
    assert 0.05 < noise(of_text + 2 * random) < 0.7
    base.completions[:] = "a"  # other tokens with the same text are another completion
    assert noise(of_text) == pytest.approx(0.0, abs=1e-6)
    base.completions[:] = [str(row) for row in range(96)]  # control
    assert noise(random) > 0.8


def test_tokens_after_the_end_make_no_other_completion() -> None:
    """They are padding, which the mask leaves out. Control: the tokens before it."""
    rollout = rollout_with([0.0, 1.0] * 4)[torch.zeros(16, dtype=torch.long)]
    rollout.mask[:, 1:], rollout.mask[:, 0] = False, True
    rollout.scores[::2] = 1.0
    sampled = rollout.input_ids[:, -rollout.num_tokens :]
    sampled[::2, 1:] += 1
    assert batch_statistics(rollout, 1)["objective/score_noise"] > 0.9
    sampled[::2, 0] += 1
    assert batch_statistics(rollout, 1)["objective/score_noise"] == 0.0


def test_the_same_tokens_after_another_prompt_are_another_completion() -> None:
    """And few repeated completions, or equal scores, say nothing about the noise."""
    rollout = rollout_with([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    rollout.input_ids[:], rollout.mask[:] = rollout.input_ids[0].clone(), rollout.mask[0].clone()
    assert "objective/score_noise" not in batch_statistics(rollout, GROUP)  # 6 repeats, or 7 where the prompt is one
    twice = rollout[torch.arange(len(rollout)).repeat(2)]
    twice.prompt = torch.tensor([0] * 4 + [1] * 4 + [0] * 4 + [1] * 4)
    assert batch_statistics(twice, 1)["objective/score_noise"] == 0.0
    twice.prompt[:] = 0
    assert batch_statistics(twice, 1)["objective/score_noise"] > 0.9  # control
    assert "objective/score_noise" not in batch_statistics(replace(twice, scores=torch.ones(16)), 1)


def test_two_ranks_have_the_statistics_of_all_completions() -> None:
    """Each has half of them; control: one half alone has others."""
    rollout = uneven_rollout(task())
    whole = batch_statistics(rollout, GROUP)
    halves = [slice(0, COUNT // 2), slice(COUNT // 2, COUNT)]
    for found in on_threads(lambda rank: batch_statistics(rollout[halves[rank]], GROUP)):
        assert found == pytest.approx(whole, rel=1e-9)
    assert batch_statistics(rollout[halves[0]], GROUP) != pytest.approx(whole, rel=1e-2)


def test_each_rank_has_a_group_where_each_prompt_has_one_completion() -> None:
    """The scores of a rank are compared with each other, not with those of other ranks."""
    rollout = rollout_with([1.0] * 4 + [2.0] * 4)
    assert batch_statistics(rollout, 1)["groups/equal_scores_ratio"] == 0.0
    halves = [slice(0, COUNT // 2), slice(COUNT // 2, COUNT)]
    for found in on_threads(lambda rank: batch_statistics(rollout[halves[rank]], 1)):
        assert found["groups/equal_scores_ratio"] == 1.0


def test_the_reference_gets_the_tokens_and_no_padding() -> None:
    """In each state: the ids of the prompt and of the completion so far, 0 where there is none."""
    env = make(words(4, max_new_tokens=3))
    mdp = env.unwrapped.mdp
    rollout = collect(env, random_policy(env), 3, generator=new_generator("cpu", 0), values=False)
    asked: list[Any] = []
    log_probs = mdp.reference.log_probs

    class Recorded:
        def log_probs(self, ids: Any, attention: Any) -> Any:
            asked.append((ids.tolist(), attention.tolist()))
            return log_probs(ids, attention)

    mdp.reference = Recorded()
    rollout.input_ids[:, -1] = 99  # after the last state
    expected_ends(mdp, rollout)
    ids, attention = rollout.input_ids.numpy(), rollout.attention_mask.numpy()
    first = ids.shape[1] - rollout.num_tokens
    for time, (seen, mask) in enumerate(asked):
        before = np.where(np.arange(ids.shape[1]) < first + time, attention, 0)
        assert mask == before.tolist() and seen == (ids * before).tolist()
    assert len(asked) == rollout.num_tokens > 1


def test_the_expected_number_of_ends_is_that_of_the_reference() -> None:
    """sum_t pi_ref(end|s_t) along each completion, from the exact tree; None without an end token."""
    env = make(words(4, max_new_tokens=3))
    mdp = env.unwrapped.mdp
    rollout = collect(env, random_policy(env), 8, generator=new_generator("cpu", 0), values=False)
    tree = exact.enumerate_tree(env)
    states, actions = tree.paths()
    by_tokens = {
        (int(tree.prompt[row[0]]), *taken[row >= 0].tolist()): row for row, taken in zip(states, actions, strict=True)
    }
    expected = []
    for i in range(8):
        path = by_tokens[int(rollout.prompt[i]), *rollout.tokens[i][rollout.mask[i]].tolist()]
        expected.append(sum(math.exp(tree.ref_log_probs[state, mdp.is_eos][0]) for state in path[path >= 0]))
    assert expected_ends(mdp, rollout) == pytest.approx(np.mean(expected), rel=1e-5)
    assert len({round(each, 6) for each in expected}) > 1
    parts = [slice(0, 2), slice(2, 8)]  # all ranks get the mean over the completions of all, and so warn alike
    for found in on_threads(lambda rank: expected_ends(mdp, rollout[parts[rank]])):
        assert found == pytest.approx(np.mean(expected), rel=1e-5)
    assert expected_ends(mdp, rollout[parts[0]]) != pytest.approx(np.mean(expected), rel=1e-3)  # control
    assert expected_ends(None, rollout) is None and expected_ends(mdp, None) is None
