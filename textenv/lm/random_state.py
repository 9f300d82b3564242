"""torch's global generators, from which models draw: that of the CPU, and that of the model's device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def forked_random_state(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Restores at its end the global generators of the CPU and of `device`.

    Args:
        device: where models draw inside.
        seed: seeds both generators. `torch.manual_seed` seeds those of all devices, and none would restore them.
    """
    on_cpu = device.type == "cpu"
    with torch.random.fork_rng(devices=[] if on_cpu else [device], device_type=None if on_cpu else device.type):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            if not on_cpu:
                set_random_state(torch.Generator(device).manual_seed(seed).get_state(), device)
        yield


def get_random_state(device: torch.device) -> Tensor:
    """Returns the state of the global generator of a device."""
    if device.type == "cpu":
        return torch.get_rng_state()
    state: Tensor = torch.get_device_module(device).get_rng_state(device)
    return state


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Sets the state of the global generator of a device."""
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)
