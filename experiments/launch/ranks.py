"""One training run on several ranks: `accelerate launch -m experiments train ...`.

accelerate starts the ranks. Their number and devices come from its configuration (`accelerate config`, or flags of
`accelerate launch`), and so does whether each rank holds whole weights or a shard of them (FSDP2). All ranks must see
the run's folder: each reads the initial policy and checkpoints, which rank 0 has written.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from agents.policy import TransformerPolicy
from agents.training import shard
from experiments.errors import FlagError

Wrap = Callable[[TransformerPolicy], torch.nn.Module]  # makes a sharded copy of a policy, see `Agent.distribute`

FSDP_SETTINGS = ("VERSION", "OFFLOAD_PARAMS", "ACTIVATION_CHECKPOINTING", "RESHARD_AFTER_FORWARD")


def is_launched() -> bool:
    """Whether a launcher started this OS process as one of several ranks."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def process_group(device: str) -> Iterator[tuple[Wrap | None, str]]:
    """Joins the process group of all ranks, and leaves it at the end.

    Yields:
        What shards a policy, or None for whole weights (`Agent.distribute`), and the device of this rank.

    Raises:
        FlagError: accelerate is not installed, or its configuration is not supported.
    """
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise FlagError('several ranks need accelerate: pip install -e ".[accelerate]".') from error
    # When a rank fails, the launcher ends the others. A rank that waits in a collective runs no Python signal handler,
    # so SIGTERM gets its default action, except while a trial trains: there it asks for a checkpoint, all ranks stop
    # after the same update, and the launcher kills a rank that has not ended after half a minute.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sharding = sharding_from_environment() if os.environ.get("ACCELERATE_USE_FSDP") == "true" else None
    # no mixed precision: sampling and update use the same distribution, and --dtype sets the precision of both
    own = Accelerator(cpu=device == "cpu", mixed_precision="no").device
    yield sharding, own.type if own.type == "cpu" else str(own)  # files cannot be loaded to the device "cpu:0"
    torch.distributed.destroy_process_group()


def sharding_from_environment() -> Wrap:
    """Returns what shards a policy, from accelerate's environment variables.

    Raises:
        FlagError: a setting that `agents.training.shard` does not support; names the flag of `accelerate launch`.
    """
    settings = {name: os.environ.get(f"FSDP_{name}", "").lower() for name in FSDP_SETTINGS}
    if settings["VERSION"] != "2":
        raise FlagError("train shards by FSDP2: add --fsdp_version 2 to --use_fsdp.")
    if settings["OFFLOAD_PARAMS"] == "true":
        raise FlagError("train keeps weights on the devices: set --fsdp_offload_params false.")
    if settings["ACTIVATION_CHECKPOINTING"] == "true":
        raise FlagError("activation checkpointing is a flag of train's: --gradient-checkpointing.")
    # otherwise transformers loads weights on rank 0 only; other ranks, the reference included, keep uninitialised ones
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # no code here writes to these views
    return partial(shard, reshard_after_forward=settings["RESHARD_AFTER_FORWARD"] != "false")
