"""What a step returns: `StepResult`, and `FinalInfo` of the completions that it finished."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenv.state import Array

Info = dict[str, Any]  # the info of Gymnasium, of one environment or of a batch

FINISH_REASONS = np.array(["length", "stop"], dtype=object)  # indexed by whether the last token is an EOS token


@dataclass
class FinalInfo:
    """The completions that a step finished, [B] each; only rows that terminated are meaningful.

    Attributes:
        prompt: the prompts as text.
        completion: the completions as text.
        finish_reason: "stop" (EOS), "length" (`max_new_tokens`) or "illegal" (a masked action).
        gold_score: their gold scores; None where the task has no gold reward.
        kl: sum_t (log pi - log pi_ref) over each completion; None without a bound policy.
    """

    prompt: Array
    completion: Array
    finish_reason: Array
    gold_score: Array | None = None
    kl: Array | None = None


@dataclass
class StepResult:
    """One transition of each of B episodes.

    Attributes:
        rewards: float64 [B], r_t, the sum of `terms`.
        terminated: bool [B], whether the transition ended the episode.
        stepped: bool [B], False in rows that were reset instead of stepped; their numbers are zero.
        ref_log_prob: float64 [B], log pi_ref(a_t | s_t).
        terms: the terms of r_t, float64 [B] each; empty where no row was stepped.
        final: the completions that ended, None if there are none.
        illegal: bool [B], the rows that a masked action ended, None if there are none. Their log pi_ref is -inf, and
            their reward is the term "illegal" alone.
    """

    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    stepped: NDArray[np.bool_]
    ref_log_prob: NDArray[np.float64]
    terms: dict[str, NDArray[np.float64]]
    final: FinalInfo | None = None
    illegal: NDArray[np.bool_] | None = None

    @classmethod
    def of_resets(cls, num: int) -> StepResult:
        """The result where all rows were reset."""
        zeros = np.zeros(num)
        return cls(zeros, zeros != 0, zeros != 0, zeros, {})

    def restrict_to(self, rows: NDArray[np.bool_]) -> StepResult:
        """Zeroes `stepped`, `ref_log_prob`, `terms` and `illegal` outside these rows; other fields keep all rows."""
        terms = {name: np.where(rows, values, 0.0) for name, values in self.terms.items()}
        illegal = None if self.illegal is None else self.illegal & rows
        ref_log_prob = np.where(rows, self.ref_log_prob, 0.0)
        return replace(self, stepped=rows, ref_log_prob=ref_log_prob, terms=terms, illegal=illegal)

    def scored_info(self) -> dict[str, Array]:
        """`score`, and `gold_score` and `kl` where they exist, [B]; meaningless in rows that are illegal."""
        assert self.final is not None
        numbers = {"score": self.terms["score"], "gold_score": self.final.gold_score, "kl": self.final.kl}
        return {name: values.copy() for name, values in numbers.items() if values is not None}

    def text_info(self) -> dict[str, Array]:
        """`prompt`, `completion` and `finish_reason` of the rows that terminated, [B]."""
        assert self.final is not None
        return {name: getattr(self.final, name) for name in ("prompt", "completion", "finish_reason")}
