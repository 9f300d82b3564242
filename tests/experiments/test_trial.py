"""Trials: the output folder, resuming, and the flags that change training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from agents.files import read_json
from agents.policy import TransformerPolicy
from experiments.agent_classes import AGENTS
from experiments.checkpoints import newest_checkpoint
from experiments.errors import FlagError
from experiments.metrics_file import read_metrics
from experiments.run_folder import read_config
from experiments.summary import read_summary
from experiments.trial import _agent, initial_policy, run_trial
from experiments.trial_log import TrialLog
from tests.helpers.commands import stories_flags, tiny
from textenv import exact

WEIGHTS = "checkpoint/model.safetensors"


@pytest.mark.parametrize("agent", sorted(name for name in AGENTS if not name.startswith("trl-")))  # they need a model
def test_a_trial_writes_its_folder(agent: str, tmp_path: Path, initial: Path) -> None:
    """The folder holds flags, versions, a row per update, events, checkpoint, samples and the summary."""
    reported: list[int] = []
    config = tiny(agent=agent)
    summary = run_trial(config, tmp_path, initial, reported.append)
    rows = read_metrics(tmp_path)
    assert len(rows) == summary["num_updates"] + 1  # and one before training
    assert sum(reported) == summary["num_timesteps"] == rows[-1]["num_timesteps"] >= 400
    assert sum("eval/objective" in row for row in rows) == config.num_evals + 1
    assert read_config(tmp_path) == config
    assert {"torch", "gymnasium"} <= set(json.loads((tmp_path / "config.json").read_text())["versions"])
    assert list(tmp_path.glob("events.out.tfevents*"))
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 1
    saved = TransformerPolicy.from_pretrained(tmp_path / "checkpoint")
    assert exact.evaluate(config.make_env(), saved).objective == pytest.approx(summary["objective"], abs=1e-6)
    assert read_summary(tmp_path) == summary


@pytest.mark.parametrize("agent", ["ppo", "sb3-a2c"])
def test_accepted_flags_take_effect(agent: str, tmp_path: Path, initial: Path) -> None:
    """More tokens, and other settings of the agent; the rows that were there stay."""
    first = run_trial(tiny(agent=agent, total_timesteps=150), tmp_path, initial)
    assert read_json(tmp_path / "config.json")["flags"]["learning_rate"] == 0.001  # the default, as it was resolved
    rows = read_metrics(tmp_path)
    for rate in (0.001, 0.05):  # the same, and another one
        config = tiny(agent=agent, total_timesteps=300, learning_rate=rate)
        folder = shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-{rate}"))
        again = run_trial(config, folder, initial)
        assert again["num_timesteps"] >= 300 > first["num_timesteps"]
        assert read_metrics(folder)[: len(rows)] == rows
        assert read_json(folder / "checkpoint" / "agent.json")["settings"]["learning_rate"] == rate
    small, large = (load_file(tmp_path.with_name(f"{tmp_path.name}-{rate}") / WEIGHTS) for rate in (0.001, 0.05))
    before = load_file(tmp_path / WEIGHTS)
    moved = [sum(float((new[n] - old).abs().sum()) for n, old in before.items()) for new in (small, large)]
    assert 0 < 5 * moved[0] < moved[1]


def test_a_finished_trial_says_that_nothing_is_trained(
    tmp_path: Path, initial: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where changes were accepted; control: without them nothing is printed."""
    first = run_trial(tiny(), tmp_path, initial)
    capsys.readouterr()
    assert run_trial(tiny(), tmp_path, initial) == first and capsys.readouterr().err == ""
    assert run_trial(tiny(learning_rate=0.5, accept_changes=True), tmp_path, initial) == first
    assert "the trial has finished: nothing is trained" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings", [{}, {"optimizer": "tests.helpers.optimizers:momentum", "lr_schedule": "linear", "lr_warmup": 3}]
)
def test_an_interrupted_trial_resumes_where_it_stopped(
    tmp_path: Path, initial: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """Stopped some updates after a checkpoint, then run again: the same rows and the same result as without a stop."""
    config = tiny(settings={"ppo": settings})
    whole = run_trial(config, tmp_path / "whole", initial)
    log_row = TrialLog.log_row

    def stop(self: TrialLog, row: dict[str, float]) -> None:
        log_row(self, row)
        if row["num_updates"] == 5:
            self.checkpoint()
        if row["num_updates"] == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrialLog, "log_row", stop)
        with pytest.raises(KeyboardInterrupt):
            run_trial(config, tmp_path / "stopped", initial)
    assert not (tmp_path / "stopped" / "summary.json").exists()
    resumed = run_trial(config, tmp_path / "stopped", initial)
    timeless = ("seconds", "cpu_seconds", "tokens_per_second")
    assert {k: v for k, v in resumed.items() if k not in timeless} == {
        k: v for k, v in whole.items() if k not in timeless
    }
    before, after = (read_metrics(tmp_path / name) for name in ("whole", "stopped"))
    for row in (*before, *after):
        del row["seconds"], row["cpu_seconds"]
    assert before == after


def test_a_gold_reward_does_not_change_training(tmp_path: Path, assets: Path) -> None:
    """--gold-reward is measured and does not change the trained weights; other tasks refuse the flag."""
    flags = stories_flags(assets, tmp_path) | {"total_timesteps": 100}
    start = tmp_path / "start"
    initial_policy(tiny(**flags), tiny(**flags).make_env(), start)
    plain = run_trial(tiny(**flags), tmp_path / "plain", start)
    with_gold = run_trial(tiny(**flags, gold_reward="vader"), tmp_path / "gold", start)
    assert "gold_score" in with_gold and "gold_score" not in plain and with_gold["score"] == plain["score"]
    weights = (load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("plain", "gold"))
    assert all(map(torch.equal, *(each.values() for each in weights)))
    assert "eval/gold_score" in read_metrics(tmp_path / "gold")[-1]
    with pytest.raises(FlagError, match="--gold-reward is for --env textenv/Text-v0"):
        tiny(gold_reward="vader").make_env()


def test_completions_are_shown_during_training(
    tmp_path: Path, initial: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every so many updates with --log-completions; never by default."""
    run_trial(tiny(), tmp_path / "quiet", initial)
    assert "completions of update" not in capsys.readouterr().out
    summary = run_trial(tiny(log_completions=3), tmp_path / "loud", initial)
    printed = capsys.readouterr().out
    shown = [int(line.split()[-1]) for line in printed.splitlines() if "completions of update" in line]
    assert shown == list(range(3, summary["num_updates"] + 1, 3))
    assert "log-ratio" in printed and "prompt" in printed


def test_gradient_checkpointing_does_not_change_training(tmp_path: Path, initial: Path) -> None:
    """--gradient-checkpointing changes what is stored for the backward pass, not the result; resuming keeps it."""
    plain, checkpointed = (
        run_trial(tiny(gradient_checkpointing=flag), tmp_path / str(flag), initial) for flag in (False, True)
    )
    assert checkpointed["objective"] == pytest.approx(plain["objective"], abs=1e-5)
    env = tiny().make_env()
    assert initial_policy(tiny(gradient_checkpointing=True), env, initial).gradient_checkpointing
    assert not initial_policy(tiny(), env, initial).gradient_checkpointing
    resumed = _agent(
        tiny(gradient_checkpointing=True), tiny().make_environments(), newest_checkpoint(tmp_path / "True"), initial
    )
    assert resumed.num_updates > 0 and resumed.policy.gradient_checkpointing


def test_weights_and_biases_by_a_flag(tmp_path: Path, initial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is installed it mirrors TensorBoard."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_trial(tiny(wandb_project="x"), tmp_path, initial)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
