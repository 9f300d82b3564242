"""One training run on several devices: `accelerate launch -m experiments train ...`.

accelerate starts the processes and makes of the policy a module that averages gradients over them (DDP); how many there
are and where is its own configuration's (`accelerate config`, or flags of `accelerate launch`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from experiments.config import FlagError


def is_launched() -> bool:
    """Whether a launcher started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join(device: str) -> tuple[Callable[[Any], Any], str]:
    """Meet the other processes; what to wrap a policy in (see `Agent.distribute`), and this process's device.

    Raises:
        FlagError: accelerate is not installed, or was told to shard.
    """
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs
    except ImportError as error:
        raise FlagError("several processes need accelerate: pip install textenv[accelerate].") from error
    # When a rank fails, the launcher ends the others; one that waits for it in a collective runs no handler of Python's
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":  # gradients would be right, checkpoints would not
        raise FlagError("train keeps whole weights on each device: launch it with --multi_gpu, not with --use_fsdp.")
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision="no",  # the distribution that samples is the one that learns: --dtype is for both
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],  # not all agents use the head
    )
    own = accelerator.device  # "cpu:0" is a device where no file can be read to
    return accelerator.prepare_model, own.type if own.type == "cpu" else str(own)
