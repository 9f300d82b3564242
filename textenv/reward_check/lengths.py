"""The same completions cut: what does length alone do?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from textenv.reward_check.calls import Array
from textenv.reward_check.correlation import centred
from textenv.reward_check.findings import Cell, Finding, Table, quoted
from textenv.reward_check.holes import Hole
from textenv.reward_check.probes import AT_RANDOM, CompletionsToEdit
from textenv.reward_check.samples import reference_log_probs
from textenv.rewards import FinishedCompletions, RewardError

LENGTHS, CUTS = 48, 8  # different lengths at most, and those of one completion
EXPLAINED = 0.5  # of what cutting changes: what a text says has the other half
FEWEST_CUTS, SURE = 5, 2.0  # of the length that is named, and the standard errors by which it must be good
SHOWN = 6
CHANGES = 0.1  # of the scores' standard deviation


def check_lengths(base: CompletionsToEdit, seed: int) -> tuple[list[Hole], list[Table]]:
    """Cuts each completion at some lengths, with an EOS token there, and compares the lengths.

    Only where the reference has full support: elsewhere a beginning may be none of its completions.
    """
    if not base.mdp.full_support or not base.mdp.is_eos.any():
        return [], []
    texts = _cut(base, seed)
    try:
        grid = base.reward.score(texts).reshape(len(base.whole), -1)
    except RewardError as error:
        if base.reward.fails_at_random:
            return [Hole(-np.inf, Finding("holes", "length", "look here", "not tried: " + AT_RANDOM))], []
        text = f"the reward fails where completions are cut: {error}"
        return [Hole(np.inf, Finding("holes", "length", "broken", text))], []
    missing = _without_a_score(base, texts, grid.ravel())
    compared = (~np.isnan(grid)).sum(axis=1) >= 2
    if not compared.any():
        return missing, []
    target = np.full(grid.shape, np.nan)
    target[compared] = centred(grid[compared]).reshape(-1, grid.shape[1])
    known = ~np.isnan(grid.ravel()) & np.repeat(compared, grid.shape[1])
    scores, length, changes = grid.ravel()[known], texts.length[known], target.ravel()[known]
    completion = np.repeat(np.arange(len(grid)), grid.shape[1])[known]
    effects = length_effects(scores, completion, length)
    shown: list[list[Cell]] = [[n, *effect] for n, effect in effects.items()]
    columns = ["tokens", "score", "\u00b1", "cuts"]
    table = Table("holes", "the same completions, cut", columns, shown[:: max(1, len(shown) // SHOWN)])
    share, scale = explained_by_groups(changes, length), base.scale or float(scores.std()) or 1.0
    if np.isnan(share) or share < EXPLAINED or float(changes.std()) < CHANGES * scale:
        return missing, [table]
    frequent = [n for n, effect in effects.items() if effect.cuts >= FEWEST_CUTS] or list(effects)
    best = max(frequent, key=lambda n: effects[n].score - SURE * effects[n].stderr)
    text = f"where completions are cut, the number of tokens alone explains {share:.0%} of what changes; best "
    text += f"at {best} tokens: {effects[best].score:.3g} \u00b1 {effects[best].stderr:.2g}"
    row = int(np.flatnonzero(length == best)[0])
    example = f"{quoted(str(texts.completions[int(np.flatnonzero(known)[row])]))} has {scores[row]:.3g}"
    rank = effects[best].score - effects[max(effects)].score + base.mdp.kl_coef * _cost(base, texts, best)
    return [*missing, Hole(rank, Finding("holes", "length", "look here", text, example))], [table]


def _without_a_score(base: CompletionsToEdit, texts: FinishedCompletions, scores: Array) -> list[Hole]:
    """The finding about cuts of completions that have no score, though the completions have one."""
    missing = np.flatnonzero(np.isnan(scores))
    if not len(missing):
        return []
    text = f"{len(missing) / len(scores):.0%} of the completions that are cut have no score, though whole they have, "
    text += "and are skipped" if base.mdp.reward.on_error == "skip" else "which stops a training that comes there"
    known = texts.length[~np.isnan(scores)]
    text += f"; they have {texts.length[missing].min()} to {texts.length[missing].max()} tokens"
    text += f", those with a score {known.min()} to {known.max()}" if len(known) else ""
    longest = int(missing[np.argmax(texts.length[missing])])
    example = f"{quoted(str(texts.completions[longest]))} has none"
    return [Hole(0.0, Finding("holes", "none where cut", "look here", text, example))]


def _cut(base: CompletionsToEdit, seed: int) -> FinishedCompletions:
    """Each completion `CUTS` times, or as often as there are lengths, cut at different lengths with an EOS token."""
    whole, generator = base.whole, np.random.default_rng(seed)
    choices = np.unique(np.linspace(1, int(whole.length.max()), LENGTHS).round().astype(np.int64))
    drawn = np.stack([generator.permutation(choices)[:CUTS] for _ in range(len(whole))])
    length = np.minimum(drawn, whole.length[:, None]).ravel()  # tokens with the EOS token
    rows = np.repeat(np.arange(len(whole)), drawn.shape[1])
    tokens = np.where(np.arange(whole.tokens.shape[1]) < length[:, None] - 1, whole.tokens[rows], 0)
    tokens[np.arange(len(rows)), length - 1] = np.flatnonzero(base.mdp.is_eos)[0]
    return base.mdp.finished(whole.prompt[rows], whole.prompt_text[rows], tokens, length)


def _cost(base: CompletionsToEdit, texts: FinishedCompletions, best: int) -> float:
    """The mean change of log pi_ref where completions are cut at a length."""
    rows = np.flatnonzero(texts.length == best)
    origin = rows // (len(texts) // len(base.whole))
    whole = reference_log_probs(base.mdp, base.whole)[origin]
    return float(np.minimum(reference_log_probs(base.mdp, texts.select(rows)) - whole, 0.0).mean())


class Effect(NamedTuple):
    """What completions score where they are cut to one length."""

    score: float
    stderr: float
    cuts: int


def length_effects(scores: Array, completion: NDArray[np.int64], length: NDArray[np.int64]) -> dict[int, Effect]:
    """The effect of each length where the same completions have it: a fit of score = completion + length.

    A mean of the scores at a length would be that of the completions that are so long. The effects are moved so that
    their mean over the cuts is that of the scores.

    Args:
        scores: of the cuts, [K].
        completion: the completion that each is of, [K].
        length: in tokens, [K].
    """
    lengths, inverse, counts = np.unique(length, return_inverse=True, return_counts=True)
    indicators = np.concatenate([np.eye(int(completion.max()) + 1)[completion], np.eye(len(lengths))[inverse]], axis=1)
    fitted, _, rank, _ = np.linalg.lstsq(indicators, scores, rcond=None)
    effects = fitted[-len(lengths) :]
    effects = effects + scores.mean() - effects @ counts / len(scores)
    left = float(((scores - indicators @ fitted) ** 2).sum()) / max(len(scores) - int(rank), 1)
    rows = zip(lengths.tolist(), effects.tolist(), np.sqrt(left / counts).tolist(), counts.tolist(), strict=True)
    return {n: Effect(*row) for n, *row in rows}


def explained_by_groups(values: Array, groups: NDArray[np.int64]) -> float:
    """The share of the variance of values [K] that their groups [K] explain beyond chance; nan where it has none."""
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    total = float(((values - values.mean()) ** 2).sum()) if len(values) else 0.0
    if total == 0 or len(counts) < 2 or len(values) <= len(counts):
        return float("nan")
    left = float(((values - (np.bincount(inverse, values) / counts)[inverse]) ** 2).sum())
    return 1 - left / total * (len(values) - 1) / (len(values) - len(counts))
