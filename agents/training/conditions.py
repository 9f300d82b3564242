"""The table of training's warnings: conditions on the metrics of the last updates, with thresholds and cures."""

from __future__ import annotations

from dataclasses import dataclass

from agents.training.reduction import Metrics
from agents.training.signs import (
    Context,
    Rows,
    Test,
    above,
    below,
    below_reference,
    entropy_gone,
    estimated_objective,
    first_ratio_off,
    gold_falls,
    gradient_large,
    halves,
    kl_negative,
    kl_runs_away,
    mean,
    never_ends,
    objective_fell,
    ratio_off,
    scores_equal,
)


@dataclass(frozen=True)
class Condition:
    """One warning.

    Attributes:
        name: the metric `warnings/NAME` is 1 in the row in which it is found.
        patience: the number of updates (or evaluations) that `found` gets, the last ones.
        threshold: its limit.
        found: whether the rows are worth a warning.
        message: what it means, and the cure; `{metric}` is replaced by its value in the last row, and a name of
            `compared` by that number.
    """

    name: str
    patience: int
    threshold: float
    found: Test
    message: str

    def describe(self, rows: Rows, context: Context) -> str:
        """The text of the warning, for the rows in which it was found."""
        return self.message.format_map({**rows[-1], **compared(rows, context)})


def compared(rows: Rows, context: Context) -> Metrics:
    """The numbers that conditions compare where they look at several rows together."""
    first, second = halves(rows)
    return {
        "objective": estimated_objective(rows),
        "objective_at_start": estimated_objective(context.start),
        "mean_kl": mean(rows, "objective/kl"),
        "kl_before": mean(rows[:2], "objective/kl"),
        "kl_after": mean(rows[-2:], "objective/kl"),
        "scores_before": mean(first, "objective/scores"),
        "scores_after": mean(second, "objective/scores"),
        "gold_before": mean(first, "objective/gold_scores"),
        "gold_after": mean(second, "objective/gold_scores"),
    }


CONDITIONS = (
    Condition(
        "skipped_steps",
        1,
        0,
        above("num_skipped_steps"),
        "{num_skipped_steps:.0f} optimizer steps were not taken, because loss or gradient was not finite: lower "
        "learning_rate or the scale of the scores.",
    ),
    Condition(
        "equal_scores",
        5,
        0.98,
        scores_equal,
        "the scores of nearly all groups are equal ({groups/equal_scores_ratio:.0%}), so there is nothing to compare: "
        "use prompts that are neither too easy nor too hard, a reward with finer steps, or more completions per prompt "
        "(num_generations).",
    ),
    Condition(
        "score_noise",
        5,
        0.5,
        above("objective/score_noise"),
        "the score is mostly noise: identical completions differ by {objective/score_noise:.0%} of its variance. Make "
        "the reward a function of prompt and completion, or average it over several calls.",
    ),
    Condition(
        "no_completion_ends",
        5,
        1.0,
        never_ends,
        "no completion ends itself, all are cut at max_new_tokens: raise max_new_tokens, check that eos_token_ids are "
        "the model's, or penalise cut completions (textenv.shaping.missing_eos_penalty).",
    ),
    Condition(
        "entropy_gone",
        5,
        0.05,
        entropy_gone,
        "the policy always samples the same completions (entropy {objective/entropy:.2g} nats) and can learn nothing "
        "more: go back to a checkpoint; lower learning_rate, raise kl_coef.",
    ),
    Condition(
        "kl_runs_away",
        10,
        2.0,
        kl_runs_away,
        "the KL to the reference has risen from {kl_before:.3g} to {kl_after:.3g} nats while the score did not rise: "
        "lower learning_rate, raise kl_coef or set kl_target.",
    ),
    Condition(
        "objective_fell",
        5,
        5.0,
        objective_fell,
        "the mean return (of other libraries' agents: the mean score) has fallen from {objective_at_start:.3g} at "
        "the start of the run to {objective:.3g}: lower learning_rate or n_epochs.",
    ),
    Condition(
        "explained_variance_negative",
        10,
        -0.5,
        below("val/explained_variance"),
        "V predicts the returns worse than a constant (explained variance {val/explained_variance:.2g}), and makes the "
        "advantages noisier: lower vf_learning_rate or learning_rate, raise value_warmup, or use separate_critic.",
    ),
    Condition(
        "effective_sample_small",
        1,
        0.1,
        below("val/ess"),
        "a few tokens carry all the importance weight (effective sample size {val/ess:.1%}): lower n_epochs or "
        "learning_rate, set clip_range or target_kl.",
    ),
    Condition(
        "ratio_off",
        3,
        0.5,
        ratio_off,
        "the mean ratio to the behaviour policy is {val/ratio:.3g} and not 1: lower n_epochs or learning_rate, set "
        "clip_range or target_kl.",
    ),
    Condition(
        "first_ratio_off",
        2,
        1e-3,
        first_ratio_off,
        "the sampler's log-probabilities are not the policy's: before the first step the ratio differs from 1 by "
        "{val/first_ratio_error_avg:.2g}. Temperature, masks and weights must be the same in sampling and update.",
    ),
    Condition(
        "kl_negative",
        5,
        0.05,
        kl_negative,
        "the mean of log pi - log pi_ref is {mean_kl:.3g}, but a KL cannot be negative: log-probabilities of "
        "the sampler or of the reference are wrong.",
    ),
    Condition(
        "gold_falls",
        20,
        4.0,
        gold_falls,
        "the score rises (from {scores_before:.3g} to {scores_after:.3g}) while the gold score falls (from "
        "{gold_before:.3g} to {gold_after:.3g}), which is reward hacking: raise kl_coef, set kl_target, stop earlier, "
        "or correct the reward.",
    ),
    Condition(
        "gradient_large",
        10,
        1e3,
        gradient_large,
        "the gradient's norm is {grad_norm:.3g}, far above max_grad_norm, so that its largest part (the value loss?) "
        "hides all others: lower vf_coef or the scale of the scores, or raise max_grad_norm.",
    ),
    Condition(
        "nothing_moves",
        1,
        1e-6,
        below("policy/weight_change"),
        "the weights have hardly changed in ten updates (by {policy/weight_change:.1g} of their size): raise "
        "learning_rate or max_grad_norm; where all scores are equal there is no gradient.",
    ),
)

EVALUATION_CONDITIONS = (
    Condition(
        "below_reference",
        3,
        0.05,
        below_reference,
        "the policy is worse than the reference, from which it started (J {eval/objective:.3g}, the reference's "
        "{reference:.3g}): lower learning_rate; go back to an earlier checkpoint.",
    ),
)
