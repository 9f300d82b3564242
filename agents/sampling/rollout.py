"""Rollouts: whole answers, written with a KV cache and scored in one parallel pass.

`collect` is the fast way through the process that `TextEnv` steps through token by token: same rewards, same
log-probabilities.
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
    """B answers; answers to the same prompt stand side by side. [B, T] tensors have column t for token t.

    Attributes:
        prompt: int64 [B], index into the environment's prompts.
        input_ids, attention_mask: [B, W + T], prompts padded on the left, answers on the right; [B, T, L + 1], a text a
            token, in environments of other libraries (`agents.episodes`).
        mask: bool [B, T], the tokens that this rollout wrote, end token included.
        log_probs: log pi(a_t|s_t) of the policy that wrote, as it sampled. 0 where the mask is False, like the rest.
        ref_log_probs: log pi_ref(a_t|s_t); nan where the environment has no reference.
        rewards: r_t, the whole of it.
        scores: score(x, y), [B].
        stopped: bool [B], the answer ended itself (an end token), rather than being cut.
        values: V(s_t), or None if not asked for.
        action_mask: bool [B, T, V], what was allowed, or None where nothing is masked.
        prompts, completions: the texts, object arrays [B]; None in a rollout `without_strings`.
        gold_scores: what was really wanted, [B], or None where the task does not say.
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
        """T, the columns of the answers."""
        return self.mask.shape[1]

    @property
    def tokens(self) -> Tensor:
        """a_t, int64 [B, T]; what stands where the mask is False means nothing."""
        return self.input_ids[..., -1] if self.input_ids.ndim == 3 else self.input_ids[:, -self.num_tokens :]

    @property
    def kl(self) -> Tensor:
        """log(pi(y|x) / pi_ref(y|x)), [B]: its mean estimates the KL over whole texts."""
        return (self.log_probs - self.ref_log_probs).sum(dim=1)

    def __getitem__(self, rows: Any) -> Rollout:
        """Some of the answers: `rows` is a slice or an int64 tensor."""

        def chosen(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[rows]
            if value is None:
                return None
            return value[rows if isinstance(rows, slice) else rows.cpu().numpy()]  # texts, which are on the host

        return Rollout(**{f.name: chosen(getattr(self, f.name)) for f in fields(self)})

    def without_strings(self) -> Rollout:
        """What a loss reads: to take rows of this is nothing that the host must wait for."""
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
    """Let the policy write `n` answers, and score them.

    Args:
        env: a text environment; only its process is used, its own episode is left alone.
        policy: writes, and says V.
        n: B.
        num_generations: answers a prompt; the n / num_generations prompts are drawn uniformly.
        generator: draws prompts and tokens; on the policy's device. By default a new one, seeded by the system.
        values: whether V is wanted.
        start: begin in these states, one answer each, instead of at drawn prompts.
        kl_coef: beta, by default the task's.
        sampler: what generates, by default our own loop (`agents.sampling`).

    Raises:
        ValueError: n is not a multiple of num_generations; the policy says nan.
    """
    mdp = get_mdp(env)
    generator = generator or new_generator(policy.device)
    texts = sample_prompts(mdp, n, num_generations, generator) if start is None else start
    ids, attention, log_probs, ref_log_probs, action_mask, known_values = validate_generation(
        sampler(policy, mdp, texts, generator), mdp, len(texts), policy.device
    )
    width = mdp.prompt_width
    answer = attention[:, width:] == 1  # with `start`, the given prefix too
    written = answer & ~torch.as_tensor(texts.attention_mask[:, width:] == 1, device=policy.device)

    # Cut columns that no row uses; widths are those of this batch from here on.
    longest, first = int(answer.sum(dim=1).max()), int(attention[:, :width].any(dim=0).int().argmax())
    columns = slice(first, width + longest)
    ids, attention = ids[:, columns], attention[:, columns]
    answer, written = answer[:, :longest], written[:, :longest]
    log_probs = log_probs[:, :longest]
    action_mask = None if action_mask is None else action_mask[:, :longest]
    if ref_log_probs is None:
        ref_log_probs, action_mask = reference_log_probs(mdp, ids, attention, longest)
    ref_log_probs = torch.where(written, ref_log_probs[:, :longest], 0.0)

    tokens = ids[:, -longest:].cpu().numpy()
    transitions = mdp.transitions(mdp.initial_state(texts), tokens, answer.cpu().numpy())
    lengths = answer.sum(dim=1).cpu().numpy()
    finished = mdp.finished(texts.prompt, texts.prompt_text, np.where(transitions.mask, tokens, 0), lengths)
    scores, gold_scores = mdp.score(finished), mdp.gold_score(finished)
    both = (ref_log_probs.cpu().numpy(), scores, log_probs.cpu().numpy())
    if not np.isfinite(both[-1]).all():
        raise ValueError("The policy's probabilities are nan: it has diverged. Lower learning_rate or max_grad_norm.")
    if not np.isfinite(both[0]).all():
        raise ValueError("The sampler wrote tokens that the reference gives probability 0: it must obey the mask.")
    terms = mdp.reward_terms(transitions, *both, kl_coef)
    rewards = torch.as_tensor(sum(terms.values()), dtype=torch.float32, device=policy.device)
    rollout = Rollout(
        prompt=torch.as_tensor(texts.prompt, device=policy.device),
        input_ids=ids,
        attention_mask=attention,
        mask=written,
        log_probs=log_probs,
        ref_log_probs=ref_log_probs,
        rewards=torch.where(written, rewards, 0.0),
        scores=torch.as_tensor(scores, dtype=torch.float32, device=policy.device),
        stopped=torch.as_tensor(transitions.stop.any(axis=1), device=policy.device),
        values=None,
        action_mask=action_mask,
        prompts=texts.prompt_text.copy(),
        completions=np.array(finished.completions, dtype=object),
        gold_scores=None
        if gold_scores is None
        else torch.as_tensor(gold_scores, dtype=torch.float32, device=policy.device),
    )
    if values:
        read = policy.values(ids, attention, longest) if known_values is None else known_values[:, :longest]
        rollout.values = torch.where(written, read, 0.0)
    return rollout


def validate_generation(written: Generation, mdp: TextMDP, count: int, device: torch.device) -> Generation:
    """What a sampler handed back, in the types and on the device that it has here.

    Raises:
        ValueError: something has another shape than `Generation` says.
    """
    width, horizon = mdp.prompt_width, mdp.max_new_tokens
    columns = {"input_ids": width + horizon, "attention_mask": width + horizon, "log_probs": horizon, "values": horizon}
    for name, number in columns.items():
        if name == "values" and written.values is None:
            continue
        if (shape := tuple(getattr(written, name).shape)) != (count, number):
            raise ValueError(f"A sampler must hand back {name} of shape {(count, number)}, got {shape}.")
    types = {"input_ids": torch.int64, "log_probs": torch.float32, "values": torch.float32}
    return written._replace(
        **{
            name: torch.as_tensor(value, dtype=types.get(name), device=device)
            for name, value in written._asdict().items()
            if value is not None
        }
    )


def reference_log_probs(mdp: TextMDP, ids: Tensor, attention: Tensor, num_tokens: int) -> tuple[Tensor, Tensor | None]:
    """log pi_ref of the last T columns of texts [B, L], [B, T]; and what it allows there, [B, T, V], if not all.

    One parallel pass, of a language model; of a table a question a column.
    """
    reference: Any = mdp.reference
    if mdp.full_support and hasattr(reference, "token_log_probs"):
        return reference.token_log_probs(ids, attention, num_tokens), None
    tokens, mask = ids.cpu().numpy(), attention.cpu().numpy()
    log_probs, allowed = [], []
    for column in range(tokens.shape[1] - num_tokens, tokens.shape[1]):
        before = np.where(np.arange(tokens.shape[1]) < column, mask, 0)
        known = reference.log_probs(np.where(before == 1, tokens, 0), before)
        log_probs.append(np.take_along_axis(known, tokens[:, [column]], axis=1)[:, 0])
        if not mdp.full_support:
            allowed.append((known > -np.inf) | (mask[:, [column]] == 0))
    found = torch.as_tensor(np.stack(log_probs, axis=1), dtype=torch.float32, device=ids.device)
    return found, torch.as_tensor(np.stack(allowed, axis=1), device=ids.device) if allowed else None


def states_after(mdp: TextMDP, rollout: Rollout, row: Tensor, time: Tensor, copies: int) -> TextState:
    """The states s_{t+1} after token `time[i]` of answer `row[i]`, `copies` of each, side by side."""
    rows = row.repeat_interleave(copies).cpu().numpy()
    lengths = (time + 1).repeat_interleave(copies).cpu().numpy()
    texts = mdp.empty_state(len(rows))
    width, horizon = mdp.prompt_width, rollout.num_tokens
    prompt_columns = rollout.input_ids.shape[1] - horizon  # the rollout's prompts are cut to their longest
    kept = np.arange(horizon) < lengths[:, None]
    ids, attention = rollout.input_ids.cpu().numpy()[rows], rollout.attention_mask.cpu().numpy()[rows]
    texts.input_ids[:, width - prompt_columns : width] = ids[:, :prompt_columns]
    texts.attention_mask[:, width - prompt_columns : width] = attention[:, :prompt_columns]
    texts.input_ids[:, width : width + horizon] = np.where(kept, ids[:, prompt_columns:], 0)
    texts.attention_mask[:, width : width + horizon] = kept
    texts.prompt[:] = rollout.prompt.cpu().numpy()[rows]
    texts.prompt_text[:] = rollout.prompts[rows]
    texts.time[:] = lengths
    return texts


def sample_prompts(mdp: TextMDP, n: int, num_generations: int, generator: torch.Generator) -> TextState:
    """`n` texts with nothing written: n / num_generations prompts, drawn uniformly, each num_generations times."""
    if n < 1 or num_generations < 1 or n % num_generations:
        raise ValueError(f"n must be a positive multiple of num_generations, got {n} and {num_generations}.")
    number = len(mdp.prompts.texts)
    drawn = torch.randint(number, (n // num_generations,), generator=generator, device=generator.device)
    texts = mdp.empty_state(n)
    mdp.reset_rows(texts, np.arange(n), drawn.repeat_interleave(num_generations).cpu().numpy())
    return texts
