"""`compare` from the command line, and its invalid flags."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.compare import CompareConfig
from experiments.errors import FlagError
from tests.helpers.commands import command

needs_no_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")


def test_compare_from_the_command_line(tmp_path: Path) -> None:
    """Agents x seeds in workers: table, curves, samples; with --resume it only reports; changed flags are refused."""
    out = tmp_path / "out"
    flags = ["--env", "textenv/Toy-v0", "--env-args", "vocab_size", "3", "max_new_tokens", "2", "num_prompts", "1"]
    flags += ["--agents", "reinforce", "ppo", "--seeds", "0", "1", "--total-timesteps", "200", "--out", str(out)]
    done = command("compare", *flags)
    assert done.returncode == 0, done.stderr
    assert "optimum" in done.stdout and "reinforce - ppo" in done.stdout
    assert "best of 16" in done.stdout and "tokens to 90%" in done.stdout and "random" not in done.stdout
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((out / "summary.json").read_text())
    trials = [json.loads((out / "ppo" / f"seed-{seed}" / "summary.json").read_text()) for seed in (0, 1)]
    assert content["agents"]["ppo"]["objective"]["value"] == pytest.approx(
        np.mean([trial["objective"] for trial in trials])
    )
    assert trials[0]["objective"] != trials[1]["objective"]

    again = command("compare", *flags)
    assert again.returncode == 2 and "add --resume" in again.stderr
    assert command("compare", *flags, "--resume").returncode == 0
    other = command("compare", *flags, "--resume", "--learning-rate", "0.5")
    assert other.returncode == 2 and "learning_rate" in other.stderr

    run = str(out / "ppo" / "seed-0")
    measured = command("evaluate", "--run", run)
    assert json.loads(measured.stdout)["objective"] == pytest.approx(trials[0]["objective"], abs=1e-6)
    sampled = command("sample", "--run", run, "--num", "2")
    assert sampled.returncode == 0 and sampled.stdout.count("a -> ") == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "at least 1, got 0"),
        (["--agents", "random", "best-of-n"], "one of --agents that is trained"),
        (["--best-of-n", "0"], "--best-of-n must be at least 1"),
        (["--agents", "sb3-ppo", "--sb3-ppo.n-steps", "0"], "n_steps"),
        (["--seeds", "1", "1"], "must differ"),
        (["--ppo.batch-size", "-1"], "batch_size"),
        (["--ppo.gae-lambda", "7"], "gae_lambda"),
    ],
)
def test_invalid_settings_leave_no_folder(flags: list[str], message: str, tmp_path: Path) -> None:
    """The error is one line with status 2 and without a traceback; no folder blocks the next run."""
    tokens = "100" if flags else "0"
    toy = ["--env", "textenv/Toy-v0", "--env-args", "vocab_size", "3", "max_new_tokens", "2"]
    done = command("compare", *toy, "--total-timesteps", tokens, *flags, "--out", str(tmp_path / "out"))
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@needs_no_ray
def test_ray_that_is_not_installed_is_named() -> None:
    """The error names what to install, before anything runs."""
    with pytest.raises(FlagError, match=r'--launcher ray needs Ray: pip install -e "\.\[ray\]"'):
        CompareConfig(launcher="ray")
