"""Shaping: reward terms for every step, as pure functions of transitions.

A shaping term takes a batch of transitions and returns the term of each, [B, T] in, [B, T] out. A whole completion is T
transitions; a step of the environment is T = 1. Its `__name__` is its key in `reward_terms`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from textenv.arguments import shown, takes_arguments


class Transitions(NamedTuple):
    """T consecutive transitions (s_t, a_t, s_{t+1}) of B episodes.

    Attributes:
        input_ids: int64 [B, L], the states before the first transition, as in the observation.
        attention_mask: int8 [B, L], 1 on real tokens.
        tokens: int64 [B, T], the actions.
        mask: bool [B, T], False where the episode had terminated before.
        time: int64 [B, T], t of each transition.
        stop: bool [B, T], the action is an end token.
        terminated: bool [B, T], the action terminated the episode (by `stop` or by length).
        prompt_width: W, the columns of `input_ids` that hold the prompt; completion token t is in column W + t.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int8]
    tokens: NDArray[np.int64]
    mask: NDArray[np.bool_]
    time: NDArray[np.int64]
    stop: NDArray[np.bool_]
    terminated: NDArray[np.bool_]
    prompt_width: int


ShapingTerm = Callable[[Transitions], NDArray[np.float64]]
Potential = Callable[[NDArray[np.int64], NDArray[np.int8]], NDArray[np.float64]]


def potential_based(potential: Potential, gamma: float = 1.0) -> ShapingTerm:
    """`gamma Phi(s_{t+1}) - Phi(s_t)` with `Phi = 0` at the end: changes no optimal policy (Ng, Harada, Russell 1999).

    With gamma = 1 its sum over an episode is `-Phi(s_0)` for every completion.

    Args:
        potential: Phi, `(input_ids [B, L], attention_mask [B, L]) -> [B]`.
        gamma: the agent's discount.
    """

    def potential_shaping(transitions: Transitions) -> NDArray[np.float64]:
        input_ids, attention_mask = transitions.input_ids.copy(), transitions.attention_mask.copy()
        rows = np.arange(len(input_ids))
        terms = np.zeros(transitions.tokens.shape)
        before = potential(input_ids, attention_mask)
        for step in range(transitions.tokens.shape[1]):
            column = np.minimum(transitions.prompt_width + transitions.time[:, step], input_ids.shape[1] - 1)
            live = transitions.mask[:, step]
            input_ids[rows[live], column[live]] = transitions.tokens[live, step]
            attention_mask[rows[live], column[live]] = 1
            after = np.where(transitions.terminated[:, step], 0.0, potential(input_ids, attention_mask))
            terms[:, step] = gamma * after - before
            before = after
        return terms

    return potential_shaping


def length_penalty(per_token: float) -> ShapingTerm:
    """`-per_token` for every token, the end token included."""

    def length(transitions: Transitions) -> NDArray[np.float64]:
        return np.full(transitions.tokens.shape, -per_token)

    return length


def repetition_penalty(per_token: float) -> ShapingTerm:
    """`-per_token` for every token that is already in the completion (end tokens never repeat)."""

    def repetition(transitions: Transitions) -> NDArray[np.float64]:
        width, steps = transitions.prompt_width, transitions.tokens.shape[1]
        completion = np.concatenate([transitions.input_ids[:, width:], transitions.tokens], axis=1)
        real = np.concatenate([transitions.attention_mask[:, width:] == 1, transitions.mask], axis=1)
        terms = np.zeros(transitions.tokens.shape)
        for step in range(steps):
            end = completion.shape[1] - steps + step
            repeats = (completion[:, :end] == transitions.tokens[:, step : step + 1]) & real[:, :end]
            terms[:, step] = np.where(repeats.any(axis=1), -per_token, 0.0)
        return terms

    return repetition


def missing_eos_penalty(penalty: float) -> ShapingTerm:
    """`-penalty` on the last token of a completion that reached `max_new_tokens` without an end token."""

    def missing_eos(transitions: Transitions) -> NDArray[np.float64]:
        return np.where(transitions.terminated & ~transitions.stop, -penalty, 0.0)

    return missing_eos


def shaping_terms(shaping: ShapingTerm | Sequence[ShapingTerm]) -> tuple[ShapingTerm, ...]:
    """One term or several as a tuple.

    Raises:
        TypeError: one cannot be called with transitions.
        ValueError: two have the same name, or one has that of another term of the reward.
    """
    terms = tuple(shaping) if isinstance(shaping, list | tuple) else (shaping,)
    if not all(takes_arguments(term, 1) for term in terms):
        raise TypeError(
            f"shaping must be a function of transitions or a list of them (see textenv.shaping), got {shown(shaping)}."
        )
    names = [*map(shaping_name, terms)]
    if len({"score", "kl_reference", "kl_policy", "illegal", *names}) < len(names) + 4:
        raise ValueError(
            "Each shaping term needs a __name__ of its own, other than score, kl_reference, kl_policy and illegal, "
            f"got {names}."
        )
    return terms


def shaping_name(term: object) -> str:
    """The key of a shaping term in `reward_terms`."""
    return str(getattr(term, "__name__", type(term).__name__))


def shaping_values(term: ShapingTerm, transitions: Transitions) -> NDArray[np.float64]:
    """A shaping term's value of each transition, [B, T], zero where the mask is False.

    Raises:
        ValueError: it does not return an array of that shape, with numbers that are finite in float32.
    """
    values, mask = term(transitions), transitions.mask
    numbers = np.asarray(values) if np.shape(values) == mask.shape else np.empty(0)
    valid = numbers.shape == mask.shape and numbers.dtype.kind in "biuf"
    if not valid or not (np.abs(numbers[mask].astype(np.float64)) <= np.finfo(np.float32).max).all():
        raise ValueError(
            f"The shaping term {shaping_name(term)!r} must return finite numbers, [B, T] = {mask.shape}, got "
            f"{values!r}. Numbers must be finite in float32."
        )
    return np.where(mask, numbers, 0.0)
