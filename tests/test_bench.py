"""The benchmark: the yardstick does the same work as our agents, and the command runs. No test looks at a clock."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from agents import PPO, TransformerPolicy
from agents.rollout import collect, draw_prompts
from experiments.bench.tight_loop import Batch, TightPPO, hidden_states, token_log_probs
from experiments.bench.variants import VARIANTS, environment, paid
from experiments.bench.work import Work, distinct
from textenv.unwrap import process_of

WORK = Work("smoke", answers=8, prompt=5, tokens=6, epochs=2)


@pytest.mark.parametrize("separate_critic", [False, True])
def test_ppo_takes_the_steps_of_a_loop_written_by_hand(separate_critic: bool) -> None:
    """From the same answers the same losses, values and weights after some updates: no work is skipped."""
    env = environment(WORK)
    policy = TransformerPolicy.for_env(env, separate_critic=separate_critic)
    agent = PPO(policy, env, n_episodes=WORK.answers, n_epochs=WORK.epochs, seed=0)
    loop = TightPPO(WORK.model(), separate_critic, reward=paid, kl_coef=0.05)
    for _ in range(3):
        rollout = agent.collect()
        tokens = rollout.num_tokens
        assert tokens == WORK.tokens and rollout.mask.all()
        with torch.no_grad():
            hidden = hidden_states(loop.trunk, rollout.input_ids[:, :-1])[:, -tokens:]
            values = loop.values(hidden, rollout.input_ids)
            own = token_log_probs(loop.trunk, hidden, rollout.tokens)
        assert rollout.values is not None
        assert torch.allclose(rollout.values, values, atol=1e-5)
        assert torch.allclose(rollout.log_probs, own, atol=1e-5)
        batch = Batch(rollout.input_ids, rollout.log_probs, rollout.ref_log_probs, values, rollout.rewards)
        agent.train(rollout)
        loop.train(batch, WORK.epochs)
        for ours, theirs in zip(policy.model.transformer.parameters(), loop.trunk.parameters(), strict=True):
            assert torch.allclose(ours, theirs, atol=2e-5)
        assert torch.allclose(policy.value_head.weight[0], loop.head, atol=2e-5)
    start = WORK.model().transformer.wte.weight
    assert float((loop.trunk.wte.weight - start).abs().max()) > 1e-3  # control: it learned


def test_the_tight_loop_pays_what_the_environment_pays() -> None:
    """Its own answers, scored by `collect`'s parts, have the rewards that it gave itself."""
    env = environment(WORK)
    loop = TightPPO(WORK.model(), separate_critic=False, reward=paid, kl_coef=0.05)
    prompts = torch.as_tensor(process_of(env).prompts.input_ids)
    batch = loop.collect(prompts, WORK.tokens)
    answers = batch.ids[:, -WORK.tokens :]
    ref_log_probs = process_of(env).reference.token_log_probs(batch.ids, torch.ones_like(batch.ids), WORK.tokens)
    assert torch.allclose(batch.ref_log_probs, ref_log_probs, atol=1e-5)
    expected = -0.05 * (batch.log_probs - ref_log_probs)
    expected[:, -1] += torch.tensor(distinct(None, None, answers.tolist()))
    assert torch.allclose(batch.rewards, expected, atol=1e-6)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_every_variant_does_the_whole_work(name: str) -> None:
    """A round writes all the response tokens; phases are times."""
    tokens, phases = VARIANTS[name](WORK)()
    assert tokens == WORK.answers * WORK.tokens
    assert all(seconds >= 0 for seconds in phases.values())


def test_prompts_are_drawn_for_samplers() -> None:
    """All prompts have the length that the work says."""
    process = process_of(environment(WORK))
    texts = draw_prompts(process, WORK.answers, 1, torch.Generator().manual_seed(0))
    assert process.prompt_width == WORK.prompt and texts.attention_mask[:, : WORK.prompt].all()
    assert collect(environment(WORK), TransformerPolicy.for_env(environment(WORK)), 8).mask.all()


def run(*arguments: str) -> Any:
    """The command, as users type it."""
    command = [sys.executable, "-m", "experiments", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_command_measures_and_writes(tmp_path: Path) -> None:
    """Rates, ratios, phases, memory and the load, in a table and as JSON; the figure in a run of its own."""
    tiny = ["--sizes", "smoke", "--rounds", "1", "--answers", "8", "--answer-tokens", "4", "--out", str(tmp_path)]
    names = ["ppo", "tight loop", "sampling", "sampling, transformers"]
    ended = run(*tiny, "--variants", *names, "--environment-seconds", "0.2", "--peers", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == (tmp_path / "bench.txt").read_text().strip()
    found = json.loads((tmp_path / "bench.json").read_text())
    assert list(found["sizes"]["smoke"]) == names
    assert set(found["sizes"]["smoke"]["ppo"]["phases"]) == set(found["sizes"]["smoke"]["tight loop"]["phases"])
    assert all(variant["peak_mb"] > variant["work_mb"] > 0 for variant in found["sizes"]["smoke"].values())
    assert "ppo / tight loop:" in ended.stdout and "CartPoleVectorEnv" in ended.stdout and "load" in ended.stdout
    assert found["versions"]["torch"] and found["command"].startswith("python -m experiments bench")
    scaled = run(*tiny, "--scaling", "--scaling-answers", "8", "16", "--scaling-tokens", "2", "--peers", str(tmp_path))
    assert scaled.returncode == 0, scaled.stderr
    assert (tmp_path / "scaling.png").stat().st_size > 0
    assert list(json.loads((tmp_path / "scaling.json").read_text())["scaling"]["answers"]) == ["8", "16"]


def test_bad_flags_are_told_in_a_line() -> None:
    """Names that nobody knows."""
    for flags in (["--sizes", "huge"], ["--variants", "magic"], ["--rounds", "0"]):
        ended = run(*flags)
        assert ended.returncode == 2 and flags[0] in ended.stderr and "Traceback" not in ended.stderr
