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
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from agents.training import MasterWeights
from experiments.env_flags import check_device
from experiments.errors import FlagError
from experiments.reward_model.pairs import Pair, read_pairs, split
from textenv.rewards import RewardModel


@dataclass
class RewardModelConfig:
    """Train a reward model on pairs of completions, and measure it on held-out pairs."""

    pairs: Path
    """JSONL file, one pair a line: {"prompt", "chosen", "rejected"}; or a folder written by datasets' save_to_disk."""
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


def reward_model(config: RewardModelConfig) -> dict[str, float]:
    """Trains and saves the reward model; prints and returns the metrics on the held-out pairs."""
    pairs = read_pairs(config.pairs)
    if not 0 < config.held_out < 1 or config.epochs < 1 or config.batch_size < 1:
        raise FlagError(
            f"--held-out must be in (0, 1), --epochs and --batch-size at least 1, got {config.held_out}, "
            f"{config.epochs} and {config.batch_size}."
        )
    if not 0 < config.learning_rate < float("inf") or config.seed < 0:
        raise FlagError(
            f"--learning-rate must be a number > 0 and --seed not negative, got {config.learning_rate}, {config.seed}."
        )
    check_device(config.device)
    if config.out.is_dir() and any(config.out.iterdir()):
        raise FlagError(f"--out {str(config.out)!r} is not empty; choose another folder.")
    rng = np.random.default_rng(config.seed)
    train, test = split(pairs, config.held_out, rng)
    if not train:
        raise FlagError(f"{config.pairs}: {len(pairs)} pairs are too few to hold {len(test)} of them out.")
    with torch.random.fork_rng(devices=[]):  # transformers draws the new layer and dropout from the global generator
        torch.manual_seed(config.seed)
        reward = _load(config)
        try:
            config.out.mkdir(parents=True, exist_ok=True)  # before training, which would be lost if it failed
        except OSError as error:
            raise FlagError(f"--out {str(config.out)!r} cannot be made: {error}") from error
        fit(reward, train, config, rng)

    scores = np.array(reward([p.prompt for p in train] * 2, [p.chosen for p in train] + [p.rejected for p in train]))
    reward.model.config.score_mean, reward.model.config.score_std = float(scores.mean()), float(scores.std())
    with torch.no_grad():
        batches = [test[i : i + config.batch_size] for i in range(0, len(test), config.batch_size)]
        margin = torch.cat([margins(reward, batch) for batch in batches]).cpu().numpy()
    measured = {"pairs": float(len(test)), **agreement(margin)}
    reward.model.save_pretrained(config.out)
    reward.tokenizer.save_pretrained(config.out)
    (config.out / "held_out.json").write_text(json.dumps(measured, indent=2) + "\n")
    print(json.dumps(measured, indent=2))
    print(f"saved to {config.out}; textenv.rewards.RewardModel({str(config.out)!r}) scores with it")
    return measured


def fit(reward: RewardModel, pairs: list[Pair], config: RewardModelConfig, rng: np.random.Generator) -> None:
    """Minimises the preference loss in minibatches, and freezes the model again."""
    reward.model.config.score_mean, reward.model.config.score_std = 0.0, 1.0  # it may start from a reward model
    reward.model.requires_grad_(True).train()
    master_weights = MasterWeights(reward.model.parameters())
    trained = master_weights.for_parameters(reward.model.parameters())
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate)
    with tqdm(total=config.epochs * len(pairs), unit="pair") as bar:
        for _ in range(config.epochs):
            shuffled = rng.permutation(len(pairs))
            for start in range(0, len(pairs), config.batch_size):
                batch = [pairs[i] for i in shuffled[start : start + config.batch_size]]
                loss = preference_loss(margins(reward, batch))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                master_weights.accumulate_gradients()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                master_weights.update_weights()
                bar.update(len(batch))
                bar.set_postfix(loss=f"{loss.item():.3f}")
    reward.model.eval().requires_grad_(False)


def margins(reward: RewardModel, pairs: list[Pair]) -> Tensor:
    """r(x, chosen) - r(x, rejected), [B], in one forward pass."""
    rows = [reward.tokens(p.prompt, p.chosen) for p in pairs] + [reward.tokens(p.prompt, p.rejected) for p in pairs]
    chosen, rejected = reward.logits(rows).chunk(2)
    return chosen - rejected


def preference_loss(margin: Tensor) -> Tensor:
    """-mean log sigmoid of the margins [B]."""
    return -logsigmoid(margin).mean()


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
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.model)
        model = AutoModelForSequenceClassification.from_pretrained(
            config.model, num_labels=1, ignore_mismatched_sizes=True, dtype=torch.float32
        )
        return RewardModel(model.to(config.device, getattr(torch, config.dtype)), tokenizer)
    except (OSError, ValueError) as error:
        raise FlagError(f"--model {config.model!r}: {error}") from error
