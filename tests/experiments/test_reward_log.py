"""What reward functions log is in the files of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.config import TrialConfig
from experiments.evaluation import as_json, sample_completions
from experiments.metrics_file import read_metrics
from experiments.trial import initial_policy, run_trial
from tests.helpers.commands import stories_flags
from tests.helpers.policies import random_policy
from tests.helpers.tasks import letter_values, make, words
from textenv.rewards.training import SAMPLE_FIELDS


@pytest.mark.parametrize("agent", ["ppo", "sb3-a2c"])
def test_a_reward_logs_to_the_files_of_a_run(agent: str, assets: Path, tmp_path: Path) -> None:
    """`log_metric` to metrics.jsonl, a number an update; `log_extra` to samples.jsonl."""
    flags = stories_flags(assets, tmp_path) | {"reward": ["tests.helpers.tasks:logging_reward"]}
    config = TrialConfig(agent=agent, total_timesteps=100, **flags)
    initial_policy(config, config.make_env(), tmp_path / "initial")
    run_trial(config, tmp_path / "run", tmp_path / "initial")
    rows = read_metrics(tmp_path / "run")[1:]
    assert len(rows) >= 2 and all(1 <= row["mean_tokens"] <= 4 for row in rows)
    assert rows[-1]["step"] == pytest.approx(len(rows) - 1, abs=1)
    for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines():
        sample = json.loads(line)
        assert sample["capitals"] == sample["completion"].upper() != sample["completion"]


def test_what_json_cannot_hold_is_text() -> None:
    """A sample's line stays JSON."""
    for value, expected in ((1, 1), ("a", "a"), ([1, None], [1, None]), (float("nan"), "nan"), ({1, 2}, "{1, 2}")):
        assert as_json(value) == expected
        json.dumps(as_json(value), allow_nan=False)


def test_the_names_that_samples_have_are_those_of_the_samples() -> None:
    """Of `samples.jsonl`, which would lose what is logged under them."""
    env = make(words(gold_reward=letter_values))
    (sample,) = sample_completions(env, random_policy(env), [0])
    assert sample.keys() == SAMPLE_FIELDS
