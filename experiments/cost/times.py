"""Seconds of one update: its operations, counted without the device, times the constants measured on the device."""

from __future__ import annotations

from typing import Any

from experiments.cost.device import Device, measure_device, seconds_of
from experiments.cost.equations import Job, Shape, dtype_of, head_width, network_seconds
from experiments.cost.phases import count_phases

Seconds = dict[str, dict[str, float]]  # by phase, then by term


def measure_for(config: Any, job: Job, device: str = "cpu") -> Device:
    """Measures a device for a model of a Hugging Face config: in its dtype, with heads of its width."""
    return measure_device(device, dtype_of(job), head_width(config))


def estimate(config: Any, job: Job, device: Device, on_cpu: bool = True) -> Seconds:
    """Estimates the seconds of an update on one device.

    Args:
        config: the model's Hugging Face config.
        job: sizes of the update.
        device: the constants of `measure_for`.
        on_cpu: whether torch steps the optimizer weight by weight, as on a CPU.

    Returns:
        Of "sampling", "scoring", "update" the seconds by term of `seconds_of`; of "network" those of one term.
    """
    phases = {name: seconds_of(work, device) for name, work in count_phases(config, job, foreach=not on_cpu).items()}
    return phases | {"network": {"network": network_seconds(Shape.of(config), job)}}
