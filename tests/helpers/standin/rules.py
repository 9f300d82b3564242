"""What the device refuses: what CUDA refuses, and on request what MPS lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from tests.helpers.standin.generator import DeviceGenerator, is_of_device
from tests.helpers.standin.memory import TYPE, is_device, on_device

# Operators that read a CPU tensor of no dimensions as a number, beside those that torch tags as pointwise.
NUMBERS = {
    "masked_fill",
    "masked_fill_",
    "fill_",
    "index_fill",
    "index_fill_",
    "index_put",
    "index_put_",
    "_index_put_impl_",
}
_forbidden: set[torch.dtype] = set()


@contextmanager
def without_float64() -> Iterator[None]:
    """Within it the device has no float64, like MPS."""
    _forbidden.add(torch.float64)
    try:
        yield
    finally:
        _forbidden.clear()


def check_dtype(dtype: torch.dtype) -> None:
    """Raises a TypeError, as MPS does, for a dtype that the device lacks."""
    if dtype in _forbidden:
        raise TypeError(f"Cannot convert a {TYPE} Tensor to {dtype}: the device has none. Use float32 instead.")


def check_devices(name: str, written: Sequence[Tensor], host: Sequence[Tensor], takes_numbers: bool) -> None:
    """Raises a RuntimeError if an operator of the device has a CPU tensor that CUDA would refuse.

    Args:
        name: the operator.
        written: the tensors that it writes.
        host: the CPU tensors among its arguments.
        takes_numbers: whether CPU tensors of no dimensions are read as numbers.
    """
    for tensor in host:
        if tensor.dim() > 0 or not takes_numbers or any(tensor is each for each in written):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {TYPE}:0 and cpu! "
                f"({name}, a CPU tensor of shape {tuple(tensor.shape)})"
            )


def check_generator(generator: Any) -> None:
    """Raises a RuntimeError if a generator of the CPU is to draw on the device."""
    if not is_of_device(generator):
        raise RuntimeError(f"Expected a '{TYPE}' device type for generator but found '{generator.device.type}'")


# The functions that draw random numbers: torch's, and methods of tensors.
FUNCTIONS = ("rand", "randint", "randn", "randperm", "normal", "bernoulli", "multinomial", "poisson", "binomial")
METHODS = (
    *("bernoulli", "bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_"),
    *("multinomial", "normal_", "random_", "uniform_"),
)


def refuse_device_generators_on_the_cpu() -> None:
    """Replaces the functions that draw random numbers by ones that check where a generator of the device draws.

    torch cannot: in C++ such a generator is one of the CPU.
    """
    for name in FUNCTIONS:
        setattr(torch, name, _checked(getattr(torch, name)))
    for name in METHODS:
        setattr(Tensor, name, _checked(getattr(Tensor, name)))


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if isinstance(kwargs.get("generator"), DeviceGenerator):
            places = [*args, kwargs.get("device"), kwargs.get("out")]
            default = is_device(torch.get_default_device())
            if not default and not any(is_device(place) or on_device(place) for place in places):
                raise RuntimeError(f"Expected a 'cpu' device type for generator but found '{TYPE}'")
        return function(*args, **kwargs)

    return checked
