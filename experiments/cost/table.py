"""cost: prints whether a run fits in memory and how long an update takes, as this package estimates."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import torch
from rich.table import Table
from transformers import AutoConfig

from experiments.console import plain_console
from experiments.cost.check import Compared, check
from experiments.cost.equations import GB, SHAPES, Job, Shape, largest_micro_batch, memory
from experiments.cost.made import MADE, save_random_gpt2
from experiments.cost.times import estimate, measure_for
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
    device: str | None = None
    """Estimate seconds, too, on this device: cpu (one thread), cuda or another one of torch. It is measured first, in
    two seconds."""
    check: list[str] = field(default_factory=list)
    """Folders of small models, or gpt2-4x128, gpt2-3x384, gpt2-6x96, gpt2-2x256, gpt2-1x512 (random
    weights): measure updates of each in --dtype on
    --device (default cpu), and print the estimates beside."""
    out: Path | None = None
    """With --check: a folder for cost.json and cost.txt."""

    def __post_init__(self) -> None:
        check_flags(self)
        if self.device is not None:
            _check_device(self.device)
        if self.out is not None and not self.check:
            raise FlagError("--out needs --check: a table of estimates is only printed.")
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


def _check_device(name: str) -> None:
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise FlagError(f"--device {name}: torch cannot use it here ({str(error).splitlines()[0]:.100})") from error


def cost(config: CostConfig) -> None:
    """Prints the table and whether each run fits, or with --check estimates beside measurements on this machine."""
    console = plain_console(width=None if sys.stdout.isatty() else 180)
    if config.device in (None, "cpu"):
        torch.set_num_threads(1)
    if config.check:
        rows = checked_rows(config.check, config.dtype, config.device or "cpu")
        table = check_table(rows, config.dtype)
        console.print(table)
        if config.out is not None:
            write_check(rows, table, config.out)
        return
    try:
        configs = (
            {name: shape.config for name, shape in SHAPES.items()}
            if config.model is None
            else {config.model: load_pretrained(AutoConfig, config.model)}
        )
        console.print(cost_table(config, configs))
    except (OSError, ValueError, AttributeError) as error:
        raise FlagError(f"--model {config.model}: {str(error).splitlines()[0]}") from error
    console.print(
        "total: peak memory, with logits and their gradients, which the other columns omit (cost/equations.py)."
    )


def cost_table(config: CostConfig, configs: dict[str, Any]) -> Table:
    """One row per model and number of devices: GB on one device; with --device seconds per update, and their largest
    term in sampling."""
    limit = config.memory_gb * GB
    title = f"{config.n_episodes} x ({config.prompt_tokens} + {config.max_new_tokens}) tokens, {config.n_epochs} epochs"
    seconds = "CPU seconds" if config.device == "cpu" else "seconds"
    timed = f", {seconds} per update by the constants of this {config.device}" if config.device else ""
    table = Table(title=f"{title}, {config.dtype}: GB on one device{timed}")
    held = ["weights", "gradients", "optimizer", "reference", "KV cache", "activations"]
    phases = ["sampling", "scoring", "update", "network", "most of sampling"] if config.device else []
    for column in ("model", "devices", "micro-batch", *held, "total", "fits", *phases):
        table.add_column(column, justify="left" if column in ("model", "fits", "most of sampling") else "right")
    for name, model in configs.items():
        shape = Shape.of(model)
        constants = measure_for(model, config.job(config.devices[0]), config.device) if config.device else None
        for devices in config.devices:
            job = config.job(devices)
            if config.micro_batch_size is None:
                job = largest_micro_batch(shape, job, limit)
            sizes, times = memory(shape, job), list[str]()
            if constants is not None:
                terms = estimate(model, job, constants, config.device == "cpu")
                times = [f"{sum(seconds.values()):.2g}" for seconds in terms.values()]
                times.append(max(terms["sampling"], key=terms["sampling"].__getitem__))
            table.add_row(
                *(name, str(devices), str(job.micro_batch)),
                *(f"{sizes[name] / GB:.3g}" for name in (*held, "total")),
                "yes" if sizes["total"] <= limit else "no",
                *times,
            )
    return table


class Row(NamedTuple):
    """A line of the check: one quantity of one job."""

    model: str
    job: Job
    compared: Compared


def checked_rows(paths: list[str], dtype: str, device: str) -> list[Row]:
    """Compares a few updates of each model."""
    rows = []
    with TemporaryDirectory() as folder:
        for path in paths:
            made = MADE.get(path)
            source = path if made is None else save_random_gpt2(Path(folder) / path, **made)
            try:
                load_tokenizer(source)
            except (OSError, ValueError) as error:
                raise FlagError(f"--check {path}: {str(error).splitlines()[0]}") from error
            for job in CHECKED:
                job = dataclasses.replace(job, bytes=4 if dtype == "float32" else 2)
                name = path.rstrip("/").split("/")[-1]
                rows += [Row(name, job, compared) for compared in check(source, job, device)]
    return rows


def check_table(rows: list[Row], dtype: str) -> Table:
    """Estimated and measured numbers, and the first divided by the second."""
    table = Table(title=f"one update of PPO in {dtype}: estimated, and measured on this machine")
    for column in ("model", "completions", "micro-batch", "quantity", "estimated", "measured", "ratio"):
        table.add_column(column, justify="left" if column in ("model", "quantity") else "right")
    for model, job, (quantity, estimated, measured) in rows:
        numbers = (f"{estimated:.3g}", f"{measured:.3g}", f"{estimated / measured:.2f}")
        table.add_row(model, str(job.episodes), str(job.micro_batch), quantity, *numbers)
    return table


def write_check(rows: list[Row], table: Table, folder: Path) -> None:
    """Writes cost.json and cost.txt."""
    found = {
        "command": "python -m experiments " + shlex.join(sys.argv[1:]),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "rows": [{"model": model, **dataclasses.asdict(job), **compared._asdict()} for model, job, compared in rows],
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cost.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        with (folder / "cost.txt").open("w", encoding="utf-8") as file:
            plain_console(width=120, file=file).print(table)
    except OSError as error:
        raise FlagError(f"--out {str(folder)!r} cannot be written: {error}") from error
