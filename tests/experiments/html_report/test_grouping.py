"""Which runs are seeds of one agent: those with the same flags; others are told apart by their names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from experiments.errors import FlagError
from experiments.html_report.runs import read_runs
from tests.experiments.html_report.conftest import copy_run
from tests.helpers.commands import call


def seeds_of(*folders: Path) -> dict[str, list[int]]:
    """The seeds of each agent on a page."""
    return {name: [run.seed for run in runs] for name, runs in read_runs(folders).trials.items()}


def test_other_flags_are_another_agent(comparison: Path, tmp_path: Path) -> None:
    """Named by the flag that differs, of the agent or of all agents; flags that change no result do not count."""
    run = comparison / "ppo" / "seed-0"
    rate = copy_run(run, tmp_path / "rate", learning_rate=1.0, seed=7)
    same = copy_run(run, tmp_path / "same", out="elsewhere", samples_per_eval=1, num_evals=9, seed=5)
    assert seeds_of(run, same) == {"PPO": [0, 5]}
    assert seeds_of(run, rate) == {"PPO (learning-rate 0.001)": [0], "PPO (learning-rate 1.0)": [7]}
    clip = copy_run(run, tmp_path / "clip", ppo={"clip_range": 0.5}, seed=3)
    assert any("ppo.clip-range 0.5" in name for name in seeds_of(run, clip))
    reinforce = comparison / "reinforce" / "seed-0"
    assert seeds_of(run, rate, reinforce).keys() >= {"REINFORCE", "PPO (learning-rate 1.0)"}


def test_the_same_seed_twice_is_told_apart_by_the_folder(comparison: Path, tmp_path: Path) -> None:
    """By the shortest end of the paths that differs, also where the last names are the same; seeds stay together."""
    folders = [tmp_path / name / "run" for name in ("a", "b")]
    for folder in folders:
        shutil.copytree(comparison, folder)
    names = [f"{agent} ({where}/run)" for where in "ab" for agent in ("REINFORCE", "PPO")]
    assert seeds_of(*folders) == {name: [0, 1] for name in names}
    trials = [folder / "ppo" / f"seed-{seed}" for folder in folders for seed in (0, 1)]
    assert seeds_of(*trials) == {"PPO (a/run)": [0, 1], "PPO (b/run)": [0, 1]}
    assert list(seeds_of(comparison, shutil.copytree(comparison, tmp_path / "again")))[-1] == "PPO (again)"
    done = call("report", *map(str, folders), "--out", str(tmp_path / "both.html"))
    assert done.returncode == 0 and "PPO (b/run)" in (tmp_path / "both.html").read_text(encoding="utf-8")


def test_a_run_is_named_once(comparison: Path, tmp_path: Path) -> None:
    """By its own path, by that of its comparison, or by a link."""
    run = comparison / "ppo" / "seed-0"
    (tmp_path / "link").symlink_to(run)
    for again in (run, comparison, tmp_path / "link"):
        with pytest.raises(FlagError, match="must be named once"):
            read_runs([run, again])
    assert seeds_of(run, comparison / "ppo" / "seed-1") == {"PPO": [0, 1]}  # control
