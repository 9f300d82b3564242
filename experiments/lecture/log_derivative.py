"""Log-derivative trick and Monte Carlo: the sampled gradient converges to the exact one, with the error of a mean.

    grad J = E sum_t grad log pi(a_t|s_t) w_t     ~     1/n sum_k sum_t grad log pi(a_t^k|s_t^k) w_t^k

The policy samples n completions of each prompt; the gradient of REINFORCE's loss on them is compared with
`exact.policy_gradient`. Its exact covariance, by enumeration, predicts the error: sqrt(tr Cov) / |grad J|, a line of
slope -1/2 (steeper at small n with the leave-one-out baseline). The line is predicted, not fitted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import gymnasium as gym
import numpy as np
import torch
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from agents import REINFORCE
from agents.files import JsonObject
from agents.functional import policy_gradient_loss, reward_to_go
from agents.policy import TransformerPolicy
from agents.sampling import collect, new_generator
from agents.verification import Enumeration
from experiments.lecture.gram import parameter_gram
from experiments.lecture.memo import Remember, no_memo
from experiments.lecture.policies import partly_trained_policy
from textenv import EnvLike, exact, get_mdp

SAMPLES = tuple(2**i for i in range(13))  # completions per prompt
REPEATS = 8  # at least; more at small n, where the estimates are noisier
ESTIMATORS: dict[str, JsonObject] = {
    "whole return": {"credit": "sequence", "baseline": None},
    "reward to go, leave-one-out": {"credit": "reward_to_go", "baseline": "leave_one_out"},
}


def measure(memo: Remember = no_memo) -> JsonObject:
    """For each estimator and n: relative error (root mean square over repeats), its prediction, and mean cosine.

    `memo` is not used: one generator samples everything, so that no part can be left out.
    """
    env = gym.make("textenv/Toy-v0", vocab_size=4, max_new_tokens=4, num_prompts=2, task_seed=0)
    policy = partly_trained_policy(env)
    completions = Enumeration.of(exact.evaluate(env, policy))
    true = flat(
        gradient for name, gradient in exact.policy_gradient(completions.tree, policy).items() if "model." in name
    )
    gram = parameter_gram(policy, completions.tree)
    generator = new_generator(policy.device, seed=0)
    numbers: JsonObject = {}
    for name, settings in ESTIMATORS.items():
        numbers[name] = []
        for n in SAMPLES:
            if n == 1 and settings["baseline"]:
                continue  # leave-one-out needs two
            gradients = [sampled_gradient(env, policy, n, generator, settings) for _ in range(max(REPEATS, 512 // n))]
            errors = torch.stack([(g - true).norm() / true.norm() for g in gradients])
            cosines = torch.stack([torch.cosine_similarity(g, true, dim=0) for g in gradients])
            row = {"n": n, "error": float((errors**2).mean().sqrt()), "cosine": float(cosines.mean())}
            predicted = gradient_std(completions, gram, n, **settings) / float(true.norm())
            numbers[name].append(row | {"predicted": predicted, "repeats": len(gradients)})
    return numbers


def flat(gradients: Iterable[Tensor]) -> Tensor:
    """Concatenates the gradients into one vector."""
    return torch.cat([gradient.flatten() for gradient in gradients]).double()


def sampled_gradient(
    env: EnvLike, policy: TransformerPolicy, n: int, generator: torch.Generator, settings: JsonObject
) -> Tensor:
    """REINFORCE's estimate of grad J from n completions of each prompt."""
    mdp = get_mdp(env)
    prompts = len(mdp.prompts.texts)
    state = mdp.empty_state(n * prompts)
    mdp.reset_rows(state, np.arange(n * prompts), np.arange(prompts).repeat(n))
    agent = REINFORCE(policy, env, n_episodes=n * prompts, num_generations=n, **settings)
    rollout = collect(env, policy, generator=generator, values=False, start=state)
    log_probs = policy.evaluate_actions(
        rollout.input_ids, rollout.attention_mask, rollout.num_tokens, values=False
    ).log_probs
    loss = policy_gradient_loss(log_probs, agent.weights(rollout), rollout.mask)
    return -flat(torch.autograd.grad(loss, list(policy.model.parameters())))


def gradient_std(completions: Enumeration, gram: Tensor, n: int, credit: str, baseline: str | None) -> float:
    """The exact square root of tr Cov of the gradient from n completions of each prompt.

    With leave-one-out the terms of a group depend on each other. With S = grad log pi(y|x) and e = G_0 - V(s_0),

        n tr Cov = tr Cov(one completion, baseline V(s_0)) + (E|S|^2 E e^2 + |E S e|^2) / (n - 1)
    """
    to_go = reward_to_go(completions.rewards, completions.mask)
    errors = to_go[:, :1] - torch.as_tensor(completions.evaluation.values)[completions.prompt][:, None]
    weights = to_go[:, :1].expand_as(to_go) if credit == "sequence" else to_go
    if baseline is not None:
        weights = weights - (to_go[:, :1] - errors)
    prompts = len(completions.tree.mdp.prompts.texts)
    variance = 0.0
    for prompt in range(prompts):
        rows = completions.prompt == prompt
        probability = completions.probability[rows] * prompts

        def moments(of: Tensor, rows: Tensor = rows, probability: Tensor = probability) -> tuple[float, float]:
            """|E g|^2 and E|g|^2 of g = sum_t grad log pi(a_t|s_t) of_t."""
            coefficients = torch.zeros(len(probability), len(gram), dtype=torch.float64)
            coefficients.scatter_add_(1, completions.edges[rows], torch.where(completions.mask, of, 0.0)[rows])
            mean = probability @ coefficients
            return float(mean @ gram @ mean), float(probability @ ((coefficients @ gram) * coefficients).sum(dim=1))

        squared_mean, second = moments(weights)
        variance += (second - squared_mean) / n
        if baseline is not None:
            through_baseline = moments(torch.ones_like(weights))[1] * float(probability @ errors[rows, 0] ** 2)
            through_baseline += moments(errors.expand_as(weights))[0]
            variance += through_baseline / (n - 1) / n
    return math.sqrt(variance) / prompts


def table(numbers: JsonObject) -> Table:
    """A row per estimator and n."""
    result = Table(
        title="the sampled gradient against the exact one",
        caption=f"Relative error |g - grad J| / |grad J|: root mean square over {REPEATS} repeats or more; predicted: "
        "from the exact covariance.",
    )
    for column in ("w_t", "n, completions per prompt", "error", "predicted", "cosine"):
        result.add_column(column, justify="left" if column == "w_t" else "right")
    for name, rows in numbers.items():
        for row in rows:
            cells = (f"{row[key]:.3f}" for key in ("error", "predicted", "cosine"))
            result.add_row(name if row is rows[0] else "", str(row["n"]), *cells)
        result.add_section()
    return result


def figure(numbers: JsonObject) -> Figure:
    """Error and cosine against n; dashed: the predicted error."""
    fig = Figure(figsize=(11, 3.8), layout="constrained")
    error, cosine = fig.subplots(1, 2)
    for name, rows in numbers.items():
        n = [row["n"] for row in rows]
        (line,) = error.plot(n, [row["error"] for row in rows], "o", label=f"{name}, sampled")
        predicted = [row["predicted"] for row in rows]
        error.plot(n, predicted, "--", color=line.get_color(), label="predicted: exact covariance")
        cosine.plot(n, [row["cosine"] for row in rows], "o-", label=name)
    error.set(xscale="log", yscale="log", xlabel="n, completions per prompt", ylabel="|g - grad J| / |grad J|")
    cosine.set(xscale="log", xlabel="n, completions per prompt", ylabel="cosine of g and grad J", ylim=(None, 1.02))
    for axis in (error, cosine):
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    return fig
