"""A damaged file of a run is named in an error of ours, or passed over for an older whole state."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agents.files import remove
from tests.helpers import faults
from tests.helpers.faults import Fault
from tests.helpers.storage import DAMAGES
from tests.helpers.toy_run import TRAIN, fit_nothing

# what nothing reads in a run that has finished: it is left as it is
NOT_READ = ("samples.jsonl", "tree.json", "checkpoint.1")
SAMPLES = "samples"  # what no run reads: samples of updates that are not repeated are left as they are


class Runs(NamedTuple):
    """Folders of a run: one that has finished, and one that was killed after two checkpoints of three."""

    finished: Path
    interrupted: Path
    state: dict[str, Any]
    objective: float


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Both, the state of the finished one, and what `evaluate` prints of it."""
    folder = tmp_path_factory.mktemp("runs")
    ended = faults.run(TRAIN, folder / "finished", before=fit_nothing)
    assert ended.code == 0, ended.output
    appended = [at for at, operation in enumerate(ended.operations) if operation.name == "append to"]
    killed = faults.run(TRAIN, folder / "interrupted", Fault(appended[-1], "kill_half"), fit_nothing)
    assert killed.code == -9 and (folder / "interrupted" / "run" / "checkpoint.1").is_dir()
    state = faults.final_state(folder / "finished" / "run")
    return Runs(folder / "finished", folder / "interrupted", state, state["summary.json"]["objective"])


def replace_by_a_file(path: Path) -> None:
    """Puts a file in the place of a folder."""
    remove(path)
    path.write_text("", encoding="utf-8")


def damages(folder: Path) -> Iterator[tuple[str, str, Callable[[Path], object]]]:
    """Every file and folder of a run by its relative path, with each damage."""
    for path in sorted(folder.rglob("*")):
        of_folder = {"removed": remove, "a file": replace_by_a_file}
        for damage, change in (of_folder if path.is_dir() else DAMAGES).items():
            yield path.relative_to(folder).as_posix(), damage, change


def check_resumed(name: str, damage: str, folder: Path, runs: Runs, finished: bool) -> None:
    """`train --resume` refuses the folder and names the file; or it leaves what the undisturbed run leaves."""
    where = f"{name} {damage}"
    ended = faults.run(TRAIN, folder, before=fit_nothing)
    assert "Traceback" not in ended.output, f"{where}: {ended.output}"
    if ended.code:
        assert ended.code in (1, 2) and "error: " in ended.output and name in ended.output, f"{where}: {ended.output}"
        return
    found = faults.final_state(folder / "run")
    different = faults.differences(found, runs.state)
    if name == "metrics.jsonl" and "metrics.jsonl" in different:
        assert "metrics.jsonl lacks the rows of updates" in ended.output, f"{where}: {ended.output}"
        assert found["summary.json"]["gaps"], where
        kept = [row for row in runs.state["metrics.jsonl"] if row in found["metrics.jsonl"]]
        assert kept == found["metrics.jsonl"], where
        assert set(different) == {"metrics.jsonl", "summary.json"}, where
    else:
        top = name.split("/")[0]
        left_alone = top == SAMPLES or (finished and top in NOT_READ)
        wrong = [each for each in different if not (left_alone and f"{each}/".startswith(f"{name}/"))]
        assert wrong == [], f"{where}: {ended.output}"


def check_evaluated(name: str, damage: str, folder: Path, runs: Runs) -> None:
    """`evaluate` names the file; or it measures the undisturbed policy, or an older one and says so."""
    where = f"{name} {damage}"
    ended = faults.run(["evaluate", "--run", "run"], folder, before=fit_nothing)
    assert "Traceback" not in ended.output, f"{where}: {ended.output}"
    if ended.code:
        assert ended.code in (1, 2) and "error: " in ended.output, f"{where}: {ended.output}"
        assert name in ended.output or "holds no checkpoint" in ended.output, f"{where}: {ended.output}"
        return
    measured = json.loads(ended.output[ended.output.index("{\n") : ended.output.rindex("}\n") + 1])["objective"]
    assert measured == pytest.approx(runs.objective, abs=1e-9) or "is read instead" in ended.output, where


def check(which: str, name: str, damage: str, change: Callable[[Path], object], runs: Runs, tmp_path: Path) -> None:
    """Damages a copy of a run, and resumes it; evaluates it first if it has finished."""
    folder = Path(shutil.copytree(getattr(runs, which), tmp_path / "copy", symlinks=True))
    change(folder / "run" / name)
    if which == "finished":
        check_evaluated(name, damage, folder, runs)
    check_resumed(name, damage, folder, runs, which == "finished")
    shutil.rmtree(folder)


def test_an_undamaged_run_is_resumed_and_evaluated(runs: Runs, tmp_path: Path) -> None:
    """Control: without a damage both commands succeed, and silently."""
    for which in ("finished", "interrupted"):
        check(which, "nothing", "undamaged", lambda path: None, runs, tmp_path)


@pytest.mark.parametrize("which", ["finished", "interrupted"])
def test_some_damages(which: str, runs: Runs, tmp_path: Path) -> None:
    """Of every other file of the run one damage, another for each."""
    cases = list(damages(getattr(runs, which) / "run"))
    names = list(dict.fromkeys(name for name, _, _ in cases))
    assert len(names) > 20
    for number, each in enumerate(names[which == "finished" :: 2]):
        own = [case for case in cases if case[0] == each]
        check(which, *own[number % len(own)], runs, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [*DAMAGES, "a file"])
@pytest.mark.parametrize("which", ["finished", "interrupted"])
def test_every_damage(which: str, damage: str, runs: Runs, tmp_path: Path) -> None:
    """Every file and folder."""
    cases = [case for case in damages(getattr(runs, which) / "run") if case[1] == damage]
    assert len(cases) > 2
    for case in cases:
        check(which, *case, runs, tmp_path)
