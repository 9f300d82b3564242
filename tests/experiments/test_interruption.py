"""Each command that trains, interrupted by real signals and resumed by the same command until it has finished."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from agents import files
from tests.helpers.classifiers import random_classifier, word_tokenizer, write_pairs
from tests.helpers.commands import call
from tests.helpers.faults import differences, final_state
from tests.helpers.interrupted import interrupt, lines

TOY = ["--env", "textenv/Toy-v0", "--env-args", "vocab_size", "3", "max_new_tokens", "2", "num_prompts", "1"]
TRAINING = [*TOY, "--num-evals", "3", "--keep-checkpoints", "1", "--checkpoint-seconds", "0"]
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


def stop_and_resume(
    arguments: list[str], folder: Path, pattern: str, step: int, signals: list[tuple[int, bool]], final: str
) -> None:
    """Interrupts a command once per signal, each time after `step` more lines of its files, and lets it finish.

    Args:
        arguments: the command, with --resume from the first start on.
        folder: its --out.
        pattern: files that grow while it works.
        step: lines.
        signals: and whether each is sent to all processes of the command.
        final: a file that is there at the end.
    """
    for number, group in signals:
        before = lines(folder, pattern)
        done = interrupt(
            arguments,
            number,
            lambda before=before: lines(folder, pattern) >= before + step,  # type: ignore[misc]
            folder.with_suffix(".txt"),
            group,
        )
        assert done.code == CODES[signal.Signals(number)], done.output
        assert done.left == [] and "Traceback" not in done.output, done.output
        assert not (folder / final).exists(), "it had finished before the signal came"
        if number != signal.SIGKILL:
            assert f"--out {folder} --resume" in done.output.replace("\n", " ")
            assert not list(folder.rglob("lock.json"))
    last = call(*arguments)
    assert last.returncode == 0, last.stderr
    assert (folder / final).exists()


@pytest.mark.slow
def test_train(tmp_path: Path) -> None:
    """SIGKILL, SIGTERM, SIGINT: equal to the uninterrupted run bit for bit."""
    flags = ["train", "--agent", "grpo", "--total-timesteps", "3000", *TRAINING]
    assert call(*flags, "--out", str(tmp_path / "whole")).returncode == 0
    signals = [(signal.SIGKILL, False), (signal.SIGTERM, False), (signal.SIGINT, True)]
    stopped = tmp_path / "stopped"
    again = [*flags, "--out", str(stopped), "--resume"]
    stop_and_resume(again, stopped, "metrics.jsonl", 4, signals, "summary.json")
    whole = final_state(tmp_path / "whole")
    assert {"metrics.jsonl", "summary.json", "checkpoint/model.safetensors"} <= set(whole)
    assert differences(final_state(stopped), whole) == ["config.json"]  # which has --out and --resume
    finished = call(*again)
    assert finished.returncode == 0 and '"objective"' in finished.stdout  # and it prints the summary again


@pytest.mark.slow
def test_compare(tmp_path: Path) -> None:
    """SIGKILL of the parent, SIGINT to all: no process is left, and the trials are those of one run."""
    flags = ["compare", "--agents", "grpo", "reinforce", "--seeds", "0", "--total-timesteps", "4000", *TRAINING]
    flags += ["--num-workers", "2"]
    assert call(*flags, "--out", str(tmp_path / "whole")).returncode == 0
    signals = [(signal.SIGKILL, False), (signal.SIGINT, True)]
    stopped = tmp_path / "stopped"
    again = [*flags, "--out", str(stopped), "--resume"]
    stop_and_resume(again, stopped, "*/seed-*/metrics.jsonl", 6, signals, "summary.json")
    whole = final_state(tmp_path / "whole")
    assert "grpo/seed-0/checkpoint/model.safetensors" in whole
    assert differences(final_state(stopped), whole) == ["config.json"]  # which has --out and --resume


@pytest.mark.slow
def test_lecture(tmp_path: Path) -> None:
    """SIGKILL and SIGTERM to the parent between pieces of a claim: the same numbers; kept pieces are not measured."""
    flags = ["lecture", "--claims", "which_kl"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert call(*flags, "--out", str(whole)).returncode == 0
    again = [*flags, "--out", str(stopped), "--resume"]
    signals = [(signal.SIGKILL, False), (signal.SIGTERM, False)]
    stop_and_resume(again, stopped, "measured/*/[bfi]*.json", 1, signals, "which_kl.json")
    assert (stopped / "which_kl.json").read_bytes() == (whole / "which_kl.json").read_bytes()


@pytest.mark.slow
def test_reward_model(tmp_path: Path) -> None:
    """SIGKILL, SIGTERM and SIGINT: the same classifier, bit for bit."""
    random_classifier("gpt2", resid_pdrop=0.2).save_pretrained(tmp_path / "start")
    word_tokenizer(eos_token="[END]").save_pretrained(tmp_path / "start")
    pairs = write_pairs(tmp_path / "pairs.jsonl", 500)
    flags = ["reward-model", "--pairs", str(pairs), "--model", str(tmp_path / "start"), "--epochs", "20"]
    flags += ["--checkpoint-seconds", "0", "--learning-rate", "0.01"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert call(*flags, "--out", str(whole)).returncode == 0
    state = stopped / "checkpoint" / "training_state.json"
    again = [*flags, "--out", str(stopped), "--resume"]

    def num_pairs() -> int:
        try:
            return int(json.loads(state.read_text())["num_pairs"])
        except (OSError, ValueError):  # it is being replaced
            return 0

    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        before = num_pairs()
        done = interrupt(
            again,
            number,
            lambda before=before: num_pairs() > before,  # type: ignore[misc]
            tmp_path / "output.txt",
        )
        assert done.code == CODES[number] and "Traceback" not in done.output, done.output
    assert call(*again).returncode == 0
    names = sorted(files.verify(whole)["files"])
    assert names == sorted(files.verify(stopped)["files"])
    changed = [name for name in names if (whole / name).read_bytes() != (stopped / name).read_bytes()]
    assert "model.safetensors" in names and changed == []
