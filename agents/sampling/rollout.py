"""Rollouts: whole completions, sampled with a KV cache and scored in one parallel pass.

`collect` gives the rewards and log-probabilities of `TextEnv` stepped token by token, and is faster.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.policy import TransformerPolicy
from agents.sampling.loop import Generation, Sampler, new_generator, sample
from textenv import TextMDP, TextState, get_mdp


@dataclass
class Rollout:
    """B completions; those of a group are contiguous. [B, T] tensors have token t in column t.

    Attributes:
        prompt: int64 [B], index into the environment's prompts.
        input_ids, attention_mask: [B, W + T], prompts with left padding, completions with right padding; in external
            environments (`agents.sampling.external`) [B, T, L + 1], one observation per token.
        mask: bool [B, T], the tokens sampled in this rollout, EOS included.
        log_probs: log pi(a_t|s_t) of the behaviour policy, [B, T]. 0 where the mask is False, like the next two.
        ref_log_probs: log pi_ref(a_t|s_t), [B, T]; nan where the environment has no reference.
        rewards: r_t, the sum of all its terms, [B, T].
        scores: score(x, y), [B].
        stopped: bool [B], whether the completion ended with EOS, rather than at the length limit.
        values: V(s_t), [B, T], or None if they were not requested.
        action_mask: bool [B, T, V], the allowed tokens, or None where nothing is masked.
        prompts, completions: as text, object arrays [B]; None in a rollout `without_strings`.
        gold_scores: the gold reward's scores, [B], or None where the MDP has no gold reward.
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

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def num_tokens(self) -> int:
        """T, the number of columns of the completions."""
        return self.mask.shape[1]

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
            return value[rows if isinstance(rows, slice) else rows.cpu().numpy()]  # strings, which are on the host

        return Rollout(**{f.name: select(getattr(self, f.name)) for f in fields(self)})

    def without_strings(self) -> Rollout:
        """The rollout without its strings, as a loss uses it: selecting rows then needs no synchronisation."""
        return replace(self, prompts=None, completions=None)


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
        ValueError: n is not a multiple of num_generations; the policy's probabilities are nan; the sampler returned
            tensors of other shapes, or masked tokens.
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
    action_mask = None if action_mask is None else action_mask[:, :longest]
    if ref_log_probs is None:
        ref_log_probs, action_mask = reference_log_probs(mdp, ids, attention, longest)
    ref_log_probs = torch.where(sampled, ref_log_probs[:, :longest], 0.0)

    tokens = ids[:, -longest:].cpu().numpy()
    transitions = mdp.transitions(mdp.initial_state(state), tokens, completion.cpu().numpy())
    lengths = completion.sum(dim=1).cpu().numpy()
    finished = mdp.finished(state.prompt, state.prompt_text, np.where(transitions.mask, tokens, 0), lengths)
    scores, gold_scores = mdp.score(finished), mdp.gold_score(finished)
    host_log_probs, host_ref_log_probs = log_probs.cpu().numpy(), ref_log_probs.cpu().numpy()
    if not np.isfinite(host_log_probs).all():
        raise ValueError("The policy's probabilities are nan: it has diverged. Lower learning_rate or max_grad_norm.")
    if not np.isfinite(host_ref_log_probs).all():
        raise ValueError("The sampler returned tokens that the reference gives probability 0: it must obey the mask.")
    terms = mdp.reward_terms(transitions, host_ref_log_probs, scores, host_log_probs, kl_coef)
    rewards = torch.as_tensor(sum(terms.values()), dtype=torch.float32, device=policy.device)
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
    )
    if values:
        found = policy.values(ids, attention, longest) if sampler_values is None else sampler_values[:, :longest]
        rollout.values = torch.where(sampled, found, 0.0)
    return rollout


def validate_generation(generation: Generation, mdp: TextMDP, count: int, device: torch.device) -> Generation:
    """Returns what a sampler returned, as tensors of the dtypes of `Generation` on `device`.

    Raises:
        ValueError: a tensor has another shape than `Generation` defines.
    """
    width, horizon = mdp.prompt_width, mdp.max_new_tokens
    columns = {"input_ids": width + horizon, "attention_mask": width + horizon, "log_probs": horizon, "values": horizon}
    for name, number in columns.items():
        if name == "values" and generation.values is None:
            continue
        if (shape := tuple(getattr(generation, name).shape)) != (count, number):
            raise ValueError(f"A sampler must return {name} of shape {(count, number)}, got {shape}.")
    types = {"input_ids": torch.int64, "log_probs": torch.float32, "values": torch.float32}
    return generation._replace(
        **{
            name: torch.as_tensor(value, dtype=types.get(name), device=device)
            for name, value in generation._asdict().items()
            if value is not None
        }
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
