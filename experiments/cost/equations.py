"""What a run costs: memory and time of an update, on paper.

All prompts differ; those that answers have in common are read once, and cost less (`textenv/prefix.py`).

Shape: n layers, width d, attention width a = heads * head_dim, key-value width k, MLP width f (g matrices: 3 gated,
2 not), vocabulary V. Run: B answers an update, P + T tokens each (S in all), b of them in memory while learning, E
epochs, w bytes a number (float32 4, bfloat16 2), R devices with B / R answers each. Of N parameters N_t are trained.

    N           = V d (2 if untied) + positions d + n (2 d a + 2 d k + g d f)
    N_t         = N, or with an adapter of rank r: n r (2 (d + a) + 2 (d + k) + g (d + f))

    weights     = w N, and 4 N_t of an adapter        reference = w N, or 0 with an adapter, which sits on it
    gradients   = 4 N_t
    optimizer   = 8 N_t                Adam's two moments; in bfloat16 4 N_t more, the masters
    held        = weights + reference + gradients + optimizer

    KV cache    = 2 n k C w B/R        of C columns: P + T, and up to 32 of room; and one layer's keys twice as it grows
    layer       = (5 d + g f) w        a token, of one layer, while nothing is learned; 5 f w more with an adapter in
                                       bfloat16, whose outputs are float32 before they are added
    writing     = KV cache + max(P layer, (w + 12) V) B/R      reading the prompts; logits as they are, probabilities in
                                                               float32 and summed up in float64
    scoring     = max(S layer B/R, 8 V min(T B/R, 2^26))       values of all; float32 logits of a part, and their exp
    activations = S b n (c_d d + c_f f) w      what the backward pass reads again, c_d and c_f as `saved` says
                  S b (n d + c_d d + c_f f) w  with checkpointing
    logits      = 12 V T b             in float32: log pi(.|s) and, going back, two gradients of it
    learning    = max(activations + max(logits, 4 V T b + w V d),    the latter with the output layer's gradient
                      12 V d           the embedding's gradients, before they are added to the old ones
                      2 N_t + 8 V d    in bfloat16 instead: all gradients, before they are added in float32
                      4 N_t)           a step of Adam for all weights at once, as on a GPU
    total       = held + max(writing, scoring, learning)

With a separate critic all that is held is there twice (without an untied output layer); it learns after the policy,
whose activations and gradients in bfloat16 are gone by then, and has no logits. With `sharded` (FSDP) a copy of the
weights in float32 learns, w N that write stay whole: w N + (4 N + 4 N_t + 8 N_t) / R. (A layer that is gathered to
learn is not counted.)

    writing     = T max((w N + KV cache / 2) / bandwidth, 2 N B/R / arithmetic)       each step reads all weights
    scoring     = 2 (2 N S B/R) / arithmetic                                          reference and values
    update      = E (6 N S B/R) / arithmetic (8 with checkpointing)                   forward 2, backward 4
    sending     = E 8 N_t (R - 1) / R / link                   gradients in float32, a ring
                  E (M (2 w N + 4 N_t) + w N_t) (R - 1) / R / link      sharded: of each of M = B / R / b parts weights
                                                               twice and gradients; and what was learned, to write

and to each pass the time to start its operations, OPERATIONS n latency, which is all that a tiny model costs. Few
answers at once are written as fast as weights are read, many as fast as is computed: `step_seconds` tells them apart.
`python -m experiments cost --check PATH` measures how far off this is (`experiments/cost_check.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from textenv.lm import BLOCK_COLUMNS, MAX_LOGITS

GB = 1e9
OPERATIONS = 45  # that one layer's forward pass starts, one by one


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes; see this file's docstring."""

    layers: int
    width: int
    attention: int
    key_value: int
    mlp: int
    vocab: int
    gated: bool = True
    tied: bool = True
    positions: int = 0

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Of a Hugging Face config: MLP gated or not, positions learned or not, as its model's N says, made on paper.

        Raises:
            ValueError: none of these has that many parameters within 2%: its layers are others (experts, say).
        """
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        number = sum(p.numel() for p in model.parameters())
        heads = config.num_attention_heads
        head = getattr(config, "head_dim", None) or config.hidden_size // heads
        groups = 1 if getattr(config, "multi_query", False) else getattr(config, "num_key_value_heads", None) or heads
        mlp = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
        sizes = (config.num_hidden_layers, config.hidden_size, head * heads, head * groups, mlp, config.vocab_size)
        shapes = [
            cls(*sizes, gated=gated, tied=bool(config.tie_word_embeddings), positions=positions)
            for gated in (True, False)
            for positions in (0, config.max_position_embeddings)
        ]
        shape = min(shapes, key=lambda shape: abs(shape.parameters - number))
        if abs(shape.parameters - number) > 0.02 * number:
            raise ValueError(
                f"a {config.model_type} of {number:,} parameters, where layers like GPT-2's or Llama's would have "
                f"{shape.parameters:,}: the equations do not hold for it."
            )
        return shape

    @property
    def parameters(self) -> int:
        """N."""
        d, matrices = self.width, 2 + self.gated
        layer = 2 * d * self.attention + 2 * d * self.key_value + matrices * d * self.mlp
        return (self.vocab * (1 if self.tied else 2) + self.positions) * d + self.layers * layer

    def adapter(self, rank: int) -> int:
        """N_t of an adapter on all linear layers."""
        d = self.width
        return (
            self.layers
            * rank
            * (2 * (d + self.attention) + 2 * (d + self.key_value) + (2 + self.gated) * (d + self.mlp))
        )


SHAPES = {
    "0.26M": Shape(5, 64, 64, 32, 172, 512),
    "3M": Shape(6, 192, 192, 64, 512, 4096),
    "124M": Shape(12, 768, 768, 768, 3072, 50257, gated=False, positions=1024),
    "1B": Shape(16, 2048, 2048, 512, 8192, 128256),  # Llama 3.2 1B
    "7B": Shape(32, 4096, 4096, 4096, 11008, 32000, tied=False),  # Llama 2 7B
}


@dataclass(frozen=True)
class Job:
    """An update's sizes; see this file's docstring."""

    episodes: int = 512
    prompt: int = 64
    new: int = 64
    micro_batch: int = 8
    epochs: int = 4
    bytes: int = 2
    checkpointing: bool = False
    lora_rank: int = 0
    separate_critic: bool = False
    sharded: bool = False
    devices: int = 1

    @property
    def tokens(self) -> int:
        """S."""
        return self.prompt + self.new


@dataclass(frozen=True)
class Device:
    """What one device has and does in a second; the numbers of an H100, half of its arithmetic reached."""

    memory: float = 80 * GB
    bandwidth: float = 3.35e12 * 0.7
    arithmetic: float = 990e12 * 0.5
    latency: float = 5e-6
    link: float = 50e9


def saved(shape: Shape, job: Job) -> float:
    """c_d d + c_f f, the numbers that a layer keeps of a token for the backward pass.

    GPT-2: queries, keys and values 3, attention 1, layer norms 2 and what they read 2; the MLP before and after gelu.
    Llama: queries, keys and values 3, attention 1, norms 4 and what they read 2, in float32 always; gate, its
    activation, the other branch, the product. An adapter on weights in bfloat16 keeps float32 copies of what each
    linear layer reads, in the place of most of these.
    """
    d, f = shape.width, shape.mlp
    copies = computes_wide(job) * ((10 if shape.gated else 4) * d + f)
    return ((8 + 2 * 4 / job.bytes) * d + 4 * f if shape.gated else 8 * d + 2 * f) + copies


def computes_wide(job: Job) -> bool:
    """Whether there is an adapter on weights in bfloat16, which peft computes in float32."""
    return job.lora_rank > 0 and job.bytes < 4


def memory(shape: Shape, job: Job) -> dict[str, float]:
    """Bytes on one device, by what they are for, and their `total`."""
    n, d, vocab, w = shape.layers, shape.width, shape.vocab, job.bytes
    each = job.episodes / job.devices
    rows = min(job.micro_batch, each)
    parts = job.devices if job.sharded else 1
    whole, trained = shape.parameters, shape.adapter(job.lora_rank) if job.lora_rank else shape.parameters
    policy = {
        "weights": w * whole + (4 * whole / parts if job.sharded else 0) + (4 * trained if job.lora_rank else 0),
        "gradients": 4 * trained / parts,
        "optimizer": (8 if w == 4 or job.lora_rank or job.sharded else 12) * trained / parts,
    }
    critics = critics_of(shape, job)
    held = {what: size * (1 + critics) for what, size in policy.items()}
    held["reference"] = 0.0 if job.lora_rank else w * whole

    columns = job.prompt + BLOCK_COLUMNS + (job.new - 1) // (BLOCK_COLUMNS + 1) * (BLOCK_COLUMNS + 1)
    cache = 2 * n * shape.key_value * columns * w * each * (1 + 1 / (2 * n))
    layer = (5 * d + (2 + shape.gated + 5 * computes_wide(job)) * shape.mlp) * w
    writing = cache + max(job.prompt * layer, (w + 12) * vocab) * each
    scoring = max(job.tokens * layer * each, 8 * min(job.new * each * vocab, MAX_LOGITS))

    kept = saved(shape, job)
    activations = job.tokens * rows * w * (n * d + kept if job.checkpointing else n * kept)
    logits = job.new * rows * vocab
    learning = [activations + 12 * logits]
    if not job.lora_rank:
        learning += [activations + 4 * logits + w * vocab * d, 12 * vocab * d]
        learning += [2 * trained / parts + 8 * vocab * d] if w == 2 else []
    learning += [4 * (1 + critics) * trained / parts]

    states = sum(held.values())
    phases = {"collect": states + max(writing, scoring), "learn": states + max(learning)}
    return held | {"KV cache": cache, "activations": activations} | phases | {"total": max(phases.values())}


def critics_of(shape: Shape, job: Job) -> float:
    """The parameters of a separate critic's trunk, as a share of N; 0 without one."""
    output = 0 if shape.tied else shape.vocab * shape.width
    return 1 - output / shape.parameters if job.separate_critic else 0.0


def step_seconds(shape: Shape, job: Job, device: Device) -> dict[str, float]:
    """Seconds of one token of all answers, by what they would be bound by: memory, arithmetic, starting operations."""
    each = job.episodes / job.devices
    cache = 2 * shape.layers * shape.key_value * job.tokens * job.bytes * each
    return {
        "memory": (job.bytes * shape.parameters + cache / 2) / device.bandwidth,
        "arithmetic": 2 * shape.parameters * each / device.arithmetic,
        "starting": OPERATIONS * shape.layers * device.latency,
    }


def seconds(shape: Shape, job: Job, device: Device) -> dict[str, float]:
    """Seconds of one update, by phase."""
    n, w, each = shape.parameters, job.bytes, job.episodes / job.devices
    step = step_seconds(shape, job, device)
    passes = -(-each // min(job.micro_batch, each))
    trained = shape.adapter(job.lora_rank) if job.lora_rank else n
    sent = passes * (2 * w * n + 4 * trained) + w * trained if job.sharded else 8.0 * trained
    sent *= 1 + critics_of(shape, job)
    trunks = 2 if job.separate_critic else 1
    update = (8 if job.checkpointing else 6) * n * job.tokens * each / device.arithmetic + 3 * step["starting"] * passes
    return {
        "writing": job.new * (max(step["memory"], step["arithmetic"]) + step["starting"]),
        "scoring": 2 * (2 * n * job.tokens * each / device.arithmetic + step["starting"]),
        "update": job.epochs * trunks * update,
        "sending": job.epochs * sent * (job.devices - 1) / job.devices / device.link,
    }


def roomiest(shape: Shape, job: Job, device: Device) -> Job:
    """The same with as many answers in memory at once as fit: a power of two, at least 1."""
    rows = 1
    while 2 * rows * job.devices <= job.episodes:
        if memory(shape, replace(job, micro_batch=2 * rows))["total"] > device.memory:
            break
        rows *= 2
    return replace(job, micro_batch=rows)
