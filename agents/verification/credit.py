"""What a loss gives credit for, token by token: the score, the length, and the KL of a plain batch.

A plain batch is one on which all policies agree: log pi = log pi_old = log pi_ref, V = 0. The only reward is a score on
the last token of its first completion. The gradient of a loss by log pi(a_t|s_t) is the weight that it gives a token,
and one number is changed at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from agents.functional import reward_to_go
from agents.verification.findings import TOLERANCE, Finding
from agents.verification.loss import BatchGradient
from agents.verification.samples import Sample

SCORE_LINES = ("score", "last token", "earlier tokens", "length")
KL_LINE = "KL in the rewards"
LOG_RATIOS = torch.tensor([-1.0, -0.5, 0.5, 1.0], dtype=torch.float64)
KL_GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "k2 or of k3 times rho": lambda d: d,
    "k3": lambda d: 1 - (-d).exp(),
    "k3 of the log-ratio the wrong way round": lambda d: d.exp() - 1,
}


@dataclass(frozen=True)
class PlainBatches:
    """Plain batches whose first completion is of every length.

    Attributes:
        gradient: of the loss.
        samples: a batch for each length, without a score.
        lengths: the number of tokens of the first completion.
    """

    gradient: BatchGradient
    samples: list[Sample]
    lengths: list[int]

    @classmethod
    def of(cls, gradient: BatchGradient, sample: Sample, batch_size: int) -> PlainBatches:
        """Batches of completions of one prompt; those after the first are one of each length in turn."""
        length = sample.rollout.mask.sum(dim=1)
        of_prompt = torch.nonzero(sample.rollout.prompt == sample.rollout.prompt[0])[:, 0]
        by_length = {
            int(each): of_prompt[length[of_prompt] == each] for each in sorted(set(length[of_prompt].tolist()))
        }
        others = [rows[-1] for rows in by_length.values()] * batch_size
        rows = torch.stack([torch.stack([each[0], *others[: batch_size - 1]]) for each in by_length.values()])
        return cls(gradient, [_plain(each) for each in sample.batches(rows)], list(by_length))

    def weights(self, sample: Sample) -> Tensor:
        """The weight of each token, [B, T]."""
        q_values = reward_to_go(sample.rollout.rewards, sample.rollout.mask)
        changed = replace(sample, q_values=q_values, q_values_without_kl=q_values)
        return -self.gradient(changed).by_token(changed)

    def scored(self, sample: Sample, score: float) -> Sample:
        """The batch with a score of the first completion."""
        rewards, scores = sample.rollout.rewards.clone(), sample.rollout.scores.clone()
        rewards[0, int(sample.rollout.mask[0].sum()) - 1], scores[0] = score, score
        return sample.change(rewards=rewards, scores=scores)

    def reads_values(self) -> bool:
        """Whether any weight depends on V."""
        sample = self.samples[-1]
        ones = torch.ones_like(sample.values)
        changed = replace(sample, values=ones, values_without_kl=ones)
        return not torch.equal(self.weights(sample), self.weights(changed))

    def sensitivities(self) -> list[Tensor]:
        """How much the weights of the tokens of the first completion change with its score, [length] for each."""
        return [
            (self.weights(self.scored(sample, 1.0)) - self.weights(self.scored(sample, -1.0)))[0, :length] / 2
            for sample, length in zip(self.samples, self.lengths, strict=True)
        ]


def credit(gradient: BatchGradient, sample: Sample, batch_size: int, kl_coef: float) -> list[Finding]:
    """Tests what a loss gives credit for.

    Args:
        gradient: of the loss.
        sample: all N completions, of the policy itself.
        batch_size: B, completions per batch.
        kl_coef: beta of the task.
    """
    plain = PlainBatches.of(gradient, sample, batch_size)
    try:
        found = _score_findings(plain.sensitivities(), plain.reads_values())
    except Exception as error:  # of the user's loss
        cause = f"since the loss fails where one completion has a score: {error}"
        found = [Finding(name, math.nan, cause) for name in SCORE_LINES]
    try:
        return [*found, _kl_finding(plain, kl_coef)]
    except Exception as error:
        return [*found, Finding(KL_LINE, math.nan, f"since the loss fails where log pi_ref differs: {error}")]


def _score_findings(sensitivities: list[Tensor], reads_values: bool) -> list[Finding]:
    score, last_token, earlier, length = SCORE_LINES
    largest = max(float(each.abs().max()) for each in sensitivities)
    if largest < TOLERANCE:
        cause = "no token gets credit for the score: usually it is one column late, where the mask hides it"
        untested = [Finding(name, math.nan, "without a score") for name in SCORE_LINES[1:]]
        return [Finding(score, math.inf, cause), *untested]
    reached = [float(each.abs().max()) > TOLERANCE * largest for each in sensitivities]
    last = torch.stack([each[-1].abs() for each in sensitivities])
    if float(last.max()) < TOLERANCE * largest:
        cause = "the last token, mostly EOS, gets no credit: usually it is left out of the mask (pad == eos)"
        untested = [Finding(name, math.nan, "without EOS") for name in (earlier, length)]
        return [Finding(score, 0.0), Finding(last_token, math.inf, cause), *untested]
    cut = "completions of some lengths get no credit for their score: usually it is one column late, and cut off"
    some = "the last token of some completions gets no credit"
    return [
        Finding(score, 0.0 if all(reached) else math.inf, cut),
        Finding(last_token, math.inf if float(last.min()) < TOLERANCE * largest else 0.0, some),
        _earlier_tokens(earlier, sensitivities, reads_values),
        Finding(
            length,
            float(1 - last.min() / last.max()),
            "a completion's weight depends on its length: usually a mean over tokens in place of a sum",
        ),
    ]


def _earlier_tokens(name: str, sensitivities: list[Tensor], reads_values: bool) -> Finding:
    """Whether all tokens of a completion have the same credit for its score."""
    if reads_values:
        return Finding(name, math.nan, "since V may stand for what follows")
    longer = [each for each in sensitivities if len(each) > 1 and float(each[-1].abs()) > 0]
    if not longer:
        return Finding(name, math.nan, "without a completion of two tokens")
    shares = torch.cat([each[:-1] / each[-1] for each in longer])
    if float(shares.abs().max()) < TOLERANCE:
        return Finding(name, math.inf, "they get no credit for the score: usually the reward in place of the return")
    cause = (
        "a token's credit depends on its distance from the end: usually gamma or lambda below 1, or a mean of rewards"
    )
    return Finding(name, float((shares - 1).abs().max()), cause)


def _kl_finding(plain: PlainBatches, kl_coef: float) -> Finding:
    """Where the KL is, and whose gradient it has, from changes of log pi_ref of the last token of the longest.

    They are made with the change of the rewards that belongs to them, and the latter is made alone: what both have in
    common comes from the rewards. A KL in the rewards does what a score of -beta times the log-ratio does.
    """
    sample, last = plain.samples[-1], plain.lengths[-1] - 1
    if kl_coef == 0:
        return Finding(KL_LINE, math.nan, "since beta is 0")
    if "ref_all_log_probs" in plain.gradient.extra:
        return Finding(KL_LINE, math.nan, "since the loss reads ref_all_log_probs")
    before = plain.weights(sample)[0]
    by_score, by_reward, by_both = torch.zeros(3, len(LOG_RATIOS), len(before), dtype=torch.float64)
    for i, log_ratio in enumerate(LOG_RATIOS.tolist()):
        rewards, ref_log_probs = sample.rollout.rewards.clone(), sample.rollout.ref_log_probs.clone()
        rewards[0, last] -= kl_coef * log_ratio
        ref_log_probs[0, last] -= log_ratio
        by_score[i] = before - plain.weights(plain.scored(sample, -kl_coef * log_ratio))[0]
        by_reward[i] = before - plain.weights(sample.change(rewards=rewards))[0]
        by_both[i] = before - plain.weights(sample.change(rewards=rewards, ref_log_probs=ref_log_probs))[0]
    if float(by_both.abs().max()) < TOLERANCE:
        return Finding(
            KL_LINE, math.inf, "there is none: no weight depends on log pi_ref (k1 in the loss is a constant)"
        )
    if torch.allclose(by_both, by_score, rtol=TOLERANCE, atol=1e-12):
        return Finding(KL_LINE, 0.0)
    common = torch.allclose(by_both[:, :last], by_reward[:, :last], rtol=TOLERANCE, atol=1e-12)
    found = by_both - by_reward if common else by_both
    own, largest = found[:, last], float(found.abs().max())
    if largest < TOLERANCE or (last and float(found[:, 0].abs().max()) > TOLERANCE * largest):
        return _in_rewards(by_both, by_score)
    for kind, function in KL_GRADIENTS.items():
        shape = function(LOG_RATIOS)
        factor = float(own @ shape) / float(shape @ shape)
        if float((own - factor * shape).abs().max()) < TOLERANCE * largest:
            sign = "" if factor > 0 else "minus "
            return Finding(KL_LINE, math.inf, f"it is in the loss, with the gradient of {sign}{kind}")
    return Finding(KL_LINE, math.inf, "it is in the loss, with a gradient of another form than those of k1, k2 and k3")


def _in_rewards(by_both: Tensor, by_score: Tensor) -> Finding:
    """The KL is in the rewards, but not as beta times k1 of each token."""
    if float(by_score.abs().max()) < TOLERANCE:
        return Finding(KL_LINE, math.nan, "without a score")
    reversed_score = by_score.flip(0)  # LOG_RATIOS are symmetric
    if torch.allclose(by_both, reversed_score, rtol=TOLERANCE, atol=1e-12):
        return Finding(KL_LINE, math.inf, "the log-ratio of the rewards is the wrong way round")
    factor = float((by_both * by_score).sum() / by_score.square().sum())
    if float((by_both - factor * by_score).abs().max()) > TOLERANCE * float(by_both.abs().max()):
        return Finding(KL_LINE, math.inf, "the rewards have another estimator than k1 (log pi - log pi_ref)")
    if factor < 0:
        cause = f"the log-ratio of the rewards is the wrong way round, with {-factor:.3g} times beta"
        return Finding(KL_LINE, math.inf, cause)
    cause = (
        f"beta is {factor:.3g} times the task's: usually another beta, a KL that counts twice, or a mean over tokens"
    )
    return Finding(KL_LINE, abs(factor - 1), cause)


def _plain(sample: Sample) -> Sample:
    """The batch with log pi of all policies, without rewards."""
    zero, log_probs = torch.zeros_like(sample.log_probs), sample.log_probs
    changed = sample.change(
        log_probs=log_probs, ref_log_probs=log_probs, rewards=zero, scores=torch.zeros_like(sample.rollout.scores)
    )
    return replace(
        changed,
        ref_all_log_probs=sample.all_log_probs,
        values=zero,
        q_values=zero,
        values_without_kl=zero,
        q_values_without_kl=zero,
    )
