"""Agents learn from a rollout with skipped completions what they learn from the rollout without these rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import agents.reinforce
from agents import GRPO, PPO, REINFORCE, RLOO, ActorCritic, PathConsistency
from agents.functional import adaptive_kl_coef, reward_to_go
from agents.sampling import Rollout, collect
from agents.training import rollout_metrics
from tests.helpers.agents import FOREVER, agent_of, every_kind, stop_after, task
from tests.helpers.skips import with_skips, without
from tests.helpers.tasks import letter_values
from textenv.rewards import RewardError

COUNT, GROUP = 16, 4
ROWS = [0, 3, 5, 6, 12, 15]  # of groups 0, 1 and 3
SKIP = {"on_reward_error": "skip", "reward_tries": 1, "reward_wait": 0.0}
UNGROUPED: dict[str, tuple[Any, dict[str, Any]]] = {
    "REINFORCE": (REINFORCE, {"baseline": None}),
    "REINFORCE, mean": (REINFORCE, {"baseline": "mean", "gamma": 0.9}),
    "REINFORCE, sequence, mean": (REINFORCE, {"baseline": "mean", "credit": "sequence"}),
    "ActorCritic": (ActorCritic, {}),
    "ActorCritic, whitened": (ActorCritic, {"normalize_advantage": True}),
    "PPO": (PPO, {"n_epochs": 3}),
    "PPO, whitened": (PPO, {"normalize_advantage": True, "clip_range_vf": 0.1, "n_epochs": 2}),
}
GROUPED: dict[str, tuple[Any, dict[str, Any]]] = {
    "REINFORCE, leave one out": (REINFORCE, {"baseline": "leave_one_out"}),
    "REINFORCE, sequence, leave one out": (REINFORCE, {"baseline": "leave_one_out", "credit": "sequence"}),
    "RLOO": (RLOO, {"n_epochs": 2}),
    "GRPO": (GRPO, {"n_epochs": 2}),
    "PathConsistency": (PathConsistency, {"n_epochs": 2}),
    "GRPO, centred": (GRPO, {"n_epochs": 2, "scale_rewards": False}),
}
COMPARING = (RLOO, GRPO, PathConsistency)  # agents that compare the completions of a group
SIZES = pytest.mark.parametrize("size", [None, 1, 3, 5])


def micro_batch_size(name: str, size: int | None) -> int | None:
    """Some completions; of an agent that does not split groups, some groups."""
    return size if size is None or name != "PathConsistency" else size * GROUP


def completions(count: int = COUNT) -> Rollout:
    """Completions of another policy than the one to train, in groups, with returns and values of their own."""
    env = task()
    rollout = agent_of(PPO, env, n_episodes=count, num_generations=GROUP, seed=5).collect()
    noise = [torch.randn(rollout.mask.shape, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    return replace(
        rollout,
        rewards=torch.where(rollout.mask, rollout.rewards + noise[0], 0.0),
        log_probs=torch.where(rollout.mask, rollout.log_probs + 0.3 * noise[1], 0.0),
        values=torch.where(rollout.mask, noise[2], 0.0),
    )


def train(case: tuple[Any, dict[str, Any]], rollout: Rollout, **settings: Any) -> tuple[Tensor, dict[str, float]]:
    """The weights after an update, relative to those before, and its metrics."""
    kind, own = case
    agent = agent_of(
        kind, n_episodes=len(rollout), **{"num_generations": GROUP, "learning_rate": 1e-2} | own | settings
    )
    before = torch.cat([p.detach().flatten().clone() for p in agent.policy.parameters()])
    metrics = agent.train(rollout)
    return torch.cat([p.detach().flatten() for p in agent.policy.parameters()]) - before, metrics


def check_same(found: tuple[Tensor, dict[str, float]], expected: tuple[Tensor, dict[str, float]]) -> None:
    """Equal but for rounding, which Adam's division by small gradients makes larger."""
    torch.testing.assert_close(found[0], expected[0], rtol=1e-3, atol=2e-5)
    assert found[1] == pytest.approx(expected[1], rel=2e-4, abs=1e-5)


@pytest.mark.parametrize("name", UNGROUPED)
@SIZES
def test_skipped_completions_are_as_if_they_were_not_there(name: str, size: int | None) -> None:
    """Weights and metrics after an update, whatever the micro-batches. Control: a score of 0 instead is another."""
    rollout, case = completions(), UNGROUPED[name]
    found = train(case, with_skips(rollout, ROWS), micro_batch_size=size)
    check_same(found, train(case, without(rollout, ROWS), num_generations=1))
    silent = replace(with_skips(rollout, ROWS), mask=rollout.mask)
    with pytest.raises(AssertionError):
        check_same(found, train(case, silent, micro_batch_size=size))


@pytest.mark.parametrize("name", GROUPED)
@SIZES
def test_groups_are_compared_without_their_skipped_completions(name: str, size: int | None) -> None:
    """With one skipped in each group, the update is that of groups that are smaller by one."""
    rollout, case, rows = completions(), GROUPED[name], [1, 6, 8, 15]
    size = micro_batch_size(name, size)
    found = train(case, with_skips(rollout, rows), micro_batch_size=size)
    check_same(found, train(case, without(rollout, rows), num_generations=GROUP - 1))
    silent = replace(with_skips(rollout, rows), mask=rollout.mask)
    with pytest.raises(AssertionError):
        check_same(found, train(case, silent, micro_batch_size=size))


@pytest.mark.parametrize("name", GROUPED)
@SIZES
def test_a_group_with_fewer_than_two_left_is_skipped(name: str, size: int | None) -> None:
    """The one that is left has nothing to be compared with: the update is that of the other groups."""
    rollout, case = completions(), GROUPED[name]
    rows = [0, 1, 2, 4, 5, 6, 7]  # group 0 has one left, group 1 none
    found = train(case, with_skips(rollout, rows), micro_batch_size=micro_batch_size(name, size))
    check_same(found, train(case, without(rollout, range(8))))
    if case[1].get("credit") != "sequence" and case[0] is REINFORCE:  # control: the one that is left has an effect
        alone = train((REINFORCE, {"baseline": "mean"}), with_skips(rollout, rows))
        assert not torch.allclose(alone[0], train((REINFORCE, {"baseline": "mean"}), without(rollout, range(8)))[0])


@pytest.mark.parametrize("name", GROUPED)
def test_groups_of_different_sizes_are_weighted_by_their_completions(name: str) -> None:
    """The gradient is the mean over completions of each group's own gradient, with 4, 3 and 2 left."""
    rollout, (kind, own) = completions(), GROUPED[name]
    settings = own | ({} if kind is REINFORCE else {"n_epochs": 1})
    rows = [5, 8, 11, 12, 13, 14]

    def gradient(rollout: Rollout, size: int) -> Tensor:
        agent = agent_of(kind, n_episodes=len(rollout), num_generations=size, max_grad_norm=1e9, **settings)
        agent.train(rollout)
        return torch.cat([p.grad.flatten() for p in agent.policy.model.parameters()])

    found = gradient(with_skips(rollout, rows), GROUP)
    each = [without(rollout, [*rows, *set(range(COUNT)) - set(range(s, s + GROUP))]) for s in (0, 4, 8)]
    assert [len(group) for group in each] == [4, 3, 2]
    expected = sum(len(group) * gradient(group, len(group)) for group in each) / 9
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    unweighted = sum(gradient(group, len(group)) for group in each) / 3
    assert not torch.allclose(found, unweighted, rtol=1e-2, atol=1e-4)  # control


@every_kind
def test_without_skips_nothing_changes(kind: Any) -> None:
    """A task that may skip gives the same run as one that may not, to the bit."""
    runs = []
    for arguments in ({}, SKIP):
        rows: list[dict[str, float]] = []
        agent = agent_of(kind, task(**arguments))
        agent.learn(FOREVER, callback=lambda agent, _, metrics: (rows.append(metrics), len(rows) < 2)[1])  # noqa: B023
        runs.append((rows, torch.cat([p.detach().flatten() for p in agent.policy.parameters()])))
    assert runs[0][0] == runs[1][0] and runs[0][1].equal(runs[1][1])
    assert runs[0][0][0]["completions/skipped"] == runs[0][0][0]["completions/skipped_groups"] == 0


# -- continuations -----------------------------------------------------------------------------------------------------


class Patient:
    """`letter_values`, which fails for completions that end with the token `bad`, once it is told to."""

    def __init__(self, bad: set[int]) -> None:
        self.bad, self.failing = bad, False

    def __call__(self, prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Any:
        """Scores; nan where it fails."""
        scores = letter_values(prompts, completions, completion_ids)
        bad = [self.failing and ids[-1] in self.bad for ids in completion_ids]
        return [float("nan") if failed else score for failed, score in zip(bad, scores, strict=True)]


@pytest.mark.filterwarnings("ignore:.*completions are skipped")
def test_skipped_continuations_are_left_out_of_q(monkeypatch: pytest.MonkeyPatch) -> None:
    """Q is r_t and the mean over the continuations that are left; where none is, the completion's own reward to go."""
    reward = Patient({0, 1, 2})
    agent = agent_of(REINFORCE, task(reward=reward, **SKIP), credit="q", num_continuations=2, gamma=0.9)
    rollout, drawn = agent.collect(), []
    monkeypatch.setattr(agents.reinforce, "collect", lambda *a, **k: (drawn.append(collect(*a, **k)), drawn[-1])[1])
    reward.failing = True
    found = agent.q_values(rollout)
    to_go = reward_to_go(rollout.rewards, rollout.mask, 0.9)
    (continuations,) = drawn
    returns = reward_to_go(continuations.rewards, continuations.mask, 0.9)
    states = [(row, t) for row in range(COUNT) for t in range(int(rollout.mask[row].sum()) - 1)]
    own = 0
    for number, (row, t) in enumerate(states):
        kept = [i for i in range(2 * number, 2 * number + 2) if continuations.mask[i].any()]
        own += not kept
        after = sum(float(returns[i, t + 1]) for i in kept) / len(kept) if kept else float(to_go[row, t + 1])
        assert found[row, t] == pytest.approx(float(rollout.rewards[row, t]) + 0.9 * after, rel=1e-5, abs=1e-6)
    skipped = int((~continuations.valid).sum())
    assert 0 < own < len(states) and 2 * own < skipped < len(continuations)
    assert agent.skipped_continuations == skipped and agent.num_timesteps == int(continuations.num_sampled)


def test_without_any_continuation_q_is_the_reward_to_go() -> None:
    """Every continuation fails; the metric counts them."""
    reward = Patient({0, 1, 2, 3})
    agent = agent_of(REINFORCE, task(reward=reward, **SKIP), credit="q")
    rollout = agent.collect()
    reward.failing = True
    with pytest.warns(UserWarning, match="skipped"):
        found = agent.q_values(rollout)
    assert torch.allclose(found, reward_to_go(rollout.rewards, rollout.mask), atol=1e-6)
    tokens = int((rollout.mask.sum(dim=1) - 1).sum())
    assert agent.train(rollout)["completions/skipped_continuations"] == agent.num_continuations * tokens > 0


# -- learn -------------------------------------------------------------------------------------------------------------


def learn_once(kind: Any, rollout: Rollout, **settings: Any) -> tuple[Any, dict[str, float]]:
    """An agent after one update with this rollout, and its metrics."""
    agent, rows = agent_of(kind, **{"num_generations": GROUP} | settings), list[dict[str, float]]()
    agent.collect = lambda: rollout
    agent.learn(1, callback=lambda agent, _, metrics: rows.append(metrics))
    return agent, rows[0]


@every_kind
def test_metrics_are_means_over_what_is_left(kind: Any) -> None:
    """Those of the rollout without the skipped rows, which are counted; sampled tokens count all the same."""
    rollout = completions()
    found, expected = with_skips(rollout, ROWS), without(rollout, ROWS)
    agent, metrics = learn_once(kind, found)
    names = rollout_metrics(expected).keys() - {"num_completions", "num_trained", "completions/skipped_groups"}
    wanted = {name: rollout_metrics(expected)[name] for name in names} | {"completions/skipped": len(ROWS)}
    assert {name: metrics[name] for name in names} == pytest.approx(wanted, rel=1e-6)
    assert agent.num_timesteps == int(rollout.mask.sum())
    healthy = learn_once(kind, rollout)[1]
    assert healthy["completions/skipped"] == 0 and healthy["objective/kl"] != pytest.approx(metrics["objective/kl"])


def test_groups_that_are_not_trained_on_are_counted() -> None:
    """Those with fewer than two left, for agents that compare the completions of a group; else those with none."""
    rollout = with_skips(completions(), [0, 1, 2, 4, 5, 6, 7, 9])
    counted = {kind: learn_once(kind, rollout)[1]["completions/skipped_groups"] for kind in (*COMPARING, PPO)}
    assert counted == dict.fromkeys(COMPARING, 2) | {PPO: 1}
    assert learn_once(REINFORCE, rollout, baseline="mean")[1]["completions/skipped_groups"] == 1
    assert learn_once(REINFORCE, rollout)[1]["completions/skipped_groups"] == 2


def test_beta_is_adapted_to_the_completions_that_are_left() -> None:
    """By their KL, and by their number."""
    rollout = completions()
    target = {"kl_target": 0.05, "kl_horizon": 100}
    agent, metrics = learn_once(PPO, with_skips(rollout, ROWS), **target)
    left = COUNT - len(ROWS)
    assert agent.kl_coef == adaptive_kl_coef(agent.mdp.kl_coef, metrics["objective/kl"], 0.05, left, 100)
    assert agent.kl_coef != learn_once(PPO, rollout, **target)[0].kl_coef


@every_kind
def test_a_minibatch_without_completions_is_passed_over(kind: Any) -> None:
    """No optimizer step is taken with it, also with Adam's momentum; there are no metrics of it."""
    own = {"n_epochs": 1} if kind is PathConsistency else {}  # no pass over an earlier rollout
    agent = agent_of(kind, num_generations=GROUP, n_episodes=COUNT, **own)
    agent.learn(FOREVER, callback=stop_after(1))
    before = [p.detach().clone() for p in agent.policy.parameters()]
    steps = {int(state["step"]) for state in agent.optimization.optimizer.state.values()}
    metrics = agent.train(with_skips(completions(), range(COUNT)))
    assert all(map(torch.equal, before, agent.policy.parameters()))
    assert {int(state["step"]) for state in agent.optimization.optimizer.state.values()} == steps
    assert not [name for name in metrics if name.startswith(("loss/", "policy/"))]
    agent.train(completions())  # control
    assert not all(map(torch.equal, before, agent.policy.parameters()))


def test_only_minibatches_with_completions_are_steps() -> None:
    """Of four minibatches the one without is left out of the number of steps and of the means."""
    rollout, agent = completions(), agent_of(PPO, num_generations=1, n_epochs=1, batch_size=4)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(9))
    agent.generator.manual_seed(9)
    metrics = agent.train(with_skips(rollout, order[4:8].tolist()))
    assert metrics["num_minibatches"] == 3 and metrics["val/ess"] > 0
    assert {int(state["step"]) for state in agent.optimization.optimizer.state.values()} == {3}


@pytest.mark.filterwarnings("ignore:.*completions are skipped")
@every_kind
def test_a_batch_without_completions_ends_the_training(kind: Any) -> None:
    """With the last error of the reward; the agent is as it was after the update before."""
    reward = Patient({0, 1, 2, 3})
    agent = agent_of(kind, task(reward=reward, **SKIP))

    def fail(agent: Any, rollout: Rollout, metrics: dict[str, float]) -> None:
        assert metrics["completions/skipped"] == 0
        reward.failing = agent.num_updates == 2

    with pytest.raises(
        RewardError, match=r"No completion of update 3 .*reward_tries.*'Patient' must return .* nan, for"
    ):
        agent.learn(FOREVER, callback=fail)
    assert agent.num_updates == 2
    reward.failing = False
    agent.learn(1, reset_num_timesteps=False)
    assert agent.num_updates == 3


@pytest.mark.parametrize("kind", [RLOO, GRPO, REINFORCE, PathConsistency])
def test_a_batch_without_groups_ends_the_training(kind: Any) -> None:
    """One completion left in each group is nothing to learn from; for an agent without groups it is."""
    rollout = with_skips(completions(), [row for row in range(COUNT) if row % GROUP])
    with pytest.raises(RewardError, match="No completion of update 1 can be trained on"):
        learn_once(kind, rollout)
    assert learn_once(PPO, rollout)[1]["completions/skipped"] == 12
