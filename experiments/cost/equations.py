"""Memory of an update, estimated from equations. Its time is in `experiments/cost/times.py`.

All prompts are assumed to differ; prompts that several completions share are computed once, and cost less
(`textenv/lm/prefix_sharing.py`).

Shape: n layers, width d, attention width a = heads * head_dim, key-value width k, MLP width f (g matrices: 3 gated,
2 not), vocabulary V. Run: B completions per update, P + T tokens each (S in all), micro-batches of b completions,
E epochs, w bytes per number (float32 4, bfloat16 2), R devices with B / R completions each. Of N parameters N_t are
trained.

    N           = V d (2 if untied) + positions d + n (2 d a + 2 d k + g d f)
    N_t         = N, or with an adapter of rank r: n r (2 (d + a) + 2 (d + k) + g (d + f))

    weights     = w N, and 4 N_t of an adapter        reference = w N, or 0 with an adapter, which uses its weights
    gradients   = 4 N_t
    optimizer   = 8 N_t                Adam's two moments; in bfloat16 4 N_t more, the master weights
    held        = weights + reference + gradients + optimizer

    KV cache    = 2 n k C w B/R        of C columns: P + T, and up to 32 spare; while it grows, one layer's keys twice
    layer       = (5 d + g f) w        per token, of one layer, without gradients; 5 f w more with an adapter in
                                       bfloat16, whose outputs are float32 before they are added
    sampling    = KV cache + max(P layer, (w + 12) V) B/R      prefill of the prompts; logits in w bytes, probabilities
                                                               in float32, their cumulative sums in float64
    scoring     = max(S layer B/R, 8 V min(T B/R, 2^26))       values of all completions; float32 logits of a chunk, and
                                                               their exp
    activations = S b n (c_d d + c_f f) w      saved for the backward pass, c_d and c_f as in `saved_activations`
                  S b (n d + c_d d + c_f f) w  with checkpointing
    logits      = 12 V T b             in float32: log pi(.|s) and, in the backward pass, two gradients of it
    update      = max(activations + max(logits, 4 V T b + w V d),    the latter with the output layer's gradient
                      12 V d           the embedding's gradients, before they are added to the old ones
                      2 N_t + 8 V d    in bfloat16 instead: all gradients, before they are added in float32
                      4 N_t)           one step of Adam for all weights together, as on a GPU
    total       = held + max(sampling, scoring, update)

With a separate critic all of `held` is there twice (without an untied output layer). The critic is updated after the
policy, whose activations and bfloat16 gradients are freed by then, and it has no logits. With `sharded` (FSDP) a
sharded copy of the weights in float32 is trained, and the w N that sample stay whole:
w N + (4 N + 4 N_t + 8 N_t) / R. (A layer that is gathered during the update is not counted.)

    network       = E 8 N_t (R - 1) / R / link                 all-reduce of the gradients, in a ring; in seconds
                    E (M (2 w N + 4 N_t) + w N_t) (R - 1) / R / link    sharded: for each of M = B / R / b micro-batches
                                                               the weights twice and the gradients; then the trained
                                                               weights, to sample with

`python -m experiments cost --check PATH` measures the error of these estimates (`experiments/cost/check.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from textenv.lm import BLOCK_COLUMNS, MAX_LOGITS

GB = 1e9
LINK = 50e9  # bytes per second between devices: assumed, not measured


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, as in this file's docstring."""

    layers: int
    width: int
    attention: int
    key_value: int
    mlp: int
    vocab: int
    gated: bool = True
    tied: bool = True
    positions: int = 0

    @property
    def config(self) -> Any:
        """A Hugging Face config of this shape: of a Llama if the MLP is gated, else of a GPT-2."""
        head = gcd(self.attention, self.key_value, 64)
        if not self.gated:
            return GPT2Config(
                n_embd=self.width,
                n_layer=self.layers,
                n_head=self.width // head,
                n_inner=self.mlp,
                vocab_size=self.vocab,
                n_positions=self.positions,
            )
        return LlamaConfig(
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.attention // head,
            num_key_value_heads=self.key_value // head,
            head_dim=head,
            intermediate_size=self.mlp,
            vocab_size=self.vocab,
            tie_word_embeddings=self.tied,
        )

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Returns the shape of a Hugging Face config.

        Whether the MLP is gated and positions are learned is inferred from the N of its model, which is made on the
        meta device.

        Raises:
            ValueError: none of these shapes has N parameters within 2%: the layers are of another kind, e.g. experts.
        """
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
        parameters = sum(p.numel() for p in model.parameters())
        heads, head = config.num_attention_heads, head_width(config)
        groups = 1 if getattr(config, "multi_query", False) else getattr(config, "num_key_value_heads", None) or heads
        mlp = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
        sizes = (config.num_hidden_layers, config.hidden_size, head * heads, head * groups, mlp, config.vocab_size)
        shapes = [
            cls(*sizes, gated=gated, tied=bool(config.tie_word_embeddings), positions=positions)
            for gated in (True, False)
            for positions in (0, config.max_position_embeddings)
        ]
        shape = min(shapes, key=lambda shape: abs(shape.parameters - parameters))
        if abs(shape.parameters - parameters) > 0.02 * parameters:
            raise ValueError(
                f"a {config.model_type} of {parameters:,} parameters, where layers like those of GPT-2 or Llama would "
                f"have {shape.parameters:,}: the equations do not hold for it."
            )
        return shape

    @property
    def parameters(self) -> int:
        """N."""
        d, matrices = self.width, 2 + self.gated
        layer = 2 * d * self.attention + 2 * d * self.key_value + matrices * d * self.mlp
        return (self.vocab * (1 if self.tied else 2) + self.positions) * d + self.layers * layer

    def adapter(self, rank: int) -> int:
        """N_t of an adapter of that rank on all linear layers."""
        d = self.width
        return (
            self.layers
            * rank
            * (2 * (d + self.attention) + 2 * (d + self.key_value) + (2 + self.gated) * (d + self.mlp))
        )


def head_width(config: Any) -> int:
    """Width of an attention head of a Hugging Face config."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


SHAPES = {
    "0.26M": Shape(5, 64, 64, 32, 172, 512),
    "3M": Shape(6, 192, 192, 64, 512, 4096),
    "124M": Shape(12, 768, 768, 768, 3072, 50257, gated=False, positions=1024),
    "1B": Shape(16, 2048, 2048, 512, 8192, 128256),  # Llama 3.2 1B
    "7B": Shape(32, 4096, 4096, 4096, 11008, 32000, tied=False),  # Llama 2 7B
}


@dataclass(frozen=True)
class Job:
    """Sizes of an update, as in this file's docstring."""

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
        """S, tokens of a sequence."""
        return self.prompt + self.new


def saved_activations(shape: Shape, job: Job) -> float:
    """c_d d + c_f f, the numbers per token that a layer saves for the backward pass.

    GPT-2: queries, keys and values 3, attention 1, layer norms 2 and their inputs 2; the MLP before and after gelu.
    Llama: queries, keys and values 3, attention 1, norms 4 and their inputs 2, always in float32; gate, its activation,
    the other branch, the product. With an adapter on bfloat16 weights, each linear layer saves a float32 copy of its
    input in place of most of these.
    """
    d, f = shape.width, shape.mlp
    copies = adapter_upcasts(job) * ((10 if shape.gated else 4) * d + f)
    return ((8 + 2 * 4 / job.bytes) * d + 4 * f if shape.gated else 8 * d + 2 * f) + copies


def adapter_upcasts(job: Job) -> bool:
    """Whether an adapter is on bfloat16 weights: peft then computes it in float32."""
    return job.lora_rank > 0 and job.bytes < 4


def memory(shape: Shape, job: Job) -> dict[str, float]:
    """Bytes on one device: by purpose; the peaks of `collect` and `update`; and the larger peak, `total`."""
    n, d, vocab, w = shape.layers, shape.width, shape.vocab, job.bytes
    completions = job.episodes / job.devices
    rows = min(job.micro_batch, completions)
    shards = job.devices if job.sharded else 1
    whole, trained = shape.parameters, shape.adapter(job.lora_rank) if job.lora_rank else shape.parameters
    policy = {
        "weights": w * whole + (4 * whole / shards if job.sharded else 0) + (4 * trained if job.lora_rank else 0),
        "gradients": 4 * trained / shards,
        "optimizer": (8 if w == 4 or job.lora_rank or job.sharded else 12) * trained / shards,
    }
    critic = critic_share(shape, job)
    held = {name: size * (1 + critic) for name, size in policy.items()}
    held["reference"] = 0.0 if job.lora_rank else w * whole

    columns = job.prompt + BLOCK_COLUMNS + (job.new - 1) // (BLOCK_COLUMNS + 1) * (BLOCK_COLUMNS + 1)
    cache = 2 * n * shape.key_value * columns * w * completions * (1 + 1 / (2 * n))
    layer = (5 * d + (2 + shape.gated + 5 * adapter_upcasts(job)) * shape.mlp) * w
    sampling = cache + max(job.prompt * layer, (w + 12) * vocab) * completions
    scoring = max(job.tokens * layer * completions, 8 * min(job.new * completions * vocab, MAX_LOGITS))

    saved = saved_activations(shape, job)
    activations = job.tokens * rows * w * (n * d + saved if job.checkpointing else n * saved)
    logits = job.new * rows * vocab
    update = [activations + 12 * logits]
    if not job.lora_rank:
        update += [activations + 4 * logits + w * vocab * d, 12 * vocab * d]
        update += [2 * trained / shards + 8 * vocab * d] if w == 2 else []
    update += [4 * (1 + critic) * trained / shards]

    states = sum(held.values())
    phases = {"collect": states + max(sampling, scoring), "update": states + max(update)}
    return held | {"KV cache": cache, "activations": activations} | phases | {"total": max(phases.values())}


def critic_share(shape: Shape, job: Job) -> float:
    """Parameters of a separate critic's transformer, as a share of N; 0 without one."""
    output = 0 if shape.tied else shape.vocab * shape.width
    return 1 - output / shape.parameters if job.separate_critic else 0.0


def network_seconds(shape: Shape, job: Job) -> float:
    """Seconds in which the devices exchange gradients, and weights where they are sharded."""
    n, w = shape.parameters, job.bytes
    micro_batches = -(-job.episodes // job.devices // rows_per_pass(job))
    trained = shape.adapter(job.lora_rank) if job.lora_rank else n
    sent = micro_batches * (2 * w * n + 4 * trained) + w * trained if job.sharded else 8.0 * trained
    return job.epochs * sent * (1 + critic_share(shape, job)) * (job.devices - 1) / job.devices / LINK


def dtype_of(job: Job) -> torch.dtype:
    """The dtype of weights and activations."""
    return torch.float32 if job.bytes == 4 else torch.bfloat16


def rows_per_pass(job: Job) -> int:
    """Completions of a micro-batch on one device."""
    return min(job.micro_batch, job.episodes // job.devices)


def largest_micro_batch(shape: Shape, job: Job, limit: float = 80 * GB) -> Job:
    """Returns the job with the largest micro-batch that fits in `limit` bytes: a power of two, at least 1."""
    rows = 1
    while 2 * rows * job.devices <= job.episodes:
        if memory(shape, replace(job, micro_batch=2 * rows))["total"] > limit:
            break
        rows *= 2
    return replace(job, micro_batch=rows)


def lora_config(rank: int) -> Any:
    """A `peft.LoraConfig` on all linear layers, as for `--lora-rank`."""
    from peft import LoraConfig

    return LoraConfig(r=rank, target_modules="all-linear")
