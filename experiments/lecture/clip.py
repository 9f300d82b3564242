"""The clip: a token's gradient becomes zero once its ratio has changed enough. The exact objective shows how much.

For A > 0 the clip binds where rho > 1 + eps (the probability was raised enough), for A < 0 where rho < 1 - eps (lowered
enough). There the gradient is zero, yet rho still changes: tokens share their weights, and the gradients of other
tokens change it. A narrow clip slows training down, a wide one has little effect.
"""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from agents.files import JsonObject
from agents.policy import TransformerPolicy
from experiments.evaluation import Evaluator
from experiments.lecture.memo import Remember, no_memo
from experiments.lecture.old_samples import over_seeds
from experiments.statistics import Estimate

CLIP_RANGES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, None)
SEEDS = tuple(range(5))
EPOCHS = 16


def measure(memo: Remember = no_memo) -> list[JsonObject]:
    """A row per clip range, with the results of `old_samples.over_seeds`."""
    env = gym.make("textenv/Toy-v0", vocab_size=5, max_new_tokens=4, num_prompts=2, task_seed=0)
    start = TransformerPolicy.for_env(env)
    evaluator = Evaluator.for_env(env, episodes=2)
    return [
        {"clip_range": eps}
        | memo(f"clip_range {eps}", partial(over_seeds, evaluator, start, SEEDS, n_epochs=EPOCHS, clip_range=eps))
        for eps in CLIP_RANGES
    ]


def table(numbers: list[JsonObject]) -> Table:
    """A row per clip range."""
    result = Table(
        title=f"PPO's clip, {EPOCHS} epochs per batch, {len(numbers[0]['runs'])} seeds",
        caption="Share: (J - J_ref) / (J* - J_ref), interquartile mean with its 95% bootstrap interval. "
        "Binds: the share of the tokens with A > 0, or A < 0, where the clip binds, mean over the run.",
    )
    columns = ("clip_range", "share of the way to J*", "KL", "largest |rho - 1|", "binds, A > 0", "binds, A < 0")
    for column in columns:
        result.add_column(column, justify="right")
    for row in numbers:
        runs = row["runs"]
        result.add_row(
            "none" if row["clip_range"] is None else str(row["clip_range"]),
            str(Estimate(**row["share"])),
            f"{np.mean([r['kl'] for r in runs]):.2f}",
            f"{np.median([r['largest_ratio'] for r in runs]) - 1:.1f}",
            *(f"{np.mean([r[side] for r in runs]):.1%}" for side in ("clipped_high", "clipped_low")),
        )
    return result


def figure(numbers: list[JsonObject]) -> Figure:
    """The objective, and how often the clip binds on either side, against eps."""
    fig = Figure(figsize=(11, 3.6), layout="constrained")
    reached, binds = fig.subplots(1, 2)
    places = np.arange(len(numbers))
    names = ["none" if row["clip_range"] is None else str(row["clip_range"]) for row in numbers]
    shares = np.array([[run["share"] for run in row["runs"]] for row in numbers])
    reached.plot(places, shares, ".", color="C0", alpha=0.5)
    reached.plot(places, np.median(shares, axis=1), "-", color="C0", label="median of the seeds")
    reached.axhline(1, color="black", ls="--", lw=1, label="exact optimum")
    reached.axhline(0, color="gray", ls=":", lw=1, label="reference")
    sides = {"clipped_high": "A > 0: rho > 1 + eps", "clipped_low": "A < 0: rho < 1 - eps"}
    for i, (side, label) in enumerate(sides.items()):
        means = [np.mean([run[side] for run in row["runs"]]) for row in numbers]
        binds.bar(places + 0.4 * (i - 0.5), means, width=0.38, label=label)
    reached.set(xlabel="clip_range", ylabel="share of the way to J*")
    binds.set(xlabel="clip_range", ylabel="share of these tokens where the clip binds")
    for axis in (reached, binds):
        axis.set_xticks(places, names)
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    return fig
