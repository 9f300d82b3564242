"""How long work takes on a device, and the micro-benchmark of about a second that measures the device.

    seconds = launch (kernels + views) + wait waits + sum over kernels of (bytes / bandwidth + flops / throughput)

`launch` is what the host spends on each operation, Python and the modules of transformers included; a view costs it as
much as a kernel. Bandwidth and throughput are those at the size of the kernel: small tensors fit in a CPU's caches, and
large ones are in memory that is allocated anew. On a GPU launches overlap with kernels, so the sum is up to twice the
time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from experiments.cost.kernels import Work, WorkCounter

SPAN = 0.01  # seconds
Rates = tuple[tuple[float, float], ...]  # (size of a kernel, rate per second), sizes increase


@dataclass(frozen=True)
class Device:
    """Constants of one device: seconds, bytes per second, floating point operations per second."""

    launch: float
    """Seconds of the host for an operation, a kernel or a view."""
    wait: float
    """Seconds until the host has a number of the device."""
    reading: float
    """Bytes per second of a product that is bound by reading its weights."""
    memory: Rates
    """Bytes per second of elementwise kernels, by their bytes."""
    product: Rates
    """Flops per second of products, by their flops."""
    attention: Rates
    """Flops per second of attention, by the flops of one head of one row."""


def seconds_of(work: Work, device: Device) -> dict[str, float]:
    """Seconds of work by term: `launch`, `wait`, and `memory`, `product` and `attention` by what the kernels are."""
    kernels = dict.fromkeys(("memory", "product", "attention"), 0.0)
    for each, number in work.operations.items():
        if each.kind == "memory":
            kernels["memory"] += number * each.bytes / rate_at(device.memory, each.bytes)
        elif each.kind != "view":
            rates = device.product if each.kind == "product" else device.attention
            arithmetic = each.flops / rate_at(rates, each.flops / each.parts)
            kernels[each.kind] += number * (each.bytes / device.reading + arithmetic)
    return {"launch": device.launch * work.dispatches, "wait": device.wait * work.waits} | kernels


def rate_at(rates: Rates, size: float) -> float:
    """The rate of a kernel of a size: interpolated in log size and log rate, constant beyond the ends."""
    if size <= rates[0][0]:
        return rates[0][1]
    for (small, slow), (large, fast) in pairwise(rates):
        if size <= large:
            share = log(size / small) / log(large / small)
            return exp((1 - share) * log(slow) + share * log(fast))
    return rates[-1][1]


def least_seconds(call: Callable[[], object], device: str = "cpu", times: int = 3) -> float:
    """Least seconds of several calls: other load on the machine only makes a call slower.

    On a CPU these are the processor's seconds of this process, without those that it waits for a core.
    """
    durations = []
    for _ in range(times):
        started = _clock(device)
        call()
        durations.append(_clock(device) - started)
    return min(durations)


def mean_seconds(call: Callable[[], object], device: str) -> float:
    """Seconds of a short call: the mean of so many that they take `SPAN` seconds, and the median of three means.

    The least of single calls would be faster than the same calls among others, which use the caches too.
    """
    repeats = max(1, round(SPAN / max(least_seconds(call, device, 2), 1e-6)))
    means = (least_seconds(lambda: [call() for _ in range(repeats)], device, 1) / repeats for _ in range(3))
    return median(means)


def _clock(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.get_device_module(device).synchronize()
    return time.perf_counter()


def measure_device(device: str = "cpu", dtype: torch.dtype = torch.float32, head: int = 64) -> Device:
    """Measures the constants of a device in about a second.

    Args:
        device: "cpu", or another one of torch.
        dtype: of weights and activations.
        head: the width of an attention head.
    """
    number = torch.ones(1, device=device)
    lengths = ((1, 32), (1, 128), (32, 32), (128, 128))  # queries, keys
    with torch.no_grad():
        return Device(
            launch=_launch_seconds(device),
            wait=mean_seconds(number.item, device),
            reading=_reading(device, dtype),
            memory=tuple(_elementwise(rows, device) for rows in (4, 32, 256, 2048, 16384)),
            product=tuple(_product(*each, device, dtype) for each in ((16, 32), (64, 64), (256, 128), (512, 512))),
            attention=tuple(_attention(*each, head, device, dtype) for each in lengths),
        )


def _launch_seconds(device: str) -> float:
    """Seconds per operation of forward and backward passes of a Llama and a GPT-2, too small for anything else."""
    sizes: Any = {"vocab_size": 64, "bos_token_id": None, "eos_token_id": None}
    llama = LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, **sizes)
    gpt2 = GPT2Config(n_embd=16, n_layer=2, n_head=2, **sizes)
    passed, counted = 0.0, 0.0
    for model in (LlamaForCausalLM(llama), GPT2LMHeadModel(gpt2)):
        trained: Any = model.train(False).to(device)
        ids = torch.ones(1, 4, dtype=torch.long, device=device)

        def passes(trained: Any = trained, ids: Tensor = ids) -> None:
            trained(ids, use_cache=False)
            with torch.enable_grad():
                trained(ids, use_cache=False).logits.sum().backward()

        passes()
        with WorkCounter() as counter:
            passes()
        passed += mean_seconds(passes, device)
        counted += counter.work.dispatches
    return passed / counted


def _elementwise(rows: int, device: str) -> tuple[float, float]:
    """`(bytes of a kernel, bytes per second)` of what models compute outside of products.

    The seconds of the same kernels of one row are subtracted: they are launches.
    """

    def layer(rows: int) -> Callable[[], Tensor]:
        x, scale = torch.ones(rows, 4, 64, device=device), torch.ones(64, device=device)

        def call() -> Tensor:
            normed = scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
            turned = normed.transpose(0, 1)
            turned = turned * scale + torch.cat((-turned[..., 32:], turned[..., :32]), dim=-1) * scale
            gated = F.silu(turned.transpose(0, 1)) * F.gelu(normed, approximate="tanh")
            return x + F.log_softmax(gated, dim=-1)

        return call

    call = layer(rows)
    with WorkCounter() as counter:
        call()
    size = counter.work.total("bytes")
    seconds, launches = mean_seconds(call, device), mean_seconds(layer(1), device)
    return size / counter.work.kernels, size / max(seconds - launches, 0.05 * seconds)


def _reading(device: str, dtype: torch.dtype) -> float:
    """Bytes per second of products of one row with 64 MB of weights."""
    row = torch.ones(1, 1024, device=device, dtype=dtype)
    weights = torch.ones(2**26 // 2**20 // row.element_size(), 1024, 1024, device=device, dtype=dtype)
    return weights.nbytes / mean_seconds(lambda: [F.linear(row, each) for each in weights], device)


def _product(rows: int, width: int, device: str, dtype: torch.dtype) -> tuple[float, float]:
    """`(flops of a product, flops per second)` of MLPs, each with weights of its own."""
    x = torch.ones(rows, width, device=device, dtype=dtype)
    weights = [torch.ones(4 * width, width, device=device, dtype=dtype) for _ in range(8)]
    flops = 8 * rows * width**2
    seconds = mean_seconds(lambda: [F.linear(F.linear(x, each), each.t()) for each in weights], device)
    return flops, 2 * len(weights) * flops / seconds


def _attention(queries: int, keys: int, width: int, device: str, dtype: torch.dtype) -> tuple[float, float]:
    """`(flops of a head, flops per second)` of attention, with 8 heads of 16 rows, and room in the cache."""
    query = torch.ones(16, queries, 8, width, device=device, dtype=dtype).transpose(1, 2)
    stored = torch.ones(16, 8, keys + 32, width, device=device, dtype=dtype)[:, :, :keys]
    mask = torch.ones(16, 1, queries, keys, dtype=torch.bool, device=device)
    flops = 4 * queries * keys * width
    seconds = mean_seconds(lambda: F.scaled_dot_product_attention(query, stored, stored, attn_mask=mask), device)
    return flops, 128 * flops / seconds
