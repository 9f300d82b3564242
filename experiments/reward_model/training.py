"""reward-model: trains a reward model on preferences (Stiennon et al. 2020, arXiv:2009.01325).

    p(y > y' | x) = sigmoid(r(x, y) - r(x, y'))                      Bradley and Terry 1952
    L = -E[ log sigmoid(r(x, chosen) - r(x, rejected)) ]

Held-out pairs, which are not trained on, measure how often r agrees with the preferences (accuracy) and how well its
probabilities match the observed frequencies (calibration). Preferences do not determine r's mean, and its scale is that
of probabilities, not of rewards: so mean and standard deviation over the training completions are stored with the
model, and `textenv.rewards.RewardModel` scores with (r - mean) / std. (The calibration is that of r itself.)
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification

from agents import Diverged, files
from experiments.console import progress_bar, show
from experiments.env_flags import check_device
from experiments.errors import FlagError
from experiments.opening import opened
from experiments.ranges import check_flags
from experiments.reward_model.fitting import KEEP, Fit, margins
from experiments.reward_model.pairs import Pair, describe_pair, read_pairs, split
from experiments.stopping import stops_later
from textenv.data import printable
from textenv.lm import load_pretrained, load_tokenizer
from textenv.rewards import RewardModel

TRAINING = "training.json"  # flags; `config.json` is the classifier's
HELD_OUT = "held_out.json"
MEASURED = ("pairs", "accuracy", "log_loss", "calibration_error", "mean_confidence", "skipped_steps")  # in that file
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


def reward_model(config: RewardModelConfig) -> dict[str, float]:
    """Trains and saves the reward model; prints and returns the metrics on the held-out pairs.

    Raises:
        Diverged: losses, gradients or scores are not finite, or all scores are the same. Nothing is saved as a result.
        Stopped: a signal came; a checkpoint was written after the minibatch that ran.
    """
    pairs = read_pairs(config.pairs)
    if not 0 < config.held_out < 1:
        raise FlagError(f"--held-out must be between 0 and 1, got {config.held_out}.")
    if config.learning_rate == 0:
        raise FlagError("--learning-rate must be greater than 0.")
    check_device(config.device)
    rng = np.random.default_rng(config.seed)
    train, test = split(pairs, config.held_out, rng)
    if not train:
        raise FlagError(f"{config.pairs}: {len(pairs)} pairs are too few to hold {len(test)} of them out.")
    with opened(config, "reward-model", TRAINING) as folder:
        measured = finished(folder)
        if measured is None:
            measured = _train(config, folder, train, test, rng)
        elif config.accept_changes:
            print(printable(f"{folder}: the training has finished. For other flags choose another --out."))
        for checkpoint in (folder / CHECKPOINT, *folder.glob(f"{CHECKPOINT}.[0-9]*")):
            files.remove(checkpoint)  # last: until here a resumed command needs them
    print(json.dumps(measured, indent=2))
    print(printable(f"saved to {folder}; textenv.rewards.RewardModel({str(folder)!r}) scores with it"))
    return measured


def finished(folder: Path) -> dict[str, float] | None:
    """The metrics on the held-out pairs if a folder holds a whole reward model; None if it is not trained yet."""
    files.finish_folder(folder)
    if not (folder / HELD_OUT).is_file():
        return None
    try:
        files.verify(folder)
        measured: dict[str, float] = files.read_json(folder / HELD_OUT)
        files.check_types(folder / HELD_OUT, measured, dict.fromkeys(MEASURED, float))
        return {name: float(measured[name]) for name in MEASURED}
    except files.DamagedFile as error:
        print(printable(f"{error} It is trained again."))
        return None


def _train(
    config: RewardModelConfig, folder: Path, train: list[Pair], test: list[Pair], rng: np.random.Generator
) -> dict[str, float]:
    """Trains a reward model from the last checkpoint, measures and saves it."""
    with torch.random.fork_rng(devices=[]):  # transformers draws the new layer and dropout from the global generator
        torch.manual_seed(config.seed)
        reward = _load(config)
        check_differ(reward, train, "pairs to train on")
        check_differ(reward, test, "held-out pairs")
        fit = Fit(reward, train, config.epochs, config.batch_size, config.learning_rate, rng)
        _fit(fit, folder / CHECKPOINT, config.checkpoint_seconds)

    scores = np.array(reward([p.prompt for p in train] * 2, [p.chosen for p in train] + [p.rejected for p in train]))
    mean, std = float(scores.mean()), float(scores.std())
    with torch.no_grad():
        batches = [test[i : i + config.batch_size] for i in range(0, len(test), config.batch_size)]
        margin = torch.cat([margins(reward, batch) for batch in batches]).cpu().numpy()
    if not (np.isfinite(scores).all() and np.isfinite(margin).all()) or std <= SAME_SCORES * max(1.0, abs(mean)):
        raise Diverged(
            f"The reward model is of no use: over the training completions its scores have mean {mean:.3g} and "
            f"standard deviation {std:.3g}, by which scores are divided. Nothing was saved as a result; lower "
            f"--learning-rate ({config.learning_rate:g}), in another --out."
        )
    reward.model.config.score_mean, reward.model.config.score_std = mean, std
    measured = {"pairs": float(len(test)), **agreement(margin), "skipped_steps": float(fit.skipped)}

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


def check_differ(reward: RewardModel, pairs: list[Pair], which: str) -> None:
    """Checks that the model can tell the completions of pairs apart; prints how many are alike.

    Raises:
        FlagError: the completions of all pairs have the same tokens.
    """
    alike = [p for p in pairs if reward.tokens(p.prompt, p.chosen) == reward.tokens(p.prompt, p.rejected)]
    if not alike:
        return
    cut = "" if reward.max_length is None else f", or they differ only in what is cut off beyond {reward.max_length}"
    text = (
        f"{len(alike)} of {len(pairs)} {which} look alike to the model: both completions have the same tokens. Its "
        f"tokenizer may not know their words{cut}. "
        f"The first is {describe_pair(alike[0])}."
    )
    if len(alike) == len(pairs):
        raise FlagError(text)
    print(printable(text))


def agreement(margin: NDArray[np.float64], bins: int = 10) -> dict[str, float]:
    """Agreement of margins [N] of held-out pairs with the preferences.

    `accuracy`: share of positive margins, half for ties. `log_loss`: -mean log p; a guess has log 2 = 0.693.
    `calibration_error` (Guo et al. 2017, arXiv:1706.04599): for each pair the side that the model prefers has
    confidence p >= 1/2; mean of |share of correct pairs - mean confidence| over `bins` of equal width, weighted by
    their size.
    """
    double = np.asarray(margin, dtype=np.float64)
    confidence, correct = 1 / (1 + np.exp(-np.abs(double))), np.where(double == 0, 0.5, double > 0)
    group = np.minimum((2 * (confidence - 0.5) * bins).astype(int), bins - 1)
    gaps = [abs(correct[group == g].sum() - confidence[group == g].sum()) for g in np.unique(group)]
    return {
        "accuracy": float(correct.mean()),
        "log_loss": float(np.logaddexp(0, -double).mean()),
        "calibration_error": float(sum(gaps) / len(double)),
        "mean_confidence": float(confidence.mean()),
    }


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
