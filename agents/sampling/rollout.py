"""Rollouts: whole completions, sampled with a KV cache and scored in one parallel pass.

`collect` gives the rewards and log-probabilities of `TextEnv` stepped token by token, and is faster.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.errors import Diverged
from agents.policy import TransformerPolicy
from agents.sampling.loop import Sampler, new_generator, sample, validate_generation
from textenv import TextMDP, TextState, get_mdp


@dataclass
class Rollout:
    """B completions; those of a group are contiguous. [B, T] tensors have token t in column t.

    A completion is skipped where its reward failed and the MDP has `on_reward_error="skip"`. It keeps its row, with a
    mask that is all False and scores that are nan; agents learn nothing from it.

    Attributes:
        prompt: int64 [B], index into the environment's prompts.
        input_ids, attention_mask: [B, W + T], prompts with left padding, completions with right padding; in external
            environments (`agents.sampling.external`) [B, T, L + 1], one observation per token.
        mask: bool [B, T], the tokens sampled in this rollout, EOS included; all False in a row that is skipped.
        log_probs: log pi(a_t|s_t) of the behaviour policy, [B, T]. 0 where the mask is False, like the next two.
        ref_log_probs: log pi_ref(a_t|s_t), [B, T]; nan where the environment has no reference.
        rewards: r_t, the sum of all its terms, [B, T].
        scores: score(x, y), [B]; nan where skipped.
        stopped: bool [B], whether the completion ended with EOS, rather than at the length limit.
        values: V(s_t), [B, T], or None if they were not requested.
        action_mask: bool [B, T, V], the allowed tokens, or None where nothing is masked.
        prompts, completions: as text, object arrays [B]; None in a rollout `without_strings`.
        gold_scores: the gold reward's scores, [B], nan where skipped; None where the MDP has no gold reward.
        lengths: int64 [B], the number of tokens sampled, also where skipped; None means `mask.sum(dim=1)`.
        extra: what reward functions have logged of each completion (`log_extra`), object arrays [B] by name; or None.
    """

    prompt: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    mask: Tensor
    log_probs: Tensor
    ref_log_probs: Tensor
    rewards: Tensor
    scores: Tensor
    stopped: Tensor
    values: Tensor | None
    action_mask: Tensor | None
    prompts: Any
    completions: Any
    gold_scores: Tensor | None = None
    lengths: Tensor | None = None
    extra: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def num_tokens(self) -> int:
        """T, the number of columns of the completions."""
        return self.mask.shape[1]

    @property
    def valid(self) -> Tensor:
        """bool [B], False for completions that are skipped."""
        return self.mask.any(dim=1)

    @property
    def num_sampled(self) -> Tensor:
        """The number of tokens sampled, those of skipped completions included."""
        return self.mask.sum() if self.lengths is None else self.lengths.sum()

    @property
    def tokens(self) -> Tensor:
        """a_t, int64 [B, T]; meaningless where the mask is False."""
        return self.input_ids[..., -1] if self.input_ids.ndim == 3 else self.input_ids[:, -self.num_tokens :]

    @property
    def kl(self) -> Tensor:
        """log(pi(y|x) / pi_ref(y|x)), [B]: its mean estimates the KL over whole completions."""
        return (self.log_probs - self.ref_log_probs).sum(dim=1)

    def __getitem__(self, rows: Any) -> Rollout:
        """A rollout of some of the completions: `rows` is a slice or an int64 tensor."""

        def select(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[rows]
            if value is None:
                return None
            if isinstance(value, dict):
                return {name: select(values) for name, values in value.items()}
            return value[rows if isinstance(rows, slice) else rows.cpu().numpy()]  # strings, which are on the host

        return Rollout(**{f.name: select(getattr(self, f.name)) for f in fields(self)})

    def skip(self, rows: Tensor) -> Rollout:
        """The rollout with the masks of these rows, bool [B], all False: they are skipped too."""
        return replace(self, mask=self.mask & ~rows[:, None])

    def scored(self) -> Rollout:
        """The rollout without the rows that are skipped."""
        return self[torch.nonzero(self.valid)[:, 0]]

    def without_strings(self) -> Rollout:
        """The rollout without its strings, as a loss uses it: selecting rows then needs no synchronisation."""
        return replace(self, prompts=None, completions=None, extra=None)


@torch.no_grad()
def collect(
    env: Any,
    policy: TransformerPolicy,
    n: int = 1,
    *,
    num_generations: int = 1,
    generator: torch.Generator | None = None,
    values: bool = True,
    start: TextState | None = None,
    kl_coef: float | None = None,
    sampler: Sampler = sample,
) -> Rollout:
    """Samples `n` completions of the policy and computes their rewards.

    With `on_reward_error="skip"` in the MDP, completions whose reward failed are skipped (see `Rollout`).

    Args:
        env: an environment of textenv; only its MDP is used, its current episode is not touched.
        policy: the behaviour policy; it also estimates V.
        n: B.
        num_generations: completions per prompt; the n / num_generations prompts are drawn uniformly.
        generator: draws prompts and tokens; on the policy's device. By default a new one, seeded by the system.
        values: whether to compute V.
        start: initial states, one completion each, instead of drawn prompts.
        kl_coef: beta, by default the MDP's.
        sampler: samples the tokens, by default with the loop sampler.

    Raises:
        textenv.rewards.RewardError: a reward function failed, with another `on_reward_error`.
        agents.Diverged: the policy's probabilities are not finite.
        ValueError: n is not a multiple of num_generations; the sampler returned tensors of other shapes, or masked
            tokens; the terms of a reward are finite, and their sum is not in float32.
    """
    mdp = get_mdp(env)
    generator = generator or new_generator(policy.device)
    state = sample_prompts(mdp, n, num_generations, generator) if start is None else start
    ids, attention, log_probs, ref_log_probs, action_mask, sampler_values = validate_generation(
        sampler(policy, mdp, state, generator), mdp, len(state), policy.device
    )
    width = mdp.prompt_width
    completion = attention[:, width:] == 1  # with `start`, the given prefix too
    sampled = completion & ~torch.as_tensor(state.attention_mask[:, width:] == 1, device=policy.device)

    # Cut columns that no row uses; from here on the widths are those of this batch.
    longest, first = int(completion.sum(dim=1).max()), int(attention[:, :width].any(dim=0).int().argmax())
    columns = slice(first, width + longest)
    ids, attention = ids[:, columns], attention[:, columns]
    completion, sampled = completion[:, :longest], sampled[:, :longest]
    log_probs = log_probs[:, :longest]
    host_log_probs = log_probs.cpu().numpy()
    check_log_probs(host_log_probs, state)  # before the reward sees tokens that were not sampled from pi
    action_mask = None if action_mask is None else action_mask[:, :longest]
    if ref_log_probs is None:
        ref_log_probs, action_mask = reference_log_probs(mdp, ids, attention, longest)
    ref_log_probs = torch.where(sampled, ref_log_probs[:, :longest], 0.0)

    tokens = ids[:, -longest:].cpu().numpy()
    transitions = mdp.transitions(mdp.initial_state(state), tokens, completion.cpu().numpy())
    lengths = completion.sum(dim=1).cpu().numpy()
    finished = mdp.finished(state.prompt, state.prompt_text, np.where(transitions.mask, tokens, 0), lengths)
    scores, gold_scores = mdp.scores_or_nan(finished)
    host_ref_log_probs = ref_log_probs.cpu().numpy()
    if not np.isfinite(host_ref_log_probs).all():
        raise ValueError("The sampler returned tokens that the reference gives probability 0: it must obey the mask.")
    terms = mdp.reward_terms(transitions, host_ref_log_probs, np.nan_to_num(scores), host_log_probs, kl_coef)
    rewards = torch.as_tensor(sum_of_terms(terms), dtype=torch.float32, device=policy.device)
    sampled_lengths = sampled.sum(dim=1)
    if (skipped := np.isnan(scores)).any():
        sampled = sampled & torch.as_tensor(~skipped[:, None], device=policy.device)
        log_probs, ref_log_probs = (torch.where(sampled, each, 0.0) for each in (log_probs, ref_log_probs))
    rollout = Rollout(
        prompt=torch.as_tensor(state.prompt, device=policy.device),
        input_ids=ids,
        attention_mask=attention,
        mask=sampled,
        log_probs=log_probs,
        ref_log_probs=ref_log_probs,
        rewards=torch.where(sampled, rewards, 0.0),
        scores=torch.as_tensor(scores, dtype=torch.float32, device=policy.device),
        stopped=torch.as_tensor(transitions.stop.any(axis=1), device=policy.device),
        values=None,
        action_mask=action_mask,
        prompts=state.prompt_text.copy(),
        completions=np.array(finished.completions, dtype=object),
        gold_scores=None
        if gold_scores is None
        else torch.as_tensor(gold_scores, dtype=torch.float32, device=policy.device),
        lengths=sampled_lengths,
        extra={name: object_array(values) for name, values in finished.extra.items()} or None,
    )
    if values:
        found = policy.values(ids, attention, longest) if sampler_values is None else sampler_values[:, :longest]
        rollout.values = torch.where(sampled, found, 0.0)
    return rollout


def object_array(values: list[Any]) -> NDArray[Any]:
    """Any values as an array [B], also where they are lists of the same length."""
    array = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):
        array[row] = value
    return array


def sum_of_terms(terms: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """r_t, [B, T], the sum of the terms of `TextMDP.reward_terms`.

    Raises:
        ValueError: a sum is not finite in float32.
    """
    rewards: NDArray[np.float64] = reduce(np.add, terms.values())
    if not (np.abs(rewards) <= np.finfo(np.float32).max).all():
        largest = {name: float(np.abs(values).max()) for name, values in terms.items()}
        raise ValueError(
            f"A reward must be finite in float32, got {np.abs(rewards).max()}; the largest values of its terms are "
            f"{largest}. Scale the reward, the shaping terms or kl_coef down."
        )
    return rewards


def check_log_probs(log_probs: NDArray[np.float32], state: TextState) -> None:
    """Checks the log-probabilities of sampled tokens, [B, T].

    Raises:
        Diverged: one is not finite; the message has the first prompt, with control characters escaped.
    """
    wrong = np.flatnonzero(~np.isfinite(log_probs).all(axis=1))
    if len(wrong):
        time = int(np.flatnonzero(~np.isfinite(log_probs[wrong[0]]))[0])
        raise Diverged(
            f"The policy's probabilities are not finite in {len(wrong)} of {len(log_probs)} completions, first at "
            f"token {time} after the prompt {state.prompt_text[wrong[0]]!r:.200}: the last optimizer steps were too "
            "large."
        )


def reference_log_probs(mdp: TextMDP, ids: Tensor, attention: Tensor, num_tokens: int) -> tuple[Tensor, Tensor | None]:
    """Returns log pi_ref of the last T columns of sequences [B, L], [B, T], and the mask there, [B, T, V], or None.

    A language model needs one parallel pass, a table one look-up per column.
    """
    reference: Any = mdp.reference
    if mdp.full_support and hasattr(reference, "token_log_probs"):
        return reference.token_log_probs(ids, attention, num_tokens), None
    tokens, mask = ids.cpu().numpy(), attention.cpu().numpy()
    log_probs, allowed = [], []
    for column in range(tokens.shape[1] - num_tokens, tokens.shape[1]):
        before = np.where(np.arange(tokens.shape[1]) < column, mask, 0)
        distribution = reference.log_probs(np.where(before == 1, tokens, 0), before)
        log_probs.append(np.take_along_axis(distribution, tokens[:, [column]], axis=1)[:, 0])
        if not mdp.full_support:
            allowed.append((distribution > -np.inf) | (mask[:, [column]] == 0))
    found = torch.as_tensor(np.stack(log_probs, axis=1), dtype=torch.float32, device=ids.device)
    return found, torch.as_tensor(np.stack(allowed, axis=1), device=ids.device) if allowed else None


def states_after(mdp: TextMDP, rollout: Rollout, row: Tensor, time: Tensor, copies: int) -> TextState:
    """Returns the states s_{t+1} after token `time[i]` of completion `row[i]`; the `copies` of each are contiguous."""
    rows = row.repeat_interleave(copies).cpu().numpy()
    lengths = (time + 1).repeat_interleave(copies).cpu().numpy()
    state = mdp.empty_state(len(rows))
    width, horizon = mdp.prompt_width, rollout.num_tokens
    prompt_columns = rollout.input_ids.shape[1] - horizon  # a rollout's prompts are cut to the longest of them
    kept = np.arange(horizon) < lengths[:, None]
    ids, attention = rollout.input_ids.cpu().numpy()[rows], rollout.attention_mask.cpu().numpy()[rows]
    state.input_ids[:, width - prompt_columns : width] = ids[:, :prompt_columns]
    state.attention_mask[:, width - prompt_columns : width] = attention[:, :prompt_columns]
    state.input_ids[:, width : width + horizon] = np.where(kept, ids[:, prompt_columns:], 0)
    state.attention_mask[:, width : width + horizon] = kept
    state.prompt[:] = rollout.prompt.cpu().numpy()[rows]
    state.prompt_text[:] = rollout.prompts[rows]
    state.time[:] = lengths
    return state


def sample_prompts(mdp: TextMDP, n: int, num_generations: int, generator: torch.Generator) -> TextState:
    """Returns `n` initial states: n / num_generations prompts, drawn uniformly, each num_generations times."""
    if n < 1 or num_generations < 1 or n % num_generations:
        raise ValueError(f"n must be a positive multiple of num_generations, got {n} and {num_generations}.")
    number = len(mdp.prompts.texts)
    drawn = torch.randint(number, (n // num_generations,), generator=generator, device=generator.device)
    state = mdp.empty_state(n)
    mdp.reset_rows(state, np.arange(n), drawn.repeat_interleave(num_generations).cpu().numpy())
    return state
