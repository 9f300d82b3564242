"""The headline states no noise as a fact, and says that a run failed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import pytest

from agents import find_saved
from agents.policy import TransformerPolicy
from experiments.failure import FAILED, TrialFailure, read_failure
from experiments.html_report.answer import answer, caveats
from experiments.html_report.figures import curve_panels
from experiments.html_report.page import render
from experiments.html_report.runs import Runs, read_runs
from tests.experiments.html_report.conftest import copy_run
from tests.helpers.commands import call
from textenv import exact


def with_errors(runs: Runs, stderr: float, effective: float, **objectives: list[float]) -> Runs:
    """The runs as on a language model: J by name and seed, measured with a standard error, and an estimated optimum."""
    measured = {"reference": 0.1, "optimum": 1.1, "reference_stderr": stderr, "optimum_stderr": 0.01}
    more = {"optimum_covariance": 0.0, "least_effective_sample_size": effective}
    trials = {}
    for name, values in objectives.items():
        known = [{"objective": value, "objective_stderr": stderr} for value in values]
        run = runs.trials[name][0]
        trials[name] = [replace(run, seed=i, summary=run.summary | each) for i, each in enumerate(known)]
    return replace(runs, trials=trials, baselines=runs.baselines | measured | more)


def test_what_evaluations_do_not_tell_is_no_fact(comparison: Path) -> None:
    """J within two standard errors of the reference, or of another agent, is neither below it nor ahead."""
    runs = read_runs([comparison])
    noise, sure = (answer(with_errors(runs, stderr, 99.0, PPO=[0.05, 0.05])) for stderr in (0.05, 0.01))
    assert "0.050 [0.050, 0.050], which its evaluations do not tell from the reference (0.100)" in noise
    assert "below" not in noise and "below the reference (0.100)" in sure  # control: a smaller error
    seeds = answer(with_errors(runs, 0.0, 99.0, PPO=[0.0, 0.21]))
    assert "which its seeds do not tell from the reference" in seeds
    noise, sure = (
        answer(with_errors(runs, stderr, 99.0, PPO=[0.6] * 5, REINFORCE=[0.5] * 5)) for stderr in (0.05, 0.01)
    )
    assert noise.startswith("Undecided: PPO reaches") and "the evaluations do not tell it from REINFORCE" in noise
    assert sure.startswith("PPO: it reaches") and sure.endswith("more than REINFORCE over 5 seeds.")  # control


def test_a_share_has_its_error_and_what_decides_it(comparison: Path) -> None:
    """Of an estimated optimum; of an exact one it has none."""
    runs = read_runs([comparison])
    few, many = (answer(with_errors(runs, 0.03, effective, PPO=[0.6, 0.6])) for effective in (2.3, 200.0))
    assert "at most about 50% ± 3 of the way" in few and "1.100 or more: 2.3 effective completions decide" in few
    assert ", 50% ± 3 of the way" in many and "effective" not in many  # control
    assert "±" not in answer(runs)


def test_equal_runs_have_no_winner(comparison: Path) -> None:
    """Nor is what is shown as the same number below it."""
    runs = read_runs([comparison])
    same = answer(with_errors(runs, 0.0, 99.0, PPO=[0.5, 0.6], REINFORCE=[0.5, 0.60004]))
    assert " are level over 2 seeds: J = 0.550" in same and "more than" not in same and ": it" not in same
    assert "as much as the reference (0.100)" in answer(with_errors(runs, 0.0, 99.0, PPO=[0.0999, 0.0999]))
    assert "below the reference (0.100)" in answer(with_errors(runs, 0.0, 99.0, PPO=[0.099, 0.099]))  # control


def test_a_run_that_diverged_says_so(tmp_path: Path) -> None:
    """In its folder, in the headline and in a note of the page that the command has written; resumed, no more."""
    flags = "--env textenv/Toy-v0 --env-args vocab_size 3 max_new_tokens 3 --n-episodes 16 --num-evals 3"
    more = f"--agent rloo --total-timesteps 200 --out {tmp_path / 'run'}"
    done = call("train", *flags.split(), *more.split(), "--learning-rate", "1e9")
    assert done.returncode == 1 and "has diverged in update" in done.stderr
    failure = read_failure(tmp_path / "run")
    assert failure is not None and failure.diverged and failure.text in done.stderr.replace("\n", " ")
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert f"RLOO, seed 0 {failure.event}. RLOO had reached J" in text and "has diverged in update" in text
    assert TrialFailure(1, False, "").event == "failed after 1 update"
    resumed = call("train", *flags.split(), *more.split(), "--learning-rate", "1e-3", "--resume", "--accept-changes")
    assert resumed.returncode == 0 and not (tmp_path / "run" / FAILED).exists()  # control
    assert "diverged" not in answer(read_runs([tmp_path / "run"]))


def test_a_damaged_failure_is_a_note(comparison: Path, tmp_path: Path) -> None:
    """The rest of the page stays; of a run that has finished it is not read."""
    run = copy_run(comparison / "ppo" / "seed-0", tmp_path / "run")
    shutil.copytree(comparison / "initial", run / "initial")
    (run / FAILED).write_text(json.dumps({"num_updates": "3"}))
    assert FAILED not in render(read_runs([run]))
    (run / "summary.json").unlink()
    text = render(read_runs([run]))  # control
    assert FAILED in text and "PPO, seed 0 has not finished. Its numbers" in text


def test_with_an_adapted_beta_all_that_is_exact_is_of_the_task(comparison: Path, tmp_path: Path) -> None:
    """J, V and J* - J are those of the trained policy at the task's beta; the page says so, and has beta's curve."""
    task, beta, out = {"vocab_size": 3, "max_new_tokens": 3, "num_prompts": 2}, 0.2, tmp_path / "run"
    arguments = [str(each) for pair in task.items() for each in pair]
    flags = f"--env textenv/Toy-v0 --agent ppo --kl-coef {beta} --total-timesteps 400 --num-evals 2 --n-episodes 16"
    more = f"--ppo.kl-target 0.01 --ppo.kl-horizon 16 --learning-rate 0.01 --out {out}"
    assert call("train", *flags.split(), *more.split(), "--env-args", *arguments).returncode == 0
    runs = read_runs([out])
    run, policy = runs.all[0], TransformerPolicy.from_pretrained(find_saved(out / "checkpoint", "agent.json"))
    known, other = (
        exact.evaluate(gym.make("textenv/Toy-v0", kl_coef=each, **task), policy)
        for each in (beta, run.rows[-1]["objective/kl_coef"])
    )
    assert run.summary["objective"] == pytest.approx(known.objective, abs=1e-5)
    first = run.steps[-1].completions[0]
    root = known.tree.state_index(first.prompt)
    assert first.columns["exact_value"][0] == pytest.approx(known.values[root], abs=1e-4)
    assert abs(other.values[root] - known.values[root]) > 1e-3  # control: at the beta of the agent
    assert run.tree is not None and run.tree["gap"] == pytest.approx(
        exact.solve(known.tree).objective - known.objective, abs=1e-5
    )
    (note,) = [text for text in caveats(runs) if text.startswith("PPO trains with")]
    assert "a β that is adapted to a KL of 0.01 nats, and its V and advantage are of that. J, " in note
    assert note.endswith("have the task's β = 0.2 and no discount.")
    assert "β" in [panel.title for panel in curve_panels(runs)]
    usual = read_runs([comparison])  # control
    assert not any("trains with" in text for text in caveats(usual)) and "β" not in [
        x.title for x in curve_panels(usual)
    ]


def test_other_rewards_of_an_agent_are_told(comparison: Path, tmp_path: Path) -> None:
    """Each setting that makes them; one without V has learned none."""
    for agent, settings, expected in (
        ("ppo", {"kl_in": "loss"}, "PPO trains with the KL in its loss, and its V"),
        ("ppo", {"gamma": 0.9, "kl_in": "loss"}, "PPO trains with the KL in its loss and gamma = 0.9, and its V"),
        ("reinforce", {"kl_target": 0.5}, "REINFORCE trains with a β that is adapted to a KL of 0.5 nats. J, the"),
        ("reinforce", {"kl_coef": 0.2}, ""),  # the task's
        ("reinforce", {"kl_coef": 0.3}, "REINFORCE trains with β = 0.3. J, the reward with its terms"),
    ):
        own = json.loads((comparison / agent / "seed-0" / "config.json").read_text())["flags"][agent] | settings
        run = copy_run(comparison / agent / "seed-0", tmp_path / f"{agent}-{len(expected)}", **{agent: own})
        shutil.copytree(comparison / "initial", run / "initial")
        found = [text for text in caveats(read_runs([run])) if "trains with" in text]
        assert len(found) == bool(expected) and all(text.startswith(expected) for text in found)
