"""`collect`: samples whole completions with a KV cache and scores them in one parallel pass.

It gives the rewards and log-probabilities of `TextEnv` stepped token by token, and is faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from agents.policy import TransformerPolicy
from agents.sampling.checks import check_obeys_mask, check_rewards, validate_generation
from agents.sampling.loop import Generation, Sampler, new_generator, sample
from agents.sampling.reference import reference_log_probs
from agents.sampling.rollout import Rollout
from agents.sampling.starts import sample_prompts
from textenv import EnvLike, TextMDP, TextState, get_mdp
from textenv.arguments import check_kl_coef
from textenv.rewards import scores_or_nan


@torch.no_grad()
def collect(
    env: EnvLike,
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
        ValueError: kl_coef is out of range; n is not a multiple of num_generations; what the sampler returned breaks a
            rule of `Sampler`; the terms of a reward are finite, and their sum is not in float32.
    """
    mdp = get_mdp(env)
    if kl_coef is not None:
        check_kl_coef(kl_coef)
    generator = generator or new_generator(policy.device)
    state = sample_prompts(mdp, n, num_generations, generator) if start is None else start
    generation = sampler(policy, mdp, state, generator)
    generation = trim(validate_generation(generation, mdp, state, policy.device), mdp.prompt_width)
    mask = sampled_mask(generation, mdp, state)
    prefix = same_prompts(state, mdp.prompt_width)
    generation = add_reference(generation, mdp, mask, prefix)
    rollout = assemble(generation, mdp, state, mask, kl_coef)
    rollout.prefix = prefix
    rollout.num_generations = num_generations if start is None else 1
    if values:
        found = generation.values
        if found is None:
            found = policy.values(generation.input_ids, generation.attention_mask, rollout.num_tokens, prefix)
        rollout.values = torch.where(rollout.mask, found, 0.0)
    return rollout


def trim(generation: Generation, prompt_width: int) -> Generation:
    """Cuts the columns that no row uses: padding of all prompts, and columns after the longest completion.

    The widths W and T are those of this batch from here on.
    """
    attention = generation.attention_mask
    longest = (attention[:, prompt_width:] == 1).sum(dim=1).max()
    first = attention[:, :prompt_width].any(dim=0).int().argmax()
    longest, first = torch.stack([longest, first]).tolist()  # one transfer
    columns = dict.fromkeys(("input_ids", "attention_mask"), slice(first, prompt_width + longest))
    tensors = {name: x for name, x in generation._asdict().items() if x is not None}
    return generation._replace(**{name: x[:, columns.get(name, slice(longest))] for name, x in tensors.items()})


def completion_mask(generation: Generation) -> Tensor:
    """The tokens of the completions of a trimmed generation, bool [B, T]; with `start`, the given prefixes too."""
    return generation.attention_mask[:, -generation.log_probs.shape[1] :] == 1


def sampled_mask(generation: Generation, mdp: TextMDP, state: TextState) -> Tensor:
    """The tokens that were sampled, bool [B, T]: those of the completions without the prefixes in `state`."""
    completion = completion_mask(generation)
    given = state.attention_mask[:, mdp.prompt_width : mdp.prompt_width + completion.shape[1]] == 1
    return completion & ~torch.as_tensor(given, device=completion.device)


def same_prompts(state: TextState, prompt_width: int) -> NDArray[np.int64]:
    """`Rollout.prefix`: a number for each distinct prompt, [B]."""
    ids, attention = state.input_ids[:, :prompt_width], state.attention_mask[:, :prompt_width]
    _, number = np.unique(np.where(attention == 1, ids, -1), axis=0, return_inverse=True)
    return number.reshape(-1)  # numpy 2.0 returns [B, 1]


def add_reference(
    generation: Generation, mdp: TextMDP, mask: Tensor, prefix: NDArray[np.int64] | None = None
) -> Generation:
    """Adds log pi_ref of the sampled tokens, 0 elsewhere, and the mask of allowed tokens, unless the sampler has both.

    Without the mask of a task that has one, the update would compute another pi than the tokens were sampled from.
    """
    ref_log_probs, action_mask = generation.ref_log_probs, generation.action_mask
    if ref_log_probs is None or (action_mask is None and not mdp.full_support):
        inputs = (generation.input_ids, generation.attention_mask, mask.shape[1], prefix)
        ref_log_probs, action_mask = reference_log_probs(mdp, *inputs)
    return generation._replace(ref_log_probs=torch.where(mask, ref_log_probs, 0.0), action_mask=action_mask)


def assemble(
    generation: Generation, mdp: TextMDP, state: TextState, mask: Tensor, kl_coef: float | None = None
) -> Rollout:
    """Scores the completions, computes their rewards as the environments do, and returns the rollout, without values.

    Args:
        generation: the completions, trimmed, with log pi_ref.
        mdp: the MDP.
        state: the states that they start from.
        mask: the sampled tokens, bool [B, T].
        kl_coef: beta, by default the MDP's.

    Raises:
        textenv.rewards.RewardError: a reward function failed, and the MDP does not skip such completions.
        ValueError: the sampler returned a masked token, or a sum of terms is not finite in float32.
    """

    def tensor(values: ArrayLike, dtype: torch.dtype | None = None) -> Tensor:
        return torch.as_tensor(values, dtype=dtype, device=mask.device)

    completion = completion_mask(generation).cpu().numpy()
    tokens = generation.input_ids[:, -completion.shape[1] :].cpu().numpy()
    transitions = mdp.transitions(state.without_completion(mdp.prompt_width), tokens, completion)
    lengths = completion.sum(axis=1)
    finished = mdp.finished(state.prompt, state.prompt_text, np.where(transitions.mask, tokens, 0), lengths)
    scores, gold_scores = scores_or_nan(mdp.reward, mdp.gold_reward, finished)
    assert generation.ref_log_probs is not None  # `add_reference`
    log_probs, ref_log_probs = generation.log_probs.cpu().numpy(), generation.ref_log_probs.cpu().numpy()
    check_obeys_mask(ref_log_probs)
    terms = mdp.reward_terms(transitions, ref_log_probs, np.nan_to_num(scores), log_probs, kl_coef)
    rewards: NDArray[np.float64] = reduce(np.add, terms.values())
    check_rewards(rewards, terms)

    skipped = np.isnan(scores)
    kept = mask & tensor(~skipped[:, None]) if skipped.any() else mask
    return Rollout(
        prompt=tensor(state.prompt),
        input_ids=generation.input_ids,
        attention_mask=generation.attention_mask,
        mask=kept,
        log_probs=torch.where(kept, generation.log_probs, 0.0),
        ref_log_probs=torch.where(kept, generation.ref_log_probs, 0.0),
        rewards=torch.where(kept, tensor(rewards, torch.float32), 0.0),
        scores=tensor(scores, torch.float32),
        stopped=tensor(np.asarray(transitions.stop.any(axis=1))),
        values=None,
        action_mask=generation.action_mask,
        prompts=state.prompt_text.copy(),
        completions=object_array(finished.completions),
        gold_scores=None if gold_scores is None else tensor(gold_scores, torch.float32),
        lengths=mask.sum(dim=1),
        extra={name: object_array(values) for name, values in finished.extra.items()} or None,
        tokenizer=mdp.tokenizer,
    )


def object_array(values: Sequence[object]) -> NDArray[np.object_]:
    """Any values as an array [B], also where they are lists of the same length."""
    return np.fromiter(values, dtype=object, count=len(values))
