"""The gradient of a loss on one batch, and what is wrong with a loss that has none."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from agents.sampling import Rollout
from agents.verification.enumeration import Enumeration

EXTRA = ("all_log_probs", "ref_all_log_probs", "values")
Loss = Callable[..., Tensor]


class BatchGradient(Protocol):
    """Computes the gradient of a loss on the completions `rows` [B] by the table log pi(a|s): [S, V]."""

    def __call__(self, rows: Tensor, log_probs: Tensor) -> Tensor: ...


def rollout_of(completions: Enumeration, log_probs: Tensor | None = None) -> Rollout:
    """All N completions as a rollout of the policy that was enumerated, in float64.

    Args:
        completions: the completions of the behaviour policy.
        log_probs: log pi(a|s) as the sampler returned it, [S, V]; by default the behaviour policy's.
    """
    tree, mask = completions.tree, completions.mask
    behaviour = completions.evaluation.log_probs if log_probs is None else log_probs
    ids, attention = completions.sequences()
    last = mask.sum(dim=1, keepdim=True) - 1
    mdp = tree.mdp
    stopped = torch.as_tensor(mdp.is_eos)[completions.actions.gather(1, last)[:, 0]]
    allowed = torch.as_tensor(tree.child != -2)[completions.states] | ~mask[:, :, None]
    texts = [mdp.decode(row[kept].tolist()) for row, kept in zip(completions.actions, mask, strict=True)]
    return Rollout(
        prompt=completions.prompt,
        input_ids=ids,
        attention_mask=attention,
        mask=mask,
        log_probs=completions.look_up(behaviour),
        ref_log_probs=completions.look_up(tree.ref_log_probs),
        rewards=completions.rewards,
        scores=completions.look_up(tree.scores).sum(dim=1),
        stopped=stopped,
        values=None,
        action_mask=None if mdp.full_support else allowed,
        prompts=mdp.prompt_texts[completions.prompt.numpy()],
        completions=np.array(texts, dtype=object),
    )


class LossGradient:
    """The gradient of a user's loss, `loss(rollout, log_probs, **extra) -> scalar`; see `BatchGradient`.

    Args:
        loss: the loss. `extra` are the arguments of `EXTRA` that its signature names.
        completions: the completions of the behaviour policy.
        values: V(s), [S], that a loss with the argument `values` gets.
        sampled: log pi(a|s) as the sampler returned it, [S, V]; by default the behaviour policy's.

    Raises:
        TypeError: the loss cannot be called, or takes other arguments.
    """

    def __init__(
        self, loss: Loss, completions: Enumeration, values: Tensor | None = None, sampled: Tensor | None = None
    ) -> None:
        self.loss, self.completions = loss, completions
        self.extra = extra_arguments(loss)
        self.rollout = rollout_of(completions, sampled)
        self.values = torch.zeros(len(completions.tree.prompt), dtype=torch.float64) if values is None else values
        self.ref_log_probs = torch.as_tensor(completions.tree.ref_log_probs)

    def __call__(self, rows: Tensor, log_probs: Tensor) -> Tensor:
        """See `BatchGradient`.

        Raises:
            TypeError: the loss returns no tensor.
            ValueError: the loss is no finite scalar with a gradient, or changes its arguments.
        """
        states, actions, mask = (
            x[rows] for x in (self.completions.states, self.completions.actions, self.rollout.mask)
        )
        table = log_probs.clone().requires_grad_()
        rollout = self.rollout[rows]
        taken = torch.where(mask, table[states, actions], 0.0)
        known = {
            "all_log_probs": lambda: table[states],
            "ref_all_log_probs": lambda: self.ref_log_probs[states],
            "values": lambda: torch.where(mask, self.values[states], 0.0),
        }
        extra = {name: known[name]() for name in self.extra}
        arguments = [x for x in (*vars(rollout).values(), taken, *extra.values()) if isinstance(x, Tensor)]
        versions = [x._version for x in arguments]
        loss = self.loss(rollout, taken, **extra)
        check_loss(loss)
        if versions != [x._version for x in arguments]:
            raise ValueError("A loss must not change its arguments in place: copy what it changes.")
        gradient = torch.autograd.grad(loss, table)[0]
        if not gradient.isfinite().all():
            raise ValueError(
                f"The gradient of the loss must be finite, got {gradient[~gradient.isfinite()][0].item()} for the "
                f"completions {rollout.completions.tolist()}."
            )
        return gradient


def check_loss(loss: Tensor) -> None:
    """Checks what a loss returned, see `LossGradient`."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"A loss must return a tensor, a scalar to go down, got {type(loss).__name__}.")
    if loss.numel() != 1:
        raise ValueError(f"A loss must return a scalar, got the shape {tuple(loss.shape)}: take its mean or sum.")
    if not loss.requires_grad:
        raise ValueError("A loss must depend on log_probs, got a tensor without a gradient: was it detached?")
    if not bool(loss.isfinite()):
        raise ValueError(f"A loss must be finite, got {loss.item()}.")


def extra_arguments(loss: Loss) -> list[str]:
    """The names in `EXTRA` that the signature of a loss has.

    Raises:
        TypeError: no function, or one that needs other arguments.
    """
    if not callable(loss):
        raise TypeError(f"A loss must be a function (rollout, log_probs, **extra) -> scalar, got {loss!r:.100}.")
    parameters = inspect.signature(loss).parameters
    extra = [name for name in EXTRA if name in parameters]
    try:
        inspect.signature(loss).bind(None, None, **dict.fromkeys(extra))
    except TypeError as error:
        raise TypeError(
            f"A loss takes (rollout, log_probs) and any of {', '.join(EXTRA)}, got {inspect.signature(loss)}: {error}."
        ) from None
    return extra


def check_deterministic(gradient: BatchGradient, rows: Tensor, log_probs: Tensor) -> None:
    """Raises a ValueError if the gradient of a loss draws random numbers: its expectation could not be enumerated."""
    state = torch.get_rng_state()
    first = gradient(rows, log_probs)
    if not torch.equal(torch.get_rng_state(), state) or not torch.equal(first, gradient(rows, log_probs)):
        raise ValueError("A loss must not draw random numbers: its expectation over batches is enumerated.")
