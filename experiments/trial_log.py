"""The log of a trial: metrics, evaluations and checkpoints, written while an agent trains."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from agents import Agent
from agents.sampling import Rollout
from agents.training import rank, run_on_rank0
from experiments.config import TrialConfig
from experiments.console import completions_table, plain_console
from experiments.evaluation import Evaluator
from experiments.run_folder import plain
from experiments.stable_baselines import StableBaselines

CHECKPOINT_SECONDS = 10.0  # least time between checkpoints; longer where they would take over a twentieth of the time
CHECKPOINTS = ("checkpoint", "checkpoint.new", "checkpoint.old")  # in case a run was killed while it renamed them


class TrialLog:
    """The callback of `learn`: logs metrics after each update, evaluates on a grid of tokens, saves checkpoints."""

    def __init__(
        self,
        config: TrialConfig,
        folder: Path,
        evaluator: Evaluator,
        agent: Agent | StableBaselines,
        progress: Callable[[int], None],
    ) -> None:
        self.config, self.folder, self.evaluator, self.agent, self.progress = config, folder, evaluator, agent, progress
        self.grid = np.linspace(0, config.total_timesteps, config.num_evals + 1)
        rows = run_on_rank0(lambda: read_metrics(folder))  # before rank 0 truncates the file in `_open`
        self.rows = [row for row in rows if row["num_updates"] <= agent.num_updates]
        self.seconds = self.rows[-1]["seconds"] if self.rows else 0.0
        self.reported = agent.num_timesteps
        self.last_time = self.last_checkpoint = time.monotonic()
        self.checkpoint_seconds = 0.0

    def __enter__(self) -> TrialLog:
        if rank() == 0:
            self._open()
        if not self.rows:
            first = self.evaluator.measure(self.agent.policy)
            self.log_row({"num_timesteps": 0, "num_updates": 0, "seconds": 0.0} | _prefixed(first))
        self.last_time = time.monotonic()
        return self

    def _open(self) -> None:
        # a resumed run repeats the updates after its checkpoint: their old rows are dropped
        self.file = (self.folder / "metrics.jsonl").open("w")
        if self.config.wandb_project is not None:
            import wandb  # from here on it mirrors TensorBoard

            name = f"{self.config.agent}-seed-{self.config.seed}"
            wandb.init(
                project=self.config.wandb_project,
                name=name,
                dir=self.folder,
                config=plain(self.config),
                sync_tensorboard=True,
                reinit="finish_previous",
            )
        self.board = SummaryWriter(str(self.folder), purge_step=self.agent.num_timesteps + 1 if self.rows else None)
        for row in self.rows:
            self.file.write(json.dumps(row) + "\n")

    def __exit__(self, *error: object) -> None:
        if rank() > 0:
            return
        self.file.close()
        self.board.close()
        if self.config.wandb_project is not None:
            import wandb

            wandb.finish()

    def __call__(self, agent: Agent | StableBaselines, rollout: Any, metrics: dict[str, float]) -> None:
        """Logs one update: its metrics, an evaluation and a checkpoint where they are due."""
        self.seconds += time.monotonic() - self.last_time  # without evaluations and checkpoints
        row = {"num_timesteps": agent.num_timesteps, "num_updates": agent.num_updates, "seconds": self.seconds}
        row |= metrics
        if np.searchsorted(self.grid, self.reported, "right") < np.searchsorted(
            self.grid, agent.num_timesteps, "right"
        ):
            row |= _prefixed(self.evaluator.measure(agent.policy))
        self.log_row(row)
        every = self.config.log_completions
        if rank() == 0 and every and agent.num_updates % every == 0 and isinstance(rollout, Rollout):
            plain_console().print(completions_table(rollout, agent.num_updates))
        self.progress(agent.num_timesteps - self.reported)
        self.reported = agent.num_timesteps
        if run_on_rank0(self._is_due):
            self.checkpoint()
        self.last_time = time.monotonic()

    def log_row(self, row: dict[str, float]) -> None:
        """Writes one row to `metrics.jsonl` and to TensorBoard."""
        self.rows.append(row)
        if rank() > 0:
            return
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        for name, value in row.items():
            self.board.add_scalar(name, value, row["num_timesteps"])

    def _is_due(self) -> bool:
        return time.monotonic() - self.last_checkpoint > max(CHECKPOINT_SECONDS, 20 * self.checkpoint_seconds)

    def checkpoint(self) -> None:
        """Saves the agent; the old checkpoint is kept until the new one is complete."""
        started = time.monotonic()
        now, new, old = (self.folder / name for name in CHECKPOINTS)
        if rank() == 0:
            shutil.rmtree(new, ignore_errors=True)
        self.agent.save(new)
        if rank() == 0:
            if now.exists():
                shutil.rmtree(old, ignore_errors=True)
                os.replace(now, old)
            os.replace(new, now)
            shutil.rmtree(old, ignore_errors=True)
        self.last_checkpoint = time.monotonic()
        self.checkpoint_seconds = self.last_checkpoint - started


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of `metrics.jsonl`, without a last line that was cut off."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _prefixed(measured: dict[str, float]) -> dict[str, float]:
    return {f"eval/{name}": value for name, value in measured.items()}
