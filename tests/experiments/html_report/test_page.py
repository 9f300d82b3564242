"""The page as a file: whole, small, escaped, with the run's own numbers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from experiments.html_report import PAGE, write_page
from experiments.html_report.figures import curve_panels, number
from experiments.html_report.flags import flags_of
from experiments.html_report.page import render, tables, trees
from experiments.html_report.runs import read_runs
from experiments.html_report.sampled import Completion, Step
from experiments.html_report.texts import shown
from experiments.report import differences_table, results_table
from experiments.state_tree import state_tree
from tests.experiments.html_report.conftest import EVIL, copy_run
from textenv import exact, html, terminal

LOADING = ("src", "href", "action", "data", "poster", "srcset", "xlink:href")


class Page(HTMLParser):
    """Elements of a page with their attributes, its texts outside scripts, and its data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        (self.scripts if self.inside in ("script", "style") else self.texts).append(data)

    @property
    def data(self) -> Any:
        """What the script reads."""
        return json.loads(next(text for text in self.scripts if text.startswith("{")))

    @property
    def text(self) -> str:
        """All texts."""
        return " ".join("".join(self.texts).split())


def page_of(folder: Path) -> Page:
    """The page of a run."""
    return Page(render(read_runs([folder])))


def test_the_page_is_whole(comparison: Path) -> None:
    """Nothing is loaded: no attribute that loads names anything but a part of the page itself."""
    text = (comparison / PAGE).read_text(encoding="utf-8")
    page = Page(text)
    loaded = [attributes[name] for _, attributes in page.elements for name in LOADING if attributes.get(name)]
    assert [value for value in loaded if not str(value).startswith(("#", "data:,"))] == []
    assert not re.search(r"@import|url\((?!#|\"#)|\bfetch\(|XMLHttpRequest|import\(", text)
    policy = next(attributes["content"] for tag, attributes in page.elements if "http-equiv" in attributes)
    assert "default-src 'none'" in str(policy) and "script-src 'sha256-" in str(policy)
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert len(text) < 400_000


def test_the_numbers_are_those_of_the_run(comparison: Path) -> None:
    """The answer, the table, every point of a curve and every token."""
    page = page_of(comparison)
    summary = json.loads((comparison / "summary.json").read_text())
    objectives = {name: agent["objective"]["value"] for name, agent in summary["agents"].items()}
    best = max(objectives, key=lambda name: objectives[name])
    assert re.search(
        rf"{ {'ppo': 'PPO', 'reinforce': 'REINFORCE'}[best] }(: it)? reaches J = {objectives[best]:.3f}", page.text
    )
    assert f"{summary['baselines']['optimum']:.3f}" in page.text and "exact optimum" in page.text
    for objective in objectives.values():
        assert f"{objective:.3f}" in page.text.replace("\N{MINUS SIGN}", "-")
    rows = [json.loads(line) for line in (comparison / "ppo/seed-1/metrics.jsonl").read_text().splitlines()]
    shown = [point[2] for figure in page.data["figures"] for point in figure]
    for row in rows:
        for metric in ("eval/objective", "eval/kl", "policy/clipfrac_avg", "val/explained_variance"):
            if metric in row:
                text = f"PPO, seed 1 · {row['num_timesteps']:,} tokens · {number(row[metric])}"
                assert text in shown
                assert float(number(row[metric]).replace("\N{MINUS SIGN}", "-")) == pytest.approx(row[metric], abs=6e-4)
    runs = {run["name"]: run for run in page.data["tokens"]}
    assert set(runs) == {f"{name}, seed {seed}" for name in ("PPO", "REINFORCE") for seed in (0, 1)}
    for step in runs["PPO, seed 1"]["steps"]:
        saved = (comparison / f"ppo/seed-1/samples/{step['update']}.jsonl").read_text().splitlines()
        for completion, row in zip(step["completions"], map(json.loads, saved), strict=True):
            assert completion["tokens"] == row["tokens"] and completion["score"] == row["score"]
            for name in ("value", "advantage", "entropy"):
                assert completion["columns"][name] == pytest.approx(row[name], rel=1e-4)
            for shown_as, name in {"exact_value": "value", "cost": "cost", "optimal_q": "optimal_q"}.items():
                assert completion["columns"][shown_as] == pytest.approx(row["exact"][name], rel=1e-4)
            ratios = [a - b for a, b in zip(row["log_prob"], row["ref_log_prob"], strict=True)]
            assert completion["columns"]["log_ratio"] == pytest.approx(ratios, rel=1e-4, abs=1e-9)
            assert completion["columns"]["kl"] == pytest.approx([-0.2 * x for x in ratios], rel=1e-3, abs=2e-6)


def test_the_tables_are_those_of_the_text_report(comparison: Path) -> None:
    """Cell by cell, but for the minus signs; with one seed nothing speaks of an interval."""
    runs = read_runs([comparison])
    texts = [
        results_table(runs.summaries, runs.baselines, runs.untrained),
        differences_table(runs.summaries),
    ]
    page = " ".join(page_of(comparison).text.split())
    for table, ours in zip(texts, tables(runs), strict=True):
        columns = [[*map(str, column.cells)] for column in table.columns]
        shown = [[str(cell).replace("\N{MINUS SIGN}", "-") for cell in row] for row in ours.rows]
        assert shown == [list(row) for row in zip(*columns, strict=True)]
        assert all(str(cell) in page for row in ours.rows for cell in row)
    assert "REINFORCE \N{MINUS SIGN} PPO" in page and "[95% bootstrap interval]" in page
    both = [comparison / name / "seed-0" for name in ("ppo", "reinforce")]
    alone = Page(render(read_runs(both))).text
    assert "PPO \N{MINUS SIGN} REINFORCE" in alone and "bootstrap" not in alone


def test_what_is_not_known_is_left_out(comparison: Path) -> None:
    """REINFORCE has no V: no column of zeros, and no figures of what PPO alone has if it is alone."""
    runs = {run["name"]: run for run in page_of(comparison).data["tokens"]}
    columns = {name: set(run["steps"][-1]["completions"][0]["columns"]) for name, run in runs.items()}
    assert columns["PPO, seed 0"] - columns["REINFORCE, seed 0"] == {"value", "advantage"}
    alone = page_of(comparison / "reinforce" / "seed-0")
    assert "Clip fraction" in page_of(comparison).text and "Clip fraction" not in alone.text
    assert "Explained variance" not in alone.text and "How far does REINFORCE get on Toy-v0" in alone.text


def test_texts_are_shown_and_not_run(evil: Path) -> None:
    """Markup in prompts, completions and tokens: escaped, in the page and in the data of its script."""
    text = render(read_runs([evil]))
    page = Page(text)
    assert [tag for tag, _ in page.elements if tag in ("img", "b")].count("img") == 0
    assert sum(tag == "script" for tag, _ in page.elements) == 2  # the data, and the page's own
    for line in EVIL[:3]:
        assert " ".join(line.split()) in page.text
    prompts = [each["prompt"] for run in page.data["tokens"] for each in run["steps"][0]["completions"]]
    assert set(EVIL[:3]) <= set(prompts)
    assert "\u202e" not in text and "\x1b" not in text and "\x00" not in text
    assert "\u2066\\u202e\u2069gnitirw" in page.text
    assert "שלום" in page.text and "49" not in "".join(prompts)


@pytest.mark.parametrize("one_agent", [True, False])
def test_ten_runs_with_long_texts_fit_into_three_megabytes(one_agent: bool, comparison: Path) -> None:
    """Of each 50 evaluations with 8 completions of 200 tokens, 2,000 updates, held-out prompts, and a large tree."""
    solution = exact.solve(gym.make_vec("textenv/TajMahal-v0"))
    tree = state_tree(solution, exact.evaluate_log_probs(solution.tree, solution.tree.ref_log_probs))
    assert tree["shown"] > 600
    runs = read_runs([comparison])
    run = runs.trials["PPO"][0]
    column: list[float | None] = [-1.2345678 * i for i in range(200)]
    columns = dict.fromkeys(run.steps[0].completions[0].columns, column)

    def long(step: int, number: int) -> Completion:
        text = f"{step} " + "word " * 2000
        return Completion(f"{number} " + "prompt " * 300, text, 1.0, ["word "] * 200, False, columns)

    steps = [Step(i, 100 * i, [long(i, number) for number in range(8)]) for i in range(50)]
    last = run.rows[-1] | {"held_out/objective": 0.5, "eval/gold_score": 0.5}
    rows = [last | {"num_updates": i, "num_timesteps": 100 * i} for i in range(2000)]
    summary = run.summary | {"num_updates": 1999, "num_timesteps": 199_900}
    same = replace(run, steps=steps, rows=rows, tree=tree)
    many = [
        replace(same, agent="ppo" if one_agent else f"agent {i}", seed=i, summary=summary | {"seed": i})
        for i in range(10)
    ]
    runs.trials = {"ppo": many} if one_agent else {each.agent: [each] for each in many}
    text = render(runs)
    assert 200_000 < len(text.encode()) < 3_000_000
    page = Page(text)
    kept = page.data["tokens"]
    assert len(kept) == 10 and all(each["kept"] < each["of"] == 50 for each in kept)
    assert all(each["steps"][0]["update"] == 0 and each["steps"][-1]["update"] == 49 for each in kept)
    assert len(trees(runs)) == (1 if one_agent else 3) and page.text.count("word word") < 100_000


def test_flags_that_differ_have_their_runs(comparison: Path, tmp_path: Path) -> None:
    """Nested settings are flags; what all runs have is there once, an agent's own setting says nothing of others."""
    other = copy_run(comparison / "ppo" / "seed-0", tmp_path / "other", learning_rate=0.5, seed=7, temperature=0.0)
    flags = dict(flags_of(read_runs([comparison, other]).all))
    assert flags["kl-coef"] == [("0.2", "")] and flags["env-args.vocab-size"] == [("3", "")]
    assert [value for value, _ in flags["learning-rate"]] == ["0.001", "0.5"]
    assert "seed 7" in flags["learning-rate"][1][1] and "REINFORCE, seed 0" in flags["learning-rate"][0][1]
    assert ("0.0", flags["learning-rate"][1][1]) in flags["temperature"]  # 0 is a value
    assert len(flags["ppo.clip-range"]) == 1 and not {"agent", "seed", "resume"} & flags.keys()
    assert not any("{" in value for values in flags.values() for value, _ in values)


def test_an_escape_is_read_from_the_left() -> None:
    """Isolated in a line that is written from the right; what is no control character is unchanged."""
    hebrew = "\u05e9\u05dc"
    assert shown("\u202e\x1b" + hebrew) == "\u2066\\u202e\\x1b\u2069" + hebrew
    assert shown(f"{hebrew} <b>\n\t") == f"{hebrew} <b>\n\t"  # control


def test_a_figure_of_zeros_is_left_out(comparison: Path) -> None:
    """Of a training metric; an evaluation that is 0 tells something."""
    runs = read_runs([comparison])
    titles = [[panel.title for panel in curve_panels(runs)]]
    for run in runs.all:
        zeros = dict.fromkeys(("policy/clipfrac_avg", "eval/score"), 0.0)
        run.rows[:] = [row | {name: zero for name, zero in zeros.items() if name in row} for row in run.rows]
    titles.append([panel.title for panel in curve_panels(runs)])
    assert set(titles[0]) - set(titles[1]) == {"Clip fraction"} and "Score" in titles[1]


def test_the_trees_are_of_the_best_agents(comparison: Path) -> None:
    """By the mean over their seeds, not by that of the first one."""
    runs = read_runs([comparison])
    for name, objectives in {"PPO": [0.9, 0.1], "REINFORCE": [0.6, 0.7]}.items():
        for run, objective in zip(runs.trials[name], objectives, strict=True):
            run.summary["objective"] = objective
    assert [tree["name"] for tree in trees(runs)] == ["REINFORCE, seed 0", "PPO, seed 0"]


def test_the_page_of_one_run_needs_its_folder_alone(comparison: Path, tmp_path: Path) -> None:
    """A trial of a comparison, and several of them, into a file."""
    write_page([comparison / "ppo" / "seed-0", comparison / "ppo" / "seed-1"], tmp_path / "two.html")
    page = Page((tmp_path / "two.html").read_text(encoding="utf-8"))
    assert {run["name"] for run in page.data["tokens"]} == {"PPO, seed 0", "PPO, seed 1"}
    assert "PPO reaches J =" in page.text and "no policy has a higher score at its KL" in page.text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.23456, "1.235"), (-0.5, "-0.500"), (0.0, "0.000"), (-0.0, "0.000"), (-0.0002, "-0.0002"), (1e-9, "0.000")],
)
def test_numbers(value: float, text: str) -> None:
    """Three digits after the point, four of a small one; no -0."""
    assert number(value) == text.replace("-", "\N{MINUS SIGN}")


def test_the_page_has_the_tree_of_a_toy(comparison: Path) -> None:
    """A state to open for each prompt, with the probabilities of the three policies, of the best agents."""
    runs = read_runs([comparison])
    best = max(runs.all, key=lambda run: run.summary["objective"] if run.seed == 0 else -9.0)
    assert best.tree is not None
    page = Page(render(runs))
    section = page.text[page.text.index("Where a token leads") :]
    assert section.index(f"{best.name}, J* \N{MINUS SIGN} J = {number(best.tree['gap'])}") > 0
    opened = [attributes for tag, attributes in page.elements if tag == "details"]
    assert len(opened) > len(best.tree["prompts"])
    first = best.tree["prompts"][0]["children"][0]
    tooltips = [dict(attributes).get("title") or "" for tag, attributes in page.elements if tag == "span"]
    assert any(f"π* {100 * first['best']:.1f}%" in text for text in tooltips)


def test_the_costliest_path_of_the_tree_is_open(comparison: Path) -> None:
    """From the prompt that costs most, which has the strongest colour; of the agents the first one's tree."""
    runs = read_runs([comparison])
    page = Page(render(runs))
    tints = [re.findall(r"--(own|all):([\d.]+)%", str(attributes.get("style"))) for _, attributes in page.elements]
    shares = [dict(each) for each in tints if each]
    assert sum(float(each["all"]) == 100 for each in shares) >= len(trees(runs)) == 2
    assert all(float(each["own"]) <= float(each["all"]) <= 100 for each in shares)
    first = trees(runs)[0]
    costs = [state["subtree_cost"] for state in first["path"]]
    assert costs == sorted(costs, reverse=True) and costs[0] == max(each["subtree_cost"] for each in first["prompts"])
    opened = [attributes for tag, attributes in page.elements if tag == "details" and "open" in attributes]
    inner = sum(bool(state["children"]) for tree in trees(runs) for state in tree["path"])
    assert len(opened) == 1 + inner


def test_credit_has_the_same_colours_everywhere() -> None:
    """Blue where it is earned and orange where it is lost: on the page, in a notebook, in a terminal."""
    css = (resources("experiments.html_report") / "style.css").read_text(encoding="utf-8")
    found = dict(re.findall(r"--(earned|lost): light-dark\(#(\w{6})", css))
    page = [",".join(str(x) for x in bytes.fromhex(found[name])) for name in ("earned", "lost")]
    assert page == [html.POSITIVE, html.NEGATIVE]
    cube = [0, 95, 135, 175, 215, 255]  # the levels of the 256 colours of a terminal
    for escape, rgb in ((terminal.BLUE, html.POSITIVE), (terminal.ORANGE, html.NEGATIVE)):
        index = int(escape.removesuffix("m").rpartition(";")[2]) - 16
        shown = [cube[index // 36], cube[index // 6 % 6], cube[index % 6]]
        expected = [int(x) for x in rgb.split(",")]
        assert sorted(range(3), key=lambda i: shown[i]) == sorted(range(3), key=lambda i: expected[i])
