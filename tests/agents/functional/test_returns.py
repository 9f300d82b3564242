"""Returns and advantages against their definitions, computed entry by entry."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agents.functional import (
    explained_variance,
    gae,
    masked_mean,
    masked_whiten,
    reward_to_go,
)
from tests.helpers.batches import Batch, batches, close, padded, properties

DISCOUNTS = st.sampled_from([0.0, 0.3, 0.9, 1.0])


def slow_return(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """G_t as a double sum."""
    result = torch.zeros_like(rewards)
    for row, t in torch.nonzero(mask).tolist():
        for later in range(t, rewards.shape[1]):
            if mask[row, later]:
                result[row, t] += gamma ** (later - t) * rewards[row, later]
    return result


def slow_gae(batch: Batch, gamma: float, gae_lambda: float) -> Tensor:
    """A_t as a sum of the discounted one-step errors delta_{t+l}, each from its definition."""
    rewards, values, mask = batch["rewards"], batch["values"], batch["mask"]
    result = torch.zeros_like(rewards)
    for row, t in torch.nonzero(mask).tolist():
        last = int(mask[row].sum()) - 1
        for later in range(t, last + 1):
            next_value = values[row, later + 1] if later < last else 0.0
            delta = rewards[row, later] + gamma * next_value - values[row, later]
            result[row, t] += (gamma * gae_lambda) ** (later - t) * delta
    return result


# -- returns and advantages ------------------------------------------------------------------------------------------


@properties
@given(batches(), DISCOUNTS)
def test_reward_to_go_is_the_double_sum(batch: Batch, gamma: float) -> None:
    """G_t is the discounted sum of a completion's rewards from t on, and 0 after its end."""
    assert close(
        reward_to_go(batch["rewards"], batch["mask"], gamma), slow_return(batch["rewards"], batch["mask"], gamma)
    )


def test_the_double_sum_detects_a_wrong_discount() -> None:
    """Control: with another gamma the comparison above fails."""
    rewards, mask = torch.ones(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    assert not close(reward_to_go(rewards, mask, 1.0), slow_return(rewards, mask, 0.9))
    assert reward_to_go(rewards, mask).tolist() == [[3.0, 2.0, 1.0]]


@properties
@given(batches(), DISCOUNTS, DISCOUNTS)
def test_gae_is_its_definition(batch: Batch, gamma: float, gae_lambda: float) -> None:
    """GAE equals the O(T^2) sum of (gamma lambda)^l delta_{t+l} up to each completion's last token."""
    found = gae(batch["rewards"], batch["values"], batch["mask"], gamma, gae_lambda)
    assert close(found, slow_gae(batch, gamma, gae_lambda))


@properties
@given(batches(), DISCOUNTS)
def test_gae_without_lambda_is_the_one_step_advantage(batch: Batch, gamma: float) -> None:
    """lambda = 0: r_t + gamma V(s_{t+1}) - V(s_t), with V(s_T) = 0."""
    rewards, values, mask = batch["rewards"], batch["values"], batch["mask"]
    found = gae(rewards, values, mask, gamma, 0.0)
    for row, t in torch.nonzero(mask).tolist():
        is_last = t + 1 == int(mask[row].sum())
        next_value = 0.0 if is_last else gamma * values[row, t + 1]
        assert found[row, t] == pytest.approx(float(rewards[row, t] + next_value - values[row, t]))
    assert not found[~mask].any()


@properties
@given(batches(), DISCOUNTS)
def test_gae_with_lambda_one_is_the_return_minus_v(batch: Batch, gamma: float) -> None:
    """lambda = 1: G_t - V(s_t), whatever V is."""
    rewards, values, mask = batch["rewards"], batch["values"], batch["mask"]
    expected = torch.where(mask, slow_return(rewards, mask, gamma) - values, 0.0)
    assert close(gae(rewards, values, mask, gamma, 1.0), expected)


def test_gae_that_bootstraps_past_the_end_is_detected() -> None:
    """Control: V of a padding column in the place of V(s_T) gives other advantages than the definition."""
    batch = {
        "rewards": torch.tensor([[1.0, 2.0, 0.0]], dtype=torch.float64),
        "values": torch.tensor([[0.5, 0.25, 7.0]], dtype=torch.float64),
        "mask": torch.tensor([[True, True, False]]),
    }
    everywhere = torch.ones_like(batch["mask"])
    wrong = gae(batch["rewards"], batch["values"], everywhere, 1.0, 0.5)[batch["mask"]]
    assert not close(wrong, slow_gae(batch, 1.0, 0.5)[batch["mask"]])


# -- padding ---------------------------------------------------------------------------------------------------------


PER_TOKEN: dict[str, Callable[[Batch], Tensor]] = {
    "reward_to_go": lambda b: reward_to_go(b["rewards"], b["mask"], 0.9),
    "gae": lambda b: gae(b["rewards"], b["values"], b["mask"], 0.9, 0.8),
    "masked_whiten": lambda b: masked_whiten(b["rewards"], b["mask"]),
}


PER_BATCH: dict[str, Callable[[Batch], Tensor]] = {
    "masked_mean": lambda b: masked_mean(b["rewards"], b["mask"]),
    "explained_variance": lambda b: explained_variance(b["values"], b["rewards"], b["mask"]),
}


@pytest.mark.parametrize("name", PER_TOKEN)
@properties
@given(batch=batches(), columns=st.integers(0, 4), seed=st.integers(0, 99))
def test_padding_changes_no_token(name: str, batch: Batch, columns: int, seed: int) -> None:
    """Garbage after the completions changes no token's result, and its own results are 0."""
    short, long = PER_TOKEN[name](batch), PER_TOKEN[name](padded(batch, columns, seed))
    assert close(long[:, : short.shape[1]], short)
    assert not long[:, short.shape[1] :].any() and not short[~batch["mask"]].any()


@pytest.mark.parametrize("name", PER_BATCH)
@properties
@given(batch=batches(), columns=st.integers(0, 4), seed=st.integers(0, 99))
def test_padding_changes_no_mean(name: str, batch: Batch, columns: int, seed: int) -> None:
    """Garbage after the completions changes no mean."""
    short, long = PER_BATCH[name](batch), PER_BATCH[name](padded(batch, columns, seed))
    assert torch.allclose(long.double(), short.double(), rtol=1e-6, atol=1e-9, equal_nan=True)


def test_a_mean_over_padding_is_detected() -> None:
    """Control: padding changes a mean over B * T, and whitening over B * T."""
    x, mask = torch.tensor([[1.0, 3.0]]), torch.tensor([[True, True]])
    longer, longer_mask = torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([[True, True, False]])
    assert masked_mean(longer, longer_mask) == masked_mean(x, mask) == 2.0
    assert longer.mean() != masked_mean(x, mask)
    everywhere = torch.ones_like(longer_mask)
    assert not torch.allclose(masked_whiten(longer, everywhere)[:, :2], masked_whiten(x, mask), atol=1e-3)


@properties
@given(batches(max_rows=6))
def test_whitened_tokens_have_mean_zero_and_deviation_one(batch: Batch) -> None:
    """Over the real tokens the mean is 0 and the standard deviation 1, with or without padding."""
    x, mask = batch["rewards"], batch["mask"]
    if mask.sum() < 2:
        return
    white = masked_whiten(x, mask)[mask]
    assert white.mean() == pytest.approx(0.0, abs=1e-6)
    assert white.std(unbiased=False) == pytest.approx(1.0, abs=1e-5)


def test_epsilon_is_added_to_the_deviation() -> None:
    """Where the deviation is epsilon the whitened values are a half, not one and not infinite."""
    x = torch.tensor([[1.0 - 1e-8, 1.0 + 1e-8]], dtype=torch.float64)
    assert torch.allclose(masked_whiten(x, torch.ones(1, 2, dtype=torch.bool)), torch.tensor([[-0.5, 0.5]]).double())


def test_a_single_token_is_whitened_to_zero() -> None:
    """One token, or equal ones, have standard deviation 0: the result is 0, not NaN."""
    assert masked_whiten(torch.tensor([[5.0, 9.0]]), torch.tensor([[True, False]])).tolist() == [[0.0, 0.0]]
    assert masked_whiten(torch.full((2, 2), 3.0), torch.ones(2, 2, dtype=torch.bool)).abs().max() == 0.0


@pytest.mark.parametrize(
    "mask", [torch.ones(2, 2), torch.ones(2, 3, dtype=torch.bool), torch.ones(2, dtype=torch.bool)]
)
def test_a_mask_of_another_shape_or_dtype_is_refused(mask: Tensor) -> None:
    """A float mask and one that would broadcast raise an error."""
    x = torch.zeros(2, 2)
    for call in (
        lambda: masked_mean(x, mask),
        lambda: masked_whiten(x, mask),
        lambda: reward_to_go(x, mask),
        lambda: gae(x, x, mask),
    ):
        with pytest.raises(ValueError, match="bool mask"):
            call()
