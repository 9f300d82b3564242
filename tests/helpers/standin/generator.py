"""Random numbers of the device: generators of its own, and a default one.

A generator of the device is a CPU generator whose `device` is the device. With the same seed it gives the numbers
of the CPU, so that results can be compared. `rules` refuses it on the CPU, and CPU generators on the device.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tests.helpers.standin.memory import TYPE, is_device

CPUGenerator: Any = torch._C.Generator

# An operator does not get the generator that it was called with, but another object for the same state: the same one
# each time, as long as it lives. `remember` is an operator that keeps what it gets.
_seen: list[Any] = []
# The device's generators, by the id of that object.
_of_device: weakref.WeakValueDictionary[int, DeviceGenerator] = weakref.WeakValueDictionary()


def setup() -> list[torch.library.Library]:
    """Defines that operator, and makes the default generator; returns what must be kept."""
    global default
    library = torch.library.Library(TYPE, "DEF")
    library.define("remember(Generator generator) -> ()")
    library.impl("remember", _seen.append, "CompositeExplicitAutograd")
    default = DeviceGenerator()
    return [library]


def is_of_device(generator: Any) -> bool:
    """Whether a generator, as an operator gets it, is one of the device."""
    return isinstance(generator, DeviceGenerator) or id(generator) in _of_device


class DeviceGenerator(CPUGenerator):
    """A generator of the device."""

    def __new__(cls, device: Any = TYPE) -> DeviceGenerator:
        generator = CPUGenerator.__new__(cls, "cpu")
        torch.ops.standin.remember(generator)
        generator.seen = _seen.pop()
        _of_device[id(generator.seen)] = generator
        return generator  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        return torch.device(TYPE, 0)

    def clone_state(self) -> DeviceGenerator:
        clone = DeviceGenerator()
        clone.set_state(self.get_state())
        return clone

    def __reduce__(self) -> Any:
        return (_restore, (self.get_state(),))


def _restore(state: torch.Tensor) -> DeviceGenerator:
    generator = DeviceGenerator()
    generator.set_state(state)
    return generator


class _AnyGenerator(type):
    """`torch.Generator(device)` of each device; all of them are its instances."""

    def __call__(cls, device: Any = "cpu") -> Any:
        return DeviceGenerator() if is_device(device) else CPUGenerator(device)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, CPUGenerator)

    def __subclasscheck__(cls, kind: type) -> bool:
        return issubclass(kind, CPUGenerator)


class Generator(metaclass=_AnyGenerator):
    """Replaces `torch.Generator`, which cannot make generators of a Python backend."""


default: DeviceGenerator  # of operators that are given none, see `setup`


@contextmanager
def default_numbers() -> Iterator[None]:
    """Within it, operators that take no generator draw from the device's default on the CPU."""
    host = torch.default_generator
    before = host.get_state()
    host.set_state(default.get_state())
    try:
        yield
    finally:
        default.set_state(host.get_state())
        host.set_state(before)
