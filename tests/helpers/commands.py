"""Commands of `python -m experiments`, run small."""

from __future__ import annotations

import io
import subprocess
import sys
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from agents.policy import TransformerPolicy
from experiments.command_line import main
from experiments.config import AgentFlags, TrialConfig
from experiments.evaluation import Evaluator
from experiments.opening import opened
from experiments.stopping import stops_later
from experiments.trial import make_environments, prepare
from tests.helpers.policies import random_policy

TINY = {"vocab_size": 3, "max_new_tokens": 2, "num_prompts": 1}
# Flags of `train` for a trial of about two updates on the smallest toy.
TRIAL: dict[str, Any] = {
    "env": "textenv/Toy-v0",
    "env_args": {"vocab_size": 3, "max_new_tokens": 2, "num_prompts": 1},
    "total_timesteps": 100,
    "n_episodes": 16,
    "num_evals": 1,
}


def tiny(**flags: object) -> TrialConfig:
    """A trial that takes a second."""
    defaults = {"env": "textenv/Toy-v0", "env_args": TINY, "total_timesteps": 400, "n_episodes": 16, "num_evals": 3}
    return TrialConfig(**(defaults | flags))  # type: ignore[arg-type]


def prepared(config: AgentFlags, trials: list[TrialConfig]) -> tuple[Evaluator, Path, TransformerPolicy]:
    """Opens the folder of a run and prepares it; returns its evaluator, its folder and its initial policy."""
    env = make_environments(config)
    with opened(config, "run") as folder:
        evaluator, policy = prepare(config, env, folder, trials)
    return evaluator, folder, policy


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m experiments ...` in an OS process of its own."""
    return subprocess.run([sys.executable, "-m", "experiments", *arguments], capture_output=True, text=True)


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m experiments ...` in this process, which saves the seconds that imports take."""
    before, code = (sys.argv, warnings.formatwarning), 0
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        sys.argv = ["python -m experiments", *arguments]
        try:
            main()
        except SystemExit as exit:
            code = 0 if exit.code is None else int(exit.code)
        finally:
            sys.argv, warnings.formatwarning = before
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def save_random_policy(env: object, folder: Path) -> Path:
    """Saves a policy with arbitrary weights, since fitting one to the reference would take ten seconds."""
    random_policy(env, scale=0.1).float().save_pretrained(folder)
    return folder


def until_stopped(path: Path, report: Any) -> None:
    """A call of a worker that ends as a trial does after a signal: with its update."""
    with stops_later("this update") as stop:
        path.touch()
        while stop.number is None:
            time.sleep(0.01)
        path.with_suffix(".checkpoint").touch()
    stop.stop_if_requested()


def stories_flags(assets: Path, folder: Path) -> dict[str, Any]:
    """Flags of a short task on a real language model."""
    prompts = folder / "prompts.txt"
    prompts.write_text("Once upon a time\nThe big dog\n")
    return {
        "env": "textenv/Text-v0",
        "env_args": {},
        "model": str(assets / "stories260k"),
        "prompts": str(prompts),
        "reward": ["tests.helpers.tasks:count_words"],
        "max_new_tokens": 4,
        "eval_episodes": 8,
        "n_episodes": 8,
        "num_evals": 1,
    }
