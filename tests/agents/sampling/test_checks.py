"""What a sampler returns is checked: in every rollout each score is a reward once, at the end of its completion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import textenv
from agents import TransformerPolicy
from agents.sampling import Generation, Rollout, collect
from tests.helpers.policies import random_policy

HORIZON = 3


def toy() -> Any:
    """Two prompts, of which one is padded, and the words a and b; every completion has the score 1, without a KL."""
    mdp = textenv.TextMDP(
        textenv.WordTokenizer("a b"),
        ["a", "a b"],
        lambda prompts, completions, completion_ids: [1.0] * len(prompts),
        max_new_tokens=HORIZON,
        kl_coef=0.0,
    )
    return textenv.TextEnv(mdp)


ENV = toy()
POLICY: TransformerPolicy = random_policy(ENV)


def rollout_of(tokens: Any, mask: Any, log_probs: Any, prompt: Any = None) -> Rollout:
    """`collect` with a sampler that returns these, [B, T] each; `prompt` replaces the prompts' ids."""

    def sampler(policy: Any, mdp: Any, state: Any, generator: Any) -> Generation:
        ids, attention = torch.tensor(state.input_ids), torch.tensor(state.attention_mask)
        ids[:, -HORIZON:], attention[:, -HORIZON:] = torch.tensor(tokens), torch.tensor(mask)
        if prompt is not None:
            ids[:, : mdp.prompt_width] = torch.tensor(prompt)
        return Generation(ids, attention, torch.tensor(log_probs))

    return collect(ENV, POLICY, len(tokens), sampler=sampler, values=False)


ZERO = [-1.0, -1.0, -1.0]


@pytest.mark.parametrize(
    ("tokens", "mask", "log_probs", "rule"),
    [
        ([0, 1, 2], [1, 1, 1], ZERO, "no token after an EOS token"),
        ([1, 0, 0], [1, 1, 1], ZERO, "no token after an EOS token"),
        ([1, 0, 0], [1, 0, 0], ZERO, "completions that end with an EOS token or have 3 tokens"),
        ([1, 2, 0], [1, 0, 1], ZERO, "completions without a gap in the mask"),
        ([1, 2, 0], [0, 1, 1], ZERO, "completions without a gap in the mask"),
        ([0, 0, 0], [0, 0, 0], ZERO, "at least one token for each state"),
        ([99, 1, 1], [1, 1, 1], ZERO, "token ids from 0 to 2"),
        ([1, -1, 1], [1, 1, 1], ZERO, "token ids from 0 to 2"),
        ([1, 1, 1], [1, 1, 1], [-1.0, 0.1, -1.0], "log-probabilities of at most 0"),
    ],
)
def test_what_breaks_a_rule_is_refused(tokens: Any, mask: Any, log_probs: Any, rule: str) -> None:
    """In the second of two completions, which is named. Control: two right ones are taken."""
    right = [1, 0, 7], [1, 1, 0], ZERO  # the tokens where the mask is 0 do not matter
    assert rollout_of(*([each, each] for each in right)).rewards.tolist() == [[0, 1], [0, 1]]
    with pytest.raises(ValueError, match=f"A sampler must return {rule}; completion 1, of the prompt 'a"):
        rollout_of(*([one, other] for one, other in zip(right, (tokens, mask, log_probs), strict=True)))


def test_a_changed_prompt_is_refused() -> None:
    """Its ids, of prompts that are given: the reward would be that of another prompt."""
    with pytest.raises(ValueError, match="A sampler must return the prompts and prefixes that it was given"):
        rollout_of([[1, 0, 0]], [[1, 1, 0]], [ZERO], prompt=[[2, 2]])


@pytest.mark.parametrize("kl_coef", [-1.0, float("nan"), float("inf"), 1e-310, "0.1"])
def test_another_beta_is_checked(kl_coef: Any) -> None:
    """As the MDP's is. Control: 0 is one."""
    with pytest.raises(ValueError, match="kl_coef"):
        collect(ENV, POLICY, 2, kl_coef=kl_coef)
    assert collect(ENV, POLICY, 2, kl_coef=0.0).rewards.sum() == 2


def test_what_is_no_generation_is_refused() -> None:
    """A plain tuple."""
    with pytest.raises(TypeError, match="A sampler must return a Generation, got tuple"):
        collect(ENV, POLICY, 2, sampler=lambda *arguments: ())  # type: ignore[arg-type, return-value]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.tuples(*[st.integers(-1, 3)] * HORIZON), st.tuples(*[st.integers(0, 1)] * HORIZON)),
        min_size=1,
        max_size=3,
    )
)
def test_a_score_is_a_reward_once(completions: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    """For any tokens and masks: they are refused, or the rewards of each completion add up to its score."""
    tokens, masks = [list(each) for each, _ in completions], [list(each) for _, each in completions]
    try:
        rollout = rollout_of(tokens, masks, [ZERO] * len(tokens))
    except ValueError as error:
        assert "A sampler must return" in str(error)
    else:
        assert rollout.rewards.sum(dim=1).tolist() == rollout.scores.tolist()
        last = rollout.mask.sum(dim=1) - 1
        assert (rollout.rewards.gather(1, last[:, None]) == 1).all()
