"""The gradient of a user's loss on one batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from agents.verification.samples import Sample

EXTRA = ("all_log_probs", "ref_all_log_probs", "values")
Loss = Callable[..., Tensor]


class TokenGradient(NamedTuple):
    """The gradient of a loss by log pi(a_t|s_t), [B, T], and by log pi(.|s_t), [B, T, V], where it depends on those."""

    log_probs: Tensor
    all_log_probs: Tensor | None

    def by_token(self, sample: Sample) -> Tensor:
        """The gradient by the log-probabilities of the sampled tokens, [B, T], both parts together."""
        if self.all_log_probs is None:
            return self.log_probs
        return self.log_probs + self.all_log_probs.gather(2, sample.actions[..., None])[..., 0]


class BatchGradient(Protocol):
    """Computes the gradient of a loss, or of an agent's update, on the completions of a batch."""

    @property
    def extra(self) -> list[str]:
        """The names in `EXTRA` of what is read besides rollout and log_probs."""
        ...

    def __call__(self, sample: Sample) -> TokenGradient: ...

    def in_micro_batches(self, sample: Sample, size: int) -> TokenGradient:
        """The gradient on the same completions in parts of `size`."""
        ...


class LossGradient:
    """The gradient of a user's loss, `loss(rollout, log_probs, **extra) -> scalar`.

    Args:
        loss: the loss. `extra` are the arguments of `EXTRA` that its signature names.

    Raises:
        TypeError: the loss cannot be called, or takes other arguments.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss, self.extra = loss, extra_arguments(loss)

    def __call__(self, sample: Sample) -> TokenGradient:
        """See `BatchGradient`.

        Raises:
            TypeError: the loss returns no tensor.
            ValueError: the loss is no finite scalar with a gradient, or changes its arguments.
        """
        leaf = sample.log_probs.detach().requires_grad_()
        log_probs = leaf.clone()  # no leaf: a change in place is found below
        extra, leaves = {name: getattr(sample, name) for name in self.extra}, [leaf]
        if "all_log_probs" in extra:
            extra["all_log_probs"] = sample.all_log_probs.detach().requires_grad_()
            leaves.append(extra["all_log_probs"])
        arguments = [x for x in (*vars(sample.rollout).values(), log_probs, *extra.values()) if isinstance(x, Tensor)]
        versions, before = [x._version for x in arguments], dict(vars(sample.rollout))
        loss = self.loss(sample.rollout, log_probs, **extra)
        check_loss(loss, sample)
        if versions != [x._version for x in arguments] or any(
            value is not before[name] for name, value in vars(sample.rollout).items()
        ):
            raise ValueError("A loss must not change its arguments in place: copy what it changes.")
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        for gradient in gradients:
            if gradient is not None and not gradient.isfinite().all():
                raise ValueError(
                    "The gradient of the loss must be finite, got "
                    f"{gradient[~gradient.isfinite()][0].item()} for the completions "
                    f"{sample.rollout.completions.tolist()}."
                )
        if all(gradient is None for gradient in gradients):
            raise ValueError("A loss must depend on log_probs, got one that depends on other tensors alone.")
        own = torch.zeros_like(leaf) if gradients[0] is None else gradients[0]
        return TokenGradient(own, gradients[1] if len(gradients) > 1 else None)

    def in_micro_batches(self, sample: Sample, size: int) -> TokenGradient:
        """The mean of the gradients of the parts, as gradients are accumulated."""
        parts = sample.batches(torch.arange(len(sample.rollout)).view(-1, size))
        gradients = [self(part) for part in parts]
        own = torch.cat([each.log_probs for each in gradients]) / len(parts)
        others = [each.all_log_probs for each in gradients if each.all_log_probs is not None]
        return TokenGradient(own, torch.cat(others) / len(parts) if others else None)


def check_loss(loss: Tensor, sample: Sample) -> None:
    """Checks what a loss returned, see `LossGradient`."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"A loss must return a tensor, a scalar to go down, got {type(loss).__name__}.")
    if loss.numel() != 1:
        raise ValueError(f"A loss must return a scalar, got the shape {tuple(loss.shape)}: take its mean or sum.")
    if not loss.requires_grad:
        raise ValueError("A loss must depend on log_probs, got a tensor without a gradient: was it detached?")
    if not bool(loss.isfinite()):
        raise ValueError(
            f"A loss must be finite, got {loss.item()} for the completions {sample.rollout.completions.tolist()}."
        )


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


def check_deterministic(gradient: BatchGradient, samples: Sequence[Sample]) -> None:
    """Raises a ValueError if the gradient of a loss differs from call to call: its expectation is enumerated."""
    state = torch.get_rng_state()
    first, second = ([gradient(each).by_token(each) for each in samples] for _ in range(2))
    if not torch.equal(torch.get_rng_state(), state) or not all(map(torch.equal, first, second)):
        raise ValueError(
            "A loss must not draw random numbers or remember earlier calls: its expectation over batches is "
            "enumerated, and the same batch gave two gradients."
        )
