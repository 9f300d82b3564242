"""What is read for a page: runs that have not finished, several folders, damaged files; and the sentences."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from agents.files import DamagedFile, write_json
from experiments.errors import FlagError
from experiments.html_report import PAGE, ReportConfig, page_note, report_runs
from experiments.html_report.answer import answer, caveats, question
from experiments.html_report.page import render
from experiments.html_report.runs import NotEvaluated, Runs, read_runs
from experiments.html_report.sampled import Completion, Step, within
from tests.experiments.html_report.conftest import copy_run
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
    assert (
        asked.startswith("Which of REINFORCE and PPO gets furthest on Toy-v0 in up to 4") and "with β = 0.2?" in asked
    )
    clear = answer(with_objectives(runs, PPO=[0.5, 0.6], REINFORCE=[0.1, 0.2]))
    assert clear.startswith("PPO: it reaches J = 0.550 [0.500, 0.600]") and "0.400" in clear
    assert clear.endswith("more than REINFORCE over 2 seeds, too few to be sure.")
    close = answer(with_objectives(runs, PPO=[0.5, 0.6], REINFORCE=[0.4, 0.7]))
    assert close.startswith("Undecided: ") and "2 seeds do not tell it from" in close
    assert "with 2 of them they are too narrow" in caveats(runs)[0]
    assert "below the reference" in answer(with_objectives(runs, PPO=[-9.0, -9.0], REINFORCE=[-10.0, -10.0]))


def test_the_lead_is_never_less_than_nothing(comparison: Path, tmp_path: Path) -> None:
    """The agents are ranked by what is compared, the seeds that all have: a seed that one alone has counts for none."""
    runs = with_objectives(read_runs([comparison]), PPO=[0.5, 9.0], REINFORCE=[0.6, 0.7])
    runs.trials["REINFORCE"].pop()
    text = answer(runs)
    assert text.startswith("REINFORCE: it reaches J = 0.600") and "0.100 more than PPO over one seed, too few" in text
    runs.trials["PPO"][0].summary["objective"] = 0.6
    assert re.match(r"(PPO and REINFORCE|REINFORCE and PPO) are level over one seed: J = 0\.600", answer(runs))
    runs.trials["REINFORCE"][0].seed = 5
    assert "the agents have no seed in common" in answer(runs)


def test_beta_is_known_where_it_was_left_at_its_default(comparison: Path, tmp_path: Path) -> None:
    """And a default that is spelled out is the same task, as is one in --env-args; the number of tokens is told."""
    run = comparison / "ppo" / "seed-0"
    left = copy_run(run, tmp_path / "left", kl_coef=None)
    given = copy_run(run, tmp_path / "given", kl_coef=0.1, seed=1)
    old = json.loads((run / "config.json").read_text())["flags"]["env_args"]
    argument = copy_run(run, tmp_path / "argument", kl_coef=None, env_args=old | {"kl_coef": 0.1}, seed=2)
    assert "with β = 0.1?" in question(read_runs([left]))
    runs = read_runs([left, given, argument])
    assert [each.seed for each in runs.trials["PPO"]] == [0, 1, 2]
    with pytest.raises(FlagError, match=r"--kl-coef 0\.1 and 0\.2"):  # control
        read_runs([left, run])
    runs.all[0].summary["num_timesteps"] *= 10
    assert "The runs had 4" in caveats(runs)[1]


def test_a_run_that_has_not_finished(comparison: Path, tmp_path: Path) -> None:
    """Without a summary its last evaluation counts, and the page says so; one without evaluations is left out."""
    folder = tmp_path / "run"
    shutil.copytree(comparison, folder)
    whole = read_runs([folder]).trials["PPO"][0].summary
    (folder / "ppo/seed-0/summary.json").unlink()
    (folder / "reinforce/seed-1/metrics.jsonl").write_text("")
    runs = read_runs([folder])
    run = runs.trials["PPO"][0]
    assert "REINFORCE, seed 1 is left out: it was not evaluated yet." in runs.notes
    assert not run.finished and runs.trials["PPO"][1].finished and len(runs.trials["REINFORCE"]) == 1
    for name in ("objective", "score", "kl", "normalized_objective", "num_timesteps", "tokens_to_90", "held_out"):
        assert run.summary[name] == pytest.approx(whole[name]) if whole[name] is not None else run.summary[name] is None
    assert "PPO, seed 0 has not finished. Its numbers are of its last evaluation." in render(runs)


def test_a_run_whose_numbers_are_not_finite(comparison: Path, tmp_path: Path) -> None:
    """It is left out, and the page says why; alone it is refused with that reason, and not as not evaluated."""
    run = comparison / "ppo" / "seed-0"
    folder = copy_run(run, tmp_path / "run")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (folder / "summary.json").unlink()
    diverged = [row | ({"eval/objective": None} if "eval/objective" in row else {}) for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in diverged))
    shutil.copytree(comparison / "initial", folder / "initial")
    assert re.match("no page: .*PPO, seed 0 is left out: what was measured", page_note(folder))
    with pytest.raises(FlagError, match="of it is not finite") as refused:
        read_runs([folder])
    assert not isinstance(refused.value, NotEvaluated)
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(NotEvaluated):
        read_runs([folder])
    whole = copy_run(run, tmp_path / "whole")
    assert page_note(whole) == f"see {whole / PAGE}" and (whole / PAGE).is_file()  # control


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
    assert len(runs.trials["PPO"][0].steps) == len(runs.trials["PPO"][1].steps) - 1 and runs.frontier is None
    text = render(runs)
    assert "0.jsonl:1: entropy must have a number for each of" in text and "frontier.json" in text
    (folder / "ppo/seed-0/metrics.jsonl").write_text("[]\n[]\n")
    with pytest.raises(DamagedFile, match=r"metrics\.jsonl:1"):
        read_runs([folder])


def test_folders_that_hold_no_run_or_another_task_are_refused(comparison: Path, tmp_path: Path) -> None:
    """By the command, in a line."""
    missing = call("report", str(tmp_path))
    assert missing.returncode == 2 and "holds no run" in missing.stderr
    for name, value in (("kl_coef", 0.5), ("special_tokens_in_prompts", True), ("chat_template_kwargs", "{}")):
        other = copy_run(comparison / "ppo" / "seed-0", tmp_path / name, **{name: value})
        with pytest.raises(FlagError, match=f"one task, got runs with --{name.replace('_', '-')} "):
            read_runs([comparison, other])


def test_what_holds_no_run_says_where_the_runs_are(comparison: Path, tmp_path: Path) -> None:
    """The folder of one agent in a comparison; that of another command, which trains the same agents on its tasks."""
    with pytest.raises(FlagError, match="holds no run") as refused:
        read_runs([comparison / "ppo"])
    assert all(str(comparison / "ppo" / seed) in str(refused.value) for seed in ("seed-0", "seed-1"))
    suite = copy_run(comparison / "ppo" / "seed-0", tmp_path / "suite" / "toy" / "ppo" / "seed-0").parents[2]
    flags = json.loads((comparison / "config.json").read_text())
    flags["flags"] |= {"tasks": ["toys"]}
    write_json(suite / "config.json", {name: value for name, value in flags.items() if name != "checksum"})
    with pytest.raises(FlagError, match="is of `optimum`, which a report does not show") as refused:
        read_runs([suite])
    assert str(suite / "toy/ppo/seed-0") in str(refused.value)
    assert len(read_runs([suite / "toy/ppo/seed-0"]).all) == 1  # control: what it says to pass can be passed


def test_a_page_replaces_a_page_alone(comparison: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--out must be named as a page, and a file that is there must be one; --port is for --serve, a folder for once."""
    (tmp_path / "link").symlink_to(comparison)
    with pytest.raises(FlagError, match="a folder must be named once, got"):
        report_runs(ReportConfig([comparison, tmp_path / "link"]))
    run = copy_run(comparison / "ppo" / "seed-0", tmp_path / "run")
    metrics = (run / "metrics.jsonl").read_bytes()
    for name in ("metrics.jsonl", "prompts.txt"):
        with pytest.raises(FlagError, match=r"--out must be a file whose name ends with \.html"):
            report_runs(ReportConfig([run], out=run / name))
    with pytest.raises(FlagError, match="--port .* add --serve"):
        report_runs(ReportConfig([run], port=9000))
    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine</p>")
    with pytest.raises(FlagError, match="something else than a report"):
        report_runs(ReportConfig([run], out=mine))
    assert mine.read_text() == "<p>mine</p>" and (run / "metrics.jsonl").read_bytes() == metrics
    for _ in range(2):  # control: a new file, then a page
        report_runs(ReportConfig([run], out=tmp_path / "page.html"))
    (run / "samples" / "0.jsonl").write_text('{"a": \n')
    capsys.readouterr()
    report_runs(ReportConfig([run], out=tmp_path / "page.html"))
    assert "0.jsonl:1 must be a JSON object, got '{\"a\": '." in capsys.readouterr().err


def test_steps_within_a_size() -> None:
    """Evenly spaced, the first and the last among them; completions are dropped where two steps are too much."""
    completion = Completion("p", "c", 1.0, ["c"], False, {"entropy": [0.5]})
    steps = [Step(i, i, [completion] * 4) for i in range(9)]
    each = len(json.dumps([completion._asdict()] * 4))
    assert within(steps, 100 * each) == steps and within([], 10) == []
    assert [step.update for step in within(steps, 5 * each)] == [0, 2, 4, 6, 8]
    assert [(step.update, len(step.completions)) for step in within(steps, each)] == [(0, 1), (8, 1)]
    assert within(steps, 1) == []
