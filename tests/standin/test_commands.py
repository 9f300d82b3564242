"""Every command with `--device`, on the device: its numbers are those of the CPU."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.files import read_json
from experiments.config import TrialConfig
from experiments.metrics_file import read_metrics
from experiments.reward_model import RewardModelConfig, fitting, reward_model
from experiments.trial import run_trial
from experiments.trial_log import TrialLog
from tests.helpers.classifiers import random_classifier, word_tokenizer, write_pairs
from tests.helpers.commands import TINY, call, save_random_policy
from tests.helpers.models import model_folder
from tests.helpers.paths import ROOT
from tests.helpers.standin import DEVICE
from tests.helpers.standin.comparison import DEVICES, draw_alike
from tests.helpers.tasks import make, words
from textenv.rewards import RewardModel

TOY = [word for name, value in TINY.items() for word in (name, str(value))]
SMALL = ["--n-episodes", "16", "--num-evals", "1", "--eval-episodes", "32"]
CLOSE = {"rel": 1e-3, "abs": 1e-4}


@pytest.fixture(autouse=True, scope="module")
def one_number_a_row() -> Any:
    """CPU and device draw alike in all tests of this file, whose fixtures run commands for several of them."""
    with pytest.MonkeyPatch.context() as patch:
        draw_alike(patch)
        yield


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A command that ends well."""
    done = call(*map(str, arguments))
    assert done.returncode == 0, done.stderr
    return done


def numbers(text: str) -> list[float]:
    """All numbers in a text, without times."""
    return [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]


def assert_alike(found: Any, expected: Any, where: str = "") -> None:
    """Two JSON objects have the same keys, and numbers that are close, but for times, sizes of files and checksums."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            if not re.search("seconds|per_second|checksum|size|sha256", key):
                assert_alike(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, pair in enumerate(zip(found, expected, strict=True)):
            assert_alike(*pair, f"{where}[{i}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, nan_ok=True, **CLOSE), where
    else:
        assert found == expected, where


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of `train` on a toy, on each device."""
    folder = tmp_path_factory.mktemp("toys")
    flags = ["--env", "textenv/Toy-v0", "--env-args", *TOY, "--agent", "ppo", "--total-timesteps", "200", *SMALL]
    for device in DEVICES:
        run("train", *flags, "--device", device, "--out", folder / device)
    return {device: folder / device for device in DEVICES}


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of `train` on a language model, with a classifier as reward, in each device's folder."""
    folder = tmp_path_factory.mktemp("stories")
    model = model_folder(folder / "model")
    random_classifier("gpt2").save_pretrained(folder / "classifier")
    word_tokenizer(eos_token="[END]").save_pretrained(folder / "classifier")
    (folder / "prompts.txt").write_text("a b\nc\nd e f\n")
    flags = ["--env", "textenv/Text-v0", "--model", model, "--prompts", folder / "prompts.txt", "--max-new-tokens", "4"]
    flags += ["--reward", folder / "classifier", "--agent", "rloo", "--total-timesteps", "100", *SMALL]
    flags += ["--samples-per-eval", "8", "--optimum-completions", "32"]
    for device in DEVICES:
        run("train", *flags, "--device", device, "--out", folder / device)
    return {device: folder / device for device in DEVICES}


@pytest.mark.parametrize("name", ["toys", "stories"])
def test_train(name: str, request: pytest.FixtureRequest) -> None:
    """The summary and all rows of metrics; the device is noted. Control: the objective is not that of the reference."""
    here, there = (request.getfixturevalue(name)[device] for device in DEVICES)
    summaries = [read_json(folder / "summary.json") for folder in (here, there)]
    assert_alike(summaries[1], summaries[0])
    rows = [read_metrics(folder) for folder in (here, there)]
    assert len(rows[0]) >= 3
    assert_alike(rows[1], rows[0])
    assert read_json(there / "config.json")["device"] == "standin (a stand-in, computed on the CPU)"
    assert read_json(here / "config.json")["device"].startswith("cpu (")


FLAGS = {
    "bfloat16": ["--dtype", "bfloat16"],
    "LoRA": ["--lora-rank", "2"],
    "separate critic": ["--separate-critic"],
    "gradient checkpointing": ["--gradient-checkpointing", "--ppo.micro-batch-size", "4"],
    "generate": ["--sampler", "generate"],
}


@pytest.mark.parametrize("name", FLAGS)
def test_train_with_flags(name: str, stories: dict[str, Path], tmp_path: Path) -> None:
    """On a language model: the objective is the CPU's; in bfloat16, where other tokens are drawn, it is finite."""
    folder, summaries = stories["cpu"].parent, []
    flags = ["--env", "textenv/Text-v0", "--model", folder / "model", "--prompts", folder / "prompts.txt"]
    flags += ["--reward", folder / "classifier", "--max-new-tokens", "4", "--agent", "ppo", "--total-timesteps", "60"]
    for device in DEVICES:
        run("train", *flags, *SMALL, *FLAGS[name], "--device", device, "--out", tmp_path / device)
        summaries.append(read_json(tmp_path / device / "summary.json"))
    if name == "bfloat16":
        assert abs(summaries[1]["objective"] - summaries[0]["objective"]) < 1.0
    else:
        assert_alike(summaries[1], summaries[0])


@pytest.mark.parametrize("name", ["toys", "stories"])
@pytest.mark.parametrize("trained", DEVICES)
def test_evaluate_and_sample(name: str, trained: str, request: pytest.FixtureRequest) -> None:
    """What was trained on either device, on both."""
    folder = request.getfixturevalue(name)[trained]
    found = [json.loads(run("evaluate", "--run", folder, "--device", device).stdout) for device in DEVICES]
    assert_alike(found[1], found[0])
    samples = [run("sample", "--run", folder, "--num", "3", "--device", device).stdout for device in DEVICES]
    assert numbers(samples[1]) == pytest.approx(numbers(samples[0]), **CLOSE) and len(samples[0]) > 20


def test_rescore(stories: dict[str, Path], tmp_path: Path) -> None:
    """The run's own classifier gives the scores that it gave."""
    reward = stories["cpu"].parent / "classifier"
    for device in DEVICES:
        run("rescore", stories[DEVICE], "--reward", reward, "--device", device, "--out", tmp_path / f"{device}.json")
    found = [json.loads((tmp_path / f"{device}.json").read_text()) for device in DEVICES]
    assert_alike(found[1], found[0])


def test_report(toys: dict[str, Path], stories: dict[str, Path]) -> None:
    """The page of runs that were trained there."""
    for folder in (toys[DEVICE], stories[DEVICE]):
        assert "report" in run("report", folder).stdout


def test_play(stories: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A completion's rewards, with the reference on the device."""
    folder, printed = stories["cpu"].parent, []
    for device in DEVICES:
        monkeypatch.setattr(sys, "stdin", io.StringIO("a b c d\n"))
        flags = ["--env", "textenv/Text-v0", "--model", folder / "model", "--prompts", folder / "prompts.txt"]
        flags += ["--reward", folder / "classifier", "--max-new-tokens", "4", "--prompt", "a b"]
        printed.append(run("play", *flags, "--device", device).stdout)
    assert "score" in printed[0] and numbers(printed[1]) == pytest.approx(numbers(printed[0]), **CLOSE)


def test_check_reward(stories: dict[str, Path]) -> None:
    """Of a classifier, with completions of the reference."""
    folder, found = stories["cpu"].parent, []
    for device in DEVICES:
        flags = ["--env", "textenv/Text-v0", "--model", folder / "model", "--prompts", folder / "prompts.txt"]
        flags += ["--reward", folder / "classifier", "--max-new-tokens", "4", "--num-completions", "16"]
        done = call(*map(str, ["check-reward", *flags, "--no-other-process", "--device", device]))
        assert done.returncode in (0, 1), done.stderr
        found.append((done.returncode, [line for line in done.stdout.splitlines() if line.strip()]))
    assert found[0][0] == found[1][0] and len(found[0][1]) == len(found[1][1]) > 10


def test_a_policy_for_every_agent_of_compare(tmp_path: Path) -> None:
    """Agents x seeds in a worker, which has the device too; what is finished is not trained again."""
    flags = ["compare", "--env", "textenv/Toy-v0", "--env-args", *TOY, "--agents", "reinforce", "sb3-ppo"]
    flags += ["--seeds", "0", "1", "--total-timesteps", "100", *SMALL, "--num-workers", "1"]
    flags += ["--device", DEVICE, "--out", str(tmp_path / "out"), "--resume"]
    command = [sys.executable, "-m", "tests.helpers.standin.run", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for each in (done, run(*flags)):
        assert "optimum" in each.stdout and "reinforce - sb3-ppo" in each.stdout
    for agent in ("reinforce", "sb3-ppo"):
        assert "stand-in" in read_json(tmp_path / "out" / agent / "seed-1" / "config.json")["device"]


def test_a_device_that_torch_does_not_know_is_refused() -> None:
    """In one line."""
    done = call("train", "--env", "textenv/Toy-v0", "--device", "standout")
    assert done.returncode == 2 and "--device standout" in done.stderr and "Traceback" not in done.stderr


def test_an_interrupted_trial_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after a checkpoint, and run again: the rows are those of a whole run, bit for bit."""
    flags: dict[str, Any] = {"env": "textenv/Toy-v0", "env_args": TINY, "total_timesteps": 400, "n_episodes": 16}
    config = TrialConfig(**flags, num_evals=2, device=DEVICE)
    initial = save_random_policy(make(words(3, max_new_tokens=2, prompts=["a"])), tmp_path / "initial")
    run_trial(config, tmp_path / "whole", initial)
    log_row = TrialLog.log_row

    def stop(self: TrialLog, row: dict[str, float]) -> None:
        log_row(self, row)
        if row["num_updates"] == 4:
            self.checkpoint()
        if row["num_updates"] == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrialLog, "log_row", stop)
        with pytest.raises(KeyboardInterrupt):
            run_trial(config, tmp_path / "stopped", initial)
    run_trial(config, tmp_path / "stopped", initial)
    rows = [read_metrics(tmp_path / name) for name in ("whole", "stopped")]
    for row in (row for each in rows for row in each):
        del row["seconds"], row["cpu_seconds"]
    assert rows[0] == rows[1] and len(rows[0]) > 8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_reward_model_is_trained_there_and_resumes(
    dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout: interrupted, it is the one of a whole training; loaded on the CPU it gives its scores."""
    random_classifier("gpt2", resid_pdrop=0.2).save_pretrained(tmp_path / "start")
    word_tokenizer(eos_token="[END]").save_pretrained(tmp_path / "start")
    flags: dict[str, Any] = {"pairs": write_pairs(tmp_path / "pairs.jsonl"), "model": str(tmp_path / "start")}
    flags |= {"epochs": 3, "learning_rate": 1e-2, "held_out": 0.2, "checkpoint_seconds": 0.0, "dtype": dtype}
    measured = {
        device: reward_model(RewardModelConfig(**flags, device=device, out=tmp_path / device)) for device in DEVICES
    }
    if dtype == "float32":
        assert_alike(measured[DEVICE], measured["cpu"])
    loss, calls = fitting.preference_loss, 0

    def failing(margin: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return loss(margin)

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "preference_loss", failing)
        with pytest.raises(KeyboardInterrupt):
            reward_model(RewardModelConfig(**flags, device=DEVICE, out=tmp_path / "stopped"))
    resumed = reward_model(RewardModelConfig(**flags, device=DEVICE, out=tmp_path / "stopped", resume=True))
    assert resumed == measured[DEVICE] and calls == 5
    scores = []
    for device in DEVICES:
        reward = RewardModel(tmp_path / DEVICE)
        reward.model.to(device)
        scores.append(reward(["g h"] * 2, ["a a b", "d e f"]))
    assert scores[1] == pytest.approx(scores[0], rel=3e-2 if dtype == "bfloat16" else 1e-4)
