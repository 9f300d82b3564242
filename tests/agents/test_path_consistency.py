"""PathConsistency: its loss is zero at pi* alone, climbs J on policy, and leads to pi* off policy; its replay."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from itertools import chain
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agents import PPO, RLOO, PathConsistency, TrainingWarning, TransformerPolicy
from agents.functional import path_consistency_loss, regularized_returns
from agents.sampling import Rollout
from agents.training import Batch
from agents.verification import agent_loss, verify
from agents.verification.cases import Case as TableCase
from agents.verification.cases import table_case
from agents.verification.enumeration import random_log_probs
from tests.helpers.agents import FOREVER, agent_of, normalized_objective, stop_after, task
from tests.helpers.batches import properties
from tests.helpers.gradients import BROKEN, EXACT, TASKS, Case, error, frozen
from tests.helpers.plain_env import PlainEnv
from tests.helpers.skips import with_skips
from tests.helpers.tasks import make
from textenv import exact

# -- the equation, by enumeration --------------------------------------------------------------------------------------


@cache
def tree_of(name: str) -> Any:
    """The tree of a task."""
    return exact.enumerate_tree(make(TASKS[name]))


def returns_of(case: TableCase, log_probs: Tensor) -> Tensor:
    """R(y) of every completion of a toy, [N], under a table log pi(a|s), [S, V]."""
    completions, tree = case.completions, case.completions.tree
    arguments = (tree.ref_log_probs, tree.rewards)
    ref_log_probs, rewards = (completions.look_up(x) for x in arguments)
    return regularized_returns(
        completions.look_up(log_probs), ref_log_probs, rewards, completions.mask, tree.mdp.kl_coef
    )


def by_prompt(case: TableCase, x: Tensor) -> list[Tensor]:
    """The entries of each prompt's completions."""
    prompt = case.completions.prompt
    return [x[prompt == each] for each in sorted(set(prompt.tolist()))]


@pytest.mark.parametrize("name", TASKS)
def test_at_the_optimum_all_completions_have_the_same_return(name: str) -> None:
    """beta log Z(x), the value V*(x), for every completion with pi_ref > 0; the loss of every pair is 0.

    Control: a policy 1% away, and the return without the reference.
    """
    tree = tree_of(name)
    solution = exact.solve(tree)
    case = table_case("pi*", tree, solution.action_log_probs)
    values = [
        float(x[0]) for x in by_prompt(case, torch.as_tensor(case.evaluation.values)[case.completions.states[:, 0]])
    ]
    for found, value in zip(by_prompt(case, returns_of(case, case.log_probs)), values, strict=True):
        assert torch.allclose(found, torch.full_like(found, value), rtol=0, atol=1e-12) and len(found) > 2
    assert sum(values) / len(values) == pytest.approx(solution.objective, abs=1e-12)

    completions, beta = case.completions, tree.mdp.kl_coef
    look_up = completions.look_up
    reference, rewards, mask = look_up(tree.ref_log_probs), look_up(tree.rewards), completions.mask
    near = random_log_probs(tree, np.random.default_rng(0), 1.0)
    moved = table_case("", tree, 0.99 * solution.action_log_probs + 0.01 * near)
    for i, j in zip(range(len(mask) - 1), range(1, len(mask)), strict=True):
        if completions.prompt[i] == completions.prompt[j]:
            rows = [i, j]

            def loss(log_probs: Tensor, reference: Tensor = reference, rows: list[int] = rows) -> float:
                each = (look_up(log_probs), reference, rewards, mask)
                return float(path_consistency_loss(*(x[rows] for x in each), beta, 2))

            assert loss(case.log_probs) < 1e-24
            assert loss(moved.log_probs) > 1e-12
            assert loss(case.log_probs, torch.zeros_like(reference)) > 1e-12


@properties
@given(st.sampled_from(list(TASKS)), st.integers(0, 999), st.sampled_from([0.1, 1.0, None]))
def test_nowhere_else(name: str, seed: int, distance: float | None) -> None:
    """R(y) - beta log Z(x) = beta log(pi*(y|x) / pi(y|x)): they are equal for all y only if pi = pi*."""
    tree = tree_of(name)
    case = table_case("", tree, random_log_probs(tree, np.random.default_rng(seed), distance))
    optimum = table_case("pi*", tree, exact.solve(tree).action_log_probs)
    mask = case.completions.mask
    log_pi, log_optimum = (case.completions.look_up(x.log_probs).sum(dim=1) for x in (case, optimum))
    assert mask.shape == optimum.completions.mask.shape
    found = returns_of(case, case.log_probs) - returns_of(optimum, optimum.log_probs)
    assert torch.allclose(found, tree.mdp.kl_coef * (log_optimum - log_pi), rtol=0, atol=1e-11)
    assert all(float(x.max() - x.min()) > 1e-4 for x in by_prompt(case, returns_of(case, case.log_probs)))


# -- its gradient ------------------------------------------------------------------------------------------------------


def test_its_gradient_is_that_of_j(case: Case) -> None:
    """On policy, by the parameters of a transformer. Control: completions of another policy."""
    agent = frozen(PathConsistency, case.policy, case.env, n_episodes=2, num_generations=2, n_epochs=1)
    pairs = case.pairs(same_prompt=True)
    assert error(case.expected(agent, pairs), case.gradient) < EXACT
    elsewhere = copy.copy(case)
    elsewhere.probability = torch.full_like(case.probability, 2 / len(case.probability))
    assert error(elsewhere.expected(agent, elsewhere.pairs(same_prompt=True)), case.gradient) > BROKEN


def without_reference(rollout: Rollout, log_probs: Tensor) -> Tensor:
    """The entropy of pi in place of its KL to the reference."""
    rewards = rollout.rewards + 0.2 * (rollout.log_probs - rollout.ref_log_probs)
    return path_consistency_loss(log_probs, torch.zeros_like(log_probs), rewards, rollout.mask, 0.2, 2)


def with_both_kls(rollout: Rollout, log_probs: Tensor) -> Tensor:
    """The KL of pi beside that of the sampler, which the rewards of a rollout have."""
    return path_consistency_loss(log_probs, rollout.ref_log_probs, rollout.rewards, rollout.mask, 0.2, 2)


def small_toy_env(**settings: Any) -> Any:
    """A toy whose pairs of completions are few."""
    return gym.make(
        "textenv/Toy-v0", **{"vocab_size": 3, "max_new_tokens": 2, "num_prompts": 2, "kl_coef": 0.2} | settings
    )


@pytest.mark.parametrize("size", [2, 3])
def test_verify_finds_it_unbiased_and_zero_at_the_optimum(size: int) -> None:
    """In float64, relative to grad J; zero at pi* for every batch, off policy too. Controls: RLOO, broken losses."""
    report = verify(agent_loss(PathConsistency), small_toy_env(), num_generations=size)
    assert report.unbiased and report.bias < 1e-6 and report.zero_at_optimum_by_sample
    assert report.fixed_point == pytest.approx(1.0, abs=1e-6)
    assert len(report.off_policy) >= 4 and all(x.zero_at_optimum_by_sample for x in report.off_policy.values())
    if size == 2:
        rloo = verify(agent_loss(RLOO), small_toy_env(), num_generations=2)
        assert rloo.unbiased and not any(
            rloo.off_policy[name].zero_at_optimum for name in ("an older policy", "temperature 1.5")
        )
        for loss in (without_reference, with_both_kls):
            broken = verify(loss, small_toy_env(), num_generations=2)
            assert not broken.unbiased and not broken.zero_at_optimum


# -- off policy --------------------------------------------------------------------------------------------------------

BEHAVIOURS = {"the reference": 0.0, "near it": 0.5, "another": None}


def behaviour(tree: Any, name: str) -> TableCase:
    """A behaviour policy with probabilities above zero everywhere, so that every completion is seen."""
    return table_case(name, tree, random_log_probs(tree, np.random.default_rng(5), BEHAVIOURS[name]))


def expected_loss(sampler: TableCase, returns: Tensor) -> Tensor:
    """E[loss] over groups of a behaviour policy: Var[R] / (2 beta), a mean over prompts."""
    losses = []
    for q, found in zip(by_prompt(sampler, sampler.pi), by_prompt(sampler, returns), strict=True):
        losses.append((q * (found - (q * found).sum()) ** 2).sum())
    return torch.stack(losses).mean() / (2 * sampler.completions.tree.mdp.kl_coef)


def descend(tree: Any, loss: Callable[[Tensor], Tensor]) -> float:
    """The share of the way to J* at the minimum of a loss of log pi, from an arbitrary table of logits."""
    allowed = torch.as_tensor(tree.child != -2)
    logits = torch.as_tensor(np.random.default_rng(9).normal(size=tree.child.shape)).requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=2_000, tolerance_grad=1e-12, tolerance_change=1e-15,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def log_probs() -> Tensor:
        return logits.masked_fill(~allowed, -torch.inf).log_softmax(dim=1).masked_fill(~allowed, 0.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(log_probs())
        value.backward()
        return value

    optimizer.step(closure)
    final = torch.where(allowed, log_probs(), -torch.inf).detach().numpy()
    return exact.solve(tree).normalized_objective(exact.evaluate_log_probs(tree, final).objective)


@pytest.mark.parametrize("name", ["full", "sparse"])
@pytest.mark.parametrize("sampler", BEHAVIOURS)
def test_its_minimum_is_the_optimum_whoever_sampled(name: str, sampler: str) -> None:
    """Gradient descent of the expected loss leads to pi*, where its gradient is zero.

    Controls: with the KL of the behaviour policy in the return, and without the reference, it leads elsewhere.
    """
    tree = tree_of(name)
    sampled = behaviour(tree, sampler)
    assert descend(tree, lambda log_probs: expected_loss(sampled, returns_of(sampled, log_probs))) > 1 - 1e-6

    optimum = torch.as_tensor(exact.solve(tree).action_log_probs)
    log_probs = torch.where(torch.as_tensor(tree.child != -2), optimum, 0.0).requires_grad_()
    (gradient,) = torch.autograd.grad(expected_loss(sampled, returns_of(sampled, log_probs)), log_probs)
    assert gradient.abs().max() < 1e-12

    look_up, beta = sampled.completions.look_up, tree.mdp.kl_coef

    def broken(log_probs: Tensor, wrong: Tensor) -> Tensor:
        return expected_loss(sampled, returns_of(sampled, log_probs) + beta * wrong.sum(dim=1))

    reference, own = (look_up(x) for x in (tree.ref_log_probs, sampled.log_probs))
    assert descend(tree, lambda log_probs: broken(log_probs, -reference)) < 1 - 1e-3
    if sampler != "the reference":  # its KL is zero
        assert descend(tree, lambda log_probs: broken(log_probs, reference - own)) < 1 - 1e-3


def test_the_expected_loss_is_that_of_all_groups() -> None:
    """Of pairs, with their probabilities: the closed form above is the loss's own expectation."""
    tree = tree_of("full")
    sampled = behaviour(tree, "another")
    case, completions = table_case("", tree, random_log_probs(tree, np.random.default_rng(1))), sampled.completions
    look_up = completions.look_up
    each = (look_up(case.log_probs), look_up(tree.ref_log_probs), look_up(tree.rewards), completions.mask)
    total, prompts = 0.0, len(set(completions.prompt.tolist()))
    for i in range(len(completions.mask)):
        for j in range(len(completions.mask)):
            if completions.prompt[i] == completions.prompt[j]:
                probability = float(sampled.pi[i] * sampled.pi[j]) / prompts
                total += probability * float(path_consistency_loss(*(x[[i, j]] for x in each), tree.mdp.kl_coef, 2))
    assert total == pytest.approx(float(expected_loss(sampled, returns_of(sampled, case.log_probs))), rel=1e-9)


# -- the agent ---------------------------------------------------------------------------------------------------------


def test_it_learns_a_toy_from_few_tokens(small_toy: tuple[Any, TransformerPolicy]) -> None:
    """With default settings, and no less than RLOO with as many steps; control: a step size of 0."""
    env, start = small_toy
    shares = []
    for rate in (None, 0.0):
        policy = copy.deepcopy(start)
        PathConsistency(policy, env, learning_rate=rate, seed=0).learn(8_000)
        shares.append(normalized_objective(env, policy))
    rloo = copy.deepcopy(start)
    RLOO(rloo, env, n_epochs=8, num_generations=16, seed=0).learn(8_000)
    assert shares[0] > 0.9 and shares[0] > normalized_objective(env, rloo) - 0.05 and abs(shares[1]) < 0.05


def test_completions_that_cannot_be_trained_on_leave_the_replay() -> None:
    """One score that is too large costs the steps of its own rollout and ends nothing; control: it would, if kept."""
    agent = agent_of(PathConsistency, n_epochs=8)
    collect, calls = agent.collect, []

    def with_a_huge_score() -> Rollout:
        rollout = collect()
        if not calls:
            rollout.rewards[0, 0] = 1e25
        calls.append(len(agent.replay.rollouts))
        return rollout

    agent.collect = with_a_huge_score
    skipped = []

    def count(agent: Any, rollout: Rollout, metrics: dict[str, float]) -> bool:
        skipped.append(metrics["num_skipped_steps"])
        return len(skipped) < 3

    with pytest.warns(TrainingWarning, match="skipped_steps"):
        agent.learn(FOREVER, callback=count)
    assert skipped == [1, 0, 0] and calls == [0, 0, 1]


def recorded(agent: Any) -> list[tuple[Batch, Tensor]]:
    """The minibatches of an agent, filled as it trains."""
    found, backward = list[tuple[Batch, Tensor]](), agent.backward
    agent.backward = lambda batch, rows: (found.append((batch, rows)), backward(batch, rows))[1]
    return found


def test_an_update_uses_its_own_rollout_first_and_then_the_replay() -> None:
    """`n_epochs` passes: the first over the new completions, the others over any of the last `replay_size`."""
    agent, used, rollouts = agent_of(PathConsistency, n_epochs=6, replay_size=3), [], list[Rollout]()
    passes = recorded(agent)

    def keep(agent: Any, rollout: Rollout, metrics: dict[str, float]) -> bool:
        rollouts.append(rollout)
        used.append(
            [next(i for i, r in enumerate(rollouts) if r.input_ids.equal(b.rollout.input_ids)) for b, _ in passes]
        )
        assert metrics["num_minibatches"] == 6 and len(agent.replay.rollouts) == min(3, len(rollouts))
        passes.clear()
        return len(rollouts) < 12

    agent.learn(FOREVER, callback=keep)
    for number, indices in enumerate(used):
        assert indices[0] == number and len(indices) == 6
        assert set(indices) <= set(range(max(0, number - 2), number + 1))
    older = {number - index for number, indices in enumerate(used) for index in indices}
    assert older == {0, 1, 2}


def test_a_replay_of_one_rollout_uses_the_new_completions_alone() -> None:
    """As often as PPO does."""
    agent = agent_of(PathConsistency, replay_size=1)
    passes = recorded(agent)
    agent.learn(FOREVER, callback=stop_after(3))
    assert (
        len({str(batch.rollout.input_ids.tolist()) for batch, _ in passes}) == 3 and len(passes) == 3 * agent.n_epochs
    )


@pytest.mark.parametrize("micro_batch_size", [None, 4, 8])
def test_no_group_is_split(micro_batch_size: int | None) -> None:
    """Minibatches are whole groups, shuffled; so are micro-batches. Every completion is used once a pass."""
    settings = {"num_generations": 4, "n_episodes": 32, "batch_size": 8, "micro_batch_size": micro_batch_size}
    agent = agent_of(PathConsistency, n_epochs=3, **settings)
    passes, parts = recorded(agent), list[list[int]]()
    losses = agent.losses
    agent.losses = lambda batch: (parts.append(batch.rollout.prompt.tolist()), losses(batch))[1]
    agent.learn(1)
    orders = [rows.tolist() for _, rows in passes]
    assert len(orders) == 12 and all(sorted(chain(*orders[i : i + 4])) == list(range(32)) for i in (0, 4, 8))
    assert all([row // 4 for row in rows[i : i + 4]] == [rows[i] // 4] * 4 for rows in orders for i in (0, 4))
    assert len({tuple(rows) for rows in orders}) > 4
    assert all(len(set(prompts[i : i + 4])) == 1 for prompts in parts for i in range(0, len(prompts), 4))
    assert {len(prompts) for prompts in parts} == {micro_batch_size or 8}


def test_rewards_are_kept_without_the_kl_and_get_that_of_the_current_beta() -> None:
    """With `kl_target` beta changes: the loss of an old rollout is that of the beta of now."""
    agent = agent_of(PathConsistency, kl_target=1e-3, kl_horizon=16, n_epochs=2, replay_size=4)
    sampled = list[tuple[float, Rollout]]()
    beta = [agent.mdp.kl_coef]

    def keep(agent: Any, rollout: Rollout, metrics: dict[str, float]) -> bool:
        sampled.append((beta[-1], rollout))
        beta.append(agent.kl_coef)
        return len(sampled) < 4

    agent.learn(FOREVER, callback=keep)
    assert max(beta) > 1.3 * min(beta)
    for kept, (_, rollout) in zip(agent.replay.rollouts, sampled, strict=True):
        torch.testing.assert_close(kept.rewards.sum(dim=1), rollout.scores, rtol=0, atol=1e-5)
    old = agent.replay.rollouts[0]
    ((_, info),) = agent.losses(Batch(old, old.rewards, old.rewards))
    log_probs = agent.evaluate_actions(old).log_probs.detach()
    values = [
        float(path_consistency_loss(log_probs, old.ref_log_probs, old.rewards, old.mask, each, agent.num_generations))
        for each in (beta[-1], beta[0])
    ]
    assert float(info["loss/policy_avg"]) == pytest.approx(values[0], rel=1e-6)
    assert values[0] != pytest.approx(values[1], rel=1e-2)


def test_a_sampler_may_use_its_tensors_again() -> None:
    """A rollout of the replay does not change with the tensors that the sampler returned."""
    agent = agent_of(PathConsistency)
    rollout = agent.collect()
    before = (rollout.input_ids.clone(), rollout.attention_mask.clone())
    agent.train(rollout)
    rollout.input_ids.zero_()
    rollout.attention_mask.zero_()
    kept = agent.replay.rollouts[0]
    assert kept.input_ids.equal(before[0]) and kept.attention_mask.equal(before[1])


def test_skipped_completions_stay_out_of_the_replay() -> None:
    """Their masks there are all False, also those of the only one left of a group."""
    agent = agent_of(PathConsistency, num_generations=4)
    agent.train(with_skips(agent.collect(), [0, 4, 5, 6]))
    assert agent.replay.rollouts[0].valid.tolist() == [i not in (0, 4, 5, 6, 7) for i in range(16)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generations": 1}, r"num_generations must be in \[2, "),
        ({"gamma": 0.9}, "gamma must be 1.0 for PathConsistency, got 0.9"),
        ({"kl_in": "loss"}, "kl_in must be 'reward' for PathConsistency, got 'loss'"),
        ({"sampler_correction": "mask"}, "sampler_correction must be None for PathConsistency, got 'mask'"),
        ({"sampler_cap": 3.0}, "sampler_cap must be 2.0 for PathConsistency, got 3.0: its loss has no importance"),
        ({"kl_loss": "k1"}, "kl_loss must be 'k3' for PathConsistency, got 'k1': its loss has the KL in the return"),
        ({"num_generations": 4, "batch_size": 6}, r"batch_size must be a multiple of 4 for PathConsistency.*got 6"),
        ({"num_generations": 4, "micro_batch_size": 2}, "micro_batch_size must be a multiple of 4 .*got 2"),
        ({"replay_size": 0}, r"replay_size must be in \[1, "),
    ],
)
def test_what_has_no_meaning_is_refused(settings: dict[str, Any], message: str) -> None:
    """With the rule and the value."""
    with pytest.raises(ValueError, match=message):
        agent_of(PathConsistency, **settings)


def test_a_task_without_an_optimum_is_refused() -> None:
    """beta = 0, and an environment of another library, which has no reference and no groups."""
    with pytest.raises(ValueError, match=r"PathConsistency needs an environment with kl_coef > 0, got 0"):
        agent_of(PathConsistency, task(kl_coef=0.0))
    env = task()
    with pytest.raises(ValueError, match=r"num_generations > 1 .* need an environment of textenv"):
        PathConsistency(agent_of(PPO, env).policy, PlainEnv(env.unwrapped.mdp), seed=0)  # type: ignore[arg-type]
