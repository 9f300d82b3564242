"""What is read for a page: runs that have not finished, several folders, damaged files; and the sentences."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from agents.files import DamagedFile
from experiments.errors import FlagError
from experiments.html_report.answer import answer, caveats, question
from experiments.html_report.page import render
from experiments.html_report.runs import Runs, read_runs
from experiments.html_report.sampled import Completion, Step, within
from tests.helpers.commands import call


def with_objectives(runs: Runs, **objectives: list[float]) -> Runs:
    """The runs, with other objectives."""
    for name, values in objectives.items():
        for run, value in zip(runs.trials[name], values, strict=True):
            run.summary["objective"] = value
    return runs


def test_the_question_and_the_answer(comparison: Path) -> None:
    """Who is first, by how much, and how sure that is."""
    runs = read_runs([comparison])
    asked = question(runs)
    assert asked.startswith("Which of REINFORCE and PPO gets furthest on Toy-v0 in 4") and "with β = 0.2?" in asked
    clear = answer(with_objectives(runs, ppo=[0.5, 0.6], reinforce=[0.1, 0.2]))
    assert clear.startswith("PPO: it reaches J = 0.550 [0.500, 0.600]") and "0.400" in clear
    assert clear.endswith("more than REINFORCE, seed by seed.")
    close = answer(with_objectives(runs, ppo=[0.5, 0.6], reinforce=[0.4, 0.7]))
    assert "2 seeds do not tell it from" in close
    assert "with 2 of them they are too narrow" in caveats(runs)[0]
    assert "below the reference" in answer(with_objectives(runs, ppo=[-9.0, -9.0], reinforce=[-10.0, -10.0]))


def test_a_run_that_has_not_finished(comparison: Path, tmp_path: Path) -> None:
    """Without a summary its last evaluation counts, and the page says so; one without evaluations is left out."""
    folder = tmp_path / "run"
    shutil.copytree(comparison, folder)
    whole = read_runs([folder]).trials["ppo"][0].summary
    (folder / "ppo/seed-0/summary.json").unlink()
    (folder / "reinforce/seed-1/metrics.jsonl").write_text("")
    runs = read_runs([folder])
    run = runs.trials["ppo"][0]
    assert not run.finished and runs.trials["ppo"][1].finished and len(runs.trials["reinforce"]) == 1
    for name in ("objective", "score", "kl", "normalized_objective", "num_timesteps", "tokens_to_90", "held_out"):
        assert run.summary[name] == pytest.approx(whole[name]) if whole[name] is not None else run.summary[name] is None
    assert "ppo, seed 0 has not finished: its numbers are of its last evaluation." in render(runs)


def test_damaged_files_that_only_the_page_needs_are_told(comparison: Path, tmp_path: Path) -> None:
    """Samples and the frontier; metrics and flags are refused."""
    folder = tmp_path / "run"
    shutil.copytree(comparison, folder)
    samples = folder / "ppo/seed-0/samples"
    first = json.loads((samples / "0.jsonl").read_text().splitlines()[0])
    (samples / "0.jsonl").write_text(json.dumps(first | {"entropy": [1.0]}) + "\n")
    (samples / "other.jsonl").write_text("not ours")
    (folder / "initial/frontier.json").write_text("{}")
    runs = read_runs([folder])
    assert len(runs.trials["ppo"][0].steps) == len(runs.trials["ppo"][1].steps) - 1 and runs.frontier is None
    text = render(runs)
    assert "0.jsonl:1: entropy must have a number for each of" in text and "frontier.json" in text
    (folder / "ppo/seed-0/metrics.jsonl").write_text("[]\n[]\n")
    with pytest.raises(DamagedFile, match=r"metrics\.jsonl:1"):
        read_runs([folder])


def test_folders_that_hold_no_run_or_another_task_are_refused(comparison: Path, tmp_path: Path) -> None:
    """By the command, in a line."""
    missing = call("report", str(tmp_path))
    assert missing.returncode == 2 and "holds no run" in missing.stderr
    other = tmp_path / "other"
    shutil.copytree(comparison / "ppo" / "seed-0", other)
    content = json.loads((other / "config.json").read_text())
    from agents.files import write_json

    content["flags"]["kl_coef"] = 0.5
    write_json(other / "config.json", {name: value for name, value in content.items() if name != "checksum"})
    with pytest.raises(FlagError, match=r"--kl-coef 0\.2 and 0\.5"):
        read_runs([comparison, other])


def test_runs_of_several_folders_are_told_apart(comparison: Path, tmp_path: Path) -> None:
    """The same agent and seed twice: the agents' names get that of the folder. The command writes where --out says."""
    again = tmp_path / "again"
    shutil.copytree(comparison, again)
    done = call("report", str(comparison), str(again), "--out", str(tmp_path / "both.html"))
    assert done.returncode == 0 and (tmp_path / "both.html").is_file() and "both.html" in done.stdout
    assert list(read_runs([comparison, again]).trials) == [
        "reinforce (run)",
        "ppo (run)",
        "reinforce (again)",
        "ppo (again)",
    ]


def test_steps_within_a_size() -> None:
    """Evenly spaced, the first and the last among them; completions are dropped where two steps are too much."""
    completion = Completion("p", "c", 1.0, ["c"], {"entropy": [0.5]})
    steps = [Step(i, i, [completion] * 4) for i in range(9)]
    each = len(json.dumps([completion._asdict()] * 4))
    assert within(steps, 100 * each) == steps and within([], 10) == []
    assert [step.update for step in within(steps, 5 * each)] == [0, 2, 4, 6, 8]
    assert [(step.update, len(step.completions)) for step in within(steps, each)] == [(0, 1), (8, 1)]
    assert within(steps, 1) == []
