"""Each setting of each agent changes the update as its docstring says.

`tests.helpers.equations` computes an update from the equations, in loops over tokens. With and without each setting the
weights after `train` are those of the equations; control: the setting makes a difference.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import agents.reinforce as reinforce
from agents import GRPO, PPO, REINFORCE, RLOO, ActorCritic, PathConsistency
from agents.sampling import Rollout, collect, sample
from tests.helpers import equations
from tests.helpers.agents import FOREVER, KINDS, every_kind
from tests.helpers.policies import random_policy
from tests.helpers.rollouts import COUNT, GROUP, task, uneven_rollout

EQUAL, DIFFERENT = 1e-3, 3e-2  # relative errors of the change of the weights; log-probabilities are in single precision

# No setting has a value that hides another: gamma is not 1, the norm of the gradient is not scaled.
ALL: dict[str, Any] = {"gamma": 0.8, "learning_rate": 1e-3, "max_grad_norm": 1e3, "n_episodes": COUNT}
GROUPS: dict[str, Any] = ALL | {"num_generations": GROUP}
CRITIC: dict[str, Any] = ALL | {"gae_lambda": 0.9, "vf_coef": 0.3}
BASE: dict[Any, dict[str, Any]] = {
    REINFORCE: GROUPS,
    ActorCritic: CRITIC,
    PPO: CRITIC | {"n_epochs": 2, "clip_range_vf": 0.3},
    RLOO: GROUPS | {"n_epochs": 2},
    GRPO: GROUPS | {"n_epochs": 2},
    PathConsistency: GROUPS | {"n_epochs": 2, "gamma": 1.0},
}
ONE_STEP: dict[Any, dict[str, Any]] = {kind: {"n_epochs": 1} for kind in (PPO, RLOO, GRPO, PathConsistency)}
COMMON = [
    ("gamma", 1.0),
    ("learning_rate", 3e-3),
    ("max_grad_norm", 0.01),
    ("kl_in", "loss"),
    *(("kl_loss", name) for name in ("k1", "k2", "k3_rho")),
]
LEVELS = [("importance", "sequence"), ("importance", "prefix")]
CRITICS = [
    ("gae_lambda", 0.2),
    ("vf_coef", 1.5),
    ("vf_learning_rate", 0.1),
    ("value_warmup", 1),
    ("normalize_advantage", True),
]
EPOCHS = [("n_epochs", 1), ("batch_size", 2), ("clip_range", 0.05), ("clip_range", None), ("optimizer", "adagrad")]
CHANGES: dict[Any, list[tuple[str, Any]]] = {
    REINFORCE: [
        ("credit", "sequence"),
        ("baseline", None),
        ("baseline", "mean"),
        ("num_generations", 2),
        ("normalize_advantage", True),
    ],
    ActorCritic: CRITICS,
    PPO: [*CRITICS, *EPOCHS, *LEVELS, ("clip_range_vf", 1.0), ("clip_range_vf", None)],
    RLOO: [*EPOCHS, ("num_generations", 2), ("normalize_advantage", True)],
    GRPO: [
        *EPOCHS,
        ("num_generations", 2),
        ("scale_rewards", False),
        ("clip_range_high", 0.6),
        ("clip_range_high", None),
        ("normalize_advantage", True),
        *LEVELS,
        *(("loss", name) for name in ("grpo", "dapo", "gspo", "cispo", "sapo")),
    ],
    PathConsistency: [("n_epochs", 1), ("batch_size", GROUP), ("optimizer", "adagrad"), ("num_generations", 2)],
}
REFUSED = {PathConsistency: {"gamma", "kl_in", "kl_loss"}}  # what has no meaning: test_path_consistency.py
CASES = [
    (kind, name, value)
    for kind in KINDS
    for name, value in [*COMMON, *CHANGES[kind]]
    if name not in REFUSED.get(kind, ())
]


def agent_of(kind: Any, separate_critic: bool = False, **settings: Any) -> Any:
    """An agent far from the behaviour policy of `uneven_rollout`."""
    env = task()
    policy = random_policy(env, separate_critic=separate_critic).double()
    return kind(policy, env, **(BASE[kind] | {"seed": 0} | settings))


def change(before: Any, after: dict[str, Tensor]) -> Tensor:
    """The change of all weights, as one vector."""
    return torch.cat([(after[name] - p.detach()).flatten() for name, p in before.policy.named_parameters()])


def distance(found: Tensor, expected: Tensor) -> float:
    """The relative error."""
    return float((found - expected).norm() / expected.norm())


def trained(agent: Any, rollout: Rollout) -> dict[str, Tensor]:
    """The weights after `train`."""
    agent.train(rollout)
    return {name: p.detach() for name, p in agent.policy.named_parameters()}


@pytest.mark.parametrize(("kind", "name", "value"), CASES, ids=lambda x: getattr(x, "__name__", str(x)))
def test_a_setting_changes_the_update_as_the_equations_say(kind: Any, name: str, value: Any) -> None:
    """The weights after one update, with the setting and (control) without it; they differ."""
    separate = name == "vf_learning_rate"
    start, rollout = agent_of(kind, separate), uneven_rollout(task())
    changes = []
    base = {"kl_in": "loss"} if name == "kl_loss" else {"loss": "grpo"} if value == "dapo" else {}
    for settings in (base, base | {name: value}):
        expected = change(start, equations.update(agent_of(kind, separate, **settings), rollout).weights)
        found = change(start, trained(agent_of(kind, separate, **settings), rollout))
        assert distance(found, expected) < EQUAL
        changes.append(expected)
    assert distance(*changes) > DIFFERENT


@every_kind
def test_the_default_settings_are_those_of_the_equations(kind: Any) -> None:
    """Two updates in a row with default settings, so that Adam has moments."""
    count = max(COUNT, kind.num_generations)
    agent = kind(random_policy(task()).double(), task(), n_episodes=count, seed=0)
    rollout = uneven_rollout(task(), count=count, num_generations=max(GROUP, kind.num_generations))
    first = equations.update(agent, rollout).weights
    found = trained(agent, rollout)
    for name, expected in first.items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-5)


@every_kind
def test_the_optimizer_has_a_state_over_updates(kind: Any) -> None:
    """Two updates from gradients of opposite signs: Adam and Adagrad step as their equations say, and differently."""
    changes = []
    for name, rule in (("adam", equations.Adam()), ("adagrad", equations.Adagrad())):
        start, rollout = agent_of(kind), uneven_rollout(task())
        agent = agent_of(kind, optimizer=name, **ONE_STEP.get(kind, {}))
        expected = {each: p.detach().clone() for each, p in agent.policy.named_parameters()}
        for sign in (1.0, -2.0):
            agent.train(replace(rollout, rewards=sign * rollout.rewards))
            for each, parameter in agent.policy.named_parameters():
                if parameter.grad is not None:
                    rule.step(each, expected[each], parameter.grad, agent.learning_rate)
        found = {each: p.detach() for each, p in agent.policy.named_parameters()}
        changes.append(change(start, expected))
        assert distance(change(start, found), changes[-1]) < EQUAL
    assert distance(*changes) > DIFFERENT


@pytest.mark.parametrize("kind", [PPO, RLOO, GRPO])
def test_target_kl_stops_the_epochs_where_the_kl_exceeds_it_by_half(kind: Any) -> None:
    """Before the step of the first minibatch with KL(pi_old || pi) > 1.5 target_kl, per token (RLOO: completion)."""
    rollout, settings = uneven_rollout(task()), {"n_epochs": 3, "batch_size": 4, "learning_rate": 0.02}
    start = agent_of(kind)
    kls = [row["policy/approxkl_avg"] for row in equations.update(agent_of(kind, **settings), rollout).minibatches]
    for target in (0.99 * max(kls[1:]) / 1.5, 1.01 * max(kls) / 1.5):
        steps = next((i for i, kl in enumerate(kls) if kl > 1.5 * target), len(kls))
        assert 0 < steps < 6 if target < max(kls) / 1.5 else steps == 6
        agent = agent_of(kind, target_kl=target, **settings)
        expected = equations.update(agent, rollout)
        assert expected.metrics["num_minibatches"] == steps
        metrics = agent.train(rollout)
        assert metrics["num_minibatches"] == steps
        seen = kls[: steps + 1]  # the minibatch that exceeds it is in the metrics too
        assert metrics["policy/approxkl_avg"] == pytest.approx(sum(seen) / len(seen), rel=1e-4)
        for name in ("val/ratio_error_max", "val/ess", "grad_norm"):
            assert metrics[name] == pytest.approx(expected.metrics[name], rel=1e-3)
        found = {name: p.detach() for name, p in agent.policy.named_parameters()}
        assert distance(change(start, found), change(start, expected.weights)) < EQUAL


# -- settings of `learn` -----------------------------------------------------------------------------------------------


def batches(kind: Any, updates: int, **settings: Any) -> tuple[Any, list[Rollout], list[dict[str, float]]]:
    """An agent after some updates, with its rollouts and metrics."""
    agent, rollouts, rows = agent_of(kind, **settings), list[Rollout](), list[dict[str, float]]()

    def keep(agent: Any, rollout: Rollout, metrics: dict[str, float]) -> bool:
        rollouts.append(rollout)
        rows.append(metrics)
        return agent.num_updates < updates

    agent.learn(FOREVER, callback=keep)
    return agent, rollouts, rows


@every_kind
def test_n_episodes_is_the_number_of_completions(kind: Any) -> None:
    """Of each update."""
    for count in (COUNT, 2 * COUNT):
        assert [len(rollout) for rollout in batches(kind, 2, n_episodes=count)[1]] == [count] * 2


@every_kind
def test_num_generations_is_the_number_of_contiguous_completions_of_a_prompt(kind: Any) -> None:
    """Groups of 4 have one prompt each; with groups of 2 some prompts change between the two halves."""
    halves = []
    for size in (4, 2):
        rollouts = batches(kind, 4, num_generations=size)[1]
        prompts = np.concatenate([each.prompt.numpy().reshape(-1, size) for each in rollouts])
        assert (prompts == prompts[:, :1]).all() and len(set(prompts[:, 0])) > 1
        halves.append(prompts.reshape(-1, 4))
    assert (halves[1][:, 0] != halves[1][:, -1]).any()


@every_kind
def test_the_seed_determines_prompts_tokens_and_minibatches(kind: Any) -> None:
    """The same seed trains the same weights from the same completions; another seed, or None, does not."""
    found = [batches(kind, 2, seed=seed) for seed in (1, 1, 2, None, None)]
    ids = [[(r.prompt.tolist(), r.tokens.tolist()) for r in rollouts] for _, rollouts, _ in found]
    ends = [torch.cat([p.detach().flatten() for p in agent.policy.parameters()]) for agent, _, _ in found]
    assert ids[0] == ids[1] and ends[0].equal(ends[1])
    assert all(ids[i] != ids[j] for i, j in ((0, 2), (0, 3), (3, 4)))
    if hasattr(found[0][0], "n_epochs"):
        orders = [equations.minibatches(agent_of(kind, seed=seed), COUNT) for seed in (1, 1, 2)]
        assert orders[0] == orders[1] != orders[2]


@every_kind
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_kl_is_measured_by_the_estimator_and_steers_beta(kind: Any, estimator: str) -> None:
    """beta <- beta (1 + clip(kl / kl_target - 1, -0.2, 0.2) n_episodes / kl_horizon), and the next rewards have it."""
    settings = {"kl_estimator": estimator, "kl_target": 0.3, "kl_horizon": 20}
    agent, rollouts, rows = batches(kind, 3, **settings)
    beta, mdp = agent.mdp.kl_coef, agent.mdp
    assert mdp.kl_coef == 0.5
    for rollout, row in zip(rollouts, rows, strict=True):
        kl = equations.rollout_metrics(rollout, estimator)["objective/kl"]
        assert row["objective/kl_coef"] == pytest.approx(beta, rel=1e-6)
        assert row["objective/kl"] == pytest.approx(kl, rel=1e-4, abs=1e-6)
        rewards = torch.where(rollout.mask, -beta * (rollout.log_probs - rollout.ref_log_probs), 0.0)
        returns = rewards.sum(dim=1) + rollout.scores
        torch.testing.assert_close(rollout.rewards.sum(dim=1), returns, rtol=1e-4, atol=1e-4)
        beta *= 1 + min(max(kl / 0.3 - 1, -0.2), 0.2) * COUNT / 20
    assert agent.kl_coef == pytest.approx(beta, rel=1e-5) and abs(beta / 0.5 - 1) > 0.02
    fixed = batches(kind, 2, kl_estimator=estimator)  # control: without a target beta is the task's
    assert fixed[0].kl_coef is None and "objective/kl_coef" not in fixed[2][-1]


@every_kind
def test_micro_batches_bound_the_forward_passes_of_an_update(kind: Any) -> None:
    """No forward pass with a gradient has more than micro_batch_size completions; the update stays the same."""
    rollout, sizes, start = uneven_rollout(task()), list[int](), agent_of(kind)
    size, expected_sizes = (GROUP, [4, 4]) if kind is PathConsistency else (3, [3, 3, 2])  # whole groups
    agent = agent_of(kind, micro_batch_size=size)
    forward = agent.policy.evaluate_actions

    def counted(ids: Tensor, *rest: Any, **more: Any) -> Any:
        sizes.append(len(ids))
        return forward(ids, *rest, **more)

    agent.policy.evaluate_actions = counted
    expected = change(start, equations.update(agent_of(kind, micro_batch_size=size), rollout).weights)
    assert distance(change(start, trained(agent, rollout)), expected) < EQUAL
    assert sizes == expected_sizes * getattr(agent, "n_epochs", 1)


SCHEDULES: dict[str, tuple[dict[str, Any], Any]] = {  # settings, and the factor at a share of the training, by hand
    "constant": ({}, lambda share, update: 1.0),
    "linear": ({"lr_schedule": "linear"}, lambda share, update: 1 - share),
    "cosine": ({"lr_schedule": "cosine"}, lambda share, update: (1 + np.cos(np.pi * share)) / 2),
    "warm-up": ({"lr_warmup": 4}, lambda share, update: min(1, (update + 1) / 4)),
    "both": ({"lr_warmup": 2, "lr_schedule": "linear"}, lambda share, update: (1 - share) * min(1, (update + 1) / 2)),
    "function": ({"learning_rate": lambda share: 1e-3 * 0.5**share}, lambda share, update: 0.5**share),
}


@every_kind
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_step_size_follows_the_schedule(kind: Any, name: str) -> None:
    """All step sizes, that of the critic too, by the share of total_timesteps before the update, and by num_updates."""
    settings, factor = SCHEDULES[name]
    own = {"vf_learning_rate": 0.1} if hasattr(kind, "vf_learning_rate") else {}
    agent, rates, expected = agent_of(kind, **settings, **own), [], []
    train = agent.train

    def recorded(rollout: Rollout) -> dict[str, float]:
        rates.append([group["lr"] for group in agent.optimization.optimizer.param_groups])
        share = agent.num_timesteps / 200
        expected.append([rate * factor(share, agent.num_updates) for rate in (1e-3, own.get("vf_learning_rate", 1e-3))])
        return train(rollout)

    agent.train = recorded
    agent.learn(200)
    assert len(rates) > 4 and rates == [pytest.approx(each, rel=1e-12) for each in expected]
    assert rates[0] != rates[-1] or name == "constant"


# -- credit="q" --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("baseline", [None, "mean", "leave_one_out"])
def test_q_is_the_mean_over_continuations(count: int, baseline: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Q(s_t, a_t) = r_t + gamma mean_k G_{t+1}^(k), from `num_continuations` continuations of each prefix.

    They are counted among the timesteps, and their returns are discounted from the token after a_t.
    """
    kept: list[Rollout] = []

    def keep(*arguments: Any, **settings: Any) -> Rollout:
        kept.append(collect(*arguments, **settings))
        return kept[-1]

    monkeypatch.setattr(reinforce, "collect", keep)
    monkeypatch.setattr(reinforce, "CHUNK", 5)
    agent = agent_of(REINFORCE, credit="q", num_continuations=count, baseline=baseline)
    rollout, start = uneven_rollout(task()), agent_of(REINFORCE)
    found = change(start, trained(agent, rollout))
    assert agent.num_timesteps == sum(int(each.mask.sum()) for each in kept) > 0

    ids = [row for each in kept for row in each.input_ids[:, -each.num_tokens :].tolist()]
    rewards = [row for each in kept for row in equations.numbers(each.rewards, each)]
    q_values = rollout.rewards.clone()
    continuation = 0
    for i, row in enumerate(rollout.mask.tolist()):
        for t in range(sum(row) - 1):  # after its last token nothing is sampled
            returns = []
            for _ in range(count):
                assert ids[continuation][: t + 1] == rollout.tokens[i, : t + 1].tolist()
                returns.append(equations.reward_to_go(rewards[continuation], agent.gamma)[0])
                continuation += 1
            q_values[i, t] += agent.gamma * np.mean(returns)
    assert continuation == len(rewards)
    expected = change(
        start, equations.update(agent_of(REINFORCE, credit="q", baseline=baseline), rollout, q_values).weights
    )
    assert distance(found, expected) < EQUAL
    to_go = change(start, equations.update(agent_of(REINFORCE, baseline=baseline), rollout).weights)
    assert distance(to_go, expected) > DIFFERENT  # control


# -- completeness ------------------------------------------------------------------------------------------------------

TESTED_ABOVE = {
    "target_kl": test_target_kl_stops_the_epochs_where_the_kl_exceeds_it_by_half,
    "n_episodes": test_n_episodes_is_the_number_of_completions,
    "num_generations": test_num_generations_is_the_number_of_contiguous_completions_of_a_prompt,
    "seed": test_the_seed_determines_prompts_tokens_and_minibatches,
    "kl_estimator": test_the_kl_is_measured_by_the_estimator_and_steers_beta,
    "kl_target": test_the_kl_is_measured_by_the_estimator_and_steers_beta,
    "kl_horizon": test_the_kl_is_measured_by_the_estimator_and_steers_beta,
    "micro_batch_size": test_micro_batches_bound_the_forward_passes_of_an_update,
    "optimizer": test_the_optimizer_has_a_state_over_updates,
    "lr_schedule": test_the_step_size_follows_the_schedule,
    "lr_warmup": test_the_step_size_follows_the_schedule,
    "num_continuations": test_q_is_the_mean_over_continuations,
}
# test_preparation.py, test_path_consistency.py
TESTED_ELSEWHERE = {"sampler_correction", "sampler_level", "sampler_cap", "replay_size"}


@every_kind
def test_every_setting_has_a_test(kind: Any) -> None:
    """A new field of an agent needs a line in `CHANGES`, or a test of its own."""
    tested = (
        {name for other, name, _ in CASES if other is kind}
        | set(TESTED_ABOVE)
        | TESTED_ELSEWHERE
        | REFUSED.get(kind, set())
    )
    assert {field.name for field in fields(kind)} - {"policy", "env"} - tested == set()
    assert sample is agent_of(kind).sampler
