"""cost: prints whether a run fits in memory and how long an update takes, by the equations of this package."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from typing import Literal

import torch
from rich.table import Table
from transformers import AutoConfig

from experiments.console import plain_console
from experiments.cost.check import check
from experiments.cost.equations import (
    GB,
    SHAPES,
    Device,
    Job,
    Shape,
    largest_micro_batch,
    memory,
    seconds,
    step_seconds,
)
from experiments.errors import FlagError
from experiments.ranges import check_flags
from textenv.lm import load_pretrained, load_tokenizer

CHECKED = (Job(16, 16, 32, 4, 1), Job(32, 16, 32, 16, 1), Job(64, 16, 48, 2, 1))  # in the --dtype


@dataclass
class CostConfig:
    """Estimate memory and time of an update before a run: python -m experiments cost --model PATH."""

    model: str | None = None
    """Path or hub id of a causal language model; by default 0.26M, 3M, 124M (GPT-2), 1B (Llama 3.2), 7B (Llama 2)."""
    devices: list[int] = field(default_factory=lambda: [1, 8, 64])
    """Numbers of devices that share an update; the table has a row for each."""
    n_episodes: int = 512
    """Completions per update, on all devices together."""
    prompt_tokens: int = 64
    """Tokens per prompt."""
    max_new_tokens: int = 64
    """Tokens per completion."""
    n_epochs: int = 4
    """Passes of an update over its completions."""
    micro_batch_size: int | None = None
    """Completions per micro-batch on each device; by default as many as fit."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of weights, KV cache and activations."""
    lora_rank: int = 0
    """Rank of a LoRA adapter on the reference's weights; 0: train a copy of the weights."""
    gradient_checkpointing: bool = False
    """Store only each layer's input for the backward pass."""
    separate_critic: bool = False
    """Give the critic a transformer of its own."""
    sharded: bool = False
    """Shard the trained weights, gradients and moments over the devices: accelerate launch --use_fsdp."""
    memory_gb: float = 80.0
    """Memory of one device, in GB."""
    check: list[str] = field(default_factory=list)
    """Folders of small models: measure updates of each on this machine in --dtype, and print the error of the
    estimates."""

    def __post_init__(self) -> None:
        check_flags(self)
        for devices in self.devices:
            if devices < 1 or self.n_episodes % devices:
                raise FlagError(f"--devices must divide --n-episodes ({self.n_episodes}), got {devices}.")

    def job(self, devices: int) -> Job:
        """Returns the update that the flags describe, on so many devices."""
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
    """Prints the table and whether each run fits, or with --check the error of the estimates on this machine."""
    console = plain_console(width=None if sys.stdout.isatty() else 180)
    if config.check:
        for path in config.check:
            try:
                load_tokenizer(path)
            except (OSError, ValueError) as error:
                raise FlagError(f"--check {path}: {str(error).splitlines()[0]}") from error
        console.print(check_table(config.check, config.dtype))
        return
    try:
        shapes = SHAPES if config.model is None else {config.model: Shape.of(load_pretrained(AutoConfig, config.model))}
    except (OSError, ValueError, AttributeError) as error:
        raise FlagError(f"--model {config.model}: {str(error).splitlines()[0]}") from error
    console.print(cost_table(config, shapes))
    console.print(
        "total: peak memory, with logits and their gradients, which the other columns omit (cost/equations.py)."
    )


def cost_table(config: CostConfig, shapes: dict[str, Shape]) -> Table:
    """One row per model and number of devices: GB on one device, seconds per update, and what bounds sampling."""
    device = dataclasses.replace(Device(), memory=config.memory_gb * GB)
    title = f"{config.n_episodes} x ({config.prompt_tokens} + {config.max_new_tokens}) tokens, {config.n_epochs} epochs"
    table = Table(title=f"{title}, {config.dtype}: GB on one device, seconds per update (on an H100)")
    held = ["weights", "gradients", "optimizer", "reference", "KV cache", "activations"]
    phases = ["sampling", "scoring", "update", "network"]
    for column in ("model", "devices", "micro-batch", *held, "total", "fits", *phases, "sampling is bound by"):
        table.add_column(column, justify="left" if column in ("model", "fits", "sampling is bound by") else "right")
    for name, shape in shapes.items():
        for devices in config.devices:
            job = config.job(devices)
            if config.micro_batch_size is None:
                job = largest_micro_batch(shape, job, device)
            sizes, times = memory(shape, job), seconds(shape, job, device)
            steps = step_seconds(shape, job, device)
            fits = "yes" if sizes["total"] <= device.memory else "no"
            table.add_row(
                *(name, str(devices), str(job.micro_batch)),
                *(f"{sizes[name] / GB:.3g}" for name in (*held, "total")),
                fits,
                *(f"{times[phase]:.2g}" for phase in phases),
                max(steps, key=lambda bound: steps[bound]),
            )
    return table


def check_table(paths: list[str], dtype: str) -> Table:
    """Estimated and measured numbers of a few updates of each model, on one thread of this machine."""
    torch.set_num_threads(1)
    table = Table(title=f"one update of PPO in {dtype}: estimated, and measured on this machine")
    for column in ("model", "completions", "micro-batch", "quantity", "estimated", "measured", "error"):
        table.add_column(column, justify="left" if column in ("model", "quantity") else "right")
    for path in paths:
        for job in CHECKED:
            job = dataclasses.replace(job, bytes=4 if dtype == "float32" else 2)
            for quantity, (estimated, measured) in check(path, job).items():
                row = (path.rstrip("/").split("/")[-1], str(job.episodes), str(job.micro_batch), quantity)
                table.add_row(*row, f"{estimated:.3g}", f"{measured:.3g}", f"{estimated / measured - 1:+.1%}")
    return table
