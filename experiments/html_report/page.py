"""Writes the page: data of runs into a template that escapes all of it, with style and script inlined."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files as resources
from pathlib import Path

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

import textenv
from agents import files
from agents.files import JsonObject
from experiments.console import score_text
from experiments.errors import FlagError
from experiments.html_report.answer import answer, caveats, question
from experiments.html_report.figures import curve_panels, drawing, most_points, number, plane_panel
from experiments.html_report.flags import flags_of
from experiments.html_report.picture import PICTURE, write_picture
from experiments.html_report.run import Run
from experiments.html_report.runs import Runs, read_runs
from experiments.html_report.sampled import Step, within
from experiments.html_report.svg import AGENTS, WIDE, Drawing
from experiments.html_report.texts import shown
from experiments.report_rows import Cell, Rows, differences_rows, results_rows
from experiments.statistics import interquartile_mean
from textenv.data import printable

PAGE = "report.html"
GENERATOR = "Written by textenv"  # in the footer of each page, by which it is known
SHORT = re.compile(r"[\n\t]")  # one line, whatever a token is
MINUS = re.compile(r"(?<![\w-])-(?=\d)")  # before a number
TOKENS_SIZE = 1_200_000  # bytes of the sampled tokens of all runs
TREES = 3  # of the best agents
SAMPLES, CHARACTERS = 8, 600  # prompts with their completions before and after; of each text


def write_page(folders: Sequence[Path], path: Path, picture: Path | None = None) -> list[str]:
    """Writes the page of the runs in some folders; returns the sentences on it about what is missing.

    Args:
        folders: of the runs.
        path: of the page.
        picture: where its curves are written too, as a picture; None: nowhere.

    Raises:
        FlagError, DamagedFile: see `read_runs`.
        FlagError: the file is there and is no page of this kind, so that no other file is lost.
        StorageError: the page cannot be written.
    """
    runs = read_runs(folders)
    if path.is_file() and GENERATOR.encode() not in path.read_bytes():
        raise FlagError(f"{str(path)!r} holds something else than a report: it is left as it is.")
    files.write_text(path, render(runs))
    if picture is not None:
        write_picture(runs, picture)
    return runs.notes


def page_note(folder: Path) -> str:
    """Writes page and picture into the folder of a run that has ended; returns where the page is, or why there is none.

    Raises:
        StorageError: they cannot be written.
    """
    try:
        write_page([folder], folder / PAGE, folder / PICTURE)
    except (FlagError, files.DamagedFile) as error:
        return f"no page: {error}"
    return f"see {folder / PAGE}"


def render(runs: Runs, reload: float | None = None) -> str:
    """Returns the page; with `reload` it reloads itself after so many seconds."""
    place = resources("experiments.html_report")
    names = ("template.html", "tree.html", "style.css", "script.js")
    parts = {name: (place / name).read_text(encoding="utf-8") for name in names}
    environment = Environment(
        loader=DictLoader(parts), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["printable"] = shown
    first, drawings = drawing(plane_panel(runs), WIDE), [drawing(panel) for panel in curve_panels(runs)]
    sampled = tokens(runs.all)
    digest = hashlib.sha256(parts["script.js"].encode()).digest()
    return environment.get_template("template.html").render(
        question=question(runs),
        answer=answer(runs),
        caveats=caveats(runs),
        agents=[(name, i % len(AGENTS), len(trials)) for i, (name, trials) in enumerate(runs.trials.items())],
        colours={name: i % len(AGENTS) for i, name in enumerate(runs.trials)},
        many=any(len(trials) > 1 for trials in runs.trials.values()),
        thinned=most_points(runs) if any(len(run.rows) > most_points(runs) for run in runs.all) else 0,
        tables=tables(runs),
        curves=[_inline(each) for each in drawings],
        trees=trees(runs),
        percent=lambda share: f"{100 * share:.1f}%",
        number=number,
        plane=_inline(first),
        has_tokens=bool(sampled),
        data={"figures": [each.points for each in (first, *drawings)], "tokens": sampled, "reload": reload},
        samples=samples(runs),
        flags=flags_of(runs.all),
        style=Markup(parts["style.css"]),
        script=Markup(parts["script.js"]),
        script_hash=f"sha256-{base64.b64encode(digest).decode()}",
        written=f"{GENERATOR} {textenv.__version__}",
    )


def trees(runs: Runs) -> list[JsonObject]:
    """The tree of the first seed of the best agents, by their interquartile mean, where there is one."""
    reached = {name: interquartile_mean([run.summary["objective"] for run in of]) for name, of in runs.trials.items()}
    firsts = [(-reached[name].value, i, of[0]) for i, (name, of) in enumerate(runs.trials.items()) if of[0].tree]
    firsts.sort(key=lambda each: each[0])
    return [{**_tree(run.tree or {}), "name": run.name, "colour": i % len(AGENTS)} for _, i, run in firsts[:TREES]]


def _tree(tree: JsonObject) -> JsonObject:
    """A tree with `most`, the largest cost in it, and `path`: its costliest states, while a tenth of that is below."""
    path: list[JsonObject] = []
    states, most = tree["prompts"], 1e-12
    while states := [state for state in states if state.get("subtree_cost", 0.0) >= most / 10]:
        path.append(max(states, key=lambda state: float(state["subtree_cost"])))
        most, states = max(most, path[0]["subtree_cost"]), path[-1]["children"]
    return {**tree, "most": most, "path": path}


def _inline(figure: Drawing) -> JsonObject:
    return {**figure._asdict(), "svg": Markup(figure.svg)}


def tables(runs: Runs) -> list[Rows]:
    """The tables of the text report. Minus signs are no hyphens; a mean over one seed is that seed."""
    results = results_rows(runs.summaries, runs.baselines, runs.untrained)
    found = [results._replace(title="") if max(map(len, runs.trials.values())) == 1 else results]
    if len(runs.trials) > 1 and (between := differences_rows(runs.summaries)).rows:
        found.append(between)
    for table in found:
        for row in table.rows:
            name = row[0]._replace(value=row[0].value.replace(" - ", " \N{MINUS SIGN} "))
            row[:] = [name, *(Cell(*(MINUS.sub("\N{MINUS SIGN}", text) for text in cell)) for cell in row[1:])]
    return found


def tokens(runs: Iterable[Run]) -> list[JsonObject]:
    """The sampled completions of the runs, the best first, as the page's script reads them, within `TOKENS_SIZE`."""
    having = sorted((run for run in runs if run.steps), key=lambda run: -run.summary["objective"])
    return [_tokens(run, within(run.steps, TOKENS_SIZE // len(having))) for run in having]


def _tokens(run: Run, steps: list[Step]) -> JsonObject:
    objective = {row["num_updates"]: row.get("eval/objective") for row in run.rows}
    return {
        "name": run.name,
        "kept": len(steps),
        "of": len(run.steps),
        "finished": run.finished,
        "steps": [
            {
                "update": step.update,
                "timesteps": step.timesteps,
                "objective": objective.get(step.update),
                "completions": [
                    {
                        "prompt": shown(each.prompt),
                        "score": each.score,
                        "tokens": [shown(SHORT.sub(lambda found: printable(found[0]), token)) for token in each.tokens],
                        "stopped": each.stopped,
                        "columns": each.columns,
                    }
                    for each in step.completions
                ],
            }
            for step in steps
        ],
    }


def samples(runs: Runs) -> list[JsonObject]:
    """Completions before and after the training, by prompt, of each agent's first seed; of long texts the beginning."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for name, trials in runs.trials.items():
        steps = trials[0].steps
        for step, when in [(steps[0], "before"), (steps[-1], name)] if len(steps) > 1 else []:
            for each in step.completions:
                row = (when, _beginning(each.completion), MINUS.sub("\N{MINUS SIGN}", score_text(each.score)))
                if row not in found.setdefault(each.prompt, []):
                    found[each.prompt].append(row)
    return [
        {"prompt": _beginning(prompt), "rows": sorted(rows, key=lambda row: row[0] != "before")}
        for prompt, rows in list(found.items())[:SAMPLES]
    ]


def _beginning(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[:CHARACTERS] + " …"
