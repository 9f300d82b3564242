"""Which settings of TRL are measured, and what its documentation states about them.

`scale_rewards="none"` leaves the divisor alone to be seen; with groups of two, scaling by the standard deviation leaves
only the sign of the difference of the two scores.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from experiments.peers.row import Claim, Row, exact_direction, exact_direction_off_policy
from experiments.peers.toys import BETA
from experiments.peers.trl_losses import grpo, grpo_on_samples_of_vllm, rloo

PLAIN: dict[str, Any] = {"loss_type": "dr_grpo", "scale_rewards": "none"}
KL: dict[str, Any] = {"beta": BETA}
LOSS_TYPES = ("grpo", "bnpo", "dapo", "dr_grpo", "cispo", "sapo", "vespo")
UNBIASED_KL = "so that the KL gradient becomes the unbiased reverse-KL gradient"
CONFIG = "docstring of `GRPOConfig`, {}"
GUIDE = "TRL's documentation of July 2026, docs/source/{}"
CLAIMS = {
    "dapo": Claim(
        "introduced in the DAPO paper to eliminate length bias",
        CONFIG.format("`loss_type`"),
        exact_direction,
        "the divisor is the number of sampled tokens, and so depends on what was sampled. The page docs/source/"
        'grpo_trainer.md states it more exactly: "While the DAPO formulation reduces this bias, it does not eliminate '
        'it completely." The more tokens a batch has, the less the divisor depends on each: see B = 3',
    ),
    "dr_grpo": Claim(
        "To fully remove this bias, they propose dividing by a constant instead of the sequence length",
        GUIDE.format("grpo_trainer.md"),
        exact_direction,
        "a constant divisor is a factor of the step size",
    ),
}


def rows() -> list[Row]:
    """The settings in the order of the table."""
    return [*loss_types(), *scaled(), *with_kl(), *kl_alone(), *in_reward(), *other_sampler()]


def loss_types() -> list[Row]:
    """beta = 0: J is the mean score."""

    def made(claim: Claim | None = None, num_generations: int = 2, **settings: Any) -> Row:
        loss = partial(grpo, num_generations, **settings)
        return Row(f"GRPO({spelled(settings)})", loss, "score", num_generations, claim=claim)

    found = []
    for name in LOSS_TYPES:
        more: dict[str, Any] = (
            {"epsilon_high": 5.0} if name == "cispo" else {}
        )  # recommended by TRL; the default caps weights at 0.2
        found.append(made(CLAIMS.get(name), loss_type=name, scale_rewards="none", **more))
    sequence: dict[str, Any] = {"scale_rewards": "none", "importance_sampling_level": "sequence"}
    corrects = Claim(
        "This corrects GSPO's gradient bias that penalizes longer responses",
        GUIDE.format("paper_index.md"),
        exact_direction,
        "the length by which a sequence's loss is multiplied cancels that in the mean of its log-ratios",
    )
    return [
        *found,
        made(num_generations=3, loss_type="dapo", scale_rewards="none"),
        made(loss_type="grpo", **sequence),
        made(corrects, loss_type="luspo", **sequence),
    ]


def scaled() -> list[Row]:
    """The advantages divided by the standard deviation of the group, TRL's default."""
    names = ("dapo", "grpo", "dr_grpo")
    settings: list[dict[str, Any]] = [{"loss_type": name, "scale_rewards": "group"} for name in names]
    return [Row(f"GRPO({spelled(each)})", partial(grpo, **each), "score") for each in settings]


def with_kl() -> list[Row]:
    """The KL in the loss, by TRL's default (k3 times the ratio) and by k3 alone."""
    estimators = (KL, KL | {"use_bias_correction_kl": False})
    settings = [others | estimator for others in (PLAIN, {}) for estimator in estimators]
    return [Row(f"GRPO({spelled(each)})", partial(grpo, **each), fixed_point=True) for each in settings]


def kl_alone() -> list[Row]:
    """All scores zero: what is left of the loss is its KL."""
    states = (
        "on its own samples its gradient is that of (log pi - log pi_ref)^2 / 2, token by token. This is the gradient "
        "of the KL of each token given its prefix, with the prefixes held fixed. J has the KL of the sequences, and "
        "how a token changes what follows it is not in the term"
    )
    claim = Claim(UNBIASED_KL, CONFIG.format("`use_bias_correction_kl`"), exact_direction, states)
    settings: list[tuple[dict[str, Any], Claim | None]] = [
        ({}, claim),
        ({"use_bias_correction_kl": False}, None),
        ({"importance_sampling_level": "sequence"}, None),
    ]
    found = [
        Row(f"GRPO({spelled(PLAIN | KL | more)})", partial(grpo, **PLAIN, **KL, **more), "-KL", claim=each)
        for more, each in settings
    ]
    makes = {"GRPO": grpo, "RLOO": rloo}
    return found + [Row(f"{name}({spelled(KL)})", partial(make, **KL), "-KL") for name, make in makes.items()]


def in_reward() -> list[Row]:
    """RLOOTrainer, whose KL is in the reward."""
    claim = Claim(
        "the KL is purely used for reward shaping",
        GUIDE.format("rloo_trainer.md"),
        exact_direction,
        "with the log-ratio as a cost the gradient is that of J",
    )
    normalized: dict[str, Any] = KL | {"normalize_advantages": True}
    return [
        Row(f"RLOO({spelled(KL)})", partial(rloo, **KL), fixed_point=True, claim=claim),
        Row(f"RLOO({spelled(normalized)})", partial(rloo, **normalized), fixed_point=True),
    ]


def other_sampler() -> list[Row]:
    """Completions of the reference, with TRL's corrections for vLLM: the columns off policy tell them apart."""
    claim = Claim(
        "The correct, unbiased policy gradient estimator applies a single importance ratio over the entire generated "
        "sequence",
        GUIDE.format("paper_index.md"),
        exact_direction_off_policy,
        "without bounds the sequence's weight makes the gradient exact off policy too",
    )

    def made(correction: dict[str, Any], claim: Claim | None = None) -> Row:
        settings = {f"vllm_importance_sampling_{name}": value for name, value in correction.items()}
        loss = partial(grpo_on_samples_of_vllm, **PLAIN, **settings)
        return Row(f"GRPO({spelled(PLAIN | {'use_vllm': True} | settings)})", loss, "score", claim=claim)

    modes = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
    return [
        made({"correction": False}),
        *(made({"mode": mode}) for mode in modes),
        made({"mode": "sequence_mask", "clip_max": None}, claim),
    ]


def spelled(settings: dict[str, Any]) -> str:
    """Settings as arguments."""
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())
