"""The report of a comparison: tables of results, curves, and completions before and after training."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from agents import files
from agents.files import JsonObject
from experiments.console import plain_console, score_text
from experiments.curves import curves
from experiments.metrics_file import describe_gaps
from experiments.share import describe_baselines, normalized_objective, normalized_objective_stderr
from experiments.statistics import Estimate, interquartile_mean, paired_difference
from textenv.data import printable

Summaries = dict[str, list[JsonObject]]
FEW_SEEDS = 10  # with fewer, a nominal 95% interval covers clearly less


def report(
    folder: Path,
    summaries: Summaries,
    untrained: Mapping[str, JsonObject],
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
    sentences = [
        f"{name}, seed {trial['seed']}: {describe_gaps(trial['gaps'])}."
        for name, trials in summaries.items()
        for trial in trials
        if trial["gaps"]
    ]
    sentences += describe_baselines(baselines)
    write_report(folder, [*tables, *sentences], console)


def write_report(folder: Path, parts: Sequence[Table | str], console: Console) -> None:
    """Prints tables and sentences, and writes them to `report.txt`."""
    text = io.StringIO()
    for printer in (console, plain_console(width=120, file=text)):
        for part in parts:
            printer.print(part)
    files.write_text(folder / "report.txt", text.getvalue())


def results_table(summaries: Summaries, baselines: JsonObject, untrained: Mapping[str, JsonObject]) -> Table:
    """One row per agent: interquartile means over seeds with 95% bootstrap intervals; baselines are above them."""
    counts = sorted({len(trials) for trials in summaries.values()})
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else counts[0]  # some trials may have failed
    table = Table(
        title=f"interquartile mean over {seeds} seeds [95% bootstrap interval]", caption=_few_seeds_caption(summaries)
    )
    known = normalized_objective(baselines["reference"], baselines) is not None
    gold, others = baselines.get("reference_gold_score"), baselines.get("held_out")
    shown = {"objective": "objective J", "score": "score", "gold_score": "gold score", "kl": "KL to reference"}
    if gold is None:
        del shown["gold_score"]
    after = ["share of the way", "tokens to 90%"] if known else []
    held_out = ["J, held out", *(["share, held out"] if known else [])] if others else []
    for column in ("", *shown.values(), *after, *held_out, "tokens/s"):
        table.add_column(column, justify="left" if not column else "right")

    def add(name: str, cells: Sequence[str], way: Sequence[str], of_others: Sequence[str], *rest: str) -> None:
        table.add_row(name, *cells, *(way if known else ()), *(of_others[: len(held_out)]), *rest)

    for name, measured in ({"reference": _reference(baselines)} | dict(untrained)).items():
        other = measured.get("held_out")
        of_others = [f"{other['objective']:.3f}", _untrained_share(other, others or {})] if other else []
        add(name, [f"{measured[key]:.3f}" for key in shown], [_untrained_share(measured, baselines), ""], of_others)
    table.add_section()
    for name, trials in summaries.items():
        row, of_others = _row(trials), []
        if others:
            theirs = [trial["held_out"] for trial in trials]
            of_others = [str(_row(theirs)["objective"]), _share(theirs, others)]
        way = [_share(trials, baselines), _tokens_to_90(trials)]
        add(name, [str(row[key]) for key in shown], way, of_others, f"{row['tokens_per_second'].value:.0f}")
    if known:
        table.add_section()
        name = "exact optimum" if baselines.get("optimum_stderr") is None else "optimum, estimated"
        numbers = {"objective": _optimum(baselines)}
        for key in ("score", "kl"):
            if (value := baselines.get(f"optimum_{key}")) is not None:
                numbers[key] = f"{value:.3f}"
        cells = [numbers.get(key, "") for key in shown]
        add(name, cells, ["100.0%", ""], [_optimum(others or {}), "100.0%"])
    return table


def _reference(baselines: JsonObject) -> JsonObject:
    """The numbers of the reference by the names of what is measured of a policy."""
    names = {"objective": "reference", "score": "reference_score", "gold_score": "reference_gold_score"}
    others = baselines.get("held_out")
    numbers = {name: baselines[baseline] for name, baseline in names.items()} | {"kl": 0.0}
    return numbers | {"held_out": others and _reference(others)}


def _optimum(baselines: JsonObject) -> str:
    if (optimum := baselines.get("optimum")) is None:
        return ""
    stderr = baselines.get("optimum_stderr")
    return f"{optimum:.3f}" + ("" if stderr is None else f" ± {stderr:.3f}")


def _untrained_share(measured: JsonObject, baselines: JsonObject) -> str:
    share = normalized_objective(measured["objective"], baselines)
    return "" if share is None else f"{share:.1%}"


def _share(trials: Sequence[JsonObject], baselines: JsonObject) -> str:
    """The share of the way over seeds with its bootstrap interval; behind it, where J* is estimated, ± its error."""
    share = _row(trials).get("normalized_objective")
    if share is None:
        return ""
    errors = [trial["objective_stderr"] for trial in trials if "objective_stderr" in trial]
    # all trials are evaluated with the same random numbers, so their errors do not average out
    stderr = normalized_objective_stderr(share.value, float(np.mean(errors)) if errors else None, baselines)
    text = f"{share.value:.1%}"
    if share.low is not None:
        text += f" [{100 * share.low:.1f}, {100 * share.high:.1f}]"
    return text if stderr is None or not errors else f"{text} ± {100 * stderr:.1f}"


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


def _row(trials: Sequence[JsonObject]) -> JsonObject:
    """Interquartile means over seeds of one agent's numbers."""
    known = ("objective", "score", "gold_score", "kl", "tokens_per_second", "normalized_objective")
    names = [name for name in known if trials[0].get(name) is not None]
    return {name: interquartile_mean([trial[name] for trial in trials]) for name in names}


def _differences(summaries: Summaries) -> dict[str, Estimate]:
    """Over the seeds with which all agents have finished."""
    by_seed = {name: {trial["seed"]: trial["objective"] for trial in trials} for name, trials in summaries.items()}
    common = set.intersection(*(set(values) for values in by_seed.values()))
    if not common:
        return {}
    paired = {name: {seed: values[seed] for seed in sorted(common)} for name, values in by_seed.items()}
    return {f"{a} - {b}": paired_difference(paired[a], paired[b]) for a, b in itertools.combinations(paired, 2)}
