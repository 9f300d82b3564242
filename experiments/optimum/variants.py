"""Which agents are trained on a task of the suite: with which step sizes, settings and seeds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agents.files import JsonObject
from experiments.agent_classes import settings_key, short_name
from experiments.optimum.tasks import SuiteTask

FACTORS = (0.25, 1.0, 4.0)  # of the default step size
GRPO_BETAS = (0.05, 0.2, 0.8)  # for TRL's GRPO: its KL is a mean over tokens, beside advantages divided by their spread
TRL = ("trl-rloo", "trl-grpo")  # they train language models only
GROUPS: JsonObject = {"num_generations": 16, "n_epochs": 4}  # larger groups and more passes than TRL's defaults
DECAY: JsonObject = {"lr_schedule": "linear"}  # as TRL's trainers have it


@dataclass(frozen=True)
class Variant:
    """One agent with one seed.

    Attributes:
        agent: its name.
        seed: its seed.
        factor: its step size, as a multiple of the default for what is trained.
        settings: settings other than the defaults.
        peer: whether it is another library's, of which the best is shown.
    """

    agent: str
    seed: int
    factor: float = 1.0
    settings: JsonObject = field(default_factory=dict, hash=False)
    peer: bool = False

    @property
    def label(self) -> str:
        """The agent, with settings that are not its defaults."""
        shown = (
            f"{name}={value}" if isinstance(value, str) else f"{name}={value:g}"
            for name, value in self.settings.items()
        )
        return " ".join([short_name(self.agent), *shown])

    @property
    def name(self) -> str:
        """The label, with the step size where it is not the default."""
        return self.label + ("" if self.factor == 1 else f", step size x {self.factor:g}")

    def folder(self, task: Path) -> Path:
        """The folder of its trial in that of the task."""
        step_size = "" if self.factor == 1 else f"-x{self.factor:g}"
        return task / f"{self.label.replace(' ', '-')}{step_size}" / f"seed-{self.seed}"

    def all_settings(self) -> JsonObject:
        """As `TrialConfig` takes them."""
        return {settings_key(self.agent): self.settings}


def variants(task: SuiteTask, agents: Sequence[str], peers: Sequence[str], seeds: Sequence[int]) -> list[Variant]:
    """Returns what is trained on a task.

    On toys each agent has its default step size and all seeds. On the stories our agents have that too, and the first
    seed at the other step sizes, and at a step size that falls linearly; RLOO and GRPO also have the groups and passes
    of TRL's. The peers have the first seed at each of three step sizes, and TRL's GRPO also at each of three betas.
    """
    if task.group != "stories":
        names = [(name, name in peers) for name in (*agents, *peers) if name not in TRL]
        return [Variant(name, seed, peer=peer) for seed in seeds for name, peer in names]
    found = [Variant(agent, seed) for seed in seeds for agent in agents]
    found += [Variant(agent, seeds[0], factor) for factor in FACTORS if factor != 1 for agent in agents]
    found += [Variant(agent, seeds[0], settings=DECAY) for agent in agents]
    found += [Variant(agent, seeds[0], settings=GROUPS) for agent in agents if agent in ("rloo", "grpo")]
    for factor, peer in itertools.product(FACTORS, peers):  # all of one step size are trained side by side
        settings = [GROUPS if peer in TRL else {}]
        if peer == "trl-grpo":
            settings = [GROUPS | {"kl_coef": beta} for beta in GRPO_BETAS]
        found += [Variant(peer, seeds[0], factor, each, peer=True) for each in settings]
    return found
