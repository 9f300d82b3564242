"""`verify`: what a loss climbs, measured over every batch of a toy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import gymnasium as gym
import torch

from agents.policy import TransformerPolicy
from agents.verification.agent_loss import AgentGradient, AgentLoss
from agents.verification.batches import MAX_BATCHES, enumerate_batches
from agents.verification.cases import Case, default_cases, optimum_case, policy_case, table_case
from agents.verification.fixed_point import fixed_point
from agents.verification.loss import BatchGradient, Loss, LossGradient, check_deterministic
from agents.verification.measure import Measured, depends_on_order, measure
from agents.verification.report import Report
from textenv import EnvLike, exact


def verify(
    loss: Loss | AgentLoss,
    env: EnvLike | None = None,
    policy: TransformerPolicy | Sequence[TransformerPolicy] | None = None,
    num_generations: int = 1,
    num_prompts: int = 1,
    *,
    max_batches: int = MAX_BATCHES,
) -> Report:
    """Measures what a loss climbs: its expected gradient over every batch, beside the exact gradient of J.

        expected = - sum_batches p(batch) grad loss(batch)

    A batch has `num_prompts` groups of `num_generations` completions each. Everything is computed in float64.

    Args:
        loss: `loss(rollout, log_probs, **extra) -> scalar` to go down. `rollout` is what was sampled (`Rollout`, in
            float64); `log_probs` is log pi(a_t|s_t), [B, T], with gradient, 0 where `rollout.mask` is False. `extra`
            are passed where the signature names them: `all_log_probs` (with gradient) and `ref_all_log_probs`,
            [B, T, V], and `values`, V(s_t) of the policy, exact, [B, T]. Or an agent, see `agent_loss`.
        env: the toy, by default Toy-v0 with 3 tokens, completions of up to 3 tokens and 2 prompts.
        policy: one or several; by default tables of logits at set distances from the reference, so that nothing is due
            to a network.
        num_generations: completions per group.
        num_prompts: groups per batch.
        max_batches: the largest number of batches.

    Raises:
        TypeError: the loss takes other arguments, or returns no tensor.
        ValueError: the loss is no finite scalar with a gradient by log_probs, changes its arguments, or draws random
            numbers; there are more batches than `max_batches` (`TooManyBatches`).
    """
    tree = exact.enumerate_tree(default_toy() if env is None else env)
    if policy is None:
        cases = default_cases(tree)
    else:
        policies = [policy] if isinstance(policy, TransformerPolicy) else list(policy)
        cases = [policy_case(f"policy {i}", tree, each) for i, each in enumerate(policies)]
    optimum, reference = optimum_case(tree), table_case("reference", tree, tree.ref_log_probs)
    prompt = cases[0].completions.prompt
    listed = partial(enumerate_batches, prompt, num_generations, num_prompts, limit=max_batches)
    batches = listed()
    sizes = (num_generations, num_prompts)
    gradient = make_gradient(loss, cases[0], cases[0], *sizes)
    check_deterministic(gradient, batches.rows[len(batches.rows) // 2], cases[0].log_probs)
    ordered = num_generations > 1 and depends_on_order(gradient, cases[0], batches, num_generations)
    if ordered:
        batches = listed(ordered=True)

    def at(case: Case, behaviour: Case) -> Measured:
        return measure(make_gradient(loss, case, behaviour, *sizes), case, batches, behaviour)

    return Report(
        by_policy={case.name: at(case, case) for case in cases},
        at_optimum=at(optimum, optimum),
        off_policy={case.name: at(case, reference) for case in cases},
        ordered=ordered,
        num_batches=len(batches.rows),
        find_fixed_point=lambda: fixed_point(tree, lambda case: at(case, case)),
    )


def default_toy() -> EnvLike:
    """Toy-v0 with 3 tokens, completions of up to 3 tokens and 2 prompts."""
    return gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=3, num_prompts=2, kl_coef=0.2)


def make_gradient(
    loss: Loss | AgentLoss, case: Case, behaviour: Case, num_generations: int, num_prompts: int
) -> BatchGradient:
    """The gradient of a loss, or of an agent's update, at a policy, on completions of the behaviour policy."""
    completions, values = behaviour.completions, torch.as_tensor(case.evaluation.values)
    if isinstance(loss, AgentLoss):
        return AgentGradient(loss, completions, values, num_generations, num_prompts)
    return LossGradient(loss, completions, values)
