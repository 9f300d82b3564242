"""The command, its results in the repository, and the README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agents import files
from experiments.console import plain_console
from experiments.errors import FlagError, Unfinished
from experiments.launch import Failure
from experiments.lecture import (
    LectureConfig,
    clip,
    credit_variance,
    gamma_lambda,
    lecture,
    log_derivative,
    loss_directions,
    old_samples,
    other_samplers,
    reward_hacking,
    run,
    value_head,
    which_kl,
)
from experiments.lecture.memo import Memo
from experiments.lecture.run import CLAIMS, _module, _show
from experiments.opening import opened
from tests.helpers.commands import call
from tests.helpers.paths import ROOT

RESULTS = ROOT / "experiments" / "results" / "lecture"


def test_the_command_measures_prints_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each claim's table is printed and written with its numbers and figure; --resume measures only what is missing."""
    out, claims = tmp_path / "out", ["credit_seen", "which_kl"]
    process = call("lecture", "--claims", *claims, "--out", str(out))
    assert process.returncode == 0, process.stderr
    for claim in claims:
        assert (out / f"{claim}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / f"{claim}.txt").read_text().strip() in process.stdout
    written = {claim: (out / f"{claim}.json").read_text() for claim in claims}
    piece = out / "measured" / "credit_seen" / "numbers.json"
    kept = files.read_json(piece)
    next(iter(kept["value"].values()))["tokens"][0] = "THE"
    files.write_json(piece, kept)
    (out / "measured" / "which_kl" / "numbers.json").unlink()
    (out / "which_kl.json").write_text("{")
    lecture(LectureConfig(claims=claims, out=out, resume=True))
    assert "THE" in capsys.readouterr().out
    assert (out / "which_kl.json").read_text() == written["which_kl"]
    assert (out / "credit_seen.json").read_text() != written["credit_seen"]


def test_other_claims_are_refused_or_accepted(tmp_path: Path) -> None:
    """As other flags of other commands are."""
    first = LectureConfig(claims=["credit_seen"], out=tmp_path / "out")
    with opened(first, "lecture") as folder:
        (folder / "measured").mkdir()
    with pytest.raises(FlagError, match=r"claims was \['credit_seen'\] and is \['clip'\]"):
        lecture(LectureConfig(claims=["clip"], out=folder, resume=True))


def test_a_failing_claim_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are shown; the error names the claim, and how to resume."""
    failure = Failure("MemoryError: too large", "")
    shown: list[Path] = []
    monkeypatch.setattr(run, "_measure", lambda config, folder: {"clip": failure})
    monkeypatch.setattr(run, "_show", lambda module, numbers, path, console: shown.append(path))
    config = LectureConfig(claims=["clip", "credit_seen"], out=tmp_path / "out")
    with pytest.raises(Unfinished, match=r"1 of 2 claims failed\. clip: MemoryError: too large") as error:
        lecture(config)
    assert shown == [tmp_path / "out" / "credit_seen"] and "--resume" in error.value.__notes__[0]


def test_invalid_flags_are_errors(tmp_path: Path) -> None:
    """No claim or a repeated one, or a folder in use without --resume. No file is created or lost."""
    for claims in ([], ["clip", "clip"]):
        with pytest.raises(FlagError, match="--claims must"):
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
def test_the_committed_tables_come_from_the_committed_numbers(claim: str, tmp_path: Path) -> None:
    """The committed table is the one made from the committed numbers; the figure can be drawn from them."""
    numbers = json.loads((RESULTS / f"{claim}.json").read_text())
    _show(_module(claim), numbers, tmp_path / claim, plain_console(quiet=True))
    assert (tmp_path / f"{claim}.txt").read_text() == (RESULTS / f"{claim}.txt").read_text()
    assert (tmp_path / f"{claim}.png").stat().st_size > 5000 and (RESULTS / f"{claim}.png").is_file()


@pytest.mark.parametrize("claim", ["credit_seen", "which_kl", "credit_variance"])
def test_measuring_again_gives_the_committed_numbers(claim: str) -> None:
    """For claims without training, measuring again gives the committed numbers up to rounding."""
    kept = json.loads((RESULTS / f"{claim}.json").read_text())
    assert_close(json.loads(json.dumps(_module(claim).measure())), kept)


def assert_close(found: Any, kept: Any) -> None:
    """Nested dicts and lists with the same keys and, up to rounding, the same numbers."""
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
    section = (ROOT / "experiments" / "lecture" / "README.md").read_text()
    for part in (f"lecture/{claim}.png", f"lecture/{claim}.txt", f"lecture --claims {claim}"):
        assert part in section, part


@pytest.mark.slow
def test_every_claim_can_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All with small settings: numbers that JSON can hold, a table, a figure; from kept pieces the same ones."""
    small: list[tuple[Any, str, Any]] = [
        (log_derivative, "SAMPLES", (8, 64)),
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
        (loss_directions, "LOSSES", {name: loss_directions.LOSSES[name] for name in ("RLOO", "GRPO")}),
        (other_samplers, "CORRECTIONS", {"none": {}, "sequence": other_samplers.CORRECTIONS["sequence"]}),
    ]
    for module, name, value in small:
        monkeypatch.setattr(module, name, value)
    for claim in CLAIMS:
        module = _module(claim)
        memo = Memo(tmp_path / "measured" / claim)
        numbers = json.loads(json.dumps(module.measure(memo)))
        for piece in list(memo.folder.glob("*.json"))[::2]:  # as if it was stopped before these
            piece.unlink()
        assert json.loads(json.dumps(module.measure(memo))) == numbers
        _show(module, numbers, tmp_path / claim, plain_console(quiet=True))
        assert (tmp_path / f"{claim}.txt").stat().st_size > 300
