"""The rows of a comparison's tables, as the text report and the page print them: values with their intervals."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from agents.files import JsonObject
from experiments.share import normalized_objective, normalized_objective_stderr
from experiments.statistics import Estimate, interquartile_mean, paired_difference

Summaries = dict[str, list[JsonObject]]
FEW_SEEDS = 10  # with fewer, a nominal 95% interval covers clearly less
INTERVAL = " [95% bootstrap interval]"


class Cell(NamedTuple):
    """A cell: a value, and its interval or "" where it has none."""

    value: str
    interval: str = ""

    def __str__(self) -> str:
        return f"{self.value} {self.interval}".rstrip()

    @classmethod
    def of(cls, estimate: Estimate) -> Cell:
        """An estimate over seeds."""
        value, _, interval = str(estimate).partition(" ")
        return cls(value, interval)


class Rows(NamedTuple):
    """A table.

    Attributes:
        title: of the whole.
        header: a name for each column.
        rows: their cells; the first is the name of the row.
        rules: the indices of rows that a rule follows.
        caption: what the reader must know, "" if nothing.
    """

    title: str
    header: list[str]
    rows: list[list[Cell]]
    rules: set[int]
    caption: str = ""


def results_rows(summaries: Summaries, baselines: JsonObject, untrained: Mapping[str, JsonObject]) -> Rows:
    """One row per agent: interquartile means over seeds with 95% bootstrap intervals; baselines are above them."""
    known = normalized_objective(baselines["reference"], baselines) is not None
    gold, others = baselines.get("reference_gold_score"), baselines.get("held_out")
    shown = {"objective": "objective J", "score": "score", "gold_score": "gold score", "kl": "KL to reference"}
    if gold is None:
        del shown["gold_score"]
    after = ["share of the way", "tokens to 90%"] if known else []
    held_out = ["J, held out", *(["share, held out"] if known else [])] if others else []
    header, rows, rules = ["", *shown.values(), *after, *held_out, "tokens/s"], list[list[Cell]](), set[int]()

    def add(name: str, cells: Sequence[Cell], way: Sequence[Cell], of_others: Sequence[Cell], *rest: Cell) -> None:
        row = [Cell(name), *cells, *(way if known else ()), *of_others[: len(held_out)], *rest]
        rows.append(row + [Cell("")] * (len(header) - len(row)))

    for name, measured in ({"reference": _reference(baselines)} | dict(untrained)).items():
        other = measured.get("held_out")
        of_others = [Cell(f"{other['objective']:.3f}"), _untrained_share(other, others or {})] if other else []
        way = [_untrained_share(measured, baselines), Cell("")]
        add(name, [Cell(f"{measured[key]:.3f}") for key in shown], way, of_others)
    rules.add(len(rows) - 1)
    for name, trials in summaries.items():
        row, of_others = mean_row(trials), []
        if others:
            theirs = [trial["held_out"] for trial in trials]
            of_others = [Cell.of(mean_row(theirs)["objective"]), _share(theirs, others)]
        way = [_share(trials, baselines), _tokens_to_90(trials)]
        speed = Cell(f"{row['tokens_per_second'].value:.0f}")
        add(name, [Cell.of(row[key]) for key in shown], way, of_others, speed)
    if known:
        rules.add(len(rows) - 1)
        name = "exact optimum" if baselines.get("optimum_stderr") is None else "optimum, estimated"
        numbers = {"objective": _optimum(baselines)}
        for key in ("score", "kl"):
            if (value := baselines.get(f"optimum_{key}")) is not None:
                numbers[key] = Cell(f"{value:.3f}")
        whole = Cell("100.0%")
        of_others = [_optimum(others or {}), whole]
        add(name, [numbers.get(key, Cell("")) for key in shown], [whole, Cell("")], of_others)
    counts = sorted({len(trials) for trials in summaries.values()})
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"  # some trials may have failed
    seeds += " seed" if counts == [1] else " seeds"
    return Rows(f"interquartile mean over {seeds}{INTERVAL}", header, rows, rules, _few_seeds_caption(summaries))


def differences_rows(summaries: Summaries) -> Rows:
    """Differences of the objective between agents, paired by seed."""
    found = differences(summaries)
    interval = "" if found and all(each.low is None for each in found.values()) else INTERVAL
    rows = [[Cell(name), Cell.of(difference)] for name, difference in found.items()]
    header = ["", "mean difference"]
    return Rows(f"difference of J, paired by seed{interval}", header, rows, set(), _few_seeds_caption(summaries))


def _reference(baselines: JsonObject) -> JsonObject:
    """The numbers of the reference by the names of what is measured of a policy."""
    names = {"objective": "reference", "score": "reference_score", "gold_score": "reference_gold_score"}
    others = baselines.get("held_out")
    numbers = {name: baselines[baseline] for name, baseline in names.items()} | {"kl": 0.0}
    return numbers | {"held_out": others and _reference(others)}


def _optimum(baselines: JsonObject) -> Cell:
    if (optimum := baselines.get("optimum")) is None:
        return Cell("")
    stderr = baselines.get("optimum_stderr")
    return Cell(f"{optimum:.3f}" + ("" if stderr is None else f" ± {stderr:.3f}"))


def _untrained_share(measured: JsonObject, baselines: JsonObject) -> Cell:
    share = normalized_objective(measured["objective"], baselines)
    return Cell("" if share is None else f"{share:.1%}")


def _share(trials: Sequence[JsonObject], baselines: JsonObject) -> Cell:
    """The share of the way over seeds with its bootstrap interval; behind it, where J* is estimated, ± its error."""
    share = mean_row(trials).get("normalized_objective")
    if share is None:
        return Cell("")
    errors = [trial["objective_stderr"] for trial in trials if "objective_stderr" in trial]
    # all trials are evaluated with the same random numbers, so their errors do not average out
    stderr = normalized_objective_stderr(share.value, float(np.mean(errors)) if errors else None, baselines)
    bounds = [f"[{100 * share.low:.1f}, {100 * share.high:.1f}]"] if share.low is not None else []
    error = [f"± {100 * stderr:.1f}"] if stderr is not None and errors else []
    return Cell(f"{share.value:.1%}", " ".join([*bounds, *error]))


def _tokens_to_90(trials: list[JsonObject]) -> Cell:
    """The interquartile mean over seeds, or how many of the seeds reach 90% of the way; whether a single one does."""
    reached = [trial["tokens_to_90"] for trial in trials if trial["tokens_to_90"] is not None]
    if len(reached) < len(trials):
        return Cell("not reached" if len(trials) == 1 else f"{len(reached)} of {len(trials)} seeds")
    return Cell(f"{interquartile_mean(reached).value:,.0f}")


def _few_seeds_caption(summaries: Summaries) -> str:
    """What the reader of an interval must know if there are few seeds; coverages: experiments/statistics.py."""
    if all(len(trials) >= FEW_SEEDS for trials in summaries.values()):
        return ""
    return "A bootstrap interval never leaves the range of its seeds: with few of them it is too narrow."


def mean_row(trials: Sequence[JsonObject]) -> JsonObject:
    """Interquartile means over seeds of one agent's numbers."""
    known = ("objective", "score", "gold_score", "kl", "tokens_per_second", "normalized_objective")
    names = [name for name in known if trials[0].get(name) is not None]
    return {name: interquartile_mean([trial[name] for trial in trials]) for name in names}


def differences(summaries: Summaries) -> dict[str, Estimate]:
    """Over the seeds with which all agents have finished."""
    by_seed = {name: {trial["seed"]: trial["objective"] for trial in trials} for name, trials in summaries.items()}
    common = set.intersection(*(set(values) for values in by_seed.values()))
    if not common:
        return {}
    paired = {name: {seed: values[seed] for seed in sorted(common)} for name, values in by_seed.items()}
    return {f"{a} - {b}": paired_difference(paired[a], paired[b]) for a, b in itertools.combinations(paired, 2)}
