"""Objective, score and KL of a policy: exact where the task can be enumerated, else estimated from new completions."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from agents.files import JsonObject
from agents.policy import TransformerPolicy
from agents.sampling import Rollout, collect, new_generator
from textenv import EnvLike, exact, get_mdp
from textenv.exact import Tree
from textenv.references import CausalLMReference
from textenv.rewards import RewardError

EVAL_SEED = 12_345  # the same prompts and random numbers for every policy that is compared
EVAL_BATCH = 64


Measured = dict[str, float]  # objective, score, kl, gold_score where there is one, and their standard errors
Completions = list[JsonObject]  # prompt, completion, score, kl, and gold_score; None where a reward failed


@dataclass
class Evaluator:
    """Measures policies on one environment.

    Attributes:
        env: the environment.
        episodes: completions per evaluation, where it samples.
        solution: the exact optimum, or None where the task is too large to enumerate.
    """

    env: Any
    episodes: int
    solution: exact.Solution | None

    @classmethod
    def for_env(cls, env: EnvLike, episodes: int, max_completions: int = 100_000) -> Evaluator:
        """An evaluator that is exact if the task has at most `max_completions` completions, and samples otherwise."""
        try:
            return cls(env, episodes, exact.solve(env, max_completions))
        except exact.TreeTooLarge:
            return cls(env, episodes, None)

    @property
    def tree(self) -> Tree | None:
        """The enumeration of the task, or None where it is too large."""
        return self.solution.tree if self.solution is not None else None

    @property
    def kl_coef(self) -> float:
        """beta."""
        return float(self.env.unwrapped.mdp.kl_coef)

    def measure(self, policy: TransformerPolicy) -> Measured:
        """Returns `objective`, `score`, `kl` (and `gold_score`) of a policy, with standard errors if estimated.

        Also `skipped`, the number of completions whose reward failed, if there are any; the means are without them.
        """
        if self.tree is not None:
            known = exact.evaluate(self.tree, policy)
            measured = {"objective": known.objective, "score": known.score, "kl": known.kl}
            return measured if known.gold_score is None else measured | {"gold_score": known.gold_score}
        sampled = self.rollouts(policy)
        rollouts = [rollout.scored() for rollout in sampled]
        check_enough(count := sum(map(len, rollouts)), "an evaluation", self.env)
        skipped = sum(map(len, sampled)) - count
        columns = {
            "objective": np.concatenate([r.rewards.double().sum(dim=1).cpu().numpy() for r in rollouts]),
            "score": np.concatenate([r.scores.double().cpu().numpy() for r in rollouts]),
            "kl": np.concatenate([r.kl.double().cpu().numpy() for r in rollouts]),
        }
        gold = [r.gold_scores.double().cpu().numpy() for r in rollouts if r.gold_scores is not None]
        if gold:
            columns["gold_score"] = np.concatenate(gold)
        means = {name: float(values.mean()) for name, values in columns.items()}
        errors = {f"{name}_stderr": float(x.std(ddof=1) / np.sqrt(len(x))) for name, x in columns.items()}
        return means | errors | ({"skipped": float(skipped)} if skipped else {})

    def costliest_states(self, policy: TransformerPolicy, count: int = 10) -> list[JsonObject]:
        """The states that contribute most to J* - J, each with its contribution; none where J* is not known."""
        if self.solution is None:
            return []
        tree = self.solution.tree
        known = exact.evaluate(tree, policy)
        costs = exact.suboptimality_by_state(self.solution, known)
        return [
            {
                "prompt": tree.mdp.prompts.texts[tree.prompt[state]],
                "completion_so_far": tree.mdp.decode(tree.tokens[state][tree.tokens[state] >= 0]),
                "probability": float(known.occupancy[state]),
                "cost": float(costs[state]),
            }
            for state in np.argsort(-costs)[:count]
        ]

    def rollouts(self, policy: TransformerPolicy) -> list[Rollout]:
        """Samples at least `episodes` completions in batches; every call uses the same prompts."""
        return [
            collect(self.env, policy, size, generator=new_generator(policy.device, seed), values=False)
            for size, seed in self.batches()
        ]

    def batches(self) -> list[tuple[int, int]]:
        """Size and seed of each batch of an evaluation; a batch's generator draws its prompts first."""
        size = min(self.episodes, EVAL_BATCH)
        return [(size, EVAL_SEED + i) for i in range(-(-self.episodes // size))]

    def baselines(self) -> dict[str, float | None]:
        """The reference's objective and scores, and the optimum's objective where it is known."""
        if self.solution is not None:
            tree = self.solution.tree
            known = exact.evaluate_log_probs(tree, tree.ref_log_probs)
            return {
                "reference": known.objective,
                "reference_score": known.score,
                "reference_gold_score": known.gold_score,
                "optimum": self.solution.objective,
            }
        measured = self.measure(reference_policy(self.env))
        return {
            "reference": measured["objective"],
            "reference_score": measured["score"],
            "reference_gold_score": measured.get("gold_score"),
            "optimum": None,
        }


def reference_policy(env: EnvLike) -> TransformerPolicy:
    """The reference as a policy, for evaluation and not for training: a language model is shared, not copied."""
    mdp = get_mdp(env)
    if isinstance(mdp.reference, CausalLMReference) and mdp.reference.adapter is None:
        return TransformerPolicy(mdp.reference.model, vocab_size=mdp.vocab_size)
    return TransformerPolicy.for_env(env)


def normalized_objective(objective: float, baselines: dict[str, float | None]) -> float | None:
    """(J - J_ref) / (J* - J_ref): 0 at the reference, 1 at the optimum.

    None where the optimum is not known, or equals the reference's objective.
    """
    reference, optimum = baselines["reference"], baselines["optimum"]
    if reference is None or optimum is None:
        return None
    share = exact.normalized_objective(objective, reference, optimum)
    return None if math.isnan(share) else share


def tokens_to_reach(share: float, rows: list[dict[str, float]], baselines: dict[str, float | None]) -> float | None:
    """Number of tokens at which the normalized objective first reaches `share`.

    It is interpolated linearly between evaluations. None where `share` is never reached, or the optimum is not known.
    """
    evaluations = [row for row in rows if "eval/objective" in row]
    tokens = [row["num_timesteps"] for row in evaluations]
    shares = [normalized_objective(row["eval/objective"], baselines) or 0.0 for row in evaluations]
    for i, reached in enumerate(shares):
        if reached >= share:
            return float(np.interp(share, shares[max(0, i - 1) : i + 1], tokens[max(0, i - 1) : i + 1]))
    return None


def check_enough(count: int, where: str, env: EnvLike) -> None:
    """Raises a RewardError unless at least two completions, as a standard error needs, are not skipped."""
    if count < 2:
        raise RewardError(
            f"The rewards of all but {count} completions of {where} failed, and at least 2 are needed; raise "
            f"reward_tries or reward_wait. The last of the errors: {get_mdp(env).last_skip}"
        )


def sample_completions(
    env: Any, policy: TransformerPolicy, prompts: Sequence[object], generator: torch.Generator | None = None
) -> Completions:
    """Samples one completion for each prompt (index or text), and returns them with score and KL.

    Also with what reward functions have logged about each (`log_extra`), unless its name is one of those.

    Args:
        env: the environment.
        policy: the policy.
        prompts: indices or texts, all sampled in one batch.
        generator: draws the tokens; by default a new one, the same in every call.
    """
    mdp = env.unwrapped.mdp
    states = mdp.empty_state(len(prompts))
    for row, prompt in enumerate(prompts):
        states.put(row, mdp.make_state(prompt))
    generator = generator or new_generator(policy.device, EVAL_SEED)
    rollout = collect(env, policy, generator=generator, values=False, start=states)
    columns = {
        "prompt": rollout.prompts,
        "completion": rollout.completions,
        "score": rollout.scores.tolist(),
        "kl": rollout.kl.tolist(),
    }
    if rollout.gold_scores is not None:
        columns["gold_score"] = rollout.gold_scores.tolist()
    extra = {name: values for name, values in (rollout.extra or {}).items() if name not in columns}
    columns |= {name: [as_json(value) for value in values] for name, values in extra.items()}
    completions = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    for completion, valid in zip(completions, rollout.valid.tolist(), strict=True):
        if not valid:
            completion |= {name: None for name in ("score", "kl", "gold_score") if name in columns}
    return completions


def as_json(value: object) -> object:
    """A value that a JSON file can hold, else its text."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return str(value)
    return value
