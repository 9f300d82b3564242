"""The headline states no noise as a fact, and says that a run failed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from experiments.failure import FAILED, TrialFailure, read_failure
from experiments.html_report.answer import answer
from experiments.html_report.page import render
from experiments.html_report.runs import Runs, read_runs
from tests.experiments.html_report.conftest import copy_run
from tests.helpers.commands import call


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
