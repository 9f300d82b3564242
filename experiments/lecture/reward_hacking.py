"""Reward hacking and beta: what is paid rises, what was wanted falls, and beta decides how far it goes.

`textenv/RewardHacking-v0` pays a proxy with a hole and shows the gold score beside it. The optimum for each beta is
known, pi* ~ pi_ref exp(proxy / beta), and so is the curve that it draws as beta falls: the most proxy that a KL can
buy. PPO walks along it from the reference, for beta from 0 up; below a certain beta it passes the gold score's summit
and learns to write smileys (Gao, Schulman, Hilton 2023, arXiv:2210.10760). The last run steers beta to a KL instead.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from agents import PPO, TransformerPolicy
from experiments.evaluation import sample_answers
from experiments.lecture.answers import copy_of
from textenv import exact
from textenv.tree import Tree

BETAS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
FRONTIER = tuple(np.geomspace(20, 0.01, 60))
TIMESTEPS = 30_000
TARGET = {"kl_coef": 0.1, "kl_target": 0.7, "kl_horizon": 300}
ID = "textenv/RewardHacking-v0"


def measure() -> dict[str, Any]:
    """The exact frontier; and for each beta PPO's way along it, its end, the optimum, and an answer to each prompt."""
    tree = exact.enumerate_tree(gym.make(ID))
    start = TransformerPolicy.for_env(gym.make(ID))
    runs = [train(start, kl_coef=beta) for beta in BETAS]
    runs.append(train(start, **TARGET))
    reference = exact.evaluate_log_probs(tree, tree.ref_log_probs)
    return {"reference": point(reference), "frontier": [optimum(tree, beta) for beta in FRONTIER], "runs": runs}


def point(known: exact.Evaluation) -> dict[str, Any]:
    """What a policy is worth."""
    return {"kl": known.kl, "proxy": known.score, "gold": known.gold_score}


def optimum(tree: Tree, beta: float) -> dict[str, Any]:
    """The best policy's, for this beta."""
    best = exact.solve(tree, kl_coef=beta).action_log_probs
    return point(exact.evaluate_log_probs(tree, best)) | {"kl_coef": beta}


def train(start: TransformerPolicy, kl_coef: float, **settings: Any) -> dict[str, Any]:
    """One PPO run: its way, its end, and what it says then."""
    env: Any = gym.make(ID, kl_coef=kl_coef)
    tree = exact.enumerate_tree(env)
    way: list[dict[str, Any]] = []
    agent = PPO(copy_of(start), env, learning_rate=1e-3, seed=0, **settings)

    def look(agent: PPO, rollout: Any, metrics: dict[str, float]) -> None:
        if agent.num_updates % 4 == 1:
            way.append(point(exact.evaluate(tree, agent.policy)) | {"tokens": agent.num_timesteps})

    agent.learn(TIMESTEPS, callback=look)
    end = point(exact.evaluate(tree, agent.policy))
    answers = sample_answers(env, agent.policy, list(range(len(env.unwrapped.prompts))))
    return {
        "kl_coef": kl_coef,
        "kl_target": settings.get("kl_target"),
        "last_kl_coef": agent.kl_coef,
        "way": [*way, end | {"tokens": agent.num_timesteps}],
        "end": end,
        "optimum": optimum(tree, kl_coef),
        "answers": [{key: answer[key] for key in ("prompt", "answer", "score")} for answer in answers],
    }


def name_of(run: dict[str, Any]) -> str:
    """How tables and figures call a run."""
    if run["kl_target"] is None:
        return f"beta = {run['kl_coef']:g}"
    return f"kl_target = {run['kl_target']:g}"


def table(numbers: dict[str, Any]) -> Table:
    """A row a run: PPO's end beside the exact optimum of its beta, and an answer."""
    made = Table(
        title=f"PPO on {ID}, {TIMESTEPS:,} tokens; in brackets the exact optimum for this beta",
        caption="Best gold: the highest on the way there. kl_target: beta was steered, and ended as in the brackets.",
    )
    for column in ("", "KL", "proxy", "gold", "best gold", f"{numbers['runs'][0]['answers'][0]['prompt']}?"):
        made.add_column(column, justify="right" if column in ("KL", "proxy", "gold", "best gold") else "left")
    reference = numbers["reference"]
    made.add_row("reference", *(f"{reference[key]:.2f}" for key in ("kl", "proxy", "gold")), "", "")
    for run in numbers["runs"]:
        end, best = run["end"], run["optimum"]
        adapted = run["kl_target"] is not None
        cells = (f"{end[k]:.2f}" + ("" if adapted else f" [{best[k]:.2f}]") for k in ("kl", "proxy", "gold"))
        name = name_of(run) + (f" [{run['last_kl_coef']:.2f}]" if adapted else "")
        made.add_row(name, *cells, f"{max(row['gold'] for row in run['way']):.2f}", run["answers"][0]["answer"])
    return made


def figure(numbers: dict[str, Any]) -> Figure:
    """Proxy and gold against the KL, the exact frontier over the agents' ways; and over training."""
    made = Figure(figsize=(13, 7), layout="constrained")
    axes = made.subplots(2, 3)
    keys = {"proxy": "proxy score: what is paid", "gold": "gold score: what was wanted"}
    frontier = [numbers["reference"], *numbers["frontier"]]
    colors = [f"C{i}" for i in range(len(numbers["runs"]))]
    for axis, (key, label) in zip(axes[0], keys.items(), strict=False):
        axis.plot([p["kl"] for p in frontier], [p[key] for p in frontier], "k--", lw=1, label="exact optima over beta")
        for run, color in zip(numbers["runs"], colors, strict=True):
            axis.plot([p["kl"] for p in run["way"]], [p[key] for p in run["way"]], ".-", ms=3, lw=0.8, color=color)
            axis.plot(run["end"]["kl"], run["end"][key], "o", color=color, label=name_of(run))
        axis.set(xlabel="KL to the reference, nats", ylabel=label)
    for axis, (key, label) in zip(axes[1], (keys | {"kl": "KL to the reference, nats"}).items(), strict=True):
        for run, color in zip(numbers["runs"], colors, strict=True):
            axis.plot([p["tokens"] for p in run["way"]], [p[key] for p in run["way"]], color=color)
        axis.set(xlabel="tokens", ylabel=label)
    axes[0, 2].axis("off")
    axes[0, 2].legend(*axes[0, 0].get_legend_handles_labels(), loc="center", frameon=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return made
