"""torch's global generators are as they were after whatever draws from them: those of all devices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.policy import TransformerPolicy
from agents.sampling import collect, generate_sampler, new_generator
from experiments.reward_model import RewardModelConfig, reward_model
from tests.helpers.adapters import config
from tests.helpers.classifiers import random_classifier, word_tokenizer, write_pairs
from tests.helpers.models import task
from tests.helpers.standin import DEVICE
from tests.helpers.tasks import toy
from textenv.lm import find_cache_support, forked_random_state, get_random_state, set_random_state

PLACES = ["cpu", DEVICE]


def states() -> list[torch.Tensor]:
    """The states of the global generators."""
    return [get_random_state(torch.device(place)) for place in PLACES]


def moved(env: Any) -> Any:
    """A task whose reference is on the device."""
    env.unwrapped.mdp.reference.model.float().to(DEVICE)
    return env


def generated(env: Any, device: str) -> torch.Tensor:
    """Completions of transformers' `generate`, in float32."""
    policy = TransformerPolicy.for_env(env).float().to(device)
    return collect(env, policy, 8, generator=new_generator(device, 0), sampler=generate_sampler).tokens.cpu()


def fit(folder: Path) -> Callable[[], Any]:
    """Trains a reward model on two batches, with dropout."""
    random_classifier("gpt2", resid_pdrop=0.5).save_pretrained(folder / "start")
    word_tokenizer(eos_token="[END]").save_pretrained(folder / "start")
    pairs = write_pairs(folder / "pairs.jsonl", count=40)
    flags = {"epochs": 1, "held_out": 0.5, "learning_rate": 1e-2, "device": DEVICE}
    return partial(reward_model, RewardModelConfig(pairs, str(folder / "start"), folder / "out", **flags))  # type: ignore[arg-type]


# Each makes what it needs, and returns a function that draws.
DRAWING: dict[str, Callable[[Path], Callable[[], Any]]] = {
    "a toy's policy": lambda folder: partial(TransformerPolicy.for_env, toy()),
    "an adapter": lambda folder: partial(TransformerPolicy.for_env, moved(task("llama")), lora=config()),
    "generate": lambda folder: partial(generated, moved(task("gpt2")), DEVICE),
    "how a model is read": lambda folder: partial(
        find_cache_support, task("gpt2").unwrapped.mdp.reference.model.to(DEVICE)
    ),
    "a reward model": fit,
}


@pytest.mark.parametrize("name", DRAWING)
def test_the_global_generators_are_left_as_they_were(name: str, tmp_path: Path) -> None:
    """Although seeds are set inside, and weights, tokens and dropout drawn."""
    draw = DRAWING[name](tmp_path)
    torch.manual_seed(7)
    before = states()
    draw()
    assert all(map(torch.equal, states(), before))


def test_a_fork_seeds_and_restores_both() -> None:
    """Control: without it, numbers that are drawn change the states."""
    before = states()
    with forked_random_state(torch.device(DEVICE), 5):
        found = torch.rand(3, device=DEVICE).tolist(), torch.rand(3).tolist()
    assert all(map(torch.equal, states(), before)) and found[0] == found[1]
    with forked_random_state(torch.device("cpu"), 5):
        assert torch.rand(3).tolist() == found[1] and torch.equal(states()[1], before[1])
    torch.rand(3, device=DEVICE)
    assert torch.equal(states()[0], before[0]) and not torch.equal(states()[1], before[1])
    set_random_state(before[1], torch.device(DEVICE))
    assert torch.equal(states()[1], before[1])


def test_generate_draws_there_what_it_draws_here() -> None:
    """With the same seed."""
    assert torch.equal(generated(moved(task("gpt2")), DEVICE), generated(task("gpt2"), "cpu"))
