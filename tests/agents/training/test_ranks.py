"""Two ranks with half of the completions each compute what one rank with all completions computes.

Both ranks run once for this file, over gloo, joined by accelerate as under `accelerate launch`. Their results are
compared with one rank, and (controls) with two ranks that do not communicate.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agents import REINFORCE, RLOO, PathConsistency
from agents.sampling import Rollout
from agents.training import all_reduce_sum, rank, run_on_rank0, world_size
from agents.training.ranks import gather_objects, rank_seed
from agents.training.updater import minibatches
from tests.helpers.agents import stop_after
from tests.helpers.policies import random_policy
from tests.helpers.ranks import (
    BROKEN,
    CASES,
    COUNT,
    EXACT,
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
from tests.helpers.skips import with_skips

# cases whose advantages have statistics over all groups
GLOBAL = [name for name in CASES if "mean" in name or "whitened" in name or "separate" in name]
GROUPED = ["REINFORCE, leave one out", "RLOO", "GRPO", "PathConsistency"]
ADAPTIVE_KL = {"kl_target": 0.16, "kl_horizon": COUNT}
# completions whose rewards failed: rank 0 has 5 of 8 left, rank 1 has 7; or rank 1 has none
SKIPPED = {"some": [0, 3, 5, 12], "all of rank 1": list(range(COUNT // 2, COUNT))}


def all_reduced(agent: Any, rollout: Rollout) -> list[tuple[int, torch.dtype]]:
    """The size and dtype of each tensor that is all-reduced while the agent trains."""
    tensors: list[tuple[int, torch.dtype]] = []

    def counted(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        tensors.append((x.numel(), x.dtype))
        return all_reduce(x, *args, **kwargs)

    all_reduce = torch.distributed.all_reduce
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "all_reduce", counted)
        agent.train(rollout)
    return tensors


def update(agent: Any, rollout: Rollout) -> dict[str, Any]:
    """Metrics, beta and timesteps of one update of `learn` with this rollout."""
    rows: list[dict[str, float]] = []
    agent.collect = lambda: rollout
    agent.learn(1, callback=lambda _agent, _rollout, metrics: rows.append(metrics))
    return {"metrics": rows[0], "kl_coef": agent.kl_coef, "num_timesteps": agent.num_timesteps}


def second_half_off_policy(rollout: Rollout) -> Rollout:
    """The rollout with log-probabilities of the trained policy, but far from it in the second half."""
    env = task()
    on_policy = random_policy(env).evaluate_actions(
        rollout.input_ids, rollout.attention_mask, rollout.num_tokens, rollout.action_mask, values=False
    )
    shift = torch.arange(COUNT)[:, None] >= COUNT // 2
    return replace(rollout, log_probs=torch.where(rollout.mask, on_policy.log_probs.detach() + shift, 0.0))


def with_a_replay(folder: Path) -> dict[str, Any]:
    """A run of four updates, one that is saved and loaded after two, and the replay of this rank."""
    whole, agent = (agent_of("PathConsistency", learning_rate=1e-2, replay_size=3) for _ in range(2))
    for each in (whole, agent):
        each.policy.float()  # as it is saved
    whole.learn(100_000, callback=stop_after(4))
    agent.learn(100_000, callback=stop_after(2))
    agent.save(folder / "replay")
    gather_objects(None)  # wait until rank 0 has written it
    loaded = PathConsistency.load(folder / "replay", env=task())
    replay = [each.input_ids for each in loaded.replay.rollouts]
    kept = [x.equal(y.input_ids) for x, y in zip(replay, agent.replay.rollouts, strict=True)]
    loaded.learn(100_000, callback=stop_after(4), reset_num_timesteps=False)
    weights = [torch.cat([p.detach().flatten() for p in each.policy.parameters()]) for each in (whole, loaded)]
    return {"replay": replay, "replay kept": kept, "replayed": weights, "replay folder": str(folder / "replay")}


def results(r: int, folder: Path) -> dict[str, Any]:
    """The results of rank r, with whole weights on each rank."""
    rollout, found = all_completions(), {}
    for name in CASES:
        found[name] = gradient(agent_of(name), half(rollout, r))
    for case, rows in SKIPPED.items():
        for name in CASES:
            found[f"{name}, {case}"] = gradient(agent_of(name), half(with_skips(rollout, rows), r))
        found[f"update, {case}"] = update(agent_of("PPO", **ADAPTIVE_KL), half(with_skips(rollout, rows), r))
    found["bfloat16"] = gradient(bfloat16_agent(), half(rollout, r))
    found["all-reduced"] = all_reduced(bfloat16_agent("RLOO", n_epochs=2), half(rollout, r))
    policy = random_policy(task(), seed=r)
    found["own weights"] = torch.cat([p.detach().flatten() for p in policy.parameters()])
    begun = RLOO(policy, task(), n_episodes=COUNT)
    found["initial weights"] = torch.cat([p.detach().flatten() for p in begun.optimization.trained])
    found["update"] = update(agent_of("PPO", **ADAPTIVE_KL), half(rollout, r))
    found["timesteps with continuations"] = update(agent_of("REINFORCE, q, mean"), half(rollout, r))["num_timesteps"]
    agent = agent_of("PPO", target_kl=0.1)
    found["minibatches"] = agent.train(half(second_half_off_policy(rollout), r))["num_minibatches"]
    agent, stderr = agent_of("RLOO"), io.StringIO()
    with contextlib.redirect_stderr(stderr):
        agent.learn(100_000, callback=lambda agent, *_: r == 0 or agent.num_updates < 2, progress_bar=True)
    found["stopped after"], found["stderr"] = agent.num_updates, stderr.getvalue()
    agent = agent_of("REINFORCE, mean", learning_rate=1e-2)
    found["seed"] = agent.generator.initial_seed()
    agent.learn(200)
    agent.save(folder / "saved")
    gather_objects(None)  # wait until rank 0 has written it
    found["trained"] = torch.cat([p.detach().flatten() for p in agent.optimization.trained])
    found["timesteps"] = agent.num_timesteps
    loaded = REINFORCE.load(folder / "saved", env=task())
    found["collected"] = [a.collect().input_ids for a in (agent, loaded)]
    found |= with_a_replay(folder)
    found["from rank 0"] = run_on_rank0(lambda: f"from {r}")
    found["ranks"] = (rank(), world_size(), all_reduce_sum(torch.tensor(r + 1.0)).item(), gather_objects(r))
    try:
        agent_of("GRPO", n_episodes=12)
    except ValueError as error:
        found["error"] = str(error)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of both ranks."""
    return run_on_two_ranks(results, tmp_path_factory.mktemp("ranks"))


# -- gradients ---------------------------------------------------------------------------------------------------------


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
def test_gradients_are_all_reduced_once_per_step(ranks: list[dict[str, Any]]) -> None:
    """In float32, in two epochs of two micro-batches each; RLOO's unused value head is not all-reduced.

    Besides these, once per step, one integer: the number of completions that are not skipped.
    """
    agent = bfloat16_agent("RLOO")
    num_trained = sum(p.numel() for p in agent.policy.model.parameters())
    for found in ranks:
        assert [number for number, dtype in found["all-reduced"] if dtype != torch.float32] == [1, 1]
        assert sum(number for number, dtype in found["all-reduced"] if dtype == torch.float32) == 2 * num_trained


@pytest.mark.slow
@pytest.mark.parametrize("case", SKIPPED)
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_skip_what_one_skips(name: str, case: str, ranks: list[dict[str, Any]]) -> None:
    """The gradient is that of one rank, where the ranks have different numbers of completions left, or one has none.

    Control: a mean over ranks that is not weighted by these numbers is another gradient.
    """
    rollout = with_skips(all_completions(), SKIPPED[case])
    whole = gradient(agent_of(name), rollout)
    found = [each[f"{name}, {case}"] for each in ranks]
    assert torch.equal(*found)
    assert distance(found[0], whole) < EXACT
    unweighted = sum(gradient(agent_of(name), half(rollout, r)) for r in range(2)) / 2
    assert distance(unweighted, whole) > BROKEN


@pytest.mark.slow
@pytest.mark.parametrize("case", SKIPPED)
def test_metrics_of_two_ranks_are_those_of_what_is_left(case: str, ranks: list[dict[str, Any]]) -> None:
    """Metrics, beta and timesteps equal those of one rank; skipped completions are counted over both."""
    rollout = with_skips(all_completions(), SKIPPED[case])
    whole = update(agent_of("PPO", **ADAPTIVE_KL), rollout)
    for found in ranks:
        assert found[f"update, {case}"]["metrics"] == pytest.approx(whole["metrics"], rel=1e-5, abs=1e-9)
        assert found[f"update, {case}"]["kl_coef"] == pytest.approx(whole["kl_coef"], rel=1e-6)
        assert found[f"update, {case}"]["num_timesteps"] == whole["num_timesteps"]
    assert whole["metrics"]["completions/skipped"] == len(SKIPPED[case])


@pytest.mark.parametrize("name", CASES)
def test_local_statistics_have_another_gradient(name: str) -> None:
    """Control: the mean of two independent gradients is right only if no statistic spans several groups."""
    rollout = all_completions()
    whole = gradient(agent_of(name), rollout)
    independent = sum(gradient(agent_of(name), half(rollout, r)) for r in range(2)) / 2
    error = distance(independent, whole)
    assert error > BROKEN if name in GLOBAL else error < EXACT


@pytest.mark.parametrize("name", GROUPED)
def test_split_groups_have_another_gradient(name: str) -> None:
    """Control: each rank needs whole groups, since in half a group a completion is compared with fewer others."""
    rollout = all_completions()
    whole = gradient(agent_of(name), rollout)
    split = [torch.arange(COUNT).view(-1, 2)[r::2].flatten() for r in range(2)]
    independent = sum(gradient(agent_of(name, num_generations=2), rollout[rows]) for rows in split) / 2
    assert distance(independent, whole) > BROKEN


# -- weights, metrics, counts, stops -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_ranks_start_with_the_policy_of_rank_0(ranks: list[dict[str, Any]]) -> None:
    """Although each rank created a different one."""
    first = ranks[0]["own weights"]
    assert not first.equal(ranks[1]["own weights"])
    assert all(found["initial weights"].equal(first) for found in ranks)


@pytest.mark.slow
def test_a_callback_of_one_rank_stops_all(ranks: list[dict[str, Any]]) -> None:
    """Rank 1's callback, in the second update; rank 0 shows the progress bar."""
    assert [found["stopped after"] for found in ranks] == [2, 2]
    assert "tok" in ranks[0]["stderr"] and ranks[1]["stderr"] == ""


@pytest.mark.slow
def test_metrics_beta_and_timesteps_are_those_of_all_completions(ranks: list[dict[str, Any]]) -> None:
    """They equal those of one rank; control: beta and explained variance of one half differ."""
    rollout = all_completions()
    whole, one_half = (update(agent_of("PPO", **ADAPTIVE_KL), part) for part in (rollout, half(rollout, 0)))
    for found in (ranks[0]["update"], ranks[1]["update"]):
        assert found["num_timesteps"] == whole["num_timesteps"] == int(rollout.mask.sum())
        assert found["kl_coef"] == pytest.approx(whole["kl_coef"], rel=1e-6)
        for name in [
            name for name in whole["metrics"] if name.startswith(("objective", "completions", "loss", "policy"))
        ]:
            assert found["metrics"][name] == pytest.approx(whole["metrics"][name], rel=1e-5), name
        for name in ("val/explained_variance", "val/ratio_error_max", "val/ess", "val/ratio", "grad_norm"):
            assert found["metrics"][name] == pytest.approx(whole["metrics"][name], rel=1e-5), name
    assert abs(one_half["kl_coef"] / whole["kl_coef"] - 1) > BROKEN
    assert abs(one_half["metrics"]["val/explained_variance"] - whole["metrics"]["val/explained_variance"]) > BROKEN


@pytest.mark.slow
def test_tokens_of_continuations_are_counted_once(ranks: list[dict[str, Any]]) -> None:
    """With credit="q" both ranks count the continuations of both, besides the tokens of the rollout."""
    rollout = all_completions()
    whole = update(agent_of("REINFORCE, q, mean"), rollout)["num_timesteps"]
    assert [found["timesteps with continuations"] for found in ranks] == [whole, whole]
    assert whole > int(rollout.mask.sum())


@pytest.mark.slow
def test_all_ranks_stop_at_the_same_minibatch(ranks: list[dict[str, Any]]) -> None:
    """Only one half is far from the old policy; its rank must not stop alone, since the other would wait forever."""
    rollout = second_half_off_policy(all_completions())
    assert [found["minibatches"] for found in ranks] == [0.0, 0.0]
    independent = [agent_of("PPO", target_kl=0.1).train(half(rollout, r))["num_minibatches"] for r in range(2)]
    assert independent == [2.0, 0.0]


@pytest.mark.slow
def test_ranks_sample_different_completions_and_train_one_policy(ranks: list[dict[str, Any]]) -> None:
    """Different prompts and tokens, equal weights and counts; a saved agent resumes each rank's generator."""
    assert torch.equal(ranks[0]["trained"], ranks[1]["trained"])
    assert ranks[0]["timesteps"] == ranks[1]["timesteps"] >= 200
    collected = [found["collected"] for found in ranks]
    for uninterrupted, resumed in collected:
        assert len(uninterrupted) == COUNT // 2 and uninterrupted.equal(resumed)
    assert not collected[0][0].equal(collected[1][0])
    assert ranks[0]["seed"] == 0 != ranks[1]["seed"]  # rank 0 keeps the seed itself, as with world size 1


@pytest.mark.slow
def test_each_rank_resumes_with_its_own_replay(ranks: list[dict[str, Any]]) -> None:
    """Bit for bit, with different completions on each rank; with another world size the replay begins empty."""
    for found in ranks:
        assert found["replay kept"] == [True, True] and torch.equal(*found["replayed"])
    assert torch.equal(ranks[0]["replayed"][0], ranks[1]["replayed"][0])
    assert not torch.equal(ranks[0]["replay"][0], ranks[1]["replay"][0])
    alone = PathConsistency.load(ranks[0]["replay folder"], env=task())
    assert not alone.replay.rollouts and alone.num_updates == 2
    alone.learn(100, reset_num_timesteps=False)


# -- the functions -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_collectives(ranks: list[dict[str, Any]]) -> None:
    """Rank, world size, a sum, a list, and the result of rank 0; shares that are not whole groups are refused."""
    for r, found in enumerate(ranks):
        assert found["ranks"] == (r, 2, 3.0, [0, 1])
        assert found["from rank 0"] == "from 0"
        assert "n_episodes must be a multiple of 8" in found["error"]


def test_without_a_launcher_the_functions_are_no_ops() -> None:
    """With world size 1."""
    x = torch.tensor([1.0, 2.0])
    assert all_reduce_sum(x) is x and gather_objects(3) == [3] and run_on_rank0(lambda: 4) == 4
    assert (rank(), world_size(), rank_seed(7), rank_seed(None)) == (0, 1, 7, None)


def test_the_minibatches_of_all_ranks_partition_the_completions() -> None:
    """Each rank's minibatches partition its own completions, so together they cover all without repetition."""
    per_rank = [minibatches(8, 2, 4, torch.Generator().manual_seed(r)) for r in range(2)]
    epochs = [torch.cat([per_rank[r][i] + 8 * r for i in (2 * e, 2 * e + 1) for r in range(2)]) for e in range(2)]
    for rows in epochs:
        assert rows.sort().values.tolist() == list(range(16))
