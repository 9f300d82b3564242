"""Old samples: importance weights allow several epochs on the same completions, until they explode; the clip delays it.

    rho_t = pi(a_t|s_t) / pi_old(a_t|s_t),    sum_t rho_t A_t    against    sum_t min(rho_t A_t, clip(rho_t) A_t)

PPO with and without the clip, on a fixed number of tokens, with 1, 2, 4 ... epochs on each batch of completions, over
10 seeds. The final objective is exact. The effective sample size (sum rho)^2 / (n sum rho^2) is the share of a batch
that remains when few tokens carry all the weight.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table
from scipy import stats

from agents import PPO, TrainingWarning
from agents.files import JsonObject
from agents.policy import TransformerPolicy
from experiments.evaluation import Evaluator
from experiments.lecture.memo import Remember, no_memo
from experiments.share import normalized_objective
from experiments.statistics import Estimate, interquartile_mean

EPOCHS = (1, 2, 4, 8, 16, 32)
SEEDS = tuple(range(10))
CLIPS: dict[str, float | None] = {"no clip": None, "clip 0.2": 0.2}
TIMESTEPS = 3000
COLLAPSED = 0.25  # share of the way from the reference to the optimum


def measure(memo: Remember = no_memo) -> JsonObject:
    """For each clip and number of epochs the results of `run` for each seed, and the estimate over the seeds."""
    env = gym.make("textenv/Toy-v0", vocab_size=5, max_new_tokens=4, num_prompts=2, task_seed=0)
    start = TransformerPolicy.for_env(env)
    evaluator = Evaluator.for_env(env, episodes=2)
    return {
        name: [
            {"n_epochs": n}
            | memo(
                f"{name}, {n} epochs",
                partial(over_seeds, evaluator, start, SEEDS, n_epochs=n, clip_range=clip),
            )
            for n in EPOCHS
        ]
        for name, clip in CLIPS.items()
    }


def over_seeds(evaluator: Evaluator, start: TransformerPolicy, seeds: Sequence[int], **settings: object) -> JsonObject:
    """The results of `run` for each seed, and the interquartile mean of the share with its interval."""
    runs = [run(evaluator, start, seed, **settings) for seed in seeds]
    return {"runs": runs, "share": interquartile_mean([row["share"] for row in runs])._asdict()}


def run(evaluator: Evaluator, start: TransformerPolicy, seed: int, **settings: Any) -> JsonObject:
    """One PPO run: share of the way to J*, KL, 1 + largest |rho - 1|, least effective sample, rate of clipping."""
    rows: list[dict[str, float]] = []
    agent = PPO(copy.deepcopy(start), evaluator.env, learning_rate=1e-3, seed=seed, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)  # of ratios that explode, which is the claim
        agent.learn(TIMESTEPS, callback=lambda agent, rollout, metrics: rows.append(metrics))
    measured = evaluator.measure(agent.policy)
    return {
        "share": normalized_objective(measured["objective"], evaluator.baselines()),
        "kl": measured["kl"],
        "largest_ratio": 1.0 + max(row["val/ratio_error_max"] for row in rows),
        "ess": min(row["val/ess"] for row in rows),
        "clipped_high": float(np.mean([row["policy/clipfrac_high_avg"] for row in rows])),
        "clipped_low": float(np.mean([row["policy/clipfrac_low_avg"] for row in rows])),
    }


def collapsed(runs: list[dict[str, float]]) -> tuple[int, float, float]:
    """Number of runs that ended below COLLAPSED, and Wilson's 95% interval of their share."""
    count = sum(row["share"] < COLLAPSED for row in runs)
    interval = stats.binomtest(count, len(runs)).proportion_ci(method="wilson")
    return count, float(interval.low), float(interval.high)


def table(numbers: JsonObject) -> Table:
    """A row per clip and number of epochs."""
    seeds = len(next(iter(numbers.values()))[0]["runs"])
    result = Table(
        title=f"PPO on old samples, {TIMESTEPS:,} tokens, {seeds} seeds",
        caption="Share: (J - J_ref) / (J* - J_ref), interquartile mean with its 95% bootstrap interval; collapsed: "
        f"below {COLLAPSED}, with Wilson's 95% interval. Ratio and effective sample: the worst of each run, median "
        "over the runs.",
    )
    for column in ("", "epochs", "share of the way to J*", "largest |rho - 1|", "effective sample", "collapsed"):
        result.add_column(column, justify="right" if column else "left")
    for name, rows in numbers.items():
        for row in rows:
            runs = row["runs"]
            count, low, high = collapsed(runs)
            result.add_row(
                name if row is rows[0] else "",
                str(row["n_epochs"]),
                str(Estimate(**row["share"])),
                f"{np.median([r['largest_ratio'] for r in runs]) - 1:.1f}",
                f"{np.median([r['ess'] for r in runs]):.1%}",
                f"{count} of {len(runs)} [{low:.0%}, {high:.0%}]",
            )
        result.add_section()
    return result


def figure(numbers: JsonObject) -> Figure:
    """Objective, largest ratio and effective sample against the number of epochs; one dot per run."""
    fig = Figure(figsize=(12, 3.8), layout="constrained")
    panels = {
        "share": "share of the way to J*",
        "largest_ratio": "1 + largest |rho - 1|",
        "ess": "smallest effective sample",
    }
    axes = fig.subplots(1, len(panels))
    for i, (name, rows) in enumerate(numbers.items()):
        epochs = np.array([row["n_epochs"] for row in rows])
        for axis, key in zip(axes, panels, strict=True):
            runs = np.array([[run[key] for run in row["runs"]] for row in rows])
            axis.plot(epochs * 1.06 ** (2 * i - 1), runs, ".", color=f"C{i}", alpha=0.4)
            axis.plot(epochs, np.median(runs, axis=1), "-", color=f"C{i}", label=f"{name}, median")
    for axis, label in zip(axes, panels.values(), strict=True):
        axis.set(xscale="log", xlabel="epochs on each batch", ylabel=label)
        axis.set_xticks(EPOCHS, [str(n) for n in EPOCHS])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].axhline(0, color="gray", ls=":", lw=1)
    axes[1].set_yscale("log")
    axes[0].legend(frameon=False)
    return fig
