"""What a run costs: memory and time of an update, on paper.

Shape: n layers, width d, attention width a = heads * head_dim, key-value width k, MLP width f (g matrices: 3 gated,
2 not), vocabulary V. Run: B answers an update, P + T tokens each (S in all), b of them in memory while learning, E
epochs, w bytes a number (float32 4, bfloat16 2), R devices with B / R answers each. Of N parameters N_t are trained.

    N           = V d (2 if untied) + positions d + n (2 d a + 2 d k + g d f)
    N_t         = N, or with an adapter of rank r: n r (2 (d + a) + 2 (d + k) + g (d + f))

    weights     = w N                  reference = w N, or 0 with an adapter, which sits on it
    gradients   = 4 N_t                and 4 N_t more with several devices, which send them in buckets
    optimizer   = 8 N_t                Adam's two moments; in bfloat16 4 N_t more, float32 copies of the weights
    KV cache    = 2 n k S w B/R        while writing, and one layer's keys or values twice while they grow
    activations = S b n (c_d d + c_f f) w      what the backward pass reads again
                  S b (n d + c_d d + c_f f) w  with checkpointing
    held        = weights + reference + gradients + optimizer
    writing     = KV cache + 12 V B/R                          float32 logits of one token of all answers
    scoring     = max(S (3 d + 3 f) w B/R, 8 V min(T B/R, 2^26 / V))       one layer of all, or logits of a part
    learning    = activations + 16 V T b + 8 V d               logits of all tokens of some answers; the embedding's new
                                                           gradients, before they are added to the old ones
    total       = held + max(writing, scoring, learning)

With `sharded` (FSDP) gradients and optimizer are divided by R, and so is a copy of the weights, which learns; w N that
write stay whole. (A layer that is gathered to learn is not counted.)

    writing     = T max((w N + KV cache / 2) / bandwidth, 2 N B/R / arithmetic)       each step reads all weights
    scoring     = 2 (2 N S B/R) / arithmetic                                          reference and values
    update      = E (6 N S B/R) / arithmetic (8 with checkpointing)                   forward 2, backward 4
    sending     = E 2 w N_t (R - 1) / R / link                                        gradients, a ring
                  E (3 w N + w N_t) (R - 1) / R / link     sharded: weights twice, gradients, what was learned, to write

and to each pass the time to start its operations, OPERATIONS n latency, which is all that a tiny model costs.
`python -m experiments cost --check PATH` measures how far off this is (`experiments/cost_check.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from textenv.causal_lm import MAX_LOGITS

GB = 1e9
OPERATIONS = 45  # that one layer's forward pass starts, one by one
SAVED = {True: (11, 4), False: (9, 9)}  # c_d, c_f of a gated MLP (Llama), and of GPT-2's, whose gelu is many operations


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
        """Of a Hugging Face config."""
        heads = config.num_attention_heads
        head = getattr(config, "head_dim", None) or config.hidden_size // heads
        key_value = head * (getattr(config, "num_key_value_heads", None) or heads)
        learned = config.model_type in ("gpt2", "opt")
        mlp = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
        return cls(
            config.num_hidden_layers,
            config.hidden_size,
            head * heads,
            key_value,
            mlp,
            config.vocab_size,
            gated=not learned,
            tied=bool(config.tie_word_embeddings),
            positions=config.max_position_embeddings if learned else 0,
        )

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


def memory(shape: Shape, job: Job) -> dict[str, float]:
    """Bytes on one device, by what they are for, and their `total`."""
    n, d, w, each = shape.layers, shape.width, job.bytes, job.episodes / job.devices
    trained = shape.adapter(job.lora_rank) if job.lora_rank else shape.parameters
    parts = job.devices if job.sharded else 1
    c_d, c_f = SAVED[shape.gated]
    layer = c_d * d + c_f * shape.mlp
    rows = min(job.micro_batch, each)
    cache = 2 * n * shape.key_value * job.tokens * w * each * (1 + 1 / (2 * n))
    activations = job.tokens * rows * (n * d + layer if job.checkpointing else n * layer) * w
    layer_pass = job.tokens * (3 * d + 3 * shape.mlp) * w * each
    whole = w * shape.parameters
    held = {
        "weights": whole + (whole / parts if job.sharded else 0.0),
        "gradients": 4 * trained / parts * (2 if job.devices > 1 and not job.sharded else 1),
        "optimizer": (8 if w == 4 else 12) * trained / parts,
        "reference": 0.0 if job.lora_rank else whole,
    }
    phases = {
        "collect": max(
            cache + 12 * shape.vocab * each,
            layer_pass,
            8 * min(job.new * each * shape.vocab, MAX_LOGITS),
        ),
        "learn": activations + 16 * shape.vocab * job.new * rows + 8 * shape.vocab * d,
    }
    states = sum(held.values())
    return (
        held
        | {"KV cache": cache, "activations": activations}
        | {
            "collect": states + phases["collect"],
            "learn": states + phases["learn"],
            "total": states + max(phases.values()),
        }
    )


def seconds(shape: Shape, job: Job, device: Device) -> dict[str, float]:
    """Seconds of one update, by phase."""
    n, w, each = shape.parameters, job.bytes, job.episodes / job.devices
    cache = 2 * shape.layers * shape.key_value * job.tokens * w * each
    start = OPERATIONS * shape.layers * device.latency  # one forward pass
    passes = -(-each // min(job.micro_batch, each))
    trained = shape.adapter(job.lora_rank) if job.lora_rank else n
    sent = 3 * n + trained if job.sharded else 2 * trained
    read, compute = (w * n + cache / 2) / device.bandwidth, 2 * n * each / device.arithmetic
    return {
        "writing": job.new * (max(read, compute) + start),
        "scoring": 2 * (2 * n * job.tokens * each / device.arithmetic + start),
        "update": job.epochs
        * ((8 if job.checkpointing else 6) * n * job.tokens * each / device.arithmetic + 3 * start * passes),
        "sending": job.epochs * w * sent * (job.devices - 1) / job.devices / device.link,
    }


def roomiest(shape: Shape, job: Job, device: Device) -> Job:
    """The same with as many answers in memory at once as fit: a power of two, at least 1."""
    rows = 1
    while 2 * rows * job.devices <= job.episodes:
        if memory(shape, replace(job, micro_batch=2 * rows))["total"] > device.memory:
            break
        rows *= 2
    return replace(job, micro_batch=rows)
