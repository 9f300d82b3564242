"""`accelerate launch -m experiments train ...` on two ranks, and accelerate's configuration of sharding."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import psutil
import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from agents import files
from agents.policy import TransformerPolicy
from agents.training import shard
from experiments.errors import FlagError
from experiments.launch.ranks import sharding_from_environment
from experiments.metrics_file import read_metrics
from tests.helpers.paths import ROOT
from textenv import exact

TINY = "--env textenv/Toy-v0 --env-args vocab_size 3 max_new_tokens 2 num_prompts 1 --n-episodes 16 --num-evals 3"
DDP, FSDP = ["--multi_gpu"], ["--use_fsdp", "--fsdp_version", "2"]
LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch"]
TWO = ["--num_processes", "2", "--main_process_port", "0"]


def launch(
    *arguments: str, how: list[str] = DDP, module: str = "experiments", folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `accelerate launch -m experiments ...` on two ranks; `folder` is added to the module search path."""
    path = ":".join(str(place) for place in (ROOT, folder) if place is not None)
    return subprocess.run(
        [*LAUNCHER, *how, *TWO, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


def model_flags(folder: Path, reward: str) -> list[str]:
    """The flags of a task whose reference is a tiny model, which is saved in `folder`."""
    if not (folder / "model").is_dir():
        _save_model(folder / "model")
        (folder / "prompts.txt").write_text("a b\n")
    flags = f"--env textenv/Text-v0 --reward {reward} --max-new-tokens 2 --n-episodes 16 --eval-episodes 4"
    return [*flags.split(), "--model", str(folder / "model"), "--prompts", str(folder / "prompts.txt")]


def _save_model(folder: Path) -> None:
    vocabulary = {"<eos>": 0, "a": 1, "b": 2}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=3, n_embd=8, n_layer=1, n_head=1, n_positions=8, bos_token_id=0, eos_token_id=0)
    ).save_pretrained(folder)


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_line_trains_on_two_ranks(tmp_path: Path) -> None:
    """Rank 0 alone writes the folder; tokens are counted once; resuming a finished run does not train again."""
    flags = ["train", *TINY.split(), "--total-timesteps", "400", "--agent", "grpo", "--out", str(tmp_path / "run")]
    done = launch(*flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written to") == 1 and done.stdout.count('"objective"') == 1
    rows = read_metrics(tmp_path / "run")
    assert len(list((tmp_path / "run").glob("events.out.tfevents*"))) == 1
    counts = [row["num_updates"] for row in rows]
    assert counts == sorted(set(counts)) and 400 <= rows[-1]["num_timesteps"] < 432
    assert all(16 <= b["num_timesteps"] - a["num_timesteps"] <= 32 for a, b in itertools.pairwise(rows))
    assert launch(*flags, "--resume").returncode == 0 and read_metrics(tmp_path / "run") == rows
    saved = TransformerPolicy.from_pretrained(tmp_path / "run" / "checkpoint")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    tiny = {"vocab_size": 3, "max_new_tokens": 2, "num_prompts": 1}
    assert exact.evaluate(gym.make("textenv/Toy-v0", **tiny), saved).objective == pytest.approx(
        summary["objective"], abs=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", [DDP, FSDP], ids=["whole", "sharded"])
def test_an_interrupted_run_on_two_ranks_resumes(how: list[str], tmp_path: Path) -> None:
    """In bfloat16, interrupted after a checkpoint and some lost updates: `--resume` logs the rows of a whole run."""
    (tmp_path / "counted.py").write_text(
        "def words(prompts, completions, completion_ids, **columns):\n"
        "    return [float(text.count('a')) for text in completions]\n"
    )
    (tmp_path / "stopping.py").write_text(
        "from experiments.command_line import main\n"
        "from experiments.trial_log import TrialLog\n\n"
        "log_row = TrialLog.log_row\n\n"
        "def stop(self, row):\n    log_row(self, row)\n"
        "    if row['num_updates'] == 3:\n        self.checkpoint()\n"
        "    if row['num_updates'] == 5:\n        raise RuntimeError('stopped')\n\n"
        "TrialLog.log_row = stop\nmain()\n"
    )
    flags = ["train", *model_flags(tmp_path, "counted:words"), "--agent", "ppo", "--total-timesteps", "250"]
    flags += ["--dtype", "bfloat16", "--num-evals", "3", "--gradient-checkpointing"]
    whole, stopped = ["--out", str(tmp_path / "whole")], ["--out", str(tmp_path / "stopped")]
    assert launch(*flags, *whole, how=how, folder=tmp_path).returncode == 0
    interrupted = launch(*flags, *stopped, how=how, module="stopping", folder=tmp_path)
    assert interrupted.returncode != 0 and "RuntimeError: stopped" in interrupted.stderr
    assert not (tmp_path / "stopped" / "summary.json").exists()
    assert [row["num_updates"] for row in read_metrics(tmp_path / "stopped")] == list(range(6))
    done = launch(*flags, *stopped, "--resume", how=how, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = (read_metrics(tmp_path / name) for name in ("whole", "stopped"))
    assert len(before) > 6
    for row in (*before, *after):
        del row["seconds"], row["cpu_seconds"]
    assert before == after
    saved = TransformerPolicy.from_pretrained(tmp_path / "stopped" / "checkpoint")
    assert saved.model.dtype == torch.bfloat16


@pytest.mark.slow
def test_a_signal_to_the_launcher_stops_all_ranks_after_the_same_update(tmp_path: Path) -> None:
    """SIGTERM, which the launcher passes on: one checkpoint, the command to resume, and no process is left."""
    flags = ["train", *TINY.split(), "--agent", "grpo", "--total-timesteps", "20000", "--out", str(tmp_path / "run")]
    metrics = tmp_path / "run" / "metrics.jsonl"
    with (tmp_path / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [*LAUNCHER, *DDP, *TWO, "-m", "experiments", *flags],
            stdout=output,
            stderr=output,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
    while not metrics.is_file() or metrics.read_bytes().count(b"\n") < 5:
        assert process.poll() is None, (tmp_path / "output.txt").read_text()
        time.sleep(0.1)
    ranks = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    process.wait(300)
    assert psutil.wait_procs(ranks, timeout=60)[1] == []
    assert f"--out {tmp_path / 'run'} --resume" in (tmp_path / "output.txt").read_text()
    manifest = files.verify(tmp_path / "run" / "checkpoint")
    assert manifest["num_updates"] == read_metrics(tmp_path / "run")[-1]["num_updates"]
    assert not (tmp_path / "run" / "lock.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "message"),
    [("raise RuntimeError('no reward today')", "no reward today"), ("os.kill(os.getpid(), 9)", "SIGKILL")],
)
def test_a_failing_rank_ends_the_run_with_its_error(statement: str, message: str, tmp_path: Path) -> None:
    """Whether it raises or is killed, the run does not hang: the waiting rank is ended within seconds."""
    (tmp_path / "broken_reward.py").write_text(
        "import os\n\ndef fails(prompts, completions, completion_ids, **columns):\n"
        f"    if os.environ['RANK'] == '1' and len(prompts) == 8:\n        {statement}\n"
        "    return [0.0] * len(prompts)\n"
    )
    flags = ["--agent", "ppo", "--out", str(tmp_path / "run")]
    start = time.monotonic()
    done = launch("train", *model_flags(tmp_path, "broken_reward:fails"), *flags, folder=tmp_path)
    assert done.returncode != 0
    assert message in done.stderr, done.stderr
    assert time.monotonic() - start < 200  # no hang: a rank waits for another for up to half an hour


@pytest.mark.slow
def test_commands_that_cannot_use_two_ranks_are_refused(tmp_path: Path) -> None:
    """`compare` would run everything twice; agents of other libraries have one rank; shards cannot be compiled."""
    done = launch("compare", *TINY.split(), "--out", str(tmp_path / "run"))
    assert done.returncode != 0 and "is for `train`" in done.stderr
    done = launch("train", *TINY.split(), "--agent", "sb3-ppo", "--out", str(tmp_path / "run"))
    assert done.returncode != 0 and "trains in one process" in done.stderr
    done = launch("train", *TINY.split(), "--compile", "--out", str(tmp_path / "run"), how=FSDP)
    assert done.returncode != 0 and "leave out --compile" in done.stderr


# -- accelerate's configuration ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "add --fsdp_version 2"),
        ({"FSDP_VERSION": "1"}, "add --fsdp_version 2"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "--fsdp_offload_params false"),
        ({"FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "--gradient-checkpointing"),
    ],
)
def test_unsupported_sharding_is_refused(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings of accelerate that `shard` does not support; the error has the flag to change."""
    for name in [name for name in os.environ if name.startswith("FSDP_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FlagError, match=message):
        sharding_from_environment()


def test_accelerates_sharding_settings_are_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resharding after the forward pass is; RAM-efficient loading, which leaves other ranks uninitialised, never is."""
    monkeypatch.setenv("FSDP_VERSION", "2")
    for setting in ("true", "false"):
        monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", setting)
        monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
        wrap: Any = sharding_from_environment()
        assert wrap.func is shard and wrap.keywords == {"reshard_after_forward": setting == "true"}
        assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
