"""Fits a reward model to pairs, in minibatches; after each one the state can be saved, and restored bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from agents import FORMAT_VERSION, Diverged, files, read_saved
from agents.files import JsonObject
from agents.training import MasterWeights
from experiments.reward_model.pairs import Pair, describe_pair
from textenv.lm import get_random_state, set_random_state
from textenv.rewards import RewardModel

MOST_SKIPPED = 5  # minibatches in a row whose step is not taken: then training stops
STATE, TENSORS = "training_state.json", "training_state.safetensors"
KEEP = 2  # checkpoints


class Fit:
    """AdamW on the preference loss.

    Args:
        reward: the model, which is trained in place.
        pairs: the pairs to train on.
        epochs: passes over the pairs.
        batch_size: pairs in a minibatch.
        learning_rate: AdamW's step size.
        rng: draws the order of the pairs. (Dropout draws from torch's global generators.)

    Attributes:
        num_pairs: pairs used so far, in all epochs.
        skipped: minibatches whose loss or gradient was not finite; no step was taken.
    """

    def __init__(
        self,
        reward: RewardModel,
        pairs: list[Pair],
        epochs: int,
        batch_size: int,
        learning_rate: float,
        rng: np.random.Generator,
    ) -> None:
        self.reward, self.pairs, self.rng = reward, pairs, rng
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate
        reward.model.config.score_mean, reward.model.config.score_std = 0.0, 1.0  # it may start from a reward model
        self.parameters = list(reward.model.parameters())
        self.master_weights = MasterWeights(self.parameters)
        self.trained = self.master_weights.for_parameters(self.parameters)
        self.optimizer = torch.optim.AdamW(self.trained, lr=learning_rate)
        self.num_pairs = self.skipped = self.in_a_row = 0
        self.order_state = rng.bit_generator.state  # from which the order of this epoch is drawn

    def run(self, after_batch: Callable[[int, float], None]) -> None:
        """Trains to the end of the last epoch, and freezes the model.

        Args:
            after_batch: called with the size and the loss of each minibatch.

        Raises:
            Diverged: `MOST_SKIPPED` losses or gradients in a row were not finite.
        """
        self.reward.model.requires_grad_(True).train()
        total = self.epochs * len(self.pairs)
        while self.num_pairs < total:
            first = self.num_pairs % len(self.pairs)
            if first == 0:
                self.order_state = self.rng.bit_generator.state
            self.rng.bit_generator.state = self.order_state
            order = self.rng.permutation(len(self.pairs))
            for start in range(first, len(self.pairs), self.batch_size):
                batch = [self.pairs[i] for i in order[start : start + self.batch_size]]
                loss = self._step(batch)
                self.num_pairs += len(batch)
                after_batch(len(batch), loss)
        self.reward.model.eval().requires_grad_(False)

    def _step(self, batch: list[Pair]) -> float:
        """Takes one step, if loss and gradient are finite; returns the loss."""
        loss = preference_loss(margins(self.reward, batch))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.master_weights.accumulate_gradients()
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained, 1.0))
        if math.isfinite(loss.item()) and math.isfinite(norm):
            self.optimizer.step()
            self.master_weights.update_weights()
            self.in_a_row = 0
            return loss.item()
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= MOST_SKIPPED:
            raise Diverged(
                f"Training has diverged after {self.num_pairs} pairs: loss or gradient of {self.in_a_row} minibatches "
                f"in a row are not finite (loss {loss.item():.3g}, gradient norm {norm:.3g}). The last one begins with "
                f"{describe_pair(batch[0])}. Nothing was saved as a result; lower --learning-rate "
                f"({self.learning_rate:g})."
            )
        return loss.item()

    def save(self, folder: Path) -> None:
        """Writes a checkpoint, see `files.write_folder`."""
        tensors = {f"parameter.{i}": parameter.detach() for i, parameter in enumerate(self.parameters)}
        tensors |= {f"master.{i}": weight for i, weight in enumerate(self.master_weights.state()) if weight is not None}
        for i, parameter in enumerate(self.trained):
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"adam.{i}.{name}": value for name, value in moments.items()}
        tensors["generator"] = torch.get_rng_state()
        if self.reward.model.device.type != "cpu":
            tensors["device_generator"] = get_random_state(self.reward.model.device)
        state = {
            "format_version": FORMAT_VERSION,
            "num_pairs": self.num_pairs,
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "order": self.order_state,
            "rng": self.rng.bit_generator.state,
        }

        def fill(new: Path) -> None:
            files.write_tensors(new / TENSORS, tensors)
            files.write_json(new / STATE, state)

        files.write_folder(folder, fill, KEEP)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Restores a checkpoint of the same model and pairs.

        Raises:
            DamagedFile: a file is missing or was changed; or the checkpoint is that of another model.
            ValueError: it was written by another version.
        """
        files.verify(folder)
        state: JsonObject = read_saved(folder / STATE)
        types = {"num_pairs": int, "skipped": int, "in_a_row": int, "order": dict, "rng": dict}
        files.check_types(folder / STATE, state, types)
        tensors = files.read_tensors(folder / TENSORS)
        try:
            self.order_state, self.rng.bit_generator.state = state["order"], state["rng"]
            for i, parameter in enumerate(self.parameters):
                parameter.copy_(tensors[f"parameter.{i}"])
            masters = len(self.master_weights.rounded)
            self.master_weights.load_state([tensors[f"master.{i}"] for i in range(masters)])
            for i, parameter in enumerate(self.trained):
                names = [name for name in ("step", "exp_avg", "exp_avg_sq") if f"adam.{i}.{name}" in tensors]
                moments = {name: tensors[f"adam.{i}.{name}"].clone() for name in names}
                if moments:
                    place = {name: m if name == "step" else m.to(parameter.device) for name, m in moments.items()}
                    self.optimizer.state[parameter] = place
            torch.set_rng_state(tensors["generator"])
            if "device_generator" in tensors and self.reward.model.device.type != "cpu":
                set_random_state(tensors["device_generator"], self.reward.model.device)
        except (KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise files.DamagedFile(f"{folder} holds no checkpoint of this model: {error}") from error
        self.num_pairs, self.skipped, self.in_a_row = state["num_pairs"], state["skipped"], state["in_a_row"]


def margins(reward: RewardModel, pairs: list[Pair]) -> Tensor:
    """r(x, chosen) - r(x, rejected), [B], in one forward pass."""
    rows = [reward.tokens(p.prompt, p.chosen) for p in pairs] + [reward.tokens(p.prompt, p.rejected) for p in pairs]
    chosen, rejected = reward.logits(rows).chunk(2)
    return chosen - rejected


def preference_loss(margin: Tensor) -> Tensor:
    """-mean log sigmoid of the margins [B]."""
    return -logsigmoid(margin).mean()
