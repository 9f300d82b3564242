"""The example files run unchanged, and learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
import torch

from experiments.examples import blackjack, cleanrl_ppo, preference_pairs, sb3_ppo
from experiments.reward_model.pairs import read_pairs


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_a_single_file_learns_in_both_autoreset_modes(mode: Literal["NextStep", "SameStep"]) -> None:
    """The mean score of TajMahal rises from below 0 to above 1.2, which needs correct handling of resets and ends."""
    _, scores = cleanrl_ppo.train(cleanrl_ppo.Args(autoreset_mode=mode, total_timesteps=40_000))
    assert scores[0] < 0 and scores[-1] > 1.2


def test_advantages_do_not_cross_resets_and_ends() -> None:
    """Two episodes with a reset between them: returns to go by hand; V is bootstrapped only within an episode."""
    rewards = torch.tensor([[1.0], [2.0], [7.0], [4.0]])  # the third step is a reset
    values = torch.tensor([[10.0], [20.0], [30.0], [40.0]])
    ends = torch.tensor([[False], [True], [False], [False]])
    live = torch.tensor([[True], [True], [False], [True]])
    advantages = cleanrl_ppo.gae(rewards, values, ends, live, torch.tensor([5.0]), gae_lambda=1.0)
    assert advantages.flatten().tolist()[:2] == [1 + 2 - 10, 2 - 20]
    assert advantages[3].item() == 4 + 5 - 40
    wrong = cleanrl_ppo.gae(rewards, values, ends & False, live, torch.tensor([5.0]), gae_lambda=1.0)
    assert wrong[1].item() != advantages[1].item()  # control: the end is ignored


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_the_update_has_no_reset_and_no_wrong_bootstrap(
    mode: Literal["NextStep", "SameStep"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In either mode the update has only states before an end, and returns stop at the end of an episode."""
    mdp = gym.make("textenv/Toy-v0").unwrapped.mdp  # type: ignore[attr-defined]
    width = mdp.prompt_width
    finished: dict[str, list[bool]] = {"sampled": [], "trained": []}
    calls = []
    forward, gae = cleanrl_ppo.ActorCritic.forward, cleanrl_ppo.gae

    def recorded_forward(self: Any, ids: torch.Tensor, attention: torch.Tensor, action_mask: torch.Tensor) -> Any:
        completions = torch.where(attention[:, width:] == 1, ids[:, width:], -1)
        ended = torch.isin(completions, torch.tensor(mdp.eos_token_ids)).any(dim=1) | (completions >= 0).all(dim=1)
        finished["trained" if torch.is_grad_enabled() else "sampled"] += ended.tolist()
        return forward(self, ids, attention, action_mask)

    def recorded_gae(*arguments: Any) -> torch.Tensor:
        calls.append((arguments, gae(*arguments)))
        return calls[-1][1]

    monkeypatch.setattr(cleanrl_ppo.ActorCritic, "forward", recorded_forward)
    monkeypatch.setattr(cleanrl_ppo, "gae", recorded_gae)
    args = cleanrl_ppo.Args("textenv/Toy-v0", mode, total_timesteps=1, num_envs=8, gae_lambda=1.0, update_epochs=1)
    cleanrl_ppo.train(args)
    assert not any(finished["trained"]) and len(finished["trained"]) > 100
    assert any(finished["sampled"]) == (mode == "NextStep")  # control: resets are sampled, and not trained on

    ((rewards, values, ends, live, next_value, _), advantages) = calls[0]
    assert len(finished["trained"]) == int(live.sum()) and live.all() == (mode == "SameStep")
    compared = 0
    for row in range(8):
        to_go = next_value[row]  # the episode that the end of the rollout interrupts
        for t in reversed(range(len(rewards))):
            if not live[t, row]:
                assert ends[t - 1, row]  # only the step after an end is a reset
                continue
            to_go = rewards[t, row] + (0.0 if ends[t, row] else to_go)
            assert advantages[t, row] == pytest.approx(float(to_go - values[t, row]), abs=1e-5)
            compared += int(ends[t, row])
    assert compared > 20


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["MaskablePPO", "PPO"])
def test_stable_baselines3_learns_taj_mahal(algorithm: Literal["MaskablePPO", "PPO"]) -> None:
    """With a language model, and masks from the environment or the observation, the share of the way exceeds 0.8."""
    _, share = sb3_ppo.train(sb3_ppo.Args(algorithm=algorithm, total_timesteps=12_000))
    assert share > 0.8


def test_pairs_prefer_texts_with_label_1(tmp_path: Path) -> None:
    """Each text of the rarer label is in one pair; the reward model's reader accepts the file."""
    texts = [{"text": f"{'good' if label else 'bad'} {i}", "label": label} for i, label in enumerate([1, 0, 1, 0, 1])]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    args = preference_pairs.Args(tmp_path / "texts.jsonl", tmp_path / "pairs.jsonl")
    assert preference_pairs.write_pairs(args) == 2
    pairs = read_pairs(tmp_path / "pairs.jsonl")
    assert all(p.chosen.startswith("good") and p.rejected.startswith("bad") for p in pairs)
    assert len({p.chosen for p in pairs}) == len({p.rejected for p in pairs}) == 2


@pytest.mark.slow
def test_blackjack() -> None:
    """The example's return exceeds that of always sticking, and by far that of the first update."""
    _, returns = blackjack.train(blackjack.Args(total_timesteps=20_000))
    assert returns[0] < -0.25 and np.mean(returns[-10:]) > -0.16
