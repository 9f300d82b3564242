"""A replay: the last rollouts, for updates that may use the completions of older policies.

Saved as named tensors, those of each rank by themselves:

    replay.size              int64 [2]: the number of rollouts, of completions per group
    replay.INDEX.FIELD       the tensors of a rollout, the oldest first; its strings are not saved
"""

from __future__ import annotations

from collections import deque
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor

from agents.files import DamagedFile
from agents.sampling import Rollout

SIZE = "replay.size"
INTEGERS, FLOATS, BOOLS = (
    (torch.int64, torch.int32, torch.int8),
    (torch.float32, torch.float64, torch.bfloat16),
    (torch.bool,),
)
# The saved fields of a rollout, with their types and shapes.
FIELDS: dict[str, tuple[tuple[torch.dtype, ...], str]] = {
    "mask": (BOOLS, "BT"),
    "log_probs": (FLOATS, "BT"),
    "ref_log_probs": (FLOATS, "BT"),
    "rewards": (FLOATS, "BT"),
    "input_ids": (INTEGERS, "BW"),
    "attention_mask": ((*INTEGERS, *BOOLS), "BW"),
    "prompt": (INTEGERS, "B"),
    "scores": (FLOATS, "B"),
    "stopped": (BOOLS, "B"),
    "action_mask": (BOOLS, "BTV"),  # may be None
}
NONE = {f.name: None for f in fields(Rollout) if f.name not in (*FIELDS, "num_generations")}


class Replay:
    """The last rollouts of a rank.

    Args:
        size: the largest number of rollouts.
        num_generations: completions per group.

    Attributes:
        rollouts: the oldest first; `rollouts.clear()` forgets them.
    """

    def __init__(self, size: int, num_generations: int) -> None:
        self.rollouts = deque[Rollout](maxlen=size)
        self.num_generations = num_generations

    def append(self, rollout: Rollout) -> None:
        """Adds a rollout; the oldest one leaves a full replay."""
        kept = replace(rollout, values=None, gold_scores=None, lengths=None, extra=None)
        kept.input_ids, kept.attention_mask = kept.input_ids.clone(), kept.attention_mask.clone()  # the sampler's own
        kept.action_mask = None if kept.action_mask is None else kept.action_mask.clone()
        self.rollouts.append(kept)

    def draw(self, count: int, generator: torch.Generator) -> list[Rollout]:
        """Draws rollouts uniformly, with replacement."""
        drawn = torch.randint(len(self.rollouts), (count,), generator=generator, device=generator.device)
        return [self.rollouts[index] for index in drawn.tolist()]

    def tensors(self) -> dict[str, Tensor]:
        """What is saved, on the CPU."""
        size = torch.tensor([len(self.rollouts), self.num_generations])
        found = {f"replay.{i}.{name}": getattr(each, name) for i, each in enumerate(self.rollouts) for name in FIELDS}
        return {SIZE: size} | {name: x.cpu() for name, x in found.items() if x is not None}

    def restore(self, tensors: dict[str, Tensor], path: Path, device: torch.device, vocab_size: int) -> None:
        """Restores what `tensors` returned, the last rollouts if the replay is smaller now.

        With another number of completions per group the replay begins empty.

        Args:
            tensors: the tensors.
            path: their file, for error messages.
            device: the device of the policy.
            vocab_size: V.

        Raises:
            DamagedFile: a tensor is missing, there is one too many, or it is not what `tensors` returns.
        """
        tensors = dict(tensors)
        size = tensors.pop(SIZE, None)
        if size is None or size.shape != (2,) or size.dtype != torch.int64 or size[0] < 0 or size[1] < 1:
            raise DamagedFile(f"{path} must hold {SIZE}, two numbers of int64.")
        count, num_generations = size.tolist()
        rollouts = list[Rollout]()
        for index in range(min(count, len(tensors))):
            found = {name: tensors.pop(f"replay.{index}.{name}", None) for name in FIELDS}
            check_rollout(found, num_generations, vocab_size, f"{path}: replay.{index}")
            moved = {name: None if x is None else x.to(device) for name, x in found.items()}
            rollouts.append(Rollout(**moved, **NONE, num_generations=num_generations))  # type: ignore[arg-type]
        if tensors or len(rollouts) < count:
            raise DamagedFile(
                f"{path} must hold the tensors of {count} rollouts of a replay, got those of {len(rollouts)} and "
                f"{len(tensors)} others."
            )
        self.rollouts.clear()
        if num_generations == self.num_generations:
            self.rollouts.extend(rollouts)


def check_rollout(tensors: dict[str, Tensor | None], num_generations: int, vocab_size: int, where: str) -> None:
    """Checks the tensors of a saved rollout.

    Raises:
        DamagedFile: one is missing, or has another type or shape; a group is not whole; or a token is not in the
            vocabulary.
    """
    sizes = {"V": vocab_size}
    for name, (dtypes, shape) in FIELDS.items():
        tensor = tensors[name]
        if tensor is None and name == "action_mask":
            continue
        if tensor is None or tensor.ndim != len(shape) or tensor.dtype not in dtypes:
            found = "none" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
            raise DamagedFile(f"{where}.{name} must be {dtypes[0]} [{', '.join(shape)}], got {found}.")
        expected = [sizes.setdefault(letter, length) for letter, length in zip(shape, tensor.shape, strict=True)]
        if list(tensor.shape) != expected:
            raise DamagedFile(f"{where}.{name} must have the shape {expected}, got {list(tensor.shape)}.")
    if sizes["B"] % num_generations:
        raise DamagedFile(f"{where} must hold whole groups of {num_generations}, got {sizes['B']} completions.")
    ids = tensors["input_ids"]
    if (
        ids is None
        or sizes["W"] < sizes["T"]
        or (ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size)
    ):
        raise DamagedFile(f"{where}.input_ids must be token ids below {vocab_size}, of prompts and completions.")
