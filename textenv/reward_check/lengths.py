"""The same completions cut, or with a part exchanged: what does length alone do, and what does the score depend on?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from textenv.reward_check.calls import Array, score_completions
from textenv.reward_check.correlation import centred
from textenv.reward_check.findings import Cell, Finding, Table, quoted
from textenv.reward_check.holes import Hole
from textenv.reward_check.probes import CompletionsToEdit
from textenv.reward_check.samples import encode_completions, reference_log_probs
from textenv.rewards import FinishedCompletions, RewardError

LENGTHS, CUTS = 48, 8  # different lengths at most, and those of one completion
EXPLAINED = 0.5  # of what cutting changes: what a text says has the other half
FEWEST_CUTS, SURE = 5, 2.0  # of the length that is named, and the standard errors by which it must be good
SHOWN = 6
PARTS, EXCHANGES = 4, 3
UNREAD, READ = 0.05, 0.1  # of the change that the part with the largest one makes; of the standard deviation
CHANGED = 10  # completions, by that part: with fewer, that another part changes none of them may be chance


def check_lengths(base: CompletionsToEdit, seed: int) -> tuple[list[Hole], list[Table]]:
    """Cuts each completion at some lengths, with an EOS token there, and compares the lengths.

    Only where the reference has full support: elsewhere a beginning may be none of its completions.
    """
    if not base.mdp.full_support or not base.mdp.is_eos.any():
        return [], []
    texts = _cut(base, seed)
    try:
        grid = score_completions(base.mdp.reward, texts).reshape(len(base.whole), -1)
    except RewardError as error:
        text = f"the reward fails where completions are cut: {error}"
        return [Hole(np.inf, Finding("holes", "length", "broken", text))], []
    compared = (~np.isnan(grid)).sum(axis=1) >= 2
    if not compared.any():
        return [], []
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
    if np.isnan(share) or share < EXPLAINED or float(changes.std()) < READ * scale:
        return [], [table]
    frequent = [n for n, effect in effects.items() if effect.cuts >= FEWEST_CUTS] or list(effects)
    best = max(frequent, key=lambda n: effects[n].score - SURE * effects[n].stderr)
    text = f"where completions are cut, the number of tokens alone explains {share:.0%} of what changes; best "
    text += f"at {best} tokens: {effects[best].score:.3g} \u00b1 {effects[best].stderr:.2g}"
    row = int(np.flatnonzero(length == best)[0])
    example = f"{quoted(str(texts.completions[int(np.flatnonzero(known)[row])]))} has {scores[row]:.3g}"
    rank = effects[best].score - effects[max(effects)].score + base.mdp.kl_coef * _cost(base, texts, best)
    return [Hole(rank, Finding("holes", "length", "look here", text, example))], [table]


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


def check_parts(base: CompletionsToEdit) -> tuple[list[Hole], list[Table]]:
    """Exchanges each quarter of the words for that of another completion: which quarter does the score depend on?"""
    words = [str(text).split() for text in base.finished.completions]
    rows = [row for row, each in enumerate(words) if len(each) >= PARTS]
    if len(rows) < PARTS or not base.mdp.full_support:
        return [], []
    others = np.concatenate([np.roll(rows, 1 + k * len(rows) // PARTS) for k in range(EXCHANGES)])
    rows *= EXCHANGES
    chosen, changes, most = base.finished.select(np.array(rows)), list[float](), 0
    for part in range(PARTS):
        texts = [" ".join(_exchanged(words[a], words[b], part)) for a, b in zip(rows, others, strict=True)]
        found = encode_completions(base.mdp, chosen, texts)
        if found is None:
            return [], []
        try:
            change = np.abs(score_completions(base.mdp.reward, found) - base.scores[rows])
        except RewardError:
            return [], []
        changes.append(float(np.nan_to_num(change).mean()))
        most = max(most, int((change.reshape(EXCHANGES, -1) > 0).any(axis=0).sum()))
    scale = base.scale or max(changes) or 1.0
    names = ["first", "second", "third", "last"]
    cells: list[list[Cell]] = [[name, change, change / scale] for name, change in zip(names, changes, strict=True)]
    table = Table(
        "holes", "a quarter exchanged for that of another completion", ["quarter", "change of the score", "std"], cells
    )
    unread = [name for name, change in zip(names, changes, strict=True) if change < UNREAD * max(changes)]
    if not unread or most < CHANGED or max(changes) < READ * scale:
        return [], [table]
    text = f"the score does not depend on the {' and the '.join(unread)} quarter of the words: there a policy may say "
    text += "anything"
    return [Hole(0.0, Finding("holes", "parts", "look here", text))], [table]


def _exchanged(words: list[str], other: list[str], part: int) -> list[str]:
    """The words with one quarter taken from another completion."""
    first, last = part * len(words) // PARTS, (part + 1) * len(words) // PARTS
    there = part * len(other) // PARTS
    taken = [other[(there + k) % len(other)] for k in range(last - first)]  # as many: the length stays
    return [*words[:first], *taken, *words[last:]]
