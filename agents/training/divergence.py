"""Divergence: which optimizer steps are taken, when training stops, and the text of its error.

A step is taken only if loss and gradient are finite: one step with a nan would destroy the weights and the optimizer's
state. A minibatch may be bad by chance, so training continues with the next one, and stops after `MOST_SKIPPED` in a
row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.errors import Diverged
from agents.policy import TransformerPolicy
from agents.sampling import Rollout
from agents.training.ranks import gather_objects
from agents.training.reduction import Metrics, find_losses
from textenv import TextMDP
from textenv.data import printable

MOST_SKIPPED = 5  # steps in a row that are not taken: then training stops
LARGE_SCORE = 1e4  # from this |score| on the scores are the first suspect
SHOWN = 3  # completions in the error
WIDTH = 120  # characters shown of a prompt or completion


class StepGuard:
    """Passes an optimizer step if loss and gradient are finite; counts the others.

    All ranks have the same metrics and the same norm, so they decide alike.

    Attributes:
        skipped: steps of this update that were not taken.
    """

    def __init__(self) -> None:
        self.skipped = self.in_a_row = 0
        self._rollout: Rollout | None = None
        self._rows: Tensor | None = None
        self._losses: Metrics = {}

    def begin(self) -> None:
        """Starts an update."""
        self.skipped = 0

    def watch(self, rollout: Rollout, rows: Tensor, metrics: Metrics) -> None:
        """Takes note of the minibatch whose gradient was computed, rows of a rollout, and of its losses."""
        self._rollout, self._rows = rollout, rows
        self._losses = find_losses(metrics)

    def end(self) -> Metrics:
        """Ends the update, whose completions are released; returns `num_skipped_steps`."""
        self._rollout = self._rows = None
        return {"num_skipped_steps": float(self.skipped)}

    def passes(self, agent: Any, norm: float) -> bool:
        """Whether to take the step of the minibatch, whose gradient has this norm.

        Raises:
            Diverged: it is the last of `MOST_SKIPPED` in a row that are not taken.
        """
        if math.isfinite(norm) and all(map(math.isfinite, self._losses.values())):
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row < MOST_SKIPPED:
            return False
        in_a_row, self.in_a_row = self.in_a_row, 0  # who continues after the error begins a new row
        found = "".join(f", {name} {value:.3g}" for name, value in self._losses.items())
        raise Diverged(
            f"Training has diverged in update {agent.num_updates + 1}: loss or gradient of {in_a_row} minibatches in a "
            f"row are not finite (gradient norm {norm:.3g}{found}). Their steps were not taken; weights and optimizer "
            "are those before." + describe_minibatch(agent, self._rollout, self._rows)
        )


@contextmanager
def explain_divergence(agent: Any) -> Iterator[None]:
    """Adds the number of the update, and the settings to lower, to the error of a policy that cannot sample."""
    try:
        yield
    except Diverged as error:
        raise Diverged(f"Training has diverged in update {agent.num_updates + 1}: {error} {advice(agent)}") from error


def describe_minibatch(agent: Any, rollout: Rollout | None, rows: Tensor | None) -> str:
    """The completions of a minibatch to suspect, and what to lower. Every rank calls it."""
    if rollout is None or rows is None:
        return f" {advice(agent)}"
    batch = rollout[rows]
    largest = max(gather_objects(largest_score(batch)))
    lines = list(chain.from_iterable(gather_objects(suspects(agent, batch))))
    completions = "".join(f"\n  {line}" for line in lines[:SHOWN])
    return f" Largest |score|: {largest:.3g}. Of the last minibatch:{completions}\n{advice(agent, largest)}"


def largest_score(batch: Rollout) -> float:
    """max |score| over the completions that have one; infinite where one is too large for float32."""
    scores = batch.scores[batch.mask.any(dim=1)].abs()
    return float(scores.max()) if len(scores) else 0.0


@torch.no_grad()
def suspects(agent: Any, batch: Rollout) -> list[str]:
    """The completions with numbers that are not finite, else those with the largest score and the largest ratio."""
    parts = torch.arange(len(batch)).split(agent.micro_batch_size or len(batch))  # type: ignore[no-untyped-call]
    ratios, finite = zip(*(_ratios(agent, batch[rows]) for rows in parts), strict=True)
    ratio, good = torch.cat(ratios), torch.cat(finite)
    score = batch.scores.cpu().double().nan_to_num(0.0).abs()
    order = torch.nonzero(~good).flatten().tolist() or [int(score.argmax()), int(ratio.argmax())]
    return [
        f"{_text(batch.prompts, i)} -> {_text(batch.completions, i)} (score {float(batch.scores[i]):.3g}, largest "
        f"|log ratio| {float(ratio[i]):.3g})"
        for i in dict.fromkeys(order[:SHOWN])
    ]


def _text(texts: Any, row: int) -> str:
    """A text in the error; a replay that was saved has none."""
    return "(of a saved replay)" if texts is None else abridge(texts[row])


def _ratios(agent: Any, batch: Rollout) -> tuple[Tensor, Tensor]:
    """For each completion the largest |log pi - log pi_old| of its tokens, and whether all its numbers are finite."""
    inputs = (batch.input_ids, batch.attention_mask, batch.num_tokens, batch.action_mask)
    log_probs, values = agent.policy.evaluate_actions(*inputs, values=agent.needs_values)
    log_ratio = torch.where(batch.mask, log_probs - batch.log_probs, 0.0)
    numbers = [log_ratio, batch.rewards, *(x for x in (values, batch.values) if x is not None)]
    finite = torch.stack([torch.where(batch.mask, x.float(), 0.0).isfinite().all(dim=1) for x in numbers]).all(dim=0)
    return log_ratio.abs().amax(dim=1).cpu().double().nan_to_num(math.inf), finite.cpu()


def abridge(text: object) -> str:
    """A prompt or completion on one line, control characters escaped, its middle left out where it is long."""
    line = f"'{printable(text)}'"
    return line if len(line) <= WIDTH else f"{line[: WIDTH // 2]} ... {line[-WIDTH // 2 :]}"


def advice(agent: Any, largest: float = 0.0) -> str:
    """What to lower, with the values that the settings have; or to set, where there is no clip."""
    names = ("learning_rate", "vf_learning_rate", "max_grad_norm", "vf_coef", "n_epochs", "clip_range")
    values = {name: getattr(agent, name) for name in names if hasattr(agent, name)}
    given = {name: "" if callable(value) else f" ({value:g})" for name, value in values.items() if value is not None}
    settings = ", ".join(f"{name}{value}" for name, value in given.items())
    clip = "; set clip_range" if values.get("clip_range", 0) is None else ""
    scale = "Scale the scores down. " if not largest < LARGE_SCORE else ""
    return f"{scale}Go back to a checkpoint and lower {settings}{clip}."


@torch.no_grad()
def check_finite(policy: TransformerPolicy, mdp: TextMDP, num_prompts: int = 8) -> None:
    """Checks that a policy is worth saving: weights, and pi and V at a few prompts, are finite.

    Cheap beside saving: it reads the weights once, and computes one forward pass of at most `num_prompts` rows.

    Raises:
        Diverged: a number is not finite.
    """
    names = [name for name, parameter in policy.named_parameters() if not bool(parameter.isfinite().all())]
    if names:
        raise Diverged(f"The policy has diverged: weights that are not finite, the first in {names[0]}.")
    count = min(num_prompts, len(mdp.prompts.texts))
    state = mdp.empty_state(count)
    mdp.reset_rows(state, np.arange(count), np.arange(count))
    ids, attention = (torch.as_tensor(x, device=policy.device) for x in (state.input_ids, state.attention_mask))
    logits, values = policy.next_token_logits_and_values(ids, attention)
    for name, numbers in (("probabilities", logits), ("values", values)):
        wrong = torch.nonzero(~numbers.view(count, -1).isfinite().all(dim=1)).flatten().tolist()
        if wrong:
            raise Diverged(
                f"The policy has diverged: its {name} are not finite after {abridge(mdp.prompts.texts[wrong[0]])}."
            )
