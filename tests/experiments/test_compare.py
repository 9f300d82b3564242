"""`compare` from the command line, and its invalid flags."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.compare import CompareConfig, compare
from experiments.errors import FlagError, Unfinished
from tests.helpers.commands import TRIAL, call
from tests.helpers.paths import ROOT

needs_no_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")


def test_compare_from_the_command_line(tmp_path: Path) -> None:
    """Agents x seeds in workers: table, curves, samples; with --resume it only reports; changed flags are refused."""
    out = tmp_path / "out"
    flags = ["--env", "textenv/Toy-v0", "--env-args", "vocab_size", "3", "max_new_tokens", "2", "num_prompts", "1"]
    flags += ["--agents", "reinforce", "ppo", "--seeds", "0", "1", "--total-timesteps", "200", "--out", str(out)]
    done = call("compare", *flags)
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

    again = call("compare", *flags)
    assert again.returncode == 2 and "add --resume" in again.stderr
    assert call("compare", *flags, "--resume").returncode == 0
    other = call("compare", *flags, "--resume", "--learning-rate", "0.5")
    assert other.returncode == 2 and "learning_rate" in other.stderr

    run = str(out / "ppo" / "seed-0")
    measured = call("evaluate", "--run", run)
    assert json.loads(measured.stdout)["objective"] == pytest.approx(trials[0]["objective"], abs=1e-6)
    sampled = call("sample", "--run", run, "--num", "2")
    assert sampled.returncode == 0 and sampled.stdout.count("a -> ") == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "at least 1, got 0"),
        (["--agents", "random", "best-of-n"], "one of --agents that is trained"),
        (["--best-of-n", "0"], "--best-of-n must be at least 1"),
        (["--agents", "sb3-ppo", "--sb3-ppo.n-steps", "0"], "--sb3-ppo.n-steps must be at least 1, got 0"),
        (["--seeds", "1", "1"], "must differ"),
        (["--ppo.batch-size", "-1"], "--ppo.batch-size must be at least 1, got -1"),
        (["--ppo.gae-lambda", "7"], "--ppo.gae-lambda must be at most 1, got 7"),
    ],
)
def test_invalid_settings_leave_no_folder(flags: list[str], message: str, tmp_path: Path) -> None:
    """The error is one line with status 2 and without a traceback; no folder blocks the next run."""
    tokens = "100" if flags else "0"
    toy = ["--env", "textenv/Toy-v0", "--env-args", "vocab_size", "3", "max_new_tokens", "2"]
    done = call("compare", *toy, "--total-timesteps", tokens, *flags, "--out", str(tmp_path / "out"))
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


# A task whose reward fails after the first update of two trials, which it finds on the stack of calls.
FAULTY = """
import os, sys
import gymnasium as gym
from tests.helpers.tasks import letter_values, mdp

gym.register("Faulty-v0", "textenv.env:make", vector_entry_point="textenv.vector:make_vec",
             kwargs={"task": "faulty:task"}, disable_env_checker=True)

def task(**arguments):
    return mdp(reward=reward, **arguments)

def reward(prompts, completions, completion_ids, **columns):
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_name != "run_trial":
        frame = frame.f_back
    if frame is not None and not os.path.exists(ALLOWED):
        config, agent = frame.f_locals["config"], frame.f_locals.get("agent")
        if agent is not None and agent.num_updates > 0 and (config.agent, config.seed) == ("grpo", 1):
            raise RuntimeError("no score today")
        if agent is not None and agent.num_updates > 0 and (config.agent, config.seed) == ("reinforce", 2):
            os.kill(os.getpid(), 9)
    return letter_values(prompts, completions, completion_ids)
"""


@pytest.mark.slow
def test_a_failing_trial_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error and a killed worker: the rest is reported, both are listed; --resume runs these two alone."""
    out = tmp_path / "out"
    (tmp_path / "faulty.py").write_text(FAULTY.replace("ALLOWED", repr(str(tmp_path / "allowed"))))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "faulty", raising=False)
    config: dict[str, Any] = TRIAL | {"env": "faulty:Faulty-v0", "env_args": {}, "out": out, "num_workers": 2}
    config |= {"agents": ["grpo", "reinforce"], "seeds": [0, 1, 2]}
    with pytest.raises(Unfinished) as error:
        compare(CompareConfig(**config))
    assert str(error.value).startswith("2 of 6 trials failed. ")
    assert "grpo seed 1: " in str(error.value) and "no score today" in str(error.value)
    assert "reinforce seed 2: its worker was killed by SIGKILL" in str(error.value)
    (note,) = error.value.__notes__
    assert f"--out {out} --resume" in note
    assert "no score today" in (out / "grpo" / "seed-1" / "error.txt").read_text()
    assert "over 2 seeds" in capsys.readouterr().out
    report = json.loads((out / "summary.json").read_text())
    both = [json.loads((out / agent / "seed-0" / "summary.json").read_text()) for agent in ("grpo", "reinforce")]
    difference = report["paired_differences"]["grpo - reinforce"]["value"]
    assert difference == pytest.approx(both[0]["objective"] - both[1]["objective"])  # the one seed that both finished
    finished = {path: path.read_bytes() for path in out.glob("*/seed-*/summary.json")}
    assert len(finished) == 4

    (tmp_path / "allowed").touch()
    compare(CompareConfig(**config, resume=True))
    assert len(list(out.glob("*/seed-*/summary.json"))) == 6
    assert all(path.read_bytes() == content for path, content in finished.items())
    assert not (out / "grpo" / "seed-1" / "error.txt").exists()
    assert "over 3 seeds" in capsys.readouterr().out


@needs_no_ray
def test_ray_that_is_not_installed_is_named() -> None:
    """The error names what to install, before anything runs."""
    with pytest.raises(FlagError, match=r'--launcher ray needs Ray: pip install -e "\.\[ray\]"'):
        CompareConfig(launcher="ray")
