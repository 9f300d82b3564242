"""cost: does a run fit, and how long does an update take? The table of `experiments/cost.py`."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from typing import Literal

import torch
from rich.table import Table
from transformers import AutoConfig, AutoTokenizer

from experiments.console import plain_console
from experiments.cost.check import check
from experiments.cost.equations import GB, SHAPES, Device, Job, Shape, memory, roomiest, seconds, step_seconds
from experiments.errors import FlagError

CHECKED = (Job(16, 16, 32, 4, 1), Job(32, 16, 32, 16, 1), Job(64, 16, 48, 2, 1))  # in the --dtype


@dataclass
class CostConfig:
    """Memory and time of an update on paper, before a run: python -m experiments cost --model PATH."""

    model: str | None = None
    """A causal language model, path or hub id; by default 0.26M, 3M, 124M (GPT-2), 1B (Llama 3.2) and 7B (Llama 2)."""
    devices: list[int] = field(default_factory=lambda: [1, 8, 64])
    """How many devices share an update."""
    n_episodes: int = 512
    """Answers an update, on all devices."""
    prompt_tokens: int = 64
    """Tokens of a prompt."""
    max_new_tokens: int = 64
    """Tokens of an answer."""
    n_epochs: int = 4
    """How often each answer is used."""
    micro_batch_size: int | None = None
    """Answers in a device's memory at once while learning; by default as many as fit."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of weights, caches and activations."""
    lora_rank: int = 0
    """Train an adapter of this rank on the reference's own weights."""
    gradient_checkpointing: bool = False
    """Keep each layer's input alone while learning."""
    separate_critic: bool = False
    """A critic with a trunk of its own."""
    sharded: bool = False
    """Divide what learns among the devices: accelerate launch --use_fsdp."""
    memory_gb: float = 80.0
    """Of one device."""
    check: list[str] = field(default_factory=list)
    """Folders of small models: measure updates of each here in --dtype, beside what paper says, and print the error."""

    def __post_init__(self) -> None:
        for name in ("n_episodes", "prompt_tokens", "max_new_tokens", "n_epochs", "memory_gb"):
            if getattr(self, name) <= 0:
                raise FlagError(f"--{name.replace('_', '-')} must be positive, got {getattr(self, name)}.")
        for name, least in (("lora_rank", 0), ("micro_batch_size", 1)):
            if (told := getattr(self, name)) is not None and told < least:
                raise FlagError(f"--{name.replace('_', '-')} must be at least {least}, got {told}.")
        if not self.devices:
            raise FlagError("--devices: name one number at least.")
        for devices in self.devices:
            if devices < 1 or self.n_episodes % devices:
                raise FlagError(f"--devices must divide --n-episodes ({self.n_episodes}), got {devices}.")

    def job(self, devices: int) -> Job:
        """The update that the flags describe."""
        return Job(
            episodes=self.n_episodes,
            prompt=self.prompt_tokens,
            new=self.max_new_tokens,
            micro_batch=min(self.micro_batch_size or 1, self.n_episodes // devices),
            epochs=self.n_epochs,
            bytes=4 if self.dtype == "float32" else 2,
            checkpointing=self.gradient_checkpointing,
            lora_rank=self.lora_rank,
            separate_critic=self.separate_critic,
            sharded=self.sharded,
            devices=devices,
        )


def cost(config: CostConfig) -> None:
    """Print the table, and whether each run fits; with --check the error of the formulas here."""
    console = plain_console(width=None if sys.stdout.isatty() else 180)
    if config.check:
        for path in config.check:
            try:
                AutoTokenizer.from_pretrained(path)
            except (OSError, ValueError) as error:
                raise FlagError(f"--check {path}: {str(error).splitlines()[0]}") from error
        console.print(check_table(config.check, config.dtype))
        return
    try:
        shapes = SHAPES if config.model is None else {config.model: Shape.of(AutoConfig.from_pretrained(config.model))}
    except (OSError, ValueError, AttributeError) as error:
        raise FlagError(f"--model {config.model}: {str(error).splitlines()[0]}") from error
    console.print(cost_table(config, shapes))
    console.print("total: the most at once, beside the columns also logits and their gradients (experiments/cost.py).")


def cost_table(config: CostConfig, shapes: dict[str, Shape]) -> Table:
    """A row a model and number of devices: gigabytes on one device, seconds an update, and what writing is bound by."""
    device = dataclasses.replace(Device(), memory=config.memory_gb * GB)
    title = f"{config.n_episodes} x ({config.prompt_tokens} + {config.max_new_tokens}) tokens, {config.n_epochs} epochs"
    table = Table(title=f"{title}, {config.dtype}: GB on one device, seconds an update (an H100's numbers)")
    held = ["weights", "gradients", "optimizer", "reference", "KV cache", "activations"]
    phases = ["writing", "scoring", "update", "sending"]
    for column in ("model", "devices", "at once", *held, "total", "fits", *phases, "writing is bound by"):
        table.add_column(column, justify="left" if column in ("model", "fits", "writing is bound by") else "right")
    for name, shape in shapes.items():
        for devices in config.devices:
            job = config.job(devices)
            if config.micro_batch_size is None:
                job = roomiest(shape, job, device)
            parts, times = memory(shape, job), seconds(shape, job, device)
            steps = step_seconds(shape, job, device)
            fits = "yes" if parts["total"] <= device.memory else "no"
            table.add_row(
                *(name, str(devices), str(job.micro_batch)),
                *(f"{parts[part] / GB:.3g}" for part in (*held, "total")),
                fits,
                *(f"{times[phase]:.2g}" for phase in phases),
                max(steps, key=lambda what: steps[what]),
            )
    return table


def check_table(paths: list[str], dtype: str) -> Table:
    """What paper says and what was measured here, for a few updates of each model, on one thread."""
    torch.set_num_threads(1)
    table = Table(title=f"one update of PPO in {dtype}: on paper, and measured here")
    for column in ("model", "answers", "at once", "what", "on paper", "measured", "error"):
        table.add_column(column, justify="left" if column in ("model", "what") else "right")
    for path in paths:
        for job in CHECKED:
            job = dataclasses.replace(job, bytes=4 if dtype == "float32" else 2)
            for what, (paper, measured) in check(path, job).items():
                row = (path.rstrip("/").split("/")[-1], str(job.episodes), str(job.micro_batch), what)
                table.add_row(*row, f"{paper:.3g}", f"{measured:.3g}", f"{paper / measured - 1:+.1%}")
    return table
