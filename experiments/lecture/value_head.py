"""Value head: trained by MSE on sampled rewards to go, it tends towards the exact V, which it has never seen.

    min_V E sum_t (V(s_t) - G_t)^2,    E (V(s) - G)^2 = E (V(s) - V_pi(s))^2 + E Var[G | s]

The policy stands still. Two critics learn from answers of it: a linear layer on the policy's frozen embeddings, slowly
(exact least squares on the same embeddings says how far it could come), and a whole transformer of its own. Explained
variance, 1 - Var[G - V] / Var[G], has a ceiling below 1 that the exact V reaches: what is left is chance in the rest of
the text.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import torch
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from agents.functional import explained_variance, reward_to_go, value_loss
from agents.policy import TransformerPolicy
from agents.sampling import collect, new_generator
from experiments.lecture.enumeration import Enumeration, started_policy
from textenv import exact
from textenv.lm import position_ids

STEPS = 400
EPISODES = 64
LEAST_SQUARES = "linear head, least squares"
CRITICS = {"linear head": False, "own transformer": True}  # separate_critic


def measure() -> dict[str, Any]:
    """Error and explained variance of both critics over training, and at its end token by token."""
    env = gym.make("textenv/Toy-v0", vocab_size=4, max_new_tokens=5, num_prompts=2, task_seed=0)
    policy = started_policy(env)
    answers = Enumeration.of(exact.evaluate(env, policy))
    true = answers.look_up(answers.evaluation.values)
    best = least_squares(answers, policy)
    numbers: dict[str, Any] = {
        "exact V": {"per_token": per_token(answers, true), "explained_variance": pooled(answers, true)},
        LEAST_SQUARES: {"per_token": per_token(answers, best), "mse": squared_error(answers, best)},
    }
    for name, separate in CRITICS.items():
        rows, critic = [], with_new_critic(policy, separate)
        for step, sampled in fit_values(env, critic, STEPS):
            if step % 20 == 0 or step == STEPS:
                learned = answers.learned_values(critic)
                found = {"step": step, "mse": squared_error(answers, learned), "sampled_ev": sampled}
                rows.append(found | {"exact_ev": [row["explained_variance"] for row in per_token(answers, learned)]})
        numbers[name] = {"training": rows, "per_token": per_token(answers, answers.learned_values(critic))}
    return numbers


def with_new_critic(policy: TransformerPolicy, separate: bool) -> TransformerPolicy:
    """A copy of the policy, its value head at zero."""
    return TransformerPolicy(copy.deepcopy(policy.model), vocab_size=policy.vocab_size, separate_critic=separate)


def fit_values(env: Any, policy: TransformerPolicy, steps: int, gamma: float = 1.0) -> Iterator[tuple[int, float]]:
    """Train the critic alone, on fresh answers at every step. Yields the steps done and the batch's explained variance.

    Without a critic of its own the policy's trunk is not touched: only the linear layer learns.
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
def least_squares(answers: Enumeration, policy: TransformerPolicy) -> Tensor:
    """The best V that is linear in the policy's embeddings, [N, T]: exact, each token weighted by its probability."""
    ids, attention = answers.texts()
    ids, attention = ids[:, :-1], attention[:, :-1]  # V(s_t) stands on the token before a_t
    trunk = policy.model.base_model(input_ids=ids, attention_mask=attention, position_ids=position_ids(attention))
    hidden = trunk.last_hidden_state[:, -answers.mask.shape[1] :].double()
    inputs = torch.cat([hidden, torch.ones_like(hidden[..., :1])], dim=2)
    root = answers.visit_weights()[answers.mask].sqrt()[:, None]
    true = answers.look_up(answers.evaluation.values)
    fitted = torch.linalg.lstsq(inputs[answers.mask] * root, true[answers.mask][:, None] * root, driver="gelsd")
    return torch.where(answers.mask, (inputs @ fitted.solution).squeeze(2), 0.0)


def pooled(answers: Enumeration, values: Tensor) -> float:
    """The exact explained variance of G_t over all tokens: what that of a batch tends to."""
    to_go, weight = reward_to_go(answers.rewards, answers.mask), answers.visit_weights() / answers.visit_weights().sum()
    error = to_go - values
    left, spread = ((weight * (x - (weight * x).sum()) ** 2).sum() for x in (error, to_go))
    return float(1 - left / spread)


def squared_error(answers: Enumeration, values: Tensor) -> float:
    """The mean of (V - V_pi)^2 over the tokens that the policy writes."""
    weight = answers.visit_weights()
    true = answers.look_up(answers.evaluation.values)
    return float((weight * (values - true) ** 2).sum() / weight.sum())


def per_token(answers: Enumeration, values: Tensor) -> list[dict[str, float]]:
    """For each t: the mean of (V - V_pi)^2 and the exact explained variance of G_t, over the answers that get there."""
    to_go = reward_to_go(answers.rewards, answers.mask)
    true = answers.look_up(answers.evaluation.values)
    weights = answers.visit_weights()
    rows = []
    for t in range(answers.mask.shape[1]):
        weight = weights[:, t] / weights[:, t].sum()
        error, target = to_go[:, t] - values[:, t], to_go[:, t]
        spread = weight @ (target - weight @ target) ** 2
        left = weight @ (error - weight @ error) ** 2
        rows.append(
            {
                "mse": float(weight @ (values[:, t] - true[:, t]) ** 2),
                "explained_variance": float(1 - left / spread),
                "return_variance": float(spread),
            }
        )
    return rows


def table(numbers: dict[str, Any]) -> Table:
    """A row a token."""
    made = Table(
        title="the critics after training, token by token",
        caption="EV: exact explained variance of G_t; LS: least squares on the embeddings that the linear head sees.",
    )
    critics = {"exact V": "exact V", LEAST_SQUARES: "linear, LS"} | {name: name for name in CRITICS}
    heads = [*(f"EV, {short}" for short in critics.values()), *(f"MSE, {short}" for short in [*critics.values()][1:])]
    for column in ("t", "Var[G_t]", *heads):
        made.add_column(column, justify="right")
    for t, row in enumerate(numbers["exact V"]["per_token"]):
        explained = (f"{numbers[name]['per_token'][t]['explained_variance']:.3f}" for name in critics)
        errors = (f"{numbers[name]['per_token'][t]['mse']:.4f}" for name in [*critics][1:])
        made.add_row(str(t), f"{row['return_variance']:.3f}", *explained, *errors)
    return made


def figure(numbers: dict[str, Any]) -> Figure:
    """The error against the exact V; the explained variance of each batch; and exactly, token by token."""
    made = Figure(figsize=(14, 3.8), layout="constrained")
    error, sampled, *tokens = made.subplots(1, 4)
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
        axis.set(xlabel=f"steps of {EPISODES} answers")
        axis.spines[["top", "right"]].set_visible(False)
    return made
