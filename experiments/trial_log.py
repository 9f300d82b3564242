"""The log of a trial: metrics, evaluations and checkpoints, written while an agent trains.

TensorBoard's events and Weights & Biases are outputs: nothing reads them to resume.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from agents import Agent, files
from agents.files import JsonObject
from agents.sampling import Rollout
from agents.training import check_finite, rank, run_on_rank0
from experiments.agent_classes import short_name
from experiments.checkpoints import CHECKPOINT, Checkpoint, attachment
from experiments.config import TrialConfig
from experiments.console import completions_table, plain_console
from experiments.errors import FlagError
from experiments.evaluation import Evaluator
from experiments.library_agent import LibraryAgent
from experiments.metrics_file import METRICS_FILE, Kept, Row, describe_gaps, find_gaps, kept_metrics
from experiments.reference_completions import Measured
from experiments.run_folder import plain
from experiments.token_samples import drop_samples_after, write_samples
from textenv import get_mdp
from textenv.data import printable

CHECKPOINT_SECONDS = 10.0  # least time between checkpoints; longer where they would take over a twentieth of the time


class TrialLog:
    """The callback of `learn`: logs metrics after each update, evaluates on a grid of tokens, saves checkpoints.

    Args:
        config: the flags of the trial.
        folder: its folder.
        initial: the folder of the run's initial policy and baselines.
        baselines: the reference's J, and the optimum's where it is known.
        evaluator: measures the policy.
        agent: a new agent, or that of `resumed`.
        progress: called with the number of tokens sampled since its last call.
        resumed: the checkpoint from which the trial resumes.

    Attributes:
        rows: the rows of `metrics.jsonl`.
        gaps: updates whose rows were lost, see `find_gaps`.
        seconds: training time, without evaluations and checkpoints.
        cpu_seconds: processor time of this OS process in the same, over all its threads.
        metrics_file: rank 0's file of the rows.
    """

    metrics_file: files.Rows

    def __init__(
        self,
        config: TrialConfig,
        folder: Path,
        initial: Path,
        baselines: JsonObject,
        evaluator: Evaluator,
        agent: Agent | LibraryAgent,
        progress: Callable[[int], None],
        resumed: Checkpoint | None = None,
    ) -> None:
        self.config, self.folder, self.initial, self.baselines = config, folder, initial, baselines
        self.evaluator = evaluator
        self.agent, self.progress = agent, progress
        self.grid = np.linspace(0, config.total_timesteps, config.num_evals + 1)
        saved = None if resumed is None else resumed.manifest
        self.kept: Kept = run_on_rank0(lambda: kept_metrics(folder, saved))
        self.rows = list(self.kept.rows)
        self.gaps = [] if agent.num_timesteps == 0 else find_gaps(self.rows, agent.num_updates)
        if self.gaps and rank() == 0:
            text = f"{folder}: {describe_gaps(self.gaps)}; the trial continues without them."
            print(printable(text), file=sys.stderr)
        self.seconds = 0.0 if saved is None else float(saved["seconds"])
        self.cpu_seconds = 0.0 if saved is None else float(saved.get("cpu_seconds", 0.0))
        self.saved_updates = None if saved is None else saved["num_updates"]
        self.reported = agent.num_timesteps
        self.last_time = self.last_checkpoint = time.monotonic()
        self.checkpoint_seconds = 0.0

    def __enter__(self) -> TrialLog:
        with ExitStack() as opened:
            if rank() == 0:
                self._open(opened)
            if self.agent.num_timesteps == 0 and not self.rows:
                _, columns = self._evaluate()
                self.log_row({"num_timesteps": 0, "num_updates": 0, "seconds": 0.0, "cpu_seconds": 0.0} | columns)
            if self.saved_updates is None:  # a run that diverges at once, or is stopped, has a good checkpoint too
                self.checkpoint()
            self.opened = opened.pop_all()
        self.last_time, self.last_cpu_time = time.monotonic(), time.process_time()
        return self

    def _open(self, opened: ExitStack) -> None:
        """Opens Weights & Biases, TensorBoard and, last, the file of the metrics: errors of theirs cost no rows."""
        if self.config.wandb_project is not None:
            import wandb  # from here on it mirrors TensorBoard

            name = f"{short_name(self.config.agent)}-seed-{self.config.seed}"
            try:
                wandb.init(
                    project=self.config.wandb_project,
                    name=name,
                    dir=self.folder,
                    config=plain(self.config),
                    sync_tensorboard=True,
                    reinit="finish_previous",
                )
            except wandb.errors.Error as error:
                raise FlagError(f"--wandb-project {self.config.wandb_project}: {error}") from error
            opened.callback(wandb.finish)
        drop_samples_after(self.folder, self.agent.num_updates)
        with files.storage_errors("write events to", self.folder):
            purge = self.agent.num_timesteps + 1 if self.saved_updates is not None else None
            self.board = SummaryWriter(str(self.folder), purge_step=purge)
        opened.callback(self._close_board)
        path = self.folder / METRICS_FILE
        if not path.is_file() or path.read_bytes() != self.kept.content:
            files.write_file(path, lambda new: new.write_bytes(self.kept.content), sync=True)
        self.metrics_file = files.Rows(path)
        opened.callback(self.metrics_file.close)

    def _close_board(self) -> None:
        with files.storage_errors("write events to", self.folder):
            self.board.close()

    def __exit__(self, *error: object) -> None:
        self.opened.close()

    def __call__(self, agent: Agent | LibraryAgent, rollout: object, metrics: dict[str, float]) -> None:
        """Logs one update: its metrics, an evaluation and a checkpoint where they are due.

        Raises:
            Diverged: the policy is to be evaluated or saved, and is not finite.
        """
        self.seconds += time.monotonic() - self.last_time  # without evaluations and checkpoints
        self.cpu_seconds += time.process_time() - self.last_cpu_time
        row: Row = {"num_timesteps": agent.num_timesteps, "num_updates": agent.num_updates}
        row |= {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds, **metrics}
        if np.searchsorted(self.grid, self.reported, "right") < np.searchsorted(
            self.grid, agent.num_timesteps, "right"
        ):
            check_finite(agent.policy, get_mdp(agent.env))
            measured, columns = self._evaluate()
            reference, optimum = self.baselines["reference"], self.baselines["optimum"]
            row |= columns | agent.health.observe_evaluation(measured, reference, optimum)
        self.log_row(row)
        every = self.config.log_completions
        if rank() == 0 and every and agent.num_updates % every == 0 and isinstance(rollout, Rollout):
            plain_console().print(completions_table(rollout, agent.num_updates))
        self.progress(agent.num_timesteps - self.reported)
        self.reported = agent.num_timesteps
        if run_on_rank0(self._is_due):
            self.checkpoint()
        self.last_time, self.last_cpu_time = time.monotonic(), time.process_time()

    def _evaluate(self) -> tuple[Measured, Row]:
        """Measures the policy and writes samples; returns the numbers, and the columns of a row with them."""
        known = self.evaluator.evaluate_exactly(self.agent.policy)
        measured = self.evaluator.measure(self.agent.policy, known)
        if count := self.config.samples_per_eval:
            run_on_rank0(lambda: write_samples(self.folder, self.evaluator, self.agent, count, known))
        columns = {f"eval/{name}": value for name, value in measured.items()}
        if self.evaluator.held_out is not None:
            of_others = self.evaluator.held_out.measure(self.agent.policy)
            columns |= {f"held_out/{name}": value for name, value in of_others.items()}
        return measured, columns

    def log_row(self, row: Row) -> None:
        """Writes one row to `metrics.jsonl` and to TensorBoard; a number that is not finite is None."""
        row = files.finite(row)
        self.rows.append(row)
        if rank() > 0:
            return
        self.metrics_file.append(row)
        with files.storage_errors("write events to", self.folder):
            for name, value in row.items():
                if value is not None:
                    self.board.add_scalar(name, value, row["num_timesteps"])

    def rows_before_gaps(self) -> list[Row]:
        """The rows before the first that was lost: what a metric did first is known up to there."""
        return [row for row in self.rows if not self.gaps or row["num_updates"] < self.gaps[0][0]]

    def _is_due(self) -> bool:
        since = time.monotonic() - self.last_checkpoint
        if self.config.checkpoint_seconds is not None:
            return since >= self.config.checkpoint_seconds
        return since > max(CHECKPOINT_SECONDS, 20 * self.checkpoint_seconds)

    def checkpoint(self) -> None:
        """Saves the agent, unless this update was saved already; earlier checkpoints stay until the new one is whole.

        Raises:
            Diverged: the policy is not finite; the earlier checkpoints are left as they are.
            StorageError: the disk is full or cannot be written; likewise.
        """
        if self.saved_updates == self.agent.num_updates:
            return
        started = time.monotonic()
        check_finite(self.agent.policy, get_mdp(self.agent.env))
        attached = self._attachment() if rank() == 0 else None
        self.agent.save(self.folder / CHECKPOINT, self.config.keep_checkpoints, attached)
        self.saved_updates = self.agent.num_updates
        self.last_checkpoint = time.monotonic()
        self.checkpoint_seconds = self.last_checkpoint - started

    def _attachment(self) -> JsonObject:
        return attachment(
            self.folder,
            self.initial,
            num_timesteps=self.agent.num_timesteps,
            num_updates=self.agent.num_updates,
            seconds=self.seconds,
            cpu_seconds=self.cpu_seconds,
            metrics=self.metrics_file.sync(),
        )
