"""Makes torch know the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.utils.backend_registration as registration
from torch.utils._device import _device_constructors

from tests.helpers.standin import generator as generators
from tests.helpers.standin.counts import count_wait
from tests.helpers.standin.kernels import run
from tests.helpers.standin.memory import TYPE, device_storage, is_device, on_device
from tests.helpers.standin.rules import refuse_device_generators_on_the_cpu

DEVICE = TYPE
_libraries: list[torch.library.Library] = []  # what they register lasts as long as they do


def is_supported() -> bool:
    """Whether this torch has the private functions that the device is made of."""
    needed = [
        (registration, "_setup_privateuseone_for_python_backend"),
        (getattr(torch._C, "_acc", None), "create_empty_tensor"),
        (torch._C, "_construct_storage_from_data_pointer"),
    ]
    return all(hasattr(owner, name) for owner, name in needed)


class BackendModule(registration._DummyBackendModule if is_supported() else object):  # type: ignore[misc]
    """`torch.standin`, as there is `torch.cuda`."""

    def manual_seed_all(self, seed: int) -> None:
        """Seeds the default generator; `torch.manual_seed` calls it."""
        generators.default.manual_seed(seed)

    manual_seed = manual_seed_all

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        """The state of the default generator."""
        return generators.default.get_state()  # type: ignore[no-any-return]

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        """Sets the state of the default generator."""
        generators.default.set_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """The dtypes of autocast."""
        return [torch.bfloat16, torch.float16]

    def synchronize(self, device: Any = None) -> None:
        """Waits for the device."""
        count_wait("synchronize")

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        """Selects the only device."""
        yield

    def set_device(self, device: Any) -> None:
        """Selects the only device."""

    def get_device_name(self, device: Any = None) -> str:
        """What it is."""
        return "a stand-in, computed on the CPU"


def install() -> None:
    """Registers the device with torch, for the rest of this process. Further calls do nothing.

    Raises:
        RuntimeError: this torch has no Python backends.
    """
    if _libraries:
        return
    if not is_supported():
        raise RuntimeError(f"torch {torch.__version__} has no Python backends: ask is_supported() first.")
    registration._setup_privateuseone_for_python_backend(TYPE, backend_module=BackendModule())
    # It remembers torch's own functions, before some are replaced here. `torch.device("meta")`, in which transformers
    # loads models, would not know them otherwise, and rotary buffers would be left without numbers.
    _device_constructors()
    torch.Generator = generators.Generator  # type: ignore[misc, assignment]
    refuse_device_generators_on_the_cpu()
    _replace_new_storages()
    _keep_numbers_on_the_host()
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(run, "PrivateUse1")
    aten = torch.library.Library("aten", "IMPL")
    for name in sorted(torch._C._dispatch_get_all_op_names()):
        if has_cpu_kernel(name):
            aten.impl(name, partial(run, _overload(name)), "PrivateUse1")
    aten.impl("_has_compatible_shallow_copy_type", _has_compatible_type, "PrivateUse1")
    _libraries.extend([*generators.setup(), everything, aten])


def has_cpu_kernel(name: str) -> bool:
    """Whether an operator is run whole by the CPU, rather than as a sequence of other operators."""
    if not name.startswith("aten::"):
        return False
    return (
        torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
        or name in ("aten::copy_", "aten::_to_copy")
        or name.startswith("aten::_foreach_")  # one launch for all tensors on CUDA
    )


def _overload(name: str) -> Any:
    """The operator of a name such as `aten::add.Tensor`."""
    packet, _, overload = name.removeprefix("aten::").partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _has_compatible_type(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """`module.to(device)` keeps the parameters, and with them tied weights, as it does on CUDA."""
    return on_device(other) or other.device.type == "cpu"


def _replace_new_storages() -> None:
    """`UntypedStorage(bytes, device=...)`, by which torch copies and loads tensors."""
    create = torch.UntypedStorage.__new__

    def new(cls: Any, *args: Any, device: Any = None, **kwargs: Any) -> Any:
        if is_device(device):
            return device_storage(torch.UntypedStorage(*args, **kwargs))
        return create(cls, *args, **kwargs) if device is None else create(cls, *args, device=device, **kwargs)

    torch.UntypedStorage.__new__ = new  # type: ignore[method-assign, assignment]


def _keep_numbers_on_the_host() -> None:
    """`x[...] = number` passes the number to the kernel, as on CUDA. For other devices torch makes a tensor there."""
    set_item = torch.Tensor.__setitem__

    def set_number(tensor: torch.Tensor, index: Any, value: Any) -> None:
        if on_device(tensor) and isinstance(value, (bool, int, float)):
            value = torch.tensor(value, dtype=tensor.dtype, device="cpu")
        set_item(tensor, index, value)

    torch.Tensor.__setitem__ = set_number  # type: ignore[method-assign]
