"""The report of a comparison: tables of results, curves, and completions before and after training."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from agents import files
from agents.files import JsonObject
from experiments.console import plain_console, score_text
from experiments.evaluation import Measured, normalized_objective
from experiments.metrics_file import Row, describe_gaps, find_gaps, read_metrics
from experiments.statistics import Estimate, interquartile_mean, paired_difference
from textenv.data import printable

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Summaries = dict[str, list[JsonObject]]
FEW_SEEDS = 10  # with fewer, a nominal 95% interval covers clearly less


def report(
    folder: Path,
    summaries: Summaries,
    untrained: dict[str, Measured],
    before: list[JsonObject],
    console: Console,
) -> None:
    """Prints the report and writes it to the folder: `report.txt`, `summary.json`, `curves.png`, `samples.txt`.

    Args:
        folder: the folder of the comparison.
        summaries: by agent, one summary per seed.
        untrained: measured values of each baseline other than the reference.
        before: completions of the policy that all agents start from.
        console: where to print.
    """
    baselines = next(iter(summaries.values()))[0]["baselines"]
    rows = {name: _row(trials) for name, trials in summaries.items()}
    content = {
        "baselines": baselines,
        "untrained": untrained,
        "agents": {name: {key: value._asdict() for key, value in row.items()} for name, row in rows.items()},
        "tokens_to_90": {name: [trial["tokens_to_90"] for trial in trials] for name, trials in summaries.items()},
        "gaps": {name: [trial["gaps"] for trial in trials] for name, trials in summaries.items()},
        "paired_differences": {name: value._asdict() for name, value in _differences(summaries).items()},
    }
    files.write_json(folder / "summary.json", content)
    curves(folder, summaries, baselines, untrained)
    tables = [results_table(summaries, baselines, untrained), samples_table(summaries, before, folder)]
    if len(summaries) > 1:
        tables.insert(1, differences_table(summaries))
    lost = [
        f"{name}, seed {trial['seed']}: {describe_gaps(trial['gaps'])}."
        for name, trials in summaries.items()
        for trial in trials
        if trial["gaps"]
    ]
    text = io.StringIO()
    for printer in (console, plain_console(width=120, file=text)):
        for part in (*tables, *lost):
            printer.print(part)
    files.write_text(folder / "report.txt", text.getvalue())


def results_table(summaries: Summaries, baselines: JsonObject, untrained: dict[str, Measured]) -> Table:
    """One row per agent: interquartile means over seeds with 95% bootstrap intervals; baselines are above them."""
    counts = sorted({len(trials) for trials in summaries.values()})
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else counts[0]  # some trials may have failed
    table = Table(
        title=f"interquartile mean over {seeds} seeds [95% bootstrap interval]", caption=_few_seeds_caption(summaries)
    )
    known = normalized_objective(baselines["reference"], baselines) is not None
    gold = baselines.get("reference_gold_score")
    shown = {"objective": "objective J", "score": "score", "gold_score": "gold score", "kl": "KL to reference"}
    if gold is None:
        del shown["gold_score"]
    after = [*(["share of the way", "tokens to 90%"] if known else []), "tokens/s"]
    for column in ("", *shown.values(), *after):
        table.add_column(column, justify="left" if not column else "right")

    reference = {"objective": baselines["reference"], "score": baselines["reference_score"], "gold_score": gold}
    for name, measured in ({"reference": reference | {"kl": 0.0}} | untrained).items():
        share = [f"{normalized_objective(measured['objective'], baselines):.1%}"] if known else []
        table.add_row(name, *(f"{measured[key]:.3f}" for key in shown), *share)
    table.add_section()
    for name, trials in summaries.items():
        row = _row(trials)
        share = [f"{row['normalized_objective'].value:.1%}", _tokens_to_90(trials)] if known else []
        table.add_row(name, *(str(row[key]) for key in shown), *share, f"{row['tokens_per_second'].value:.0f}")
    if known:
        table.add_section()
        table.add_row("exact optimum", f"{baselines['optimum']:.3f}", *([""] * (len(shown) - 1)), "100.0%")
    return table


def _tokens_to_90(trials: list[JsonObject]) -> str:
    """The interquartile mean over seeds, or how many of the seeds reach 90% of the way."""
    reached = [trial["tokens_to_90"] for trial in trials if trial["tokens_to_90"] is not None]
    if len(reached) < len(trials):
        return f"{len(reached)} of {len(trials)} seeds"
    return f"{interquartile_mean(reached).value:,.0f}"


def differences_table(summaries: Summaries) -> Table:
    """Differences of the objective between agents, paired by seed."""
    title = "difference of J, paired by seed [95% bootstrap interval]"
    table = Table(title=title, caption=_few_seeds_caption(summaries))
    table.add_column("")
    table.add_column("mean difference", justify="right")
    for name, difference in _differences(summaries).items():
        table.add_row(name, str(difference))
    return table


def _few_seeds_caption(summaries: Summaries) -> str | None:
    """What the reader of an interval must know if there are few seeds; coverages: experiments/statistics.py."""
    if all(len(trials) >= FEW_SEEDS for trials in summaries.values()):
        return None
    return "A bootstrap interval never leaves the range of its seeds: with few of them it is too narrow."


def samples_table(summaries: Summaries, before: list[JsonObject], folder: Path) -> Table:
    """Completions of the initial policy and of each agent (its first seed); writes them to `samples.txt` too."""
    table = Table(title="completions, sampled: before and after")
    for column in ("prompt", "policy", "completion", "score"):
        table.add_column(column, justify="right" if column == "score" else "left")
    after = {name: trials[0]["completions"] for name, trials in summaries.items()}
    lines = []
    for i, first in enumerate(before):
        lines.append(printable(first["prompt"]))
        shown = [(name, completions[i]) for name, completions in after.items() if i < len(completions)]
        for policy, row in [("before", first), *shown]:
            prompt = first["prompt"] if policy == "before" else ""
            table.add_row(prompt, policy, row["completion"] or "(nothing)", score_text(row["score"]))
            lines.append(f"  {policy:<14} {printable(row['completion'])}   ({score_text(row['score'])})")
        table.add_section()
    files.write_text(folder / "samples.txt", "\n".join(lines) + "\n")
    return table


def curves(folder: Path, summaries: Summaries, baselines: JsonObject, untrained: dict[str, Measured]) -> None:
    """Draws `curves.png`: objective and KL against tokens; score (and gold score) against KL.

    Against tokens: a line is an agent's mean over seeds, its band goes from the lowest seed to the highest. It has a
    gap where a seed's rows were lost.
    """
    gold = baselines.get("reference_gold_score") is not None
    shape, size = ((2, 2), (11, 8)) if gold else ((1, 3), (15, 4.2))
    figure, grid = plt.subplots(*shape, figsize=size, layout="constrained")
    axes = grid.flatten()
    against_kl = {"score": axes[2], "gold_score": axes[3]} if gold else {"score": axes[2]}
    for name, trials in summaries.items():
        logged = [Logged.read(folder / name / f"seed-{trial['seed']}", trial) for trial in trials]
        tokens = np.linspace(0, max(trial["num_timesteps"] for trial in trials), 60)
        lines = {
            metric: np.array([each.over_tokens(metric, tokens) for each in logged])
            for metric in ("objective", "kl", *against_kl)
        }
        for axis, metric in zip(axes, ("objective", "kl"), strict=False):
            (line,) = axis.plot(tokens, lines[metric].mean(axis=0), label=name)
            low, high = lines[metric].min(axis=0), lines[metric].max(axis=0)
            axis.fill_between(tokens, low, high, color=line.get_color(), alpha=0.2, lw=0)
        dot: dict[str, Any] = {"color": line.get_color(), "ms": 4}
        for metric, axis in against_kl.items():
            axis.plot(lines["kl"].T, lines[metric].T, color=line.get_color(), alpha=0.35, lw=1)
            axis.plot([trial["kl"] for trial in trials], [trial[metric] for trial in trials], "o", **dot)
    axes[0].axhline(baselines["reference"], color="gray", ls=":", label="reference")
    if baselines["optimum"] is not None:
        axes[0].axhline(baselines["optimum"], color="black", ls="--", label="exact optimum")
    for name, measured in untrained.items():
        if name == "random":  # it is far below, and would compress all other curves
            continue
        axes[0].axhline(measured["objective"], color="gray", ls="-.", label=name)
        for metric, axis in against_kl.items():
            axis.plot(measured["kl"], measured[metric], "*", color="gray", ms=9)
    kl = "KL(pi || pi_ref) over whole completions, nats"
    axes[0].set(xlabel="tokens", ylabel="objective J = E[score] - beta KL")
    axes[1].set(xlabel="tokens", ylabel=kl, ylim=(0, None))
    axes[2].set(xlabel=kl, ylabel="score", xlim=(0, None), title="one line per seed, a dot at its end; star: best of n")
    if gold:
        axes[3].set(xlabel=kl, ylabel="gold score", xlim=(0, None), title="measured, not trained on")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    files.write_file(folder / "curves.png", lambda new: figure.savefig(new, format="png", dpi=110))
    plt.close(figure)


class Logged(NamedTuple):
    """What a trial has logged: its rows, and the updates whose rows were lost."""

    rows: list[Row]
    gaps: list[list[int]]

    @classmethod
    def read(cls, folder: Path, summary: JsonObject) -> Logged:
        """Reads `metrics.jsonl` of a trial that has finished."""
        rows = read_metrics(folder)
        return cls(rows, find_gaps(rows, summary["num_updates"]))

    def over_tokens(self, metric: str, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        """An evaluation metric at the given numbers of tokens, of the same shape.

        It is interpolated linearly between evaluations, and nan where rows between them were lost.
        """
        line = np.full(len(tokens), np.nan)
        evaluations = [row for row in self.rows if "eval/objective" in row]
        if not evaluations:
            return line
        names = ("num_timesteps", f"eval/{metric}", "num_updates")
        at, values, updates = (np.array([row[name] for row in evaluations], dtype=float) for name in names)
        line[:] = np.interp(tokens, at, values)
        bounds = np.array([-np.inf, *at, np.inf])
        for first, _ in self.gaps:
            before = np.searchsorted(updates, first)  # evaluations before the gap
            line[(tokens > bounds[before]) & (tokens < bounds[before + 1])] = np.nan
        return line


def _row(trials: list[JsonObject]) -> JsonObject:
    """Interquartile means over seeds of one agent's numbers."""
    names: list[str] = [
        name for name in ("objective", "score", "gold_score", "kl", "tokens_per_second") if name in trials[0]
    ]
    if trials[0]["normalized_objective"] is not None:
        names.append("normalized_objective")
    return {name: interquartile_mean([trial[name] for trial in trials]) for name in names}


def _differences(summaries: Summaries) -> dict[str, Estimate]:
    """Over the seeds with which all agents have finished."""
    by_seed = {name: {trial["seed"]: trial["objective"] for trial in trials} for name, trials in summaries.items()}
    common = set.intersection(*(set(values) for values in by_seed.values()))
    if not common:
        return {}
    paired = {name: {seed: values[seed] for seed in sorted(common)} for name, values in by_seed.items()}
    return {f"{a} - {b}": paired_difference(paired[a], paired[b]) for a, b in itertools.combinations(paired, 2)}
