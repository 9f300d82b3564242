"""The example files run as they stand, and learn."""

from __future__ import annotations

import pytest
import torch

from experiments.examples import cleanrl_ppo, sb3_ppo


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_a_single_file_learns_in_both_autoreset_modes(mode: str) -> None:
    """TajMahal's mean score rises from below 0 to above 1: no dead step is learned from, no end bootstrapped."""
    _, scores = cleanrl_ppo.train(cleanrl_ppo.Args(autoreset_mode=mode, total_timesteps=40_000))  # type: ignore[arg-type]
    assert scores[0] < 0 and scores[-1] > 1.2


def test_dead_steps_and_ends_carry_nothing() -> None:
    """Two texts in a row with a dead step between: each token's return to go, by hand, and V only inside a text."""
    rewards = torch.tensor([[1.0], [2.0], [7.0], [4.0]])  # the third step is dead
    values = torch.tensor([[10.0], [20.0], [30.0], [40.0]])
    ends = torch.tensor([[False], [True], [False], [False]])
    live = torch.tensor([[True], [True], [False], [True]])
    advantages = cleanrl_ppo.gae(rewards, values, ends, live, torch.tensor([5.0]), gae_lambda=1.0)
    assert advantages.flatten().tolist()[:2] == [1 + 2 - 10, 2 - 20]
    assert advantages[3].item() == 4 + 5 - 40
    wrong = cleanrl_ppo.gae(rewards, values, ends & False, live, torch.tensor([5.0]), gae_lambda=1.0)
    assert wrong[1].item() != advantages[1].item()  # control: an end that is not seen


@pytest.mark.slow
def test_stable_baselines3_learns_taj_mahal() -> None:
    """MaskablePPO with a language model goes most of the way to the exact optimum."""
    try:
        _, share = sb3_ppo.train(sb3_ppo.Args(total_timesteps=30_000))
    finally:
        torch.distributions.Distribution.set_default_validate_args(True)
    assert share > 0.8
