"""Prompts that are not trained on: how they are chosen, and that they are measured and never trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import PPO
from experiments.errors import FlagError
from experiments.evaluation import Evaluator
from experiments.held_out import split, with_eval_prompts
from experiments.metrics_file import read_metrics
from experiments.saved_run import EvaluateConfig, evaluate
from tests.helpers.commands import call, tiny
from tests.helpers.tasks import words, zero
from textenv import exact, get_mdp


def prompts(env: Any) -> list[str]:
    """The prompts of an environment."""
    return list(get_mdp(env).prompts.texts)


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(st.sampled_from(["a", "b", "c", "a b", "b a", "c c"]), min_size=1),
    fraction=st.floats(0, 1),
)
def test_a_split_keeps_equal_prompts_together(texts: list[str], fraction: float) -> None:
    """Each prompt is on one side, with its columns, in the order of the task; an empty side is refused."""
    rows = [{"prompt": text, "number": i} for i, text in enumerate(texts)]
    env = gym.make_vec("textenv/Text-v0", **words(4, reward=zero, prompts=rows))
    if not 0 < round(fraction * len(set(texts))) < len(set(texts)):
        with pytest.raises(FlagError, match="--held-out must leave at least one prompt on each side"):
            split(env, fraction)
        return
    found = split(env, fraction)
    assert found.held_out is not None and found.initial is env
    sides = [get_mdp(each).prompts for each in (found.train, found.held_out)]
    assert not set(sides[0].texts) & set(sides[1].texts)
    numbers = [side.columns["number"] for side in sides]
    assert sorted(numbers[0] + numbers[1]) == list(range(len(texts)))
    for side, own in zip(sides, numbers, strict=True):
        assert own == sorted(own) and side.texts == [texts[i] for i in own]
        assert (side.input_ids == get_mdp(env).prompts.input_ids[own]).all()
    assert len(set(sides[1].texts)) == round(fraction * len(set(texts)))
    assert prompts(split(env, fraction).held_out) == sides[1].texts  # the same again


def test_held_out_prompts_are_measured_and_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In rows, summary, table and curves of a comparison, exactly on a toy; `evaluate` gives the same numbers."""
    trained, train = set(), PPO.train

    def watched(self: Any, rollout: Any) -> Any:
        trained.update(rollout.prompts)
        return train(self, rollout)

    monkeypatch.setattr(PPO, "train", watched)
    config = tiny(
        held_out=0.34, env_args={"vocab_size": 4, "max_new_tokens": 3, "num_prompts": 3}, out=tmp_path / "run"
    )
    flags = "--env-args vocab_size 4 max_new_tokens 3 num_prompts 3 --held-out 0.34 --total-timesteps 400 --num-evals 2"
    ran = call("train", "--env", "textenv/Toy-v0", *flags.split(), "--n-episodes", "16", "--out", str(tmp_path / "run"))
    assert ran.returncode == 0, ran.stderr
    environments = config.make_environments()
    assert trained == set(prompts(environments.train)) and len(trained) == 2
    assert len(prompts(environments.held_out)) == 1
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    optimum = exact.solve(environments.held_out)
    own = summary["baselines"]["held_out"]
    assert own["optimum"] == pytest.approx(optimum.objective)
    share = optimum.normalized_objective(summary["held_out"]["objective"])
    assert summary["held_out"]["normalized_objective"] == pytest.approx(share)
    rows = [row for row in read_metrics(tmp_path / "run") if "eval/objective" in row]
    assert len(rows) == 3
    assert rows[-1]["held_out/objective"] == pytest.approx(summary["held_out"]["objective"])
    assert rows[0]["held_out/objective"] == pytest.approx(own["reference"], abs=0.02)  # the policy starts there
    assert rows[-1]["held_out/objective"] != pytest.approx(rows[-1]["eval/objective"], abs=1e-3)  # control
    evaluate(EvaluateConfig(run=tmp_path / "run"))
    measured = json.loads(capsys.readouterr().out)
    assert measured["held_out"]["objective"] == pytest.approx(summary["held_out"]["objective"], abs=1e-6)
    assert measured["held_out"]["normalized_objective"] == pytest.approx(share, abs=1e-6)
    again = ["--out", str(tmp_path / "run"), "--resume", "--accept-changes"]
    other = call(
        "train", "--env", "textenv/Toy-v0", *flags.replace("0.34", "0.7").split(), "--n-episodes", "16", *again
    )
    assert other.returncode == 2 and "held_out was 0.34 and is 0.7" in " ".join(other.stderr.split())
    assert "Policy and baselines in" in " ".join(other.stderr.split())


def test_a_comparison_shows_both(tmp_path: Path) -> None:
    """The table has columns for the prompts held out, with the reference, best of n and the optimum on them."""
    flags = "--env textenv/Toy-v0 --env-args vocab_size 4 max_new_tokens 3 num_prompts 3 --held-out 0.4 --seeds 0 1"
    more = "--agents reinforce random --total-timesteps 200 --n-episodes 16 --num-evals 1 --num-workers 1 --best-of-n 4"
    ran = call("compare", *flags.split(), *more.split(), "--out", str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    content = json.loads((tmp_path / "summary.json").read_text())
    for name in ("best of 4", "random"):
        assert content["untrained"][name]["held_out"]["objective"] != content["untrained"][name]["objective"]
    report = (tmp_path / "report.txt").read_text()
    for values in (
        content["baselines"]["held_out"]["reference"],
        content["untrained"]["best of 4"]["held_out"]["objective"],
        content["baselines"]["held_out"]["optimum"],
    ):
        assert f"{values:.3f}" in report
    assert "held out" in report


def test_prompts_of_a_file_are_measured_too(tmp_path: Path) -> None:
    """--eval-prompts: its own prompts; refused with --held-out, without a file, and for toys; equal ones are named."""
    (tmp_path / "train.txt").write_text("a b\nc\n")
    (tmp_path / "eval.txt").write_text("b a c b\nc\n")
    made = gym.make_vec("textenv/Text-v0", **words(4, reward=zero, prompts=str(tmp_path / "train.txt")))
    found = with_eval_prompts(made, str(tmp_path / "eval.txt"))
    assert prompts(found.held_out) == ["b a c b", "c"] and prompts(found.train) == ["a b", "c"]
    assert get_mdp(found.held_out).prompt_width == 4 > get_mdp(found.train).prompt_width == 2
    measured = Evaluator.for_env(found.held_out, 8).baselines()
    assert measured["optimum"] == pytest.approx(exact.solve(found.held_out).objective)
    with pytest.raises(FlagError, match="eval-prompts does not exist"):
        with_eval_prompts(made, str(tmp_path / "none.txt"))
    for flags, text in (
        ({"eval_prompts": "x", "held_out": 0.5}, "both name prompts"),
        ({"eval_prompts": str(tmp_path / "eval.txt")}, "--eval-prompts is for --env textenv/Text-v0"),
        ({"held_out": 0.01}, "--held-out must leave at least one prompt"),
    ):
        with pytest.raises(FlagError, match=text):
            tiny(**flags).make_environments()
