"""The tables of the suite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from rich.table import Table

from agents.files import JsonObject
from experiments.optimum.variants import FACTORS
from experiments.share import describe_baselines, reaches
from experiments.statistics import interquartile_mean, interquartile_mean_over_tasks

SHARES = (0.5, 0.9, 0.95, 0.99)
TITLES = {"toys": "toys", "taj_mahal": "TajMahal", "reward_hacking": "RewardHacking", "stories": "stories"}
Records = Mapping[str, JsonObject]  # what was kept of each task, by its name


class Group(NamedTuple):
    """The trials of a group of tasks, each with the baselines of its task."""

    title: str
    trials: list[tuple[JsonObject, JsonObject]]

    def of(self, name: str) -> list[tuple[JsonObject, JsonObject]]:
        """Those of one agent at one step size."""
        return [(trial, baselines) for trial, baselines in self.trials if trial["name"] == name]

    def shown(self) -> list[str]:
        """The name of each agent at its default settings; of each peer at its best."""
        names: dict[str, list[str]] = {}
        for trial, _ in self.trials:
            if trial["peer"] or (trial["factor"] == 1 and not trial["settings"]):
                names.setdefault(trial["agent"], []).append(trial["name"])
        return [max(dict.fromkeys(own), key=self._reached) for own in names.values()]

    def _reached(self, name: str) -> float:
        found = [trial["normalized_objective"] for trial, _ in self.of(name)]
        return float(np.mean([trial["objective"] for trial, _ in self.of(name)] if None in found else found))


def groups(records: Records) -> Iterator[Group]:
    """Yields the groups of tasks that have been run, in the order of the suite."""
    for group, title in TITLES.items():
        found = [record for record in records.values() if record["group"] == group]
        if found:
            yield Group(title, [(trial, record["baselines"]) for record in found for trial in record["trials"]])


def tables(records: Records) -> list[Table | str]:
    """The tables and sentences of the report."""
    found: list[Table | str] = [shares_table(records)]
    found += [speed_table(group) for group in groups(records)]
    for group in groups(records):
        if len({trial["factor"] for trial, _ in group.trials}) > 1:
            found.append(step_size_table(group))
        if any(trial["gap"] for trial, _ in group.trials):
            found.append(gap_table(group))
        else:
            found.append(score_and_kl_table(group))
    return found + [text for record in records.values() for text in describe_baselines(record["baselines"])]


def shares_table(records: Records) -> Table:
    """The share of the way that each agent reaches, by group of tasks."""
    table = Table(
        title="share of the way to the optimum: interquartile mean over tasks and seeds [95% bootstrap interval]",
        caption="The interval is over seeds, the tasks are given. ± is the standard error of a share where J* is "
        "estimated. On the stories a peer is one seed, at the best of its step sizes and betas.",
    )
    found = list(groups(records))
    table.add_column("")
    for group in found:
        table.add_column(group.title, justify="right")
    columns = [{group.of(name)[0][0]["agent"]: name for name in group.shown()} for group in found]
    for agent in dict.fromkeys(agent for column in columns for agent in column):
        cells = [
            _share(group.of(column[agent])) if agent in column else ""
            for group, column in zip(found, columns, strict=True)
        ]
        table.add_row(agent, *cells)
    return table


def speed_table(group: Group) -> Table:
    """The tokens and CPU seconds at which each agent first reaches a share of the way: medians over tasks and seeds."""
    table = Table(
        title=f"{group.title}: thousand tokens (CPU seconds) to a share of the way, medians over the trials",
        caption='"3 of 9": so many trials reach it; the median is that of all, and is shown if more than half do.',
    )
    table.add_column("")
    for share in SHARES:
        table.add_column(f"{share:.0%}", justify="right")
    table.add_column("at the end", justify="right")
    for name in group.shown():
        trials = group.of(name)
        ends = [np.median([trial[key] for trial, _ in trials]) for key in ("num_timesteps", "cpu_seconds")]
        end = f"{ends[0] / 1000:.1f} ({ends[1]:.0f} s)"
        table.add_row(name, *(_speed(trials, share) for share in SHARES), end)
    return table


def step_size_table(group: Group) -> Table:
    """The share of the way by step size."""
    table = Table(title=f"{group.title}: share of the way by step size, as a multiple of the default")
    table.add_column("")
    for factor in FACTORS:
        table.add_column(f"{factor:g}", justify="right")
    for label in dict.fromkeys(trial["label"] for trial, _ in group.trials):
        own = [each for each in group.trials if each[0]["label"] == label]
        table.add_row(label, *(_share([each for each in own if each[0]["factor"] == factor]) for factor in FACTORS))
    return table


def gap_table(group: Group) -> Table:
    """Where J* - J is: by the token that loses it, and the state that costs most; of the first seed."""
    table = Table(title=f"{group.title}: where the gap to J* is, as shares of it; the first seed")
    for column in ("", "gap", "1st token", "2nd", "3rd", "later", "costliest state (its share)"):
        table.add_column(column, justify="right" if column in ("gap", "1st token", "2nd", "3rd", "later") else "left")
    for name in group.shown():
        trials = [trial for trial, _ in group.of(name) if trial["gap"]]
        gaps = [trial["gap"] for trial in trials]
        if not gaps:  # the first seed failed
            continue
        sizes = [sum(gap["by_token"]) for gap in gaps]
        parts = np.mean([_parts(gap["by_token"]) for gap in gaps], axis=0)
        costs = [gap["states"][0]["cost"] / (sum(gap["by_token"]) or 1.0) for gap in gaps]
        at = int(np.argmax(costs))
        cost, worst = costs[at], gaps[at]["states"][0]
        where = f"{trials[at]['task']}: " if len({trial["task"] for trial in trials}) > 1 else ""
        text = f"{where}{worst['prompt']} -> {worst['completion_so_far'] or '...'} ({cost:.0%})"
        table.add_row(name, f"{np.mean(sizes):.3f}", *(f"{part:.0%}" for part in parts), text)
    return table


def score_and_kl_table(group: Group) -> Table:
    """What pi* has that a policy has not: J* - J = (S* - S) - beta (KL* - KL)."""
    table = Table(title=f"{group.title}: J = score - beta KL, beside those of pi*")
    for column in ("", "J", "score", "KL to reference"):
        table.add_column(column, justify="right" if column else "left")
    baselines = group.trials[0][1]
    table.add_row("reference", f"{baselines['reference']:.3f}", f"{baselines['reference_score']:.3f}", "0.000")
    if best := baselines["best_of_n"]:
        table.add_row(f"best of {best['n']}", *(f"{best[key]:.3f}" for key in ("objective", "score", "kl")))
    for name in group.shown():
        cells = [str(interquartile_mean([t[key] for t, _ in group.of(name)])) for key in ("objective", "score", "kl")]
        table.add_row(name, *cells)
    if baselines["optimum"] is not None:
        table.add_section()
        keys = ("optimum", "optimum_score", "optimum_kl")
        table.add_row("optimum, estimated", *(f"{baselines[key]:.3f}" for key in keys))
    return table


def _parts(by_token: Sequence[float]) -> list[float]:
    """The shares of the first, second, third and all later tokens."""
    costs = np.zeros(max(4, len(by_token)))
    costs[: len(by_token)] = by_token
    total = costs.sum() or 1.0
    return [*(costs[:3] / total), float(costs[3:].sum() / total)]


def _share(trials: Sequence[tuple[JsonObject, JsonObject]]) -> str:
    by_task: dict[str, list[float]] = {}
    for trial, _ in trials:
        if trial["normalized_objective"] is not None:
            by_task.setdefault(trial["task"], []).append(trial["normalized_objective"])
    if not by_task:
        return ""
    found = interquartile_mean_over_tasks([*by_task.values()])
    text = f"{found.value:.1%}"
    if found.low is not None and found.high is not None:
        text += f" [{100 * found.low:.1f}, {100 * found.high:.1f}]"
    errors = [
        trial["normalized_objective_stderr"] for trial, _ in trials if trial["normalized_objective_stderr"] is not None
    ]
    return f"{text} ± {100 * float(np.mean(errors)):.1f}" if errors else text


def _speed(trials: Sequence[tuple[JsonObject, JsonObject]], share: float) -> str:
    found = [
        [reaches(share, trial["curve"]["objective"], trial["curve"][axis], baselines) for trial, baselines in trials]
        for axis in ("num_timesteps", "cpu_seconds")
    ]
    reached = sum(value is not None for value in found[0])
    if 2 * reached <= len(trials):
        return f"{reached} of {len(trials)}"
    tokens, seconds = (np.median([np.inf if value is None else value for value in values]) for values in found)
    text = f"{tokens / 1000:.1f} ({seconds:.0f} s)"
    return text if reached == len(trials) else f"{text}, {reached} of {len(trials)}"
