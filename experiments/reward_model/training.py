"""reward-model: trains a reward model on preferences (Stiennon et al. 2020, arXiv:2009.01325).

    p(y > y' | x) = sigmoid(r(x, y) - r(x, y'))                      Bradley and Terry 1952
    L = -E[ log sigmoid(r(x, chosen) - r(x, rejected)) ]

Held-out pairs, which are not trained on, measure how often r agrees with the preferences (accuracy), how well its
probabilities match the observed frequencies (calibration), and how much of both is length (`measuring`). A model that
is no better than a guess about them is not saved. Further files of pairs are measured each by itself.

Preferences do not determine r's mean, and its scale is that of probabilities, not of rewards: so mean and standard
deviation over the training completions are stored with the model, and `textenv.rewards.RewardModel` scores with
(r - mean) / std. (The calibration is that of r itself.)
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from agents import Diverged, files
from agents.files import JsonObject
from experiments.console import progress_bar, show
from experiments.env_flags import check_device
from experiments.errors import FlagError
from experiments.opening import opened
from experiments.ranges import check_flags
from experiments.reward_model.checks import check_consistent, check_differ, check_enough, check_learned, describe_guess
from experiments.reward_model.fitting import KEEP, Fit
from experiments.reward_model.measuring import (
    AGREEMENT,
    LENGTH,
    agreement,
    describe_calibration,
    describe_length,
    measure,
)
from experiments.reward_model.pairs import Pair, have_one_prompt, read_pairs, split
from experiments.stopping import stops_later
from textenv.data import printable
from textenv.lm import forked_random_state, load_pretrained, load_tokenizer
from textenv.rewards import RewardModel

TRAINING = "training.json"  # flags; `config.json` is the classifier's
HELD_OUT = "held_out.json"  # `AGREEMENT` and `LENGTH` of the held-out pairs, skipped_steps, and those of `SETS`
SETS = "eval_pairs"  # in that file: the same numbers of further files of pairs, by their names
LATER = ("p_value", "calibration_error_by_chance", *LENGTH)  # of these, what an earlier version did not measure
CHECKPOINT = "checkpoint"
CHECKPOINT_SECONDS = 10.0
SAME_SCORES = 1e-6  # a smaller standard deviation is rounding


@dataclass
class RewardModelConfig:
    """Train a reward model on pairs of completions, and measure it on held-out pairs."""

    pairs: Path
    """File of pairs, .jsonl, .ndjson, .json, .csv or .parquet, with the fields prompt, chosen and rejected; or a folder
    written by datasets' save_to_disk."""
    model: str
    """Path or hub id of the model to start from: a causal LM, an encoder or a classifier."""
    out: Path
    """Output folder of the classifier."""
    epochs: int = 1
    """Passes over the pairs."""
    batch_size: int = 32
    """Pairs per update."""
    learning_rate: float = 1e-4
    """AdamW's step size."""
    held_out: float = 0.1
    """Share of the pairs that is not trained on but measured."""
    eval_pairs: list[Path] | None = None
    """Further files of pairs, as --pairs, that are not trained on: each is measured by itself."""
    seed: int = 0
    """Seed of the split, the order and the new layer."""
    device: str = "cpu"
    """Device of the model: cpu, cuda, ..."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the weights; the master weights that AdamW updates are in float32."""
    trust_remote_code: bool = False
    """Run the Python code that --model brings; without it such a model is refused."""
    checkpoint_seconds: float | None = None
    """Seconds between checkpoints; 0: one after each minibatch. By default 10, and more where checkpoints would take
    over a twentieth of the time."""
    resume: bool = False
    """Resume the training in --out from its last checkpoint; begin it if there is none yet."""
    take_over: bool = False
    """With --out in use by a command on another host: use it nevertheless, since that command does not run any more."""
    accept_changes: bool = False
    """With --resume: resume though flags, pairs or the model are not those that the training began with."""

    def __post_init__(self) -> None:
        check_flags(self)


def reward_model(config: RewardModelConfig) -> JsonObject:
    """Trains and saves the reward model; prints and returns what is measured on the held-out pairs, see `HELD_OUT`.

    Raises:
        FlagError: flags are invalid, or a line is no pair: chosen and rejected are the same, for example.
        NotLearned: the model is no better than a guess about the held-out pairs, or none can be: there are too few
            pairs, they contradict each other, or they look alike to the model. Nothing is saved as a result.
        Diverged: losses, gradients or scores are not finite, or all scores are the same. Likewise.
        Stopped: a signal came; a checkpoint was written after the minibatch that ran.
    """
    pairs = read_pairs(config.pairs)
    sets = {str(path): read_pairs(path, "--eval-pairs") for path in config.eval_pairs or []}
    if not 0 < config.held_out < 1:
        raise FlagError(f"--held-out must be between 0 and 1, got {config.held_out}.")
    if config.learning_rate == 0:
        raise FlagError("--learning-rate must be greater than 0.")
    check_device(config.device)
    rng = np.random.default_rng(config.seed)
    train, test = split(pairs, config.held_out, rng)
    check_consistent(config.pairs, pairs)
    check_enough(config.pairs, train, test)
    with opened(config, "reward-model", TRAINING) as folder:
        measured = finished(folder)
        if measured is None:
            measured = _train(config, folder, Data(train, test, sets), rng)
        elif config.accept_changes:
            print(printable(f"{folder}: the training has finished. For other flags choose another --out."))
        for checkpoint in (folder / CHECKPOINT, *folder.glob(f"{CHECKPOINT}.[0-9]*")):
            files.remove(checkpoint)  # last: until here a resumed command needs them
    print(json.dumps(measured, indent=2))
    for name, numbers in {"held-out pairs": measured, **measured[SETS]}.items():
        about = f"{describe_guess(numbers['p_value'])}{describe_calibration(numbers)} {describe_length(numbers)}"
        print(printable(f"{name}: {about}"))
    print(printable(f"saved to {folder}; textenv.rewards.RewardModel({str(folder)!r}) scores with it"))
    return measured


def finished(folder: Path) -> JsonObject | None:
    """What was measured if a folder holds a whole reward model; None if it is not trained yet.

    Numbers that an earlier version did not measure are None.
    """
    files.finish_folder(folder)
    path = folder / HELD_OUT
    if not path.is_file():
        return None
    try:
        files.verify(folder)
        measured: JsonObject = {SETS: {}, **files.read_json(path)}
        files.check_types(path, measured, {"skipped_steps": float, SETS: dict})
        for numbers in (measured, *measured[SETS].values()):
            files.check_types(path, {"the numbers of a file": numbers}, {"the numbers of a file": dict})
            for name in LATER:
                numbers.setdefault(name, None)
            types = dict.fromkeys(AGREEMENT, float) | dict.fromkeys(LATER, float | None)
            files.check_types(path, numbers, types)
        return measured
    except files.DamagedFile as error:
        print(printable(f"{error} It is trained again."))
        return None


class Data(NamedTuple):
    """The pairs of a training.

    Attributes:
        train: to train on.
        held_out: of the same file, not trained on.
        sets: further ones that are not trained on, by the name of their file.
    """

    train: list[Pair]
    held_out: list[Pair]
    sets: dict[str, list[Pair]]


def _train(config: RewardModelConfig, folder: Path, data: Data, rng: np.random.Generator) -> JsonObject:
    """Trains a reward model from the last checkpoint, measures and saves it."""
    train = data.train
    # transformers draws the new layer and dropout from the global generators
    with forked_random_state(torch.device(config.device), config.seed):
        reward = _load(config)
        check_differ(reward, train, "pairs to train on")
        check_differ(reward, data.held_out, "held-out pairs")
        for name, pairs in data.sets.items():
            check_differ(reward, pairs, f"pairs of {name}")
            if both := set(pairs) & set(train):
                print(printable(f"{name}: {len(both)} different pairs are trained on too."))
        fit = Fit(reward, train, config.epochs, config.batch_size, config.learning_rate, rng)
        _fit(fit, folder / CHECKPOINT, config.checkpoint_seconds)

    scores = np.array(reward([p.prompt for p in train] * 2, [p.chosen for p in train] + [p.rejected for p in train]))
    mean, std = float(scores.mean()), float(scores.std())
    if not np.isfinite(scores).all() or std <= SAME_SCORES * max(1.0, abs(mean)):
        raise Diverged(
            f"The reward model is of no use: over the training completions its scores have mean {mean:.3g} and "
            f"standard deviation {std:.3g}, by which scores are divided. Nothing was saved as a result; lower "
            f"--learning-rate ({config.learning_rate:g}), in another --out."
        )
    one_prompt = have_one_prompt(train + data.held_out)
    numbers, test = measure(reward, data.held_out, config.batch_size, one_prompt=one_prompt)
    check_learned(test, agreement(np.subtract(*scores.reshape(2, -1)))["accuracy"])
    measured: JsonObject = {**numbers, "skipped_steps": fit.skipped}
    measured[SETS] = {
        name: measure(reward, pairs, config.batch_size, one_prompt=have_one_prompt(pairs))[0]
        for name, pairs in data.sets.items()
    }
    reward.model.config.score_mean, reward.model.config.score_std = mean, std

    def fill(new: Path) -> None:
        reward.model.save_pretrained(new)
        reward.tokenizer.save_pretrained(new)
        files.write_json(new / HELD_OUT, measured)

    files.write_folder(folder, fill)
    return measured


def _fit(fit: Fit, checkpoint: Path, seconds: float | None) -> None:
    """Trains from the newest checkpoint that is whole; writes one every so many seconds, at a stop and at the end."""
    files.finish_folder(checkpoint, KEEP)
    if (found := files.newest_whole(checkpoint)) is not None:
        newest, passed_over = found
        for reason in passed_over:
            print(printable(f"passed over a checkpoint: {reason}"))
        files.promote(checkpoint, newest)  # else a damaged one would be kept, and a whole one removed in its place
        files.remove_versions(checkpoint, KEEP)
        fit.load(checkpoint)
    last, took = time.monotonic(), 0.0

    def save() -> None:
        nonlocal last, took
        started = time.monotonic()
        fit.save(checkpoint)
        last = time.monotonic()
        took = last - started

    with (
        progress_bar(total=fit.epochs * len(fit.pairs), initial=fit.num_pairs, unit="pair") as bar,
        stops_later("this minibatch and its checkpoint") as stop,
    ):

        def after_batch(size: int, loss: float) -> None:
            bar.update(size)
            show(bar, f"loss={loss:.3f}")
            interval = max(CHECKPOINT_SECONDS, 20 * took) if seconds is None else seconds
            if stop.number is not None or time.monotonic() - last > interval:
                save()
            stop.stop_if_requested()

        fit.run(after_batch)
        save()
    stop.stop_if_requested()


def _load(config: RewardModelConfig) -> RewardModel:
    files.check_saved(config.model)
    try:
        trusted = {"trust_remote_code": config.trust_remote_code}
        tokenizer = load_tokenizer(config.model, **trusted)
        model = load_pretrained(
            AutoModelForSequenceClassification,
            config.model,
            num_labels=1,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            **trusted,
        )
        return RewardModel(model.to(config.device, getattr(torch, config.dtype)), tokenizer)
    except (OSError, ValueError) as error:
        raise FlagError(f"--model {config.model!r}: {error}") from error
