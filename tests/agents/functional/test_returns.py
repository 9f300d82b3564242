"""Returns, advantages, losses and KL estimators against their definitions, written out entry by entry."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agents.functional import (
    adaptive_kl_coef,
    batch_mean,
    clipped_surrogate_loss,
    explained_variance,
    gae,
    group_relative,
    k1,
    k2,
    k3,
    leave_one_out,
    masked_mean,
    masked_whiten,
    mean_over_completions,
    policy_gradient_loss,
    reward_to_go,
    value_loss,
)

Batch = dict[str, Any]
DISCOUNTS = st.sampled_from([0.0, 0.3, 0.9, 1.0])
properties = settings(max_examples=40, deadline=None)


@st.composite
def batches(draw: Any, max_rows: int = 4, max_tokens: int = 6) -> Batch:
    """Answers of 1 .. T tokens, in float64: rewards, values, two sets of log-probabilities, and where they count."""
    rows, tokens = draw(st.integers(1, max_rows)), draw(st.integers(1, max_tokens))
    lengths = draw(st.lists(st.integers(1, tokens), min_size=rows, max_size=rows))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    names = ("rewards", "values", "log_probs", "old_log_probs")
    batch: Batch = {name: torch.as_tensor(rng.normal(size=(rows, tokens))) for name in names}
    batch["mask"] = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    return batch


def padded(batch: Batch, columns: int, seed: int) -> Batch:
    """The same answers with garbage behind their ends, and `columns` more of it on the right."""
    rng = np.random.default_rng(seed)
    longer: Batch = {"mask": torch.nn.functional.pad(batch["mask"], (0, columns))}
    for name in batch.keys() - {"mask"}:
        real = torch.nn.functional.pad(batch[name], (0, columns))
        longer[name] = torch.where(longer["mask"], real, torch.as_tensor(rng.normal(scale=100.0, size=real.shape)))
    return longer


def slow_return(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """G_t as a double sum."""
    answer = torch.zeros_like(rewards)
    for row, t in torch.nonzero(mask).tolist():
        for later in range(t, rewards.shape[1]):
            if mask[row, later]:
                answer[row, t] += gamma ** (later - t) * rewards[row, later]
    return answer


def slow_gae(batch: Batch, gamma: float, gae_lambda: float) -> Tensor:
    """A_t as a sum of the discounted one-step errors that follow, each from its definition."""
    rewards, values, mask = batch["rewards"], batch["values"], batch["mask"]
    answer = torch.zeros_like(rewards)
    for row, t in torch.nonzero(mask).tolist():
        last = int(mask[row].sum()) - 1
        for later in range(t, last + 1):
            following = values[row, later + 1] if later < last else 0.0
            delta = rewards[row, later] + gamma * following - values[row, later]
            answer[row, t] += (gamma * gae_lambda) ** (later - t) * delta
    return answer


def close(a: Tensor, b: Tensor) -> bool:
    """Equal up to float64 rounding."""
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9)


# -- returns and advantages ------------------------------------------------------------------------------------------


@properties
@given(batches(), DISCOUNTS)
def test_reward_to_go_is_the_double_sum(batch: Batch, gamma: float) -> None:
    """G_t is the discounted sum of what an answer is paid from t on, and 0 behind its end."""
    assert close(
        reward_to_go(batch["rewards"], batch["mask"], gamma), slow_return(batch["rewards"], batch["mask"], gamma)
    )


def test_the_double_sum_sees_a_wrong_discount() -> None:
    """Control: with another gamma the comparison above fails."""
    rewards, mask = torch.ones(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    assert not close(reward_to_go(rewards, mask, 1.0), slow_return(rewards, mask, 0.9))
    assert reward_to_go(rewards, mask).tolist() == [[3.0, 2.0, 1.0]]


@properties
@given(batches(), DISCOUNTS, DISCOUNTS)
def test_gae_is_its_definition(batch: Batch, gamma: float, gae_lambda: float) -> None:
    """GAE equals the O(T^2) sum of (gamma lambda)^l delta_{t+l} that ends with each answer."""
    found = gae(batch["rewards"], batch["values"], batch["mask"], gamma, gae_lambda)
    assert close(found, slow_gae(batch, gamma, gae_lambda))


@properties
@given(batches(), DISCOUNTS)
def test_gae_without_lambda_is_the_one_step_advantage(batch: Batch, gamma: float) -> None:
    """lambda = 0: r_t + gamma V(s_{t+1}) - V(s_t), and the last token has no V after it."""
    rewards, values, mask = batch["rewards"], batch["values"], batch["mask"]
    found = gae(rewards, values, mask, gamma, 0.0)
    for row, t in torch.nonzero(mask).tolist():
        ends = t + 1 == int(mask[row].sum())
        following = 0.0 if ends else gamma * values[row, t + 1]
        assert found[row, t] == pytest.approx(float(rewards[row, t] + following - values[row, t]))
    assert not found[~mask].any()


@properties
@given(batches(), DISCOUNTS)
def test_gae_with_lambda_one_is_the_return_minus_v(batch: Batch, gamma: float) -> None:
    """lambda = 1: G_t - V(s_t), whatever V is."""
    rewards, values, mask = batch["rewards"], batch["values"], batch["mask"]
    expected = torch.where(mask, slow_return(rewards, mask, gamma) - values, 0.0)
    assert close(gae(rewards, values, mask, gamma, 1.0), expected)


def test_gae_that_bootstraps_past_the_end_is_told_apart() -> None:
    """Control: V of a padded column read as V(s_T) gives other advantages than the definition."""
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
    "mean_over_completions": lambda b: mean_over_completions(b["rewards"], b["mask"]),
    "policy_gradient_loss": lambda b: policy_gradient_loss(b["log_probs"], b["rewards"], b["mask"]),
    "clipped_surrogate_loss": lambda b: clipped_surrogate_loss(
        b["log_probs"], b["old_log_probs"], b["rewards"], b["mask"], 0.2
    )[0],
    "surrogate_loss_without_a_clip": lambda b: clipped_surrogate_loss(
        b["log_probs"], b["old_log_probs"], b["rewards"], b["mask"], None
    )[0],
    "value_loss": lambda b: value_loss(b["values"], b["rewards"], b["mask"]),
    "clipped_value_loss": lambda b: value_loss(b["values"], b["rewards"], b["mask"], b["old_log_probs"], 0.2),
}
for _name in (
    "val/ratio",
    "val/ratio_error_max",
    "val/ess",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "policy/clipfrac_high_avg",
    "policy/clipfrac_low_avg",
):
    PER_BATCH[_name] = lambda b, name=_name: clipped_surrogate_loss(
        b["log_probs"], b["old_log_probs"], b["rewards"], b["mask"], 0.2
    )[1][name]


@pytest.mark.parametrize("name", PER_TOKEN)
@properties
@given(batch=batches(), columns=st.integers(0, 4), seed=st.integers(0, 99))
def test_padding_changes_no_token(name: str, batch: Batch, columns: int, seed: int) -> None:
    """Garbage behind the answers changes no token's number, and stands at 0 itself."""
    short, long = PER_TOKEN[name](batch), PER_TOKEN[name](padded(batch, columns, seed))
    assert close(long[:, : short.shape[1]], short)
    assert not long[:, short.shape[1] :].any() and not short[~batch["mask"]].any()


@pytest.mark.parametrize("name", PER_BATCH)
@properties
@given(batch=batches(), columns=st.integers(0, 4), seed=st.integers(0, 99))
def test_padding_changes_no_mean(name: str, batch: Batch, columns: int, seed: int) -> None:
    """Garbage behind the answers changes no mean and no loss."""
    short, long = PER_BATCH[name](batch), PER_BATCH[name](padded(batch, columns, seed))
    assert torch.allclose(long.double(), short.double(), rtol=1e-6, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("name", ["policy_gradient_loss", "clipped_surrogate_loss", "value_loss", "clipped_value_loss"])
@properties
@given(batch=batches(), seed=st.integers(0, 99))
def test_padding_gets_no_gradient(name: str, batch: Batch, seed: int) -> None:
    """A loss has no gradient behind the answers."""
    batch = padded(batch, 2, seed)
    learnt = "values" if "value" in name else "log_probs"
    batch[learnt].requires_grad_()
    PER_BATCH[name](batch).backward()
    assert not batch[learnt].grad[~batch["mask"]].any()


def test_a_mean_that_counts_padding_is_told_apart() -> None:
    """Control: a mean over B * T, or whitening over it, is changed by padding."""
    x, mask = torch.tensor([[1.0, 3.0]]), torch.tensor([[True, True]])
    longer, longer_mask = torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([[True, True, False]])
    assert masked_mean(longer, longer_mask) == masked_mean(x, mask) == 2.0
    assert longer.mean() != masked_mean(x, mask)
    everywhere = torch.ones_like(longer_mask)
    assert not torch.allclose(masked_whiten(longer, everywhere)[:, :2], masked_whiten(x, mask), atol=1e-3)


@properties
@given(batches(max_rows=6))
def test_whitened_tokens_have_mean_zero_and_deviation_one(batch: Batch) -> None:
    """Over the real tokens mean 0 and standard deviation 1; whether padding is in x changes neither."""
    x, mask = batch["rewards"], batch["mask"]
    if mask.sum() < 2:
        return
    white = masked_whiten(x, mask)[mask]
    assert white.mean() == pytest.approx(0.0, abs=1e-6)
    assert white.std(unbiased=False) == pytest.approx(1.0, abs=1e-5)


def test_a_single_token_is_whitened_to_zero() -> None:
    """One token, or equal ones, have no deviation to divide by: 0, not NaN."""
    assert masked_whiten(torch.tensor([[5.0, 9.0]]), torch.tensor([[True, False]])).tolist() == [[0.0, 0.0]]
    assert masked_whiten(torch.full((2, 2), 3.0), torch.ones(2, 2, dtype=torch.bool)).abs().max() == 0.0


@pytest.mark.parametrize(
    "mask", [torch.ones(2, 2), torch.ones(2, 3, dtype=torch.bool), torch.ones(2, dtype=torch.bool)]
)
def test_a_mask_of_another_shape_or_dtype_is_refused(mask: Tensor) -> None:
    """A float mask and one that would broadcast are errors, not silent nonsense."""
    x = torch.zeros(2, 2)
    for call in (
        lambda: masked_mean(x, mask),
        lambda: masked_whiten(x, mask),
        lambda: reward_to_go(x, mask),
        lambda: gae(x, x, mask),
    ):
        with pytest.raises(ValueError, match="bool mask"):
            call()


# -- baselines -------------------------------------------------------------------------------------------------------


@properties
@given(st.integers(1, 4), st.integers(2, 5), st.integers(0, 99))
def test_leave_one_out_is_the_mean_of_the_others(prompts: int, copies: int, seed: int) -> None:
    """Each answer's baseline is the mean of the other answers to its prompt, by a loop."""
    returns = torch.as_tensor(np.random.default_rng(seed).normal(size=prompts * copies))
    found = leave_one_out(returns, copies)
    for i in range(len(returns)):
        group = i // copies
        others = [float(returns[j]) for j in range(group * copies, (group + 1) * copies) if j != i]
        assert found[i] == pytest.approx(sum(others) / len(others))


def test_an_answer_does_not_move_its_own_baseline() -> None:
    """Leave-one-out ignores the answer itself; the batch's mean (the control) does not."""
    returns = torch.tensor([1.0, 2.0, 3.0, 4.0])
    other = returns.clone()
    other[0] += 10.0
    assert leave_one_out(returns, 2)[0] == leave_one_out(other, 2)[0]
    assert leave_one_out(returns, 2)[1] != leave_one_out(other, 2)[1]
    assert leave_one_out(returns, 2)[2:].equal(leave_one_out(other, 2)[2:])
    assert batch_mean(returns)[0] != batch_mean(other)[0]
    assert batch_mean(returns).tolist() == [2.5] * 4


@properties
@given(prompts=st.integers(1, 4), copies=st.integers(2, 5), seed=st.integers(0, 99), scale=st.booleans())
def test_group_relative_knows_only_the_group(prompts: int, copies: int, seed: int, scale: bool) -> None:
    """Mean 0 (with the scale: deviation 1) in each group; shifted and in another unit a group says the same."""
    returns = torch.randn(prompts * copies, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = group_relative(returns, copies, scale, epsilon=0.0).view(prompts, copies)
    assert torch.allclose(found.mean(dim=1), torch.zeros(prompts, dtype=torch.float64), atol=1e-9)
    if scale:
        assert torch.allclose(found.std(dim=1), torch.ones(prompts, dtype=torch.float64))
    units = torch.arange(1, prompts + 1, dtype=torch.float64)
    paid = ((returns.view(prompts, copies) + 7.0) * units[:, None]).view(-1)
    again = group_relative(paid, copies, scale, epsilon=0.0).view(prompts, copies)
    assert torch.allclose(again, found if scale else found * units[:, None])
    assert group_relative(torch.ones(4), 2, scale).eq(0).all()  # all alike: nothing to learn


@pytest.mark.parametrize(("count", "copies"), [(4, 1), (5, 2)])
def test_group_relative_needs_whole_groups(count: int, copies: int) -> None:
    """One answer has no group, and groups must be whole."""
    with pytest.raises(ValueError, match=rf"group_relative needs .* got {copies} for {count} returns"):
        group_relative(torch.zeros(count), copies)


@pytest.mark.parametrize(("count", "copies"), [(4, 1), (4, 0), (4, 3), (2, 4)])
def test_leave_one_out_needs_whole_groups(count: int, copies: int) -> None:
    """One answer a prompt, or a remainder, is an error."""
    with pytest.raises(ValueError, match="num_generations >= 2"):
        leave_one_out(torch.zeros(count), copies)


def test_explained_variance_has_its_two_marks() -> None:
    """1 for the returns themselves, 0 for any constant, below 0 for worse than a constant."""
    returns, mask = torch.tensor([[1.0, 2.0, 4.0]]), torch.ones(1, 3, dtype=torch.bool)
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.full_like(returns, 3.0), returns, mask) == pytest.approx(0.0, abs=1e-6)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3.0, abs=1e-5)


# -- losses ----------------------------------------------------------------------------------------------------------


def surrogate_gradient(ratio: float, advantage: float, clip_range: float | None) -> tuple[float, float, float]:
    """The loss of one token at a ratio, its derivative by log pi, and whether the clip was reported to bind."""
    old = torch.tensor([[-1.0]], dtype=torch.float64)
    log_probs = (old + np.log(ratio)).requires_grad_()
    mask, weights = torch.ones(1, 1, dtype=torch.bool), torch.tensor([[advantage]], dtype=torch.float64)
    loss, info = clipped_surrogate_loss(log_probs, old, weights, mask, clip_range)
    loss.backward()
    assert log_probs.grad is not None
    return loss.item(), log_probs.grad.item(), float(info["policy/clipfrac_avg"])


@pytest.mark.parametrize(
    ("ratio", "advantage", "binds"),
    [(1.5, 2.0, True), (1.1, 2.0, False), (0.5, 2.0, False), (0.5, -2.0, True), (0.9, -2.0, False), (1.5, -2.0, False)],
)
def test_the_clip_binds_where_it_is_pessimistic(ratio: float, advantage: float, binds: bool) -> None:
    """No gradient where a good token is likely enough already, or a bad one unlikely enough; all of it elsewhere."""
    loss, gradient, fraction = surrogate_gradient(ratio, advantage, 0.2)
    free_loss, free_gradient, free_fraction = surrogate_gradient(ratio, advantage, None)
    assert free_loss == pytest.approx(-ratio * advantage) and free_gradient == pytest.approx(-ratio * advantage)
    assert fraction == float(binds) and free_fraction == 0.0
    if binds:
        assert gradient == 0.0
        assert loss == pytest.approx(-advantage * (1.2 if advantage > 0 else 0.8))
    else:
        assert gradient == pytest.approx(free_gradient) and loss == pytest.approx(free_loss)


@properties
@given(batches())
def test_the_clip_never_promises_more(batch: Batch) -> None:
    """The clipped loss is never below the unclipped one: the minimum makes it pessimistic."""
    arguments = (batch["log_probs"], batch["old_log_probs"], batch["rewards"], batch["mask"])
    assert clipped_surrogate_loss(*arguments, 0.2)[0] >= clipped_surrogate_loss(*arguments, None)[0] - 1e-12


@properties
@given(batches(), st.sampled_from([0.2, None]))
def test_at_ratio_one_the_surrogate_has_the_policy_gradient(batch: Batch, clip_range: float | None) -> None:
    """Where nothing has changed yet, PPO's gradient is the policy gradient's."""
    log_probs, mask = batch["log_probs"], batch["mask"]
    once, again = log_probs.clone().requires_grad_(), log_probs.clone().requires_grad_()
    loss, info = clipped_surrogate_loss(once, log_probs, batch["rewards"], mask, clip_range)
    loss.backward()
    policy_gradient_loss(again, batch["rewards"], mask).backward()
    assert once.grad is not None and again.grad is not None and close(once.grad, again.grad)
    assert float(info["val/ratio"]) == 1.0 and float(info["val/ratio_error_max"]) == 0.0


def surrogate_info(batch: Batch, clip_range: float | None = 0.2) -> dict[str, float]:
    """What the surrogate loss says beside itself."""
    info = clipped_surrogate_loss(
        batch["log_probs"], batch["old_log_probs"], batch["rewards"], batch["mask"], clip_range
    )[1]
    return {name: float(value) for name, value in info.items()}


@properties
@given(batches(), st.integers(0, 99), st.sampled_from([0.2, None]))
def test_the_effective_share_of_the_sample_is_its_definition(batch: Batch, seed: int, clip_range: float | None) -> None:
    """val/ess is (sum rho)^2 / (n sum rho^2) over the real tokens, by a loop, whatever clip, advantage and padding."""
    rho = [
        float((batch["log_probs"] - batch["old_log_probs"])[row, t].exp())
        for row, t in torch.nonzero(batch["mask"]).tolist()
    ]
    expected = sum(rho) ** 2 / (len(rho) * sum(r * r for r in rho))
    found = surrogate_info(padded(batch, 2, seed), clip_range)["val/ess"]
    assert found == pytest.approx(expected, rel=1e-9) and 1 / len(rho) - 1e-9 <= found <= 1 + 1e-9
    if len(rho) < batch["mask"].numel() and len(rho) > 1:  # control: counted over the padding too it is another number
        everywhere = batch | {"mask": torch.ones_like(batch["mask"])}
        assert surrogate_info(everywhere, clip_range)["val/ess"] != pytest.approx(expected, rel=1e-9)


@properties
@given(batches(), st.floats(-2.0, 2.0))
def test_the_effective_share_is_one_where_all_ratios_are_equal(batch: Batch, shift: float) -> None:
    """Nothing changed, or every ratio by the same factor: 1; by factors that spread it falls, the further the more."""
    log_probs, old = batch["log_probs"], batch["old_log_probs"]
    assert surrogate_info(batch | {"log_probs": old})["val/ess"] == pytest.approx(1.0, abs=1e-12)
    assert surrogate_info(batch | {"log_probs": old + shift})["val/ess"] == pytest.approx(1.0, abs=1e-12)
    shares = [
        surrogate_info(batch | {"log_probs": old + spread * (log_probs - old)})["val/ess"]
        for spread in (0.0, 0.25, 0.5, 1.0, 2.0)
    ]
    falls = [before - after for before, after in itertools.pairwise(shares)]
    assert all(fall > 0 for fall in falls) if batch["mask"].sum() > 1 else shares == pytest.approx([1.0] * 5)


def test_the_effective_share_by_hand() -> None:
    """Ratios 1 and 3: 16 / (2 * 10); one of n tokens far above the rest: 1 / n."""
    mask, zeros = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.float64)
    batch = {"log_probs": torch.log(torch.tensor([[1.0, 3.0]])), "old_log_probs": zeros, "rewards": zeros, "mask": mask}
    assert surrogate_info(batch)["val/ess"] == pytest.approx(0.8)
    batch["log_probs"] = torch.tensor([[0.0, 30.0]])
    assert surrogate_info(batch)["val/ess"] == pytest.approx(0.5)
    batch["mask"] = torch.tensor([[True, False]])
    assert surrogate_info(batch)["val/ess"] == 1.0


@properties
@given(batches(), st.sampled_from([0.0, 0.2, 0.5, None]))
def test_the_clip_binds_on_two_sides(batch: Batch, clip_range: float | None) -> None:
    """Of A > 0 the share with rho > 1 + eps, of A < 0 that with rho < 1 - eps; of all, both; counted by a loop."""
    high = low = positive = negative = 0
    tokens = torch.nonzero(batch["mask"]).tolist()
    for row, t in tokens:
        rho, advantage = float((batch["log_probs"] - batch["old_log_probs"])[row, t].exp()), batch["rewards"][row, t]
        positive, negative = positive + int(advantage > 0), negative + int(advantage < 0)
        high += int(clip_range is not None and advantage > 0 and rho > 1 + clip_range)
        low += int(clip_range is not None and advantage < 0 and rho < 1 - clip_range)
    info = surrogate_info(batch, clip_range)
    assert info["policy/clipfrac_high_avg"] == pytest.approx(high / max(positive, 1))
    assert info["policy/clipfrac_low_avg"] == pytest.approx(low / max(negative, 1))
    assert info["policy/clipfrac_avg"] == pytest.approx((high + low) / len(tokens))


@pytest.mark.parametrize(
    ("ratio", "advantage", "side"),
    [(1.5, 2.0, "high"), (0.5, -2.0, "low"), (1.5, -2.0, None), (0.5, 2.0, None), (1.5, 0.0, None), (1.1, 2.0, None)],
)
def test_each_side_of_the_clip_is_told_from_the_other(ratio: float, advantage: float, side: str | None) -> None:
    """A good token that became too likely is high, a bad one too unlikely low; elsewhere neither."""
    batch = {
        "log_probs": torch.tensor([[np.log(ratio), 5.0]]),
        "old_log_probs": torch.zeros(1, 2),
        "rewards": torch.tensor([[advantage, 1.0]]),
        "mask": torch.tensor([[True, False]]),
    }
    info = surrogate_info(batch)
    for name in ("high", "low"):
        assert info[f"policy/clipfrac_{name}_avg"] == float(name == side)


def test_losses_are_means_of_answers_not_of_tokens() -> None:
    """A long answer beside a short one keeps its weight: the loss of two is the mean of the losses of each."""
    rng = np.random.default_rng(0)
    log_probs, weights = (torch.as_tensor(rng.normal(size=(2, 4))) for _ in range(2))
    mask = torch.tensor([[True] * 4, [True, False, False, False]])
    each = [policy_gradient_loss(log_probs[i : i + 1], weights[i : i + 1], mask[i : i + 1]) for i in range(2)]
    both = policy_gradient_loss(log_probs, weights, mask)
    assert close(both, (each[0] + each[1]) / 2)
    assert not close(both, -masked_mean(log_probs * weights, mask))  # control: a mean over tokens is another number


def test_weights_are_constants() -> None:
    """No gradient runs through weights, advantages, returns: they may depend on the value head."""
    x = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 3, dtype=torch.bool)
    for loss in (
        lambda w: policy_gradient_loss(x, w, mask),
        lambda w: clipped_surrogate_loss(x, x - 0.1, w, mask, 0.2)[0],
        lambda w: value_loss(x, w, mask),
    ):
        assert not loss(x.clone().requires_grad_()).requires_grad


@properties
@given(batches())
def test_the_value_loss_is_half_the_squared_error(batch: Batch) -> None:
    """1/2 (V - G)^2, whose gradient is V - G over the number of answers, and its minimum at V = G."""
    values, mask = batch["values"].requires_grad_(), batch["mask"]
    loss = value_loss(values, batch["rewards"], mask)
    loss.backward()
    assert values.grad is not None
    expected = torch.where(mask, values.detach() - batch["rewards"], 0.0) / len(mask)
    assert close(values.grad, expected)
    assert float(value_loss(batch["rewards"], batch["rewards"], mask)) == 0.0


@pytest.mark.parametrize(
    ("value", "target", "binds"),
    [(1.5, 2.0, True), (1.1, 2.0, False), (0.5, 0.0, True), (0.9, 0.0, False), (1.5, 0.0, False), (0.5, 2.0, False)],
)
def test_the_value_clip_is_pessimistic(value: float, target: float, binds: bool) -> None:
    """V that has run towards its target by more than the range gets no gradient; one that ran away gets all of it."""
    mask = torch.ones(1, 1, dtype=torch.bool)
    values = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    old, returns = torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([[target]], dtype=torch.float64)
    loss = value_loss(values, returns, mask, old, clip_range=0.2)
    loss.backward()
    assert values.grad is not None
    assert loss >= value_loss(values, returns, mask)
    assert float(values.grad) == pytest.approx(0.0 if binds else value - target)


def test_the_value_clip_needs_the_old_values() -> None:
    """A clip without something to clip against is an error."""
    x, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="old_values"):
        value_loss(x, x, mask, clip_range=0.2)


# -- KL estimators ---------------------------------------------------------------------------------------------------


def categorical(seed: int) -> tuple[Tensor, Tensor]:
    """Two distributions over five outcomes, as log-probabilities."""
    logits = torch.as_tensor(np.random.default_rng(seed).normal(size=(2, 5)))
    policy, reference = logits.log_softmax(dim=1)
    return policy, reference


@properties
@given(st.integers(0, 9999))
def test_k1_and_k3_are_unbiased_and_k2_is_not(seed: int) -> None:
    """The expectation over all outcomes is the KL for k1 and k3; k2 misses it."""
    policy, reference = categorical(seed)
    log_ratio = policy - reference
    kl = float((policy.exp() * log_ratio).sum())
    expectation = {k.__name__: float((policy.exp() * k(log_ratio)).sum()) for k in (k1, k2, k3)}
    assert expectation["k1"] == pytest.approx(kl, abs=1e-12)
    assert expectation["k3"] == pytest.approx(kl, abs=1e-12)
    assert abs(expectation["k2"] - kl) > 1e-9


@properties
@given(st.integers(0, 9999))
def test_k2_and_k3_are_never_negative(seed: int) -> None:
    """k2 and k3 are >= 0 at every outcome; k1 is negative at some (the control)."""
    policy, reference = categorical(seed)
    log_ratio = policy - reference
    assert (k2(log_ratio) >= 0).all() and (k3(log_ratio) >= 0).all()
    assert (k1(log_ratio) < 0).any()


# -- the beta that steers the KL -------------------------------------------------------------------------------------

COEFFICIENTS = st.floats(1e-3, 10.0)
TARGETS = st.floats(1e-2, 50.0)


@pytest.mark.parametrize(
    ("kl_coef", "kl", "target", "num_episodes", "expected"),
    [
        # e = clip((KL - target) / target, -0.2, 0.2), beta (1 + K e): Ziegler et al. 2019, with K = episodes / horizon
        (0.1, 6.6, 6.0, 512, 0.100512),  # e = 0.1, K = 0.0512
        (0.1, 5.7, 6.0, 512, 0.099744),  # e = -0.05
        (0.1, 12.0, 6.0, 512, 0.101024),  # e = 1, clipped to 0.2
        (0.1, 3.0, 6.0, 512, 0.098976),  # e = -0.5, clipped to -0.2
        (0.1, -1.0, 6.0, 512, 0.098976),  # an estimate may be negative
        (0.5, 11.0, 10.0, 1000, 0.505),  # K = 0.1, the paper's
        (2.0, 10.0, 10.0, 1000, 2.0),
    ],
)
def test_adaptive_kl_coef_by_hand(kl_coef: float, kl: float, target: float, num_episodes: int, expected: float) -> None:
    """One step of Ziegler et al. 2019's controller, worked out by hand."""
    assert adaptive_kl_coef(kl_coef, kl, target, num_episodes, 10_000) == pytest.approx(expected, rel=1e-12)


@properties
@given(COEFFICIENTS, st.floats(0.0, 100.0), TARGETS, st.integers(1, 2000), st.integers(2000, 20_000))
def test_adaptive_kl_coef_moves_beta_towards_the_target(
    kl_coef: float, kl: float, target: float, num_episodes: int, horizon: int
) -> None:
    """Up where the KL is above its target, down below, still where it is there; never by more than 0.2 K."""
    after = adaptive_kl_coef(kl_coef, kl, target, num_episodes, horizon)
    largest = 0.2 * num_episodes / horizon
    assert abs(after / kl_coef - 1) <= largest + 1e-12 and after > 0
    assert adaptive_kl_coef(kl_coef, target, target, num_episodes, horizon) == kl_coef
    assert (after - kl_coef) * (kl - target) >= 0
    if abs(kl / target - 1) > 1e-9:
        assert after != kl_coef
    if abs(kl / target - 1) > 0.2:  # beyond the clip it does not matter how far
        assert abs(after / kl_coef - 1) == pytest.approx(largest)
        assert adaptive_kl_coef(kl_coef, 2 * kl - target, target, num_episodes, horizon) == after
    elif abs(kl / target - 1) > 1e-6:  # within it, it does
        nearer = adaptive_kl_coef(kl_coef, (kl + target) / 2, target, num_episodes, horizon)
        assert nearer / kl_coef - 1 == pytest.approx((after / kl_coef - 1) / 2, rel=1e-3)


@pytest.mark.parametrize(("kl", "factor"), [(100.0, np.exp(0.2)), (0.0, np.exp(-0.2)), (5.0, 1.0)])
@pytest.mark.parametrize("batch", [1, 8])
def test_over_a_horizon_beta_changes_by_a_factor(kl: float, factor: float, batch: int) -> None:
    """A KL that is off all the time moves beta by e^(+-0.2) in `horizon` answers, however they are cut into batches."""
    kl_coef = 0.3
    for _ in range(4000 // batch):
        kl_coef = adaptive_kl_coef(kl_coef, kl, 5.0, batch, 4000)
    assert kl_coef / 0.3 == pytest.approx(factor, rel=1e-4)
    assert kl_coef / 0.3 != pytest.approx(factor * 1.01, rel=1e-4)


def test_k3_with_the_ratio_upside_down_is_biased() -> None:
    """Control: exp(+log_ratio) in k3's place misses the KL."""
    policy, reference = categorical(0)
    log_ratio = policy - reference
    wrong = float((policy.exp() * (log_ratio.exp() - 1 + log_ratio)).sum())
    assert wrong != pytest.approx(float((policy.exp() * log_ratio).sum()), abs=1e-3)


def test_the_gradients_of_the_estimators_are_as_the_docs_say() -> None:
    """On one step, by enumeration: k1 in the reward has the KL's gradient, k2 as a loss too, k1 as a loss none."""
    logits = torch.as_tensor(np.random.default_rng(1).normal(size=5)).requires_grad_()
    _, reference = categorical(2)
    policy = logits.log_softmax(dim=0)
    log_ratio = policy - reference
    probs = policy.detach().exp()
    losses = {
        "kl": (policy.exp() * log_ratio).sum(),
        "k1 in the reward": (probs * policy * k1(log_ratio).detach()).sum(),
        "k2 as a loss": (probs * k2(log_ratio)).sum(),
        "k1 as a loss": (probs * k1(log_ratio)).sum(),
        "k3 as a loss": (probs * k3(log_ratio)).sum(),
    }
    gradient = {name: torch.autograd.grad(loss, logits, retain_graph=True)[0] for name, loss in losses.items()}
    assert close(gradient["k1 in the reward"], gradient["kl"]) and close(gradient["k2 as a loss"], gradient["kl"])
    assert gradient["k1 as a loss"].abs().max() < 1e-12
    assert not torch.allclose(gradient["k3 as a loss"], gradient["kl"], atol=1e-2)
