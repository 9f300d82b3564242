"""Seconds of an update: operations counted without a device, and their times by the constants of a made-up device."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig

from experiments.cost import SHAPES, Job, estimate
from experiments.cost.check import Compared, make_agent
from experiments.cost.device import Device, measure_device, rate_at, seconds_of
from experiments.cost.equations import Shape
from experiments.cost.kernels import Operation, Work, WorkCounter, fake_tensors
from experiments.cost.phases import count_phases
from experiments.cost.table import Row, check_table, write_check

# one operation a second, one number read in ten, 8 bytes, 2 flops of products and 4 of attention a second
MADE = Device(1.0, 10.0, 8.0, ((1, 8.0),), ((1, 2.0),), ((1, 4.0),))


def counted(call: Callable[[], object]) -> Work:
    with WorkCounter() as counter:
        call()
    return counter.work


def test_a_product_of_known_size() -> None:
    """[2, 3] x [3, 5] is 60 flops of 31 numbers; the transpose is a view, which costs a launch and nothing else."""
    left, right = torch.ones(2, 3), torch.ones(5, 3)
    work = counted(lambda: left @ right.t())
    assert work.operations == {Operation("view"): 1, Operation("product", 4 * (6 + 15 + 10), 60): 1}
    assert (work.kernels, work.dispatches, work.waits) == (1, 2, 0)
    assert seconds_of(work, MADE) == {
        "launch": 2.0,
        "wait": 0.0,
        "memory": 0.0,
        "product": 4 * 31 / 8 + 60 / 2,
        "attention": 0.0,
    }
    wider = counted(lambda: left @ torch.ones(3, 10))  # control: another size, other numbers
    assert wider.total("flops") == 120


def test_elementwise_kernels_waits_and_expanded_dimensions() -> None:
    """A sum of 7 numbers reads 56 bytes and writes 28; expanded numbers count once; `.item()` waits."""
    x = torch.ones(7)
    assert counted(lambda: x + torch.ones(7)).total("bytes") == 28 + 3 * 28  # ones, then the sum
    assert counted(lambda: x.add(x)).total("bytes") == 2 * 28  # the same tensor is read once
    row = torch.ones(1, 7).expand(5, 7)
    assert counted(lambda: row.mul(2.0)).total("bytes") == 28 + 5 * 28
    assert counted(lambda: x[0].item()).waits == 1 and counted(lambda: x[0]).waits == 0


def test_attention_counts_its_heads() -> None:
    """Two products of [queries, width] and [width, keys] a head; five in the backward pass."""
    x = torch.ones(2, 3, 4, 8, requires_grad=True)
    forward = counted(lambda: F.scaled_dot_product_attention(x, x, x))
    both = counted(lambda: F.scaled_dot_product_attention(x, x, x).sum().backward())
    one = 2 * (2 * 3) * 4 * 4 * 8
    assert (forward.total("flops"), both.total("flops")) == (2 * one, 7 * one)
    assert {each.parts for each in both.operations if each.kind == "attention"} == {6}


def test_rates_are_interpolated_and_constant_beyond_the_ends() -> None:
    """Half way in log size is half way in log rate."""
    rates = ((10.0, 1.0), (1000.0, 4.0))
    assert [rate_at(rates, size) for size in (1, 10, 100, 1000, 1e6)] == pytest.approx([1, 1, 2, 4, 4])


def test_work_without_numbers_is_that_with_numbers() -> None:
    """Forward and backward passes of a layer, on tensors that exist and on those that do not: the same kernels."""

    def passes() -> None:
        layer = torch.nn.Linear(16, 64)
        F.silu(layer(torch.zeros(8, 16))).sum().backward()

    with fake_tensors() as counter:
        passes()
    real = counted(passes)
    kernels = [{each: n for each, n in work.operations.items() if each.kind != "view"} for work in (counter.work, real)]
    assert kernels[0] == kernels[1] and real.kernels > 5
    assert (counter.work + real * 2 - real).total("flops") == pytest.approx(2 * real.total("flops"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stories260k", "stories3m"])
def test_the_work_of_an_update_is_that_of_an_agent(name: str, assets: Path) -> None:
    """PPO's collect and train on the CPU, counted: flops within 3%, operations within 20%, bytes within 15%.

    The estimate has masks of attention, which transformers leaves out where no prompt is padded. Control: it is not
    that of half the completions, nor of one layer more.
    """
    job = Job(16, 15, 12, 4, 2, 4)
    agent = make_agent(str(assets / name), replace(job, prompt=16))  # the tokenizer merges two of the tokens
    rollout = agent.collect()
    assert rollout.input_ids.shape[1] == job.tokens
    agent.train(rollout)
    found = {"collect": counted(agent.collect), "update": counted(lambda: agent.train(rollout))}
    config = AutoConfig.from_pretrained(assets / name)

    def counts(job: Job) -> dict[str, Work]:
        phases = count_phases(config, job)
        return {"collect": phases["sampling"] + phases["scoring"], "update": phases["update"]}

    estimated, half = counts(job), counts(replace(job, episodes=8))
    config.num_hidden_layers += 1
    deeper = counts(job)
    for phase, real in found.items():
        work = estimated[phase]
        assert work.total("flops") == pytest.approx(real.total("flops"), rel=0.03)
        assert work.dispatches == pytest.approx(real.dispatches, rel=0.2)
        assert work.total("bytes") == pytest.approx(real.total("bytes"), rel=0.15)
        assert half[phase].total("flops") != pytest.approx(real.total("flops"), rel=0.1)
        assert deeper[phase].total("flops") != pytest.approx(real.total("flops"), rel=0.05)


def test_layers_micro_batches_and_epochs_add_up() -> None:
    """Twice the epochs are twice the flops; few kernels step all weights together."""
    config, job = Shape(3, 16, 16, 16, 32, 64).config, Job(8, 4, 4, 2, 1, 4)
    one, two, more = (
        count_phases(config, each)["update"] for each in (job, replace(job, epochs=2), replace(job, micro_batch=8))
    )
    assert two.total("flops") == pytest.approx(2 * one.total("flops")) == pytest.approx(2 * more.total("flops"))
    assert more.kernels < one.kernels  # one micro-batch instead of four
    assert count_phases(config, job, foreach=True)["update"].kernels < one.kernels


def test_settings_change_the_work() -> None:
    """Checkpointing computes the forward pass again, a critic has a trunk of its own, an adapter adds kernels."""
    config, job = Shape(2, 16, 16, 16, 32, 64).config, Job(4, 4, 4, 4, 1, 4)
    plain = count_phases(config, job)["update"]
    again, critic, adapted = (
        count_phases(config, replace(job, **extra))["update"]
        for extra in ({"checkpointing": True}, {"separate_critic": True}, {"lora_rank": 2})
    )
    assert plain.total("flops") < again.total("flops") < critic.total("flops")
    assert adapted.kernels > plain.kernels


def test_large_models_are_counted_without_their_memory() -> None:
    """A 7B, of which sampling one completion reads all weights, and many are bound by products."""
    made = Device(0.0, 0.0, 1e12, ((1, 1e12),), ((1, 1e14),), ((1, 1e14),))
    few, many = (estimate(SHAPES["7B"].config, Job(rows, 8, 4, 1, 1), made) for rows in (1, 1024))
    reading = 2 * SHAPES["7B"].parameters / 1e12
    assert sum(few["sampling"].values()) / 5 == pytest.approx(reading, rel=0.1)  # a prefill and four steps
    assert sum(many["sampling"].values()) > 10 * sum(few["sampling"].values())
    assert few["network"] == {"network": 0.0}


def test_a_device_is_measured() -> None:
    """On the CPU: every constant is a positive number. What they are is not asserted, on a machine with other load."""
    device = measure_device(head=16)
    numbers = [device.launch, device.wait, device.reading]
    for rates in (device.memory, device.product, device.attention):
        assert [size for size, _ in rates] == sorted(size for size, _ in rates)
        numbers += [rate for _, rate in rates]
    assert all(0 < number < float("inf") for number in numbers)


def test_the_check_is_printed_and_written(tmp_path: Path) -> None:
    """Estimated, measured, and their ratio; the files have the numbers."""
    rows = [Row("m", Job(8, 4, 4), Compared("seconds, update", 3.0, 2.0))]
    table = check_table(rows, "float32")
    write_check(rows, table, tmp_path / "cost")
    printed = (tmp_path / "cost" / "cost.txt").read_text(encoding="utf-8")
    assert "seconds, update" in printed and "1.50" in printed
    saved: Any = json.loads((tmp_path / "cost" / "cost.json").read_text(encoding="utf-8"))
    assert saved["rows"][0]["estimated"] == 3.0 and saved["rows"][0]["episodes"] == 8
