"""The report of a comparison: tables of results, and completions before and after training."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from agents import files
from agents.files import JsonObject
from experiments.console import plain_console, score_text
from experiments.metrics_file import describe_gaps
from experiments.report_rows import Rows, Summaries, differences, differences_rows, mean_row, results_rows
from experiments.share import describe_baselines
from textenv.data import printable

LONGEST_NAME = 40  # of an agent, in one line


def report(
    folder: Path,
    summaries: Summaries,
    untrained: Mapping[str, JsonObject],
    before: list[JsonObject],
    console: Console,
) -> None:
    """Prints the report and writes it to the folder: `report.txt`, `summary.json`, `samples.txt`.

    Args:
        folder: the folder of the comparison.
        summaries: by agent, one summary per seed.
        untrained: measured values of each baseline other than the reference.
        before: completions of the policy that all agents start from.
        console: where to print.
    """
    baselines = next(iter(summaries.values()))[0]["baselines"]
    rows = {name: mean_row(trials) for name, trials in summaries.items()}
    content = {
        "baselines": baselines,
        "untrained": untrained,
        "agents": {name: {key: value._asdict() for key, value in row.items()} for name, row in rows.items()},
        "tokens_to_90": {name: [trial["tokens_to_90"] for trial in trials] for name, trials in summaries.items()},
        "gaps": {name: [trial["gaps"] for trial in trials] for name, trials in summaries.items()},
        "paired_differences": {name: value._asdict() for name, value in differences(summaries).items()},
    }
    files.write_json(folder / "summary.json", content)
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
    """One row per agent, see `results_rows`."""
    return _table(results_rows(summaries, baselines, untrained))


def differences_table(summaries: Summaries) -> Table:
    """Differences of the objective between agents, see `differences_rows`."""
    return _table(differences_rows(summaries))


def _table(rows: Rows) -> Table:
    table = Table(title=rows.title, caption=rows.caption or None)
    names = max((len(str(row[0])) for row in rows.rows), default=0)
    for column in rows.header:
        width = None if column else min(names, LONGEST_NAME)  # numbers may be wrapped; a name that is cut is another
        table.add_column(column, justify="right" if column else "left", min_width=width, overflow="fold")
    for i, row in enumerate(rows.rows):
        table.add_row(*map(str, row), end_section=i in rows.rules)
    return table


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
