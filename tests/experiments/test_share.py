"""The share of the way with its standard error, where the optimum is estimated and where it is exact."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from agents import RLOO, files
from agents.policy import TransformerPolicy
from experiments.baselines import measure_baselines, sample_reference
from experiments.errors import FlagError
from experiments.evaluation import Evaluator, make_evaluator, reference_policy
from experiments.held_out import Environments
from experiments.reference_completions import REFERENCE_FILE
from experiments.share import describe_baselines, normalized_objective, normalized_objective_stderr
from tests.helpers.commands import call, tiny
from textenv import exact

TASK = {"vocab_size": 4, "max_new_tokens": 4, "num_prompts": 3, "kl_coef": 0.5}


def test_estimated_baselines_agree_with_the_exact_ones() -> None:
    """J_ref and J* within 5 standard errors; the interval's ends, the numbers of prompts and completions."""
    env = gym.make_vec("textenv/Toy-v0", **TASK)
    known, sampled = Evaluator.for_env(env, 64), Evaluator(env, 64, None)
    truth, found = known.baselines(), sampled.baselines(sample_reference(sampled, 500))
    for name, error in (("reference", "reference_stderr"), ("optimum", "optimum_stderr")):
        assert 0 < found[error] < 0.1
        assert abs(truth[name] - found[name]) < 5 * found[error]
    assert abs(truth["optimum"] - found["reference"]) > 5 * found["optimum_stderr"]  # control
    assert found["optimum_low"] < found["optimum"] < found["optimum_high"]
    assert (found["num_prompts"], found["optimum_completions"]) == (3, 500)
    assert 1 < found["least_effective_sample_size"] <= found["median_effective_sample_size"] <= 500
    estimates = [name for name, value in truth.items() if value is None]
    assert {"optimum_stderr", "reference_stderr", "optimum_low"} < set(estimates)
    assert describe_baselines(truth) == [] and "500 completions" in describe_baselines(found)[0]


def test_the_error_of_a_share_is_that_of_its_three_parts() -> None:
    """By simulation: J, J_ref and J* drawn with their errors and covariance; None where all of them are exact."""
    generator = np.random.default_rng(0)
    baselines = {"reference": 1.0, "optimum": 3.0, "reference_stderr": 0.02, "optimum_stderr": 0.03}
    baselines["optimum_covariance"] = covariance = 0.7 * 0.02 * 0.03
    for objective, stderr in ((2.5, 0.04), (1.1, 0.0), (3.2, 0.01)):
        share = normalized_objective(objective, baselines)
        j = generator.normal(objective, stderr, 100_000)
        spreads = [[0.02**2, covariance], [covariance, 0.03**2]]
        low, high = generator.multivariate_normal([1.0, 3.0], spreads, 100_000).T
        spread = ((j - low) / (high - low)).std()
        assert normalized_objective_stderr(share, stderr, baselines) == pytest.approx(spread, rel=0.02)
    exactly = {"reference": 1.0, "optimum": 3.0}
    assert normalized_objective_stderr(0.5, None, exactly) is None
    assert normalized_objective_stderr(None, 0.1, baselines) is None
    assert normalized_objective_stderr(0.5, 0.1, exactly) == pytest.approx(0.05)


def test_shares_are_as_far_off_as_their_errors_say() -> None:
    """Of one policy, over 40 estimates of all that it is made of: 68% within one error, 95% within two."""
    env = gym.make_vec("textenv/Toy-v0", **TASK)
    reference, known = reference_policy(env), Evaluator.for_env(env, 8)
    policy = TransformerPolicy(copy.deepcopy(reference.model), vocab_size=4)
    agent = RLOO(policy, env, seed=0, learning_rate=3e-3)
    agent.learn(1500)
    truth = normalized_objective(known.measure(policy)["objective"], known.baselines())
    assert truth is not None and 0.2 < truth < 0.9
    sampled, generator = Evaluator(env, 8, None), np.random.default_rng(0)
    pool, errors = sample_reference(sampled, 8000), []
    measured = Evaluator(env, 3000, None).measure(policy)
    for i in range(40):
        rows = slice(200 * i, 200 * (i + 1))
        numbers = {name: getattr(pool, name)[:, rows] for name in ("rewards", "scores", "log_ratios", "completions")}
        baselines = sampled.baselines(type(pool)(pool.prompts, gold_scores=None, **numbers))
        stderr = measured["objective_stderr"]
        objective = known.measure(policy)["objective"] + generator.normal(0, stderr)
        share = normalized_objective(objective, baselines)
        error = normalized_objective_stderr(share, stderr, baselines)
        assert share is not None and error is not None
        errors.append(abs(share - truth) / error)
    assert 0.5 < np.mean(np.array(errors) < 1) < 0.9
    assert np.mean(np.array(errors) < 2) >= 0.85
    assert np.mean(np.array(errors) < 0.2) < 0.4  # control: errors are not far too large


def test_baselines_are_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every completion of the reference in a file; best of n comes from the same completions."""
    env = gym.make_vec("textenv/Toy-v0", **TASK)
    evaluator = Evaluator(env, 4, None, held_out=Evaluator(env, 4, None))
    found = measure_baselines(evaluator, tmp_path, num_completions=20, best_of=3)
    rows = files.read_rows(tmp_path / REFERENCE_FILE)
    assert len(rows) == 60 and {row["prompt"] for row in rows} == set(env.unwrapped.prompts)
    scores = np.array([row["score"] for row in rows]).reshape(3, 20)
    rewards = np.array([row["reward"] for row in rows])
    assert rewards == pytest.approx(scores.flatten(), abs=1e-5)  # no shaping
    assert found["reference_score"] == pytest.approx(scores.mean(), abs=1e-5)
    assert found["best_of_n"]["score"] > scores.mean() and found["best_of_n"]["n"] == 3
    rated = [row["reward"] - 0.5 * row["kl"] for row in rows]  # the policy is fitted to the table
    estimate = exact.optimum_from_scores(np.reshape(rated, (3, 20)), 0.5)
    assert found["optimum"] == pytest.approx(estimate.objective, abs=1e-4)
    assert found["held_out"]["optimum"] == found["optimum"]
    monkeypatch.setattr(Evaluator, "baselines", lambda *_: pytest.fail("measured again"))
    assert measure_baselines(evaluator, tmp_path, num_completions=20, best_of=3) == found


def test_fewer_completions_than_best_of_n_needs_are_refused(tmp_path: Path) -> None:
    """Before any is sampled; as many are enough, and 0 is off. An enumerated task samples none."""
    env = gym.make_vec("textenv/Toy-v0", **TASK)
    for count in (2, 4):
        with pytest.raises(FlagError, match=rf"--optimum-completions must be 0 or at least 5, got {count}: best of 5"):
            measure_baselines(Evaluator(env, 4, None), tmp_path / "few", num_completions=count, best_of=5)
    assert not (tmp_path / "few").exists()
    found = measure_baselines(Evaluator(env, 4, None), tmp_path / "enough", num_completions=5, best_of=5)
    assert (found["optimum_completions"], found["best_of_n"]["n"]) == (5, 5)
    off = measure_baselines(Evaluator(env, 4, None), tmp_path / "off", num_completions=0, best_of=5)
    assert off["optimum"] is None and off["best_of_n"]["n"] == 5
    none = measure_baselines(Evaluator(env, 4, None), tmp_path / "train", num_completions=2)  # `train` has no best of n
    assert (none["optimum_completions"], none["best_of_n"]) == (2, None)
    measure_baselines(Evaluator.for_env(env, 4), tmp_path / "exact", num_completions=2, best_of=5)


def test_the_optimum_of_beta_0_is_refused_where_it_is_estimated() -> None:
    """In a sentence that names the flag; an enumerated task has J* for every beta."""
    big = {"vocab_size": 12, "max_new_tokens": 12, "num_prompts": 2}
    for kl_coef, task, refused in ((0.0, big, True), (0.1, big, False), (0.0, TASK, False)):
        env = gym.make_vec("textenv/Toy-v0", **(task | {"kl_coef": kl_coef}))
        flags = tiny(optimum_completions=8)
        if refused:
            with pytest.raises(FlagError, match="where beta, kl_coef, is 0.* Add --optimum-completions 0"):
                make_evaluator(flags, Environments(env, None, env))
        else:
            make_evaluator(flags, Environments(env, None, env))


def test_a_comparison_on_a_language_model_has_shares_with_errors(tmp_path: Path, assets: Path) -> None:
    """Table, summary and `evaluate` on prompts of the training and on others; 0 completions is off, and beta 0 refused.

    J* of the table is that of the completions in the file.
    """
    openings = (assets / "tinystories" / "prompts.txt").read_text().splitlines()
    (tmp_path / "prompts.txt").write_text("\n".join(openings[:6]))
    (tmp_path / "others.txt").write_text("\n".join(openings[6:9]))
    shared = f"--env textenv/Text-v0 --model {assets / 'stories260k'} --prompts {tmp_path / 'prompts.txt'}"
    shared += " --reward vader"
    shared += " --max-new-tokens 6 --kl-coef 0.2 --agents rloo --seeds 0 --total-timesteps 100 --num-evals 1"
    shared += " --eval-episodes 8 --n-episodes 8 --num-workers 1 --best-of-n 4"
    shared += f" --eval-prompts {tmp_path / 'others.txt'}"
    flags = ["compare", *shared.split(), "--optimum-completions", "32", "--max-eval-prompts", "4"]
    ran = call(*flags, "--out", str(tmp_path / "run"))
    assert ran.returncode == 0, ran.stderr
    content = json.loads((tmp_path / "run/summary.json").read_text())
    report, baselines = (tmp_path / "run/report.txt").read_text(), content["baselines"]
    assert "32 completions of the reference for each of 4 prompts" in " ".join(report.split()) and "±" in report
    for own, folder, prompts in ((baselines, "initial", 4), (baselines["held_out"], "initial/held_out", 3)):
        rows = files.read_rows(tmp_path / "run" / folder / REFERENCE_FILE)
        rewards = np.array([row["reward"] for row in rows]).reshape(prompts, 32)
        estimate = exact.optimum_from_scores(rewards, 0.2)
        assert own["optimum"] == pytest.approx(estimate.objective, abs=1e-4)
        assert own["reference"] == pytest.approx(rewards.mean(), abs=1e-4)
        assert own["optimum_upper"] >= own["optimum"] > own["best_of_n"]["objective"]
    summary = json.loads((tmp_path / "run/rloo/seed-0/summary.json").read_text())
    for measured, own in ((summary, baselines), (summary["held_out"], baselines["held_out"])):
        share = normalized_objective(measured["objective"], own)
        assert measured["normalized_objective"] == pytest.approx(share)
        assert 0 < measured["normalized_objective_stderr"] < 1
    off = call("compare", *shared.replace("--kl-coef 0.2", "--kl-coef 0").split(), "--out", str(tmp_path / "zero"))
    assert off.returncode == 2 and "Add --optimum-completions 0" in off.stderr
    zero = ["--optimum-completions", "0", "--out", str(tmp_path / "zero")]
    off = call("compare", *shared.replace("--kl-coef 0.2", "--kl-coef 0").split(), *zero)
    assert off.returncode == 0 and "share of the way" not in (tmp_path / "zero/report.txt").read_text()
