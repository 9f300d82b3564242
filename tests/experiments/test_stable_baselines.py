"""Stable-Baselines3's agents with the interface of ours, alone and in a trial."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.functional import value_loss
from experiments.checkpoints import Checkpoint
from experiments.compare import CompareConfig
from experiments.errors import FlagError
from experiments.metrics_file import read_metrics
from experiments.stable_baselines import SB3A2C, SB3PPO, SB3MaskablePPO
from experiments.trial import _agent, run_trial
from experiments.trial_log import TrialLog
from tests.helpers.commands import tiny
from tests.helpers.policies import random_policy as arbitrary_policy
from textenv import exact

TOY = {"vocab_size": 3, "max_new_tokens": 2, "num_prompts": 2, "kl_coef": 0.3}


def toy(**arguments: Any) -> Any:
    """A toy with 14 completions."""
    return gym.make_vec("textenv/Toy-v0", **(TOY | arguments))


@pytest.mark.parametrize("agent", [SB3PPO, SB3A2C, SB3MaskablePPO])
def test_stable_baselines_starts_at_the_given_policy_and_counts_tokens(agent: Any) -> None:
    """On a masked task; the given policy is not trained, and torch's argument checks stay on."""
    env = gym.make_vec("textenv/TajMahal-v0")
    start = arbitrary_policy(env).float()
    before = [p.clone() for p in start.parameters()]
    calls: list[tuple[int, dict[str, float]]] = []
    trained = agent(start, env, n_episodes=8, n_steps=4, seed=0)
    for one, other in zip(before, trained.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    trained.learn(100, lambda agent, rollout, metrics: calls.append((agent.num_timesteps, metrics)))
    assert [tokens for tokens, _ in calls] == [32, 64, 96, 128] and trained.num_updates == 4
    assert all("train/value_loss" in metrics for _, metrics in calls)
    assert any("objective/scores" in metrics for _, metrics in calls)
    assert all(torch.equal(one, other) for one, other in zip(before, start.parameters(), strict=True))
    assert any(not torch.equal(p, q) for p, q in zip(before, trained.policy.parameters(), strict=True))
    assert torch.distributions.Distribution._validate_args
    trained.learn(32, lambda agent, rollout, metrics: calls.append((agent.num_timesteps, metrics)), False, False)
    assert calls[-1][0] == trained.num_timesteps == 160 and len(calls) == trained.num_updates == 5


@pytest.mark.parametrize("agent", [SB3PPO, SB3A2C, SB3MaskablePPO])
def test_a_callback_stops_stable_baselines(agent: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """After that update no token more is sampled, as in our agents; `learn` can continue. A progress bar on request."""
    trained = agent(arbitrary_policy(toy()).float(), toy(), n_episodes=8, n_steps=4, seed=0)
    trained.learn(1000, lambda agent, rollout, metrics: agent.num_updates < 2)
    assert (trained.num_timesteps, trained.num_updates) == (64, 2) and "tok" not in capsys.readouterr().err
    trained.learn(32, progress_bar=True, reset_num_timesteps=False)
    assert (trained.num_timesteps, trained.num_updates) == (96, 3) and "32/32" in capsys.readouterr().err
    for wrong in (-1, math.inf, "10", None, True):
        with pytest.raises(ValueError, match="total_timesteps must be a whole number, at least 0"):
            trained.learn(wrong)
    assert trained.learn(32.0, reset_num_timesteps=False).num_timesteps == 128


@pytest.mark.parametrize("agent", [SB3PPO, SB3A2C, SB3MaskablePPO])
def test_stable_baselines_has_our_settings_and_loads_what_it_saved(agent: Any, tmp_path: Path) -> None:
    """beta, gamma = 1, Adam with our eps; weights, optimizer and counts are restored; first prompts differ."""
    env = gym.make_vec("textenv/TajMahal-v0", kl_coef=0.3)
    fresh = agent(arbitrary_policy(env).float(), env, n_episodes=4, n_steps=8, seed=0)
    assert (fresh.algorithm.rollout_buffer.kl_coef, fresh.algorithm.rollout_buffer.gamma) == (0.3, 1.0)
    optimizer = fresh.algorithm.policy.optimizer
    assert type(optimizer) is torch.optim.Adam and optimizer.defaults["eps"] == 1e-5
    values, targets = torch.randn(2, 8, 1)
    theirs = fresh.algorithm.vf_coef * torch.nn.functional.mse_loss(values, targets)  # as its `train` has it
    ours = fresh.vf_coef * value_loss(values, targets, torch.ones(8, 1, dtype=torch.bool))
    torch.testing.assert_close(theirs, ours)
    fresh.learn(32)
    first = fresh.algorithm.rollout_buffer.observations["input_ids"].copy()
    fresh.save(str(tmp_path))
    loaded = agent.load(str(tmp_path), env)
    assert (loaded.num_timesteps, loaded.num_updates) == (32, 1)
    for one, other in zip(fresh.policy.parameters(), loaded.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    moments, same = (a.algorithm.policy.optimizer.state_dict()["state"] for a in (fresh, loaded))
    assert len(moments) == len(same) > 0
    assert all(torch.equal(moments[i]["exp_avg"], same[i]["exp_avg"]) for i in moments)
    loaded.learn(32, reset_num_timesteps=False)
    assert not np.array_equal(loaded.algorithm.rollout_buffer.observations["input_ids"], first)


@pytest.mark.parametrize(
    "flag", [{"n_epochs": 0}, {"batch_size": 0}, {"clip_range": -1.0}, {"vf_coef": -1.0}, {"max_grad_norm": -1.0}]
)
def test_invalid_settings_of_stable_baselines_are_refused(flag: dict[str, Any]) -> None:
    """The error names the setting."""
    env = toy()
    with pytest.raises(ValueError, match=next(iter(flag))):
        SB3PPO(arbitrary_policy(env).float(), env, **flag)


@pytest.mark.parametrize("flag", [{"lora_rank": 2}, {"log_completions": 1}])
def test_flags_that_stable_baselines_does_not_support_are_refused(flag: dict[str, int]) -> None:
    """By name, in `train` and in `compare`, before anything runs; our agents accept them."""
    name = next(iter(flag)).replace("_", "-")
    with pytest.raises(FlagError, match=f"--{name} is for our agents, not for sb3-a2c"):
        tiny(agent="sb3-a2c", **flag)
    tiny(agent="actor_critic", **flag)
    if "lora_rank" in flag:
        with pytest.raises(FlagError, match="--lora-rank is for our agents, not for maskable-ppo"):
            CompareConfig(agents=["ppo", "maskable-ppo"], **flag).trials()


def test_gradient_checkpointing_is_kept_when_a_trial_resumes(tmp_path: Path) -> None:
    """The copy that Stable-Baselines3 trains has it, a new one and the one of a checkpoint."""
    config = tiny(agent="sb3-ppo", gradient_checkpointing=True)
    env = config.make_environments()
    arbitrary_policy(env.train).float().save_pretrained(tmp_path / "initial")
    fresh = _agent(config, env, None, tmp_path / "initial")
    fresh.save(tmp_path / "checkpoint")
    resumed = _agent(config, env, Checkpoint(tmp_path / "checkpoint", {}), tmp_path / "nowhere")
    assert fresh.policy.gradient_checkpointing and resumed.policy.gradient_checkpointing
    assert any(getattr(layer, "gradient_checkpointing", False) for layer in resumed.policy.model.modules())


def test_masks_in_the_observation_equal_masks_from_the_environment() -> None:
    """Same seed, completions and updates: PPO with masks in the observation and MaskablePPO end at the same weights."""
    env = gym.make_vec("textenv/TajMahal-v0")
    start = arbitrary_policy(env).float()
    ends = []
    for agent in (SB3PPO, SB3MaskablePPO):
        trained = agent(start, env, n_episodes=8, n_steps=8, learning_rate=1e-3, seed=0).learn(256)
        ends.append(exact.evaluate(env, trained.policy).objective)
    assert ends[0] == pytest.approx(ends[1], abs=1e-4)
    assert ends[0] != pytest.approx(exact.evaluate(env, start).objective, abs=1e-2)  # control: training changed it


@pytest.mark.parametrize("agent", ["sb3-a2c", "maskable-ppo"])
def test_a_stopped_trial_of_stable_baselines_resumes(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its checkpoint, with optimizer and counts; it samples other completions, so the numbers may differ."""
    config = tiny(agent=agent, total_timesteps=1000)
    initial = tmp_path / "initial"
    arbitrary_policy(config.make_env()).float().save_pretrained(initial)
    log_row = TrialLog.log_row

    def stop(self: TrialLog, row: dict[str, float]) -> None:
        log_row(self, row)
        if row["num_updates"] == 3:
            self.checkpoint()
        if row["num_updates"] == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrialLog, "log_row", stop)
        with pytest.raises(KeyboardInterrupt):
            run_trial(config, tmp_path / "run", initial)
    summary = run_trial(config, tmp_path / "run", initial)
    rows = read_metrics(tmp_path / "run")
    assert [row["num_updates"] for row in rows] == list(range(summary["num_updates"] + 1))
    assert summary["num_timesteps"] == rows[-1]["num_timesteps"] == 1024
