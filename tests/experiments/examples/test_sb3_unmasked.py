"""Stable-Baselines3's PPO and DQN without masks: the example's setting, and that they learn in it."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
import torch

from experiments.examples import sb3_unmasked
from tests.helpers.brute_force import all_completions


def returns_of(env: Any) -> tuple[dict[Any, float], list[float]]:
    """The return of each completion of one environment; and of each state, that of a masked token in it."""
    completions = all_completions(env.unwrapped)
    whole = {completion: sum(reward for reward, _ in steps) for completion, steps in completions.items()}
    broken = []
    for prompt, tokens in {(p, y[:t]) for p, y in completions for t in range(len(y))}:
        _, info = env.reset(options={"prompt": prompt})
        rewards = [0.0]
        for token in tokens:
            _, reward, _, _, info = env.step(token)
            rewards.append(reward)
        _, reward, terminated, _, _ = env.step(int(info["action_mask"].argmin()))
        assert terminated
        broken.append(sum(rewards) + reward)
    return whole, broken


def test_the_setting_changes_no_completions_return() -> None:
    """By brute force: with the potential each return is the task's, and to break off is worse than any of them."""
    whole, broken = returns_of(sb3_unmasked.make_env(sb3_unmasked.Args()))
    plain = all_completions(gym.make("textenv/TajMahal-v0").unwrapped)
    assert len(whole) == 828 and whole == pytest.approx({y: sum(r for r, _ in steps) for y, steps in plain.items()})
    assert max(broken) < min(whole.values())
    _, cheap = returns_of(sb3_unmasked.make_env(sb3_unmasked.Args(illegal_reward=-1.0)))
    assert max(cheap) > min(whole.values())  # control


@pytest.mark.parametrize("algorithm", ["PPO", "DQN"])
def test_the_policy_that_is_measured_is_the_one_that_acts(algorithm: Literal["PPO", "DQN"]) -> None:
    """PPO's probabilities over all tokens, and DQN's greedy token."""
    agent = sb3_unmasked.make_agent(sb3_unmasked.Args(algorithm=algorithm))
    plain, flat = gym.make("textenv/TajMahal-v0"), sb3_unmasked.make_env(sb3_unmasked.Args())
    for seed in range(5):
        sequence, (observation, _) = plain.reset(seed=seed)[0], flat.reset(seed=seed)
        logits = sb3_unmasked.next_token_logits(agent, sequence["input_ids"][None], sequence["attention_mask"][None])
        assert int(agent.predict(observation, deterministic=True)[0]) == int(logits.argmax())
        if algorithm == "PPO":
            action, tensor = torch.tensor([3]), torch.as_tensor(observation)[None]
            expected = agent.policy.evaluate_actions(tensor, action)[1].item()
            assert logits.log_softmax(dim=-1)[0, 3].item() == pytest.approx(expected, abs=1e-6)
        else:
            assert float(torch.sort(logits[0]).values[-2]) < -10 and np.isclose(float(logits.max()), 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "total_timesteps"), [("PPO", 60_000), ("DQN", 30_000)])
def test_they_learn_taj_mahal_without_masks(algorithm: Literal["PPO", "DQN"], total_timesteps: int) -> None:
    """Nearly all completions are legal, and they are better than the reference's, whose share is 0."""
    arguments = sb3_unmasked.Args(algorithm=algorithm, total_timesteps=total_timesteps)
    _, share, illegal = sb3_unmasked.train(arguments)
    assert share > 0.2 and illegal < 0.2
