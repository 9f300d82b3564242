"""Objective, score and KL of a policy: exact where the task can be enumerated, else estimated from new completions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from agents.files import JsonObject
from agents.policy import TransformerPolicy
from agents.sampling import Rollout, collect, new_generator
from experiments.errors import FlagError
from experiments.held_out import Environments
from experiments.reference_completions import Measured, ReferenceCompletions
from textenv import EnvLike, TextState, exact, get_mdp
from textenv.exact import Tree
from textenv.references import CausalLMReference
from textenv.rewards import RewardError

EVAL_SEED = 12_345  # the same prompts and random numbers for every policy that is compared
EVAL_BATCH = 64
# what the trials of a run share
BASELINE_NAMES = (
    *("reference", "reference_score", "reference_gold_score", "optimum", "optimum_score", "optimum_kl"),
    *("reference_stderr", "optimum_stderr"),
    *("optimum_covariance", "optimum_low", "optimum_high", "optimum_upper", "optimum_completions"),
    *("least_effective_sample_size", "median_effective_sample_size", "num_prompts", "all_prompts"),
)


Completions = list[JsonObject]  # prompt, completion, score, kl, and gold_score; None where a reward failed


@dataclass
class Evaluator:
    """Measures policies on one environment.

    Attributes:
        env: the environment.
        episodes: completions per evaluation, where it samples.
        solution: the exact optimum, or None where the task is too large to enumerate.
        num_prompts: where it samples, the largest number of prompts, spread evenly over the environment's; None: all.
        held_out: measures on prompts that are not trained on; None where there are none.
    """

    env: Any
    episodes: int
    solution: exact.Solution | None
    num_prompts: int | None = None
    held_out: Evaluator | None = None

    @classmethod
    def for_env(
        cls, env: EnvLike, episodes: int, max_completions: int = 100_000, num_prompts: int | None = None
    ) -> Evaluator:
        """An evaluator that is exact if the task has at most `max_completions` completions, and samples otherwise."""
        try:
            return cls(env, episodes, exact.solve(env, max_completions), num_prompts)
        except exact.TreeTooLarge:
            return cls(env, episodes, None, num_prompts)

    @property
    def tree(self) -> Tree | None:
        """The enumeration of the task, or None where it is too large."""
        return self.solution.tree if self.solution is not None else None

    @property
    def kl_coef(self) -> float:
        """beta."""
        return float(self.env.unwrapped.mdp.kl_coef)

    def evaluate_exactly(self, policy: TransformerPolicy) -> exact.Evaluation | None:
        """The exact quantities of a policy, None where the task is too large to enumerate."""
        return None if self.tree is None else exact.evaluate(self.tree, policy)

    def measure(self, policy: TransformerPolicy, known: exact.Evaluation | None = None) -> Measured:
        """Returns `objective`, `score`, `kl` (and `gold_score`) of a policy, with standard errors if estimated.

        Also `skipped`, the number of completions whose reward failed, if there are any; the means are without them.

        Args:
            policy: the policy.
            known: its `evaluate_exactly`, where that was computed already.
        """
        known = self.evaluate_exactly(policy) if known is None else known
        if known is not None:
            measured = {"objective": known.objective, "score": known.score, "kl": known.kl}
            return measured if known.gold_score is None else measured | {"gold_score": known.gold_score}
        sampled = self.rollouts(policy)
        rollouts = [rollout.scored() for rollout in sampled]
        check_enough(count := sum(map(len, rollouts)), "an evaluation", self.env)
        skipped = sum(map(len, sampled)) - count
        prompt = np.concatenate([r.prompt.cpu().numpy() for r in rollouts])
        columns = {
            "objective": np.concatenate([r.rewards.cpu().double().sum(dim=1).numpy() for r in rollouts]),
            "score": np.concatenate([r.scores.cpu().double().numpy() for r in rollouts]),
            "kl": np.concatenate([r.kl.cpu().double().numpy() for r in rollouts]),
        }
        gold = [r.gold_scores.cpu().double().numpy() for r in rollouts if r.gold_scores is not None]
        if gold:
            columns["gold_score"] = np.concatenate(gold)
        found = {name: mean_over_prompts(values, prompt) for name, values in columns.items()}
        means = {name: mean for name, (mean, _) in found.items()}
        errors = {f"{name}_stderr": stderr for name, (_, stderr) in found.items()}
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
            collect(self.env, policy, generator=new_generator(policy.device, seed), values=False, start=start)
            for start, seed in self.batches()
        ]

    @property
    def prompts(self) -> list[int]:
        """Where it samples: the indices of the prompts of an evaluation, spread evenly over the environment's."""
        total = len(self.env.unwrapped.prompts)
        count = min(total, self.num_prompts or total, self.episodes)
        return [int(i) for i in np.linspace(0, total, count, endpoint=False)]

    def batches(self) -> Iterator[tuple[TextState, int]]:
        """Yields the initial states and the seed of each batch of an evaluation: equally many of each prompt."""
        mdp, prompts = get_mdp(self.env), self.prompts
        rows = np.repeat(prompts, -(-self.episodes // len(prompts)))
        for i, first in enumerate(range(0, len(rows), EVAL_BATCH)):
            batch = rows[first : first + EVAL_BATCH]
            start = mdp.empty_state(len(batch))
            mdp.reset_rows(start, np.arange(len(batch)), batch)
            yield start, EVAL_SEED + i

    def baselines(self, completions: ReferenceCompletions | None = None) -> dict[str, float | None]:
        """J and scores of the reference, and J*: exact, or estimated from completions of the reference.

        Args:
            completions: where the task is not enumerated; without them J* is None, and the reference is evaluated as a
                policy is.

        Returns:
            The numbers by the names of `BASELINE_NAMES`, None where there is none: those of the estimate where J* is
            exact, or not known.
        """
        baselines: dict[str, float | None] = dict.fromkeys(BASELINE_NAMES)
        if self.solution is not None:
            tree = self.solution.tree
            known = exact.evaluate_log_probs(tree, tree.ref_log_probs)
            best = exact.evaluate_log_probs(tree, self.solution.action_log_probs)
            return baselines | {
                "optimum_score": best.score,
                "optimum_kl": best.kl,
                "reference": known.objective,
                "reference_score": known.score,
                "reference_gold_score": known.gold_score,
                "optimum": self.solution.objective,
            }
        measured = self.measure(reference_policy(self.env)) if completions is None else completions.reference()
        baselines |= {
            "reference": measured["objective"],
            "reference_score": measured["score"],
            "reference_gold_score": measured.get("gold_score"),
            "reference_stderr": measured["objective_stderr"],
            "num_prompts": float(len(self.prompts)),
            "all_prompts": float(len(self.env.unwrapped.prompts)),
        }
        if completions is None:
            return baselines
        estimate = completions.optimum(self.kl_coef, exact.largest_reward(self.env))
        return baselines | {
            "optimum": estimate.objective,
            "optimum_score": float((estimate.weights * np.nan_to_num(completions.scores)).sum(axis=1).mean()),
            "optimum_kl": estimate.kl,
            "optimum_stderr": estimate.stderr,
            "optimum_covariance": estimate.covariance,
            "optimum_low": estimate.interval[0],
            "optimum_high": estimate.interval[1] if math.isfinite(estimate.interval[1]) else None,
            "optimum_upper": estimate.upper if math.isfinite(estimate.upper) else None,
            "optimum_completions": float(completions.rewards.shape[1]),
            "least_effective_sample_size": float(estimate.effective_sample_size.min()),
            "median_effective_sample_size": float(np.median(estimate.effective_sample_size)),
        }


class EvaluationFlags(Protocol):
    """The flags of evaluations, of the command line."""

    eval_episodes: int
    optimum_completions: int
    max_eval_prompts: int


def make_evaluator(flags: EvaluationFlags, environments: Environments) -> Evaluator:
    """Returns what measures policies as the flags say, on the prompts of the training and on those held out.

    Raises:
        FlagError: J* cannot be estimated, since beta is 0.
    """
    evaluator, held_out = (
        None if env is None else Evaluator.for_env(env, flags.eval_episodes, num_prompts=flags.max_eval_prompts)
        for env in (environments.train, environments.held_out)
    )
    assert evaluator is not None
    evaluator.held_out = held_out
    samples = any(each is not None and each.tree is None for each in (evaluator, held_out))
    if flags.optimum_completions and samples and evaluator.kl_coef == 0:
        raise FlagError(
            "J* cannot be estimated where beta, kl_coef, is 0: it is then the largest reward there is. Add "
            f"--optimum-completions 0 (it is {flags.optimum_completions})."
        )
    return evaluator


def mean_over_prompts(values: NDArray[np.float64], prompt: NDArray[np.int64]) -> tuple[float, float]:
    """The mean over prompts of the means of their completions, and its standard error; the prompts are given.

    Where a prompt has a single completion, the spread over all completions is taken for that of each prompt's.
    """
    groups = [values[prompt == each] for each in np.unique(prompt)]
    sizes = np.array([len(group) for group in groups])
    spread = values.var(ddof=1) if sizes.min() < 2 else np.array([group.var(ddof=1) for group in groups])
    return float(np.mean([group.mean() for group in groups])), float(np.sqrt((spread / sizes).sum()) / len(groups))


def reference_policy(env: EnvLike) -> TransformerPolicy:
    """The reference as a policy, for evaluation and not for training: a language model is shared, not copied."""
    mdp = get_mdp(env)
    if isinstance(mdp.reference, CausalLMReference) and mdp.reference.adapter is None:
        return TransformerPolicy(mdp.reference.model, vocab_size=mdp.vocab_size)
    return TransformerPolicy.for_env(env)


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
