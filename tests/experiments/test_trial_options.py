"""Flags of a trial that reach its task and its agent: model, rewards, dtype, kernels, compile, sampler, adapter."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.policy import TransformerPolicy
from agents.sampling import GraphSampler, collect, new_generator
from experiments import trial
from experiments.checkpoints import newest_checkpoint
from experiments.config import TrialConfig
from experiments.errors import FlagError
from experiments.metrics_file import read_metrics
from experiments.saved_run import RunFlags, settings_from_folder
from experiments.trial import INITIAL, _agent, initial_policy, run_trial
from tests.helpers.commands import TRIAL, prepared, stories_flags, tiny
from tests.helpers.models import HALF
from textenv import get_mdp
from textenv.rewards import vader

TAJ = "textenv/TajMahal-v0"


def test_a_trial_in_bfloat16(tmp_path: Path) -> None:
    """--dtype reaches policy and checkpoint; agents of other libraries refuse it."""
    flags = TRIAL | {"dtype": "bfloat16"}
    config = TrialConfig(**flags, agent="grpo", out=tmp_path / "run")
    _, folder, policy = prepared(config, [config])
    assert policy.model.dtype == HALF
    run_trial(config, folder, folder / INITIAL)
    assert TransformerPolicy.from_pretrained(folder / "checkpoint").model.dtype == HALF
    assert TransformerPolicy.from_pretrained(folder / "checkpoint", dtype=torch.float32).model.dtype == torch.float32
    with pytest.raises(FlagError, match="--dtype bfloat16 is for our agents, not for sb3-ppo"):
        TrialConfig(**flags, agent="sb3-ppo")


def test_a_trial_with_other_kernels(assets: Path, tmp_path: Path) -> None:
    """The flags reach torch, the reference, the policy and its critic, and a resumed run; the run trains."""
    task = {
        "env": "textenv/Text-v0",
        "model": str(assets / "stories260k"),
        "reward": ["tests.helpers.tasks:count_words"],
    }
    (tmp_path / "prompts.txt").write_text("Once\n")
    flags: dict[str, Any] = {"total_timesteps": 8, "n_episodes": 4, "max_new_tokens": 2, "num_evals": 1}
    flags |= task | {"eval_episodes": 2, "prompts": str(tmp_path / "prompts.txt"), "separate_critic": True}
    kernels: dict[str, Any] = {"float32_matmul_precision": "medium", "attn_implementation": "eager"}
    plain = TrialConfig(**flags, out=tmp_path / "plain")
    _, _, policy = prepared(plain, [plain])
    assert torch.get_float32_matmul_precision() == "highest" and attention(policy.model) == "sdpa"
    torch.set_float32_matmul_precision("high")
    prepared(replace(plain, out=tmp_path / "again"), [plain])
    assert torch.get_float32_matmul_precision() == "high"  # without the flag it does not change
    config = TrialConfig(**flags, **kernels, out=tmp_path / "run")
    evaluator, folder, policy = prepared(config, [config])
    assert torch.get_float32_matmul_precision() == "medium"
    reference: Any = get_mdp(evaluator.env).reference
    assert attention(policy.model) == attention(policy.critic) == attention(reference.model) == "eager"
    assert run_trial(config, folder, folder / INITIAL)["num_updates"] >= 1
    resumed = _agent(config, config.make_environments(), newest_checkpoint(folder), folder / INITIAL)
    assert attention(resumed.policy.model) == "eager"
    here = settings_from_folder(RunFlags(folder, reward=config.reward))
    assert here.attn_implementation is here.float32_matmul_precision is None  # evaluation sets its own
    wrong = TrialConfig(**flags | {"env": "textenv/Toy-v0"} | dict.fromkeys(["model", "prompts", "reward"]))
    for unknown in (replace(config, attn_implementation="none"), replace(wrong, attn_implementation="none")):
        with pytest.raises(FlagError, match='attn_implementation="none"'):
            prepared(replace(unknown, out=tmp_path / "other"), [])
        assert not (tmp_path / "other").exists()
    with pytest.raises(FlagError, match="attends to later tokens"):  # an attention of transformers that is not causal
        replace(config, attn_implementation="paged|eager").make_env()


def attention(model: Any) -> str:
    """The name of the model's attention implementation."""
    name: str = model.config._attn_implementation
    return name


def test_a_missing_compiler_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Raised before anything is computed; the command prints one line."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    policy = TransformerPolicy.for_env(gym.make(TAJ))
    with pytest.raises(ValueError, match="needs a C.. compiler on a CPU, no-such-compiler is not there"):
        policy.compile()
    for flags in ({"compile": True}, {"sampler": "graph"}):
        config = TrialConfig(agent="ppo", out=tmp_path / "run", **flags)  # type: ignore[arg-type]
        with pytest.raises(FlagError, match="no-such-compiler is not there"):
            prepared(config, [config])
        assert not (tmp_path / "run").exists()


def is_compiled(policy: Any) -> bool:
    """Whether a call of the policy is compiled."""
    return policy._compiled_call_impl is not None


@pytest.mark.slow
def test_a_trial_compiles(tmp_path: Path) -> None:
    """It reaches the same objective; a loaded checkpoint is compiled too; agents of other libraries refuse the flag."""
    reached = {}
    for compiled in (False, True):
        config = TrialConfig(**TRIAL, agent="grpo", compile=compiled, out=tmp_path / str(compiled))
        environments = config.make_environments()
        _, folder, policy = prepared(config, [config])
        assert is_compiled(policy) == compiled
        reached[compiled] = run_trial(config, folder, folder / INITIAL)["objective"]
        resumed = _agent(config, environments, newest_checkpoint(folder), folder / INITIAL)
        assert is_compiled(resumed.policy) == compiled
    assert reached[True] == pytest.approx(reached[False], abs=1e-4)
    with pytest.raises(FlagError, match="--compile is for our agents, not for sb3-ppo"):
        TrialConfig(**TRIAL, agent="sb3-ppo", compile=True)


@pytest.mark.usefixtures("uncompiled")
def test_a_flag_selects_the_sampler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--sampler loop | generate | graph; agents of other libraries refuse the flag."""
    used: list[str] = []

    def watched(name: str, call: Any) -> Any:
        return lambda *args: (used.append(name), call(*args))[1]

    for name, module in (("loop", "sample"), ("generate", "generate_sampler")):
        path = f"agents.sampling.{name}.{module}"
        monkeypatch.setattr(path, watched(name, resolve_name(path)))
    monkeypatch.setattr(GraphSampler, "__call__", watched("graph", GraphSampler.__call__))
    for name in ("loop", "generate", "graph"):
        config = TrialConfig(**TRIAL, sampler=name, out=tmp_path / name)  # type: ignore[arg-type]
        _, folder, _ = prepared(config, [config])
        used.clear()
        trial.run_trial(config, folder, folder / trial.INITIAL)
        assert set(used) == {name}
    with pytest.raises(FlagError, match="--sampler generate is for our agents, not for sb3-a2c"):
        TrialConfig(**TRIAL, sampler="generate", agent="sb3-a2c")


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
def test_an_adapter_by_a_flag(tmp_path: Path, assets: Path) -> None:
    """--lora-rank: a trial trains and resumes, and its baselines are the reference's."""
    flags = stories_flags(assets, tmp_path) | {"total_timesteps": 200, "lora_rank": 2, "learning_rate": 1e-2}
    trial = tiny(**flags)
    summary = run_trial(trial, tmp_path / "run", tmp_path / "start")
    plain = run_trial(tiny(**(flags | {"lora_rank": 0})), tmp_path / "plain", _initial(tmp_path, flags))
    assert summary["baselines"] == plain["baselines"]
    assert (tmp_path / "run" / "checkpoint" / "adapter").is_dir() and read_metrics(tmp_path / "run")[0][
        "eval/kl"
    ] < 1e-6
    (tmp_path / "run" / "summary.json").unlink()
    again = run_trial(tiny(**flags), tmp_path / "run", tmp_path / "start")  # from its last checkpoint
    assert again["num_timesteps"] == summary["num_timesteps"]
    assert again["objective"] == pytest.approx(summary["objective"], abs=1e-5)


def _initial(folder: Path, flags: dict[str, Any]) -> Path:
    plain = tiny(**(flags | {"lora_rank": 0}))
    initial_policy(plain, plain.make_env(), folder / "plain start")
    return folder / "plain start"


def test_sentiment_is_trained_by_flags(tmp_path: Path, assets: Path) -> None:
    """A user's model and rewards with weights; the score is their weighted sum."""
    flags: dict[str, Any] = {"env": "textenv/Sentiment-v0", "env_args": {}, "model": str(assets / "stories260k")}
    flags |= {
        "reward": ["vader", "tests.helpers.tasks:half"],
        "reward_weights": [2.0, 4.0],
        "max_new_tokens": 6,
    }
    flags |= {"total_timesteps": 100, "n_episodes": 8, "num_evals": 1, "eval_episodes": 8}
    trial = tiny(**flags)
    env = trial.make_env()
    rollout = collect(env, TransformerPolicy.for_env(env), 8, generator=new_generator("cpu", 0))
    sentiment = np.array(vader([], list(rollout.completions), []))
    np.testing.assert_allclose(rollout.scores, 2 * sentiment + 4 * 0.5, atol=1e-6)
    initial_policy(trial, env, tmp_path / "start")
    assert run_trial(trial, tmp_path / "run", tmp_path / "start")["num_timesteps"] >= 100
    with pytest.raises(FlagError, match=r"reward_weights must be one finite number per function \(1\)"):
        tiny(**(flags | {"reward": ["vader"]})).make_env()
