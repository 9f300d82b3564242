"""`verify`: what a loss climbs, measured over every batch of a toy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import torch

from agents.agent import Agent
from agents.policy import TransformerPolicy
from agents.verification.agent_gradient import AgentGradient, AgentLoss
from agents.verification.batches import MAX_BATCHES, Batches, SampledBatches, enumerate_batches
from agents.verification.behaviours import ON_POLICY, SAMPLERS, OtherSampler
from agents.verification.cases import Case, default_cases, optimum_case, policy_case
from agents.verification.credit import credit
from agents.verification.findings import Finding
from agents.verification.fixed_point import fixed_point
from agents.verification.invariances import invariances
from agents.verification.loss import BatchGradient, Loss, LossGradient, check_deterministic
from agents.verification.measure import Measured, depends_on_order, measure
from agents.verification.report import Report, Results
from agents.verification.samples import sample_of
from textenv import EnvLike, TextMDP, exact
from textenv.exact import Tree

DEFAULT_TOY: dict[str, Any] = {"vocab_size": 3, "max_new_tokens": 3, "num_prompts": 2, "kl_coef": 0.2}
TRIED = 20  # batches on which invariances are tested


def verify(
    loss: Loss | AgentLoss,
    env: EnvLike | None = None,
    policy: TransformerPolicy | Sequence[TransformerPolicy] | None = None,
    num_generations: int = 1,
    num_prompts: int = 1,
    *,
    max_batches: int = MAX_BATCHES,
    sampled_batches: int | None = None,
    seed: int = 0,
    samplers: Mapping[str, OtherSampler] = SAMPLERS,
) -> Report:
    """Measures what a loss climbs: its expected gradient over every batch, beside the exact gradient of J.

        expected = - sum_batches p(batch) grad loss(batch)

    A batch has `num_prompts` groups of `num_generations` completions each. Everything is computed in float64.

    Args:
        loss: `loss(rollout, log_probs, **extra) -> scalar` to go down. `rollout` is what was sampled (`Rollout`, in
            float64); `log_probs` is log pi(a_t|s_t), [B, T], with gradient, 0 where `rollout.mask` is False (but
            in the test of padding, where it is what a model may compute there). `extra`
            are passed where the signature names them: `all_log_probs` (with gradient) and `ref_all_log_probs`,
            [B, T, V], and `values`, V(s_t) of the policy, exact, [B, T]. Or an agent, see `agent_loss`.
        env: the toy, by default Toy-v0 with 3 tokens, completions of up to 3 tokens and 2 prompts.
        policy: one or several; by default tables of logits at set distances from the reference, so that nothing is due
            to a network.
        num_generations: completions per group.
        num_prompts: groups per batch.
        max_batches: the largest number of batches that are enumerated.
        sampled_batches: estimate the expectation from this number of batches, instead of enumerating all; the report
            then has standard errors.
        seed: of the sampled batches.
        samplers: the other samplers, by name, on whose completions the loss is measured too.

    Raises:
        TypeError: the loss takes other arguments, or returns no tensor; another argument has a wrong type.
        ValueError: the loss is no finite scalar with a gradient by log_probs, changes its arguments, or draws random
            numbers; there are more batches than `max_batches` (`TooManyBatches`).
    """
    check_arguments(loss, num_generations, num_prompts, max_batches, sampled_batches)
    tree = exact.enumerate_tree(default_toy() if env is None else env)
    cases = _cases(tree, policy)
    prompt, is_eos = cases[0].completions.prompt, torch.as_tensor(tree.mdp.is_eos)
    gradient = make_gradient(loss, tree.mdp, num_generations, num_prompts)
    sizes = (num_generations, num_prompts)
    if sampled_batches is None:
        batches: Batches = enumerate_batches(prompt, *sizes, limit=max_batches)
    else:
        batches = SampledBatches(prompt, *sizes, sampled_batches, seed)
    sample = sample_of(cases[0], cases[0], num_generations=num_generations)
    rows, _ = batches.weighted(cases[0].pi)
    tried = rows[:: max(1, len(rows) // TRIED)]
    check_deterministic(gradient, sample.batches(tried))
    ordered = num_generations > 1 and depends_on_order(gradient, sample, rows, num_generations)
    if ordered and sampled_batches is None:
        batches = enumerate_batches(prompt, *sizes, ordered=True, limit=max_batches)

    def find_invariances() -> dict[str, Finding]:
        found = invariances(gradient, sample, tried, num_generations, is_eos)
        found += credit(gradient, sample, num_generations * num_prompts, tree.mdp.kl_coef)
        return {each.name: each for each in found}

    def at(case: Case, sampler: OtherSampler = ON_POLICY) -> Measured:
        behaviour, returned = sampler.behaviour(case)
        sample = sample_of(case, behaviour, returned, num_generations)
        return measure(gradient, case, sample, behaviour.pi, batches)

    def on(sampler: OtherSampler) -> Results:
        at_optimum = at(optimum_case(tree), sampler) if tree.mdp.kl_coef > 0 else None
        return Results({case.name: at(case, sampler) for case in cases}, at_optimum)

    on_policy = on(ON_POLICY)
    return Report(
        by_policy=on_policy.by_policy,
        at_optimum=on_policy.at_optimum,
        ordered=ordered,
        num_batches=max(each.num_batches for each in on_policy.by_policy.values()),
        find_invariances=find_invariances,
        find_off_policy=lambda: {name: on(sampler) for name, sampler in samplers.items()},
        find_fixed_point=lambda: fixed_point(tree, at),
    )


def check_arguments(
    loss: object, num_generations: object, num_prompts: object, max_batches: object, sampled_batches: object
) -> None:
    """Raises a TypeError or ValueError for arguments of `verify` that make no sense, before anything is enumerated."""
    if isinstance(loss, type) and issubclass(loss, Agent):
        raise TypeError(f"The loss of an agent is agent_loss({loss.__name__}), got the class itself.")
    sizes = {"num_generations": num_generations, "num_prompts": num_prompts, "max_batches": max_batches}
    if sampled_batches is not None:
        sizes["sampled_batches"] = sampled_batches
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be a whole number, got {value!r}.")
        least, most = 2 if name == "sampled_batches" else 1, 64 if name in ("num_generations", "num_prompts") else 10**9
        if not least <= value <= most:
            raise ValueError(f"{name} must be in [{least}, {most}], got {value}.")


def _cases(tree: Tree, policy: TransformerPolicy | Sequence[TransformerPolicy] | None) -> list[Case]:
    """The policies at which the loss is measured."""
    if policy is None:
        return default_cases(tree)
    policies = [policy] if isinstance(policy, TransformerPolicy) else policy
    if (
        not isinstance(policies, Sequence)
        or not policies
        or not all(isinstance(x, TransformerPolicy) for x in policies)
    ):
        raise TypeError(f"policy must be a TransformerPolicy, or some of them, got {policy!r:.100}.")
    return [policy_case(f"policy {i}", tree, each) for i, each in enumerate(policies)]


def default_toy() -> EnvLike:
    """Toy-v0 with 3 tokens, completions of up to 3 tokens and 2 prompts."""
    return gym.make("textenv/Toy-v0", **DEFAULT_TOY)


def make_gradient(loss: Loss | AgentLoss, mdp: TextMDP, num_generations: int, num_prompts: int) -> BatchGradient:
    """The gradient of a loss, or of an agent's update."""
    if isinstance(loss, AgentLoss):
        return AgentGradient(loss, mdp, num_generations, num_prompts)
    return LossGradient(loss)
