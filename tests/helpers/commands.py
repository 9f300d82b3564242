"""Commands of `python -m experiments`, run small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.config import TrialConfig
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


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m experiments ...` in an OS process of its own."""
    return subprocess.run([sys.executable, "-m", "experiments", *arguments], capture_output=True, text=True)


def save_random_policy(env: object, folder: Path) -> Path:
    """Saves a policy with arbitrary weights, since fitting one to the reference would take ten seconds."""
    random_policy(env, scale=0.1).float().save_pretrained(folder)
    return folder
