"""`metrics.jsonl`: rows after the checkpoint are dropped, lost ones are said and never filled, changed ones refused."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents import Diverged, files
from experiments import trial_log
from experiments.config import TrialConfig
from experiments.metrics_file import METRICS_FILE, find_gaps, kept_metrics, read_metrics
from experiments.trial import run_trial
from experiments.trial_log import TrialLog
from tests.helpers.commands import tiny


def rows_to(last: int) -> list[dict[str, Any]]:
    """Rows of updates 0 to `last`."""
    return [{"num_timesteps": 10 * i, "num_updates": i, "seconds": 0.5 * i, "x": i / 7} for i in range(last + 1)]


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes rows; returns size and checksum."""
    file = files.Rows(folder / METRICS_FILE)
    for row in rows:
        file.append(row)
    written = file.sync()
    file.close()
    return written


@given(kept=st.integers(0, 5), more=st.integers(0, 5), cut=st.integers(0, 400))
def test_the_rows_up_to_the_checkpoint_are_kept(
    kept: int, more: int, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever was appended after it, and wherever the file was cut: the whole rows before both."""
    folder = tmp_path_factory.mktemp("metrics")
    saved = {"metrics": write_rows(folder, rows_to(kept)), "num_updates": kept}
    write_rows(folder, rows_to(kept + more)[kept + 1 :])
    whole = (folder / METRICS_FILE).read_bytes()
    (folder / METRICS_FILE).write_bytes(whole[: len(whole) - cut] if cut else whole)
    found = kept_metrics(folder, saved)
    left = (folder / METRICS_FILE).read_bytes()[: saved["metrics"]["size"]]
    assert found.rows == rows_to(left.count(b"\n") - 1)[: left.count(b"\n")]
    assert found.content == left[: left.rfind(b"\n") + 1]
    missing = [[len(found.rows), kept]] if len(found.rows) <= kept else []
    assert find_gaps(found.rows, kept) == missing


def test_a_new_agent_keeps_nothing(tmp_path: Path) -> None:
    """Rows of a start that was killed before its first checkpoint."""
    write_rows(tmp_path, rows_to(3))
    assert kept_metrics(tmp_path, None) == (b"", [])


@pytest.mark.parametrize("at", [0, 10, 100, -2])
def test_changed_rows_are_refused(at: int, tmp_path: Path) -> None:
    """The error names the file and says what to do; without the file the trial goes on with a gap."""
    saved = {"metrics": write_rows(tmp_path, rows_to(4)), "num_updates": 4}
    changed = bytearray((tmp_path / METRICS_FILE).read_bytes())
    changed[at] ^= 1
    (tmp_path / METRICS_FILE).write_bytes(changed)
    with pytest.raises(files.DamagedFile, match=r"metrics\.jsonl was changed after it was written\. Restore it .* or"):
        kept_metrics(tmp_path, saved)
    (tmp_path / METRICS_FILE).unlink()
    assert find_gaps(kept_metrics(tmp_path, saved).rows, 4) == [[0, 4]]


def test_a_row_that_lost_a_metric_is_refused(tmp_path: Path) -> None:
    """The file is shorter than at the checkpoint, and no row is missing."""
    saved = {"metrics": write_rows(tmp_path, rows_to(4)), "num_updates": 4}
    rows = rows_to(4)
    rows[2].popitem()
    (tmp_path / "shorter").mkdir()
    write_rows(tmp_path / "shorter", rows)
    shutil.copy(tmp_path / "shorter" / METRICS_FILE, tmp_path / METRICS_FILE)
    with pytest.raises(files.DamagedFile, match=r"metrics\.jsonl was changed after it was written"):
        kept_metrics(tmp_path, saved)


@pytest.mark.parametrize(
    "row",
    [{}, {"num_updates": 1}, {"num_timesteps": 1, "num_updates": 1, "seconds": 1, "x": "y"}, {"num_updates": "a"}],
)
def test_rows_that_are_none_are_refused(row: dict[str, Any], tmp_path: Path) -> None:
    """JSON objects without the counts, or with something else than numbers."""
    write_rows(tmp_path, [*rows_to(1), row])
    with pytest.raises(files.DamagedFile, match=r"metrics\.jsonl:3: \w+ must be"):
        read_metrics(tmp_path)
    saved = {"metrics": {"size": 10**6, "sha256": ""}, "num_updates": 4}
    with pytest.raises(files.DamagedFile, match=r"metrics\.jsonl:3: .* remove it and resume"):
        kept_metrics(tmp_path, saved)


@given(st.sets(st.integers(0, 12)), st.integers(0, 12))
def test_gaps_are_the_updates_without_rows(known: set[int], num_updates: int) -> None:
    """Each missing update is in one gap, and no other is."""
    found = find_gaps([{"num_updates": i} for i in sorted(known)], num_updates)
    listed = [update for first, last in found for update in range(first, last + 1)]
    assert listed == [i for i in range(num_updates + 1) if i not in known]
    assert all(before[1] + 1 < after[0] for before, after in itertools.pairwise(found))


# -- in a trial --------------------------------------------------------------------------------------------------------


def often(**flags: Any) -> TrialConfig:
    """A trial with a checkpoint after each update."""
    return tiny(checkpoint_seconds=0, **flags)


def stop_at(update: int, monkeypatch: pytest.MonkeyPatch, folder: Path, initial: Path, **flags: Any) -> None:
    """Runs a trial that is stopped after the row of an update, before its checkpoint."""
    log_row = TrialLog.log_row

    def stop(self: TrialLog, row: dict[str, float]) -> None:
        log_row(self, row)
        if row["num_updates"] == update:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrialLog, "log_row", stop)
        with pytest.raises(KeyboardInterrupt):
            run_trial(often(**flags), folder, initial)


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without `seconds` and `cpu_seconds`."""
    return [{name: value for name, value in row.items() if not name.endswith("seconds")} for row in rows]


@pytest.mark.parametrize(
    ("lose", "first"),
    [(lambda path: path.unlink(), 0), (lambda path: path.write_bytes(path.read_bytes()[:900]), 1)],
    ids=["removed", "cut"],
)
def test_lost_rows_are_said_and_never_filled(
    lose: Callable[[Path], object],
    first: int,
    tmp_path: Path,
    initial: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Row 0 is not measured with the trained policy; all other rows and the result are those of the whole trial."""
    whole = run_trial(often(), tmp_path / "whole", initial)
    folder = tmp_path / "stopped"
    stop_at(6, monkeypatch, folder, initial)
    lose(folder / METRICS_FILE)
    kept = len(read_metrics(folder))
    assert kept >= first
    stop_at(8, monkeypatch, folder, initial)  # the gap is said again, and does not grow
    resumed = run_trial(often(), folder, initial)
    assert f"{METRICS_FILE} lacks the rows of updates {kept} to 5" in capsys.readouterr().err
    assert resumed["gaps"] == [[kept, 5]] and whole["gaps"] == []
    rows = without_times(read_metrics(tmp_path / "whole"))
    assert without_times(read_metrics(folder)) == rows[:kept] + rows[6:]
    same = ("objective", "kl", "num_timesteps", "num_updates", "completions")
    assert {name: resumed[name] for name in same} == {name: whole[name] for name in same}
    assert run_trial(often(), folder, initial) == resumed


def test_tokens_to_90_is_not_known_after_a_gap(tmp_path: Path, initial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """90% may have been reached in between; before the gap it is known."""
    flags = {"total_timesteps": 400, "num_evals": 100, "agent": "reinforce", "learning_rate": 1e-2, "seed": 1}
    whole = run_trial(often(**flags), tmp_path / "whole", initial)
    assert whole["tokens_to_90"] is not None
    rows = read_metrics(tmp_path / "whole")
    reached = next(row["num_updates"] for row in rows if row["num_timesteps"] >= whole["tokens_to_90"])
    for name, last in (("before", reached + 1), ("after", reached - 1)):
        folder = tmp_path / name
        stop_at(reached + 4, monkeypatch, folder, initial, **flags)
        lines = (folder / METRICS_FILE).read_bytes().splitlines(keepends=True)
        (folder / METRICS_FILE).write_bytes(b"".join(lines[: last + 1]))
        found = run_trial(often(**flags), folder, initial)["tokens_to_90"]
        assert found == (whole["tokens_to_90"] if name == "before" else None)


def test_a_finished_trial_whose_rows_are_lost_says_so(tmp_path: Path, initial: Path) -> None:
    """It is not trained again; its summary is written anew, with the gap."""
    whole = run_trial(often(), tmp_path, initial)
    weights = (tmp_path / "checkpoint" / "model.safetensors").read_bytes()
    (tmp_path / METRICS_FILE).unlink()
    again = run_trial(often(), tmp_path, initial)
    assert again["gaps"] == [[0, whole["num_updates"]]] and again["objective"] == whole["objective"]
    assert (tmp_path / "checkpoint" / "model.safetensors").read_bytes() == weights
    assert again["tokens_to_90"] is None and read_metrics(tmp_path) == []


@pytest.mark.parametrize("what", ["TensorBoard", "Weights & Biases"])
def test_an_error_before_the_first_row_costs_no_rows(
    what: str, tmp_path: Path, initial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are opened before the file of the metrics is touched."""
    flags: dict[str, Any] = {}
    if what == "Weights & Biases":
        wandb = pytest.importorskip("wandb")
        flags["wandb_project"] = "x"
    stop_at(4, monkeypatch, tmp_path, initial)
    before = (tmp_path / METRICS_FILE).read_bytes()

    def fail(*args: Any, **kwargs: Any) -> Any:
        if what == "TensorBoard":
            raise OSError(28, "No space left on device")
        raise wandb.errors.UsageError("no login")

    with monkeypatch.context() as patch:
        if what == "TensorBoard":
            patch.setattr(trial_log, "SummaryWriter", fail)
        else:
            patch.setattr("wandb.init", fail)
        message = "Could not write events" if what == "TensorBoard" else "--wandb-project x: no login"
        with pytest.raises((files.StorageError, ValueError), match=message):
            run_trial(often(**flags), tmp_path, initial)
    assert (tmp_path / METRICS_FILE).read_bytes() == before
    assert run_trial(often(), tmp_path, initial)["gaps"] == []


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_checkpoints_are_kept(keep: int, tmp_path: Path, initial: Path) -> None:
    """The newest is `checkpoint`; each is one update older than the one before."""
    summary = run_trial(often(keep_checkpoints=keep), tmp_path, initial)
    found = sorted(path.name for path in tmp_path.glob("*checkpoint*"))
    assert found == ["checkpoint", "checkpoint.1", "checkpoint.2"][:keep]
    updates = [files.verify(tmp_path / name)["num_updates"] for name in found]
    assert updates == [summary["num_updates"] - i for i in range(keep)]
    manifest = files.verify(tmp_path / "checkpoint")
    assert manifest["metrics"] == files.describe(tmp_path / METRICS_FILE)
    assert manifest["config"] == files.describe(tmp_path / "config.json")
    assert manifest["baselines"] == files.describe(initial / "baselines.json")


@pytest.mark.parametrize(("flag", "default"), [(None, 1e9), (1e9, 0.0), (0.0, 1e9)])
def test_checkpoints_are_written_as_often_as_the_flag_says(
    flag: float | None, default: float, tmp_path: Path, initial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is one at the start and one at the end; the flag replaces the default time between two."""
    monkeypatch.setattr(trial_log, "CHECKPOINT_SECONDS", default)
    last = run_trial(tiny(checkpoint_seconds=flag), tmp_path, initial)["num_updates"]
    updates = [files.verify(tmp_path / name)["num_updates"] for name in ("checkpoint", "checkpoint.1")]
    assert updates == [last, last - 1 if flag == 0.0 else 0]


def test_a_policy_that_is_not_finite_is_not_saved(
    tmp_path: Path, initial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint before stays the newest, and the trial resumes from it."""
    whole = run_trial(often(), tmp_path / "whole", initial)
    log_row = TrialLog.log_row

    def destroy(self: TrialLog, row: dict[str, float]) -> None:
        log_row(self, row)
        if row["num_updates"] == 5:
            with torch.no_grad():
                next(self.agent.policy.parameters()).fill_(torch.nan)

    with monkeypatch.context() as patch:
        patch.setattr(TrialLog, "log_row", destroy)
        with pytest.raises(Diverged):
            run_trial(often(), tmp_path / "stopped", initial)
    assert files.verify(tmp_path / "stopped" / "checkpoint")["num_updates"] == 4
    assert run_trial(often(), tmp_path / "stopped", initial)["objective"] == whole["objective"]


def test_times_continue_after_a_resume(tmp_path: Path, initial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`seconds` grows from row to row, also where the rows before were lost, and the rate is that of all updates."""
    stop_at(6, monkeypatch, tmp_path, initial)
    seconds = read_metrics(tmp_path)[5]["seconds"]
    (tmp_path / METRICS_FILE).unlink()
    summary = run_trial(often(), tmp_path, initial)
    found = [row["seconds"] for row in read_metrics(tmp_path)]
    assert found == sorted(found) and found[0] > seconds > 0
    assert summary["seconds"] == found[-1]
    assert summary["tokens_per_second"] == pytest.approx(summary["num_timesteps"] / summary["seconds"])


def test_baselines_of_another_task_are_refused(tmp_path: Path, initial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be compared with a policy that was trained on the old one."""
    own = Path(shutil.copytree(initial, tmp_path / "initial"))
    stop_at(4, monkeypatch, tmp_path / "run", own)
    baselines = files.read_json(own / "baselines.json")
    files.write_json(own / "baselines.json", baselines | {"reference": 9.0})
    with pytest.raises(files.DamagedFile, match=r"baselines\.json is not the file with which .*checkpoint was written"):
        run_trial(often(), tmp_path / "run", own)
    files.remove(own / "baselines.json")  # they are measured again, and are the same
    assert run_trial(often(), tmp_path / "run", own)["num_updates"] > 4


def test_the_rows_are_json_for_every_reader(tmp_path: Path, initial: Path) -> None:
    """No NaN, one object a line."""
    run_trial(tiny(), tmp_path, initial)

    def refuse(name: str) -> Any:
        raise AssertionError(name)

    for line in (tmp_path / METRICS_FILE).read_text().splitlines():
        assert isinstance(json.loads(line, parse_constant=refuse), dict)
