"""Reward hacking and beta: the proxy score rises while the gold score falls, and beta decides how far this goes.

The score of `textenv/RewardHacking-v0` is a proxy with a flaw; the gold score is only measured. The optimum for each
beta is pi* ~ pi_ref exp(proxy / beta). As beta falls it traces the frontier: the highest proxy score at each KL. PPO
approaches the frontier from below, for six values of beta and three seeds. With a small beta it passes the maximum of
the gold score and learns to sample smileys (compare Gao, Schulman, Hilton 2023, arXiv:2210.10760). In the last row beta
is adapted to a target KL instead.
"""

from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table

from agents import PPO, TrainingWarning
from agents.files import JsonObject
from agents.policy import TransformerPolicy
from experiments.evaluation import sample_completions
from experiments.lecture.memo import Remember, no_memo
from textenv import exact
from textenv.exact import Tree

BETAS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
SEEDS = (0, 1, 2)
FRONTIER = tuple(np.geomspace(20, 0.01, 60))
TIMESTEPS = 25_000
TARGET = {"kl_coef": 0.1, "kl_target": 0.7, "kl_horizon": 300}
ID = "textenv/RewardHacking-v0"


def measure(memo: Remember = no_memo) -> JsonObject:
    """The exact frontier; for each beta the PPO runs; completions before and after training."""
    env: Any = gym.make(ID)
    tree = exact.enumerate_tree(env)
    start = TransformerPolicy.for_env(env)
    settings = [{"kl_coef": beta} for beta in BETAS] + [TARGET]
    return {
        "reference": point(exact.evaluate_log_probs(tree, tree.ref_log_probs)),
        "frontier": [optimum(tree, beta) for beta in FRONTIER],
        "before": completions_of(env, start),
        "runs": [
            options
            | {
                "optimum": optimum(tree, options["kl_coef"]),
                "seeds": [memo(f"{name_of(options)}, seed {i}", partial(train, start, i, **options)) for i in SEEDS],
            }
            for options in settings
        ],
    }


def point(evaluation: exact.Evaluation) -> JsonObject:
    """KL, proxy and gold score of a policy."""
    return {"kl": evaluation.kl, "proxy": evaluation.score, "gold": evaluation.gold_score}


def optimum(tree: Tree, beta: float) -> JsonObject:
    """KL, proxy and gold score of the optimal policy for this beta."""
    best = exact.solve(tree, kl_coef=beta).action_log_probs
    return point(exact.evaluate_log_probs(tree, best)) | {"kl_coef": beta}


def train(start: TransformerPolicy, seed: int, kl_coef: float, **settings: Any) -> JsonObject:
    """One PPO run: `point` along the way, the last one at its end, and completions of the final policy."""
    env: Any = gym.make(ID, kl_coef=kl_coef)
    tree = exact.enumerate_tree(env)
    trajectory: list[JsonObject] = []
    agent = PPO(copy.deepcopy(start), env, learning_rate=1e-3, seed=seed, **settings)

    def record(agent: PPO, rollout: object, metrics: dict[str, float]) -> None:
        if agent.num_updates % 4 == 1 or agent.num_timesteps >= TIMESTEPS:
            trajectory.append(point(exact.evaluate(tree, agent.policy)) | {"tokens": agent.num_timesteps})

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)  # of the gold score that falls, which is the claim
        agent.learn(TIMESTEPS, callback=record)
    return {"trajectory": trajectory, "last_kl_coef": agent.kl_coef, "completions": completions_of(env, agent.policy)}


def completions_of(env: Any, policy: TransformerPolicy) -> list[JsonObject]:
    """A completion of each prompt, with both scores."""
    completions = sample_completions(env, policy, list(range(len(env.unwrapped.prompts))))
    return [{key: row[key] for key in ("prompt", "completion", "score", "gold_score")} for row in completions]


def name_of(run: JsonObject) -> str:
    """The label of the runs of a beta in tables and figures."""
    return f"kl_target = {run['kl_target']:g}" if "kl_target" in run else f"beta = {run['kl_coef']:g}"


def ends(run: JsonObject, key: str) -> NDArray[np.float64]:
    """A quantity at the end of each seed's run."""
    return np.array([seed["trajectory"][-1][key] for seed in run["seeds"]])


def table(numbers: JsonObject) -> Group:
    """The final policies beside the exact optimum of each beta; and completions before and after training."""
    result = Table(
        title=f"PPO on {ID}, {TIMESTEPS:,} tokens, {len(numbers['runs'][0]['seeds'])} seeds",
        caption="Mean [lowest, highest] over the seeds; pi*: the exact optimum for this beta. kl_target: beta is "
        f"adapted, starting at {TARGET['kl_coef']:g}.",
    )
    result.add_column("")
    for column in ("KL", "pi*", "proxy", "pi*", "gold", "pi*"):
        result.add_column(column, justify="right")
    reference = (f"{numbers['reference'][key]:.2f}" for key in ("kl", "proxy", "gold"))
    result.add_row("reference", *(cell for value in reference for cell in (value, "")))
    for run in numbers["runs"]:
        cells = []
        for key in ("kl", "proxy", "gold"):
            values = ends(run, key)
            best = "" if "kl_target" in run else f"{run['optimum'][key]:.2f}"
            cells += [f"{values.mean():.2f} [{values.min():.2f}, {values.max():.2f}]", best]
        result.add_row(name_of(run), *cells)
    prompt = numbers["before"][0]["prompt"]
    samples = Table(title=f"{prompt}? A completion of the reference, and of each run at its end")
    for column in ("", "seed", "completion", "proxy", "gold"):
        samples.add_column(column, justify="left" if column in ("", "completion") else "right")
    rows = [("reference", "", numbers["before"][0])]
    rows += [(name_of(r), str(i), seed["completions"][0]) for r in numbers["runs"] for i, seed in enumerate(r["seeds"])]
    for name, seed, row in rows:
        first = name if seed in ("", "0") else ""
        samples.add_row(first, seed, row["completion"] or "(empty)", f"{row['score']:.2f}", f"{row['gold_score']:.2f}")
    return Group(result, samples)


def figure(numbers: JsonObject) -> Figure:
    """Proxy and gold score against the KL, with the exact frontier; and over training, the mean of the seeds."""
    fig = Figure(figsize=(13, 7), layout="constrained")
    axes = fig.subplots(2, 3)
    keys = {"proxy": "proxy score", "gold": "gold score"}
    frontier = [numbers["reference"], *numbers["frontier"]]
    for i, run in enumerate(numbers["runs"]):
        for axis, key in zip(axes[0], keys, strict=False):
            for seed in run["seeds"]:
                points = seed["trajectory"]
                axis.plot([p["kl"] for p in points], [p[key] for p in points], color=f"C{i}", lw=0.6, alpha=0.4)
            axis.plot(ends(run, "kl"), ends(run, key), "o", color=f"C{i}", label=name_of(run))
        tokens = np.linspace(0, TIMESTEPS, 40)
        for axis, key in zip(axes[1], [*keys, "kl"], strict=True):
            lines = [
                np.interp(
                    tokens, [0, *(p["tokens"] for p in points)], [numbers["reference"][key], *(p[key] for p in points)]
                )
                for points in (seed["trajectory"] for seed in run["seeds"])
            ]
            axis.plot(tokens, np.mean(lines, axis=0), color=f"C{i}")
            axis.fill_between(tokens, np.min(lines, axis=0), np.max(lines, axis=0), color=f"C{i}", alpha=0.1, lw=0)
    for axis, (key, label) in zip(axes[0], keys.items(), strict=False):
        axis.plot(
            [p["kl"] for p in frontier], [p[key] for p in frontier], "k--", lw=1.2, label="exact optima for the proxy"
        )
        axis.set(xlabel="KL to the reference, nats (dots: the ends)", ylabel=label)
    for axis, label in zip(axes[1], [*keys.values(), "KL to the reference, nats"], strict=True):
        axis.set(xlabel="tokens (mean and range over the seeds)", ylabel=label)
    axes[0, 2].axis("off")
    axes[0, 2].legend(*axes[0, 0].get_legend_handles_labels(), loc="center", frameon=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return fig
