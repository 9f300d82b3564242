"""Which KL: what k1, k2 and k3 estimate, and what their gradients estimate.

    log_ratio = log pi(a|s) - log pi_ref(a|s)
    k1 = log_ratio,    k2 = log_ratio^2 / 2,    k3 = exp(-log_ratio) - 1 + log_ratio

The sequence KL is E sum_t k1. Each estimator is measured as a number (bias and standard deviation of its sum over a
completion), *in the reward* (grad log pi(a_t|s_t) sum_{l >= t} k_l, the log-derivative trick with k as a cost) and *in
the loss* (grad k). The policies are random tables, near the reference and far from it. Every completion is enumerated:
nothing is sampled. (Tang and Munos 2025, arXiv:2506.09477, explain why the gradient of an estimate of the KL is no
estimate of its gradient.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial

import gymnasium as gym
import numpy as np
import torch
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from agents.files import JsonObject
from agents.functional import ESTIMATORS, policy_gradient_loss, reward_to_go
from agents.verification import DISTANCES, Enumeration, random_log_probs
from experiments.lecture.memo import Remember, no_memo
from textenv import exact

POLICIES = 20


def measure(memo: Remember = no_memo) -> JsonObject:
    """For each distance and estimator: lists over the random policies."""
    return {name: memo(name, partial(over_policies, distance)) for name, distance in DISTANCES.items()}


def over_policies(distance: float | None) -> JsonObject:
    """The KL of each policy; and each estimator's bias, standard deviation (both over the KL) and cosines."""
    found: JsonObject = {name: defaultdict(list) for name in ESTIMATORS} | {"kl": []}
    for seed in range(POLICIES):
        env = gym.make("textenv/Toy-v0", vocab_size=4, max_new_tokens=5, num_prompts=1, task_seed=seed)
        tree = exact.enumerate_tree(env)
        evaluation = exact.evaluate_log_probs(tree, random_log_probs(tree, np.random.default_rng(seed), distance))
        completions = Enumeration.of(evaluation)
        true = kl_gradient(completions)
        found["kl"].append(evaluation.kl)
        for name, estimator in ESTIMATORS.items():
            total = torch.where(completions.mask, estimator(log_ratios(completions)), 0.0).sum(dim=1)
            mean = float(completions.probability @ total)
            deviation = float((completions.probability @ (total - mean) ** 2).sqrt())
            found[name]["bias"].append((mean - evaluation.kl) / evaluation.kl)
            found[name]["std"].append(deviation / evaluation.kl)
            found[name]["in the reward"].append(cosine(in_reward(completions, estimator), true))
            found[name]["in the loss"].append(cosine(in_loss(completions, estimator), true))
    return found


def log_ratios(completions: Enumeration, log_probs: Tensor | None = None) -> Tensor:
    """log pi(a_t|s_t) - log pi_ref(a_t|s_t), [N, T]."""
    if log_probs is None:
        log_probs = completions.look_up(completions.evaluation.log_probs)
    return log_probs - completions.look_up(completions.tree.ref_log_probs)


def by_logits(completions: Enumeration, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient of `loss(log_probs [N, T])` with respect to the logits of the table, flattened."""
    logits = torch.tensor(completions.evaluation.log_probs, requires_grad=True)
    return torch.autograd.grad(loss(completions.look_up(logits.log_softmax(dim=1))), logits)[0].flatten()


def kl_gradient(completions: Enumeration) -> Tensor:
    """The gradient of the sequence KL(pi || pi_ref), by autograd through sum_y pi(y) log(pi(y) / pi_ref(y))."""
    prompts = len(completions.tree.mdp.prompts.texts)

    def kl(log_probs: Tensor) -> Tensor:
        return (log_probs.sum(dim=1).exp() * log_ratios(completions, log_probs).sum(dim=1)).sum() / prompts

    return by_logits(completions, kl)


def in_reward(completions: Enumeration, estimator: Callable[[Tensor], Tensor]) -> Tensor:
    """The expected policy gradient with k as the cost of a token."""
    costs = torch.where(completions.mask, estimator(log_ratios(completions)), 0.0)
    weights = -reward_to_go(costs, completions.mask) * completions.probability[:, None] * len(completions.probability)
    return by_logits(completions, lambda log_probs: policy_gradient_loss(log_probs, weights, completions.mask))


def in_loss(completions: Enumeration, estimator: Callable[[Tensor], Tensor]) -> Tensor:
    """The expected gradient of sum_t k itself, with the samples held fixed."""
    return by_logits(
        completions,
        lambda log_probs: (completions.token_weights() * estimator(log_ratios(completions, log_probs))).sum(),
    )


def cosine(gradient: Tensor, true: Tensor) -> float | None:
    """The cosine of two gradients; None where the first is zero up to rounding."""
    if gradient.norm() < 1e-9 * true.norm():
        return None
    return float(torch.dot(gradient, true) / (gradient.norm() * true.norm()))


def table(numbers: JsonObject) -> Table:
    """A row per distance and estimator, medians over the policies."""
    result = Table(
        title=f"estimators of the sequence KL, {len(numbers['near']['kl'])} random policies at each distance",
        caption="Bias and standard deviation of the estimate from one completion, in units of the KL. Cosine of the "
        "expected gradient and that of the KL, by the logits of a table. Median [lowest, highest] over the policies.",
    )
    for column in ("policies", "KL", "", "bias", "std", "cosine, in the reward", "cosine, in the loss"):
        result.add_column(column, justify="left" if column in ("policies", "") else "right")
    for distance, found in numbers.items():
        for name in ESTIMATORS:
            result.add_row(
                *((distance, f"{np.median(found['kl']):.3f}") if name == "k1" else ("", "")),
                name,
                *(spread_of(found[name][key]) for key in ("bias", "std", "in the reward", "in the loss")),
            )
        result.add_section()
    return result


def spread_of(values: list[float | None]) -> str:
    """Median and range as text; "no gradient" where the gradient is zero."""
    if None in values:
        return "no gradient"
    array = np.array(values, dtype=np.float64)
    array[abs(array) < 1e-6] = 0.0  # rounding
    return f"{np.median(array):.2f} [{array.min():.2f}, {array.max():.2f}]"


def figure(numbers: JsonObject) -> Figure:
    """Standard deviation of the estimate, and cosine of the gradients (median and range), against the distance."""
    fig = Figure(figsize=(11, 3.8), layout="constrained")
    number, gradient = fig.subplots(1, 2)
    kls = [np.median(found["kl"]) for found in numbers.values()]
    for name, color, shift in zip(ESTIMATORS, ("C0", "C1", "C2"), (1.0, 0.93, 1.07), strict=True):
        number.plot(kls, [np.median(found[name]["std"]) for found in numbers.values()], "o-", color=color, label=name)
        for place, style in (("in the reward", "-"), ("in the loss", "--")):
            values = [found[name][place] for found in numbers.values()]
            if None in values[0]:
                continue  # no gradient
            low, middle, high = np.percentile(np.array(values, dtype=np.float64), [0, 50, 100], axis=1)
            bars = gradient.errorbar(
                np.array(kls) * shift, middle, yerr=[middle - low, high - middle], color=color, ls=style, marker="o",
                elinewidth=0.8, capsize=2, label=f"{name} {place}",
            )  # fmt: skip
            bars[-1][0].set_linestyle(style)
    number.set(
        xscale="log", yscale="log", xlabel="KL of the policies, nats", ylabel="std of one completion's estimate / KL"
    )
    gradient.set(
        xscale="log", xlabel="KL of the policies, nats", ylabel="cosine with the gradient of the KL", ylim=(-1.05, 1.05)
    )
    number.legend(frameon=False)
    gradient.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    for axis in (number, gradient):
        axis.spines[["top", "right"]].set_visible(False)
    return fig
