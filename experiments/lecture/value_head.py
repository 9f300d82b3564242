"""Value head: trained by MSE on sampled rewards to go, it approaches the exact V, which is not a training target.

    min_V E sum_t (V(s_t) - G_t)^2,    E (V(s) - G)^2 = E (V(s) - V_pi(s))^2 + E Var[G | s]

The policy is fixed. Two critics are trained on its completions: a linear layer on the policy's frozen embeddings, which
is slow (exact least squares on the same embeddings is its limit), and a separate transformer. The explained variance,
1 - Var[G - V] / Var[G], has a maximum below 1, which the exact V reaches: the remaining variance is that of the tokens
still to be sampled.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import gymnasium as gym
import torch
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from agents.files import JsonObject
from agents.functional import explained_variance, reward_to_go, value_loss
from agents.policy import TransformerPolicy
from agents.sampling import collect, new_generator
from agents.verification import Enumeration
from experiments.lecture.memo import Remember, no_memo
from experiments.lecture.policies import partly_trained_policy
from textenv import EnvLike, exact
from textenv.lm import position_ids

STEPS = 400
EPISODES = 64
LEAST_SQUARES = "linear head, least squares"
CRITICS = {"linear head": False, "own transformer": True}  # separate_critic


def measure(memo: Remember = no_memo) -> JsonObject:
    """Error and explained variance of both critics over training, and at its end by token."""
    env = gym.make("textenv/Toy-v0", vocab_size=4, max_new_tokens=5, num_prompts=2, task_seed=0)
    policy = partly_trained_policy(env)
    completions = Enumeration.of(exact.evaluate(env, policy))
    true = completions.look_up(completions.evaluation.values)
    best = least_squares(completions, policy)
    numbers: JsonObject = {
        "exact V": {"per_token": per_token(completions, true), "explained_variance": pooled(completions, true)},
        LEAST_SQUARES: {"per_token": per_token(completions, best), "mse": squared_error(completions, best)},
    }
    for name, separate in CRITICS.items():
        numbers[name] = memo(name, partial(train_critic, env, completions, with_new_critic(policy, separate)))
    return numbers


def train_critic(env: EnvLike, completions: Enumeration, critic: TransformerPolicy) -> JsonObject:
    """Error and explained variance of a critic over its training, and at its end by token."""
    rows = []
    for step, sampled in fit_values(env, critic, STEPS):
        if step % 20 == 0 or step == STEPS:
            learned = completions.learned_values(critic)
            row = {"step": step, "mse": squared_error(completions, learned), "sampled_ev": sampled}
            rows.append(row | {"exact_ev": [token["explained_variance"] for token in per_token(completions, learned)]})
    return {"training": rows, "per_token": per_token(completions, completions.learned_values(critic))}


def with_new_critic(policy: TransformerPolicy, separate: bool) -> TransformerPolicy:
    """A copy of the policy with a value head of zeros."""
    return TransformerPolicy(copy.deepcopy(policy.model), vocab_size=policy.vocab_size, separate_critic=separate)


def fit_values(env: EnvLike, policy: TransformerPolicy, steps: int, gamma: float = 1.0) -> Iterator[tuple[int, float]]:
    """Trains only the critic, on new completions at every step. Yields the step and the batch's explained variance.

    Without a separate critic only the linear layer is trained; the policy's trunk does not change.
    """
    critic = [policy.value_head, policy.critic] if policy.critic is not None else [policy.value_head]
    optimizer = torch.optim.Adam([p for module in critic for p in module.parameters()], lr=3e-3)
    generator = new_generator(policy.device, seed=0)
    for step in range(steps + 1):
        rollout = collect(env, policy, EPISODES, generator=generator)
        returns = reward_to_go(rollout.rewards, rollout.mask, gamma)
        assert rollout.values is not None
        yield step, float(explained_variance(rollout.values, returns, rollout.mask))
        if step == steps:
            return
        values = policy.values(rollout.input_ids, rollout.attention_mask, rollout.num_tokens)
        optimizer.zero_grad()
        value_loss(values, returns, rollout.mask).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def least_squares(completions: Enumeration, policy: TransformerPolicy) -> Tensor:
    """The best V that is linear in the policy's embeddings, [N, T]: exact, tokens weighted by their probability."""
    ids, attention = completions.sequences()
    ids, attention = ids[:, :-1], attention[:, :-1]  # V(s_t) is computed at the token before a_t
    trunk = policy.model.base_model(input_ids=ids, attention_mask=attention, position_ids=position_ids(attention))
    hidden = trunk.last_hidden_state[:, -completions.mask.shape[1] :].double()
    inputs = torch.cat([hidden, torch.ones_like(hidden[..., :1])], dim=2)
    root = completions.token_weights()[completions.mask].sqrt()[:, None]
    true = completions.look_up(completions.evaluation.values)
    fitted = torch.linalg.lstsq(inputs[completions.mask] * root, true[completions.mask][:, None] * root, driver="gelsd")
    return torch.where(completions.mask, (inputs @ fitted.solution).squeeze(2), 0.0)


def pooled(completions: Enumeration, values: Tensor) -> float:
    """The exact explained variance of G_t over all tokens: the limit of that of a batch."""
    to_go, weight = (
        reward_to_go(completions.rewards, completions.mask),
        completions.token_weights() / completions.token_weights().sum(),
    )
    error = to_go - values
    residual, total = ((weight * (x - (weight * x).sum()) ** 2).sum() for x in (error, to_go))
    return float(1 - residual / total)


def squared_error(completions: Enumeration, values: Tensor) -> float:
    """The mean of (V - V_pi)^2 over the tokens that the policy samples."""
    weight = completions.token_weights()
    true = completions.look_up(completions.evaluation.values)
    return float((weight * (values - true) ** 2).sum() / weight.sum())


def per_token(completions: Enumeration, values: Tensor) -> list[dict[str, float]]:
    """For each t: the mean of (V - V_pi)^2 and the exact explained variance of G_t, over completions longer than t."""
    to_go = reward_to_go(completions.rewards, completions.mask)
    true = completions.look_up(completions.evaluation.values)
    weights = completions.token_weights()
    rows = []
    for t in range(completions.mask.shape[1]):
        weight = weights[:, t] / weights[:, t].sum()
        error, target = to_go[:, t] - values[:, t], to_go[:, t]
        total = weight @ (target - weight @ target) ** 2
        residual = weight @ (error - weight @ error) ** 2
        rows.append(
            {
                "mse": float(weight @ (values[:, t] - true[:, t]) ** 2),
                "explained_variance": float(1 - residual / total),
                "return_variance": float(total),
            }
        )
    return rows


def table(numbers: JsonObject) -> Table:
    """A row per token."""
    result = Table(
        title="the critics after training, by token",
        caption="EV: exact explained variance of G_t; LS: least squares on the inputs of the linear head.",
    )
    critics = {"exact V": "exact V", LEAST_SQUARES: "linear, LS"} | {name: name for name in CRITICS}
    heads = [*(f"EV, {short}" for short in critics.values()), *(f"MSE, {short}" for short in [*critics.values()][1:])]
    for column in ("t", "Var[G_t]", *heads):
        result.add_column(column, justify="right")
    for t, row in enumerate(numbers["exact V"]["per_token"]):
        explained = (f"{numbers[name]['per_token'][t]['explained_variance']:.3f}" for name in critics)
        errors = (f"{numbers[name]['per_token'][t]['mse']:.4f}" for name in [*critics][1:])
        result.add_row(str(t), f"{row['return_variance']:.3f}", *explained, *errors)
    return result


def figure(numbers: JsonObject) -> Figure:
    """The error against the exact V; the explained variance of each batch, and the exact one by token."""
    fig = Figure(figsize=(14, 3.8), layout="constrained")
    error, sampled, *tokens = fig.subplots(1, 4)
    for (name, axis), color in zip(zip(CRITICS, tokens, strict=True), ("C0", "C1"), strict=True):
        rows = numbers[name]["training"]
        steps = [row["step"] for row in rows]
        error.plot(steps, [row["mse"] for row in rows], color=color, label=name)
        sampled.plot(steps, [row["sampled_ev"] for row in rows], color=color, label=name)
        for t, ceiling in enumerate(numbers["exact V"]["per_token"]):
            (line,) = axis.plot(steps, [row["exact_ev"][t] for row in rows], color=f"C{t + 2}", label=f"t = {t}")
            axis.axhline(ceiling["explained_variance"], color=line.get_color(), ls=":", lw=1)
        axis.set(title=name, ylabel="exact explained variance of G_t", ylim=(-0.1, 1))
    error.axhline(numbers[LEAST_SQUARES]["mse"], color="C0", ls="--", lw=1, label=LEAST_SQUARES)
    error.set(ylabel="E (V - exact V)^2", yscale="log")
    sampled.axhline(numbers["exact V"]["explained_variance"], color="black", ls=":", lw=1, label="exact V")
    sampled.set(ylabel="explained variance of the batch", ylim=(-0.1, 1))
    tokens[1].plot([], [], "k:", lw=1, label="exact V")
    for axis in (error, sampled, tokens[1]):
        axis.legend(frameon=False, fontsize=8)
    for axis in (error, sampled, *tokens):
        axis.set(xlabel=f"steps of {EPISODES} completions")
        axis.spines[["top", "right"]].set_visible(False)
    return fig
