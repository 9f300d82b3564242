"""One training run on several devices: `accelerate launch -m experiments train ...`.

accelerate starts the processes; how many there are and where is its own configuration's (`accelerate config`, or flags
of `accelerate launch`), and so is whether each holds whole weights or a part of them (FSDP2). All must see the run's
folder: each reads the policy to start from, and checkpoints, which the first has written.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from agents.training import shard
from experiments.errors import FlagError

TOLD = ("VERSION", "OFFLOAD_PARAMS", "ACTIVATION_CHECKPOINTING", "RESHARD_AFTER_FORWARD")


def is_launched() -> bool:
    """Whether a launcher started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(device: str) -> Iterator[tuple[Callable[[Any], Any] | None, str]]:
    """Meet the other processes, and part at the end; what shards a policy, if anything (`Agent.distribute`), a device.

    Raises:
        FlagError: accelerate is not installed, or was told what cannot be.
    """
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise FlagError("several processes need accelerate: pip install textenv[accelerate].") from error
    # When a rank fails, the launcher ends the others; one that waits for it in a collective runs no handler of Python's
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sharding = sharding_from_environment() if os.environ.get("ACCELERATE_USE_FSDP") == "true" else None
    # the distribution that samples is the one that learns: --dtype is for both
    own = Accelerator(cpu=device == "cpu", mixed_precision="no").device
    yield sharding, own.type if own.type == "cpu" else str(own)  # "cpu:0" is a device where no file can be read to
    torch.distributed.destroy_process_group()


def sharding_from_environment() -> Callable[[Any], Any]:
    """What shards a policy, as accelerate's configuration has it.

    Raises:
        FlagError: it wants what `agents.sharding.shard` does not do; says which flag of `accelerate launch` to change.
    """
    told = {name: os.environ.get(f"FSDP_{name}", "").lower() for name in TOLD}
    if told["VERSION"] != "2":
        raise FlagError("train shards by FSDP2: add --fsdp_version 2 to --use_fsdp.")
    if told["OFFLOAD_PARAMS"] == "true":
        raise FlagError("train keeps weights on the devices: set --fsdp_offload_params false.")
    if told["ACTIVATION_CHECKPOINTING"] == "true":
        raise FlagError("activation checkpointing is a flag of train's: --gradient-checkpointing.")
    # else transformers reads weights on the first rank alone, and those of the others, the reference's too, are noise
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # which nobody here writes to
    return partial(shard, reshard_after_forward=told["RESHARD_AFTER_FORWARD"] != "false")
