"""Two ranks with sharded weights compute what one rank with whole weights computes.

Both ranks run once for this file, see `tests.helpers.ranks`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from agents import RLOO
from agents.sampling import Rollout, collect, new_generator
from agents.training import gather_objects, shard
from tests.helpers import adapters, models
from tests.helpers.policies import random_policy
from tests.helpers.ranks import (
    BROKEN,
    CASES,
    COUNT,
    EXACT,
    HAS_PEFT,
    agent_of,
    all_completions,
    bfloat16_agent,
    check_bfloat16_gradients,
    check_gradients,
    distance,
    gradient,
    half,
    run_on_two_ranks,
    task,
)

SHARDED = ["PPO", "PPO, separate critic", "RLOO"]
# relative error of weights in float32: Adam makes a step of about 1e-2 for any gradient, even if it is only rounding
ROUNDED = 1e-4


def training_agent(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """An agent of `CASES` with a learning rate above 0."""
    agent = agent_of(name, learning_rate=1e-2, max_grad_norm=1.0)
    agent.policy.to(dtype)
    return agent


def weights_after(agent: Any, rollout: Rollout, updates: int = 3) -> Tensor:
    """The weights of the policy itself after some updates with the same rollout."""
    for _ in range(updates):
        agent.train(rollout)
    return torch.cat([p.detach().flatten() for p in agent.optimization.trained])


def adapter_agent() -> tuple[Any, Rollout]:
    """An adapter on the reference's weights, and a rollout to train on."""
    env = models.task("gpt2")
    agent = RLOO(adapters.adapted(env, 0.1), env, n_episodes=COUNT, learning_rate=1e-2, seed=0)
    generator = new_generator("cpu", 5)
    return agent, collect(env, agent.policy, COUNT, num_generations=4, generator=generator, values=False)


def results(r: int, folder: Path) -> dict[str, Any]:
    """The results of rank r, with its shard of the weights."""
    found: dict[str, Any] = {}
    rollout = half(all_completions(), r)
    for name in CASES:
        agent = agent_of(name)
        agent.distribute(shard)
        found[name] = gradient(agent, rollout)
    agent = bfloat16_agent()
    agent.distribute(shard)
    found["bfloat16"] = gradient(agent, rollout)
    for name in SHARDED:
        agent = training_agent(name)
        agent.distribute(shard)
        with pytest.MonkeyPatch.context() as patch:  # with whole weights even prompts this short would be shared
            patch.setattr("textenv.lm.inputs.MIN_SAVED_TOKENS", 1)
            patch.setattr("textenv.lm.inputs.MIN_SAVED_FRACTION", 0)
            found[f"weights, {name}"] = weights_after(agent, rollout)
        found[f"shard size, {name}"] = sum(master.to_local().numel() for master in agent.optimization.stepped)
        agent = training_agent(name, torch.float32)  # the dtype of checkpoints
        agent.distribute(shard)
        weights_after(agent, rollout)
        agent.save(folder / name)
        gather_objects(None)  # wait until rank 0 has written it
        loaded = CASES[name][0].load(folder / name, env=task(), wrap=shard)
        found[f"resumed, {name}"] = [weights_after(agent, rollout), weights_after(loaded, rollout)]
        agent = CASES[name][0].load(folder / f"{name}, one rank", env=task(), wrap=shard)
        found[f"resumed from one rank, {name}"] = weights_after(agent, rollout)
    agent = bfloat16_agent("RLOO", learning_rate=1e-2)
    agent.distribute(shard)
    weights_after(agent, rollout)
    agent.save(folder / "bfloat16")
    gather_objects(None)  # wait until rank 0 has written it
    loaded = RLOO.load(folder / "bfloat16", env=task(), wrap=shard)
    found["master weights"] = [each.optimization.master_weights.state() for each in (agent, loaded)]
    if HAS_PEFT:
        agent, adapter_rollout = adapter_agent()
        agent.distribute(shard)
        found["weights, adapter"] = weights_after(agent, half(adapter_rollout, r))
    agent = training_agent("PPO")
    agent.train(rollout)
    for wrap in (shard, fully_shard):
        try:
            agent.distribute(wrap)
        except ValueError as error:
            found[f"error of {wrap.__name__}"] = str(error)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of saved agents."""
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """The results of both ranks."""
    for name in SHARDED:
        agent = training_agent(name, torch.float32)
        weights_after(agent, all_completions())
        agent.save(folder / f"{name}, one rank")
    return run_on_two_ranks(results, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_have_the_gradient_of_one(name: str, ranks: list[dict[str, Any]]) -> None:
    """Equal on both ranks, within 1e-5 of one rank with all completions; half of them alone has another gradient."""
    check_gradients(name, ranks)


@pytest.mark.slow
def test_two_ranks_in_bfloat16_have_the_gradient_of_one(ranks: list[dict[str, Any]]) -> None:
    """Within 1e-5: micro-batches and ranks are summed in float32; a mean of bfloat16 gradients is far away."""
    check_bfloat16_gradients(ranks)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDED)
def test_sharded_training_has_the_weights_of_one_rank(name: str, ranks: list[dict[str, Any]]) -> None:
    """The policy's weights after some updates; each rank held half of the copy. Control: half of the data."""
    whole = weights_after(training_agent(name), all_completions())
    assert torch.equal(ranks[0][f"weights, {name}"], ranks[1][f"weights, {name}"])
    assert (ranks[0][f"weights, {name}"] - whole).abs().max() < EXACT
    assert (weights_after(training_agent(name), half(all_completions(), 0)) - whole).abs().max() > BROKEN
    sizes = [found[f"shard size, {name}"] for found in ranks]
    assert sum(sizes) == len(whole) and max(sizes) < 0.51 * len(whole)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_PEFT, reason="needs peft")
def test_a_sharded_adapter_has_the_weights_of_one_rank(ranks: list[dict[str, Any]]) -> None:
    """The trained copy shards the reference's weights too; those that the reference uses stay whole."""
    agent, rollout = adapter_agent()
    whole = weights_after(agent, rollout)
    other, _ = adapter_agent()
    for found in ranks:
        assert (found["weights, adapter"] - whole).abs().max() < EXACT
    assert (weights_after(other, half(rollout, 0)) - whole).abs().max() > BROKEN


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDED)
def test_sharded_checkpoints_are_whole(name: str, ranks: list[dict[str, Any]], folder: Path) -> None:
    """Saved by two ranks and loaded by two or by one, and the reverse: training resumes with weights and moments."""
    agent = training_agent(name, torch.float32)
    weights_after(agent, all_completions())
    whole = weights_after(agent, all_completions())
    for found in ranks:
        assert torch.equal(*found[f"resumed, {name}"])
        for weights in (found[f"resumed, {name}"][0], found[f"resumed from one rank, {name}"]):
            assert distance(weights, whole) < ROUNDED
    loaded = CASES[name][0].load(folder / name, env=task())
    assert distance(weights_after(loaded, all_completions()), whole) < ROUNDED
    without_moments = CASES[name][0].load(folder / name, env=task())
    without_moments.optimization.optimizer.state.clear()
    assert distance(weights_after(without_moments, all_completions()), whole) > BROKEN


@pytest.mark.slow
def test_sharded_checkpoints_have_the_master_weights(ranks: list[dict[str, Any]], folder: Path) -> None:
    """In bfloat16 two ranks and one rank resume from the same master weights, which the rounded weights do not give."""
    agent = RLOO.load(folder / "bfloat16", env=task())
    before, resumed = ranks[0]["master weights"]
    assert len(before) == len(agent.optimization.master_weights.copies) > 0
    for saved, *found in zip(before, resumed, agent.optimization.master_weights.state(), strict=True):
        assert saved.dtype == torch.float32 and all(saved.equal(each) for each in found)
    assert not all(saved.equal(saved.bfloat16().float()) for saved in before)


@pytest.mark.slow
def test_wrong_wrappers_are_refused(ranks: list[dict[str, Any]]) -> None:
    """Sharding after training has started, and sharding the policy itself."""
    for found in ranks:
        assert "called before learning" in found["error of shard"]
        assert "must stay whole" in found["error of fully_shard"]


def test_a_compiled_policy_cannot_be_sharded() -> None:
    """Its copy would silently not be compiled."""
    policy = random_policy(task())
    torch.nn.Module.compile(policy)
    with pytest.raises(ValueError, match="compiled policy cannot be sharded"):
        shard(policy)
