"""A run of a page: one agent with one seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agents.files import JsonObject
from experiments.failure import TrialFailure
from experiments.html_report.sampled import Step
from experiments.metrics_file import Row


@dataclass
class Run:
    """What is known of one agent with one seed.

    Attributes:
        folder: its folder.
        agent: the name of the agent on the page.
        seed: its seed.
        flags: of its `config.json`.
        rows: of its `metrics.jsonl`.
        summary: its `summary.json`; of a run that has not finished, the same from its last evaluation.
        finished: whether it has.
        failure: why it has not; None where that is not known.
        steps: its sampled completions, by update.
        tree: see `state_tree`; None where there is none.
    """

    folder: Path
    agent: str
    seed: int
    flags: JsonObject
    rows: list[Row]
    summary: JsonObject
    finished: bool
    steps: list[Step]
    tree: JsonObject | None = None
    failure: TrialFailure | None = None

    @property
    def name(self) -> str:
        """Agent and seed."""
        return f"{self.agent}, seed {self.seed}"
