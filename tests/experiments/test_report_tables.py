"""The tables and `summary.json` of a comparison, computed by hand from its trials."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.console import plain_console
from experiments.report import LONGEST_NAME, differences_table, report, results_table, write_report

BASELINES = {"reference": 1.0, "reference_score": 2.0, "reference_gold_score": None, "optimum": 3.0}
SEEDS = 8
REACHED = {"ppo": [100, 200, 300, 400, 500, 600, 700, 9000], "grpo": [50] * 7 + [None], "rloo": [None] * 8}


def trial(agent: str, number: int, seed: int) -> dict[str, Any]:
    """A summary whose objective is that of the seed, the same for all agents, and a shift of its own."""
    objective = [1.7, 2.9, 2.1, 0.4, 2.6, 2.2, 2.5, 1.9][seed] + 0.1 * number
    return {
        "agent": agent,
        "seed": seed,
        "objective": objective,
        "score": 10 * objective,
        "kl": objective / 10,
        "normalized_objective": (objective - 1.0) / 2.0,
        "tokens_to_90": REACHED[agent][seed],
        "tokens_per_second": 1000.0 + seed**2,
        "baselines": BASELINES,
        "num_timesteps": 200,
        "num_updates": 3,
        "gaps": [],
        "completions": [{"prompt": "a", "completion": f"{agent} {seed}", "score": 0.5}],
    }


def trials_of() -> dict[str, list[dict[str, Any]]]:
    """Three agents with the same seeds, in different orders."""
    orders = {"ppo": range(SEEDS), "grpo": reversed(range(SEEDS)), "rloo": (3, 1, 0, 2, 7, 6, 5, 4)}
    return {name: [trial(name, i, seed) for seed in order] for i, (name, order) in enumerate(orders.items())}


def of_two_seeds() -> dict[str, list[dict[str, Any]]]:
    """The trials of seeds 1 and 4: that order of ppo and rloo, the other one of grpo."""
    return {name: [each for each in own if each["seed"] in (1, 4)] for name, own in trials_of().items()}


def middle(values: list[float]) -> float:
    """The mean of the middle four of eight."""
    return float(np.mean(sorted(values)[2:6]))


def cells(table: Any) -> dict[str, list[str]]:
    """The columns of a table by their headers."""
    return {str(column.header): list(column.cells) for column in table.columns}


def test_the_results_are_interquartile_means_over_seeds() -> None:
    """Of every column; tokens to 90% where all seeds reach it, else how many do."""
    trials = trials_of()
    found = cells(results_table(trials, BASELINES, {}))
    rows = {name: {header: column[1 + i] for header, column in found.items()} for i, name in enumerate(trials)}
    for name, own in trials.items():
        columns = {key: middle([each[key] for each in own]) for key in ("objective", "score", "kl")}
        for header, key in (("objective J", "objective"), ("score", "score"), ("KL to reference", "kl")):
            assert rows[name][header].startswith(f"{columns[key]:.3f} [")
        share = f"{middle([each['normalized_objective'] for each in own]):.1%}"
        assert re.fullmatch(rf"{re.escape(share)} \[\d+\.\d, \d+\.\d\]", rows[name]["share of the way"])
        assert rows[name]["tokens/s"] == f"{middle([1000.0 + seed**2 for seed in range(SEEDS)]):.0f}"
    assert [rows[name]["tokens to 90%"] for name in trials] == ["450", "7 of 8 seeds", "0 of 8 seeds"]
    assert found["objective J"][0] == "1.000" and found["objective J"][-1] == "3.000"


def test_differences_are_paired_by_seed() -> None:
    """Whatever the order of the trials: the agents differ by the same amount on every seed, so the interval is a point.

    Control: where one seed differs more, the interval has a width.
    """
    trials = trials_of()
    assert cells(differences_table(trials)) == {
        "": ["ppo - grpo", "ppo - rloo", "grpo - rloo"],
        "mean difference": [
            "-0.100 [-0.100, -0.100]",
            "-0.200 [-0.200, -0.200]",
            "-0.100 [-0.100, -0.100]",
        ],
    }
    trials["rloo"][2]["objective"] += 0.8
    assert cells(differences_table(trials))["mean difference"][1].startswith("-0.300 [-0.")
    assert "[-0.300, -0.300]" not in cells(differences_table(trials))["mean difference"][1]


def test_a_long_name_is_not_cut(tmp_path: Path) -> None:
    """In the file of the report, where numbers are wrapped instead; a name too long for that is wrapped too."""
    own = trials_of()["ppo"]
    for name in ("path_consistency", "path_consistency_with_a_name_of_fifty_letters_or_so"):
        write_report(
            tmp_path, [results_table({name: own}, BASELINES, {})], plain_console(width=120, file=io.StringIO())
        )
        text = (tmp_path / "report.txt").read_text()
        column = "".join(line[1 : line.index("│", 1)].strip() for line in text.splitlines() if line.startswith("│"))
        assert name in column and "…" not in text
        assert (name in text) == (len(name) <= LONGEST_NAME)  # control


def test_tables_of_few_seeds_say_that_their_intervals_are_too_narrow() -> None:
    """Fewer than ten; the interval of one seed is not shown."""
    trials = trials_of()
    many = {name: [{**own[i % SEEDS], "seed": i} for i in range(10)] for name, own in trials.items()}
    for table in (lambda x: results_table(x, BASELINES, {}), differences_table):
        assert "too narrow" in str(table(trials).caption) and table(many).caption is None
    one = {name: own[:1] for name, own in trials.items()}
    assert cells(results_table(one, BASELINES, {}))["objective J"][1] == "1.700"
    assert "over 8 seeds" in str(results_table(trials, BASELINES, {}).title)


def test_the_summary_of_a_comparison_has_its_numbers(tmp_path: Path) -> None:
    """Baselines, interquartile means, tokens to 90% of each seed, and differences of all pairs of agents."""
    trials = of_two_seeds()
    untrained = {"best of 4": {"objective": 2.0, "score": 1.0, "kl": 0.5}}
    before = [{"prompt": "a", "completion": "first", "score": 0.25}]
    report(tmp_path, trials, untrained, before, plain_console())
    content = json.loads((tmp_path / "summary.json").read_text())
    assert content["baselines"] == BASELINES and content["untrained"]["best of 4"]["score"] == 1.0
    for name, own in trials.items():
        for key in ("objective", "score", "kl", "normalized_objective", "tokens_per_second"):
            values = [each[key] for each in own]
            assert content["agents"][name][key]["value"] == pytest.approx(np.mean(values))
            assert content["agents"][name][key]["low"] == pytest.approx(min(values))
            assert content["agents"][name][key]["high"] == pytest.approx(max(values))
        assert content["tokens_to_90"][name] == [each["tokens_to_90"] for each in own]
    text = (tmp_path / "report.txt").read_text()
    assert "first" in text and "ppo 1" in text and "grpo 4" in text and "grpo 1" not in text


def test_seeds_that_an_agent_has_not_finished_are_not_compared() -> None:
    """Differences are over the seeds that all agents have; without one there is none."""
    trials = trials_of()
    trials["ppo"] = [each for each in trials["ppo"] if each["seed"] not in (0, 3)]
    trials["grpo"] = [{**each, "objective": each["objective"] + 5 * (each["seed"] == 3)} for each in trials["grpo"]]
    found = cells(differences_table(trials))["mean difference"]
    assert found == ["-0.100 [-0.100, -0.100]", "-0.200 [-0.200, -0.200]", "-0.100 [-0.100, -0.100]"]
    trials["rloo"] = [each for each in trials["rloo"] if each["seed"] == 3]
    assert cells(differences_table(trials))["mean difference"] == []
