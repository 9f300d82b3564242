"""How far a reward model agrees with preferences that it was not trained on, and how far it goes by length.

    margin   r(x, chosen) - r(x, rejected)
    length   tokens of the chosen completion minus those of the rejected one, as the model reads them (cut to its limit)

Whether a model is better than a guess is tested over prompts (`significance`).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from agents import Diverged
from experiments.reward_model.fitting import margins
from experiments.reward_model.pairs import Pair, describe_pair
from experiments.reward_model.significance import SignTest, sign_test
from textenv.rewards import RewardModel

AGREEMENT = (
    "pairs",
    "accuracy",
    "log_loss",
    "calibration_error",
    "calibration_error_by_chance",
    "mean_confidence",
    "p_value",
)  # what `measure` returns
LENGTH = (
    *("longer_is_chosen", "prefers_longer", "length_correlation"),
    *("pairs_longer_chosen", "accuracy_longer_chosen", "pairs_shorter_chosen", "accuracy_shorter_chosen"),
)
Array = NDArray[np.float64]
Numbers = dict[str, int | float | None]  # counts are integers


def measure(reward: RewardModel, pairs: list[Pair], batch_size: int, *, one_prompt: bool) -> tuple[Numbers, SignTest]:
    """Measures a model on pairs.

    Args:
        reward: the model.
        pairs: N pairs.
        batch_size: of the forward passes, in pairs.
        one_prompt: whether all pairs of their file have one prompt, see `sign_test`.

    Returns:
        The numbers of `AGREEMENT` and `LENGTH`, and the test whose p-value is among them.

    Raises:
        Diverged: a score is not finite.
    """
    with torch.no_grad():
        batches = [pairs[i : i + batch_size] for i in range(0, len(pairs), batch_size)]
        margin = torch.cat([margins(reward, batch) for batch in batches]).cpu().double().numpy()
    if not np.isfinite(margin).all():
        raise Diverged(
            f"The reward model is of no use: scores of {describe_pair(pairs[int(np.isfinite(margin).argmin())])}"
            " are not finite. Nothing was saved as a result; lower --learning-rate, in another --out."
        )
    tokens = [[len(reward.tokens(pair.prompt, text)) for text in (pair.chosen, pair.rejected)] for pair in pairs]
    length = np.array([chosen - rejected for chosen, rejected in tokens], dtype=np.float64)
    test = sign_test(margin, pairs, one_prompt=one_prompt)
    numbers: Numbers = {"pairs": len(pairs), **agreement(margin), "p_value": test.p_value}
    return numbers | length_bias(margin, length), test


def agreement(margin: Array, bins: int = 10) -> dict[str, float]:
    """Agreement of margins [N] of held-out pairs with the preferences.

    `accuracy`: share of positive margins, half for ties. `log_loss`: -mean log p; a guess has log 2 = 0.693.
    `calibration_error` (Guo et al. 2017, arXiv:1706.04599): for each pair the side that the model prefers has
    confidence p >= 1/2; mean of |share of correct pairs - mean confidence| over `bins` of equal width, weighted by
    their size. Of few pairs it is biased upward, since the share in a bin is never exactly its probability:
    `calibration_error_by_chance` is what a calibrated model of these confidences would have on average, if the pairs
    were independent (by the normal approximation in each bin); more where several share a prompt.
    """
    double = np.asarray(margin, dtype=np.float64)
    confidence, correct = 1 / (1 + np.exp(-np.abs(double))), _right(double)
    group = np.minimum((2 * (confidence - 0.5) * bins).astype(int), bins - 1)
    bin_rows = [group == g for g in np.unique(group)]
    gaps = [abs(correct[rows].sum() - confidence[rows].sum()) for rows in bin_rows]
    variance = confidence * (1 - confidence) * (double != 0)  # a tie counts 1/2, for certain
    by_chance = [np.sqrt(2 / np.pi * variance[rows].sum()) for rows in bin_rows]  # E|x| of a normal x
    return {
        "accuracy": float(correct.mean()),
        "log_loss": float(np.logaddexp(0, -double).mean()),
        "calibration_error": float(sum(gaps) / len(double)),
        "calibration_error_by_chance": float(sum(by_chance) / len(double)),
        "mean_confidence": float(confidence.mean()),
    }


def length_bias(margin: Array, length: Array) -> Numbers:
    """How much of the preferences, and of the model's, is length alone; from margins and lengths, [N] each.

    `longer_is_chosen`: the accuracy of a model that prefers the longer completion, half for equal lengths. The others
    are over pairs of different lengths, None where there are none. `prefers_longer`: share in which the model prefers
    the longer one. `length_correlation`: rank correlation within pairs of the difference in score and the difference in
    length, each pair in both orders, so that it does not matter which is preferred. `accuracy_longer_chosen` and
    `accuracy_shorter_chosen`: accuracy where the longer one is preferred, and where the shorter one is.
    """
    differ = length != 0
    sides = {"longer": length > 0, "shorter": length < 0}
    numbers: Numbers = {
        "longer_is_chosen": float(_right(length).mean()),
        "prefers_longer": _mean(_right(margin * length)[differ]),
        "length_correlation": _correlation(margin[differ], length[differ]),
    }
    for side, rows in sides.items():
        numbers[f"pairs_{side}_chosen"] = int(rows.sum())
        numbers[f"accuracy_{side}_chosen"] = _mean(_right(margin[rows]))
    return numbers


def describe_calibration(numbers: Numbers) -> str:
    """A sentence about the probabilities of a model, from the numbers of `measure`."""
    confidence, accuracy, error = (numbers[name] for name in ("mean_confidence", "accuracy", "calibration_error"))
    text = f"Calibration: its mean confidence is {confidence:.0%}, and it is right about {accuracy:.0%}; "
    if (by_chance := numbers["calibration_error_by_chance"]) is None:  # an earlier version did not measure it
        return f"{text}error {error:.2f}, which is biased upward for few pairs."
    return f"{text}error {error:.2f}, where a calibrated model would have {by_chance:.2f} of so many pairs by chance."


def describe_length(numbers: Numbers) -> str:
    """A sentence about the length of what a model prefers, from the numbers of `measure`."""
    longer, accuracy = numbers["longer_is_chosen"], numbers["accuracy"]
    if longer is None or accuracy is None:
        return "Length: an earlier version did not measure it."
    if numbers["prefers_longer"] is None:
        return "Length: both completions of every pair have the same length."
    side, known = ("longer", longer) if longer >= 0.5 else ("shorter", 1 - longer)
    parts = [
        f"Length: a guess that the {side} completion is preferred is right about {known:.0%} of the pairs, the model "
        f"about {accuracy:.0%}. It prefers the longer one in {numbers['prefers_longer']:.0%} of those whose lengths "
        "differ."
    ]
    for side in ("longer", "shorter"):
        if (right := numbers[f"accuracy_{side}_chosen"]) is not None:
            count = f"{numbers[f'pairs_{side}_chosen']:.0f}"  # a float in an earlier version
            parts.append(f"It is right about {right:.0%} of the {count} in which the {side} one is preferred.")
    return " ".join(parts)


def _right(signed: Array) -> Array:
    """1 where a number is positive, 1/2 where it is 0."""
    return (1 + np.sign(signed)) / 2


def _mean(values: Array) -> float | None:
    return float(values.mean()) if len(values) else None


def _correlation(margin: Array, length: Array) -> float | None:
    """Spearman's correlation over both orders of each pair; None where there is none."""
    if not len(length) or not margin.any():
        return None
    return float(stats.spearmanr(np.r_[margin, -margin], np.r_[length, -length]).statistic)
