"""The lecture's claims, each in its direction, from enumerated expectations; and what would turn it round.

The policies are random tables: nothing is trained, nothing is sampled, so that no test depends on luck.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agents import PPO
from agents.functional import clipped_surrogate_loss, gae, k1, k2, k3, leave_one_out, reward_to_go, value_loss
from agents.sampling import new_generator
from experiments.console import plain_console
from experiments.errors import FlagError
from experiments.evaluation import Evaluator
from experiments.lecture import (
    LectureConfig,
    clip,
    credit_seen,
    credit_variance,
    gamma_lambda,
    lecture,
    log_derivative,
    old_samples,
    reward_hacking,
    value_head,
    which_kl,
)
from experiments.lecture.credit_variance import Rung
from experiments.lecture.enumeration import Enumeration, random_log_probs
from experiments.lecture.gram import parameter_gram, tabular_gram
from experiments.lecture.log_derivative import gradient_std
from experiments.lecture.run import CLAIMS, _module, _show
from tests.helpers.commands import command
from tests.helpers.paths import ROOT
from tests.helpers.policies import random_policy
from textenv import exact

RESULTS = ROOT / "experiments" / "results" / "lecture"
SEEDS = st.integers(0, 999)


def toy(seed: int = 0, **arguments: Any) -> Any:
    """A toy of 15 answers, by default."""
    defaults = {"vocab_size": 3, "max_new_tokens": 3, "num_prompts": 1, "task_seed": seed, "kl_coef": 0.3}
    return gym.make("textenv/Toy-v0", **(defaults | arguments))


def all_answers(seed: int = 0, distance: float | None = None, **arguments: Any) -> Enumeration:
    """Its answers under a random policy."""
    tree = exact.enumerate_tree(toy(seed, **arguments))
    return Enumeration.of(exact.evaluate_log_probs(tree, random_log_probs(tree, np.random.default_rng(seed), distance)))


def rungs_of(answers: Enumeration, learned: Tensor | None = None) -> dict[str, dict[str, Any]]:
    """Bias and variance of every rung, by the logits of a table; V = 0 is learned by default."""
    learned = torch.zeros_like(answers.rewards) if learned is None else learned
    gram = tabular_gram(answers)
    found = credit_variance.ladder(answers, learned)
    return {name: credit_variance.bias_and_variance(answers, rung, gram) for name, rung in found.items()}


# -- all answers -------------------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, prompts=st.integers(1, 3))
def test_the_answers_are_all_there_are(seed: int, prompts: int) -> None:
    """Their probabilities sum to one, their returns average to J, and their texts are those of the tree."""
    answers = all_answers(seed, num_prompts=prompts)
    returns = reward_to_go(answers.rewards, answers.mask)[:, 0]
    assert float(answers.probability.sum()) == pytest.approx(1.0)
    assert float(answers.probability @ returns) == pytest.approx(answers.evaluation.objective)
    ids, attention = answers.texts()
    width = answers.tree.mdp.prompt_width
    for row in range(len(ids)):
        tokens = ids[row, width:][attention[row, width:] == 1].tolist()
        prompt = answers.tree.mdp.prompts.texts[answers.prompt[row]]
        assert answers.tree.state_index(prompt, tokens[:-1]) == answers.states[row][answers.mask[row]][-1]


# -- 1: the log-derivative trick and Monte Carlo -------------------------------------------------------------------


@settings(max_examples=5, deadline=None)
@given(seed=SEEDS)
def test_the_error_falls_as_one_over_n(seed: int) -> None:
    """The variance of n answers, every batch of them enumerated, is that of one answer over n; unbiased at any n."""
    answers = all_answers(seed, max_new_tokens=2)
    gram = tabular_gram(answers)
    whole = reward_to_go(answers.rewards, answers.mask)[:, :1].expand_as(answers.rewards)
    for n in (1, 2, 3):
        rung = Rung(whole[credit_variance.batches(answers, n)[0]])
        found = credit_variance.bias_and_variance(answers, rung, gram)  # `variance` is n times that of the batch
        assert found["variance"] / n == pytest.approx(gradient_std(answers, gram, n, "sequence", None) ** 2)
        assert found["bias"] < 1e-6


@settings(max_examples=5, deadline=None)
@given(seed=SEEDS)
def test_the_prediction_knows_that_left_out_answers_depend_on_each_other(seed: int) -> None:
    """Leave-one-out's predicted variance is that of all enumerated batches; the constant V(s_0) would not give it."""
    answers = all_answers(seed, max_new_tokens=2)
    gram = tabular_gram(answers)
    to_go = reward_to_go(answers.rewards, answers.mask)
    for n in (2, 3):
        rows = credit_variance.batches(answers, n)[0]
        others = leave_one_out(to_go[:, 0][rows].flatten(), n).view(-1, n, 1)
        found = credit_variance.bias_and_variance(answers, Rung(to_go[rows] - others), gram)["variance"] / n
        assert found == pytest.approx(gradient_std(answers, gram, n, "reward_to_go", "leave_one_out") ** 2)
    constant = rungs_of(answers)["reward to go - V(s_0)"]["variance"] / 2
    assert constant < 0.999 * gradient_std(answers, gram, 2, "reward_to_go", "leave_one_out") ** 2


def test_the_prediction_averages_over_prompts() -> None:
    """With two prompts and one answer to each, g is the mean of two independent gradients."""
    answers = all_answers(3, num_prompts=2)
    gram = tabular_gram(answers)
    whole = reward_to_go(answers.rewards, answers.mask)[:, 0]
    total = 0.0
    for prompt in (0, 1):
        rows = torch.nonzero(answers.prompt == prompt).flatten()
        probability = 2 * answers.probability[rows]
        gradients = torch.zeros(len(rows), len(gram), dtype=torch.float64)
        for i, row in enumerate(rows):
            for t in torch.nonzero(answers.mask[row]).flatten():
                gradients[i, answers.edges[row, t]] += whole[row]
        mean = probability @ gradients
        total += float(sum(p * (g - mean) @ gram @ (g - mean) for p, g in zip(probability, gradients, strict=True)))
    assert gradient_std(answers, gram, 1, "sequence", None) == pytest.approx((total / 4) ** 0.5)


def test_the_sampled_gradient_is_that_of_the_exact_objective() -> None:
    """REINFORCE on 2,000 answers a prompt stays within four of the computed standard errors; its opposite does not."""
    env = toy(num_prompts=2)
    policy = random_policy(env).float()
    answers = Enumeration.of(exact.evaluate(env, policy))
    true = log_derivative.flat(g for name, g in exact.policy_gradient(env, policy).items() if "model." in name)
    gram = parameter_gram(policy, answers.tree)
    for options in log_derivative.ESTIMATORS.values():
        found = log_derivative.sampled_gradient(env, policy, 2000, new_generator("cpu", 0), options)
        allowed = 4 * gradient_std(answers, gram, 2000, **options)
        assert float((found - true).norm()) < allowed < float((found + true).norm())


def test_each_estimator_is_measured_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of the claim: sampled errors near what is predicted for the estimator that the row names."""
    monkeypatch.setattr(log_derivative, "SAMPLES", (1, 16, 64))
    monkeypatch.setattr(log_derivative, "REPEATS", 32)
    monkeypatch.setattr(log_derivative, "started_policy", lambda env: random_policy(env, scale=0.1).float())
    numbers = log_derivative.measure()
    for rows in numbers.values():
        for row in rows:
            assert row["repeats"] >= 32 and 0.7 < row["error"] / row["predicted"] < 1.4
    whole, others = numbers["whole return"], numbers["reward to go, leave-one-out"]
    assert [row["n"] for row in whole] == [1, 16, 64] and [row["n"] for row in others] == [16, 64]
    assert whole[0]["predicted"] == pytest.approx(4 * whole[1]["predicted"])  # 1 / sqrt(n)
    assert whole[1]["predicted"] != pytest.approx(others[0]["predicted"], rel=0.02)


# -- 2: credit ---------------------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_the_variance_ladder(seed: int) -> None:
    """Q is not noisier than sampled Q, nor that than the reward to go: a theorem by the logits of a table."""
    rungs = rungs_of(all_answers(seed))
    order = ["Q", "Q, 4 continuations", "reward to go"]
    variances = [rungs[name]["variance"] for name in order]
    assert variances == sorted(variances) and variances[0] < variances[1] < variances[2]
    assert variances[1] == pytest.approx(0.75 * variances[0] + 0.25 * variances[2])  # a quarter of the noise is left
    assert rungs["advantage, exact V"]["variance"] < rungs["reward to go - V(s_t)"]["variance"]
    for rung in rungs.values():  # states do not overlap: the tokens' parts are the whole
        assert sum(rung["per_token"]) == pytest.approx(rung["variance"])
    assert tuple(rungs) == credit_variance.RUNGS


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_what_is_biased_and_what_is_not(seed: int) -> None:
    """All rungs have the gradient of J but the mean of the batch itself, which loses 1/K, and a wrong V."""
    rungs = rungs_of(all_answers(seed))
    biased = {"reward to go - batch mean", "GAE(0.95), learned V", "advantage, learned V"}
    assert all(rung["bias"] < 1e-6 for name, rung in rungs.items() if name not in biased)
    assert rungs["reward to go - batch mean"]["bias"] == pytest.approx(1 / credit_variance.BATCH, rel=1e-6)
    # V = 0 is what was learned here: r_t alone, and nearly the reward to go
    assert rungs["advantage, learned V"]["bias"] > rungs["GAE(0.95), learned V"]["bias"] > 1e-4


@settings(max_examples=5, deadline=None)
@given(seed=SEEDS)
def test_a_scaled_estimator_is_no_better(seed: int) -> None:
    """With the whole return as credit the batch mean is leave-one-out times 1 - 1/K: less variance, the same noise."""
    answers = all_answers(seed, max_new_tokens=2)
    gram = tabular_gram(answers)
    rows, _ = credit_variance.batches(answers)
    returns = reward_to_go(answers.rewards, answers.mask)[:, 0][rows]
    others = leave_one_out(returns.flatten(), credit_variance.BATCH).view(returns.shape)
    one, scaled = (
        credit_variance.bias_and_variance(answers, Rung((returns - b)[:, :, None].expand(-1, -1, 2)), gram)
        for b in (others, returns.mean(dim=1, keepdim=True))
    )
    assert scaled["variance"] == pytest.approx(one["variance"] * (1 - 1 / credit_variance.BATCH) ** 2)
    assert scaled["noise_to_signal"] == pytest.approx(one["noise_to_signal"])


def test_baselines_take_off_what_every_answer_gets() -> None:
    """A constant added to the score blows up whole return, reward to go and Q, and leaves baselines and advantage."""
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


def test_a_wrong_credit_is_noticed() -> None:
    """Control: the return *before* a token as its weight is not the gradient of J."""
    answers = all_answers(4)
    to_go = reward_to_go(answers.rewards, answers.mask)
    past = Rung((to_go[:, :1] - to_go)[:, None])
    assert credit_variance.bias_and_variance(answers, past, tabular_gram(answers))["bias"] > 0.1


def test_a_learned_v_tends_to_the_exact_one() -> None:
    """The mean reward to go of more and more answers; states that none came through stay at 0."""
    answers = all_answers(5)
    rng = np.random.default_rng(0)
    errors = [
        float(
            (credit_variance.values_from_samples(answers, rng, n) - torch.as_tensor(answers.evaluation.values))[0].abs()
        )
        for n in (200, 200_000)
    ]
    assert errors[1] < 0.01 and errors[1] < errors[0]
    assert (credit_variance.values_from_samples(answers, rng, 1) == 0).sum() >= len(answers.tree.prompt) - 3


def test_the_gram_of_a_transformer_is_that_of_its_gradients() -> None:
    """Its entries are scalar products of grad log pi(a|s), taken here by autograd from single states."""
    env = toy(max_new_tokens=2)
    policy = random_policy(env)
    answers = Enumeration.of(exact.evaluate(env, policy))
    gram = parameter_gram(policy, answers.tree)
    scores = []
    for state in range(len(answers.tree.prompt)):
        log_probs = policy.next_token_logits(*answers.tree.observations([state]))[0].double().log_softmax(dim=0)
        for log_prob in log_probs:
            gradients = torch.autograd.grad(log_prob, list(policy.model.parameters()), retain_graph=True)
            scores.append(log_derivative.flat(gradients))
    expected = torch.stack(scores)
    torch.testing.assert_close(gram, expected @ expected.T, rtol=1e-3, atol=1e-3 * float(gram.abs().max()))


# -- 3: credit, seen ---------------------------------------------------------------------------------------------------


def test_the_whole_return_blames_taj_for_paris_and_the_advantage_does_not() -> None:
    """ "taj" is the only word there: its advantage is 0, while it is given the whole return, bad or good."""
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


def test_the_weights_seen_are_what_they_are_called() -> None:
    """Identities between the rows, which no two of them could change places in."""
    for answer in credit_seen.measure().values():
        weights = {name: np.array(values) for name, values in answer["weights"].items()}
        whole, to_go = weights["whole return"], weights["reward to go"]
        assert np.ptp(whole) == 0 and to_go[0] == pytest.approx(whole[0]) and np.ptp(to_go) > 0.01
        values = to_go - weights["reward to go - V(s_t)"]
        assert np.ptp(to_go - weights["reward to go - V(s_0)"]) == pytest.approx(0, abs=1e-12)
        assert weights["Q"] - values == pytest.approx(weights["advantage, exact V"])
        # the advantages of an answer sum to G_0 - V(s_0): nothing is lost
        assert weights["advantage, exact V"].sum() == pytest.approx(weights["reward to go - V(s_0)"][0])
        assert weights["Q"][-1] == pytest.approx(to_go[-1])  # the last token's Q is its reward


# -- 4: the value head -------------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_the_mse_on_rewards_to_go_is_least_at_the_exact_v(seed: int) -> None:
    """The expected gradient of `value_loss` is zero at V_pi; E (V - G)^2 = E (V - V_pi)^2 + what no V can explain."""
    answers = all_answers(seed)
    to_go, weight = reward_to_go(answers.rewards, answers.mask), answers.visit_weights()
    exact_values = torch.as_tensor(answers.evaluation.values)

    def slope(values: Tensor) -> Tensor:
        values = values.clone().requires_grad_(True)
        losses = [
            p * value_loss(answers.look_up(values)[i : i + 1], to_go[i : i + 1], answers.mask[i : i + 1])
            for i, p in enumerate(answers.probability)
        ]
        return torch.autograd.grad(torch.stack(losses).sum(), values)[0]

    other = torch.as_tensor(np.random.default_rng(seed).normal(size=len(exact_values)))
    assert slope(exact_values).abs().max() < 1e-9 < 1e-3 < slope(exact_values + other).abs().max()
    rest = [
        float((weight * (answers.look_up(v) - to_go) ** 2).sum() / weight.sum())
        - value_head.squared_error(answers, answers.look_up(v))
        for v in (exact_values, exact_values + other)
    ]
    assert rest[0] == pytest.approx(rest[1]) and rest[0] > 0


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, size=st.floats(0.1, 2.0))
def test_no_critic_explains_more_than_the_exact_v(seed: int, size: float) -> None:
    """At every token the exact V has the highest explained variance, and less than 1."""
    answers = all_answers(seed)
    best = torch.as_tensor(answers.evaluation.values)
    worse = best + size * torch.as_tensor(np.random.default_rng(seed).normal(size=len(best)))
    ceiling = value_head.per_token(answers, answers.look_up(best))
    below = value_head.per_token(answers, answers.look_up(worse))
    assert all(
        low["explained_variance"] <= top["explained_variance"] + 1e-9 for low, top in zip(below, ceiling, strict=True)
    )
    assert any(
        low["explained_variance"] < top["explained_variance"] - 1e-6 for low, top in zip(below, ceiling, strict=True)
    )
    assert all(top["explained_variance"] < 1 and top["mse"] == 0 for top in ceiling)
    moved = value_head.per_token(answers, answers.look_up(best + 3.0))  # a constant is explained by the mean
    assert [row["explained_variance"] for row in moved] == pytest.approx([t["explained_variance"] for t in ceiling])
    assert value_head.pooled(answers, answers.look_up(worse)) < value_head.pooled(answers, answers.look_up(best)) < 1


@pytest.mark.parametrize("separate", [False, True])
def test_a_critic_learns_and_the_policy_stands_still(separate: bool) -> None:
    """Most of the error goes; pi does not move; without a trunk of its own only the head does, and beats no optimum."""
    env = toy(num_prompts=2)
    policy = value_head.with_new_critic(random_policy(env).float(), separate)
    before = {name: p.clone() for name, p in policy.named_parameters()}
    answers = Enumeration.of(exact.evaluate(env, policy))
    start = value_head.squared_error(answers, answers.learned_values(policy))
    assert [step for step, _ in value_head.fit_values(env, policy, 80)] == list(range(81))
    learned = value_head.squared_error(answers, answers.learned_values(policy))
    least = value_head.squared_error(answers, value_head.least_squares(answers, policy))
    assert learned < start / 4  # control: V = E r_t, the wrong target, is as bad as none
    wrong = gamma_lambda.errors(answers, torch.zeros_like(answers.rewards), 1.0, 0.0)
    assert wrong["rmse"] > 0 and (separate or learned > least)
    moved = {name.split(".")[0] for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert moved == ({"value_head", "critic"} if separate else {"value_head"})


# -- 5 and 6: old samples and the clip -------------------------------------------------------------------------------


def reuse(answers: Enumeration, clip_range: float | None, epochs: int) -> tuple[dict[str, Tensor], float]:
    """PPO's loss over all answers of the old policy, `epochs` steps of gradient descent on a table; its info, and J."""
    old = torch.tensor(answers.evaluation.log_probs)
    logits = old.clone().requires_grad_(True)
    count = len(answers.probability)  # the loss is a mean over answers: weigh each with its probability
    advantages = answers.look_up(answers.evaluation.advantages) * answers.probability[:, None] * count
    for _ in range(epochs + 1):
        log_probs = logits.log_softmax(dim=1)
        loss, info = clipped_surrogate_loss(
            answers.look_up(log_probs), answers.look_up(old), advantages, answers.mask, clip_range
        )
        (slope,) = torch.autograd.grad(loss, logits)
        after = exact.evaluate_log_probs(answers.tree, log_probs.detach().numpy()).objective
        logits = (logits - 10 * slope).detach().requires_grad_(True)
    return info, after


@pytest.mark.parametrize("seed", range(3))
def test_without_the_clip_old_samples_are_used_up(seed: int) -> None:
    """The more epochs, the larger the ratios and the smaller the effective sample; the clip holds both, and J."""
    answers = all_answers(seed)
    (few, _), (many, ruined), (held, kept) = (
        reuse(answers, None, 5),
        reuse(answers, None, 200),
        reuse(answers, 0.2, 200),
    )
    assert held["val/ratio_error_max"] < many["val/ratio_error_max"] > few["val/ratio_error_max"]
    assert held["val/ess"] > many["val/ess"] < few["val/ess"]
    assert kept > answers.evaluation.objective and kept > ruined


@pytest.mark.parametrize("seed", range(3))
def test_a_narrower_clip_binds_more_and_moves_less(seed: int) -> None:
    """Over growing eps: less of the batch is clipped, at a fixed policy, and training goes further from the old one."""
    answers = all_answers(seed)
    moved = [float(reuse(answers, eps, 50)[0]["policy/approxkl_avg"]) for eps in (0.02, 0.1, 0.5, None)]
    assert moved == sorted(moved) and moved[0] < moved[-1]
    other = torch.as_tensor(random_log_probs(answers.tree, np.random.default_rng(seed + 100)))
    for side in ("high", "low"):
        shares = [
            float(
                clipped_surrogate_loss(
                    answers.look_up(other),
                    answers.look_up(answers.evaluation.log_probs),
                    answers.look_up(answers.evaluation.advantages),
                    answers.mask,
                    eps,
                )[1][f"policy/clipfrac_{side}_avg"]
            )
            for eps in (0.02, 0.2, 0.5, 0.9, None)
        ]
        assert shares == sorted(shares, reverse=True) and shares[0] > 0 == shares[-1]


def test_collapse_is_counted_with_its_interval() -> None:
    """Runs below the line are counted; Wilson's interval holds the share."""
    runs = [{"share": share} for share in (-0.5, 0.1, 0.24, 0.26, 0.9)]
    count, low, high = old_samples.collapsed(runs)
    assert count == 3 and 0 < low < 3 / 5 < high < 1


# -- 7: reward hacking -------------------------------------------------------------------------------------------------


def test_the_frontier_bounds_every_policy_and_gold_has_a_summit() -> None:
    """As beta falls KL and proxy rise together; gold rises, then falls. No policy has more proxy for its KL."""
    tree = exact.enumerate_tree(gym.make(reward_hacking.ID))
    points = [reward_hacking.optimum(tree, beta) for beta in reward_hacking.FRONTIER]
    for key in ("kl", "proxy"):
        values = [point[key] for point in points]
        assert values == sorted(values)
    gold = [point["gold"] for point in points]
    summit = int(np.argmax(gold))
    assert gold[: summit + 1] == sorted(gold[: summit + 1]) and gold[summit:] == sorted(gold[summit:], reverse=True)
    reference = exact.evaluate_log_probs(tree, tree.ref_log_probs)
    assert 0 < summit < len(gold) - 1 and gold[-1] < reference.gold_score < gold[summit]
    for seed, distance in enumerate((0.1, 0.5, 1.0, None)):
        known = exact.evaluate_log_probs(tree, random_log_probs(tree, np.random.default_rng(seed), distance))
        for point, beta in zip(points, reward_hacking.FRONTIER, strict=True):
            assert known.score - beta * known.kl <= point["proxy"] - beta * point["kl"] + 1e-9
    best, last, beta = points[summit], points[-1], reward_hacking.FRONTIER[-1]  # control: of gold they are no frontier
    assert best["gold"] - beta * best["kl"] > last["gold"] - beta * last["kl"]


# -- 8: which KL -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("distance", [0.1, None])
def test_only_k1_in_the_reward_has_the_gradient_of_the_kl(seed: int, distance: float | None) -> None:
    """k1 in the reward is exact; in the loss it has none; k2 and k3 point elsewhere, near pi_ref most in the reward."""
    answers = all_answers(seed, distance, max_new_tokens=4)
    true = which_kl.kl_gradient(answers)
    torch.testing.assert_close(which_kl.in_reward(answers, k1), true, rtol=1e-9, atol=1e-12)
    assert which_kl.cosine(which_kl.in_loss(answers, k1), true) is None
    for estimator in (k2, k3):
        found = [which_kl.cosine(g(answers, estimator), true) for g in (which_kl.in_reward, which_kl.in_loss)]
        assert max(found) < 1 - 1e-6
        if distance is not None:
            assert found[0] < found[1]


def test_the_gradient_of_the_kl_is_that_of_the_exact_objective() -> None:
    """`kl_gradient` is the exact gradient of -J with no score and beta = 1."""
    tree = exact.enumerate_tree(toy(2, kl_coef=1.0))
    tree.scores[:] = 0
    known = exact.evaluate_log_probs(tree, random_log_probs(tree, np.random.default_rng(2)))
    weights = (
        known.occupancy[:, None] * np.exp(known.log_probs) * known.advantages
    )  # by logits: sum_b pi(b|s) A(s, b) = 0
    torch.testing.assert_close(which_kl.kl_gradient(Enumeration.of(known)), torch.as_tensor(-weights.ravel()))


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_what_the_estimators_estimate(seed: int) -> None:
    """k1 and k3 average to the KL, k2 does not; near the reference k3 is the less noisy by far."""
    answers = all_answers(seed, distance=0.1)
    ratios = which_kl.log_ratios(answers)
    totals = {k: torch.where(answers.mask, k(ratios), 0.0).sum(dim=1) for k in (k1, k2, k3)}
    means = {k: float(answers.probability @ total) for k, total in totals.items()}
    spread = {k: float(answers.probability @ (totals[k] - means[k]) ** 2) for k in totals}
    kl = answers.evaluation.kl
    assert means[k1] == pytest.approx(kl) == pytest.approx(means[k3])
    assert abs(means[k2] - kl) > 1e-4 * kl
    assert spread[k3] < spread[k1] / 4


# -- 9: gamma and lambda -----------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_lambda_trades_bias_for_variance(seed: int) -> None:
    """gamma = lambda = 1 is unbiased whatever V says; with a wrong V lambda = 0 is biased, and has no variance."""
    answers = all_answers(seed)
    wrong = answers.look_up(np.random.default_rng(seed).normal(size=len(answers.tree.prompt)))
    trusting, sampling = (gamma_lambda.errors(answers, wrong, 1.0, lam) for lam in (0.0, 1.0))
    assert sampling["bias"] < 1e-9 < 1e-3 < trusting["bias"]
    assert trusting["std"] < 1e-9 < 1e-3 < sampling["std"]
    assert gamma_lambda.errors(answers, wrong, 0.8, 1.0)["bias"] > 1e-3  # forgets what is paid late


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_with_the_exact_v_lambda_only_adds_noise(seed: int) -> None:
    """Then no lambda is biased, and the variance rises with it from none at all."""
    answers = all_answers(seed)
    values = answers.look_up(answers.evaluation.values)
    rows = [gamma_lambda.errors(answers, values, 1.0, lam) for lam in gamma_lambda.LAMBDAS]
    deviations = [row["std"] for row in rows]
    assert max(row["bias"] for row in rows) < 1e-9
    assert deviations == sorted(deviations) and deviations[0] < 1e-9 < deviations[-1]


def test_the_conditional_mean_is_one() -> None:
    """E[G_t | s_t, a_t] is Q and E[G_t | s_t] is V; the other way round they are not."""
    answers = all_answers(6)
    to_go = reward_to_go(answers.rewards, answers.mask)
    q_values, values = (answers.look_up(getattr(answers.evaluation, name)) for name in ("q_values", "values"))
    torch.testing.assert_close(answers.conditional_mean(answers.edges, to_go), q_values)
    torch.testing.assert_close(answers.conditional_mean(answers.states, to_go), values)
    assert (q_values - values).abs().max() > 0.1
    torch.testing.assert_close(gae(answers.rewards, values, answers.mask, gae_lambda=0.0) + values, q_values)


# -- what is measured is what it is called -----------------------------------------------------------------------------


def test_which_kl_under_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim's numbers: k1 in the reward is exact, in the loss nothing; bias and std of each, in units of the KL."""
    monkeypatch.setattr(which_kl, "POLICIES", 2)
    found = which_kl.over_policies(None)
    assert found["k1"]["in the reward"] == pytest.approx([1.0, 1.0]) and found["k1"]["in the loss"] == [None, None]
    for name in ("k2", "k3"):
        assert max(found[name]["in the reward"] + found[name]["in the loss"]) < 1 - 1e-3
    assert found["k1"]["bias"] == pytest.approx([0, 0], abs=1e-9) == found["k3"]["bias"]
    answers = Enumeration.of(first_of_which_kl())
    ratios = which_kl.log_ratios(answers)
    for name, k in (("k1", k1), ("k2", k2), ("k3", k3)):
        total = torch.where(answers.mask, k(ratios), 0.0).sum(dim=1)
        mean = answers.probability @ total
        kl = answers.evaluation.kl
        assert found[name]["bias"][0] == pytest.approx(float(mean) / kl - 1, abs=1e-9)
        assert found[name]["std"][0] == pytest.approx(float((answers.probability @ total**2 - mean**2).sqrt()) / kl)
    assert found["kl"][0] == pytest.approx(answers.evaluation.kl)


def first_of_which_kl() -> exact.Evaluation:
    """The first independent policy of the claim."""
    tree = exact.enumerate_tree(toy(0, vocab_size=4, max_new_tokens=5, kl_coef=0.1))
    return exact.evaluate_log_probs(tree, random_log_probs(tree, np.random.default_rng(0)))


def test_ppo_is_run_with_the_clip_it_is_said_to_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a clip nothing is clipped, and ratios go further in two epochs than in one, where they stay at 1."""
    monkeypatch.setattr(old_samples, "TIMESTEPS", 600)
    said: list[dict[str, float]] = []
    train = PPO.train

    def watched(self: PPO, rollout: Any) -> dict[str, float]:
        said.append(train(self, rollout))
        return said[-1]

    monkeypatch.setattr(PPO, "train", watched)
    env = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=2)
    evaluator, start = Evaluator.for_env(env, 2), random_policy(env).float()
    no_clip, clip = (old_samples.CLIPS[name] for name in ("no clip", "clip 0.2"))
    once = old_samples.run(evaluator, start, 0, n_epochs=1, clip_range=no_clip)
    free = old_samples.run(evaluator, start, 0, n_epochs=20, clip_range=no_clip)
    said.clear()
    held = old_samples.run(evaluator, start, 0, n_epochs=20, clip_range=clip)
    assert once["largest_ratio"] == pytest.approx(1, abs=1e-4) and once["ess"] == pytest.approx(1, abs=1e-4)
    assert free["largest_ratio"] > 1.2 and free["clipped_high"] == free["clipped_low"] == 0
    assert held["clipped_high"] > 0 and held["clipped_low"] > 0 and 0 < free["ess"] < 1
    assert held["clipped_high"] == pytest.approx(np.mean([row["policy/clipfrac_high_avg"] for row in said]))
    assert held["clipped_low"] == pytest.approx(np.mean([row["policy/clipfrac_low_avg"] for row in said]))
    assert held["ess"] == min(row["val/ess"] for row in said)
    assert held["largest_ratio"] == 1 + max(row["val/ratio_error_max"] for row in said)
    again = old_samples.over_seeds(evaluator, start, (0,), n_epochs=1, clip_range=None)
    assert again["runs"] == [once] and again["share"]["value"] == pytest.approx(once["share"])


def test_hacking_is_trained_with_its_beta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run's environment pays with the beta that the row names, and its trajectory ends where the policy does."""
    seen: list[Any] = []

    class Watched(PPO):
        def __post_init__(self) -> None:
            super().__post_init__()
            seen.append(self)

    monkeypatch.setattr(reward_hacking, "PPO", Watched)
    monkeypatch.setattr(reward_hacking, "TIMESTEPS", 500)
    start = random_policy(gym.make(reward_hacking.ID)).float()
    run = reward_hacking.train(start, 0, kl_coef=0.3)
    steered = reward_hacking.train(start, 0, **reward_hacking.TARGET)
    assert [agent.env.unwrapped.mdp.kl_coef for agent in seen] == [0.3, reward_hacking.TARGET["kl_coef"]]
    known = exact.evaluate(gym.make(reward_hacking.ID), seen[0].policy)
    assert run["trajectory"][-1]["proxy"] == pytest.approx(known.score)
    assert run["trajectory"][-1]["gold"] == pytest.approx(known.gold_score)
    assert run["last_kl_coef"] is None and steered["last_kl_coef"] != reward_hacking.TARGET["kl_coef"]
    assert [answer["prompt"] for answer in run["answers"]] == seen[0].env.unwrapped.prompts


def test_the_learned_v_of_the_grid_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim's grid: no bias at gamma = lambda = 1, and one at lambda = 0, which an exact V would not have."""
    monkeypatch.setattr(gamma_lambda, "CRITIC_STEPS", 3)
    monkeypatch.setattr(gamma_lambda, "started_policy", lambda env: random_policy(env).float())
    grid = {(row["gamma"], row["gae_lambda"]): row for row in gamma_lambda.measure()["grid"]}
    assert grid[1.0, 1.0]["bias"] < 1e-6 < 1e-3 < grid[1.0, 0.0]["bias"]
    assert grid[1.0, 0.0]["std"] < 1e-6 < 1e-3 < grid[1.0, 1.0]["std"]
    assert grid[0.8, 1.0]["bias"] > 1e-3


def test_the_value_heads_are_what_they_are_called() -> None:
    """A separate critic is the one with a transformer of its own."""
    policy = random_policy(toy())
    critics = {name: value_head.with_new_critic(policy, own).critic for name, own in value_head.CRITICS.items()}
    assert critics["linear head"] is None and critics["own transformer"] is not None


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_measures_prints_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each claim's table is printed, and written beside numbers and figure; --resume measures only what is missing."""
    out, claims = tmp_path / "out", ["credit_seen", "which_kl"]
    done = command("lecture", "--claims", *claims, "--out", str(out))
    assert done.returncode == 0, done.stderr
    for claim in claims:
        assert (out / f"{claim}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / f"{claim}.txt").read_text().strip() in done.stdout
    numbers = json.loads((out / "credit_seen.json").read_text())
    next(iter(numbers.values()))["tokens"][0] = "THE"
    (out / "credit_seen.json").write_text(json.dumps(numbers))
    (out / "which_kl.json").unlink()
    lecture(LectureConfig(claims=claims, out=out, resume=True))
    assert "THE" in capsys.readouterr().out and (out / "which_kl.json").is_file()


def test_flags_that_make_no_lecture_are_refused(tmp_path: Path) -> None:
    """No claim, or one twice; a folder in use without --resume. Nothing is left behind, or lost."""
    for claims in ([], ["clip", "clip"]):
        with pytest.raises(FlagError, match="one or more, each once"):
            lecture(LectureConfig(claims=claims, out=tmp_path / "none"))
    with pytest.raises(FlagError, match="--num-workers must not be negative, got -1"):
        lecture(LectureConfig(num_workers=-1, out=tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(FlagError, match="not empty"):
        lecture(LectureConfig(out=tmp_path))
    with pytest.raises(FlagError, match="cannot be made"):
        lecture(LectureConfig(out=tmp_path / "note.txt"))


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_results_shown_come_out_of_their_numbers(claim: str, tmp_path: Path) -> None:
    """The table kept beside the README's figure is the one that its numbers make; the figure can be drawn from them."""
    numbers = json.loads((RESULTS / f"{claim}.json").read_text())
    _show(_module(claim), numbers, tmp_path / claim, plain_console(quiet=True))
    assert (tmp_path / f"{claim}.txt").read_text() == (RESULTS / f"{claim}.txt").read_text()
    assert (tmp_path / f"{claim}.png").stat().st_size > 5000 and (RESULTS / f"{claim}.png").is_file()


@pytest.mark.parametrize("claim", ["credit_seen", "which_kl", "credit_variance"])
def test_the_numbers_shown_are_measured_again(claim: str) -> None:
    """Where nothing is trained the kept numbers come out anew, to rounding."""
    kept = json.loads((RESULTS / f"{claim}.json").read_text())
    assert_close(json.loads(json.dumps(_module(claim).measure())), kept)


def assert_close(found: Any, kept: Any) -> None:
    """Nested dicts and lists with the same keys and, to rounding, the same numbers."""
    if isinstance(kept, dict):
        assert list(found) == list(kept)
        for key, value in kept.items():
            assert_close(found[key], value)
    elif isinstance(kept, list):
        assert len(found) == len(kept)
        for one, other in zip(found, kept, strict=True):
            assert_close(one, other)
    else:
        assert found == (pytest.approx(kept, rel=1e-4, abs=1e-6) if isinstance(kept, float) else kept)


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_readme_shows_every_claim(claim: str) -> None:
    """Its figure, its table and the command that makes both."""
    section = (ROOT / "README.md").read_text().split("## The lecture, measured")[1].split("\n## ")[0]
    for needed in (f"lecture/{claim}.png", f"lecture/{claim}.txt", f"lecture --claims {claim}"):
        assert needed in section, needed


@pytest.mark.slow
def test_every_claim_can_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All nine with small settings: numbers that JSON can hold, a table, a figure."""
    small: list[tuple[Any, str, Any]] = [
        (log_derivative, "SAMPLES", (1, 2, 64)),
        (log_derivative, "REPEATS", 2),
        (credit_variance, "TASK_SEEDS", (0, 1)),
        (value_head, "STEPS", 20),
        (old_samples, "EPOCHS", (1, 2)),
        (old_samples, "SEEDS", (0, 1)),
        (old_samples, "TIMESTEPS", 400),
        (clip, "CLIP_RANGES", (0.1, None)),
        (clip, "SEEDS", (0, 1)),
        (reward_hacking, "BETAS", (0.0, 0.5)),
        (reward_hacking, "SEEDS", (0, 1)),
        (reward_hacking, "TIMESTEPS", 2000),
        (which_kl, "POLICIES", 2),
        (gamma_lambda, "CRITIC_STEPS", 5),
    ]
    for module, name, value in small:
        monkeypatch.setattr(module, name, value)
    for claim in CLAIMS:
        module = _module(claim)
        numbers = json.loads(json.dumps(module.measure()))
        _show(module, numbers, tmp_path / claim, plain_console(quiet=True))
        assert (tmp_path / f"{claim}.txt").stat().st_size > 300


def test_random_policies_are_as_far_as_they_say() -> None:
    """`random_log_probs`: near the reference where a distance is small, a policy at all where the tree is sparse."""
    tree = exact.enumerate_tree(gym.make("textenv/TajMahal-v0"))
    near, far = (
        exact.evaluate_log_probs(tree, random_log_probs(tree, np.random.default_rng(0), d)).kl for d in (0.01, None)
    )
    assert 0 < near < 1e-3 < far < np.inf
