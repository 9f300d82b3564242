"""Training a small model to imitate a tabulated reference, so that the policy starts at the reference."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from textenv import TextMDP
from textenv.lm import forward_completions


def imitate(
    policy: Any,
    mdp: TextMDP,
    *,
    tolerance: float = 1e-4,
    batch_size: int = 64,
    learning_rate: float = 5e-3,
    cycles: tuple[int, ...] = (200, 400, 800, 1600),
    seed: int = 0,
) -> float:
    """Minimises E_{y ~ pi_ref} sum_t KL(pi_ref(.|s_t) || pi(.|s_t)), the KL over whole completions, in place.

    Completions are sampled from the reference. At each of their states the target is the whole next-token distribution,
    which is far less noisy than the sampled tokens alone. Each cycle of steps raises and lowers the learning rate once
    (Smith 2018). The next, longer cycle starts only if the mean loss of the last 20 batches is not below `tolerance`.

    Args:
        policy: a `TransformerPolicy`.
        mdp: the MDP with the reference.
        tolerance: the KL at which training stops, in nats.
        batch_size: completions per step.
        learning_rate: the peak of Adam's step size.
        cycles: steps of each cycle.
        seed: seeds the sampling of prompts and completions.

    Returns:
        The mean loss of the last 20 batches. A warning is issued if it is above `tolerance`.
    """
    generator = torch.Generator().manual_seed(seed)
    reached = float("inf")
    for steps in cycles:
        reached = _cycle(policy, mdp, steps, tolerance, batch_size, learning_rate, generator)
        if reached < tolerance:
            return reached
    warnings.warn(
        f"The policy starts at a KL of {reached:.2g} from the reference, above {tolerance:.2g}: the model is too small "
        "for this table; raise hidden_size or num_hidden_layers.",
        stacklevel=3,
    )
    return reached


def _cycle(
    policy: Any,
    mdp: TextMDP,
    steps: int,
    tolerance: float,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
) -> float:
    """Trains for one cycle of the learning rate; returns the mean loss of the last 20 batches."""
    optimizer = torch.optim.Adam(policy.model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    recent: list[float] = []
    for _ in range(steps):
        ids, attention, targets, mask = sample_reference(mdp, batch_size, generator)
        logits = forward_completions(policy.model, ids, attention, mask.shape[1]).logits
        allowed = targets > -torch.inf
        log_probs = policy.log_softmax(logits, allowed)
        kl = torch.where(allowed, targets.exp() * (targets - log_probs), 0.0).sum(dim=2)
        loss = torch.where(mask, kl, 0.0).sum() / len(ids)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent = [*recent[-19:], loss.item()]
        if len(recent) == 20 and np.mean(recent) < tolerance:
            break
    return float(np.mean(recent))


def sample_reference(mdp: TextMDP, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Samples completions of the reference, with prompts drawn uniformly.

    Returns:
        `input_ids` and `attention_mask` [n, L], log pi_ref(.|s_t) [n, T, V], and the mask of sampled tokens [n, T].
    """
    state = mdp.empty_state(n)
    rows, horizon = np.arange(n), mdp.max_new_tokens
    mdp.reset_rows(state, rows, torch.randint(len(mdp.prompts.texts), (n,), generator=generator).numpy())
    targets = torch.zeros(n, horizon, mdp.vocab_size)
    live = np.ones(n, dtype=np.bool_)
    for t in range(horizon):
        log_probs = torch.as_tensor(mdp.next_ref_log_probs(state)).float()
        log_probs[~torch.as_tensor(live)] = 0.0
        targets[:, t] = log_probs
        tokens = torch.multinomial(log_probs.exp(), 1, generator=generator).squeeze(1).numpy()
        state.append(live.nonzero()[0], tokens[live], mdp.prompt_width)
        live &= ~mdp.is_eos[tokens]
        if not live.any():
            break
    ids, attention = torch.as_tensor(state.input_ids), torch.as_tensor(state.attention_mask)
    longest = int(attention[:, mdp.prompt_width :].sum(dim=1).max())
    columns = mdp.prompt_width + longest
    mask = attention[:, mdp.prompt_width : columns] == 1
    return ids[:, :columns], attention[:, :columns], targets[:, :longest], mask
