"""A replay is saved with its agent, restored bit for bit, and refused where it is damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from agents import PPO, PathConsistency
from agents.files import DamagedFile
from tests.helpers.agents import FOREVER, agent_of, stop_after, task, weights
from tests.helpers.storage import seal


def trained(updates: int, **settings: Any) -> Any:
    """An agent after some updates."""
    settings = {"num_generations": 4, "replay_size": 3} | settings
    return agent_of(PathConsistency, **settings).learn(FOREVER, callback=stop_after(updates))


def test_a_resumed_agent_has_the_replay(tmp_path: Path) -> None:
    """Two updates, save, load, two more: the weights of four, bit for bit. Control: without the replay."""
    whole = trained(4)
    trained(2).save(tmp_path)
    resumed, forgetful = (PathConsistency.load(tmp_path, task()) for _ in range(2))
    assert len(resumed.replay.rollouts) == 2
    forgetful.replay.rollouts.clear()
    for agent in (resumed, forgetful):
        agent.learn(FOREVER, callback=stop_after(4), reset_num_timesteps=False)
    assert weights(resumed).equal(weights(whole)) and not weights(forgetful).equal(weights(whole))


def test_a_replay_is_restored_field_by_field(tmp_path: Path) -> None:
    """What losses read; strings are not saved. A smaller replay keeps the last rollouts, other groups begin anew."""
    agent = trained(5)
    agent.save(tmp_path)
    names = ("prompt", "input_ids", "attention_mask", "mask", "log_probs", "ref_log_probs", "rewards", "scores",
             "stopped", "action_mask")  # fmt: skip
    for size in (3, 2):
        loaded = PathConsistency.load(tmp_path, task(), replay_size=size)
        pairs = list(zip(loaded.replay.rollouts, list(agent.replay.rollouts)[-size:], strict=True))
        assert len(pairs) == size
        for found, expected in pairs:
            for name in names:
                x, y = getattr(found, name), getattr(expected, name)
                assert (x is y is None) or (x.dtype == y.dtype and x.equal(y)), name
            assert found.completions is None and found.num_generations == 4
    assert not PathConsistency.load(tmp_path, task(), num_generations=2).replay.rollouts
    assert len(PathConsistency.load(tmp_path).replay.rollouts) == 3  # without an environment


def test_rollouts_of_different_sizes_are_saved_together(tmp_path: Path) -> None:
    """Of an agent that resumes with other `n_episodes`."""
    trained(1).save(tmp_path)
    agent = PathConsistency.load(tmp_path, task(), n_episodes=32)
    agent.learn(FOREVER, callback=stop_after(2), reset_num_timesteps=False)
    agent.save(tmp_path)
    assert [len(each) for each in PathConsistency.load(tmp_path, task()).replay.rollouts] == [16, 32]


def damage(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that were changed by hand."""
    first = "rank.0.replay.0."
    changes: dict[str, dict[str, Tensor | None]] = {
        "no size": {"rank.0.replay.size": None},
        "negative": {"rank.0.replay.size": torch.tensor([-1, 4])},
        "floats": {"rank.0.replay.size": torch.tensor([2.0, 4.0])},
        "more": {"rank.0.replay.size": torch.tensor([3, 4])},
        "endless": {"rank.0.replay.size": torch.tensor([2**60, 4])},
        "fewer": {"rank.0.replay.size": torch.tensor([1, 4])},
        "no groups": {"rank.0.replay.size": torch.tensor([2, 0])},
        "other groups": {"rank.0.replay.size": torch.tensor([2, 3])},
        "another": {"rank.0.replay.9.mask": torch.ones(2, 2)},
        "no mask": {f"{first}mask": None},
        "one row less": {f"{first}rewards": tensors[f"{first}rewards"][1:]},
        "integers": {f"{first}log_probs": tensors[f"{first}log_probs"].long()},
        "short": {f"{first}input_ids": tensors[f"{first}input_ids"][:, :1]},
        "no token": {f"{first}input_ids": tensors[f"{first}input_ids"] + 1000},
        "vocabulary": {f"{first}action_mask": torch.ones(16, tensors[f"{first}mask"].shape[1], 9, dtype=torch.bool)},
    }
    changed = tensors | changes[name]
    return {key: x for key, x in changed.items() if x is not None}


DAMAGE = [
    *("no size", "negative", "floats", "more", "endless", "fewer", "another", "no mask", "one row less", "integers"),
    *("short", "no token", "vocabulary", "no groups", "other groups"),
]


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_replay_is_refused(name: str, tmp_path: Path) -> None:
    """In a file whose checksum is right: the error names the file. Control: as it was, it loads."""
    trained(2).save(tmp_path)
    PathConsistency.load(tmp_path, task())
    path = tmp_path / "training_state.safetensors"
    save_file({key: x.contiguous() for key, x in damage(name, load_file(path)).items()}, path, {"format": "pt"})
    seal(tmp_path)
    with pytest.raises(DamagedFile, match=r"training_state\.safetensors.*replay"):
        PathConsistency.load(tmp_path, task())


def test_an_agent_without_a_replay_refuses_one(tmp_path: Path) -> None:
    """A tensor that no agent has saved."""
    agent = agent_of(PPO)
    agent.save(tmp_path)
    path = tmp_path / "training_state.safetensors"
    save_file(load_file(path) | {"rank.0.replay.size": torch.zeros(3)}, path, {"format": "pt"})
    seal(tmp_path)
    with pytest.raises(DamagedFile, match=r"holds 'replay\.size', which PPO does not have"):
        PPO.load(tmp_path, task())


# -- settings ----------------------------------------------------------------------------------------------------------
