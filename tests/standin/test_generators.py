"""Random numbers of the device: its generators, and the default one."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from tests.helpers.standin import DEVICE


def draw(generator: torch.Generator | None = None) -> list[float]:
    """Three numbers drawn on the device."""
    return torch.rand(3, generator=generator, device=DEVICE).tolist()  # type: ignore[no-any-return]


def test_a_generator_is_the_devices() -> None:
    """It says so, and is a generator. Control: those of the CPU are as before."""
    generator, other = torch.Generator(DEVICE), torch.Generator()
    assert generator.device == torch.device(DEVICE, 0) and other.device == torch.device("cpu")
    assert isinstance(generator, torch.Generator) and isinstance(other, torch.Generator)
    assert isinstance(torch.default_generator, torch.Generator) and not isinstance(3, torch.Generator)


def test_its_state_is_saved_and_set() -> None:
    """By `get_state`, a clone, a copy and pickle; the state is a tensor of the CPU, as CUDA's is."""
    generator = torch.Generator(DEVICE).manual_seed(4)
    state = generator.get_state()
    others = [generator.clone_state(), pickle.loads(pickle.dumps(generator)), copy.deepcopy(generator)]
    first, second = draw(generator), draw(generator)
    assert state.device.type == "cpu" and first != second and generator.initial_seed() == 4
    assert [draw(other) for other in others] == [first] * 3
    generator.set_state(state)
    assert draw(generator) == first


def test_manual_seed_seeds_the_device_too() -> None:
    """And `fork_rng` restores its default generator, where the device is named."""
    torch.manual_seed(5)
    first, on_cpu = draw(), torch.rand(3)
    torch.manual_seed(5)
    assert draw() == first == on_cpu.tolist()
    state = torch.get_device_module(DEVICE).get_rng_state()
    for devices, restored in (([DEVICE], True), ([], False)):
        with torch.random.fork_rng(devices=devices, device_type=DEVICE):
            draw()
        assert torch.equal(torch.get_device_module(DEVICE).get_rng_state(), state) == restored


@pytest.mark.parametrize("device", ["cpu", DEVICE])
def test_the_default_generators_are_apart(device: str) -> None:
    """What draws on one device leaves the other's numbers alone, dropout included, which takes no generator."""
    other = DEVICE if device == "cpu" else "cpu"

    def state(place: str) -> torch.Tensor:
        return torch.get_rng_state() if place == "cpu" else torch.get_device_module(DEVICE).get_rng_state()

    x = torch.ones(50, device=device)
    for work in (lambda: torch.randn(3, device=device), lambda: torch.nn.functional.dropout(x, 0.5), x.exponential_):
        here, there = state(device), state(other)
        work()
        assert not torch.equal(state(device), here) and torch.equal(state(other), there)


def test_dropout_drops_what_it_drops_on_the_cpu() -> None:
    """With the same seed."""
    torch.manual_seed(6)
    expected = torch.nn.functional.dropout(torch.ones(50), 0.5)
    torch.manual_seed(6)
    found = torch.nn.functional.dropout(torch.ones(50, device=DEVICE), 0.5)
    assert torch.equal(found.cpu(), expected) and 5 < int((found == 0).sum()) < 45
