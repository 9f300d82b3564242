"""Each metric of an update is its definition, computed by tests.helpers.equations in loops over the tokens.

The completions have different lengths, and ratios far from 1: padding, minibatches of different sizes, micro-batches
and ranks would each change a wrong mean.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from agents import GRPO, PPO, REINFORCE, RLOO, ActorCritic, PathConsistency
from agents.sampling import Rollout, new_generator
from tests.helpers import equations
from tests.helpers.agents import every_kind
from tests.helpers.policies import random_policy
from tests.helpers.rollouts import COUNT, GROUP, skipping, task, uneven_rollout
from tests.helpers.threads import on_threads

SETTINGS: dict[str, Any] = {"gamma": 0.9, "learning_rate": 0.01, "n_episodes": COUNT, "num_generations": GROUP}
SEVERAL = {"n_epochs": 2, "batch_size": 3}  # minibatches of 3, 3 and 2 completions
EPOCHS = (PPO, RLOO, GRPO)
WHOLE = {"micro_batch_size": GROUP}  # of PathConsistency, which splits no group and has no discount


def agent_of(kind: Any, policy: Any = None, **settings: Any) -> Any:
    """An agent far from the behaviour policy of `uneven_rollout`."""
    policy = random_policy(task()).double() if policy is None else policy
    if kind is PathConsistency:
        settings = settings | {"gamma": 1.0} | (WHOLE if settings.get("micro_batch_size") else {})
    return kind(policy, task(), **(SETTINGS | {"seed": 0} | settings))


def learned(agent: Any, rollout: Rollout) -> dict[str, float]:
    """The metrics of one update of `learn` with this rollout."""
    rows: list[dict[str, float]] = []
    agent.collect = lambda: rollout
    agent.learn(1, callback=lambda _agent, _rollout, metrics: rows.append(metrics))
    return rows[0]


@every_kind
@pytest.mark.parametrize("micro_batch_size", [None, 2])
@pytest.mark.parametrize("several", [False, True])
def test_the_metrics_of_an_update_are_their_definitions(kind: Any, micro_batch_size: int | None, several: bool) -> None:
    """Means over tokens (RLOO: completions) of a minibatch, then over minibatches; the largest and the least of two."""
    settings = {"micro_batch_size": micro_batch_size} | (SEVERAL if several and kind in EPOCHS else {})
    rollout = uneven_rollout(task(), spread=0.8)
    expected = equations.update(agent_of(kind, **settings), rollout).metrics
    found = agent_of(kind, **settings).train(rollout)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    if kind in EPOCHS:
        assert found["num_minibatches"] == (6 if several else 4 if kind in (PPO, GRPO) else 1)
        assert min(found["policy/clipfrac_high_avg"], found["policy/clipfrac_low_avg"]) > 0


@every_kind
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_metrics_of_a_rollout_are_their_definitions(kind: Any, estimator: str) -> None:
    """Sums over a completion, then the mean over completions: entropy, KL, score and return, lengths."""
    rollout = uneven_rollout(task())
    found = learned(agent_of(kind, kl_estimator=estimator), rollout)
    expected = equations.rollout_metrics(rollout, estimator)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert len(set(expected.values())) == len(expected) == 8


@pytest.mark.parametrize("skipped", [(), (0, 5, 6, 7, 30)])
@pytest.mark.parametrize("group", [1, GROUP])
def test_the_statistics_of_a_batch_are_their_definitions(group: int, skipped: tuple[int, ...]) -> None:
    """Standard errors, the share of groups with equal scores, and the noise of the score; of two ranks too."""
    rollout = uneven_rollout(task(), count=32)
    noise = 0.1 * torch.randn(32, generator=new_generator("cpu", 0))
    noise[8:16] = -rollout.scores[8:16]  # two groups with equal scores
    rollout = skipping(replace(rollout, scores=rollout.scores + noise), *skipped)
    expected = equations.batch_statistics(rollout, group)
    assert len(expected) == 4 and (expected["groups/equal_scores_ratio"] > 0) == (group > 1)
    settings = {"num_generations": group, "n_episodes": 32}
    policies = [random_policy(task()).double() for _ in range(2)]

    def train(rank: int) -> dict[str, float]:
        return learned(agent_of(ActorCritic, policies[rank], **settings), rollout[slice(rank * 16, rank * 16 + 16)])

    alone = learned(agent_of(ActorCritic, **settings), rollout)
    assert {name: alone[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    noise_share = expected.pop("objective/score_noise")
    for found in on_threads(train):
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
        assert found["objective/score_noise"] == pytest.approx(noise_share, rel=0.2)  # repeats within a rank alone


# settings whose statistics span the batch, beside the defaults
WHITENED: dict[Any, dict[str, Any]] = {
    REINFORCE: {"baseline": "mean"},
    ActorCritic: {"normalize_advantage": True},
    PPO: {"normalize_advantage": True},
    RLOO: {"clip_range": None},
    GRPO: {"scale_rewards": False},
    PathConsistency: {"n_epochs": 1},
}
SKIPPED = [(), (1,), (1, 4, 5, 6), (4, 5, 6, 7)]  # one of the first group; all but one, and all, of the second


@every_kind
@pytest.mark.parametrize("skipped", SKIPPED)
@pytest.mark.parametrize("several", [False, True])
def test_completions_that_are_skipped_are_in_no_mean(kind: Any, skipped: tuple[int, ...], several: bool) -> None:
    """Neither in metrics nor in baselines, deviations and losses: an update is that of the equations without them."""
    settings = {"micro_batch_size": 2} | (SEVERAL if several and kind in EPOCHS else {})
    for more in ({}, WHITENED[kind]):
        rollout = skipping(uneven_rollout(task(), spread=0.8), *skipped)
        whole = equations.update(agent_of(kind, **settings, **more), rollout)
        agent = agent_of(kind, **settings, **more)
        found, expected = learned(agent, rollout), whole.metrics | equations.rollout_metrics(rollout)
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert found["completions/skipped"] == len(skipped)
        for name, parameter in agent.policy.named_parameters():
            torch.testing.assert_close(parameter.detach(), whole.weights[name], rtol=0, atol=2e-5)


@every_kind
@pytest.mark.parametrize("skipped", SKIPPED)
@pytest.mark.parametrize("whitened", [False, True])
def test_two_ranks_have_the_metrics_and_the_update_of_all_completions(
    kind: Any, skipped: tuple[int, ...], whitened: bool
) -> None:
    """Each rank trains on half of the completions: metrics, beta and weights are those of the equations for all.

    Control: one half alone has others.
    """
    more = WHITENED[kind] if whitened else {}
    settings = {"micro_batch_size": 3, "kl_target": 0.2, "kl_horizon": COUNT} | more
    rollout = skipping(uneven_rollout(task(), spread=0.8), *skipped)
    policies = [random_policy(task()).double() for _ in range(3)]
    whole = equations.update(agent_of(kind, **more), rollout)
    expected = whole.metrics | equations.rollout_metrics(rollout)

    def train(rank: int) -> tuple[Any, dict[str, float]]:
        agent = agent_of(kind, policies[rank], **settings)
        half = slice(rank * COUNT // 2, (rank + 1) * COUNT // 2)
        return agent, learned(agent, rollout[half])

    for agent, metrics in on_threads(train):
        assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert rollout.lengths is not None and agent.num_timesteps == int(rollout.lengths.sum())
        error = min(max(expected["objective/kl"] / 0.2 - 1, -0.2), 0.2)
        share = (COUNT - len(skipped)) / COUNT
        assert agent.kl_coef == pytest.approx(0.5 * (1 + error * share), rel=1e-6) and error != 0
        for name, parameter in agent.policy.named_parameters():
            torch.testing.assert_close(parameter.detach(), whole.weights[name], rtol=0, atol=2e-5)
    if not skipped:
        alone = learned(agent_of(kind, policies[2], n_episodes=COUNT // 2, **more), rollout[slice(0, COUNT // 2)])
        same = {name for name in expected if math.isclose(alone[name], expected[name], rel_tol=1e-2)}
        assert len(same) < 6 and not same & {"objective/kl", "objective/entropy", "loss/policy_avg"}


# -- controls: each is a mistake that a comparison of two ways of computing would not see ------------------------------


def test_the_direction_of_the_kl_between_the_policies_matters() -> None:
    """KL(pi_old || pi) by k3 is the mean of rho - 1 - log rho; with the log-ratio reversed it is another number."""
    rollout = uneven_rollout(task(), spread=0.8)
    found = agent_of(PPO, n_epochs=1).train(rollout)["policy/approxkl_avg"]
    new = (
        random_policy(task())
        .double()
        .evaluate_actions(
            rollout.input_ids, rollout.attention_mask, rollout.num_tokens, rollout.action_mask, values=False
        )
    )
    log_rho = (new.log_probs.detach() - rollout.log_probs)[rollout.mask].double()
    assert found == pytest.approx(float((log_rho.exp() - 1 - log_rho).mean()), rel=1e-4)
    assert found != pytest.approx(float(((-log_rho).exp() - 1 + log_rho).mean()), rel=1e-2)


def test_the_entropy_is_that_of_a_completion() -> None:
    """Not that of a token."""
    rollout = uneven_rollout(task())
    found = learned(agent_of(REINFORCE), rollout)["objective/entropy"]
    per_token = -float(rollout.log_probs[rollout.mask].mean())
    assert found == pytest.approx(per_token * float(rollout.mask.sum()) / COUNT, rel=1e-4)
    assert found > 1.5 * per_token


def test_without_a_reference_there_is_no_kl() -> None:
    """Environments of other libraries have none; the other metrics of the rollout stay."""
    rollout = uneven_rollout(task())
    unknown = replace(rollout, ref_log_probs=torch.full_like(rollout.ref_log_probs, torch.nan))
    missing = learned(agent_of(REINFORCE), rollout).keys() - learned(agent_of(REINFORCE), unknown).keys()
    assert missing == {"objective/kl", "objective/kl_stderr", "objective/non_score_reward", "objective/rlhf_reward"}


# -- completeness ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:no_completion_ends")
@every_kind
def test_every_metric_has_a_definition(kind: Any) -> None:
    """A new metric of an agent needs its definition in tests/helpers/equations.py, or a test that is named here."""
    elsewhere = {
        "objective/kl_coef",  # tests/agents/test_settings.py
        "completions/skipped",  # above
        "completions/skipped_groups",  # tests/agents/test_skipped.py
        "completions/skipped_continuations",
        "num_skipped_steps",  # tests/agents/training/test_divergence.py
        "policy/weight_change",  # below
    }
    rollout = uneven_rollout(task())
    emitted, own = set[str](), {"credit": "q"} if kind is REINFORCE else {}

    def keep(agent: Any, rollout: Any, metrics: dict[str, float]) -> bool:
        emitted.update(metrics)
        return agent.num_updates < 12

    agent_of(kind, kl_target=0.2, **own).learn(10**9, callback=keep)
    emitted |= learned(agent_of(kind, kl_target=0.2), rollout).keys()
    defined = equations.update(agent_of(kind), rollout).metrics | equations.rollout_metrics(rollout)
    defined |= equations.batch_statistics(uneven_rollout(task(), count=32), GROUP)
    assert {name for name in emitted - elsewhere - defined.keys() if not name.startswith("warnings/")} == set()
    assert defined.keys() - {"objective/score_noise"} <= emitted  # few completions are repeated in a small batch
    assert ("val/mean" in emitted) == (kind is ActorCritic)


@pytest.mark.filterwarnings("ignore:no_completion_ends")
@every_kind
def test_the_weight_change_is_the_distance_of_ten_updates(kind: Any) -> None:
    """|w_11 - w_1| / |w_1| of the policy's model, once."""
    weights, found = list[torch.Tensor](), list[float | None]()

    def keep(agent: Any, rollout: Any, metrics: dict[str, float]) -> bool:
        weights.append(torch.cat([p.detach().flatten().clone() for p in agent.policy.model.parameters()]))
        found.append(metrics.get("policy/weight_change"))
        return agent.num_updates < 14

    agent_of(kind).learn(10**9, callback=keep)
    expected = float((weights[10] - weights[0]).norm() / weights[0].norm())
    assert found == [None] * 10 + [pytest.approx(expected)] + [None] * 3
