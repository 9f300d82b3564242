"""Claims 2 and 3: the variance ladder, and the weights of single tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from agents.functional import leave_one_out, reward_to_go
from agents.verification import Enumeration, random_log_probs
from experiments.lecture import credit_seen, credit_variance
from experiments.lecture.credit_variance import Rung
from experiments.lecture.gram import tabular_gram
from tests.helpers.lecture import SEEDS, all_completions, rungs_of, toy
from textenv import exact


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_the_variance_ladder(seed: int) -> None:
    """Q has less variance than sampled Q, and that less than the reward to go: a theorem for the logits of a table."""
    rungs = rungs_of(all_completions(seed))
    order = ["Q", "Q, 4 continuations", "reward to go"]
    variances = [rungs[name]["variance"] for name in order]
    assert variances == sorted(variances) and variances[0] < variances[1] < variances[2]
    assert variances[1] == pytest.approx(0.75 * variances[0] + 0.25 * variances[2])  # a quarter of the noise is left
    assert rungs["advantage, exact V"]["variance"] < rungs["reward to go - V(s_t)"]["variance"]
    for rung in rungs.values():  # states of different t are distinct, so the parts add up
        assert sum(rung["per_token"]) == pytest.approx(rung["variance"])
    assert tuple(rungs) == credit_variance.RUNGS


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_which_rungs_are_biased(seed: int) -> None:
    """All rungs are unbiased, except the batch mean, which loses 1/K, and those with a wrong V."""
    rungs = rungs_of(all_completions(seed))
    biased = {"reward to go - batch mean", "GAE(0.95), learned V", "advantage, learned V"}
    assert all(rung["bias"] < 1e-6 for name, rung in rungs.items() if name not in biased)
    assert rungs["reward to go - batch mean"]["bias"] == pytest.approx(1 / credit_variance.BATCH, rel=1e-6)
    # the learned V is 0 here, so the weights are r_t alone, and nearly the reward to go
    assert rungs["advantage, learned V"]["bias"] > rungs["GAE(0.95), learned V"]["bias"] > 1e-4


@settings(max_examples=5, deadline=None)
@given(seed=SEEDS)
def test_a_scaled_estimator_has_the_same_noise_to_signal(seed: int) -> None:
    """For the whole return the batch mean is leave-one-out times 1 - 1/K: less variance, the same noise to signal."""
    completions = all_completions(seed, max_new_tokens=2)
    gram = tabular_gram(completions)
    rows, _ = credit_variance.batches(completions)
    returns = reward_to_go(completions.rewards, completions.mask)[:, 0][rows]
    others = leave_one_out(returns.flatten(), credit_variance.BATCH).view(returns.shape)
    one, scaled = (
        credit_variance.bias_and_variance(completions, Rung((returns - b)[:, :, None].expand(-1, -1, 2)), gram)
        for b in (others, returns.mean(dim=1, keepdim=True))
    )
    assert scaled["variance"] == pytest.approx(one["variance"] * (1 - 1 / credit_variance.BATCH) ** 2)
    assert scaled["noise_to_signal"] == pytest.approx(one["noise_to_signal"])


def test_baselines_remove_a_constant_score() -> None:
    """A constant added to the score raises the variance of the rungs without a baseline only."""
    tree = exact.enumerate_tree(toy(3))
    log_probs = random_log_probs(tree, np.random.default_rng(3))
    before = rungs_of(Enumeration.of(exact.evaluate_log_probs(tree, log_probs)))
    tree.scores[tree.child == -1] += 10.0
    after = rungs_of(Enumeration.of(exact.evaluate_log_probs(tree, log_probs)))
    for name in credit_variance.RUNGS:
        if "learned" in name:
            continue
        if " - " in name or name == "advantage, exact V":
            assert after[name]["variance"] == pytest.approx(before[name]["variance"], rel=1e-6), name
        else:
            assert after[name]["variance"] > 10 * before[name]["variance"], name


def test_a_wrong_credit_is_biased() -> None:
    """Control: with the return *before* a token as its weight, the gradient is not that of J."""
    completions = all_completions(4)
    to_go = reward_to_go(completions.rewards, completions.mask)
    past = Rung((to_go[:, :1] - to_go)[:, None])
    assert credit_variance.bias_and_variance(completions, past, tabular_gram(completions))["bias"] > 0.1


def test_a_learned_v_converges_to_the_exact_one() -> None:
    """The mean reward to go of more and more completions; unvisited states stay at 0."""
    completions = all_completions(5)
    rng = np.random.default_rng(0)
    errors = [
        float(
            (credit_variance.values_from_samples(completions, rng, n) - torch.as_tensor(completions.evaluation.values))[
                0
            ].abs()
        )
        for n in (200, 200_000)
    ]
    assert errors[1] < 0.01 and errors[1] < errors[0]
    assert (credit_variance.values_from_samples(completions, rng, 1) == 0).sum() >= len(completions.tree.prompt) - 3


def test_the_whole_return_blames_taj_for_paris_and_the_advantage_does_not() -> None:
    """ "taj" is the only possible word there: its advantage is 0, but it gets the whole return, low or high."""
    good, bad = credit_seen.measure().values()
    taj, place = bad["tokens"].index("taj"), bad["tokens"].index("paris")
    for name in ("whole return", "reward to go", "reward to go - V(s_0)", "reward to go - V(s_t)"):
        assert bad["weights"][name][taj] == pytest.approx(bad["weights"][name][place])
        assert bad["weights"][name][taj] < -0.5
        assert good["weights"][name][taj] > 0.3
    for name in ("advantage, exact V", "advantage, learned V"):
        assert bad["weights"][name][taj] == pytest.approx(0, abs=0.05)
    advantage = bad["weights"]["advantage, exact V"]
    assert min(advantage) == advantage[place] < -0.5
    assert max(good["weights"]["advantage, exact V"]) == good["weights"]["advantage, exact V"][place] > 0.3


def test_the_rows_of_weights_match_their_names() -> None:
    """Identities between the rows, which would fail if any two rows were swapped."""
    for completion in credit_seen.measure().values():
        weights = {name: np.array(values) for name, values in completion["weights"].items()}
        whole, to_go = weights["whole return"], weights["reward to go"]
        assert np.ptp(whole) == 0 and to_go[0] == pytest.approx(whole[0]) and np.ptp(to_go) > 0.01
        values = to_go - weights["reward to go - V(s_t)"]
        assert np.ptp(to_go - weights["reward to go - V(s_0)"]) == pytest.approx(0, abs=1e-12)
        assert weights["Q"] - values == pytest.approx(weights["advantage, exact V"])
        # the advantages of an completion sum to G_0 - V(s_0)
        assert weights["advantage, exact V"].sum() == pytest.approx(weights["reward to go - V(s_0)"][0])
        assert weights["Q"][-1] == pytest.approx(to_go[-1])  # Q of the last token is its reward
