"""A new agent, task, reward, sampler or bench variant is one line beside its own file: each is added here by that line.

A new agent is in test_external_agents.py.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest

import textenv
from agents.sampling import sample
from experiments.bench import BenchConfig
from experiments.bench.run import names_of
from experiments.bench.variant_main import variants_of
from experiments.bench.variants import VARIANTS, Variant, sampling
from experiments.bench.work import Work
from experiments.config import SAMPLERS
from experiments.env_flags import REWARDS, EnvFlags, load_reward
from experiments.errors import FlagError
from tests.helpers.commands import tiny


def test_a_new_task() -> None:
    """Registered with Gymnasium like the others, it is an environment of every command."""
    with pytest.raises(FlagError, match="textenv/Mine-v0"):  # control
        EnvFlags(env="textenv/Mine-v0").make_env()
    textenv.register("textenv/Mine-v0", "textenv.tasks.toy:toy")
    try:
        env = EnvFlags(env="textenv/Mine-v0", env_args={"vocab_size": 4}).make_env()
    finally:
        del gym.registry["textenv/Mine-v0"]
    assert textenv.get_mdp(env).vocab_size == 4


def test_a_new_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    """In `REWARDS` it has a short name."""
    with pytest.raises(FlagError, match="--reward"):  # control: it is taken for a classifier's folder
        load_reward("count")
    monkeypatch.setitem(REWARDS, "count", "tests.helpers.tasks:count_words")
    assert load_reward("count")(["a"], ["b c"], [[1, 2]]) == [2.0]


def test_a_new_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    """In `SAMPLERS`: a function, or a class that makes one."""
    with pytest.raises(FlagError, match="--sampler must be one of loop, generate, graph, got 'mine'"):  # control
        tiny(sampler="mine")
    monkeypatch.setitem(SAMPLERS, "mine", "agents.sampling:sample")
    assert tiny(sampler="mine").make_sampler() is sample
    assert type(tiny(sampler="graph").make_sampler()).__name__ == "GraphSampler"


def test_a_new_variant_of_the_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """In `VARIANTS`, with the parts that measure it; its process finds it by its name."""
    with pytest.raises(FlagError, match="'mine' is none of ppo, "):  # control
        BenchConfig(variants=("mine",))
    start: Any = lambda work: sampling(work, sample)  # noqa: E731
    monkeypatch.setitem(VARIANTS, "mine", Variant(start, ("updates", "gpu")))
    assert BenchConfig(variants=("mine",)).runnable(["mine"]) == ["mine"]
    assert "mine" in names_of("updates") and "mine" in names_of("gpu") and "mine" not in names_of("options")
    variants, work = variants_of("mine")
    assert variants["mine"] is start and work is Work
