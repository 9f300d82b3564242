"""The report of a comparison: its table, and the gold score where there is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.policy import TransformerPolicy
from experiments.baselines import best_of_n
from experiments.console import plain_console
from experiments.evaluation import Evaluator, sample_completions
from experiments.metrics_file import read_metrics
from experiments.report import report, results_table, samples_table
from experiments.saved_run import EvaluateConfig, evaluate
from experiments.trial import run_trial
from tests.helpers.commands import save_random_policy, tiny
from textenv import exact


@pytest.mark.parametrize("hacking", [True, False])
def test_the_gold_score_is_reported_where_there_is_one(
    hacking: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a trial's summary and metrics, the comparison's summary.json and table, and by `evaluate`; else nowhere."""
    flags = {"env": "textenv/RewardHacking-v0", "env_args": {}} if hacking else {}
    configs = [tiny(**flags, total_timesteps=150, num_evals=1, seed=seed) for seed in (0, 1)]
    runs = [tmp_path / "ppo" / f"seed-{seed}" for seed in (0, 1)]
    env = configs[0].make_env()
    initial = save_random_policy(env, tmp_path / "initial")
    for config, run in zip(configs, runs, strict=True):
        run_trial(config, run, initial)
    trials = [json.loads((run / "summary.json").read_text()) for run in runs]
    before = sample_completions(env, TransformerPolicy.from_pretrained(initial), [0])
    untrained = {"best of 4": best_of_n(Evaluator.for_env(env, 16), 4)}
    report(tmp_path, {"ppo": trials}, untrained, before, plain_console())
    table = (tmp_path / "report.txt").read_text()
    lost = [trials[0] | {"gaps": [[0, 2]]}, trials[1]]
    report(tmp_path, {"ppo": lost}, untrained, before, plain_console())
    sentence = "ppo, seed 0: metrics.jsonl lacks the rows of updates 0 to 2."
    assert sentence in (tmp_path / "report.txt").read_text() and "lacks the rows" not in table
    capsys.readouterr()
    content = json.loads((tmp_path / "summary.json").read_text())
    evaluate(EvaluateConfig(run=runs[0]))
    measured = json.loads(capsys.readouterr().out)
    rows = [row for row in read_metrics(runs[0]) if "eval/objective" in row]

    assert ("gold score" in table) == ("gold_score" in content["agents"]["ppo"]) == hacking
    assert ("gold_score" in content["untrained"]["best of 4"]) == hacking and "best of 4" in table
    assert ("gold_score" in measured) == ("gold_score" in trials[0]) == hacking
    assert [("eval/gold_score" in row) for row in rows] == [hacking] * len(rows) and len(rows) == 2
    assert ("objective/gold_scores" in rows[-1]) == hacking
    baseline = content["baselines"]["reference_gold_score"]
    if not hacking:
        assert baseline is None
        return
    tree = exact.enumerate_tree(env)
    trained = [exact.evaluate(tree, TransformerPolicy.from_pretrained(run / "checkpoint")) for run in runs]
    gold = [known.gold_score for known in trained]
    assert [trial["gold_score"] for trial in trials] == pytest.approx(gold, abs=1e-6)
    assert measured["gold_score"] == rows[-1]["eval/gold_score"] == trials[0]["gold_score"] != trials[0]["score"]
    assert content["agents"]["ppo"]["gold_score"]["value"] == pytest.approx(np.mean(gold), abs=1e-6)
    assert baseline == pytest.approx(exact.evaluate_log_probs(tree, tree.ref_log_probs).gold_score)


def summary_of(**numbers: float | None) -> dict[str, Any]:
    """The summary of a trial, as far as the table reads it."""
    own = {"objective": 0.11, "score": 0.22, "kl": 0.33, "tokens_per_second": 44.0, "tokens_to_90": None}
    return {"seed": 0} | own | numbers


@pytest.mark.parametrize("gold", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_each_number_of_the_table_is_in_its_column(gold: bool, known: bool) -> None:
    """With and without gold score and optimum, every row has its values under the right headers."""
    extra = {"gold_score": 0.55} if gold else {}
    trials = [summary_of(**extra, normalized_objective=0.5 if known else None, tokens_to_90=x) for x in (10.0, None)]
    untrained = {"best of 3": {"objective": 5.5, "score": 6.6, "kl": 0.7} | ({"gold_score": 8.8} if gold else {})}
    baselines = {"reference": 1.1, "reference_score": 2.2, "reference_gold_score": 3.3 if gold else None}
    agents = {"ppo": trials[:1], "a2c": trials[1:]}
    table = results_table(agents, baselines | {"optimum": 9.9 if known else None}, untrained)
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert len({len(column) for column in cells.values()}) == 1
    rows = ["reference", "best of 3", "ppo", "a2c"] + ["exact optimum"] * known
    found = {name: [column[i] for i in range(len(rows))] for name, column in cells.items()}
    assert found.pop("") == rows
    expected = {
        "objective J": ["1.100", "5.500", "0.110", "0.110", "9.900"],
        "score": ["2.200", "6.600", "0.220", "0.220", ""],
        "gold score": ["3.300", "8.800", "0.550", "0.550", ""],
        "KL to reference": ["0.000", "0.700", "0.330", "0.330", ""],
        "share of the way": ["0.0%", "50.0%", "50.0%", "50.0%", "100.0%"],
        "tokens to 90%": ["", "", "10", "not reached", ""],
        "tokens/s": ["", "", "44", "44", ""],
    }
    if not gold:
        del expected["gold score"]
    if not known:
        del expected["share of the way"], expected["tokens to 90%"]
    assert list(found) == list(expected)
    if known:
        both = results_table({"ppo": trials}, baselines | {"optimum": 9.9}, {})
        assert next(list(c.cells) for c in both.columns if c.header == "tokens to 90%")[1] == "1 of 2 seeds"
    assert found == {name: values[: len(rows)] for name, values in expected.items()}


def test_control_characters_of_samples_are_shown(tmp_path: Path) -> None:
    """In the table and in samples.txt, where each completion is one line."""
    row = {"prompt": "a\x1b[31m\nb", "completion": "\x07c\nd\u202e", "score": 1.0}
    table = samples_table({"ppo": [summary_of() | {"completions": [row]}]}, [row], tmp_path)
    lines = (tmp_path / "samples.txt").read_text().splitlines()
    assert lines[0] == r"a\x1b[31m\nb" and len(lines) == 3
    assert all(r"\x07c\nd\u202e   (1.00)" in line for line in lines[1:])
    with (tmp_path / "table.txt").open("w") as file:
        plain_console(width=120, file=file).print(table)
    printed = (tmp_path / "table.txt").read_text()
    assert r"a\x1b[31m" in printed and not set(printed) & set("\x1b\x07\u202e")
