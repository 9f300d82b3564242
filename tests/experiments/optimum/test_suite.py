"""The suite: what it trains, what it keeps, and that it resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.policy import TransformerPolicy
from experiments.errors import FlagError, Unfinished
from experiments.launch import Ended, Failure
from experiments.optimum import OptimumConfig, optimum, run, tasks
from experiments.optimum.table import Group, gap_table, shares_table, speed_table, step_size_table
from experiments.optimum.tasks import suite_tasks
from experiments.optimum.variants import FACTORS, GRPO_BETAS, variants
from experiments.share import normalized_objective, reaches
from experiments.trial import run_trial
from textenv import exact

SMALL = {"agents": ["reinforce", "rloo"], "peers": [], "seeds": [0, 1], "toy_timesteps": 300, "num_workers": 1}


@pytest.fixture
def one_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite whose only toy is small."""
    monkeypatch.setattr(tasks, "TOYS", ((3, 2, 2, 0.3),))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials run in this process, which saves the seconds that imports take."""

    def run_here(trials: Any, folders: Any, initial: Path, *rest: Any) -> list[Ended]:
        pairs = zip(trials, folders, strict=True)
        return [Ended(i, run_trial(trial, folder, initial)) for i, (trial, folder) in enumerate(pairs)]

    monkeypatch.setattr(run, "run_trials", run_here)


def trial_of(**numbers: Any) -> dict[str, Any]:
    """A trial as it is kept."""
    own = {
        "name": "ppo",
        "label": "ppo",
        "agent": "ppo",
        "factor": 1.0,
        "settings": {},
        "peer": False,
        "normalized_objective": 0.5,
    }
    return own | numbers


def test_a_suite_is_kept_and_resumes(one_toy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """J, share, curve and gap of each trial are those of its checkpoint; the command run again trains nothing."""
    config = OptimumConfig(tasks=["toys"], out=tmp_path / "suite", **SMALL)  # type: ignore[arg-type]
    folder = optimum(config)
    kept = json.loads((folder / "toy-0.json").read_text())
    assert [(trial["agent"], trial["seed"]) for trial in kept["trials"]] == [
        ("reinforce", 0), ("rloo", 0), ("reinforce", 1), ("rloo", 1),
    ]  # fmt: skip
    env = config.trial(config.suite()[0], variants(config.suite()[0], ["rloo"], [], [0])[0]).make_env()
    solution = exact.solve(env)
    for trial in kept["trials"]:
        policy = TransformerPolicy.from_pretrained(
            folder / "toy-0" / trial["agent"] / f"seed-{trial['seed']}/checkpoint"
        )
        known = exact.evaluate(env, policy)
        assert trial["objective"] == pytest.approx(known.objective, abs=1e-6)
        assert trial["normalized_objective"] == pytest.approx(solution.normalized_objective(known.objective), abs=1e-5)
        assert trial["curve"]["objective"][-1] == pytest.approx(known.objective, abs=1e-4)
        assert trial["curve"]["num_timesteps"][0] == 0 and trial["curve"]["cpu_seconds"][-1] > 0
        assert (trial["gap"] is None) == (trial["seed"] == 1)
        if trial["gap"]:
            gap = solution.objective - known.objective
            assert sum(trial["gap"]["by_token"]) == pytest.approx(gap, abs=1e-6)
            assert len(trial["gap"]["by_token"]) == 2 and trial["gap"]["states"][0]["cost"] <= gap + 1e-9
    report = (folder / "report.txt").read_text()
    assert "share of the way to the optimum" in report and "where the gap to J* is" in report
    assert (folder / "curves.png").stat().st_size > 10_000
    monkeypatch.setattr(run, "run_trials", lambda *_: pytest.fail("trained again"))
    optimum(OptimumConfig(tasks=["toys"], out=folder, resume=True, **SMALL))  # type: ignore[arg-type]
    assert (folder / "report.txt").read_text() == report


def test_trials_that_failed_are_run_again(
    one_toy: None, here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has finished is kept and reported, with a list of what failed; the next call runs that alone."""
    ran, run_trials = [], run.run_trials

    def failing(trials: Any, folders: Any, *rest: Any) -> Any:
        ended = run_trials(trials, folders, *rest)
        ran.extend((trial.agent, trial.seed) for trial in trials)
        broken = Failure("ValueError: no", "")
        return [
            end._replace(failure=broken) if (trial.agent, trial.seed) == ("rloo", 1) and len(ran) == 4 else end
            for trial, end in zip(trials, ended, strict=True)
        ]

    monkeypatch.setattr(run, "run_trials", failing)
    with pytest.raises(Unfinished, match="1 trials failed. toy-0, rloo, seed 1: ValueError: no"):
        optimum(OptimumConfig(tasks=["toys"], out=tmp_path, **SMALL))  # type: ignore[arg-type]
    assert len(json.loads((tmp_path / "toy-0.json").read_text())["trials"]) == 3
    assert "rloo" in (tmp_path / "report.txt").read_text()
    optimum(OptimumConfig(tasks=["toys"], out=tmp_path, resume=True, **SMALL))  # type: ignore[arg-type]
    assert ran[4:] == [("rloo", 1)]
    assert len(json.loads((tmp_path / "toy-0.json").read_text())["trials"]) == 4


def test_what_is_trained_on_which_task() -> None:
    """Ten toys in sizes 4 to 8; on the stories three step sizes, and three betas of GRPO; TRL nowhere else."""
    suite = suite_tasks(["toys", "taj_mahal", "reward_hacking", "stories"], "model", "prompts.txt")
    assert len(suite) == 13 and len({task.name for task in suite}) == 13
    toys = [task.flags["env_args"] for task in suite if task.group == "toys"]
    assert [toy["task_seed"] for toy in toys] == list(range(10))  # type: ignore[index]
    peers = ["sb3-ppo", "trl-rloo", "trl-grpo"]
    on_toy, on_stories = (variants(task, ["ppo", "rloo"], peers, [0, 1, 2]) for task in (suite[0], suite[-1]))
    assert sorted({v.agent for v in on_toy}) == ["ppo", "rloo", "sb3-ppo"] and len(on_toy) == 9
    assert all(v.factor == 1 for v in on_toy)
    own = [v for v in on_stories if not v.peer]
    plain = sorted((v.seed, v.factor) for v in own if v.agent == "ppo" and not v.settings)
    assert plain == [(0, 0.25), (0, 1), (0, 4), (1, 1), (2, 1)]
    assert [v.name for v in own if v.agent == "ppo" and v.settings] == ["ppo lr_schedule=linear"]
    equal = [
        v.settings for v in on_stories if v.agent in ("rloo", "trl-rloo") and v.factor == 1 and "n_epochs" in v.settings
    ]
    assert equal == [{"num_generations": 16, "n_epochs": 4}] * 2
    theirs = [(v.agent, v.factor) for v in on_stories if v.peer]
    assert theirs.count(("trl-grpo", 4.0)) == len(GRPO_BETAS) and len(theirs) == len(FACTORS) * (2 + len(GRPO_BETAS))
    folders = [v.folder(Path("x")) for v in on_stories]
    assert len(set(folders)) == len(folders) and not any(" " in str(folder) for folder in folders)


def test_a_curve_reaches_a_share_between_two_evaluations() -> None:
    """Interpolated on either axis; None where it does not."""
    curve = {"num_timesteps": [0, 100, 200], "cpu_seconds": [0.0, 1.0, 5.0], "objective": [1.0, 2.0, 3.0]}
    baselines = {"reference": 1.0, "optimum": 5.0}
    assert normalized_objective(2.0, baselines) == 0.25
    assert reaches(0.375, curve["objective"], curve["num_timesteps"], baselines) == pytest.approx(150)
    assert reaches(0.375, curve["objective"], curve["cpu_seconds"], baselines) == pytest.approx(3.0)
    assert reaches(0.6, curve["objective"], curve["num_timesteps"], baselines) is None


def test_of_a_peer_the_best_is_shown_and_of_ours_the_default() -> None:
    """Whatever our own agents reach at other step sizes."""
    trials = [
        trial_of(),
        trial_of(name="ppo, step size x 4", factor=4.0, normalized_objective=0.9),
        trial_of(name="trl", agent="trl", peer=True, normalized_objective=0.1),
        trial_of(name="trl, step size x 4", agent="trl", factor=4.0, peer=True, normalized_objective=0.2),
        trial_of(name="trl b", agent="trl", settings={"kl_coef": 1}, peer=True, normalized_objective=0.15),
    ]
    assert Group("x", [(trial, {}) for trial in trials]).shown() == ["ppo", "trl, step size x 4"]


def cells(table: Any) -> dict[str, list[str]]:
    """The rows of a table by their first column."""
    columns = [list(column.cells) for column in table.columns]
    return {row[0]: list(row[1:]) for row in zip(*columns, strict=True)}


def test_the_numbers_of_the_tables() -> None:
    """By hand: shares over tasks and seeds, medians of tokens and seconds, step sizes, and gaps by token."""
    baselines = {"reference": 0.0, "optimum": 1.0}

    def trial(task: str, seed: int, share: float, **more: Any) -> dict[str, Any]:
        curve = {"num_timesteps": [0, 1000, 2000], "cpu_seconds": [0.0, 1.0, 3.0], "objective": [0.0, share / 2, share]}
        numbers = {"normalized_objective": share, "normalized_objective_stderr": None, "curve": curve, "gap": None}
        ends = {"num_timesteps": 2000, "cpu_seconds": 3.0}
        return trial_of(task=task, seed=seed, **(numbers | ends | more))

    gap = {"by_token": [0.1, 0.3], "states": [{"prompt": "a", "completion_so_far": "b", "cost": 0.3}]}
    first = [trial("a", 0, 0.6, gap=gap), trial("a", 1, 0.7), trial("a", 0, 0.9, name="ppo, step size x 4", factor=4.0)]
    records = {
        "a": {"group": "toys", "baselines": baselines, "trials": first},
        "b": {"group": "toys", "baselines": baselines, "trials": [trial("b", 0, 0.9), trial("b", 1, 1.0)]},
    }
    (share,) = cells(shares_table(records))["ppo"]
    assert share.startswith("80.0% [") and share.endswith("]")  # the middle half of .6 .7 .9 1
    group = Group("toys", [(each, baselines) for record in records.values() for each in record["trials"]])
    half, nine, *_, end = cells(speed_table(group))["ppo"]
    places = np.median([2 * 500 / each for each in (0.6, 0.7, 0.9, 1.0)])  # J rises linearly in tokens
    assert half.startswith(f"{places / 1000:.1f} (") and end == "2.0 (3 s)"
    assert nine == "2 of 4"
    assert cells(step_size_table(group))["ppo"][2] == "90.0%"
    size, by_first, by_second, *rest, state = cells(gap_table(group))["ppo"]
    assert (size, by_first, by_second, rest) == ("0.400", "25%", "75%", ["0%", "0%"])
    assert state == "a -> b (75%)"


def test_an_agent_whose_first_seed_failed_has_no_gap() -> None:
    """Its row is left out; the other tables have it."""
    table = gap_table(Group("toys", [(trial_of(task="a", gap=None), {})]))
    assert not cells(table)


def test_the_toys_have_an_optimum_that_is_worth_reaching() -> None:
    """Each is enumerated, its J* is well above J_ref, and beta goes from .05 to .5."""
    betas = set()
    for task in suite_tasks(["toys"], None, None):
        config = OptimumConfig()
        trial = config.trial(task, variants(task, ["ppo"], [], [0])[0])
        solution = exact.solve(trial.make_env())
        betas.add(solution.kl_coef)
        assert solution.objective - solution.reference_objective > 0.4
        assert 4 <= trial.env_args["vocab_size"] <= 8 and 4 <= trial.env_args["max_new_tokens"] <= 6  # type: ignore[operator]
    assert min(betas) == 0.05 and max(betas) == 0.5 and np.isfinite(list(betas)).all()


def test_flags_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """In a sentence, before anything is written."""
    with pytest.raises(FlagError, match="--model and --prompts are for the stories"):
        OptimumConfig(model="x")
    with pytest.raises(FlagError, match="--peers"):
        OptimumConfig(peers=["nobody"])
    with pytest.raises(FlagError, match="--optimum-completions must be 0 or at least 16, got 15: best of 16 comes"):
        OptimumConfig(optimum_completions=15)
    assert [OptimumConfig(optimum_completions=each).optimum_completions for each in (0, 16)] == [0, 16]
    with pytest.raises(FlagError, match="got stories without --model"):
        optimum(OptimumConfig(tasks=["stories"], out=tmp_path / "x", peers=[], agents=["ppo"]))
    assert not (tmp_path / "x").exists()
