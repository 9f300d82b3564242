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

from agents.kl import k1, k2, k3
from agents.losses import clipped_surrogate_loss, value_loss
from agents.returns import gae, reward_to_go
from agents.sampling import new_generator
from experiments.config import FlagError
from experiments.lecture import (
    clip,
    credit_seen,
    credit_variance,
    gamma_lambda,
    log_derivative,
    old_samples,
    reward_hacking,
    value_head,
    which_kl,
)
from experiments.lecture.answers import Answers, random_log_probs
from experiments.lecture.gram import parameter_gram, tabular_gram
from experiments.lecture.run import CLAIMS, LectureConfig, _module, _show, lecture
from experiments.report import plain_console
from tests.test_experiments import command
from tests.test_gradients import random_policy
from textenv import exact

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results" / "lecture"
SEEDS = st.integers(0, 999)


def toy(seed: int = 0, **arguments: Any) -> Any:
    """A toy of 13 answers, by default."""
    defaults = {"vocab_size": 3, "max_new_tokens": 3, "num_prompts": 1, "task_seed": seed, "kl_coef": 0.3}
    return gym.make("textenv/Toy-v0", **(defaults | arguments))


def all_answers(seed: int = 0, distance: float | None = None, **arguments: Any) -> Answers:
    """Its answers under a random policy."""
    tree = exact.enumerate_tree(toy(seed, **arguments))
    return Answers.of(exact.evaluate_log_probs(tree, random_log_probs(tree, np.random.default_rng(seed), distance)))


def ladder(answers: Answers, learned: Tensor | None = None) -> dict[str, dict[str, Any]]:
    """Bias and variance of every rung, by the logits of a table."""
    learned = torch.zeros_like(answers.rewards) if learned is None else learned
    gram = tabular_gram(answers)
    found = credit_variance.estimators(answers, learned)
    return {name: credit_variance.moments(answers, *found[name], gram) for name in found}


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
    width = answers.tree.process.prompt_width
    for row in range(len(ids)):
        tokens = ids[row, width:][attention[row, width:] == 1].tolist()
        prompt = answers.tree.process.prompts.texts[answers.prompt[row]]
        assert answers.tree.state(prompt, tokens[:-1]) == answers.states[row][answers.mask[row]][-1]


# -- 1: the log-derivative trick and Monte Carlo -------------------------------------------------------------------


@settings(max_examples=5, deadline=None)
@given(seed=SEEDS)
def test_the_error_falls_as_one_over_n(seed: int) -> None:
    """The variance of a batch of n answers, every batch enumerated, is that of one answer over n; unbiased at any n."""
    answers = all_answers(seed, max_new_tokens=2)
    gram = tabular_gram(answers)
    to_go = reward_to_go(answers.rewards, answers.mask)
    weights, noise = to_go[:, :1].expand_as(to_go), torch.zeros_like(to_go)
    found = [
        credit_variance.moments(answers, weights[credit_variance.batches(answers, n)[0]], noise, gram)
        for n in (1, 2, 3)
    ]
    one_answer = log_derivative.one_answer_deviation(answers, gram, "sequence", None) ** 2
    for row in found:  # `variance` is n times that of the batch
        assert row["variance"] == pytest.approx(one_answer)
        assert row["bias"] < 1e-6


def test_the_error_test_notices_answers_that_are_not_independent() -> None:
    """Control: with a baseline of the other answers the batch's variance is not one answer's over n."""
    answers = all_answers(1, max_new_tokens=2)
    gram = tabular_gram(answers)
    rung = ladder(answers)["to go - leave-one-out"]["variance"]
    assert abs(rung / log_derivative.one_answer_deviation(answers, gram, "reward_to_go", "mean") ** 2 - 1) > 0.01


def test_the_sampled_gradient_is_that_of_the_exact_objective() -> None:
    """REINFORCE on 2,000 answers a prompt stays within four of the computed standard errors; its opposite does not."""
    env = toy(num_prompts=2)
    policy = random_policy(env).float()
    answers = Answers.of(exact.evaluate(env, policy))
    true = log_derivative.flat(g for name, g in exact.policy_gradient(env, policy).items() if "model." in name)
    gram = parameter_gram(policy, answers)
    for options in log_derivative.ESTIMATORS.values():
        found = log_derivative.sampled_gradient(env, policy, 2000, new_generator("cpu", 0), options)
        allowed = 4 * log_derivative.one_answer_deviation(answers, gram, **options) / 2000**0.5
        assert float((found - true).norm()) < allowed < float((found + true).norm())


# -- 2: credit ---------------------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_the_variance_ladder(seed: int) -> None:
    """Q is not noisier than sampled Q, and that not than the reward to go, which is a theorem by a table's logits."""
    rungs = ladder(all_answers(seed))
    order = ["exact Q", "Q, 4 continuations", "reward to go"]
    variances = [rungs[name]["variance"] for name in order]
    assert variances == sorted(variances) and variances[0] < variances[-1]
    assert rungs["advantage, exact V"]["variance"] < rungs["to go - exact V"]["variance"]
    for rung in rungs.values():  # by the logits of a table, states do not overlap: the tokens' parts are the whole
        assert sum(rung["per_token"]) == pytest.approx(rung["variance"])


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_what_is_biased_and_what_is_not(seed: int) -> None:
    """All rungs have the gradient of J but the mean of the batch itself, which loses 1/K, and a wrong V."""
    rungs = ladder(all_answers(seed))
    for name in ("whole return", "reward to go", "to go - leave-one-out", "to go - exact V", "exact Q"):
        assert rungs[name]["bias"] < 1e-6, name
    assert rungs["advantage, exact V"]["bias"] < 1e-6
    assert rungs["to go - mean"]["bias"] == pytest.approx(1 / credit_variance.BATCH, rel=1e-6)
    assert rungs["advantage, learned V"]["bias"] > 1e-3  # V = 0 here: r_t alone


def test_baselines_take_off_what_every_answer_gets() -> None:
    """A constant added to the score blows up whole return, reward to go and Q, and leaves baselines and advantage."""
    tree = exact.enumerate_tree(toy(3))
    log_probs = random_log_probs(tree, np.random.default_rng(3))
    before = ladder(Answers.of(exact.evaluate_log_probs(tree, log_probs)))
    tree.scores[tree.child == -1] += 10.0
    after = ladder(Answers.of(exact.evaluate_log_probs(tree, log_probs)))
    for name in ("whole return", "reward to go", "exact Q"):
        assert after[name]["variance"] > 10 * before[name]["variance"], name
    for name in ("to go - mean", "to go - leave-one-out", "to go - exact V", "advantage, exact V"):
        assert after[name]["variance"] == pytest.approx(before[name]["variance"], rel=1e-6), name


def test_a_wrong_credit_is_noticed() -> None:
    """Control: the return *before* a token as its weight is not the gradient of J."""
    answers = all_answers(4)
    to_go = reward_to_go(answers.rewards, answers.mask)
    rows, _ = credit_variance.batches(answers)
    past = (to_go[:, :1] - to_go)[rows]
    found = credit_variance.moments(answers, past, torch.zeros_like(to_go), tabular_gram(answers))
    assert found["bias"] > 0.1


def test_the_gram_of_a_transformer_is_that_of_its_gradients() -> None:
    """Its entries are scalar products of grad log pi(a|s), taken here by autograd from single states."""
    env = toy(max_new_tokens=2)
    policy = random_policy(env)
    answers = Answers.of(exact.evaluate(env, policy))
    gram = parameter_gram(policy, answers)
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
    for name in ("whole return", "reward to go", "to go - leave-one-out"):
        assert bad["weights"][name][taj] == pytest.approx(bad["weights"][name][place])
        assert bad["weights"][name][taj] <= -1 and good["weights"][name][taj] >= 1
    advantage = bad["weights"]["advantage, exact V"]
    assert advantage[taj] == pytest.approx(0, abs=1e-9) and min(advantage) == advantage[place] < -0.5
    assert max(good["weights"]["advantage, exact V"]) == good["weights"]["advantage, exact V"][place] > 0.5
    for answer in (good, bad):  # the advantages of an answer sum to G_0 - V(s_0): nothing is lost
        weights = answer["weights"]
        assert sum(weights["advantage, exact V"]) == pytest.approx(weights["to go - exact V"][0])


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


@pytest.mark.parametrize("separate", [False, True])
def test_a_critic_learns_and_the_policy_stands_still(separate: bool) -> None:
    """Fifty steps take most of the error away; pi does not move, and without a trunk of its own only the head does."""
    env = toy(num_prompts=2)
    policy = value_head.with_new_critic(random_policy(env).float(), separate)
    before = {name: p.clone() for name, p in policy.named_parameters()}
    answers = Answers.of(exact.evaluate(env, policy))
    start = value_head.squared_error(answers, answers.learned_values(policy))
    for _ in value_head.fit_values(env, policy, 50):
        pass
    assert value_head.squared_error(answers, answers.learned_values(policy)) < start / 2
    moved = {name.split(".")[0] for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert moved == ({"value_head", "critic"} if separate else {"value_head"})


# -- 5 and 6: old samples and the clip -------------------------------------------------------------------------------


def reuse(answers: Answers, clip_range: float | None, epochs: int) -> tuple[dict[str, Tensor], float]:
    """PPO's loss over all answers of the old policy, `epochs` steps of gradient descent on a table; its info, and J."""
    old = torch.tensor(answers.evaluation.log_probs)
    logits = old.clone().requires_grad_(True)
    advantages = answers.look_up(answers.evaluation.advantages) * answers.probability[:, None] * len(old)
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
    weights = known.visits[:, None] * np.exp(known.log_probs) * known.advantages  # by logits: sum_b pi(b|s) A(s, b) = 0
    torch.testing.assert_close(which_kl.kl_gradient(Answers.of(known)), torch.as_tensor(-weights.ravel()))


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
    torch.testing.assert_close(answers.mean_given(answers.edges, to_go), q_values)
    torch.testing.assert_close(answers.mean_given(answers.states, to_go), values)
    assert (q_values - values).abs().max() > 0.1
    torch.testing.assert_close(gae(answers.rewards, values, answers.mask, gae_lambda=0.0) + values, q_values)


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
    assert not (tmp_path / "none").exists()
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(FlagError, match="not empty"):
        lecture(LectureConfig(out=tmp_path))


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_results_shown_come_out_of_the_command(claim: str, tmp_path: Path) -> None:
    """The table kept beside the README's figure is the one that its numbers make; the figure can be drawn from them."""
    numbers = json.loads((RESULTS / f"{claim}.json").read_text())
    _show(_module(claim), numbers, tmp_path / claim, plain_console(quiet=True))
    assert (tmp_path / f"{claim}.txt").read_text() == (RESULTS / f"{claim}.txt").read_text()
    assert (tmp_path / f"{claim}.png").stat().st_size > 5000 and (RESULTS / f"{claim}.png").is_file()


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
        (credit_variance, "CRITIC_STEPS", 5),
        (value_head, "STEPS", 20),
        (old_samples, "EPOCHS", (1, 2)),
        (old_samples, "SEEDS", (0, 1)),
        (old_samples, "TIMESTEPS", 400),
        (clip, "CLIP_RANGES", (0.1, None)),
        (clip, "SEEDS", (0, 1)),
        (reward_hacking, "BETAS", (0.0, 0.5)),
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
