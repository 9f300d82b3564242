"""rescore: scores of kept completions against those that the run itself gave; and runs that cannot be rescored."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.files import DamagedFile, read_json, write_json
from experiments.compare import CompareConfig
from experiments.errors import FlagError
from experiments.rescore import RescoreConfig, rescore
from experiments.rescore.twice import ScoredTwice
from experiments.run_folder import write_config
from experiments.trial import run_trial
from tests.helpers.classifiers import random_classifier, word_tokenizer
from tests.helpers.commands import call, save_random_policy, tiny
from tests.helpers.models import model_folder
from textenv.data import messages_of
from textenv.lm import load_tokenizer
from textenv.rewards import RewardError, RewardModel

GOLD = "textenv.tasks.reward_hacking:gold"
REWARDS = """
from pathlib import Path

Path(__file__).with_name("imported").touch()

def of_chats(prompts, completions, completion_ids, answer, **columns):
    return [
        len(prompt[0]["content"]) + 2.0 * len(completion[0]["content"]) + sum(ids) / 8 + right
        for prompt, completion, ids, right in zip(prompts, completions, completion_ids, answer, strict=True)
    ]

def length(completion_ids, log_extra, **columns):
    return [-float(len(ids)) for ids in completion_ids]

def of_even_ids(completion_ids, **columns):
    return [None if sum(ids) % 2 else float(sum(ids)) for ids in completion_ids]

def of_none(completions, **columns):
    return [None] * len(completions)

def broken(completions, **columns):
    raise RuntimeError("no network")

def needs_source(completions, source):
    return [0.0] * len(completions)

def looks_up(completions, **columns):
    return [1.0 for _ in columns["source"]]

class Tabulated:
    def __call__(self, prompts, completions, completion_ids, **columns):
        return [float(len(ids)) for ids in completion_ids]

    def score_tokens(self, prompt, tokens, length):
        raise AssertionError("takes the indices of the task's prompts")

tabulated = Tabulated()
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a module with rewards; `imported` is in it once it was imported."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "own_rewards.py").write_text(REWARDS)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("own_rewards", None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, initial: Path, modules: Path) -> Path:
    """Short runs: on conversations with a column, whose model and prompts are gone, and two agents on a toy."""
    folder = tmp_path_factory.mktemp("runs")
    model, prompts = model_folder(folder / "model"), folder / "prompts.jsonl"
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(model)
    rows = [{"prompt": [{"role": "user", "content": text}], "answer": i} for i, text in enumerate(["a b", "c", "d e"])]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    flags: dict[str, Any] = {"env": "textenv/Text-v0", "env_args": {}, "model": str(model), "prompts": str(prompts)}
    flags |= {"reward": ["own_rewards:of_chats"], "max_new_tokens": 3, "eval_episodes": 4, "samples_per_eval": 24}
    run_trial(tiny(total_timesteps=80, num_evals=1, **flags), folder / "chats", folder / "initial")
    shutil.rmtree(model)
    prompts.unlink()
    for name in ("ppo", "reinforce"):
        run_trial(tiny(agent=name, num_evals=1, samples_per_eval=32), folder / name, initial)
    return folder


@pytest.fixture
def chats(runs: Path, tmp_path: Path) -> Path:
    """A copy of the run on conversations."""
    return shutil.copytree(runs / "chats", tmp_path / "chats")


def names(scored: list[ScoredTwice]) -> list[str]:
    """The policies."""
    return [each.sampled.name for each in scored]


def test_the_runs_own_reward_gives_the_scores_that_were_saved(chats: Path) -> None:
    """Messages, token ids and a column reach the reward, without model and prompts; another reward differs."""
    scored = rescore(RescoreConfig(chats, ["own_rewards:of_chats"]))
    assert names(scored)[0] == "before training" and names(scored)[1].startswith("ppo, seed 0, update")
    for each in scored:
        assert len(each.own) == 24 and np.ptp(each.own) > 1
        np.testing.assert_allclose(each.new, each.own, atol=1e-5)
    for each in rescore(RescoreConfig(chats, ["own_rewards:length"])):  # control
        assert each.new.tolist() == [-len(completion.token_ids) for completion in each.sampled.completions]


def test_several_rewards_are_a_weighted_sum(chats: Path) -> None:
    """As `train --reward ... --reward-weights` would sum them; and `score_tokens` is not called."""
    both = ["own_rewards:of_chats", "own_rewards:tabulated"]
    summed = rescore(RescoreConfig(chats, both, reward_weights=[0.5, -2.0]))
    parts = [rescore(RescoreConfig(chats, [name])) for name in both]
    for each, first, second in zip(summed, *parts, strict=True):
        np.testing.assert_allclose(each.new, 0.5 * first.new - 2 * second.new, atol=1e-5)


def test_a_reward_model_is_a_reward(chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, or an object of a module that is a loaded classifier: its scores of the messages."""
    model, judge = random_classifier("gpt2"), tmp_path / "judge"
    model.save_pretrained(judge)
    word_tokenizer(eos_token="[END]").save_pretrained(judge)
    model.config._name_or_path = str(judge)
    monkeypatch.setattr(sys.modules["own_rewards"], "judge", model, raising=False)
    named, loaded = (rescore(RescoreConfig(chats, [name])) for name in (str(judge), "own_rewards:judge"))
    for each, other in zip(named, loaded, strict=True):
        rows = [
            (messages_of(c.prompt), [{"role": "assistant", "content": c.completion}]) for c in each.sampled.completions
        ]
        expected = RewardModel(judge)(*zip(*rows, strict=True))
        np.testing.assert_allclose(each.new, expected, atol=1e-5)
        assert other.new.tolist() == each.new.tolist() and np.ptp(each.new) > 0


def as_comparison(runs: Path, folder: Path) -> Path:
    """A folder of `compare` with two agents and two seeds, of which one trial has not begun."""
    folder.mkdir()
    write_config(CompareConfig(agents=["ppo", "reinforce", "random"], seeds=[0, 1]), folder)
    for name, seed in (("ppo", 0), ("ppo", 1), ("reinforce", 0)):
        trial = shutil.copytree(runs / name, folder / name / f"seed-{seed}")
        content = read_json(trial / "config.json")
        write_json(trial / "config.json", content | {"flags": content["flags"] | {"seed": seed}})
    return folder


def test_a_comparison_is_read_trial_by_trial(
    runs: Path, modules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What all trials start from is counted once; --out has every completion and every row of the table."""
    folder, out = as_comparison(runs, tmp_path / "comparison"), tmp_path / "out.json"
    scored = rescore(RescoreConfig(folder, ["own_rewards:length"], out=out, top=2))
    assert [name.rpartition(", update")[0] or name for name in names(scored)] == [
        *("before training", "ppo, seed 0", "ppo, seed 1", "reinforce, seed 0")
    ]
    content, printed = read_json(out), capsys.readouterr().out
    assert [row["name"] for row in content["policies"]] == [*names(scored)[:3], "ppo, 2 seeds", names(scored)[3]]
    assert len(content["completions"]) == 4 * 32 and "ppo, 2 seeds" in printed
    for each in scored:
        own = [row for row in content["completions"] if row["policy"] == each.sampled.name]
        assert [row["new_score"] for row in own] == each.new.tolist() and [row["score"] for row in own] == [*each.own]
    rescore(RescoreConfig(folder / "ppo" / "seed-1", ["own_rewards:length"]))  # a trial of it
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "ppo", "reinforce"]  # nothing is written


def test_a_gold_reward_gives_the_gold_scores_that_were_saved(tmp_path: Path) -> None:
    """Those of RewardHacking in `samples.jsonl`, which has some of the same completions."""
    flags: dict[str, Any] = {"env": "textenv/RewardHacking-v0", "env_args": {}, "num_evals": 1}
    config = tiny(**flags, agent="reinforce", samples_per_eval=4)
    initial = save_random_policy(config.make_env(), tmp_path / "initial")
    run_trial(config, tmp_path / "run", initial)
    known = {}
    for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines():
        row = json.loads(line)
        known[row["prompt"], row["completion"]] = row["gold_score"]
    after = rescore(RescoreConfig(tmp_path / "run", [GOLD]))[-1]
    found = {(c.prompt, c.completion): new for c, new in zip(after.sampled.completions, after.new, strict=True)}
    assert found.keys() & known.keys()
    for both in found.keys() & known.keys():
        assert found[both] == pytest.approx(known[both], abs=1e-5)


def test_nothing_that_a_folder_names_is_imported(chats: Path, modules: Path) -> None:
    """Neither its reward nor its agent; control: the reward of the command line is."""
    content = read_json(chats / "config.json")
    hostile = {"reward": ["own_rewards:length"], "agent": "own_rewards:PPO", "env": "own_rewards:x/Y-v0"}
    write_json(chats / "config.json", content | {"flags": content["flags"] | hostile})
    sys.modules.pop("own_rewards", None)
    (modules / "imported").unlink(missing_ok=True)
    rescore(RescoreConfig(chats, ["tests.helpers.tasks:half"]))
    assert not (modules / "imported").exists()
    rescore(RescoreConfig(chats, ["own_rewards:length"]))
    assert (modules / "imported").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"reward": ["own_rewards:needs_source"]}, "needs the column 'source', .*it has answer"),
        ({"reward_weights": [1.0, 2.0]}, "--reward-weights must be one number for each --reward, got 2 for 1"),
        ({"reward": ["own_rewards:REWARDS"]}, "--reward .*REWARDS"),
        ({"reward": ["own_rewards:__doc__"]}, "--reward: reward must be a function"),
        ({"reward": []}, "--reward must be one or more"),
        ({"out": Path()}, "--out must be a file, got the folder"),
        ({"run": Path()}, "holds no run"),
    ],
)
def test_what_cannot_be_rescored_is_refused(flags: dict[str, Any], message: str, chats: Path) -> None:
    """A sentence that names the flag."""
    with pytest.raises(FlagError, match=message):
        rescore(RescoreConfig(**({"run": chats, "reward": ["own_rewards:length"]} | flags)))


@pytest.mark.parametrize(("name", "reason"), [("broken", "no network"), ("looks_up", "KeyError: 'source'")])
def test_a_reward_that_fails_is_named(name: str, reason: str, chats: Path) -> None:
    """With the completion that it fails for, and the columns that there are; the exit code is 1."""
    with pytest.raises(RewardError, match=f"'{name}' failed at .*own_rewards.py:.*{reason}.*for the completion"):
        rescore(RescoreConfig(chats, [f"own_rewards:{name}"]))
    ended = call("rescore", str(chats), "--reward", f"own_rewards:{name}")
    assert ended.returncode == 1 and "The columns that the run has kept: answer." in ended.stderr


def test_a_run_that_has_kept_nothing(chats: Path) -> None:
    """No `samples/`: refused. Samples before training alone: a table of one row. Rows of an earlier version: said."""
    first, *later = sorted((chats / "samples").iterdir(), key=lambda path: int(path.stem))
    for path in later:
        path.unlink()
    old = [{k: v for k, v in json.loads(line).items() if k not in ("columns", "messages")} for line in first.open()]
    first.write_text("".join(json.dumps(row) + "\n" for row in old))
    ended = call("rescore", str(chats), "--reward", "own_rewards:length")
    assert ended.returncode == 0 and "was not evaluated after training yet" in ended.stdout
    assert "which kept no columns and no messages" in ended.stdout
    first.rename(first.with_name("9.jsonl"))
    assert "no completions before training" in call("rescore", str(chats), "--reward", "own_rewards:length").stdout
    shutil.rmtree(chats / "samples")
    with pytest.raises(FlagError, match="has kept no completion in samples/.*--samples-per-eval"):
        rescore(RescoreConfig(chats, ["own_rewards:length"]))


@pytest.mark.parametrize("kept", [0, 200])
def test_a_file_without_a_whole_row_is_named(kept: int, chats: Path) -> None:
    """Cut off within its first row, or empty."""
    path = chats / "samples" / "0.jsonl"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DamagedFile, match=r"0\.jsonl has no whole row: it was cut off"):
        rescore(RescoreConfig(chats, ["own_rewards:length"]))


@pytest.mark.parametrize(
    "change",
    [
        *({"token_ids": [-1]}, {"token_ids": [2**63]}, {"token_ids": [1.5]}, {"score": "1"}, {"score": 10**300}),
        *({"columns": []}, {"messages": "a"}, {"messages": []}, {"messages": [{"role": "user"}]}),
    ],
)
def test_a_damaged_row_is_named(change: dict[str, object], chats: Path) -> None:
    """With its file and line."""
    path = chats / "samples" / "0.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | change)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DamagedFile, match=r"0\.jsonl:3: "):
        rescore(RescoreConfig(chats, ["own_rewards:length"]))


def test_a_score_that_failed_is_left_out(chats: Path) -> None:
    """Of the run's mean and of the rank correlation; the new reward scores the completion."""
    path = chats / "samples" / "0.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "".join(json.dumps(row | {"score": None if i == 0 else row["score"]}) + "\n" for i, row in enumerate(rows))
    )
    before = rescore(RescoreConfig(chats, ["own_rewards:length"]))[0]
    assert np.isnan(before.own).tolist() == [True] + [False] * 23 and not np.isnan(before.new).any()
    assert not np.isnan(before.means()[0]).any()


def test_none_is_no_failure(chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The new reward does not apply: left out of its mean and of the ranks, as in training where another applies."""
    out = tmp_path / "out.json"
    for each in rescore(RescoreConfig(chats, ["own_rewards:of_even_ids"], out=out)):
        sums = np.array([sum(completion.token_ids) for completion in each.sampled.completions])
        assert np.isnan(each.new).tolist() == (sums % 2 == 1).tolist() and 0 < (sums % 2).sum() < 24
        assert each.means()[1].value == pytest.approx(np.mean([_mean_of_even(each, p) for p in _prompts(each)]))
    rows = read_json(out)["completions"]
    assert [row["new_score"] is None for row in rows] == [sum(row["token_ids"]) % 2 == 1 for row in rows]
    count = sum(row["new_score"] is None for row in rows)
    assert f"The new reward returned None for {count} of {len(rows)} completions" in " ".join(
        capsys.readouterr().out.split()
    )
    both = rescore(RescoreConfig(chats, ["own_rewards:of_even_ids", "own_rewards:length"]))  # one of them applies
    assert not any(np.isnan(each.new).any() for each in both)
    for each in rescore(RescoreConfig(chats, ["own_rewards:of_none"])):
        assert np.isnan(each.new).all() and np.isnan(each.means()[1].value)


def _prompts(scored: ScoredTwice) -> list[str]:
    """The prompts with a completion that the reward of even sums applies to."""
    return list(dict.fromkeys(c.prompt for c in scored.sampled.completions if sum(c.token_ids) % 2 == 0))


def _mean_of_even(scored: ScoredTwice, prompt: str) -> float:
    sums = [sum(c.token_ids) for c in scored.sampled.completions if c.prompt == prompt]
    return float(np.mean([each for each in sums if each % 2 == 0]))
